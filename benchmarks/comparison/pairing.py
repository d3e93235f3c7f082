"""Records of two runs in; the pairs that measured the same thing out, and how each pair tells its time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace

from fastervit_trt.benchmarks.records import Record
from fastervit_trt.benchmarks.rows import BenchmarkRow, Variant, several_exports
from fastervit_trt.errors import FasterViTError

__all__ = ["SPEEDS", "Pair", "Pairing", "Place", "Speed", "describe", "pair_records", "place_of", "same_images"]

Place = tuple[str, int | None]  # device; threads, where it is a CPU
Range = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Speed:
    """One of the two speeds of a row, seen as time, so that less is better for both."""

    name: str
    unit: str
    rising: bool  # more of what is shown is better
    samples: Callable[[Record], Sequence[Sequence[float]]]  # seconds per batch, by round
    shown: Callable[[BenchmarkRow], float | None]  # the median, in the unit
    times: Callable[[BenchmarkRow], Range]  # 20th, 50th, 80th percentile of time, in any unit

    def spoken(self, value: float) -> str:
        """A value with four digits or all before the point, and its unit."""
        return f"{value:.0f} {self.unit}" if value >= 1000 else f"{value:.4g} {self.unit}"


SPEEDS = (
    Speed(
        "throughput",
        "img/s",
        True,
        lambda record: record.throughput_s,
        lambda row: row.throughput_img_per_s,
        lambda row: (
            _inverse(row.throughput_p80_img_per_s),
            _inverse(row.throughput_img_per_s),
            _inverse(row.throughput_p20_img_per_s),
        ),
    ),
    Speed(
        "latency",
        "ms",
        False,
        lambda record: record.latency_s,
        lambda row: row.latency_p50_ms,
        lambda row: (row.latency_p20_ms, row.latency_p50_ms, row.latency_p80_ms),
    ),
)


@dataclass(frozen=True)
class Pair:
    """The same condition in two runs."""

    before: Record
    after: Record
    twins: frozenset[Variant] = frozenset()  # of the runs: what there are several exports of

    @property
    def name(self) -> str:
        return describe(self.before.row, self.twins)

    @property
    def same_place(self) -> bool:
        return place_of(self.before.row) == place_of(self.after.row)


@dataclass(frozen=True)
class Pairing:
    """Pairs in the order of the first run, and what is in one run only."""

    pairs: tuple[Pair, ...]
    only_before: tuple[Record, ...]
    only_after: tuple[Record, ...]
    twins: frozenset[Variant] = frozenset()


def pair_records(before: Sequence[Record], after: Sequence[Record]) -> Pairing:
    """Pair by condition, on the same device where both runs have it, else on whichever one device each has.

    Raises:
        FasterViTError: a run measured a condition twice on one device.
    """
    twins = several_exports(record.row for record in before) | several_exports(record.row for record in after)
    first, second = _by_condition(before, twins), _by_condition(after, twins)
    pairs: list[Pair] = []
    left: tuple[list[Record], list[Record]] = [], []
    for condition in dict.fromkeys((*first, *second)):
        places = first.get(condition, {}), second.get(condition, {})
        common = [place for place in places[0] if place in places[1]]
        pairs += [Pair(places[0].pop(place), places[1].pop(place), twins) for place in common]
        if len(places[0]) == len(places[1]) == 1:
            ((one,), (other,)) = (side.values() for side in places)
            pairs.append(Pair(one, other, twins))
        else:
            for side, records in zip(left, places, strict=True):
                side += records.values()
    return Pairing(tuple(pairs), tuple(left[0]), tuple(left[1]), twins)


def _by_condition(records: Iterable[Record], twins: Collection[Variant]) -> dict[object, dict[Place, Record]]:
    found: dict[object, dict[Place, Record]] = defaultdict(dict)
    for record in records:
        export = record.row.export if record.row.variant in twins else ""
        places, place = found[record.row.condition, export], place_of(record.row)
        places[place] = _joined(places[place], record) if place in places else record
    return found


def _joined(first: Record, second: Record) -> Record:
    """One record of two that hold latency and throughput apart, as rows of schema 1 at batch 1 do."""
    times = (first.row.latency_p50_ms, second.row.throughput_img_per_s)
    others = (first.row.throughput_img_per_s, second.row.latency_p50_ms)
    if None in times or others != (None, None):
        raise FasterViTError(
            f"{describe(first.row)} is there twice on {first.row.device} (in '{first.path}' and '{second.path}'); "
            "give one run at a time"
        )
    names = [field.name for field in fields(BenchmarkRow) if field.name.startswith("throughput")]
    row = replace(first.row, **{name: getattr(second.row, name) for name in names})
    return replace(first, row=row, throughput_s=second.throughput_s)


def place_of(row: BenchmarkRow) -> Place:
    """Where it ran, as far as times of it can be compared; another number of threads is another CPU."""
    return row.device, row.threads if row.device_kind == "cpu" else None


def describe(row: BenchmarkRow, twins: Collection[Variant] = ()) -> str:
    """A row's condition in words: ``faster_vit_0_224 fp16, tensorrt, 224x224, batch 8``.

    Args:
        twins: what there are several exports of, which is named with its own.
    """
    export = [f"export {row.export}"] if row.variant in twins and row.export else []
    task = [row.task] if row.task != "classification" else []
    streams = [f"{row.streams} streams"] if row.streams != 1 else []
    transfers = ["with transfers"] if row.transfers else []
    cold = ["cold cache"] if row.cold_cache else []
    how = [row.backend, row.resolution, f"batch {row.batch}", *streams, *transfers, *cold]
    return ", ".join([row.label, *export, *task, *how])


def same_images(before: BenchmarkRow, after: BenchmarkRow) -> bool:
    """Both were judged on the same images, as far as the rows say."""
    return (before.dataset, before.dataset_sha256, before.images) == (after.dataset, after.dataset_sha256, after.images)


def _inverse(value: float | None) -> float | None:
    return None if not value else 1 / value
