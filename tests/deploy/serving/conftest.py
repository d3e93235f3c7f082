"""One server for all tests of a module that change nothing, and what it is judged by: ONNX Runtime called directly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.export.graph import GRAPH_FILE
from tests.deploy.serving.running import Direct, Running, running


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Running]:
    with running(bundle, queue=256) as server:
        yield server


@pytest.fixture(scope="session")
def direct(bundle: Bundle) -> Direct:
    """float32 (B, 3, H, W) → logits (B, 10), one image after the other."""
    session = onnxruntime.InferenceSession(bundle.export_folder / GRAPH_FILE, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        return np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])

    return run
