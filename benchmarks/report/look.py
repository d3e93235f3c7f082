"""How models, precisions and backends look, the same in picture and page: colour, shape and sign."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastervit_trt.benchmarks.rows import BenchmarkRow, Variant, several_exports, several_sizes

__all__ = ["DARK", "DARK_PAGE", "LIGHT", "LIGHT_PAGE", "SHAPES", "SIGNS", "Looks", "Shape", "short_name"]

# Chosen by search: every pair stays apart (CIE76 of 17 and more) also with protanopia, deuteranopia and tritanopia as
# Machado et al. (2009) simulate them, mostly by lightness, and each has a contrast of 3 : 1 and more with its page
# (WCAG 2.2, 1.4.11).
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#14181f"
LIGHT = ("#1b54d9", "#c48800", "#00a863", "#e2009a", "#581a00", "#063340", "#1589eb", "#2800ca")
DARK = ("#3471c0", "#d44e10", "#47cd70", "#d3779e", "#d5ec2d", "#ffd3c1", "#31f5ff", "#9449ff")


@dataclass(frozen=True)
class Shape:
    """A mark: matplotlib's name of it, and its outline as an SVG path about the origin, 14 units wide."""

    marker: str
    path: str


_CIRCLE = Shape("o", "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0Z")
SHAPES = {
    "fp32": _CIRCLE,
    "fp16": Shape("s", "M-5.4-5.4H5.4V5.4H-5.4Z"),
    "bf16": Shape("D", "M0-7.2L7.2 0L0 7.2L-7.2 0Z"),
    "int8": Shape("^", "M0-6.8L6.9 5.4H-6.9Z"),
    "int8-cpu": Shape("P", "M-2.3-6.4H2.3V-2.3H6.4V2.3H2.3V6.4H-2.3V2.3H-6.4V-2.3H-2.3Z"),
    "fp8": Shape("v", "M0 6.8L6.9-5.4H-6.9Z"),
    "mixed": Shape(
        "X", "M-6.2-3.1L-3.1-6.2L0-3.1L3.1-6.2L6.2-3.1L3.1 0L6.2 3.1L3.1 6.2L0 3.1L-3.1 6.2L-6.2 3.1L-3.1 0Z"
    ),
}
_OTHER = Shape("h", "M0-6.8L5.9-3.4V3.4L0 6.8L-5.9 3.4V-3.4Z")

# Signs of backends, drawn into the mark as lines; the first backend has none.
SIGNS = (
    "",
    "M-3 0H3",
    "M0-3V3",
    "M-2.8 0H2.8M0-2.8V2.8",
    "M-2.2-2.2L2.2 2.2M-2.2 2.2L2.2-2.2",
    "M-.6 0H.6",
    "M-2.2 2.2L2.2-2.2",
)
_SIGN_MARKERS = ("", "_", "|", "+", "x", ".", "$/$")
_OFFICIAL = re.compile(r"faster_vit_(\d+)(_\w+)?")
_BACKENDS = ("ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx", "torch", "torch-compile", "torch-fused", "openvino")


@dataclass(frozen=True)
class Looks:
    """The names of a report in a fixed order, by which they get their colour, shape and sign."""

    models: tuple[str, ...]
    precisions: tuple[str, ...]
    backends: tuple[str, ...]
    sizes: tuple[tuple[str, str], ...] = ()  # model and resolution, of models that are there at several
    exports: frozenset[Variant] = frozenset()  # of which there are several exports

    @classmethod
    def of(cls, rows: Iterable[BenchmarkRow]) -> Looks:
        """Every name among ``rows``; what is known comes in the order of the documentation."""
        rows = list(rows)
        return cls(
            tuple(sorted({row.model for row in rows})),
            _ordered({row.precision for row in rows}, tuple(SHAPES)),
            _ordered({row.backend for row in rows}, _BACKENDS),
            several_sizes(rows),
            several_exports(rows),
        )

    def colour(self, model: str) -> int:
        """Index in ``LIGHT`` and ``DARK``."""
        return self.models.index(model) % len(LIGHT)

    def shape(self, precision: str) -> Shape:
        return SHAPES.get(precision, _OTHER)

    def sign(self, backend: str) -> int:
        """Index in ``SIGNS``."""
        return self.backends.index(backend) % len(SIGNS)

    def sign_marker(self, backend: str) -> str:
        """Matplotlib's marker of the sign; empty for the first backend."""
        return _SIGN_MARKERS[self.sign(backend)]

    def label(self, row: BenchmarkRow) -> str:
        """As short as it can be told from the others: backend, resolution and export only where there are several."""
        backend = f" · {row.backend}" if len(self.backends) > 1 else ""
        size = f" {row.resolution}" if (row.model, row.resolution) in self.sizes else ""
        export = row.export.removeprefix(f"{row.model}-") if row.variant in self.exports else ""
        return f"{short_name(row.model)}{size} {row.precision}{f' ({export})' if export else ''}{backend}"


def short_name(model: str) -> str:
    """As the papers write it, or without the prefix that all models of the family share."""
    if official := _OFFICIAL.fullmatch(model):
        number, rest = official[1], official[2] or ""
        return f"FasterViT-{number}" + ("" if rest == "_224" else rest.replace("_", " "))
    return model.removeprefix("faster_vit_") or model


def _ordered(names: set[str], known: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name)))
