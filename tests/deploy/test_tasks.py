"""A detector and a segmenter as users take them from weights to a target: one way through, each step real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.bundle.papers import write_readme
from fastervit_trt.deploy.targets.table import get_target
from fastervit_trt.engines.runtime import Engine
from tests.conftest import Finished

OUTPUTS = {"detector": ("boxes", "scores", "labels"), "segmenter": ("masks",)}


@pytest.mark.parametrize("model", OUTPUTS)
def test_from_weights_to_a_target(
    command: Callable[..., Finished], task_bundles: Path, tmp_path: Path, model: str
) -> None:
    installed = tmp_path / "installed"
    manifest = Manifest.read(task_bundles / model / "export")
    assert manifest.task == {"detector": "detection", "segmenter": "segmentation"}[model]
    assert tuple(output["name"] for output in manifest.outputs) == OUTPUTS[model]
    assert manifest.golden is not None
    budget = manifest.golden["outputs"][OUTPUTS[model][0]]["budget"]
    assert budget < 0.2  # of a trained model: what it finds does not hang on a rounding

    for arguments in (("install", task_bundles / model, "--output", installed), ("verify", installed)):
        finished = command("fastervit-deploy", *arguments, "--seconds", 0.1)
        assert finished.code == 0, finished.err
    with Engine.load(installed / "export") as engine:
        assert engine.outputs == OUTPUTS[model]
        images = np.random.default_rng(0).standard_normal((5, 3, 128, 128)).astype(np.float32)
        outputs = engine(images)  # also where two are taken at once: the last is filled up
        for name, found, alone in zip(OUTPUTS[model], outputs, engine(images[4:]), strict=True):
            assert found.shape == (5, *manifest.outputs[OUTPUTS[model].index(name)]["shape"][1:])
            np.testing.assert_allclose(found[4:], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("model", OUTPUTS)
def test_a_bundle_says_how_an_engine_is_held_to_it_without_python(
    task_bundles: Path, tmp_path: Path, model: str
) -> None:
    manifest = Manifest.read(task_bundles / model / "export")
    assert manifest.golden is not None
    write_readme(tmp_path, "bundle", manifest, get_target("l4"), None)
    budget = manifest.golden["outputs"][OUTPUTS[model][0]]["budget"]
    command = f"fastervit-runner ENGINE export/golden-images.npy --golden export \\\n        --tolerance {budget:.6g}\n"
    assert command in (tmp_path / "README.txt").read_text()
    for name in OUTPUTS[model]:
        assert (task_bundles / model / "export" / f"golden-{name}.npy").is_file()  # where the program looks
