"""A kind of machine – datacenter, workstation, Jetson – in its own words in, a whole row of the table out."""

from __future__ import annotations

from fastervit_trt.deploy.targets import sources
from fastervit_trt.deploy.targets.sources import CAPABILITIES
from fastervit_trt.deploy.targets.target import Fact, Target, VersionRange

__all__ = ["FLOATS", "datacenter", "jetson", "rtx", "workspace_mib"]

FLOATS = ("fp32", "fp16", "bf16")
_MOST_WORKSPACE_MIB = 4096
_MIB_PER_GIB = 1024


def datacenter(
    name: str,
    title: str,
    gpus: tuple[str, ...],
    capability: str,
    gib: int,
    boards: str,
    batch: str,
    *facts: Fact,
    since: str = "10.3",
) -> Target:
    """A datacenter GPU in an x86-64 server: TensorRT, built there, with plugins.

    Args:
        gib: memory of the smallest board; ``boards`` is where that stands.
        facts: of this row alone.
    """
    fp8 = _number(capability) >= (8, 9)
    return Target(
        name=name,
        title=title,
        gpus=gpus,
        capability=capability,
        platforms=("linux-x86_64",),
        runtime="tensorrt",
        versions=VersionRange(since, "12"),
        precisions=(*FLOATS, "int8", *(["fp8"] if fp8 else [])),
        plugins=True,
        flat=False,
        batch=batch,
        workspace_mib=workspace_mib(gib),
        memory="device",
        memory_gib=gib,
        jetpack=(),
        l4t=None,
        facts=(
            Fact(f"compute capability {capability}", CAPABILITIES),
            *([sources.OLDEST_BUILT] if since == "10.3" else []),
            Fact(f"{gib} GB of memory on the smallest board", boards),
            *facts,
            sources.FP8 if fp8 else sources.NO_FP8,
            sources.BF16,
            sources.ON_THE_DEVICE,
            sources.SAME_CAPABILITY,
            sources.FUNCTIONS,
            sources.BATCH_OF_PAPER,
            sources.WORKSPACE,
        ),
    )


def rtx(name: str, title: str, gpus: tuple[str, ...], capability: str, *facts: Fact) -> Target:
    """A generation of workstation GPUs: TensorRT-RTX, compiled ahead of time."""
    fp8 = _number(capability) >= (8, 9)
    return Target(
        name=name,
        title=title,
        gpus=gpus,
        capability=capability,
        platforms=("linux-x86_64", "windows-x86_64"),
        runtime="tensorrt-rtx",
        versions=VersionRange("1.4", "2"),
        precisions=(*FLOATS, "int8", *(["fp8"] if fp8 else [])),
        plugins=False,
        flat=False,  # TensorRT-RTX expands functions by itself
        batch="1:8:32",
        workspace_mib=None,  # it times no kernels before it is on the device, so nothing is to be kept from memory
        memory="device",
        memory_gib=None,  # the smallest boards of a generation are laptops; nothing is built on them
        jetpack=(),
        l4t=None,
        facts=(
            Fact(f"compute capability {capability}", CAPABILITIES),
            sources.RTX_VERSIONS,
            *facts,
            sources.RTX_PORTABLE,
            sources.RTX_NO_PLUGINS,
            sources.RTX_INT8,
            sources.FP8 if fp8 else sources.NO_FP8,
            Fact("batch: up to 32, so that FasterViT-4 fits boards of 8 GB with room; not measured", "rule: table.py"),
        ),
    )


def jetson(
    name: str,
    title: str,
    gpus: tuple[str, ...],
    capability: str,
    gib: int,
    versions: VersionRange,
    jetpack: str,
    l4t: VersionRange,
    *facts: Fact,
    flat: bool = False,
    batch: str = "1:1:8",
) -> Target:
    """A Jetson under certain releases of JetPack, which bring their TensorRT; CPU and GPU share the memory.

    Args:
        gib: memory of the smallest board.
        facts: of this row alone.
    """
    fp8 = _number(capability) >= (8, 9)
    return Target(
        name=name,
        title=title,
        gpus=gpus,
        capability=capability,
        platforms=("linux-aarch64",),
        runtime="tensorrt",
        versions=versions,
        precisions=(*FLOATS, "int8", *(["fp8"] if fp8 else [])),
        plugins=True,
        flat=flat,
        batch=batch,
        workspace_mib=workspace_mib(gib),
        memory="unified",
        memory_gib=gib,
        jetpack=(jetpack,),
        l4t=l4t,
        facts=(
            Fact(f"compute capability {capability}", CAPABILITIES),
            *facts,
            sources.ON_THE_DEVICE,
            sources.BF16,
            sources.FP8 if fp8 else sources.NO_FP8,
            *([] if flat else [sources.FUNCTIONS]),
            sources.WORKSPACE,
            Fact("batch: small, as a camera gives one image at a time; not measured", "rule: table.py"),
            sources.DLA,
        ),
    )


def workspace_mib(gib: int) -> int:
    """In MiB, by the smallest board: TensorRT's own limit is all memory, which on a Jetson is the system's, too."""
    return min(_MOST_WORKSPACE_MIB, gib * _MIB_PER_GIB // 8)


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
