"""The model computes what the published one computes, under weights rebuilt from parameter names."""

from __future__ import annotations

from ast import literal_eval
from typing import Any

import numpy as np
import pytest
import torch

from fastervit_trt.models import create_model
from tests.conftest import TESTS, fill_from_names

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "faster_vit_0_224": ("faster_vit_0_224", {}),
    "faster_vit_3_224": ("faster_vit_3_224", {}),  # propagation and layer scale
    "faster_vit_4_21k_224": ("faster_vit_4_21k_224", {}),  # head dim 49, no carriers
    # 3x5 windows in stage 2: padded bias, no carrier embedding, the reference's carrier order
    "faster_vit_0_any_res_576x960": ("faster_vit_0_any_res", {"window_size": (7, 7, 12, 6)}),
}
TOLERANCE = 1e-5  # of the largest magnitude; the goal is 1e-4


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    name, overrides = CASES[request.param]
    return create_model(name, **overrides), np.load(TESTS / "golden" / f"{request.param}.npz")


def test_state_dict_has_the_published_keys_and_shapes(case: tuple[Any, Any]) -> None:
    model, golden = case
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    published = {str(k): literal_eval(str(s)) for k, s in zip(golden["keys"], golden["shapes"], strict=True)}
    assert own == published
    assert sum(p.numel() for p in model.parameters()) == golden["n_params"]


def test_outputs_match_the_published_model(case: tuple[Any, Any]) -> None:
    model, golden = case
    fill_from_names(model)
    resolution = tuple(int(side) for side in golden["resolution"])
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *resolution)).astype(np.float32))
    with torch.inference_mode():
        features = model.patch_embed(x)
        for i, level in enumerate(model.levels):
            features = level(features)
            assert_close(features[:, :16, :2, :2], golden[f"level{i}"], f"level {i}")
        assert_close(model(x), golden["logits"], "logits")


def assert_close(actual: torch.Tensor, expected: np.ndarray, what: str) -> None:
    deviation = np.abs(actual.numpy() - expected).max() / np.abs(expected).max()
    print(f"{what}: largest deviation {deviation:.1e} of the largest magnitude")
    assert deviation <= TOLERANCE, what
