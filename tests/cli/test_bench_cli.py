"""``fastervit-bench`` as a user types it: a small sweep on real exports, resumed, refused, merged."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.conftest import QUICK_BENCH, Finished

Command = Callable[..., Finished]


@pytest.fixture(scope="module")
def sweep(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 and emulated bf16 on ONNX Runtime, TensorRT asked for where there is none, judged on the digits."""
    from fastervit_trt.cli import bench

    output = tmp_path_factory.mktemp("bench") / "report"
    arguments = [
        exports / "fp32",
        exports / "bf16",
        "--backend",
        "ort-cpu,tensorrt",
        "--batch",
        "1,8",
        "--data",
        "digits",
    ]
    with pytest.raises(SystemExit) as stop:
        bench.main([str(a) for a in (*arguments, *QUICK_BENCH, "--machine", "bench-1", "--output", output)])
    assert stop.value.code == 0
    return output


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


def measured(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(r["precision"], r["batch"]): r for r in rows_of(folder) if r["backend"] == "ort-cpu"}


def test_every_cell_is_a_row_also_what_cannot_run_here(sweep: Path) -> None:
    rows = rows_of(sweep)
    cells = [(r["precision"], r["backend"], r["batch"]) for r in rows]
    assert sorted(cells) == sorted((p, b, n) for p in ("fp32", "bf16") for b in ("ort-cpu", "tensorrt") for n in (1, 8))
    for row in rows:
        if row["backend"] == "tensorrt":
            assert (row["status"], row["throughput_img_per_s"], row["top1"]) == ("skipped", None, None)
            assert "TensorRT" in row["reason"]
        else:
            assert row["status"] in ("ok", "unstable")
    with (sweep / "rows.csv").open(newline="") as stream:
        flat = list(csv.DictReader(stream))
    assert list(flat[0]) == list(rows[0])
    assert [(r["model"], r["batch"]) for r in flat] == [(r["model"], str(r["batch"])) for r in rows]


def test_accuracy_and_speed_are_of_the_same_file(sweep: Path, exports: Path) -> None:
    for (precision, _), row in measured(sweep).items():
        manifest = json.loads((exports / precision / "manifest.json").read_text())
        assert row["artifact"] == "model.onnx"
        assert row["artifact_sha256"] == manifest["files"]["model.onnx"]["sha256"]
        assert row["weights_sha256"] == manifest["weights"]["sha256"]
        assert row["images"] == 599
        assert row["top1_low"] < row["top1"] < row["top1_high"]
        assert row["top1"] <= row["top5"] <= 1
        assert row["non_finite_logits"] == 0
    rows = measured(sweep)
    assert rows["fp32", 8]["agreement_fp32"] == 1.0
    assert rows["fp32", 8]["sqnr_db"] > 80 > rows["bf16", 8]["sqnr_db"] > 20
    assert rows["bf16", 8]["top1"] == pytest.approx(rows["fp32", 8]["top1"], abs=0.02)


def test_times_are_consistent_and_carry_their_context(sweep: Path) -> None:
    for (_, batch), row in measured(sweep).items():
        p20, p50, p80, p90, p95, p99 = (row[f"latency_p{p}_ms"] for p in (20, 50, 80, 90, 95, 99))
        assert 0 < p20 <= p50 <= p80 <= p90 <= p95 <= p99
        assert row["throughput_p20_img_per_s"] <= row["throughput_img_per_s"] <= row["throughput_p80_img_per_s"]
        # One stream on the host: a batch is done in the time of a call, give or take the machine.
        assert 0.2 < row["throughput_img_per_s"] * p50 / 1000 / batch < 5
        assert row["clock"] == "host"
        assert (row["device_kind"], row["device"], row["machine"]) == ("cpu", row["cpu"], "bench-1")
        assert row["threads"] >= 1
        assert row["affinity"]
        assert row["other_load"] is not None
        assert row["rounds"] == 2
        assert row["peak_rss_mib"] > 50
    assert measured(sweep)["bf16", 8]["speed_is_meaningful"] is False
    assert "exact rounding" in measured(sweep)["bf16", 8]["note"]


def test_every_sample_is_kept(sweep: Path) -> None:
    for path in (sweep / "cells").iterdir():
        content = json.loads(path.read_text())
        row = content["row"]
        for samples, count in (("latency_s", "latency_samples"), ("throughput_s", "throughput_samples")):
            assert sum(map(len, content[samples])) == row[count]
            assert len(content[samples]) == row["rounds"]
        if row["top1"] is not None:
            assert content["right"]["images"] == 599


def test_the_report_is_there(sweep: Path) -> None:
    page = (sweep / "report.html").read_text()
    assert "faster_vit_digits_s" in page
    with Image.open(sweep / "pareto.png") as picture:
        assert picture.size[0] > 1000
    assert "| fp32 | ort-cpu | 8 | 97.16 |" in (sweep / "summary.md").read_text()


def test_resume_repeats_nothing_and_measures_what_is_missing(command: Command, sweep: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(sweep, output)
    cells = {path.name: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
    lost = next(name for name in cells if "fp32-ort-cpu-b8" in name)
    (output / "cells" / lost).unlink()
    done = command("fastervit-bench", "--resume", "--output", output)  # the plan is its own
    assert done.code == 0, done.err
    after = {path.name: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
    assert after.keys() == cells.keys()
    assert {name for name in cells if after[name] != cells[name]} == {lost}
    assert len(rows_of(output)) == len(cells)
    again = json.loads((output / "cells" / lost).read_text())
    assert again["row"]["top1"] == measured(sweep)["fp32", 8]["top1"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_sweep_loses_no_cell_and_leaves_no_process(
    exports: Path, tmp_path: Path, command: Command, how: signal.Signals
) -> None:
    output = tmp_path / "ended"
    arguments = [exports / "fp32", "--batch", "1,2", *QUICK_BENCH, "--together", 1, "--output", output]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastervit_trt.cli.bench", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not (list(output.glob("cells/*.json")) and (children := psutil.Process(process.pid).children())):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"1 of 2 cells are there; fastervit-bench --resume --output {output} goes on" in said
        assert len(rows_of(output)) == 1
    kept = {path.name: path.read_bytes() for path in (output / "cells").iterdir() if path.suffix == ".json"}
    assert len(kept) == 1
    done = command("fastervit-bench", "--resume", "--output", output)
    assert done.code == 0, done.err
    assert {name: (output / "cells" / name).read_bytes() for name in kept} == kept
    assert sorted(row["batch"] for row in rows_of(output)) == [1, 2]


def test_models_are_exported_first_and_failures_are_rows(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "made"
    arguments = (
        "--model",
        "faster_vit_digits_s",
        "--precision",
        "fp32,fp8",
        "--calibration-data",
        tmp_path / "nowhere",
    )
    wanted = (*arguments, "--backend", "ort-cpu", "--batch", 2, "--output", output)
    dry = command("fastervit-bench", *wanted, "--dry-run")
    assert dry.code == 0, dry.err
    assert "2 cells, about" in dry.out
    assert not output.exists()
    done = command("fastervit-bench", *wanted, *QUICK_BENCH)
    assert done.code == 0, done.err
    made, failed = rows_of(output)
    assert (made["precision"], made["status"], made["export"]) == ("fp32", "ok", "faster_vit_digits_s-fp32") or made[
        "status"
    ] == "unstable"
    assert (made["top1"], made["dataset"]) == (None, None)
    assert (failed["precision"], failed["status"]) == ("fp8", "failed")
    assert "nowhere' is neither 'digits' nor a folder" in failed["reason"]
    assert (output / "exports" / "faster_vit_digits_s-fp32" / "manifest.json").is_file()


def test_reports_of_machines_are_merged_and_the_newest_of_a_cell_counts(
    command: Command, sweep: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    rows = [{**row, "machine": "bench-2"} for row in rows_of(sweep)]
    newer = {**rows_of(sweep)[0], "note": "again", "timestamp_utc": "2999-01-01T00:00:00+00:00"}
    (other / "rows.json").write_text(json.dumps([*rows, newer]))
    done = command("fastervit-bench", "report", sweep, other, "--output", tmp_path / "merged")
    assert done.code == 0, done.err
    merged = rows_of(tmp_path / "merged")
    assert len(merged) == 2 * len(rows)
    assert [r["machine"] for r in merged].count("bench-2") == len(rows)
    assert [r["note"] for r in merged].count("again") == 1
    assert "1 of 17 rows were measured again later" in done.out
    refused = command("fastervit-bench", "report", sweep, "--output", tmp_path / "merged")
    assert "already exists" in refused.error


def test_without_the_checkpoint_agreement_is_missing_and_says_why(
    command: Command, exports: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exports / "fp32", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["weights"] = {"kind": "checkpoint", "path": str(tmp_path / "gone.pth"), "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = command(
        "fastervit-bench", folder, "--data", "digits", "--batch", 8, *QUICK_BENCH, "--output", tmp_path / "r"
    )
    assert done.code == 0, done.err
    (row,) = rows_of(tmp_path / "r")
    assert (row["agreement_fp32"], row["sqnr_db"]) == (None, None)
    assert row["top1"] > 0.9
    assert "gone.pth' does not exist" in row["note"]


def test_pictures_that_cannot_be_read_are_named_and_tolerated_below_a_limit(
    command: Command, exports: Path, tmp_path: Path
) -> None:
    from fastervit_trt.models.digits.data import load_digits_split

    images, labels = load_digits_split("held_out")
    for i in range(60):
        (tmp_path / "data" / f"digit{labels[i]}").mkdir(parents=True, exist_ok=True)
        images[i].save(tmp_path / "data" / f"digit{labels[i]}" / f"{i}.png")
    for name in ("bad.png", "worse.png"):
        (tmp_path / "data" / "digit0" / name).write_bytes(b"no picture")
    arguments = (exports / "fp32", "--data", tmp_path / "data", "--batch", 8, *QUICK_BENCH, "--output", tmp_path / "r")
    refused = command("fastervit-bench", *arguments)
    assert refused.code == 2
    assert "none of 1 cells could be measured" in refused.error
    assert "bad.png" in refused.error
    done = command("fastervit-bench", *arguments, "--max-unreadable", "5%", "--overwrite")
    assert done.code == 0, done.err
    (row,) = rows_of(tmp_path / "r")
    assert (row["images"], row["unreadable_images"]) == (60, 2)
    assert row["top1"] > 0.85
    assert row["agreement_fp32"] == 1.0
    assert "2 images could not be read (bad.png, worse.png)" in row["note"]


def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tampered = tmp_path / "tampered"
    shutil.copytree(exports / "fp32", tampered)
    with (tampered / "model.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\x00\xff")
    for name in ("empty", "pictures/a", "pictures/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / name / "i.png")
    (tmp_path / "empty" / "i.png").unlink()
    fine = exports / "fp32"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("nowhere",), "nowhere' is no export: it has no manifest.json"),
        ((tampered,), "is not the file the manifest describes"),
        ((fine, "--data", "empty"), "dataset folder 'empty' has no images"),
        ((fine, "--data", "missing"), "is neither 'digits' nor a folder"),
        ((fine, "--data", "pictures"), "has 2 classes"),
        ((fine, "--backend", "trtexec"), "there is no 'trtexec'; there are auto, all, ort-cpu"),
        ((fine, "--batch", "1,x"), "--batch '1,x' is no list of numbers"),
        ((fine, "--output", tampered), "holds no rows.json, so it is not replaced"),
        ((), "name export folders, or models with --model"),
        ((fine, "--max-unreadable", "lots"), "--max-unreadable"),
        (("--resume",), "no sweep to resume"),
        (("--model", "faster_vit_9"), "faster_vit_9"),
        (("--model", "faster_vit_0_224"), "--checkpoint FILE, --pretrained or --random-init"),
        (("--model", "faster_vit_0_224", "--random-init", "--data", "digits"), "has 10 classes"),
        (("--model", "faster_vit_digits_s", "--precision", "int8"), "needs --calibration-data"),
        (("--model", "faster_vit_digits_s", "--resolution", "big"), "neither H nor HxW"),
        (("report", "nowhere"), "there are no results at 'nowhere'"),
    ]
    before = sorted(p for p in tmp_path.rglob("*"))
    for arguments, message in cases:
        done = command("fastervit-bench", *arguments)
        assert done.code == 2, (arguments, done.out)
        assert message in done.error
        assert sorted(p for p in tmp_path.rglob("*")) == before, arguments


def test_a_sweep_in_which_nothing_can_be_measured_fails_but_keeps_the_reasons(
    command: Command, exports: Path, tmp_path: Path
) -> None:
    done = command("fastervit-bench", exports / "fp32", "--batch", 64, "--output", tmp_path / "r")
    assert done.code == 2
    assert "none of 1 cells could be measured" in done.error
    assert "serves batch 1:4:8, not 64" in done.error
    (row,) = rows_of(tmp_path / "r")
    assert row["status"] == "skipped"
