"""The Python step of a repository, driven as Triton's Python backend drives it, with real files."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.triton.repository import write_repository
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.preprocessing import preprocess_image
from tests.deploy.triton.python_backend import Request, TritonError, python_step

NAME = "faster_vit_digits_s"
PIXELS = 700_000


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = write_repository(bundle, tmp_path_factory.mktemp("triton") / "served", max_pixels=PIXELS)
    return written.models / f"{NAME}_preprocess"


@pytest.fixture
def step(folder: Path) -> Iterator[Any]:
    with python_step(folder) as loaded:
        yield loaded


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def sixteen_bits() -> Image.Image:
    return Image.fromarray((np.arange(64 * 48).reshape(48, 64) * 21).astype(np.uint16))


def rotated_by_tag() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90 degrees", which the published evaluation does not
    return encoded(noise(90, 40), "JPEG", exif=exif)


PICTURES = {
    "small png": encoded(noise(8, 8), "PNG"),
    "wide jpeg": encoded(noise(301, 77), "JPEG", quality=90),
    "tall png": encoded(noise(33, 400), "PNG"),
    "grey jpeg": encoded(noise(50, 60, "L"), "JPEG"),
    "cmyk jpeg": encoded(noise(64, 48, "CMYK"), "JPEG"),
    "png with alpha": encoded(noise(40, 30, "RGBA"), "PNG"),
    "palette png": encoded(noise(40, 30).quantize(17), "PNG"),
    "16-bit png": encoded(sixteen_bits(), "PNG"),
    "1-bit png": encoded(noise(40, 30, "L").convert("1"), "PNG"),
    "animated png": encoded(noise(40, 30), "PNG", save_all=True, append_images=[noise(40, 30, "L").convert("RGB")]),
    "progressive jpeg": encoded(noise(120, 90), "JPEG", progressive=True),
    "jpeg with a turn in its tags": rotated_by_tag(),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_pixel_for_pixel_what_the_model_was_validated_with(step: Any, bundle: Bundle, picture: str) -> None:
    (response,) = step.execute([Request("picture", [PICTURES[picture]])])
    assert not response.has_error()
    (tensor,) = response.output_tensors()
    expected = preprocess_image(
        Image.open(io.BytesIO(PICTURES[picture])), Preprocessing(**bundle.export.preprocessing), (224, 224)
    )
    assert tensor.name() == "images"
    assert tensor.as_numpy().dtype == np.float32
    assert tensor.as_numpy().tobytes() == expected[None].tobytes()


def test_several_pictures_in_several_requests(step: Any, bundle: Bundle) -> None:
    pictures = list(PICTURES.values())
    responses = step.execute([Request("picture", pictures[:3]), Request("picture", pictures[3:8])])
    shapes = [response.output_tensors()[0].as_numpy().shape for response in responses]
    assert shapes == [(3, 3, 224, 224), (5, 3, 224, 224)]
    how = Preprocessing(**bundle.export.preprocessing)
    last = preprocess_image(Image.open(io.BytesIO(pictures[7])), how, (224, 224))
    assert responses[1].output_tensors()[0].as_numpy()[-1].tobytes() == last.tobytes()


def giant_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "empty": (b"", "none of JPEG, PNG"),
    "text": (b"not a picture", "none of JPEG, PNG"),
    "another format": (encoded(noise(8, 8), "GIF"), "none of JPEG, PNG"),
    "cut off": (PICTURES["wide jpeg"][:400], "runcated"),
    "damaged": (PICTURES["small png"][:60] + b"\xff" * 40, "."),
    "more pixels than allowed": (giant_png(900, 800), "900 x 800 is more than 700000 pixels"),
    "a bomb": (giant_png(60_000, 60_000), "."),
    # 20 000 pixels, of which the resize would make 224 x 4 480 000.
    "so thin that it becomes huge": (encoded(Image.new("L", (1, 20_000)), "PNG"), "1 x 20000 is more than"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_fails_its_own_request_alone(step: Any, kind: str) -> None:
    content, reason = BAD[kind]
    good = PICTURES["small png"]
    first, bad, last = step.execute(
        [Request("picture", [good]), Request("picture", [good, content]), Request("picture", [good])]
    )
    assert not first.has_error()
    assert not last.has_error()
    assert bad.has_error()
    assert bad.error().code() == TritonError.INVALID_ARG
    message = bad.error().message()
    assert message.startswith("picture 1: ")
    assert reason in message or reason == "."
    assert "\n" not in message
    assert "0x" not in message  # no addresses


def test_nothing_is_decoded_for_a_request_that_was_cancelled(step: Any) -> None:
    (response,) = step.execute([Request("picture", [PICTURES["small png"]], cancelled=True)])
    assert response.error().code() == TritonError.CANCELLED


def test_it_needs_numpy_and_pillow_alone(folder: Path) -> None:
    """In the server's container there is no fastervit-trt: its import would fail there."""
    program = (
        "import sys, types\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('fastervit_trt', 'torch', 'onnx'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.modules['triton_python_backend_utils'] = types.ModuleType('triton_python_backend_utils')\n"
        "import model\n"
        "module = model._beside('preprocessing')\n"
        "print(module.preprocess_image.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder / "1", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "preprocess_image\n", done.stderr
