"""Stage ``block``: one HAT block, tokens in and tokens out, as trained and in the deploy form.

The block is the first of its stage. As trained it takes tokens and carriers apart and adds its position table (a
constant here, as published code can have it); in the deploy form both are packed, the table is in already, and that of
the next block is added at the end. Results are compared in the packed form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastervit_trt.benchmarks.gpu import ways as gpu_ways
from fastervit_trt.benchmarks.gpu.cases import BlockCase, Case
from fastervit_trt.benchmarks.gpu.compare import BASELINE, Peer, Way, Work, run_comparison
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.ways import COMPILED, DEFINED
from fastervit_trt.benchmarks.studies.plain import random_model
from fastervit_trt.export.deploy import Fuse, bake_position_tables, deploy_form
from fastervit_trt.export.packed import window_table
from fastervit_trt.models.hat import HATBlock

__all__ = ["PEERS", "prepare", "run"]


@dataclass(frozen=True)
class _Block:
    """The first block of a stage: its forms, and tokens as each of them takes and gives them."""

    case: BlockCase
    device: str
    model: nn.Module  # as trained, float32 on the CPU, position tables baked

    def table(self, i: int) -> Tensor:
        """Of block ``i``, zeros for carriers."""
        block = self._blocks(self.model)[i]
        return window_table(block.pos_embed(), block.geometry)

    def trained(self, dtype: torch.dtype) -> HATBlock:
        """Tokens (Wn, T, C) and carriers (B, G, C) to the same."""
        block = copy.deepcopy(self._blocks(self.model)[0])
        assert isinstance(block, HATBlock)
        return block.to(self.device, dtype)

    def deployed(self, fuse: Fuse) -> nn.Module:
        """Packed tokens (Wn, N, C) to the same, in fp16."""
        form, _ = deploy_form(self.model, fuse=fuse, pad_heads_to=gpu_ways.PAD_HEADS_TO)
        return copy.deepcopy(self._blocks(form)[0]).to(self.device).half()

    def apart(self, tok_WnNC: Tensor) -> tuple[Tensor, Tensor]:
        """Packed tokens as the trained block takes them."""
        tok_WnNC = tok_WnNC - self.table(0).to(tok_WnNC)
        per_window = self.case.rows - self.case.tokens
        ct_BGC = tok_WnNC[:, :per_window].reshape(-1, self.case.carriers, self.case.channels)
        return tok_WnNC[:, per_window:].contiguous(), ct_BGC.contiguous()

    def packed(self, result: tuple[Tensor, Tensor]) -> Tensor:
        """What the trained block gives as the deployed one does."""
        tok_WnTC, ct_BGC = result
        ct = ct_BGC.reshape(tok_WnTC.shape[0], -1, self.case.channels)
        return torch.cat([ct, tok_WnTC], dim=1) + self.table(1).to(tok_WnTC)

    def whole(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The trained block on packed tokens."""
        block = self.trained(dtype)
        return lambda tok_WnNC: self.packed(block(*self.apart(tok_WnNC.to(dtype))))

    def _blocks(self, model: nn.Module) -> Any:
        return model.levels[self.case.stage].blocks  # type: ignore[index, union-attr]


def prepare(case: Case, device: str) -> Work:
    """Packed tokens in several draws; a block with random weights."""
    assert isinstance(case, BlockCase)
    model = random_model(case.model)
    bake_position_tables(model)
    block = _Block(case, device, model)
    windows_of_image = case.images_rows // case.rows
    sets = [
        (gpu_ways.random_tensor((case.batch * windows_of_image, case.rows, case.channels), seed, device),)
        for seed in range(gpu_ways.number_of_sets(case.bytes, device))
    ]
    exact = partial(gpu_ways.chunked, block.whole(torch.float64), multiple=windows_of_image)
    return Work(case, device, sets, exact, block.whole(torch.float16), images=case.batch, context=block)


def run(job: Job, report: Report) -> None:
    """Every case of the job by every peer."""
    run_comparison(job, report, PEERS, prepare)


def _deployed(work: Work, fuse: Fuse = "window-attention") -> Way:
    gpu_ways.require_kernels(work.device)
    return Way(work.context.deployed(fuse), work.sets)


def _deployed_compiled(work: Work) -> Way:
    gpu_ways.require_kernels(work.device)
    return Way(gpu_ways.compiled(work.context.deployed("window-attention")), work.sets)


def _deployed_defined(work: Work) -> Way:
    return Way(gpu_ways.defined_in_pytorch(gpu_ways.compiled(work.context.deployed("window-attention"))), work.sets)


def _trained(work: Work) -> Way:
    block = work.context
    return Way(block.trained(torch.float16), [block.apart(*tokens) for tokens in work.sets], block.packed)


def _trained_compiled(work: Work) -> Way:
    way = _trained(work)
    return Way(gpu_ways.compiled(way.call), way.sets, way.view)


PEERS = [
    Peer(BASELINE, "deploy form on this project's kernels", _deployed),
    Peer("ours half", "the same, attention halves as one operator", partial(_deployed, fuse="attention-half")),
    Peer("eager", "as trained", _trained),
    Peer("ours compiled", f"deploy form on this project's kernels; {COMPILED}", _deployed_compiled, alone=True),
    Peer("compile", f"as trained; {COMPILED}", _trained_compiled, alone=True),
    Peer("compile deploy", f"deploy form, {DEFINED}; {COMPILED}", _deployed_defined, alone=True),
]
