"""A detector and a segmenter as users take them from weights to a target: one way through, each step real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.engines.runtime import Engine
from tests.conftest import Finished
from tests.deploy.triton.load_rules import problems, read_repository

OUTPUTS = {"detector": ("boxes", "scores", "labels"), "segmenter": ("masks",)}


@pytest.mark.parametrize("model", OUTPUTS)
def test_from_weights_to_a_target(command: Callable[..., Finished], tmp_path: Path, model: str) -> None:
    def done(*arguments: object) -> Finished:
        finished = command(*arguments)
        assert finished.code == 0, finished.err
        return finished

    export, bundle, installed = tmp_path / "export", tmp_path / "bundle", tmp_path / "installed"
    weights = ("--model", f"faster_vit_scenes_{model}", "--pretrained", "--precision", "fp16", "--batch", "1:4:4")
    done("fastervit-export", *weights, "--runtime", "none", "--output", export)
    manifest = Manifest.read(export)
    assert manifest.task == {"detector": "detection", "segmenter": "segmentation"}[model]
    assert tuple(output["name"] for output in manifest.outputs) == OUTPUTS[model]
    assert manifest.golden is not None
    budget = manifest.golden["outputs"][OUTPUTS[model][0]]["budget"]
    assert budget < 0.2  # of a trained model: what it finds does not hang on a rounding

    done("fastervit-deploy", "pack", export, "--target", "cpu", "--output", bundle)
    done("fastervit-deploy", "install", bundle, "--output", installed)
    done("fastervit-deploy", "verify", installed)
    with Engine.load(installed / "export") as engine:
        assert engine.outputs == OUTPUTS[model]
        assert len(engine(np.zeros((2, 3, 128, 128), np.float32))[0]) == 2

    done("fastervit-deploy", "triton", bundle, "--repository", tmp_path / "triton")
    repository = next(path for path in (tmp_path / "triton").rglob("models") if path.is_dir())
    assert problems(repository) == []
    served = {config.name: config for config in read_repository(repository).values()}
    assert tuple(output.name for output in served[f"faster_vit_scenes_{model}"].output) == OUTPUTS[model]
    assert not list((tmp_path / "triton").rglob("golden.json"))  # its client compares value by value
