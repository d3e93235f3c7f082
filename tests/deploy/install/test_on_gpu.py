"""A bundle packed for this very machine, installed, built, verified and run on its GPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.deploy.bundle.pack import PackRequest, pack
from fastervit_trt.deploy.install.install import verify_installed
from fastervit_trt.deploy.targets.detect import detect_target
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.errors import FasterViTError
from tests.deploy.bundles import flip_weight, signed_again
from tests.deploy.install.conftest import Install

pytestmark = pytest.mark.gpu


@pytest.fixture
def bundle(exports: Path, tmp_path: Path) -> Path:
    here = Here.detect()
    if here.gpu is None:
        pytest.skip("no GPU")
    target = detect_target(here)
    if target.runtime not in here.versions:
        pytest.skip(f"{target.name} needs {target.runtime}, which is not installed")
    pack(PackRequest(exports / "fp16", target, tmp_path / "bundle", plugins="sources" if target.plugins else "auto"))
    return tmp_path / "bundle"


def test_it_arrives_and_does_what_the_model_does(bundle: Path, installed: Install, tmp_path: Path) -> None:
    done = installed(bundle, rehearse=False)
    assert done.receipt.rehearsal == []
    assert done.receipt.engine is not None
    assert done.arrival.file == done.receipt.engine["file"]
    assert done.arrival.precision.state == "proven"
    again = verify_installed(tmp_path / "deployed", seconds=0.2, step=lambda text: nullcontext())
    assert again.golden.passed
    with Engine.load(tmp_path / "deployed/export") as engine:
        assert engine.backend in ("tensorrt", "rtx")
        assert np.isfinite(engine(np.zeros((2, 3, 224, 224), np.float32))[0]).all()


def test_a_flipped_weight_does_not_arrive(bundle: Path, installed: Install, tmp_path: Path) -> None:
    flip_weight(bundle / "export/model.onnx")
    signed_again(bundle)
    with pytest.raises(FasterViTError, match="does not compute here what the model computes"):
        installed(bundle)
    assert not (tmp_path / "deployed").exists()
