"""Every machine that FasterViT is deployed to, one row each: what differs, with its source."""

from __future__ import annotations

from fastervit_trt.deploy.targets import sources
from fastervit_trt.deploy.targets.kinds import FLOATS, datacenter, jetson, rtx, workspace_mib
from fastervit_trt.deploy.targets.sources import CAPABILITIES
from fastervit_trt.deploy.targets.target import Fact, Target, VersionRange
from fastervit_trt.errors import FasterViTError

__all__ = ["TARGETS", "get_target"]

_JP6_TENSORRT = "https://docs.pytorch.org/TensorRT/v2.6.1/_sources/getting_started/jetpack.rst.txt"
_JP7_TENSORRT = "https://github.com/roboflow/inference/pull/2531"
_NO_SM87 = "https://github.com/NVIDIA-ISAAC-ROS/isaac-ros-cli/issues/22"
_JETSON_11 = "https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html"
_BLACKWELL = "https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/release-notes-10/10.8.0.html"
_SPARK = "https://nvidia.github.io/TensorRT-Edge-LLM/0.11.1/user_guide/getting_started/support-matrix.html"
_CUDA_13 = "https://github.com/NVIDIA/TensorRT/releases/tag/v10.13.2"
_THOR = "https://github.com/rbonghi/jetson_stats/issues/711"
_NO_UNIFIED = "https://docs.nvidia.com/dgx/dgx-spark/known-issues.html"
_MODAL = "https://www.mintlify.com/modal-labs/modal-client/api/python/gpu"
_BOARDS = "https://huggingface.co/hardware"
_ORIN_NANO = "https://www.scribd.com/document/673174036/Orin-nano-datasheet"
_JETSON_RELEASES = (
    "TensorRT 11.0 to 11.4.0 do not support JetPack; 11.4.1 does from JetPack 7.2.2 on, through its SBSA package"
)
_WITHOUT_11 = (("11.0", "11.4.1"),)


def get_target(name: str) -> Target:
    """The row called ``name``.

    Raises:
        FasterViTError: there is none.
    """
    if name not in TARGETS:
        raise FasterViTError(f"unknown target '{name}'; choose one of {', '.join(TARGETS)}, or local for this machine")
    return TARGETS[name]


_ORIN = ("Orin", "Orin (nvgpu)", "NVIDIA Orin*", "*Jetson*Orin*")
_ORIN_NAMES = Fact(
    "CUDA calls the GPU Orin, nvidia-smi of JetPack 6 Orin (nvgpu)", "https://github.com/anduril/jetpack-nixos/pull/371"
)
_LAST_L4T = Fact("not confirmed: Jetson Linux 40, when there is one, is taken for another JetPack", "rule: table.py")
_ROWS = (
    datacenter("a100", "A100", ("NVIDIA A100*", "A100*", "GRID A100*"), "8.0", 40, _MODAL, "1:32:128"),
    datacenter("a10", "A10", ("NVIDIA A10", "NVIDIA A10[GM]", "NVIDIA A10[- ]*"), "8.6", 24, _MODAL, "1:16:64"),
    datacenter("a30", "A30", ("NVIDIA A30", "NVIDIA A30[X -]*"), "8.0", 24, f"{_BOARDS}/a30", "1:16:64"),
    datacenter("l4", "L4", ("NVIDIA L4", "NVIDIA L4[ -]*"), "8.9", 24, _MODAL, "1:16:64"),
    datacenter(
        "l40s",
        "L40 and L40S",
        ("NVIDIA L40S*", "NVIDIA L40", "NVIDIA L40[ -]*"),
        "8.9",
        48,
        f"{_BOARDS}/l40s",
        "1:32:128",
    ),
    datacenter("h100", "H100", ("NVIDIA H100*", "NVIDIA H800*"), "9.0", 80, f"{_BOARDS}/h100", "1:32:128"),
    datacenter(
        "h200", "H200", ("NVIDIA H200*",), "9.0", 141, "https://gpu-ark.ru/en/cuda-compute-capability", "1:32:128"
    ),
    datacenter(
        "b200",
        "B200",
        ("NVIDIA B200*",),
        "10.0",
        180,
        "https://github.com/huggingface/huggingface.js/pull/1539",
        "1:32:128",
        Fact(
            "TensorRT 10.8 has early access to it; which release ended that is not confirmed, 10.9 is taken", _BLACKWELL
        ),
        since="10.9",
    ),
    rtx("rtx-30", "RTX 30 series and RTX A", ("NVIDIA GeForce RTX 30*", "NVIDIA RTX A[0-9]*"), "8.6"),
    rtx("rtx-40", "RTX 40 series and RTX Ada", ("NVIDIA GeForce RTX 40*", "NVIDIA RTX * Ada*"), "8.9"),
    rtx("rtx-50", "RTX 50 series and RTX PRO", ("NVIDIA GeForce RTX 50*", "NVIDIA RTX PRO * Blackwell*"), "12.0"),
    Target(
        name="dgx-spark",
        title="DGX Spark (GB10)",
        gpus=("NVIDIA GB10*",),
        capability="12.1",
        platforms=("linux-aarch64",),
        runtime="tensorrt",
        versions=VersionRange("10.13.2", "12"),
        precisions=(*FLOATS, "int8", "fp8"),
        plugins=True,
        flat=False,
        batch="1:8:32",
        workspace_mib=workspace_mib(128),
        memory="unified",
        memory_gib=128,
        jetpack=(),
        l4t=None,
        facts=(
            Fact("compute capability 12.1", CAPABILITIES),
            Fact("TensorRT comes with its system and builds on the device, with CUDA 13.0", _SPARK),
            Fact("TensorRT 10.13.2 is the first for CUDA 13; that no older one serves it is not confirmed", _CUDA_13),
            Fact(
                "not TensorRT-RTX: 1.7.1 is published for aarch64, too, but that it loads engines compiled on x86-64 "
                "is not confirmed",
                "https://pypi.org/project/tensorrt-rtx-cu13-libs/1.7.1.116/",
            ),
            Fact("CPU and GPU share the memory; the driver does not say how much is used", _NO_UNIFIED),
            sources.FP8,
            sources.BF16,
            sources.FUNCTIONS,
            sources.WORKSPACE,
            Fact("batch: between a workstation's and a Jetson's; not measured", "rule: table.py"),
        ),
    ),
    jetson(
        "jetson-orin-jp6",
        "Jetson Orin, JetPack 6",
        _ORIN,
        "8.7",
        4,
        VersionRange("10.3", "10.8"),
        "JetPack 6.1 and later 6.x",
        VersionRange("36.4", "37"),
        Fact("JetPack 6.1 and 6.2 have TensorRT 10.3 with CUDA 12.6", _JP6_TENSORRT),
        Fact("10.7 is the last TensorRT for JetPack 6", "https://github.com/NVIDIA/TensorRT/issues/4347"),
        Fact(
            "flat graph: TensorRT 10.3 to 10.14 do not put plugins before the functions of a graph",
            "https://github.com/NVIDIA/TensorRT/blob/main/CHANGELOG.md",
        ),
        Fact("the smallest Orin Nano has 4 GB", _ORIN_NANO),
        _ORIN_NAMES,
        flat=True,
    ),
    jetson(
        "jetson-orin-jp7",
        "Jetson Orin, JetPack 7.2 and later",
        _ORIN,
        "8.7",
        4,
        VersionRange("10.16", "12", _WITHOUT_11),
        "JetPack 7.2 and later",
        VersionRange("39.2", "40"),
        Fact("JetPack 7.2 (Jetson Linux 39.2) has TensorRT 10.16.2 with CUDA 13.2", _JP7_TENSORRT),
        Fact("TensorRT 10.13 for CUDA 13 has no kernels for compute capability 8.7, 10.16 has", _NO_SM87),
        Fact(f"{_JETSON_RELEASES}; of Orin boards it names AGX Orin only", _JETSON_11),
        _LAST_L4T,
        Fact("the smallest Orin Nano has 4 GB", _ORIN_NANO),
        _ORIN_NAMES,
    ),
    jetson(
        "jetson-thor",
        "Jetson Thor",
        ("NVIDIA Thor*", "Thor*", "*Jetson*Thor*"),
        "11.0",
        64,
        VersionRange("10.13", "12", _WITHOUT_11),
        "JetPack 7.0 and later",
        VersionRange("38.2", "40"),
        Fact("JetPack 7.0 and 7.1 have TensorRT 10.13 with CUDA 13.0, 7.2 has 10.16.2 with CUDA 13.2", _JP7_TENSORRT),
        Fact(_JETSON_RELEASES, _JETSON_11),
        Fact("Jetson Linux 38.2 calls the board Jetson AGX Thor and the chip tegra264", _THOR),
        _LAST_L4T,
        Fact(
            "64 GB on the smaller module, T4000: not confirmed", "https://developer.nvidia.com/embedded/jetson-modules"
        ),
        batch="1:4:16",
    ),
    Target(
        name="cpu",
        title="CPU",
        gpus=(),
        capability=None,
        platforms=("linux-x86_64", "linux-aarch64", "windows-x86_64", "darwin-aarch64"),
        runtime="onnxruntime",
        versions=VersionRange("1.22", "2"),
        precisions=("fp32", "fp16", "int8-cpu", "int8"),
        plugins=False,
        flat=False,  # ONNX Runtime inlines functions
        batch="1:1:8",
        workspace_mib=None,
        memory="host",
        memory_gib=None,
        jetpack=(),
        l4t=None,
        facts=(
            Fact("ONNX Runtime 1.22 is the oldest that is tested here", "rule: pyproject.toml"),
            Fact("int8-cpu is 2.4 to 2.8 times as fast as fp32", "measured: benchmarks/results/cpu-int8/rows.csv"),
            Fact(
                "int8 as it is written for TensorRT runs too, at 0.7 times the speed of fp32",
                "measured: benchmarks/results/cpu-int8/rows.csv",
            ),
            Fact(
                "fp16 is computed in fp32 between casts, slower than fp32 on x86-64",
                "measured: benchmarks/results/digits-ort-cpu/rows.csv",
            ),
            Fact("no bf16 and no fp8: the CPU provider lacks their kernels", "experiment: ONNX Runtime 1.31.1"),
            Fact("batch: one image at a time is what a CPU is asked for; up to 8 is measured", "rule: table.py"),
        ),
    ),
)

# In the order in which they are printed: datacenter, workstation, edge, none.
TARGETS: dict[str, Target] = {row.name: row for row in _ROWS}
