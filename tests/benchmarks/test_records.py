"""Results as files: written whole, read back as they were, older ones too, newer ones refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.records import Record, read_records, write_record
from fastervit_trt.benchmarks.rows import SCHEMA, BenchmarkRow, write_rows
from fastervit_trt.errors import FasterViTError
from tests.conftest import ROOT

ROW = BenchmarkRow(
    model="tiny",
    precision="int8",
    backend="ort-cpu",
    resolution="224x160",
    batch=8,
    status="unstable",
    reason='half "a", half, b',
    top1=0.5,
    images=599,
    throughput_img_per_s=1e-7,
    speed_is_meaningful=False,
    transfers=True,
)
# A row of schema 1 as version 0.1.0 wrote it, of benchmarks/results/digits-ort-cpu at its first commit.
SCHEMA_1 = {
    "model": "faster_vit_digits_s",
    "precision": "fp16",
    "backend": "ort-cpu",
    "resolution": "224x224",
    "parameters": 27582,
    "dataset": "digits, held-out third",
    "images": 599,
    "top1": 0.9716193656093489,
    "top1_low": 0.9550218944094856,
    "top1_high": 0.9822062801511672,
    "agreement_fp32": 1.0,
    "non_finite_logits": 0,
    "latency_batch": 1,
    "latency_p50_ms": 0.5632600004901178,
    "latency_p90_ms": 0.5927659985900391,
    "latency_p99_ms": 0.7967220041144222,
    "latency_samples": 6809,
    "throughput_batch": 8,
    "throughput_img_per_s": 1488.1124004086319,
    "throughput_p20_img_per_s": 1414.289378994244,
    "throughput_p80_img_per_s": 1543.7318979162903,
    "throughput_samples": 727,
    "speed_is_meaningful": True,
    "on_front": False,
    "dominated_by": "faster_vit_digits_s fp32",
    "note": "fp16 pays on GPUs",
    "file_bytes": 111939,
    "onnx_sha256": "7ff327fe",
    "weights_sha256": "95e00865",
    "export": "faster_vit_digits_s-fp16",
    "cpu": "AMD EPYC",
    "threads": 2,
    "load_before": None,
    "os": "Linux",
    "fastervit_trt": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "onnxruntime": "1.31.1",
    "timestamp_utc": "2026-11-21T05:52:16+00:00",
    "schema": 1,
}


def test_rows_are_the_same_from_csv_and_json(tmp_path: Path) -> None:
    plain = BenchmarkRow(model="m", precision="fp32", backend="torch", resolution="7x7", batch=1, status="ok")
    for path in write_rows([ROW, plain], tmp_path):
        assert [record.row for record in read_records(path)] == [ROW, plain]
    assert [record.row for record in read_records(tmp_path)] == [ROW, plain]


def test_cells_go_before_rows_and_have_samples(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    write_record(Record(ROW, ((0.25, 0.5), (0.125,)), ((1.0,),)), tmp_path / "cells" / "a.json")
    write_rows([BenchmarkRow(**{**asdict(ROW), "batch": 1})], tmp_path)
    (found,) = read_records(tmp_path)
    assert (found.row, found.latency_s, found.throughput_s, found.right) == (
        ROW,
        ((0.25, 0.5), (0.125,)),
        ((1.0,),),
        None,
    )


def test_a_row_of_schema_1_is_two_measurements(tmp_path: Path) -> None:
    for name in ("rows.json", "rows.csv"):
        path = tmp_path / name
        if name.endswith("json"):
            path.write_text(json.dumps([SCHEMA_1]))
        else:
            cells = ["" if value is None else str(value) for value in SCHEMA_1.values()]
            quoted = ",".join(f'"{cell}"' for cell in cells)
            path.write_text(",".join(SCHEMA_1) + "\n" + quoted + "\n")
        latency, throughput = (record.row for record in read_records(path))
        assert (latency.batch, latency.latency_p99_ms, latency.throughput_img_per_s) == (1, 0.7967220041144222, None)
        assert (throughput.batch, throughput.latency_p50_ms, throughput.throughput_samples) == (8, None, 727)
        for row in (latency, throughput):
            assert (row.top1, row.device, row.device_kind, row.clock) == (SCHEMA_1["top1"], "AMD EPYC", "cpu", "host")
            assert (row.artifact, row.artifact_sha256, row.schema) == ("model.onnx", "7ff327fe", SCHEMA)
            assert (row.load_before, row.threads, row.status) == (None, 2, "ok")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'[{{"schema": {SCHEMA + 1}}}]', f"schema {SCHEMA + 1}, this version reads up to {SCHEMA}; update"),
        ("[{}]", "no 'schema'"),
        ("{}", "no list of rows"),
        ("[1]", "holds no rows"),
        ("[{", "holds no rows"),
        (f'[{{"schema": {SCHEMA}, "model": "m"}}]', "no column precision"),
        (json.dumps([{**asdict(ROW), "batch": "eight"}]), "eight"),
        (json.dumps([{**asdict(ROW), "model": 5}]), "column model has 5"),
        (json.dumps([{**asdict(ROW), "batch": None}]), "column batch is empty"),
        (json.dumps([{**asdict(ROW), "transfers": "maybe"}]), "column transfers has 'maybe'"),
    ],
)
def test_what_is_no_result_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(FasterViTError) as refused:
        read_records(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_there_and_a_damaged_cell_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match="holds no results of fastervit-bench"):
        read_records(tmp_path)
    with pytest.raises(FasterViTError, match="there are no results at"):
        read_records(tmp_path / "rows.csv")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text('{"row": ')
    with pytest.raises(FasterViTError, match="remove it, and --resume measures that cell again"):
        read_records(tmp_path)


def test_the_score_of_a_classifier_is_its_top1_also_in_results_from_before() -> None:
    for results in (ROOT / "benchmarks/results/digits-ort-cpu", ROOT / "benchmarks/results/faster_vit_0-cpu"):
        for path in (results, results / "rows.csv"):
            for one in (record.row for record in read_records(path)):
                assert (one.task, one.metric) == ("classification", "top-1")
                assert (one.score, one.score_low, one.score_high) == (one.top1, one.top1_low, one.top1_high)
    best = max(record.row.score or 0.0 for record in read_records(ROOT / "benchmarks/results/digits-ort-cpu"))
    assert best == pytest.approx(0.9933, abs=1e-4)


def test_figures_of_other_tasks_survive_both_files(tmp_path: Path) -> None:
    found = replace(
        ROW, task="detection", metric="mAP", score=0.61, score_low=0.58, score_high=0.64, top1=None,
        figures='{"mAP@50": 0.89, "mAP@75": 0.7}',
    )  # fmt: skip
    for path in write_rows([found, replace(found, task="segmentation", metric="mIoU", figures="")], tmp_path):
        first, second = (record.row for record in read_records(path))
        assert (first, first.further) == (found, {"mAP@50": 0.89, "mAP@75": 0.7})
        assert (second.metric, second.score, second.further) == ("mIoU", 0.61, {})
    path.write_text(path.read_text().replace('\\"mAP@50', "mAP@50"))
    with pytest.raises(FasterViTError, match=r"rows\.json' holds no rows of fastervit-bench"):
        read_records(path)
