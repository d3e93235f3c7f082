from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from fastervit_trt.benchmarks.studies import cpu_paths, gemm_peak
from fastervit_trt.benchmarks.studies.cpu_rows import path_rows
from fastervit_trt.benchmarks.studies.cpu_runners import RUNNERS, MissingPackageError, Runner, Workload
from fastervit_trt.benchmarks.studies.gemm_sizes import GemmSize, gemm_sizes
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.deploy import bake_position_tables
from fastervit_trt.models.factory import create_model

MODEL, BATCH = "faster_vit_digits_s", 3


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote for the smallest model."""
    folder = tmp_path_factory.mktemp("cpu") / "paths"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm_peak, "PEAK", GemmSize("matmul", 256, 256, 256))
        patch.setattr(cpu_paths, "_MIN_ROUNDS", 2)
        with pytest.raises(SystemExit) as stop:
            cpu_paths.main(
                f"--model {MODEL} --batch {BATCH} --seconds 0.05 --threads 2 --profile --output {folder}".split()
            )
    assert stop.value.code == 0
    return folder


def test_every_path_has_a_row_and_those_that_ran_compute_the_same(results: Path) -> None:
    rows = {row["path"]: row for row in json.loads((results / "rows.json").read_text())}
    assert list(rows) == list(RUNNERS)
    allowed = {name: {"ok"} for name in RUNNERS} | {"openvino": {"ok", "skipped"}}
    if shutil.which("g++") is None:
        allowed["compile"] = {"failed"}  # inductor compiles C++
    for name, row in rows.items():
        assert row["status"] in allowed[name], row["note"]
        if row["status"] == "ok":
            assert row["max_error"] < 1e-5  # float32; bfloat16 is off by 7e-3
            assert row["samples"] >= 6
            assert row["rounds"] == 2
            assert 0 < row["share_of_floor_p20"] <= row["share_of_floor"] <= row["share_of_floor_p80"]
    assert rows["export"]["time_over_export"] == 1


def test_the_floor_counts_the_arithmetic_that_pytorch_counts(results: Path) -> None:
    model = create_model(MODEL).eval()
    bake_position_tables(model)  # the training form computes them besides
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(BATCH, 3, *model.config.resolution))
    (row, *_) = json.loads((results / "rows.json").read_text())
    assert 1e9 * row["gflop"] == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_floor_and_profile_shares_add_up(results: Path) -> None:
    floor = list(csv.DictReader((results / "floor.csv").open()))
    assert sum(float(row["flop_share_percent"]) for row in floor) == pytest.approx(100, abs=0.5)
    assert {row["kind"] for row in floor} == {"conv", "grouped conv", "matmul", "attention", "peak"}
    profile = list(csv.DictReader((results / "profile.csv").open()))
    for grouping in ("operator", "block"):
        shares = {row["name"]: float(row["share_percent"]) for row in profile if row["grouping"] == grouping}
        assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert {"stage 0 conv1", "stage 2 hat_attn", "stage 3 mlp"} <= set(shares)
    assert (results / "cpu-paths.png").read_bytes().startswith(b"\x89PNG")


def test_a_path_that_computes_something_else_is_failed_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()

    def other(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Workload], Runner]:
        def prepare(work: Workload) -> Runner:
            right = RUNNERS_BEFORE["eager"](work)

            def run() -> np.ndarray:
                calls[name] += 1
                return change(right())

            return run

        return prepare

    def missing(work: Workload) -> Runner:
        raise MissingPackageError("not installed")

    RUNNERS_BEFORE: dict[str, Any] = dict(RUNNERS)
    changed = {
        "export": RUNNERS["export"],
        "eager": other("eager", lambda y: y + 2e-3 * abs(y).max()),
        "compile": other("compile", lambda y: np.full_like(y, np.nan)),
        "naive": other("naive", lambda y: y[:1]),
        "openvino": missing,
    }
    monkeypatch.setattr(cpu_paths, "RUNNERS", changed)
    monkeypatch.setattr(cpu_paths, "gemm_sizes", lambda path: Counter({GemmSize("matmul", 8, 8, 8): 1}))
    monkeypatch.setattr(gemm_peak, "PEAK", GemmSize("matmul", 64, 64, 64))
    rows = {row.path: row for row in path_rows(cpu_paths.measure_model(MODEL, 2, 0.05, threads=2).turns)}
    assert {name: row.status for name, row in rows.items()} == {
        "export": "ok",
        "eager": "failed",
        "compile": "failed",
        "naive": "failed",
        "openvino": "skipped",
    }
    assert set(calls.values()) == {1}  # compared once, never timed
    assert all(row.latency_ms is None and row.note for name, row in rows.items() if name != "export")


def test_products_within_functions_and_of_unknown_shape_are_refused(tmp_path: Path) -> None:
    body = helper.make_function(
        "fastervit", "Project", ["x", "w"], ["y"], [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_opsetid("", 19)],
    )  # fmt: skip
    weight = onnx.numpy_helper.from_array(np.zeros((5, 7), np.float32), "w")
    for name, batch, functions in (("3", 3, []), ("batch", "batch", []), ("called", 3, [body])):
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="proj")
        if functions:
            node = helper.make_node("Project", ["x", "w"], ["y"], domain="fastervit", name="proj")
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4, 7])],
            [weight],
        )
        opsets = [helper.make_opsetid("", 19), helper.make_opsetid("fastervit", 1)]
        onnx.save(helper.make_model(graph, functions=functions, opset_imports=opsets), tmp_path / f"{name}.onnx")
    assert gemm_sizes(tmp_path / "3.onnx") == {GemmSize("matmul", 12, 7, 5): 1}
    with pytest.raises(FasterViTError, match="static"):
        gemm_sizes(tmp_path / "batch.onnx")
    with pytest.raises(FasterViTError, match=r"'called\.onnx' calls functions"):
        gemm_sizes(tmp_path / "called.onnx")


def test_errors_are_one_line_and_leave_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cpu_paths.main(["--model", "faster_vit_9", "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert re.match(r"error: unknown model 'faster_vit_9'.*\n$", capfd.readouterr().err)
    assert not list(tmp_path.iterdir())
