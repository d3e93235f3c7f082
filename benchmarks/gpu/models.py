"""Stage ``models``: whole models, images in and outputs of their task out, in fp16, judged by themselves in float32.

Peers run the model as trained, its position tables constants, in channels-last; ours is the deploy form. Classifiers
are judged by their logits, segmenters by those of every pixel, detectors by the scores of the positions that queries
are picked from: where two are nearly equal rounding decides, and another query yields another box, which only has to be
finite.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.cases import Case, ModelCase
from fastervit_trt.benchmarks.gpu.compare import BASELINE, Peer, RefusedError, Way, Work, judged, run_comparison
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.ways import COMPILED, DEFINED
from fastervit_trt.benchmarks.studies.plain import random_of
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.export.deploy import Fuse, bake_position_tables, deploy_form
from fastervit_trt.export.graph import INPUT, save_onnx
from fastervit_trt.export.onnx_graph import onnx_from_torch
from fastervit_trt.export.precision import get_float
from fastervit_trt.export.typed_model import TypedModel
from fastervit_trt.models.fastervit import Trunk
from fastervit_trt.models.tasks.heads import OUTPUTS

__all__ = ["PEERS", "export_for", "prepare", "run"]

_IMAGES_AT_ONCE = 32  # of the float32 reference
_JUDGED_BY = "judged_by"


class WithReason(nn.Module):
    """A detector or segmenter whose outputs are followed by what it is judged by."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model.raw(images)  # type: ignore[operator]
        return *self.model.decide(*raw), raw[-1]  # type: ignore[operator]


def prepare(case: Case, device: str) -> Work:
    """One batch of noise (activations push it out of the cache, so there is no second); a model with random weights."""
    assert isinstance(case, ModelCase)
    model = with_reason(random_of(case.spec))
    bake_position_tables(model)
    images = gpu_ways.random_tensor((case.batch, 3, *case.resolution), 1, device)
    return Work(
        case,
        device,
        [(images.contiguous(memory_format=torch.channels_last),)],
        partial(_in_pieces, copy.deepcopy(model), device, torch.float32),
        partial(_in_pieces, copy.deepcopy(model), device, torch.float16),
        images=case.batch,
        latency=True,
        context=model,
    )


def run(job: Job, report: Report) -> None:
    """Every case of the job by every peer."""
    gpu_ways.leave_out_checks()
    torch.backends.cudnn.benchmark = True  # for all peers that leave convolutions to cuDNN
    run_comparison(job, report, PEERS, prepare)


def with_reason(model: nn.Module) -> nn.Module:
    """``model`` with something after its outputs that it can be judged by; a classifier's logits are enough."""
    return model if isinstance(model, Trunk) else WithReason(model)


def export_for(model: nn.Module, case: ModelCase, folder: Path) -> Path:
    """The deploy form of ``model`` as a flat fp16 graph with a static batch."""
    deployed, _ = deploy_form(model, pad_heads_to=gpu_ways.PAD_HEADS_TO)
    batch = BatchRange(case.batch, case.batch, case.batch)
    typed = TypedModel(deployed, get_float("fp16"))
    names = OUTPUTS[case.task] if case.task == "classification" else (*OUTPUTS[case.task], _JUDGED_BY)
    graph = onnx_from_torch(typed, (3, *case.resolution), batch, names, inline=True)
    return save_onnx(graph, folder)[0]


def _in_pieces(model: nn.Module, device: str, dtype: torch.dtype, images: Tensor) -> Tensor:
    on_device = model.to(device, dtype)
    return torch.cat([judged(on_device(piece.to(dtype))) for piece in images.split(_IMAGES_AT_ONCE)])


def _on(work: Work, model: nn.Module, layout: torch.memory_format = torch.channels_last) -> nn.Module:
    """A copy in fp16: forms share tensors with the model that they were made from."""
    return copy.deepcopy(model).to(work.device).half().to(memory_format=layout)  # type: ignore[call-overload]


def _deployed(work: Work, fuse: Fuse = "window-attention") -> nn.Module:
    return _on(work, deploy_form(work.context, fuse=fuse, pad_heads_to=gpu_ways.PAD_HEADS_TO)[0])


def _ours(work: Work, fuse: Fuse = "window-attention") -> Way:
    gpu_ways.require_kernels(work.device)
    return Way(_deployed(work, fuse), work.sets)


def _ours_compiled(work: Work) -> Way:
    gpu_ways.require_kernels(work.device)
    return Way(gpu_ways.compiled(_deployed(work)), work.sets)


def _eager(work: Work, captured: bool) -> Way:
    return Way(_on(work, work.context), work.sets, captured=captured)


def _compile(work: Work) -> Way:
    return Way(gpu_ways.compiled(_on(work, work.context)), work.sets)


def _compile_planes(work: Work) -> Way:
    sets = [(images.contiguous(),) for (images,) in work.sets]
    return Way(gpu_ways.compiled(_on(work, work.context, torch.contiguous_format)), sets)


def _compile_deploy(work: Work) -> Way:
    return Way(gpu_ways.defined_in_pytorch(gpu_ways.compiled(_deployed(work))), work.sets)


def _compile_shipped(work: Work) -> Way:
    compiled: Callable[..., Any] = torch.compile(_on(work, work.context), mode="max-autotune", dynamic=False)

    def call(images: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(images)

    return Way(call, work.sets, lambda result: judged(result).clone(), captured=False)


def _onnxruntime(work: Work) -> Way:
    try:
        import onnxruntime
    except ImportError as error:
        raise RefusedError("ONNX Runtime is not installed") from error
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        raise RefusedError(f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider, only {', '.join(providers)}")
    assert isinstance(work.case, ModelCase)
    stream = torch.cuda.current_stream().cuda_stream  # the events' own
    with tempfile.TemporaryDirectory() as scratch:
        path = export_for(copy.deepcopy(work.context), work.case, Path(scratch))
        options = {"user_compute_stream": str(stream), "enable_cuda_graph": "0"}
        session = onnxruntime.InferenceSession(path, providers=[("CUDAExecutionProvider", options)])
    images = work.sets[0][0].float().contiguous()
    outputs = {output.name: torch.empty(output.shape, device=work.device) for output in session.get_outputs()}
    binding = session.io_binding()
    binding.bind_input(INPUT, *_place_of(images, work.device))
    for name, tensor in outputs.items():
        binding.bind_output(name, *_place_of(tensor, work.device))

    def call(_: Tensor) -> tuple[Tensor, ...]:
        session.run_with_iobinding(binding)
        return tuple(outputs.values())

    return Way(call, [(images,)], captured=False)


def _place_of(tensor: Tensor, device: str) -> tuple[Any, ...]:
    """Device, its number, type, shape and address, as ONNX Runtime binds memory."""
    kind = tensor.new_empty(0, device="cpu").numpy().dtype.type
    return device, 0, kind, tuple(tensor.shape), tensor.data_ptr()


PEERS = [
    Peer(BASELINE, "deploy form on this project's kernels, channels-last; captured", _ours),
    Peer("ours half", "the same, attention halves as one operator", partial(_ours, fuse="attention-half")),
    Peer("eager", "as trained, channels-last", partial(_eager, captured=False)),
    Peer("eager captured", "as trained, channels-last", partial(_eager, captured=True)),
    Peer("compile", f"as trained, channels-last; {COMPILED}", _compile, alone=True),
    Peer("ours compiled", f"deploy form on this project's kernels; {COMPILED}", _ours_compiled, alone=True),
    Peer("compile deploy", f"deploy form, {DEFINED}; {COMPILED}", _compile_deploy, alone=True),
    Peer("onnxruntime", "this project's flat export, CUDA provider", _onnxruntime, alone=True),
    Peer(
        "compile shipped",
        "as trained; torch.compile, max-autotune, its own CUDA graphs",
        _compile_shipped,
        alone=True,
        on_request=True,
    ),
    Peer("compile planes", f"as trained, planes; {COMPILED}", _compile_planes, alone=True, on_request=True),
]
