"""A request in, what is wrong with it out, for every backend alike; and what a backend says of the export it runs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastervit_trt.benchmarks.backends.runner import Artifact, Request
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["check_images", "check_request", "graph_artifact", "is_quantised", "why_not_here"]


def check_request(request: Request, served: BatchRange, device_kind: Literal["cpu", "gpu"]) -> None:
    """Refuse what cannot be measured, before anything is loaded.

    Args:
        served: batch sizes of the artifact.

    Raises:
        FasterViTError: a batch outside of these, or what :func:`why_not_here` says.
    """
    if request.batch not in served:
        raise FasterViTError(
            f"'{request.folder}' serves batch {served}, not {request.batch}; pass another --batch or export it again"
        )
    if reason := why_not_here(request, device_kind):
        raise FasterViTError(reason)


def why_not_here(request: Request, device_kind: Literal["cpu", "gpu"]) -> str | None:
    """Why a request makes no sense on this kind of device, or None."""
    if request.batch < 1 or request.streams < 1 or request.threads < 1:
        return (
            f"batch {request.batch}, streams {request.streams} and threads {request.threads} must be at least 1; "
            "pass larger ones"
        )
    if device_kind == "cpu" and request.streams > request.threads:
        return (
            f"{request.streams} streams share {request.threads} CPU threads, and each needs one; "
            "pass fewer --streams or more --threads"
        )
    if device_kind == "cpu" and (request.cold_cache or request.transfers):
        option = "--cold-cache" if request.cold_cache else "--transfers"
        return f"{option} is about GPUs, and this runs on the CPU; leave it out"
    if request.cold_cache and request.streams > 1:
        return "with several streams one would empty the cache of the other; pass --streams 1 with --cold-cache"
    return None


def check_images(request: Request, images: np.ndarray) -> np.ndarray:
    """``images`` in one piece, if they are the batch that was asked for.

    Raises:
        FasterViTError: another type or shape.
    """
    expected = (request.batch, *request.manifest.input["shape"][1:])
    if images.dtype != np.float32 or images.shape != expected:
        raise FasterViTError(
            f"images to time '{request.folder}' with must be float32 {expected}, not {images.dtype} {images.shape}; "
            "prepare them as the manifest's 'preprocessing' says"
        )
    return np.ascontiguousarray(images)


def is_quantised(request: Request) -> bool:
    """Whether parts of it are in 8 bits."""
    return request.manifest.graph.get("quantisation") is not None


def graph_artifact(request: Request) -> Artifact:
    """The exported graph; its bytes with those of its weights where they lie in a file of their own."""
    files = request.manifest.files
    size = sum(entry["bytes"] for name, entry in files.items() if name in (GRAPH_FILE, f"{GRAPH_FILE}.data"))
    return Artifact(GRAPH_FILE, files[GRAPH_FILE]["sha256"], size)
