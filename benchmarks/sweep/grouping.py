"""Candidates in, groups out that are timed in turns: what is to be compared, as long as memory has room for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import psutil

from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks.sweep.matrix import Candidate
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["groups_of"]

# Generous: cells of FasterViT-0 (37 and 116 MB) peaked at 218 to 703 MiB (benchmarks/results/faster_vit_0-cpu).
_PROCESS_BYTES = 700 << 20  # of a cell beside its weights: Python, a runtime, its workspace
_WEIGHTS_IN_MEMORY = 4  # times the file: read, converted, packed for the kernels, and activations beside them
_SHARE_OF_MEMORY = 0.6


def groups_of(found: Sequence[Candidate], together: int, room: float | None = None) -> Iterator[list[Candidate]]:
    """Cells of one batch and resolution, in order; a model's are kept in one group where they fit.

    Args:
        together: cells of a group, at most.
        room: bytes of memory that a group may take; a share of what is free by default.
    """
    room = _SHARE_OF_MEMORY * psutil.virtual_memory().available if room is None else room

    def fit(candidates: Sequence[Candidate]) -> bool:
        return len(candidates) <= together and sum(map(_bytes, candidates)) <= room

    for _, alike in groupby(found, lambda c: (c.cell.batch, c.cell.resolution)):
        group: list[Candidate] = []
        for _, cells in groupby(alike, lambda c: c.cell.model):
            of_model = list(cells)
            for piece in [of_model] if fit(of_model) else [[cell] for cell in of_model]:
                if group and not fit([*group, *piece]):
                    yield group
                    group = []
                group += piece
        if group:
            yield group


def _bytes(candidate: Candidate) -> float:
    return _PROCESS_BYTES + _WEIGHTS_IN_MEMORY * _weight_bytes(candidate.subject.manifest)


def _weight_bytes(manifest: Manifest) -> int:
    return sum(int(entry["bytes"]) for name, entry in manifest.files.items() if name.startswith(GRAPH_FILE))
