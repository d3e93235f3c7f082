"""Where the facts of the table come from: public pages, and the facts that several rows share."""

from __future__ import annotations

from fastervit_trt.deploy.targets.target import Fact

__all__ = [
    "BATCH_OF_PAPER",
    "BF16",
    "CAPABILITIES",
    "DLA",
    "FP8",
    "FUNCTIONS",
    "NO_FP8",
    "OLDEST_BUILT",
    "ON_THE_DEVICE",
    "RTX_INT8",
    "RTX_NO_PLUGINS",
    "RTX_PORTABLE",
    "RTX_VERSIONS",
    "SAME_CAPABILITY",
    "WORKSPACE",
]

_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt"
_RTX_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html"

CAPABILITIES = "https://developer.nvidia.com/cuda-gpus"
FORMATS = "https://nvidia.github.io/TransformerEngine/support_matrix.html"

BF16 = Fact("bf16 from compute capability 8.0 on", FORMATS)
FP8 = Fact("fp8 (E4M3) from compute capability 8.9 on", FORMATS)
NO_FP8 = Fact("no fp8: it begins with compute capability 8.9", FORMATS)
OLDEST_BUILT = Fact(
    "TensorRT supports the GPU since before 10.3, the oldest release that engines are built with here; releases from "
    "12 on are not known yet",
    f"{_DOCS}/archives/tensorrt-1010/support-matrix/index.html",
)
ON_THE_DEVICE = Fact(
    "TensorRT builds an engine on the GPU that runs it; one built elsewhere crosses neither operating system nor "
    "processor, and other GPUs only by a hardware-compatibility level",
    f"{_DOCS}/latest/getting-started/support-matrix-10/10.14.1.html",
)
SAME_CAPABILITY = Fact(
    "--hardware-compatibility ampere+ serves compute capability 8.0 and later, same-capability (TensorRT 10.9) this "
    "one; --version-compatible engines load in the same and the next major version, forwards only",
    f"{_DOCS}/11.1.0/inference-library/engine-compatibility.html",
)
FUNCTIONS = Fact(
    "every release takes fused operators as ONNX functions, and plugins in their place, from TensorRT 10.15 on; "
    "older ones are given a flat copy by the builder",
    "https://github.com/NVIDIA/TensorRT/blob/main/CHANGELOG.md",
)
DLA = Fact(
    "the DLA is not used: it has no fused attention; only Orin has one, under TensorRT 10.7 and older or 11.4.1",
    f"{_DOCS}/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
)
BATCH_OF_PAPER = Fact(
    "the batch is up to the 128 at which the paper measures throughput on an A100", "https://arxiv.org/abs/2306.06189"
)
WORKSPACE = Fact(
    "workspace: an eighth of the memory of the smallest board, 4096 MiB at most, where the builder's retries begin; "
    "not measured on a GPU",
    "rule: engines/options.py",
)
RTX_VERSIONS = Fact(
    "TensorRT-RTX 1.4 is the oldest that engines are built with here; an engine loads in the release that built it "
    "only, on x86-64 Linux and Windows",
    _RTX_DOCS,
)
RTX_NO_PLUGINS = Fact(
    "no plugins: TensorRT-RTX has no registry to use them from; a plugin node ends the process",
    "experiment: TensorRT-RTX 1.7.1.116; https://github.com/NVIDIA/TensorRT-RTX/issues/4",
)
RTX_PORTABLE = Fact(
    "engines are compiled ahead of time, without a GPU, and cross from Linux to Windows; kernels are specialised on "
    "the device",
    "experiment: TensorRT-RTX 1.7.1.116; https://github.com/NVIDIA/TensorRT-RTX",
)
RTX_INT8 = Fact(
    "the support matrix lists int8 for weights alone; plans of 1.7.1 run int8 products from compute capability 8.0 on, "
    "and every build is checked for it",
    f"experiment: TensorRT-RTX 1.7.1.116; {_RTX_DOCS}",
)
