"""A TensorRT version in, the container images that hold it out: an engine runs with the very version it was built with.

Triton's image and TensorRT's image of one release hold the same TensorRT, so that an engine that the second built runs
in the first (https://github.com/triton-inference-server/server/issues/5812, a maintainer). NVIDIA lists all releases in
https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html; the rows here are those for which a second
place was found that names the full version. None of these images was started here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NEWEST", "RELEASES", "Release", "release_with"]

_MATRIX = "https://github.com/triton-inference-server/server/blob/main/docs/introduction/compatibility.md"
_NOTES = "https://docs.nvidia.com/deeplearning/triton-inference-server/release-notes/rel-{}.html"
# --http-max-input-size: not in branch r25.03 of triton-inference-server/server, in r25.10 with 64 MiB as the default.
_FIRST_WITH_LIMIT = (25, 10)


@dataclass(frozen=True)
class Release:
    """One monthly release of NVIDIA's containers."""

    tag: str  # "26.07"
    tensorrt: str  # "11.1.0.106", or fewer numbers where no more are known
    source: str  # where the version is from

    @property
    def server(self) -> str:
        """Triton's image."""
        return f"nvcr.io/nvidia/tritonserver:{self.tag}-py3"

    @property
    def sdk(self) -> str:
        """The image with perf_analyzer."""
        return f"{self.server}-sdk"

    @property
    def builder(self) -> str:
        """TensorRT's image, to build engines for Triton's."""
        return f"nvcr.io/nvidia/tensorrt:{self.tag}-py3"

    @property
    def notes(self) -> str:
        """NVIDIA's release notes."""
        return _NOTES.format(self.tag.replace(".", "-"))

    @property
    def limits_requests(self) -> bool:
        """Whether its server has ``--http-max-input-size``, and refuses what is larger than 64 MiB without it."""
        return tuple(map(int, self.tag.split("."))) >= _FIRST_WITH_LIMIT


RELEASES = (
    Release("26.08", "11.2.1.2", "named beside image 26.08-py3 in public repositories of its users"),
    Release("26.07", "11.1.0.106", "named beside image 26.07-py3 in public repositories of its users"),
    Release("26.05", "10.16.1.11", "named beside image 26.05-py3 in public repositories of its users"),
    # Of the framework stack that the trtllm images of the matrix are made on: "torch 2.10.0a0+….nv25.12" and so on.
    Release("25.12", "10.14.1.48", f"{_MATRIX}, trtllm images on stack 25.12"),
    Release("25.10", "10.13.3.9", f"{_MATRIX}, trtllm images on stack 25.10"),
    Release("25.03", "10.9.0.34", f"{_MATRIX}, trtllm images on stack 25.03"),
    Release(
        "24.12",
        "10.7.0.23",
        "https://docs.twcloud.ai/en/docs/concepts-tutorials/twcc/ccs/concepts/images/triton-inference-server/",
    ),
    Release("24.08", "10.3.0", "named beside image 24.08-py3 in public repositories of its users"),
)
NEWEST = RELEASES[1]  # without an engine to match; the one before the newest has been in use for longer


def release_with(version: str, *, version_compatible: bool = False) -> Release | None:
    """The release whose TensorRT runs an engine of ``version``; None where none is known.

    Args:
        version: as the engine's record says: "10.16.1.11".
        version_compatible: the engine carries its runtime, so a later TensorRT of its major runs it too, and 11 one of
            10 (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html).
    """
    wanted = _numbers(version)
    for release in RELEASES:
        if _same(_numbers(release.tensorrt), wanted):
            return release
    if version_compatible:
        for release in reversed(RELEASES):  # the oldest that will do is the nearest to what was tested
            found = _numbers(release.tensorrt)
            if found >= wanted and (found[0] == wanted[0] or (wanted[0], found[0]) == (10, 11)):
                return release
    return None


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        if not part.isdigit():  # "10.13.3.9.post1"
            break
        numbers.append(int(part))
    return tuple(numbers)


def _same(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Equal as far as both go, which is three numbers at least."""
    shared = min(len(one), len(other))
    return shared >= 3 and one[:shared] == other[:shared]
