"""``fastervit-export`` quantises a segmenter where its own figure allows, as it does classifiers by top-1."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from fastervit_trt.artifacts import Manifest
from tests.benchmarks.task_exports import CLASSES, mask_folder
from tests.conftest import Finished

Command = Callable[..., Finished]


def test_a_mixture_for_a_segmenter_is_judged_by_mean_intersection_over_union(command: Command, tmp_path: Path) -> None:
    data, output = mask_folder(tmp_path / "data"), tmp_path / "mixed"
    done = command(
        "fastervit-export", "--model", "faster_vit_scenes_segmenter", "--random-init", "--num-classes", len(CLASSES),
        "--resolution", "64x96", "--precision", "mixed", "--quantise-heads", "--accuracy-budget", 100,
        "--calibration-data", data / "images", "--validation-data", data, "--runtime", "none", "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = Manifest.read(output)
    assert (manifest.task, manifest.precision) == ("segmentation", "mixed") and manifest.accuracy is not None
    found = manifest.accuracy
    assert (found["metric"], found["artifact"]["images"]) == ("mIoU", 6)
    assert 0 <= found["artifact"]["value"] < 1 and found["artifact"]["agreement"] > 0.9
    assert f"mIoU {100 * found['artifact']['value']:.2f} %" in done.out
    rows = list(csv.DictReader((output / "sensitivity.csv").open()))
    units = {row["unit"] for row in rows if row["quantised"] == "True"}
    assert {unit.split(".")[0] for unit in units} == {"backbone", "decode_head"}
    assert sum(int(row["layers"]) for row in rows) == len(manifest.graph["quantisation"]["blocks"])
