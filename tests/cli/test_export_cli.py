"""``fastervit-export`` as a user meets it: what it writes, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from fastervit_trt.artifacts import Manifest
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from fastervit_trt.models import create_model
from fastervit_trt.models.config import Variant
from fastervit_trt.models.variants import VARIANTS
from tests.conftest import QUICK_BENCH, Finished

Command = Callable[..., Finished]
HAS_RTX = rtx_unavailable_reason() is None
QUICK = ("--model", "faster_vit_digits_s", "--precision", "fp32", "--compute-capability", "none")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_folder_says_what_it_is_and_holds_what_it_says(exports: Path, precision: str) -> None:
    folder = exports / precision
    manifest = Manifest.read(folder)
    manifest.check_files(folder)
    assert {p.name for p in folder.iterdir()} == {*manifest.files, "manifest.json"}
    assert (manifest.model, manifest.precision, manifest.batch) == ("faster_vit_digits_s", precision, "1:4:8")
    assert manifest.resolution == (224, 224)
    assert (manifest.weights["kind"], manifest.weights["tolerated"]) == ("shipped", [])
    assert manifest.spec == {"name": "faster_vit_digits_s"}
    assert [(o["name"], o["shape"]) for o in manifest.outputs] == [("logits", ["batch", 10])]
    assert len(manifest.weights["sha256"]) == 64
    assert manifest.verification["share_of_budget"] <= 1
    assert manifest.preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert {"torch", "onnx", "onnxruntime", "fastervit-trt"} <= set(manifest.versions)
    if HAS_RTX:
        (engine,) = manifest.engines
        assert engine["file"] == "model.rtx-sm89.engine"
        assert (engine["compute_capability"], manifest.engines_skipped) == ("8.9", None)


def test_a_user_checkpoint_with_its_own_classes(command: Command, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fine_tuned.pth.tar"
    torch.save({"state_dict": create_model("faster_vit_digits_s", num_classes=3).state_dict()}, checkpoint)
    arguments = (*QUICK, "--checkpoint", checkpoint, "--batch", 2, "--resolution", "224", "--output", tmp_path / "out")
    refused = command("fastervit-export", *arguments)
    assert refused.code == 2
    assert "has 3 classes, the model 10; pass --num-classes 3" in refused.error
    done = command("fastervit-export", *arguments, "--num-classes", 3)
    assert done.code == 0, done.err
    assert "worst point" in done.out
    assert "License-NC" in done.out
    output = onnx.load(tmp_path / "out" / "model.onnx").graph.output[0]
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == [2, 3]


def test_backbone_at_another_resolution_and_its_checkpoint_saved(command: Command, tmp_path: Path) -> None:
    saved = tmp_path / "saved.safetensors"
    options = ("--model", "faster_vit_digits_m", "--pretrained", "--precision", "fp16", "--resolution", "160x250")
    backbone = ("--features-only", "--out-indices", "1,3", "--save-checkpoint", saved)
    done = command("fastervit-export", *options, *backbone, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "tolerated: 8 tensors of carriers have no use at 160x250" in done.out
    manifest = Manifest.read(tmp_path / "out")
    shapes = {output["name"]: output["shape"] for output in manifest.outputs}
    assert shapes == {"stage1": ["batch", 16, 20, 32], "stage3": ["batch", 64, 5, 8]}
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [output.name for output in graph.output] == ["stage1", "stage3"]
    # the saved weights give the same graph
    again = ("--model", "faster_vit_digits_m", "--checkpoint", saved, *options[3:], *backbone[:3])
    assert command("fastervit-export", *again, "--output", tmp_path / "again").code == 0
    graphs = [Manifest.read(tmp_path / name).files["model.onnx"]["sha256"] for name in ("out", "again")]
    assert graphs[0] == graphs[1]
    speed = command("fastervit-bench", tmp_path / "out", *QUICK_BENCH, "--output", tmp_path / "speed")
    assert speed.code == 0, speed.err
    refused = command("fastervit-bench", tmp_path / "out", "--data", "digits", "--output", tmp_path / "accuracy")
    assert "is a backbone without classes" in refused.error


def test_attention_halves_on_request(command: Command, exports: Path, tmp_path: Path) -> None:
    """Built by TensorRT-RTX, too, where that is installed."""
    options = ("--model", "faster_vit_digits_s", "--pretrained", "--precision", "fp16", "--batch", "1:4:8")
    done = command("fastervit-export", *options, "--fuse", "attention-half", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "fused: 2 attention halves of windows, 1 carrier attentions" in done.out
    assert "2 x fuse_attention_halves" in done.out
    assert "no plugin" not in done.out
    halves, core = (Manifest.read(folder) for folder in (tmp_path / "out", exports / "fp16"))
    assert (len(halves.engines), halves.engines_skipped) == (len(core.engines), core.engines_skipped)
    assert halves.graph["deploy"]["changes"] == {**core.graph["deploy"]["changes"], "fuse_attention_halves": 2}
    operators = dict(core.graph["fusion"]["operators"])
    operators["FusedWindowAttention"] = operators.pop("WindowAttention")
    operators["LayerNormalization"] -= 2
    assert halves.graph["fusion"]["operators"] == operators
    assert halves.verification["share_of_budget"] <= 1


def test_what_no_kernel_serves_stays_in_the_graph_and_is_said(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = replace(VARIANTS["faster_vit_digits_s"].config, dim=12, num_heads=(1, 1, 4, 8))
    monkeypatch.setitem(VARIANTS, "faster_vit_odd", Variant(odd))
    options = ("--model", "faster_vit_odd", "--random-init", "--batch", "1", "--compute-capability", "none")
    done = command("fastervit-export", *options, "--output", tmp_path / "odd")
    assert done.code == 0, done.err
    reason = "head dim 12 in fp16 (--pad-head-dims 8 makes it 16); served are multiples of 8 up to 80"
    windows, carriers = ["stages.2.blocks.0.attn", "stages.3.blocks.0.attn"], ["stages.2.blocks.0.hat_attn"]
    line = "  no plugin for {}, left to the compiler; {}: " + reason + "\n"
    assert line.format(f"{windows[0]} and 1 more", "WindowAttention") in done.out
    assert line.format(carriers[0], "CarrierAttention") in done.out
    recorded = Manifest.read(tmp_path / "odd").graph["fusion"]["unserved"]
    assert recorded == {f"WindowAttention: {reason}": windows, f"CarrierAttention: {reason}": carriers}
    done = command("fastervit-export", *options, "--pad-head-dims", 8, "--output", tmp_path / "padded")
    assert done.code == 0, done.err
    assert "no plugin" not in done.out
    manifest = Manifest.read(tmp_path / "padded")
    assert manifest.graph["fusion"]["unserved"] == {}
    assert manifest.graph["deploy"]["changes"]["pad_head_dims"] == 3


@pytest.mark.skipif(not HAS_RTX, reason="builds engines")
def test_one_engine_per_capability(command: Command, tmp_path: Path) -> None:
    done = command(
        "fastervit-export",
        *QUICK[:4],
        "--pretrained",
        "--compute-capability",
        "8.6,sm120,8.6",
        "--output",
        tmp_path / "o",
    )
    assert done.code == 0, done.err
    assert [e["compute_capability"] for e in Manifest.read(tmp_path / "o").engines] == ["8.6", "12.0"]


def test_without_the_builder_export_says_so_and_goes_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastervit_trt.engines.api.installed_version", lambda runtime: None)
    done = command("fastervit-export", *QUICK[:4], "--pretrained", "--output", tmp_path / "out")
    assert done.code == 0
    assert "no engine: TensorRT-RTX is not installed" in done.out
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.engines == []
    assert str(manifest.engines_skipped).endswith("pip install 'fastervit-trt[cpu]'")


def test_overwrite_replaces_exports_and_nothing_else(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("fastervit-export", *QUICK, "--pretrained", "--output", out)
    assert command(*arguments).code == 0
    before = json.loads((out / "manifest.json").read_text())
    assert "already exists; choose another --output or pass --overwrite" in command(*arguments).error
    (out / "stale").touch()
    assert command(*arguments, "--overwrite", "--batch", "2").code == 0
    assert not (out / "stale").exists()
    assert json.loads((out / "manifest.json").read_text())["batch"] != before["batch"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    failed = command(*arguments[:-1], precious, "--overwrite")
    assert "holds no manifest.json, so it is not replaced" in failed.error
    assert (precious / "thesis.tex").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "precious"]


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown model": (("--model", "fastervit0", "--random-init"), "unknown model 'fastervit0'; closest names: "),
    "no weights": ((), "choose exactly one of --checkpoint FILE, --pretrained and --random-init"),
    "two sources": (("--random-init", "--pretrained"), "choose exactly one of"),
    "missing checkpoint": (("--checkpoint", "nowhere.pth"), "checkpoint 'nowhere.pth' does not exist"),
    "corrupt checkpoint": (("--checkpoint", "text.pth"), "checkpoint 'text.pth' is corrupt or no checkpoint"),
    "other variant": (
        ("--checkpoint", "m.pth"),
        "it looks like faster_vit_digits_m",
    ),
    "hostile pickle": (("--checkpoint", "evil.pth"), "is refused: its pickle asks to load"),
    "resolution too small": (("--random-init", "--resolution", "16"), "resolution 16x16 is impossible"),
    "resolution no number": (("--random-init", "--resolution", "224x"), "is neither H nor HxW"),
    "batch": (("--random-init", "--batch", "8:4"), "batch '8:4' is neither N nor MIN:OPT:MAX"),
    "precision": (("--random-init", "--precision", "fp4"), "unknown precision 'fp4'; choose one of fp32, fp16, bf16"),
    "fuse": (("--random-init", "--fuse", "block"), "'block' is nothing to fuse in a window; choose one of window-att"),
    "padding": (("--random-init", "--pad-head-dims", "0"), "Invalid value for '--pad-head-dims'"),
    "capability": (("--random-init", "--compute-capability", "9.0"), "TensorRT-RTX has no compute capability '9.0'"),
    "bf16 on Turing": (("--random-init", "--precision", "bf16", "--compute-capability", "7.5"), "has no bf16"),
    "classes": (("--random-init", "--num-classes", "0"), "num_classes must be at least 1"),
    "output is a file": (("--random-init", "--output", "text.pth"), "is an existing file; choose another --output"),
    "output below a file": (("--random-init", "--output", "text.pth/out"), "cannot write output"),
    "windows too large": (("--random-init", "--window-size", "7,7,28,7"), "window 28 of stage 2 exceeds its 14x14 map"),
    "windows no numbers": (("--random-init", "--window-size", "7x7"), "'7x7' is no list of whole numbers"),
    "carriers too large": (("--random-init", "--ct-size", "8"), "a carrier grid of side 8 does not fit a window"),
    "carrier order": (("--random-init", "--carrier-order", "new"), "must be one of reference, corrected"),
    "stages": (("--random-init", "--features-only", "--out-indices", "0,4"), "must be increasing stage numbers"),
    "saved file exists": (("--random-init", "--save-checkpoint", "m.pth"), "m.pth' already exists"),
    "unknown option": (("--presicion", "fp16"), "No such option: --presicion"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("not a checkpoint")
    torch.save(create_model("faster_vit_digits_m").state_dict(), "m.pth")
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": print}, "evil.pth")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = BAD[kind]
    defaults = {"--model": "faster_vit_digits_s", "--output": "out"}
    filled = [v for name, value in defaults.items() if name not in arguments for v in (name, value)]
    finished = command("fastervit-export", *filled, *arguments)
    assert finished.code == 2
    assert message in finished.error
    assert sorted(tmp_path.rglob("*")) == before


def test_offline_the_official_file_is_explained(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fastervit_trt.models.download._BACKOFF", 0.01)
    out = tmp_path / "out"
    finished = command("fastervit-export", "--model", "faster_vit_1_224", "--pretrained", "--output", out)
    assert finished.code == 2
    url = "http://127.0.0.1:9/nvidia/FasterViT/resolve/main/fastervit_1_224_1k.pth.tar"
    assert f"cannot download {url}" in finished.error
    assert "--checkpoint FILE" in finished.error
    assert not out.exists()


def test_unwritable_output(command: Command) -> None:
    finished = command("fastervit-export", *QUICK, "--random-init", "--output", "/proc/fastervit/out")
    assert finished.code == 2
    assert "cannot write output '/proc/fastervit/out'" in finished.error


@pytest.mark.skipif(shutil.which("unshare") is None or os.name != "posix", reason="needs a mount namespace of its own")
@pytest.mark.parametrize("size_kib", [300, 1500], ids=["while writing the graph", "while writing the engine"])
def test_disk_full(tmp_path: Path, size_kib: int) -> None:
    """On a real, tiny file system: the graph has 0.5 MB, the engine 3 MB."""
    if not HAS_RTX and size_kib > 1000:
        pytest.skip("no engine to write")
    program = f"{sys.executable} -m fastervit_trt.cli.export"
    options = "--model faster_vit_digits_s --pretrained --precision fp16"
    script = (
        f"mount -t tmpfs -o size={size_kib}k none {tmp_path} && "
        f"{program} {options} --output {tmp_path}/out; code=$?; ls -A {tmp_path}; exit $code"
    )
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr or "unshare failed" in done.stderr:
        pytest.skip("no permission for a mount namespace")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "o space left on" in done.stderr.splitlines()[-1]
    assert done.stdout.strip() == ""  # nothing is left on the file system


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    program = [sys.executable, "-m", "fastervit_trt.cli.export", *QUICK, "--pretrained", "--output", tmp_path / "out"]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; nothing half-written was kept" in err
    assert list(tmp_path.iterdir()) == []
