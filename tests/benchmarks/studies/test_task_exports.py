from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.studies.task_exports import main


def test_rows_say_what_manifests_and_graphs_do(exports: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as ended:
        main([*(str(exports / name) for name in ("fp32", "fp16")), "--output", str(output)])
    assert ended.value.code in (0, None)
    half, single = csv.DictReader(output.open())
    assert (half["precision"], single["precision"]) == ("fp16", "fp32")
    for row in (half, single):
        manifest = Manifest.read(exports / row["precision"])
        assert int(row["nodes"]) == manifest.graph["fusion"]["nodes"]
        assert float(row["share_of_budget"]) == pytest.approx(manifest.verification["share_of_budget"], abs=1e-4)
        assert "WindowAttention" in row["fused"]
        engine = manifest.engines[0] if manifest.engines else None
        assert row["launches"] == ("" if engine is None else str(engine["audit"]["launches"]))
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--output", str(tmp_path / "none.csv")])
    assert ended.value.code == 2 and not (tmp_path / "none.csv").exists()
