"""Encoded pictures get the classes that ONNX Runtime gives their preprocessed images."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.preprocessing import preprocess_image
from tests.deploy.conftest import LABELS
from tests.deploy.serving.running import Direct, Running, assert_close

client_library = pytest.importorskip("tritonclient.http")
utilities = pytest.importorskip("tritonclient.utils")


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def infer(served: Running, pictures: list[bytes], shape: tuple[int, ...] | None = None, **options: Any) -> Any:
    tensor = client_library.InferInput("picture", shape or (len(pictures), 1), "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, object).reshape(shape or (len(pictures), 1)))
    with client_library.InferenceServerClient(served.address) as client:
        return client.infer(f"{served.model}_pictures", [tensor], **options)


def images_of(served: Running, pictures: list[bytes]) -> np.ndarray:
    export = served.serving.service.bundle.export
    how = Preprocessing(**export.preprocessing)
    return np.stack([preprocess_image(Image.open(io.BytesIO(p)), how, export.resolution) for p in pictures])


def test_digits_get_their_classes(served: Running, direct: Direct) -> None:
    pictures, labels = load_digits_split("held_out")
    files = [encoded(picture) for picture in pictures[:12]]
    logits = infer(served, files).as_numpy("logits")
    assert_close(logits, direct(images_of(served, files)))
    assert (logits.argmax(1) == labels[:12]).mean() > 0.9
    output = client_library.InferRequestedOutput("logits", class_count=1)
    texts = infer(served, files, (12,), outputs=[output]).as_numpy("logits")
    assert [t[0].decode().split(":")[2] for t in texts] == [LABELS[i] for i in logits.argmax(1)]


def test_photographs_of_any_size_and_mode(served: Running, direct: Direct) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 4), np.uint8)
    files = [
        encoded(Image.fromarray(noise[..., :3]), "JPEG"),
        encoded(Image.fromarray(noise, "CMYK"), "JPEG"),
        encoded(Image.fromarray(noise), "PNG"),
        encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"),
    ]
    assert_close(infer(served, files).as_numpy("logits"), direct(images_of(served, files)))


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be many pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_what_is_no_picture_is_named(served: Running) -> None:
    good = encoded(Image.new("RGB", (8, 8)))
    for bad, says in (
        (b"", "picture 1 cannot be read"),
        (b"no picture", "picture 1 cannot be read"),
        (good[:-30], "picture 1 cannot be read"),
        (encoded(Image.new("RGB", (8, 8)), "GIF"), "picture 1 cannot be read"),
        (huge_png(10_000, 5_001), "10000x5001"),
        (huge_png(60_000, 60_000), "picture 1 has more than 50000000 pixels"),
        # 20 000 pixels, of which the resize would make 224 x 4 480 000
        (huge_png(1, 20_000), "picture 1 of 1x20000 has more than 50000000 pixels, as it is or enlarged"),
    ):
        with pytest.raises(utilities.InferenceServerException, match=says) as refusal:
            infer(served, [good, bad])
        assert refusal.value.status() == "400"
    tensor = {"name": "picture", "shape": [1, 1], "datatype": "BYTES", "data": ["abc"]}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert "as binary data" in served.refusal(400, body, path=served.infer_path("_pictures"))


def test_small_files_cannot_become_many_images(served: Running) -> None:
    many = (64 << 20) // (3 * 224 * 224 * 4) + 1  # of 64 MiB
    with pytest.raises(utilities.InferenceServerException, match="at a time") as refusal:
        infer(served, [encoded(Image.new("L", (1, 1)))] * many)
    assert refusal.value.status() == "413"


def test_pictures_are_counted_as_requests_of_their_own(served: Running) -> None:
    before, ran = served.statistics("_pictures"), served.statistics()
    infer(served, [encoded(Image.new("RGB", (8, 8)))] * 3)
    after = served.statistics("_pictures")
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] == 0
    assert served.statistics()["execution_count"] == ran["execution_count"] + 1
