from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastervit_trt.benchmarks.studies import cpu_int8
from fastervit_trt.benchmarks.studies.cpu_int8 import LEAST_DB, PATHS, Calibrated
from fastervit_trt.benchmarks.studies.cpu_runners import Runner, Workload, make_workload

MODEL, BATCH = "faster_vit_digits_s", 3


@pytest.fixture(scope="module", autouse=True)
def _quick(module_on_one_thread: None) -> None:
    """Tensors are small here."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The smallest model, exported once for all tests here."""
    return make_workload(MODEL, BATCH, 1, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def results(work: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote for it."""
    folder = tmp_path_factory.mktemp("cpu") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_int8, "make_workload", lambda *_: work)
        patch.setattr(cpu_int8, "CALIBRATION_IMAGES", 8)
        patch.setattr(cpu_int8, "_MIN_ROUNDS", 2)
        with pytest.raises(SystemExit) as stop:
            cpu_int8.main(
                f"--model {MODEL} --batch {BATCH} --seconds 0.05 --threads 1 --profile --output {folder}".split()
            )
    assert stop.value.code == 0
    return folder


def test_every_path_has_a_row_and_those_in_int8_are_near_float32(results: Path) -> None:
    rows = {row["path"]: row for row in json.loads((results / "rows.json").read_text())}
    assert list(rows) == ["export", "attention", "openvino", "qdq", "int8"]
    for name, row in rows.items():
        assert row["status"] in ({"ok", "skipped"} if name == "openvino" else {"ok"}), row["note"]
        if row["status"] == "ok":
            assert row["rounds"] == 2
            assert row["samples"] >= 6
            assert row["onnx_bytes"] > 0
            low, median, high = (row[f"throughput_over_fp32{end}"] for end in ("_p20", "", "_p80"))
            assert 0 < low <= median <= high
            assert (row["throughput_over_openvino"] is None) == (rows["openvino"]["status"] != "ok")
            assert row["sqnr_db"] > (LEAST_DB if name in ("qdq", "int8") else 100)
            assert math.isfinite(row["sqnr_db"])
    best = rows[rows["int8"]["best_fp32"]]
    assert best["latency_ms"] == min(rows[name]["latency_ms"] for name in ("export", "attention"))
    assert best["throughput_over_fp32"] == best["throughput_over_fp32_p20"] == 1
    assert rows["int8"]["sqnr_db"] != rows["qdq"]["sqnr_db"]  # two graphs
    assert rows["qdq"]["onnx_bytes"] < rows["export"]["onnx_bytes"]
    assert (results / "cpu-int8.png").read_bytes().startswith(b"\x89PNG")


def test_profile_says_what_runs_in_which_type_and_why_not_in_int8(results: Path) -> None:
    profile = list(csv.DictReader((results / "profile.csv").open()))
    for grouping in ("type", "operator", "block"):
        shares = [float(row["share_percent"]) for row in profile if row["grouping"] == grouping]
        assert sum(shares) == pytest.approx(100, abs=0.5)
    types = {(row["name"], row["type"]) for row in profile if row["grouping"] == "operator"}
    products = {("MatMulIntegerToFloat", "int8"), ("QLinearConv", "int8")}
    between = {("QuantizeLinear", "float32 to int8"), ("DequantizeLinear", "int8 to float32")}
    assert products | between | {("LayerNormalization", "float32"), ("Attention", "float32")} <= types
    assert {row["type"] for row in profile} == {"int8", "float32", "float32 to int8", "int8 to float32"}
    for row in profile:
        assert bool(row["why"]) == (row["type"] != "int8" and row["grouping"] != "type"), row
    # No product stays in float32 for want of a reason.
    why = {row["why"] for row in profile if row["name"] in ("Conv", "Gemm", "MatMul")}
    assert {reason.split(":")[0] for reason in why} == {
        "stem or head",
        "grouped convolution",
        "within a fused operator",
    }


def test_a_quantised_path_that_yields_garbage_is_refused_and_not_timed(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def other(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Workload, Calibrated], Runner]:
        def prepare(work: Workload, calibrated: Calibrated) -> Runner:
            right = PATHS["export"](work, calibrated)

            def run() -> np.ndarray:
                calls[name] += 1
                return change(right())

            return run

        return prepare

    monkeypatch.setattr(cpu_int8, "make_workload", lambda *_: work)
    monkeypatch.setattr(cpu_int8, "_calibrate", lambda *_: None)
    monkeypatch.setattr(cpu_int8, "_MIN_ROUNDS", 1)
    near = other("near", lambda y: 1.1 * y)  # enough for a glance, not for 8 bits
    paths = {"near": near, "nan": other("nan", lambda y: np.full_like(y, np.nan))}
    paths |= {"infinite": other("infinite", lambda y: y + np.inf), "shape": other("shape", lambda y: y[:1])}
    notes = {"near": "20.0 dB", "nan": "not finite", "infinite": "not finite", "shape": "it yields"}
    for qdq, int8 in (("near", "nan"), ("infinite", "shape")):
        monkeypatch.setattr(cpu_int8, "PATHS", {"export": PATHS["export"], "qdq": paths[qdq], "int8": paths[int8]})
        measured = cpu_int8.measure_model(MODEL, BATCH, 0.01, threads=1, profile=True)
        rows = {row.path: row for row in measured.rows}
        assert {name: row.status for name, row in rows.items()} == {"export": "ok", "qdq": "failed", "int8": "failed"}
        for name, row in ((qdq, rows["qdq"]), (int8, rows["int8"])):
            assert notes[name] in row.note
            assert row.latency_ms is row.throughput_over_fp32 is None
        assert not measured.profile
        json.dumps([row.sqnr_db for row in measured.rows], allow_nan=False)
    assert calls == dict.fromkeys(paths, 1)  # compared once, never timed


def test_errors_are_one_line_and_leave_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cpu_int8.main(["--model", "faster_vit_9", "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert re.match(r"error: unknown model 'faster_vit_9'.*\n$", capfd.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_the_instructions_are_those_the_cpu_reports(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: X\nflags\t\t: fpu amx_int8 avx2 avx512_vnni avx_vnni_int8\n")
    assert cpu_int8._int8_instructions(info) == "avx512_vnni amx_int8"
    info.write_text("flags\t\t: fpu\n")
    assert cpu_int8._int8_instructions(info) == "none"
    assert cpu_int8._int8_instructions(tmp_path / "none") == "unknown"
