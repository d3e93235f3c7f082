"""Which cells there are, what makes them the same, which are timed together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.sweep.cell import cell_of
from fastervit_trt.benchmarks.sweep.estimate import Size, cell_seconds
from fastervit_trt.benchmarks.sweep.grouping import groups_of
from fastervit_trt.benchmarks.sweep.matrix import Candidate, Subject, candidates, check_backends, open_subject
from fastervit_trt.benchmarks.sweep.plan import Options, Plan, WantedExport
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.factory import ModelSpec


@pytest.fixture(scope="module")
def subjects(exports: Path) -> list[Subject]:
    return [open_subject(exports / precision) for precision in ("fp32", "fp16")]


def test_cells_are_the_whole_matrix_those_of_a_batch_together(subjects: list[Subject]) -> None:
    found = candidates(subjects, ["ort-cpu", "torch"], [1, 8], [1, 2], Options(), "")
    what = [(c.cell.batch, c.cell.precision, c.cell.backend, c.cell.streams) for c in found]
    assert what == [
        (n, kind, backend, streams)
        for n in (1, 8)
        for kind in ("fp32", "fp16")
        for backend in ("ort-cpu", "torch")
        for streams in (1, 2)
    ]
    assert len({c.cell.key for c in found}) == 16


def test_what_cannot_run_here_says_why(subjects: list[Subject]) -> None:
    too_large, no_engine = candidates(subjects[:1], ["ort-cpu"], [64], [1], Options(), "") + candidates(
        subjects[:1], ["tensorrt"], [8], [1], Options(), ""
    )
    assert "serves batch 1:4:8, not 64" in too_large.why_not
    assert "TensorRT" in no_engine.why_not  # no engine of it, no driver, or no package, as the machine is
    with pytest.raises(FasterViTError, match="there is no backend 'ort'; there are auto, ort-cpu"):
        check_backends(["auto", "ort"])


def test_auto_is_the_first_that_runs_here(subjects: list[Subject]) -> None:
    (found,) = candidates(subjects[:1], ["auto"], [8], [1], Options(), "")
    assert found.cell.backend == "ort-cpu" or found.cell.backend in ("tensorrt", "tensorrt-rtx", "ort-cuda")
    assert found.why_not == ""


def test_a_cell_is_another_when_artifact_data_or_condition_is(subjects: list[Subject]) -> None:
    folder, manifest = subjects[0].folder, subjects[0].manifest
    options = Options()

    def key(m: Manifest = manifest, o: Options = options, data: str = "d") -> str:
        return cell_of(folder, m, "ort-cpu", 8, 1, o, data).key

    files = {**manifest.files, "model.onnx": {"sha256": "0" * 64, "bytes": 1}}
    others = [
        key(replace(manifest, files=files)),
        key(replace(manifest, preprocessing={**manifest.preprocessing, "crop_pct": 0.5})),
        key(o=replace(options, threads=7)),
        key(o=replace(options, seconds=9.0)),
        key(data="other"),
    ]
    assert len({key(), *others}) == 6
    # An engine is another artifact for the backend that runs it, and for no other.
    without = replace(manifest, engines=[])
    assert key() == key(without)
    of_engine = (cell_of(folder, m, "tensorrt-rtx", 8, 1, options, "d").key for m in (manifest, without))
    assert len(set(of_engine)) == 2
    # How many are open at once, and whether strangers' engines are run, does not change what is measured.
    assert key() == key(o=replace(options, together=1, silence=5.0, trust=True))


def test_groups_are_of_one_batch_keep_models_together_and_fit(subjects: list[Subject]) -> None:
    found = candidates(subjects, ["ort-cpu", "torch"], [1, 8], [1], Options(), "")
    other = [replace(c, cell=replace(c.cell, model="other")) for c in found if c.cell.batch == 1]
    mixed = sorted([*found, *other], key=lambda c: (c.cell.batch, c.cell.model))

    def sizes(together: int, room: float = 1e15) -> list[list[tuple[int, str]]]:
        return [[(c.cell.batch, c.cell.model) for c in group] for group in groups_of(mixed, together, room)]

    tiny = "faster_vit_digits_s"
    assert sizes(8) == [[(1, tiny)] * 4 + [(1, "other")] * 4, [(8, tiny)] * 4]
    assert sizes(6) == [[(1, tiny)] * 4, [(1, "other")] * 4, [(8, tiny)] * 4]
    assert [len(group) for group in sizes(3)] == [3, 3, 2, 3, 1]
    assert [len(group) for group in sizes(8, room=1.0)] == [1] * 12, "a cell that memory has no room for is tried alone"


def test_estimates_grow_with_what_there_is_to_do(subjects: list[Subject]) -> None:
    (candidate,) = candidates(subjects[:1], ["ort-cpu"], [8], [1], Options(), "")
    manifest = candidate.subject.manifest

    small = Size.of_export(manifest)

    def seconds(images: int = 0, size: Size = small, timed: float = 5.0) -> float:
        return cell_seconds(candidate.cell, size, Options(seconds=timed), images, accuracy=images > 0)

    large = Size.of_model(ModelSpec("faster_vit_4_224"))
    assert large == Size(365_555_712, (224, 224))
    assert seconds() < seconds(images=5000) < seconds(images=5000, size=large)
    assert seconds(images=50, size=Size.of_model(ModelSpec("faster_vit_0_any_res", resolution=(448, 448)))) > seconds(
        images=50, size=Size.of_model(ModelSpec("faster_vit_0_224"))
    )
    assert seconds(timed=20.0) == pytest.approx(seconds(timed=5.0) + 30)


def test_a_plan_outlives_the_process(tmp_path: Path) -> None:
    wanted = WantedExport("m", "fp16", ("--model", "m"), "384")
    plan = Plan(("a", "b"), (wanted,), ("auto",), (1, 8), (1,), Options(data="digits", seconds=0.5))
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    assert wanted.name == "m-fp16-384"
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(FasterViTError, match=r"plan.json' is damaged"):
        Plan.read(tmp_path)
    with pytest.raises(FasterViTError, match="no sweep to resume"):
        Plan.read(tmp_path / "elsewhere")


def test_candidate_knows_its_subject(subjects: list[Subject]) -> None:
    found: list[Candidate] = candidates(subjects, ["ort-cpu"], [8], [1], Options(), "")
    assert [c.subject.manifest.precision for c in found] == [c.cell.precision for c in found]
