"""A plan in, measured cells out: exports made, cells skipped with their reason or measured, records kept one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from fastervit_trt.benchmarks.evaluate import check_dataset
from fastervit_trt.benchmarks.examples import draw_examples
from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.slower import explain_slow_rows
from fastervit_trt.benchmarks.sweep.cell import Cell, cell_of_wanted
from fastervit_trt.benchmarks.sweep.display import sweep_display
from fastervit_trt.benchmarks.sweep.estimate import EXPORT_SECONDS, Size, cell_seconds
from fastervit_trt.benchmarks.sweep.exporting import add_engines, made_export
from fastervit_trt.benchmarks.sweep.folder import SweepFolder, open_folder
from fastervit_trt.benchmarks.sweep.group import Accuracies, measure_group
from fastervit_trt.benchmarks.sweep.grouping import groups_of
from fastervit_trt.benchmarks.sweep.matrix import Candidate, Subject, candidates, check_backends, open_subject
from fastervit_trt.benchmarks.sweep.outcome import accuracy_of, record_of, unmeasured
from fastervit_trt.benchmarks.sweep.plan import Options, Plan, WantedExport
from fastervit_trt.console import step, warn
from fastervit_trt.errors import FasterViTError
from fastervit_trt.metering import Data
from fastervit_trt.models.datasets import LabelledImages

__all__ = ["Forecast", "forecast", "run_sweep"]


@dataclass(frozen=True)
class Forecast:
    """What a sweep would do: cells, their estimated seconds and why they would be skipped; exports to be made first."""

    cells: tuple[tuple[Cell, float, str], ...]
    exports: tuple[WantedExport, ...]

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds, why_not in self.cells if not why_not) + EXPORT_SECONDS * len(self.exports)


def forecast(plan: Plan) -> Forecast:
    """What :func:`run_sweep` would do; whether cells of exports that are still to be made can run is not known yet.

    Raises:
        FasterViTError: as :func:`run_sweep` does before it begins.
    """
    subjects, data = _checked(plan)
    images = len(data) if data is not None else 0
    found = _candidates(subjects, plan, data)
    sizes = [(c.cell, Size.of_export(c.subject.manifest), c.why_not) for c in found]
    for wanted in plan.wanted:
        size = Size.of_model(wanted.spec)
        sizes += [(cell, size, "") for cell in _cells_of_wanted(wanted, Path(wanted.name), plan)]
    seconds = _seconds([(cell, size) for cell, size, _ in sizes], plan, images)
    return Forecast(
        tuple((cell, took, why_not) for (cell, _, why_not), took in zip(sizes, seconds, strict=True)), plan.wanted
    )


def run_sweep(
    plan: Plan, output: Path, *, resume: bool = False, retry: bool = False, overwrite: bool = False
) -> list[Record]:
    """Measure what ``plan`` asks for into the folder ``output``; the records of all its cells.

    Args:
        resume: keep what is there and measure what is missing;
        retry: and what failed, was skipped or is unstable.
        overwrite: replace an earlier sweep.

    Raises:
        FasterViTError: the plan cannot be carried out at all, or ``output`` is not free. What goes wrong with single
            cells becomes their rows.
    """
    subjects, data = _checked(plan)
    with open_folder(output, resume=resume, overwrite=overwrite) as folder:
        plan.write(folder.path)
        if retry:
            folder.forget_unsettled()
        made, failed, engineless = _made_exports(plan, folder, data)
        found = [_without_engine(c, engineless) for c in _candidates([*subjects, *made], plan, data)]
        for cell, reason in failed:
            folder.keep(cell, unmeasured(cell, plan.options, "failed", reason))
        try:
            known = _known_accuracies(found, folder)
            _measure([c for c in found if not folder.has(c.cell)], plan, data, folder, known)
        except KeyboardInterrupt:
            done = sum(folder.has(c.cell) for c in found)
            warn(f"{done} of {len(found)} cells are there; fastervit-bench --resume --output {output} goes on")
            raise
        finally:
            folder.write_rows(folder.records())
        records = _explained(found, folder)
        folder.write_rows(records)
        if plan.options.examples and data is not None and not isinstance(data, LabelledImages):
            with step("drawing examples"):
                drawn = draw_examples(folder.examples, data)
            if not drawn:
                warn("no examples: they are taken with the accuracy, and it was there already; sweep with --overwrite")
    return records


def _checked(plan: Plan) -> tuple[list[Subject], Data | None]:
    """What is there from the start, before anything is written."""
    check_backends(plan.backends)
    with step(f"checking {len(plan.exports)} exports"):
        subjects = [open_subject(Path(path)) for path in dict.fromkeys(plan.exports)]
    tasks = {subject.folder.name: subject.manifest.task for subject in subjects}
    tasks |= {wanted.name: wanted.task for wanted in plan.wanted}
    _check_tasks(tasks, plan.options)
    data = plan.options.dataset(next(iter(tasks.values()))) if tasks else None
    if data is not None:
        for subject in subjects:
            check_dataset(subject.manifest, data)
        for wanted in plan.wanted:
            data.check_classes(wanted.spec.config().num_classes, wanted.model)
    return subjects, data


def _check_tasks(tasks: Mapping[str, str], options: Options) -> None:
    """One data set judges one task."""
    if options.data and len(set(tasks.values())) > 1:
        first = {task: next(name for name in tasks if tasks[name] == task) for task in tasks.values()}
        each = ", ".join(f"{task} ('{name}')" for task, name in first.items())
        raise FasterViTError(
            f"these exports are for different tasks: {each}; '{options.data}' can judge one of them. Measure each "
            "task with its own --data and --output ('fastervit-bench report' merges them), or leave --data out"
        )
    if options.examples and not options.data:
        raise FasterViTError("--examples are pictures of the data, and there is none; add --data")
    if options.examples and "classification" in tasks.values():
        raise FasterViTError("--examples draws boxes and masks, and a classifier finds none; leave it out")


def _made_exports(
    plan: Plan, folder: SweepFolder, data: Data | None
) -> tuple[list[Subject], list[tuple[Cell, str]], dict[tuple[str, str], str]]:
    """Exports that are wanted, the cells of those that could not be made, and why engines could not, by artifact."""
    made: list[Subject] = []
    failed: list[tuple[Cell, str]] = []
    engineless: dict[tuple[str, str], str] = {}
    for wanted in plan.wanted:
        path = folder.exports / wanted.name
        try:
            with step(f"export {wanted.name}"):
                log = folder.logs / f"export-{wanted.name}.txt"
                subject = made_export(wanted, path, log)
                for backend, reason in add_engines(wanted, path, log).items():
                    engineless[str(subject.folder), backend] = reason
                subject = open_subject(path)  # with its engines
            if data is not None:
                check_dataset(subject.manifest, data)
            made.append(subject)
        except FasterViTError as error:
            failed += [(cell, f"export failed: {error}") for cell in _cells_of_wanted(wanted, path, plan)]
        else:
            for cell in _cells_of_wanted(wanted, path, plan):  # of an earlier attempt
                folder.forget(cell)
    return made, failed, engineless


def _without_engine(candidate: Candidate, engineless: Mapping[tuple[str, str], str]) -> Candidate:
    reason = engineless.get(candidate.cell.artifact)
    return candidate if reason is None else replace(candidate, why_not=reason, failed=True)


def _cells_of_wanted(wanted: WantedExport, path: Path, plan: Plan) -> list[Cell]:
    matrix = product(plan.batches, plan.backends, plan.streams)
    return [cell_of_wanted(path, wanted, backend, n, streams, plan.options) for n, backend, streams in matrix]


def _candidates(subjects: Sequence[Subject], plan: Plan, data: Data | None) -> list[Candidate]:
    identity = data.sha256() if data is not None else ""
    found = candidates(subjects, plan.backends, plan.batches, plan.streams, plan.options, identity)
    return list({candidate.cell.key: candidate for candidate in found}.values())


def _seconds(sizes: Sequence[tuple[Cell, Size]], plan: Plan, images: int) -> list[float]:
    """Estimated, of each cell."""
    seen: set[tuple[str, str]] = set()
    seconds = []
    for cell, size in sizes:
        seconds.append(cell_seconds(cell, size, plan.options, images, accuracy=cell.artifact not in seen))
        seen.add(cell.artifact)
    return seconds


def _known_accuracies(found: Sequence[Candidate], folder: SweepFolder) -> Accuracies:
    """Of artifacts some cells of which are there already."""
    records = {record.path: record for record in folder.records()}
    pairs = ((c.cell.artifact, records.get(folder.record_path(c.cell))) for c in found)
    taken = ((artifact, accuracy_of(record)) for artifact, record in pairs if record is not None)
    return {artifact: accuracy for artifact, accuracy in taken if accuracy is not None}


def _measure(
    found: Sequence[Candidate], plan: Plan, data: Data | None, folder: SweepFolder, accuracies: Accuracies
) -> None:
    options = plan.options
    runnable = [(c.cell, Size.of_export(c.subject.manifest)) for c in found if not c.why_not]
    estimated = _seconds(runnable, plan, len(data) if data is not None else 0)
    seconds = {cell.key: took for (cell, _), took in zip(runnable, estimated, strict=True)}
    with sweep_display(seconds, 2 * options.seconds, len(found)) as display:

        def keep(cell: Cell, record: Record) -> None:
            folder.keep(cell, record)
            display.done(cell, record.row)

        for candidate in found:
            if candidate.why_not:
                keep(
                    candidate.cell,
                    unmeasured(candidate.cell, options, "skipped", candidate.why_not, candidate.subject.manifest),
                )
        for group in groups_of([c for c in found if not c.why_not], options.together):
            manifests = {c.cell.key: c.subject.manifest for c in group}
            cells = [c.cell for c in group]
            examples = folder.examples if options.examples else None
            for measurement in measure_group(cells, options, accuracies, folder.logs, display, examples=examples):
                cell = measurement.cell
                keep(cell, record_of(measurement, manifests[cell.key], options))


def _explained(found: Sequence[Candidate], folder: SweepFolder) -> list[Record]:
    """All records in the order of the matrix, those of 8 bits with the reasons why they are not faster.

    Records of the same condition and export that are of an earlier state of it are not among them.
    """
    by_path = {record.path: record for record in folder.records()}
    known = [(c, by_path.pop(folder.record_path(c.cell))) for c in found if folder.record_path(c.cell) in by_path]
    rows = explain_slow_rows([record.row for _, record in known], [c.subject.folder for c, _ in known])
    records = [replace(record, row=row) for (_, record), row in zip(known, rows, strict=True)]
    for (candidate, before), after in zip(known, records, strict=True):
        if after.row != before.row:
            folder.keep(candidate.cell, after)
    conditions = {(record.row.condition, record.row.export) for record in records}
    others = [other for other in by_path.values() if (other.row.condition, other.row.export) not in conditions]
    return [*records, *others]
