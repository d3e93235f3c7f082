"""A library with CUDA kernels in, the architectures that it holds code for out; cuobjdump is on no target.

nvcc puts, per source file, a container with a header (magic, version, size of the header, size of what follows) and,
one after the other, images with a header each (kind, version, size of the header, size of the image, …, architecture
at byte 28). NVIDIA does not document it; it was read from libraries of nvcc 13.0, and a test reads what nvcc is asked
to write. What cannot be read is left out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Architectures", "read_architectures"]

_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all images
_IMAGE = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, bytes of the image, architecture
_PTX, _CODE = 1, 2
_MOST_ARCHITECTURE = 1000
# Chips of Tegra: code for them runs on nothing else, and they run no other (CUDA C++ Programming Guide, "Binary
# Compatibility": https://docs.nvidia.com/cuda/archive/12.5.1/cuda-c-programming-guide/index.html).
_TEGRA = (72, 87, 110)


@dataclass(frozen=True)
class Architectures:
    """By number, 87 for compute capability 8.7: machine code, and PTX that the driver compiles for later GPUs."""

    code: frozenset[int]
    ptx: frozenset[int]

    def serve(self, capability: str) -> bool:
        """Whether kernels start on a GPU of compute capability "8.7"."""
        major, _, minor = capability.partition(".")
        needed = int(major) * 10 + int(minor)
        if needed in self.code or any(one <= needed for one in self.ptx):
            return True
        kin = {one for one in self.code if one // 10 == int(major) and one <= needed and one not in _TEGRA}
        return needed not in _TEGRA and bool(kin)

    def __str__(self) -> str:
        texts = [f"sm{one}" for one in sorted(self.code)] + [f"PTX {one}" for one in sorted(self.ptx)]
        return ", ".join(texts) or "none"


def read_architectures(library: Path) -> Architectures:
    """What every file that was compiled into ``library`` has.

    Raises:
        OSError: it cannot be read.
    """
    content = library.read_bytes()
    codes, ptxs = [], []
    at = content.find(_MAGIC)
    while at >= 0:
        code, ptx = _images(content, at)
        codes += [code] if code else []
        ptxs += [ptx] if ptx else []  # what nvcc makes when it links has none
        at = content.find(_MAGIC, at + len(_MAGIC))
    return Architectures(_common(codes), _common(ptxs))


def _common(sets: list[frozenset[int]]) -> frozenset[int]:
    return frozenset.intersection(*sets) if sets else frozenset()


def _images(content: bytes, at: int) -> tuple[frozenset[int], frozenset[int]]:
    """Architectures of machine code and of PTX in one container; none where the magic stands there by chance."""
    code: set[int] = set()
    ptx: set[int] = set()
    if at + _HEADER.size > len(content):
        return frozenset(), frozenset()
    _, _, header, size = _HEADER.unpack_from(content, at)
    end = at + header + size
    if header < _HEADER.size or end > len(content):
        return frozenset(), frozenset()
    at += header
    while at + _IMAGE.size <= end:
        kind, _, header, size, architecture = _IMAGE.unpack_from(content, at)
        if header < _IMAGE.size or not 0 < architecture < _MOST_ARCHITECTURE:
            break
        if kind in (_PTX, _CODE):
            (ptx if kind == _PTX else code).add(architecture)
        at += header + size
    return frozenset(code), frozenset(ptx)
