"""fastervit-runner as its users run it, on stand-ins of TensorRT and CUDA, under sanitizers; NumPy judges."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.standin.build import StandIn
from tests.plugins.standin.running import IMAGE, SANITIZERS, Ran, Runner, pictures

CLASSES = 6
FLOAT, HALF, LINEAR, CHW4 = 0, 1, 0, 3  # TensorRT's DataType and TensorFormat


def engine(*profiles: tuple[int, int], shape: Sequence[int] = (-1, *IMAGE), tensors: str = "", **lines: Any) -> str:
    """An engine of the stand-in. A profile is its smallest and its largest batch; -1 of an image is from 2 to 8."""
    profiles = profiles or ((1, 4),)
    listed = ",".join(map(str, shape))
    named = tensors or f"images:in:{FLOAT}:{LINEAR}:{listed} logits:out:{FLOAT}:{LINEAR}:{shape[0]},{CLASSES}"
    text = f"standin\nclasses={CLASSES}\nprofiles={len(profiles)}\ntensors={named}\n"
    for number, batches in enumerate(profiles):
        for name, batch, side in (("least", batches[0], 2), ("most", batches[1], 8)):
            sizes = [batch if shape[0] < 0 else shape[0], *(side if size < 0 else size for size in shape[1:])]
            text += f"{name}{number}={','.join(map(str, sizes))}\n"
    return text + "".join(f"{name}={value}\n" for name, value in lines.items())


def logits_of(images: np.ndarray) -> np.ndarray:
    pixels = images.reshape(len(images), -1)
    i, k = np.arange(pixels.shape[1])[:, None], np.arange(CLASSES)[None]
    return (pixels.astype(np.float64) @ ((i * 7 + k * 13) % 11 - 5)).astype(np.float32)


def ranked(logits: np.ndarray, top: int, labels: Sequence[str] = ()) -> str:
    text = ""
    for number, row in enumerate(logits.astype(np.float64)):
        chances = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        text += f"image {number}\n"
        for rank, index in enumerate(np.argsort(-row, kind="stable")[:top]):
            text += f"{rank + 1:4d}  {chances[index]:.6f}  {index}{'  ' + labels[index] if labels else ''}\n"
    return text


def runs(ran: Ran) -> list[int]:
    """Batches that were executed."""
    return [int(call.split()[1].split(",")[0]) for call in ran.calls if call.startswith("run ")]


# What comes out.


@pytest.mark.parametrize(
    ("profile", "count", "batches"),
    [((1, 4), 10, [4, 4, 2]), ((1, 4), 3, [3]), ((2, 4), 5, [4, 2]), ((4, 4), 6, [4, 4]), ((3, 8), 1, [3])],
)
def test_images_are_run_in_batches_of_the_profile(
    run: Runner, tmp_path: Path, profile: tuple[int, int], count: int, batches: list[int]
) -> None:
    images = pictures(count)
    ran = run(engine(profile), images, "--output", "logits.npy")
    assert (ran.code, ran.err) == (0, "")
    assert runs(ran) == batches
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits_of(images))
    assert ran.out == ranked(logits_of(images), 5)
    assert f"last image {count - 1}" in ran.calls[-3:]  # what is missing from the least batch is the last image again
    assert ran.calls[-2:] == ["engine gone", "runtime gone"]


def test_an_engine_of_one_batch_is_filled_up(run: Runner, tmp_path: Path) -> None:
    images = pictures(5)
    ran = run(engine(shape=(4, *IMAGE)), images, "--output=logits.npy", "--top=1")
    assert runs(ran) == [4, 4]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits_of(images))
    assert ran.out == ranked(logits_of(images), 1)


def test_another_profile(run: Runner) -> None:
    ran = run(engine((1, 1), (2, 8)), pictures(9), "--profile", 1)
    assert "profile 1" in ran.calls
    assert runs(ran) == [8, 2]
    ran = run(engine((1, 1), (2, 8)), pictures(9), "--profile", 2)
    assert (ran.code, ran.error) == (2, "--profile 2: engine has 2, counted from 0")


def test_images_of_another_size_where_the_engine_takes_them(run: Runner, tmp_path: Path) -> None:
    images = pictures(2, (3, 2, 8))
    ran = run(engine(shape=(-1, 3, -1, -1)), images, "--output", "logits.npy")
    assert "run 2,3,2,8" in ran.calls
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits_of(images))


def test_labels(run: Runner, tmp_path: Path) -> None:
    labels = ["zero", "one, two", "", "drei", "vier", "5"]
    (tmp_path / "labels.txt").write_bytes("\r\n".join(labels).encode())
    images = pictures(2)
    ran = run(engine(), images, "--labels", "labels.txt", "--top", 100)
    assert ran.out == ranked(logits_of(images), CLASSES, labels)
    (tmp_path / "labels.txt").write_text("zero\none\n")
    ran = run(engine(), images, "--labels", "labels.txt")
    assert (ran.code, ran.error) == (2, "labels.txt has 2 labels, engine has 6 classes")


def test_equal_logits_are_in_the_order_of_classes(run: Runner) -> None:
    ran = run(engine(tied=1), pictures(1), "--top", CLASSES)
    assert ran.out == "image 0\n" + "".join(f"   {i + 1}  0.166667  {i}\n" for i in range(CLASSES))


def test_large_logits_do_not_overflow(run: Runner) -> None:
    images = pictures(1) * 4096
    assert np.ptp(logits_of(images)) > 710  # more than exp can take
    assert run(engine(), images).out == ranked(logits_of(images), 5)


def test_raw_images(run: Runner) -> None:
    images = pictures(3)
    ran = run(engine(), images.tobytes(), "--shape", "3,3,4,4")
    assert ran.out == ranked(logits_of(images), 5)
    ran = run(engine(), images.tobytes())
    assert ran.error == "images.npy is no .npy file; give the shape of raw float32 as --shape N,C,H,W"
    ran = run(engine(), images.tobytes()[:-1], "--shape", "3,3,4,4")
    assert ran.error == "images.npy has 575 bytes of data, its shape 3x3x4x4 asks for 576"


def test_latency(run: Runner) -> None:
    """Of the first batch, by CUDA's events; the stand-in's clock is in no order."""
    ran = run(engine(), pictures(6), "--repeat", 25)
    times = [7.0 * n % 100 for n in range(1, 26)]
    p50, p90 = (np.percentile(times, q, method="inverted_cdf") for q in (50, 90))
    assert ran.out == ranked(logits_of(pictures(6)), 5) + (
        f"latency: p50 {p50:.4f} ms, p90 {p90:.4f} ms of 25 runs, 4 images each, on the GPU without copies\n"
    )
    assert runs(ran) == [4] * (1 + 10 + 25) + [2]


def test_nothing_is_lost_where_the_output_is_full(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    run(engine(), pictures(1))
    command = [stand_in.runner, "engine", "images.npy", "--library", stand_in.tensorrt]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: cannot write to the standard output\n")


def test_help(run: Runner) -> None:
    ran = run(None, None, "--top", "--help")
    assert (ran.code, ran.err) == (0, "")
    known = re.findall(r"^  (--[\w-]+)", ran.out, re.MULTILINE)
    assert len(known) == 13
    for option in known:  # each is one that it takes: none is unknown
        assert "unknown" not in run(None, None, option).err


# Judged by golden logits.


def test_golden_logits(run: Runner, tmp_path: Path) -> None:
    images = pictures(6)
    golden = logits_of(images)
    golden[4, 2] -= 0.25
    golden[1, 3] += 0.125
    np.save(tmp_path / "golden.npy", golden)
    line = (
        "golden: the worst difference is 0.25 of {} allowed, image 4, class 2: "
        f"{logits_of(images)[4, 2]:.9g} instead of {golden[4, 2]:.9g}"
    )
    ran = run(engine(), images, "--golden", "golden.npy", "--tolerance", 0.25)
    assert (ran.code, ran.out) == (0, ranked(logits_of(images), 5) + line.format(0.25) + "\n")

    ran = run(engine(), images, "--golden", "golden.npy", "--tolerance", "0.2499", "--output", "logits.npy")
    assert (ran.code, ran.error) == (1, line.format(0.2499))
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits_of(images))  # to look at


def test_equal_logits_pass_without_tolerance(run: Runner, tmp_path: Path) -> None:
    np.save(tmp_path / "golden.npy", logits_of(pictures(2)))
    ran = run(engine(), pictures(2), "--golden", "golden.npy", "--tolerance", 0)
    assert ran.code == 0
    assert "the worst difference is 0 of 0 allowed, image 0, class 0: " in ran.out


def test_logits_that_are_not_finite_never_pass(run: Runner, tmp_path: Path) -> None:
    np.save(tmp_path / "golden.npy", logits_of(pictures(6)))
    ran = run(engine(nan=1), pictures(6), "--golden", "golden.npy", "--tolerance", "1e30")
    assert ran.code == 1
    assert "the worst difference is inf of 1e+30 allowed, image 3, class 1: nan instead of" in ran.error
    ran = run(engine(nan=1), pictures(6), "--output", "logits.npy")
    assert ran.code == 2
    assert ran.error == "image 3 has the logit nan for class 1: the engine overflows, or the image does"
    assert not list(tmp_path.glob("logits*"))


def test_golden_logits_that_cannot_judge(run: Runner, tmp_path: Path) -> None:
    golden = logits_of(pictures(2))
    np.save(tmp_path / "golden.npy", golden[:1])
    ran = run(engine(), pictures(2), "--golden", "golden.npy", "--tolerance", 1)
    assert (ran.code, ran.error) == (2, "golden.npy is 1x6, the logits are 2x6")
    golden[1, 0] = np.nan
    np.save(tmp_path / "golden.npy", golden)
    ran = run(engine(), pictures(2), "--golden", "golden.npy", "--tolerance", 1)
    assert (ran.code, ran.error) == (2, "the golden logits of image 1 are not finite: they can judge nothing")
    ran = run(engine(), pictures(2), "--golden", "none.npy", "--tolerance", 1)
    assert (ran.error, ran.calls) == ("there is no file none.npy", [])  # before anything is loaded


# Which engine, which plugins, which TensorRT.


def test_another_engine_than_the_one_named_is_never_seen_by_tensorrt(run: Runner, tmp_path: Path) -> None:
    digest = hashlib.sha256(engine().encode()).hexdigest()
    assert run(engine(), pictures(1), "--sha256", digest.upper()).code == 0
    ran = run(engine() + " ", pictures(1), "--sha256", digest)
    other = hashlib.sha256((engine() + " ").encode()).hexdigest()
    assert (ran.code, ran.calls) == (2, [])
    assert ran.error == f"engine is not the engine that --sha256 names, but {other}; none of it was loaded"


@pytest.mark.parametrize("size", [1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 100_003])
def test_its_sha256_is_that_of_everybody(run: Runner, size: int) -> None:
    content = "".join(random.Random(size).choices("abcdefgh\n", k=size))
    assert hashlib.sha256(content.encode()).hexdigest() in run(content, pictures(1), "--sha256", "0" * 64).error


def test_plugins_are_loaded_before_the_engine_that_needs_them(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    ran = run(engine(plugins=1), pictures(1))
    assert ran.error == "TensorRT cannot load engine: no creator of WindowAttention"
    ran = run(engine(plugins=1), pictures(1), "--plugins", stand_in.plugins)
    assert ran.code == 0
    assert ran.calls[:2] == [f"plugins {stand_in.plugins}", f"engine of {len(engine(plugins=1))} bytes"]
    (tmp_path / "here.so").symlink_to(stand_in.plugins)  # a bare name means this folder
    assert run(engine(plugins=1), pictures(1), "--plugins", "here.so").calls[0] == "plugins ./here.so"
    ran = run(engine(), pictures(1), "--plugins", "nowhere.so")
    assert (ran.code, ran.error) == (2, "the plugins of nowhere.so cannot be loaded: no plugin library")


def test_host_code_has_to_be_allowed(run: Runner) -> None:
    assert "host code is not allowed" in run(engine(host_code=1), pictures(1)).error
    assert run(engine(host_code=1), pictures(1), "--host-code").code == 0


def test_the_library_can_be_named(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    ran = run(engine(), pictures(1), "--library", stand_in.tensorrt, LD_LIBRARY_PATH="")
    assert ran.code == 0
    ran = run(engine(), pictures(1), "--library", tmp_path / "none.so", LD_LIBRARY_PATH="")
    assert ran.code == 2
    assert f"TensorRT {stand_in.major} cannot be loaded: {tmp_path}/none.so" in ran.error
    assert ran.error.endswith("; install it, or name its file with --library")
    ran = run(engine(), pictures(1), "--library", stand_in.plugins)
    assert ran.error == f"{stand_in.plugins} is no TensorRT: it lacks getInferLibVersion"


@pytest.mark.parametrize(("version", "spelled"), [(90300, "9.3"), (120100, "12.1"), (10701, "1.7")])
def test_another_tensorrt_is_refused(run: Runner, stand_in: StandIn, version: int, spelled: str) -> None:
    """Virtual functions change places between releases, and TensorRT-RTX has its own."""
    ran = run(engine(), pictures(1), FASTERVIT_STANDIN_VERSION=str(version))
    assert (ran.code, ran.calls) == (2, [])
    assert ran.error == (
        f"libnvinfer.so.{stand_in.major} is TensorRT {spelled}, this program was compiled for TensorRT "
        f"{stand_in.major}; compile it with the headers of that one"
    )


@pytest.mark.parametrize(
    ("package", "file"), [("tensorrt_rtx", "libtensorrt_rtx"), ("tensorrt_lean", "libnvinfer_lean")]
)
def test_libraries_of_nvidia_are_asked(run: Runner, stand_in: StandIn, package: str, file: str) -> None:
    """The real ones: refused for what they are, or they refuse to start without a driver."""
    found = importlib.util.find_spec(f"{package}_libs")
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    libraries = [path for folder in folders for path in folder.glob(f"{file}.so*")]
    if not libraries:
        pytest.skip(f"no {package}")
    ran = run(engine(), pictures(1), "--library", libraries[0], ASAN_OPTIONS="exitcode=99:detect_leaks=0")
    assert ran.code == 2
    assert re.search(r"is TensorRT \d+\.\d+, this program was compiled for|TensorRT does not start: ", ran.error)


def test_what_tensorrt_says_is_shown_to_who_asks(run: Runner) -> None:
    ran = run(engine(), pictures(1), "--verbose")
    assert (ran.code, ran.err) == (0, "tensorrt: loading\n")


# What is refused, in one line.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--top", "0"], "--top 0: must be a whole number from 1 on"),
        (["--top", "1x"], "--top 1x: must be a whole number from 1 on"),
        (["--top", "9" * 30], f"--top {'9' * 30}: must be a whole number from 1 on"),
        (["--repeat=-1"], "--repeat -1: must be a whole number from 1 on"),
        (["--profile", "99999999999"], "--profile 99999999999: engine has 1, counted from 0"),
        (["--shape", "3,4,4"], "--shape 3,4,4: must be N,C,H,W, as in 8,3,224,224"),
        (["--shape", "1,3,4,4,"], "--shape : must be a whole number from 1 on"),
        (["--shape", "2,3,4,4"], "images.npy has the shape 1x3x4x4, not 2x3x4x4"),
        (["--sha256", "abc"], "--sha256 abc: must be 64 hexadecimal digits, as sha256sum prints them"),
        (["--tolerance", "1"], "--golden and --tolerance go together"),
        (["--golden", "golden.npy"], "--golden and --tolerance go together"),
        (["--golden", "golden.npy", "--tolerance", "nan"], "--tolerance nan: must be a number, 0 or more"),
        (["--golden", "golden.npy", "--tolerance", "1"], "there is no file golden.npy"),
        (["--labels", "labels.txt"], "there is no file labels.txt"),
        (["--labels", "."], ". is no file"),
        (["--output", "nowhere/logits.npy"], "cannot write nowhere/logits.npy: no file can be made beside it"),
        (["--output", "."], "cannot write .: the disk is full, or it is a folder"),
        (["--output"], "--output needs a value"),
        (["--output", "--verbose"], "--output needs a value"),
        (["--outptu", "x"], "unknown option --outptu; --help lists them"),
        (["third"], "which engine, and which images? fastervit-runner ENGINE IMAGES [...]; --help says more"),
    ],
)
def test_arguments(run: Runner, arguments: list[str], line: str) -> None:
    ran = run(engine(), pictures(1), *arguments)
    assert (ran.code, ran.error) == (2, line)


RUNS = "this runs engines that yield logits, masks H x W, or boxes Q x 4 with scores and labels, Q of each"


def tensors(images: str = "", logits: str = "", more: str = "") -> dict[str, str]:
    images, logits = images or f"{FLOAT}:{LINEAR}:-1,3,4,4", logits or f"{FLOAT}:{LINEAR}:-1,6"
    return {"tensors": f"images:in:{images} logits:out:{logits} {more}"}


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (tensors(f"{HALF}:{LINEAR}:-1,3,4,4"), "engine wants images in another type or layout than linear float32"),
        (tensors(logits=f"{HALF}:{LINEAR}:-1,6"), "engine wants logits in another type or layout than"),
        (tensors(f"{FLOAT}:{CHW4}:-1,3,4,4"), "engine wants images in another type or layout than linear float32"),
        (tensors(more="mask:in:0:0:1"), "engine has several inputs (images, mask); this runs engines that take "),
        (tensors(more="features:out:0:0:-1,6"), f"engine yields logits 6, features 6 for an image; {RUNS}"),
        ({"tensors": "logits:out:0:0:-1,6"}, "engine has no input"),
        ({"tensors": "images:in:0:0:-1,3,4,4"}, "engine has no output"),
        (tensors(f"{FLOAT}:{LINEAR}:-1,48"), "engine takes no images: its input images has 2 dimensions"),
        (tensors(logits=f"{FLOAT}:{LINEAR}:-1,6,2"), f"engine yields logits 6x2 for an image; {RUNS}"),
        (tensors(logits=f"{FLOAT}:{LINEAR}:-1,-1"), "engine yields logits 4x-1 for 4 images, not one part for each"),
        (tensors(logits=f"{FLOAT}:{LINEAR}:6"), "engine yields logits 6 for 4 images, not one part for each"),
        ({"least0": "0,3,4,4"}, "engine gives no batch sizes for profile 0"),
        ({"most0": ""}, "engine gives no batch sizes for profile 0"),
        ({"most0": f"{2**60},3,4,4"}, f"engine has the shape {2**60}x3x4x4, which is more than any memory"),
        ({"fail": "context"}, "TensorRT cannot prepare engine: no memory for a context"),
        ({"fail": "profile"}, "engine cannot be run: profile in use"),
        ({"fail": "address"}, "engine cannot be run: bad address"),
        ({"fails_at": "2"}, "engine cannot be run: kernel gone"),
        ({"least0": "1,3,5,5", "most0": "4,3,5,5"}, "engine cannot be run: shape outside of the profile second line"),
    ],
)  # fmt: skip
def test_engines(run: Runner, tmp_path: Path, lines: dict[str, str], line: str) -> None:
    ran = run(engine(**lines), pictures(6), "--output", "logits.npy")
    assert ran.code == 2
    assert ran.error.startswith(line)
    assert not list(tmp_path.glob("logits*"))


def test_a_file_that_is_no_engine(run: Runner) -> None:
    assert run("ONNX", pictures(1)).error == "TensorRT cannot load engine: magic tag does not match"
    assert run("", pictures(1)).error == "cannot read engine: it is empty"


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((1, 3, 4, 5), "engine takes images of 4 along W, these have 5"),
        ((1, 1, 4, 4), "engine takes images of 3 along C, these have 1"),
        ((48,), "images.npy is 48, not N x C x H x W"),
        ((), "images.npy is empty: its shape is no dimensions"),
        ((0, 3, 4, 4), "images.npy is empty: its shape is 0x3x4x4"),
    ],
)
def test_images_of_another_shape(run: Runner, shape: tuple[int, ...], line: str) -> None:
    assert run(engine(), np.zeros(shape, np.float32)).error == line


def test_images_beyond_a_dynamic_size(run: Runner) -> None:
    ran = run(engine(shape=(-1, 3, -1, -1)), np.zeros((1, 3, 4, 9), np.float32))
    assert ran.error == "engine takes images of 2 to 8 along W, these have 9"


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("NO_GPU", "1", "no GPU can be used: CUDA_VISIBLE_DEVICES hides it, or there is none"),
        ("CUDA", "cudaGetDeviceCount", "no GPU can be used: CUDA driver version is insufficient; nvidia-smi (Jetson: "),
        ("NO_RUNTIME", "1", "TensorRT does not start: CUDA initialization failure with error: 35"),
        ("CUDA", "cudaMalloc", "taking GPU memory failed: out of memory"),
        ("CUDA", "cudaMallocHost", "taking page-locked memory failed: out of memory"),
        ("CUDA", "cudaStreamCreateWithFlags", "making a stream failed: out of memory"),
        ("CUDA", "cudaMemcpyAsync", "copying images to the GPU failed: out of memory"),
        ("CUDA", "cudaStreamSynchronize", "the run on the GPU failed: out of memory"),
        ("CUDA", "cudaEventCreate", "making an event failed: out of memory"),
        ("CUDA", "cudaEventRecord", "recording an event failed: out of memory"),
    ],
)  # fmt: skip
def test_gpus(run: Runner, variable: str, value: str, line: str) -> None:
    ran = run(engine(), pictures(1), "--repeat", 1, **{f"FASTERVIT_STANDIN_{variable}": value})
    assert ran.code == 2
    assert ran.error.startswith(line)


# Files of tensors.


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


HUGE = npy(pictures(1)).replace(b"(1, 3, 4, 4), }" + b" " * 15, b"(3037000500, 3037000500, 4), }")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_versions_of_npy(run: Runner, version: tuple[int, int]) -> None:
    images = pictures(3)
    assert run(engine(), npy(images, version)).out == ranked(logits_of(images), 5)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (npy(pictures(1), (3, 0)), "is .npy of version 3.0; this reads 1 and 2, which numpy.save writes"),
        (npy(np.asfortranarray(pictures(2))), "is in Fortran order; save numpy.ascontiguousarray of it"),
        (npy(pictures(1).astype(">f4")), "holds >f4, not float32 ('<f4')"),
        (npy(pictures(1).astype(np.float64)), "holds <f8, not float32 ('<f4')"),
        (npy(np.zeros((1, 3, 4, 4), [("x", "<f4")])), "holds a structure, not float32 ('<f4')"),
        (npy(pictures(1))[:-1], "has 191 bytes of data, its shape 1x3x4x4 asks for 192"),
        (npy(pictures(1)) + b"x", "has 193 bytes of data, its shape 1x3x4x4 asks for 192"),
        (npy(pictures(1))[:100], "is damaged: it ends within its header"),
        (npy(pictures(1))[:7], "is damaged: it ends within its header"),
        (npy(pictures(1)).replace(b"(1, 3, 4, 4)", b"(-1, 3, 4, 4"), "is damaged: its header is none"),
        (HUGE, "has the shape 3037000500x3037000500x4, which is more than any memory"),
        (npy(pictures(1)).replace(b"}", b"]"), "is damaged: its header is none that numpy.save writes"),
        (npy(pictures(1)).replace(b"'shape'", b"'descr'"), "is damaged: its header is none that numpy.save writes"),
        (npy(pictures(1)).replace(b"False", b"Maybe"), "is damaged: its header is none that numpy.save writes"),
    ],
)  # fmt: skip
def test_other_files(run: Runner, content: bytes, line: str) -> None:
    ran = run(engine(), content)
    assert (ran.code, ran.calls) == (2, [])
    assert ran.error.startswith(f"images.npy {line}")


def test_no_file_of_images(run: Runner) -> None:
    assert run(engine(), None).error == "there is no file images.npy"


def test_damaged_files_are_refused_or_read_as_numpy_reads_them(stand_in: StandIn, tmp_path: Path) -> None:
    chance = random.Random(0)
    whole = [npy(pictures(2)), npy(np.arange(7, dtype=np.float32), (2, 0)), npy(np.zeros((2, 1), np.float32))]
    files = []
    for number in range(1500):
        content = bytearray(chance.choice(whole))
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            position = chance.randrange(min(len(content), 100))  # mostly the header
            change = chance.randrange(4)
            if change == 0:
                content[position] = chance.randrange(256)
            elif change == 1:
                content[position] = chance.choice(b"0123456789(),:'{} \n")
            elif change == 2:
                content[position:position] = chance.choice([b"9" * 17, b" ", b",", b"0", b"(", b"'"])
            else:
                del content[position : position + chance.choice([1, 2, 10, 1000])]
        files.append(tmp_path / f"{number}.npy")
        files[-1].write_bytes(content)
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in files))
    command = [stand_in.reader, tmp_path / "list"]
    done = subprocess.run(command, env={**os.environ, **SANITIZERS}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()
    assert len(answers) == len(files)
    read = 0
    for path, answer in zip(files, answers, strict=True):
        if answer.startswith("refused: "):
            continue
        expected = np.load(path)
        assert answer.split()[0] == "x".join(map(str, expected.shape)), path.read_bytes()
        assert float(answer.split()[1]) == pytest.approx(expected.astype(np.float64).sum(), nan_ok=True)
        read += 1
    assert 200 < read < 1200  # both happen
