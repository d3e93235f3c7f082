from __future__ import annotations

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import create_model, get_variant, list_models

# published name → parameters, state-dict entries
PUBLISHED = {
    "faster_vit_0_224": (31_404_840, 476),
    "faster_vit_1_224": (53_366_696, 550),
    "faster_vit_2_224": (75_923_816, 578),
    "faster_vit_3_224": (159_547_944, 812),
    "faster_vit_4_224": (365_555_712, 812),
    "faster_vit_5_224": (957_520_552, 812),
    "faster_vit_6_224": (1_360_328_872, 1076),
    "faster_vit_4_21k_224": (271_944_224, 520),
    "faster_vit_4_21k_384": (271_944_224, 520),
    "faster_vit_4_21k_512": (271_944_224, 520),
    "faster_vit_4_21k_768": (271_944_224, 520),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PUBLISHED[name]


@pytest.mark.parametrize("resolution", [64, (96, 224), (225, 161)])
def test_any_resolution_gives_logits(resolution: int | tuple[int, int]) -> None:
    model = create_model("faster_vit_digits_m", resolution, num_classes=7).eval()
    with torch.inference_mode():
        assert model(torch.randn(3, 3, *model.config.resolution)).shape == (3, 7)


def test_every_published_variant_takes_a_step_back_through_all_its_parameters() -> None:
    model = create_model("faster_vit_digits_s", drop_path_rate=0.0).train()
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == []


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(FasterViTError, match=r"unknown model 'fastervit_1'; closest names: .*faster_vit_1_224"):
        create_model("fastervit_1")


@pytest.mark.parametrize("resolution", [0, 31, (224, 16), -5, 100_000])
def test_impossible_resolution_is_refused(resolution: int | tuple[int, int]) -> None:
    with pytest.raises(FasterViTError, match="is impossible for faster_vit_0_224"):
        create_model("faster_vit_0_224", resolution)


def test_digits_models_have_every_part() -> None:
    for name in (n for n in list_models() if get_variant(n).shipped_weights):
        config = get_variant(name).config
        stage = config.geometry(2)
        assert stage.grid == (2, 2)
        assert stage.has_carriers
        assert not config.geometry(3).has_carriers
