"""``fastervit-export`` in 8 bits as a user meets it: calibration, accuracy as the judge, mixtures, what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from fastervit_trt.artifacts import Manifest
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.export.precision import Int8
from fastervit_trt.export.quantisation import sensitivity
from fastervit_trt.export.quantisation.ranges import Ranges
from fastervit_trt.models import create_model
from fastervit_trt.models.datasets import open_dataset
from fastervit_trt.models.factory import ModelSpec, get_variant
from fastervit_trt.models.source import build_model, pretrained_source
from tests.conftest import QUICK_BENCH, Finished

Command = Callable[..., Finished]
NAME = "faster_vit_digits_s"
MODEL = ("--model", NAME, "--pretrained", "--batch", "1:4:8", "--compute-capability", "none")
DATA = ("--calibration-data", "digits", "--calibration-images", "64")
JUDGE = ("--validation-data", "digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranges of 64 digits are kept once the first test has found them."""
    return tmp_path_factory.mktemp("calibration") / "ranges.json"


@pytest.fixture
def ranges(cache: Path, command: Command, tmp_path: Path) -> Path:
    if not cache.exists():
        options = ("--precision", "int8", *DATA, "--calibration-cache", cache)
        done = command("fastervit-export", *MODEL, *options, "--output", tmp_path / "first")
        assert done.code == 0, done.err
    return cache


def accuracy_of(folder: Path) -> float:
    """Top-1 of the written graph on the held-out digits, straight from ONNX Runtime."""
    session, right = OnnxCpuSession(folder / "model.onnx"), 0
    data = open_dataset("digits")
    for images, labels in data.batches(8, get_variant(NAME).preprocessing, (224, 224)):
        right += int((session(images)[0].argmax(1) == labels).sum())
    return right / len(data)


def test_int8_is_calibrated_judged_and_written_with_its_ranges(command: Command, tmp_path: Path, ranges: Path) -> None:
    output = tmp_path / "int8"
    options = ("--precision", "int8", *DATA, "--calibration-cache", ranges, *JUDGE, "--max-accuracy-drop", 0.5)
    done = command("fastervit-export", *MODEL, *options, "--output", output)
    assert done.code == 0, done.err
    manifest = Manifest.read(output)
    assert {path.name for path in output.iterdir()} == {*manifest.files, "manifest.json"}
    golden = {"golden-images.npy", "golden-logits.npy"}
    assert set(manifest.files) == {"model.onnx", "ranges.json", *golden}
    assert Ranges.read(output / "ranges.json") == Ranges.read(ranges)
    assert manifest.accuracy is not None
    assert manifest.accuracy["artifact"]["top1"] == accuracy_of(output)
    assert manifest.accuracy["drop"]["low"] < manifest.accuracy["drop"]["points"] <= 0.5
    assert manifest.accuracy["artifact"]["images"] == 599
    drop = manifest.accuracy["reference"] - manifest.accuracy["artifact"]["top1"]
    assert manifest.accuracy["drop"]["points"] == pytest.approx(100 * drop)
    quantised = manifest.graph["quantisation"]
    assert (quantised["type"], quantised["base"], quantised["calibrator"]) == ("int8", "fp16", "percentile")
    assert quantised["calibration"]["images"] == 64
    assert f"int8: {len(quantised['blocks'])} layers, ranges by percentile from 64 images" in done.out
    assert f"top-1 {100 * manifest.accuracy['artifact']['top1']:.2f} %" in done.out
    weights = [t for t in onnx.load(output / "model.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len([t for t in weights if len(t.dims) > 1]) == len(quantised["blocks"])
    judged = ("--data", "digits", "--batch", 8, *QUICK_BENCH)
    bench = command("fastervit-bench", output, *judged, "--output", tmp_path / "report")
    assert bench.code == 0, bench.err
    (row,) = json.loads((tmp_path / "report" / "rows.json").read_text())
    assert row["top1"] == manifest.accuracy["artifact"]["top1"]


def test_ranges_serve_again_without_the_images_and_give_the_same_graph(
    command: Command, tmp_path: Path, ranges: Path
) -> None:
    hashes = []
    for name, data in (("without", ()), ("with", DATA)):
        options = ("--precision", "int8", "--calibration-cache", ranges, *data)
        done = command("fastervit-export", *MODEL, *options, "--output", tmp_path / name)
        assert done.code == 0, done.err
        assert "calibrating on" not in done.err
        hashes.append(Manifest.read(tmp_path / name).files["model.onnx"]["sha256"])
    assert hashes[0] == hashes[1]


def test_what_a_person_edits_in_the_ranges_is_what_the_graph_uses(
    command: Command, tmp_path: Path, ranges: Path
) -> None:
    edited = tmp_path / "edited.json"
    content = json.loads(ranges.read_text())
    block = "stages.2.blocks.0.mlp.fc1"
    content["ranges"][block]["percentile"] *= 2
    edited.write_text(json.dumps(content))
    scales = []
    for name, cache in (("as found", ranges), ("edited", edited)):
        options = ("--precision", "int8", "--calibration-cache", cache, "--base-precision", "fp32")
        assert command("fastervit-export", *MODEL, *options, "--output", tmp_path / name).code == 0
        tensors = {t.name: t for t in onnx.load(tmp_path / name / "model.onnx").graph.initializer}
        (scale,) = [onnx.numpy_helper.to_array(t) for n, t in tensors.items() if n.startswith(block) and "input0" in n]
        scales.append(float(scale))
    assert scales[1] == pytest.approx(2 * scales[0], rel=1e-5)


def test_fp8_runs_on_a_cpu_and_is_judged_there(command: Command, tmp_path: Path, ranges: Path) -> None:
    options = ("--precision", "fp8", "--calibration-cache", ranges, *JUDGE, "--max-accuracy-drop", 1.0)
    done = command("fastervit-export", *MODEL, *options, "--output", tmp_path / "fp8")
    assert done.code == 0, done.err
    manifest = Manifest.read(tmp_path / "fp8")
    assert manifest.graph["quantisation"]["type"] == "fp8"
    assert manifest.accuracy is not None and manifest.accuracy["artifact"]["agreement"] > 0.97


def test_the_form_for_the_cpu(command: Command, tmp_path: Path, ranges: Path) -> None:
    options = ("--precision", "int8", "--target", "cpu", "--calibration-cache", ranges, *JUDGE)
    arguments = [*MODEL[:-2], *options, "--output", tmp_path / "cpu"]
    done = command("fastervit-export", *arguments, "--max-accuracy-drop", 0.5)
    assert done.code == 0, done.err
    assert "for ONNX Runtime's CPU provider alone" in done.out
    operators = {node.op_type for node in onnx.load(tmp_path / "cpu" / "model.onnx").graph.node}
    assert {"MatMulIntegerToFloat", "QLinearConv"} <= operators
    assert Manifest.read(tmp_path / "cpu").engines == []  # no other runtime reads it
    refused = command("fastervit-export", *MODEL, "--precision", "fp8", "--target", "cpu", *DATA)
    assert refused.error == "error: CPUs have no fp8; use --precision int8 with --target cpu"
    bundle = tmp_path / "cpu.tar.zst"
    packed = command("fastervit-deploy", "pack", tmp_path / "cpu", "--target", "cpu", "--output", bundle)
    assert packed.code == 0, packed.err
    installed = command("fastervit-deploy", "install", bundle, "--output", tmp_path / "there", "--seconds", 0.1)
    assert installed.code == 0, installed.err
    assert "precision: proven; " in installed.out  # no quantised block fell back to float32
    blocks = Manifest.read(tmp_path / "cpu").graph["quantisation"]["blocks"]
    found = re.search(r"(\d+) in int8", installed.out)
    assert found is not None and int(found[1]) >= len(blocks) > 10


# --- accuracy as the judge ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with one residual channel a thousand times larger than the others, as trained ViTs have them.

    The last block's attention adds 3000 to one channel. Its LayerNorm takes that out again, with the mean deviation of
    tokens for each one's own, and so does the BatchNorm after it, exactly.
    """
    shift = 3000.0
    model, _ = build_model(ModelSpec(NAME), pretrained_source(NAME))
    block, seen = model.levels[3].blocks[0], []
    hook = block.norm2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    images, _ = next(iter(open_dataset("digits").batches(64, get_variant(NAME).preprocessing, (224, 224))))
    with torch.no_grad():
        model(torch.from_numpy(images))
        hook.remove()
        channels = seen[0].shape[-1]
        deviation = seen[0].reshape(-1, channels).std(1, unbiased=False).mean()
        weight, bias = block.norm2.weight, block.norm2.bias
        channel = int(weight.abs().argmin())
        rest = bias[channel].clone()
        block.attn.proj.bias[channel] += shift
        model.norm.running_mean[channel] += shift
        bias += weight * (shift / channels) / deviation
        weight *= shift * (1 / channels - 1 / channels**2) ** 0.5 / deviation
        weight[channel], bias[channel] = 0.0, rest
    path = tmp_path_factory.mktemp("outliers") / "outliers.pth"
    torch.save(model.state_dict(), path)
    return path


def test_quantised_residual_sums_fall_to_chance_and_the_default_does_not(
    command: Command, tmp_path: Path, outliers: Path
) -> None:
    """The public trap of INT8 vision transformers; the gate catches it and leaves nothing behind."""
    options = ("--model", NAME, "--checkpoint", outliers, "--batch", 4, "--compute-capability", "none")
    judge = (*DATA, *JUDGE, "--max-accuracy-drop", 0.5, "--precision", "int8")
    done = command("fastervit-export", *options, *judge, "--output", tmp_path / "default")
    assert done.code == 0, done.err
    accuracy = Manifest.read(tmp_path / "default").accuracy
    assert accuracy is not None and accuracy["reference"] > 0.95
    forced = (*judge, "--quantise-residuals", "--output", tmp_path / "forced")
    refused = command("fastervit-export", *options, *forced)
    assert refused.code == 2
    assert "of top-1 on 599 images of digits, held-out third, more than the 0.5 allowed; nothing was" in refused.error
    assert float(refused.error.split("int8 loses +")[1].split()[0]) > 70
    assert not (tmp_path / "forced").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-accuracy-drop", 1), "accuracy needs labelled images to judge it: give --validation-data DIR"),
        ((*JUDGE, "--features-only"), "a backbone has no classes to judge"),
        ((*JUDGE, "--num-classes", 12, "--random-init"), "has 10 classes, the model 12; they must be the same"),
        (("--validation-data", "nowhere"), "dataset 'nowhere' is neither 'digits' nor a folder"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(
    command: Command, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    model = [part for part in MODEL if part != "--pretrained" or "--random-init" not in options]
    refused = command("fastervit-export", *model, *options, "--output", tmp_path / "out")
    assert refused.code == 2
    assert message in refused.error
    assert list(tmp_path.iterdir()) == []


# --- mixtures ----------------------------------------------------------------------------------------------------


def test_a_mixture_is_found_within_its_budget_and_goes_on_after_an_interruption(
    command: Command, tmp_path: Path, ranges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, record = tmp_path / "mixed", tmp_path / "mixed.search.jsonl"
    options = (*MODEL, "--precision", "mixed", "--calibration-cache", ranges, *JUDGE, "--output", output)
    stopped = simulations(monkeypatch, stop_after=4)
    assert command("fastervit-export", *options, "--accuracy-budget", 0.0).code == 130
    assert not output.exists()
    kept = [json.loads(line) for line in record.read_text().splitlines()[1:]]
    assert len(kept) == len(stopped) == 4

    resumed = simulations(monkeypatch)
    done = command("fastervit-export", *options, "--accuracy-budget", 0.0)
    assert done.code == 0, done.err
    assert not set(resumed) & set(stopped)  # what was measured is not measured again
    assert not record.exists()  # the search has led to an export
    manifest = Manifest.read(output)
    quantised = manifest.graph["quantisation"]
    assert manifest.precision == "mixed" and manifest.accuracy is not None
    assert manifest.accuracy["drop"]["points"] <= 0.0
    assert manifest.accuracy["artifact"]["top1"] == accuracy_of(output)
    rows = list(csv.DictReader((output / "sensitivity.csv").open()))
    chosen = {row["unit"] for row in rows if row["quantised"] == "True"}
    assert {block.rpartition(".")[0] for block in quantised["blocks"]} >= chosen - {u for u in chosen if "down" in u}
    assert sum(int(row["layers"]) for row in rows if row["unit"] in chosen) == len(quantised["blocks"])
    (candidate,) = [c for c in csv.DictReader((output / "assignments.csv").open()) if c["chosen"] == "True"]
    assert int(candidate["units"]) == len(chosen)


def simulations(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[frozenset[str] | None]:
    """The layers of every choice that is simulated from now on; Ctrl-C instead of one more than ``stop_after``."""
    seen: list[frozenset[str] | None] = []
    real = SIMULATED

    def counted(model: nn.Module, precision: Int8, ranges: Ranges) -> AbstractContextManager[None]:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(precision.only)
        return real(model, precision, ranges)

    monkeypatch.setattr(sensitivity, "simulated", counted)
    return seen


SIMULATED = sensitivity.simulated


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Path]:
    """A folder of three pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "8 bits need the ranges of activations: give --calibration-data DIR"),
        (("--calibration-data", "nowhere"), "calibration data 'nowhere' is neither 'digits' nor a folder"),
        (("--calibration-data", "."), "calibration folder '.' has no images (.bmp, "),
        (("--calibration-cache", "nowhere.json"), "'nowhere.json' does not exist; --calibration-data DIR makes it"),
        ((*DATA, "--calibrator", "median"), "unknown calibrator 'median'; choose one of max, percentile"),
        ((*DATA, "--base-precision", "bf16"), "8 bits go with fp16 or fp32, not with 'bf16'"),
        ((*DATA, "--precision", "fp8", "--compute-capability", "8.6"), "8.6 has no fp8"),
        ((*DATA, "--precision", "fp16", "--calibrator", "max"), "--calibrator and --quantise-… are for 8 bits"),
        ((*DATA, "--precision", "int4"), "unknown precision 'int4'; choose one of fp32, fp16, bf16, int8, fp8"),
        ((*DATA, "--precision", "mixed"), "--precision mixed and --accuracy-budget P belong together"),
        ((*DATA, *JUDGE, "--precision", "mixed", "--accuracy-budget", -1), "an accuracy budget is points to lose, 0"),
        ((*DATA, "--precision", "mixed", "--accuracy-budget", 1), "accuracy needs labelled images to judge it"),
        ((*DATA, "--target", "npu"), "target 'npu' is neither gpu nor cpu"),
    ],
)
def test_what_cannot_be_quantised_is_refused_at_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    precision = () if "--precision" in options else ("--precision", "int8")
    refused = command("fastervit-export", *MODEL, *precision, *options, "--output", tmp_path / "out")
    assert refused.code == 2
    assert message in refused.error
    assert list(tmp_path.iterdir()) == []


def test_few_images_are_warned_of_and_a_damaged_one_is_named(command: Command, tmp_path: Path, pictures: Path) -> None:
    options = (*MODEL, "--precision", "int8", "--calibration-data", pictures, "--output", tmp_path / "out")
    done = command("fastervit-export", *options)
    assert done.code == 0, done.err
    assert "only 3 calibration images; ranges become reliable from 64 up" in done.err
    (pictures / "1.png").write_bytes(b"no picture")
    refused = command("fastervit-export", *options, "--overwrite")
    assert refused.code == 2
    assert "1.png' cannot be read" in refused.error
    Manifest.read(tmp_path / "out").check_files(tmp_path / "out")  # what was there is there still


CHANGES: dict[str, tuple[tuple[object, ...], str]] = {
    "another model": (("--model", "faster_vit_digits_m", "--pretrained"), "it has not model "),
    "another resolution": (("--model", NAME, "--pretrained", "--resolution", 160), "it has not model "),
    "other weights": (("--model", NAME, "--random-init"), "it has not model "),
    "another deploy form": (("--model", NAME, "--pretrained", "--pad-head-dims", 16), "it has not deploy "),
    "other images": (("--model", NAME, "--pretrained", *DATA[:3], 65), "it has not data "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_of_another_calibration_is_refused(
    command: Command, tmp_path: Path, ranges: Path, change: str
) -> None:
    options, message = CHANGES[change]
    before = ranges.read_bytes()
    arguments = (*options, "--compute-capability", "none", "--precision", "int8", "--calibration-cache", ranges)
    refused = command("fastervit-export", *arguments, "--output", tmp_path / "out")
    assert refused.code == 2
    assert "is of another calibration: " in refused.error
    assert message in refused.error
    assert refused.error.endswith("delete it or name another file")
    assert not (tmp_path / "out").exists()
    assert ranges.read_bytes() == before


def test_ranges_of_other_preprocessing_are_refused(command: Command, tmp_path: Path, ranges: Path) -> None:
    content: dict[str, Any] = json.loads(ranges.read_text())
    content["key"]["preprocessing"] = content["key"]["preprocessing"].replace("0.5", "0.485")
    (tmp_path / "ranges.json").write_text(json.dumps(content))
    options = ("--precision", "int8", "--calibration-cache", tmp_path / "ranges.json")
    refused = command("fastervit-export", *MODEL, *options, "--output", tmp_path / "out")
    assert refused.code == 2
    assert "is of another calibration: it has not preprocessing " in refused.error


def test_activations_that_are_not_finite_are_named_by_block(command: Command, tmp_path: Path) -> None:
    state = create_model(NAME).state_dict()
    state["levels.2.blocks.0.mlp.fc1.weight"][3] = 3e38
    torch.save(state, tmp_path / "broken.pth")
    options = ("--model", NAME, "--checkpoint", tmp_path / "broken.pth", "--compute-capability", "none", *DATA)
    cache = tmp_path / "ranges.json"
    refused = command(
        "fastervit-export", *options, "--precision", "int8", "--calibration-cache", cache, "--output", tmp_path / "out"
    )
    assert refused.code == 2
    assert "activations at stages.2.blocks.0.mlp.fc2 are not finite, within images 0 to 15" in refused.error
    assert not cache.exists() and not (tmp_path / "out").exists()
