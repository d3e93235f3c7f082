"""The table of precisions: every row an export that was judged, built and timed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fastervit_trt.benchmarks.studies import calibrators, precisions
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from fastervit_trt.export.precision import Fp8, Int8Cpu


def test_a_row_per_precision_with_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"fp8": (Fp8(), None), "int8, CPU form": (Int8Cpu(), None)}
    monkeypatch.setattr(precisions, "_settings", lambda: settings)
    monkeypatch.setattr(precisions, "_OTHERS", ("8.6",))
    monkeypatch.setattr(precisions, "_CALIBRATION_IMAGES", 64)
    path = tmp_path / "precisions.csv"
    with pytest.raises(SystemExit) as stop:
        precisions.main(["--model", "faster_vit_digits_s", "--seconds", "0.1", "--output", str(path)])
    assert stop.value.code == 0
    fp8, cpu = csv.DictReader(path.open())
    assert [row["setting"] for row in (fp8, cpu)] == list(settings)
    for row in (fp8, cpu):
        assert float(row["top1"]) > 0.95
        assert float(row["drop_low"]) < float(row["drop_points"]) < float(row["drop_high"])
        assert float(row["agreement_fp32"]) > 0.97
        assert float(row["sqnr_db"]) > 20
        assert float(row["ort_cpu_img_per_s"]) > 0
        assert int(row["quantised_layers"]) == 17
        assert int(row["onnx_bytes"]) < 400_000
    assert (cpu["rtx_built"], cpu["rtx_lacking"], cpu["rtx_launches"]) == ("", "", "")
    assert fp8["rtx_lacking"] == "8.6"
    if rtx_unavailable_reason() is None:
        assert fp8["rtx_built"] == "8.9"
        assert 0 <= int(fp8["rtx_attentions_fused"]) <= int(fp8["rtx_attentions"]) == 3
        assert "multiplications are not in 8 bits" in fp8["against_8_bits"]


def test_calibrators_are_compared_on_images_the_model_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrators, "_CALIBRATION", 64)
    monkeypatch.setattr(calibrators, "_COMPARED", 64)
    path = tmp_path / "calibrators.csv"
    with pytest.raises(SystemExit) as stop:
        calibrators.main(["--model", "faster_vit_digits_s", "--output", str(path)])
    assert stop.value.code == 0
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 4 + 4 + 3  # entropy is not for fp8
    by_name = {(row["type"], row["calibrator"]): float(row["sqnr_db"]) for row in rows}
    assert all(noise > 5 for noise in by_name.values())
    assert by_name["int8", "percentile"] > by_name["int8", "entropy"]
    assert {(row["calibration_images"], row["images"]) for row in rows} == {("64", "64")}
