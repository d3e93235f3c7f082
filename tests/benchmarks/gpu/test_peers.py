"""Every peer of every stage computes what it is compared by, on the CPU, with our kernels played by the reference."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu import attention_peers as gpu_attention_peers
from fastervit_trt.benchmarks.gpu import block as gpu_block
from fastervit_trt.benchmarks.gpu import core as gpu_core
from fastervit_trt.benchmarks.gpu import half as gpu_half
from fastervit_trt.benchmarks.gpu import models as gpu_models
from fastervit_trt.benchmarks.gpu import partition as gpu_partition
from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.cases import AttentionCase, Case, ModelCase
from fastervit_trt.benchmarks.gpu.compare import Peer, RefusedError, Way
from fastervit_trt.benchmarks.gpu.compare import judged as judged_by
from fastervit_trt.benchmarks.gpu.driver import CALLS, open_call
from fastervit_trt.benchmarks.gpu.judge import Judge, Judgement, rounding
from fastervit_trt.benchmarks.gpu.worklist import cases_of
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.tasks.heads import OUTPUTS
from fastervit_trt.plugins import operators, reference

MODEL = "faster_vit_digits_m"  # carriers, four windows, two heads
STAGES = {"core": gpu_core, "half": gpu_half, "partition": gpu_partition, "block": gpu_block, "models": gpu_models}
ON_A_GPU = {"sdpa efficient", "sdpa cudnn", "triton", "onnxruntime"}  # refuse the CPU
COMPILED = {"compile shipped"}  # by itself, not by what the tests replace
UNDER_HEADS = ("faster_vit_scenes_detector", "faster_vit_scenes_segmenter")


class ReferenceKernels:
    """What :class:`Kernels` does, by the definitions."""

    def window_attention(
        self, qkv: Tensor, bias: Tensor, tactic: str = "automatic", qkv_scale: float = 1, context_scale: float = 1
    ) -> Tensor:
        if qkv.dtype != torch.int8:
            return reference.window_attention(qkv, bias)
        context = reference.window_attention(qkv.double() * qkv_scale, bias.double())
        return (context / context_scale).round().clamp(-128, 127).to(torch.int8)

    def carrier_attention(self, tok: Tensor, table: Tensor | None, *arguments: Any) -> Tensor:
        *weights, carriers, eps, tactic = arguments
        assert tactic in ("automatic", "fused", "staged")
        if table is None:
            assert carriers == tok.shape[1]
            return reference.fused_window_attention(tok.flatten(0, 1), *weights, eps)
        return reference.carrier_attention(tok, table, *weights, carriers, eps)

    def window_partition(self, x: Tensor, carriers: Tensor | None, table: Tensor, window: int) -> Tensor:
        return reference.window_partition(x, carriers, table, window)

    def window_reverse(
        self, tok: Tensor, gamma: Tensor | None, carriers: int, *sizes: int, channels_last: bool
    ) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return reference.window_reverse(tok, gamma, carriers, *sizes).contiguous(memory_format=layout)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu_ways, "kernels", ReferenceKernels)
    monkeypatch.setattr(gpu_ways, "compiled", lambda function: function)
    with torch.no_grad():
        yield


def judged(case: Case, prepare: Callable[[Case, str], Any], peer: Peer) -> tuple[Judgement, Way]:
    work = prepare(case, "cpu")
    way = peer.open(work)
    judge = Judge(work.sets, work.exact, work.same)
    return judge(way.call, way.sets, way.view, way.exact, way.rounding), way


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("stage", "name"), [(stage, peer.name) for stage, module in STAGES.items() for peer in module.PEERS]
)
def test_peer(stage: str, name: str) -> None:
    module = STAGES[stage]
    peer = next(peer for peer in module.PEERS if peer.name == name)
    if name in COMPILED:
        pytest.skip("compiles")
    for case in cases_of(stage, [MODEL], [2]):
        if name in ON_A_GPU:
            with pytest.raises((RefusedError, RuntimeError)):  # the latter by Triton, where it is installed
                peer.open(module.prepare(case, "cpu"))
            continue
        judgement, way = judged(case, module.prepare, peer)
        assert judgement.right, f"{case.name}: {judgement}"
        assert judgement.error < 0.1 * torch.finfo(torch.float16).eps ** 0.5 or way.dtype == "int8"


@pytest.mark.parametrize("model", UNDER_HEADS)
def test_peers_compute_detectors_and_segmenters(model: str) -> None:
    (case,) = cases_of("models", [model], [2])
    assert case.name == f"{model} {ModelSpec(model).chosen_task}"
    work = gpu_models.prepare(case, "cpu")
    judge = Judge(work.sets, work.exact, work.same)
    for peer in gpu_models.PEERS:
        if peer.name not in ON_A_GPU | COMPILED:
            way = peer.open(work)
            assert judge(way.call, way.sets, way.view).right, peer.name
    assert not judge(lambda *x: work.same(*x).roll(1, 0), work.sets, judged_by).right  # the image shows in it
    assert not judge(lambda *x: work.same(*x) * 1.01, work.sets, judged_by).right


def test_what_is_exported_of_a_model_under_a_head_is_its_outputs_and_what_it_is_judged_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = cases_of("models", ["faster_vit_scenes_detector"], [2])
    assert isinstance(case, ModelCase)
    asked: list[Any] = []
    monkeypatch.setattr(gpu_models, "onnx_from_torch", lambda *arguments, **_: asked.extend(arguments))
    monkeypatch.setattr(gpu_models, "save_onnx", lambda graph, folder: [folder])  # exporting takes half a minute
    work = gpu_models.prepare(case, "cpu")
    gpu_models.export_for(work.context, case, tmp_path)
    typed, shape, batch, names = asked
    assert (shape, batch.optimum, batch.dynamic, names[:-1]) == ((3, 128, 128), 2, False, OUTPUTS["detection"])
    found = dict(zip(names, typed(work.sets[0][0].float()), strict=True))
    assert {name: tuple(found[name].shape[1:]) for name in names[:-1]} == {
        "boxes": (30, 4),
        "scores": (30,),
        "labels": (30,),
    }
    judge = Judge(work.sets, work.exact, work.same)
    assert judge(lambda _: found[names[-1]], work.sets, judged_by, None, rounding(torch.float16)).right


def test_carriers_are_propagated_in_both_layouts() -> None:
    propagating = [case for case in cases_of("partition", ["faster_vit_3_224"], [1]) if "stage 3 reverse" in case.name]
    assert len(propagating) == 2
    for case in propagating:
        for peer in gpu_partition.PEERS:
            assert judged(case, gpu_partition.prepare, peer)[0].right


@pytest.mark.parametrize("name", ["ours", "ours int8"])
def test_odd_heads_are_padded_for_our_kernels(name: str) -> None:
    (case,) = (c for c in cases_of("core", ["faster_vit_4_224"], [1]) if c.name.endswith("stage 4 window"))
    peer = next(peer for peer in gpu_core.PEERS if peer.name == name)
    judgement, way = judged(case, gpu_core.prepare, peer)
    assert judgement.right, judgement
    assert way.sets[0][0].shape == (49, 3 * 32 * 56)


def test_a_wrong_peer_is_found_in_every_stage() -> None:
    """The judgement of each stage has teeth: results of another draw, or slightly off, are wrong."""
    for stage, module in STAGES.items():
        case = cases_of(stage, [MODEL], [2])[0]
        work = module.prepare(case, "cpu")  # type: ignore[attr-defined]
        judge = Judge(work.sets, work.exact, work.same)
        result = work.same(*work.sets[0])
        view: Callable[[Tensor], Tensor] = lambda result: result  # noqa: E731
        assert not judge(lambda *_, r=result: r.roll(1, 0), work.sets, view).right, stage
        assert not judge(lambda *x, w=work: w.same(*x) * 1.01, work.sets, view).right, stage


def test_batches_at_once_do_not_change_the_exact_result(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("core", "half", "block"):
        for case in cases_of(stage, [MODEL], [3]):
            work = STAGES[stage].prepare(case, "cpu")  # type: ignore[attr-defined]
            whole = work.exact(*work.sets[0])
            with monkeypatch.context() as patch:
                patch.setattr(gpu_ways, "_CHUNKS_OF", 1)
                assert torch.equal(work.exact(*work.sets[0]), whole)


def test_draws_differ() -> None:
    for stage in ("core", "half", "partition", "block"):
        work = STAGES[stage].prepare(cases_of(stage, [MODEL], [1])[0], "cpu")  # type: ignore[attr-defined]
        assert not torch.equal(work.sets[0][0], work.sets[-1][0])
        assert all(x.dtype == torch.float16 for x in work.sets[0])


def test_scores_make_weights_neither_uniform_nor_single() -> None:
    case = cases_of("core", ["faster_vit_0_224"], [2])[0]
    assert isinstance(case, AttentionCase)
    q, k, _ = gpu_core.attention_operands(case, 0, "cpu").float().unflatten(0, (-1, case.rows)).chunk(3, dim=2)
    scores = q[..., : case.head_dim] @ k[..., : case.head_dim].mT
    assert scores.std().item() == pytest.approx(1.5, rel=0.1)


def test_models_are_judged_by_float32_and_left_alone() -> None:
    case = ModelCase(MODEL, 2, (224, 224))
    work = gpu_models.prepare(case, "cpu")
    before = {name: tensor.clone() for name, tensor in work.context.state_dict().items()}
    for peer in gpu_models.PEERS:
        if peer.name.startswith(("ours", "eager")):
            peer.open(work)
    assert {tensor.dtype for tensor in before.values() if tensor.is_floating_point()} == {torch.float32}
    after = work.context.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert work.exact(*work.sets[0]).dtype == torch.float32


def test_without_kernels_ours_fails_and_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise FasterViTError("Plugin library not found")

    monkeypatch.setattr(gpu_ways, "kernels", missing)
    for stage, part in (("core", "ours"), ("half", "ours in compiled layers"), ("partition", "ours")):
        module = STAGES[stage]
        work = module.prepare(cases_of(stage, [MODEL], [1])[0], "cpu")  # type: ignore[attr-defined]
        peer = next(peer for peer in module.PEERS if peer.name == part)  # type: ignore[attr-defined]
        with pytest.raises(FasterViTError, match="not found"):
            peer.open(work)
    with pytest.raises(FasterViTError, match="not found"):
        gpu_ways.require_kernels("cuda")


def test_definitions_take_the_place_of_operators_for_a_call_only() -> None:
    registered = torch.ops.fastervit.window_attention
    seen = gpu_ways.defined_in_pytorch(lambda: torch.ops.fastervit.window_attention)()
    assert seen is reference.window_attention
    assert torch.ops.fastervit.window_attention is registered
    with pytest.raises(ZeroDivisionError):
        gpu_ways.defined_in_pytorch(lambda: 1 / 0)()
    for operator in operators.OPERATORS:
        assert getattr(torch.ops.fastervit, operator.torch_name) is not operator.reference


def test_a_compiler_sees_definitions() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    work = gpu_block.prepare(cases_of("block", [MODEL], [1])[0], "cpu")
    block = work.context.deployed("window-attention")
    expected = block(*work.sets[0])
    result = gpu_ways.defined_in_pytorch(torch.compile(block, backend=backend))(*work.sets[0])
    assert torch.allclose(result.float(), expected.float(), atol=1e-2)
    assert seen
    assert not [name for name in seen if "fastervit" in name]
    seen.clear()
    torch.compiler.reset()
    torch.compile(block, backend=backend)(*work.sets[0])
    assert [name for name in seen if "fastervit" in name]


def test_the_bias_of_sdpa_has_aligned_rows() -> None:
    bias = torch.randn(1, 2, 53, 53)
    aligned = gpu_attention_peers._aligned_rows(bias)
    assert torch.equal(aligned, bias)
    assert aligned.stride(2) == 56


TRITON = """
    import torch
    from fastervit_trt.benchmarks.gpu.triton_attention import launches, triton_window_attention
    from fastervit_trt.plugins import reference

    sizes = [(53, 2, 32, 2), (49, 2, 49, 1), (16, 1, 40, 3), (1, 1, 8, 2), (17, 3, 24, 1)]
    for tokens, heads, head_dim, windows in sizes:
        qkv = torch.randn(windows * tokens, 3 * heads * head_dim).half()
        bias = torch.randn(1, heads, tokens, tokens).half()
        exact = reference.window_attention(qkv.double(), bias.double())
        allowed = 2 * (reference.window_attention(qkv, bias) - exact).norm() / exact.norm() + 3e-4
        for launch in launches(tokens, head_dim):
            error = (triton_window_attention(qkv, bias, launch) - exact).norm() / exact.norm()
            assert error <= allowed, (tokens, heads, head_dim, launch, error, allowed)
            print(launch)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernel_in_its_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # decided when it is imported
    command = [sys.executable, "-c", textwrap.dedent(TRITON)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 33  # launches


@pytest.mark.parametrize("name", [name for name in CALLS if name != "attention-triton"])
def test_calls_of_the_driver_exist(name: str) -> None:
    case, way = open_call(name, 1, "cpu")
    assert case.name.startswith("faster_vit_0_224 stage 3")
    assert way.call(*way.sets[0]).numel() > 0


def test_unknown_calls_are_refused() -> None:
    with pytest.raises(FasterViTError, match="no call 'x'; there are attention-resident"):
        open_call("x", 1, "cpu")
