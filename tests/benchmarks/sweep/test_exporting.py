"""Exports and engines that a sweep makes first, by the real commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.sweep import exporting
from fastervit_trt.benchmarks.sweep.exporting import add_engines, made_export, wanted_engines
from fastervit_trt.benchmarks.sweep.plan import WantedExport
from fastervit_trt.engines.machine import Machine
from fastervit_trt.errors import FasterViTError

ARGUMENTS = "--model faster_vit_digits_s --precision fp32 --pretrained --runtime none --batch 2".split()


def test_an_export_is_made_once_given_its_engines_and_says_why_one_is_missing(exports: Path, tmp_path: Path) -> None:
    wanted = WantedExport("faster_vit_digits_s", "fp32", tuple(ARGUMENTS))
    folder, log = tmp_path / "exports" / wanted.name, tmp_path / "log.txt"
    shutil.copytree(exports / "fp32", folder)  # as if made by an earlier attempt
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(ARGUMENTS))
    replace(Manifest.read(folder), engines=[]).write(folder)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert made_export(wanted, folder, log).manifest.batch == "1:4:8"
    assert (folder / "manifest.json").stat().st_mtime_ns == before

    rtx = ("tensorrt-rtx", ("--runtime", "rtx", "--compute-capability", "8.6"))
    nowhere = ("tensorrt", ("--runtime", "tensorrt"))
    failed = add_engines(replace(wanted, engines=(nowhere, rtx)), folder, log)
    assert list(failed) == ["tensorrt"]
    assert failed["tensorrt"].startswith("no engine: TensorRT")
    (engine,) = Manifest.read(folder).engines
    assert (engine["runtime"], engine["compute_capability"]) == ("tensorrt-rtx", "8.6")
    again = (folder / "manifest.json").stat().st_mtime_ns
    assert add_engines(replace(wanted, engines=(rtx,)), folder, log) == {}
    assert (folder / "manifest.json").stat().st_mtime_ns == again, "what is there is not built again"

    other = replace(wanted, arguments=("--model", "faster_vit_9"))
    with pytest.raises(FasterViTError, match="unknown model 'faster_vit_9'"):
        made_export(other, folder, log)
    assert Manifest.read(folder).batch == "1:4:8", "a failed export leaves the earlier one"


def test_engines_are_wanted_for_the_gpu_at_hand_and_none_without(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("ort-cpu", "tensorrt-rtx", "tensorrt")
    monkeypatch.setattr(exporting, "why_no_gpu", lambda who: f"{who} needs a GPU")
    assert wanted_engines(both, 0) == ()
    monkeypatch.setattr(exporting, "why_no_gpu", lambda who: None)
    monkeypatch.setattr(Machine, "detect", lambda runtime, device: Machine(runtime, None, capability=f"{8 + device}.0"))
    rtx = ("tensorrt-rtx", ("--runtime", "rtx", "--compute-capability", "9.0"))
    trt = ("tensorrt", ("--runtime", "tensorrt"))
    assert wanted_engines(both, 1) == (trt, rtx)
    assert wanted_engines(("ort-cpu", "torch"), 1) == ()
    monkeypatch.setattr(exporting, "unavailable_reason", lambda runtime: "missing" if runtime == "tensorrt" else None)
    assert wanted_engines(("auto",), 1) == (rtx,)
    monkeypatch.setattr(exporting, "unavailable_reason", lambda runtime: None)
    assert wanted_engines(("auto",), 1) == (trt,)
