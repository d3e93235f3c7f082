"""The deploy form of transformers' heads: what TensorRT lacks or runs badly in them, replaced by the same algebra.

=================================  ==============================  ====================================================
in the head                        becomes                         why
=================================  ==============================  ====================================================
convolution → BatchNorm            one convolution                 as in the backbone
RepVGG: 3x3 + 1x1 of one map       one 3x3 convolution             one pass over the map instead of two and a sum
adaptive pooling                   a product with a constant       ONNX has no such operator: exporters write slices
RT-DETRv2's deformable attention   :class:`DeformableAttention`    shapes that are computed and asserted at run time
                                                                   have no ONNX operator
q and k of RT-DETR's attention     one product                     they are made of the same; as fused attention it
                                                                   exports into shapes computed at run time
what lies between RT-DETR's parts  :class:`StaticDetector`         anchors are constants, boxes and classes are made
                                                                   where they are used, the batch may vary
=================================  ==============================  ====================================================

What stays, because TensorRT has it: GridSample (looking up points of a map), TopK and GatherElements (picking queries),
Resize (enlarging maps).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastervit_trt.models.geometry import stage_resolutions
from fastervit_trt.models.tasks.deciding import decide_boxes, decide_masks
from fastervit_trt.models.tasks.heads import Task
from fastervit_trt.models.tasks.model import Detector, Segmenter

__all__ = [
    "HEAD_REWRITES",
    "DeformableAttention",
    "PooledBins",
    "QuerySelection",
    "SelfAttention",
    "StaticDetector",
    "StaticSegmenter",
    "fold_batchnorm_into_head_convolutions",
    "make_deformable_attention_static",
    "make_pooling_static",
    "make_task_models_static",
    "merge_queries_and_keys",
    "merge_repvgg_branches",
]

_FAR = 1e4
_EPS = 1e-5  # where transformers' inverse sigmoid ends
_STEEPEST = math.log((1 - _EPS) / _EPS)

_CONV_NAMES = ("conv", "0")  # as transformers calls a convolution beside its BatchNorm
_NORM_NAMES = ("batch_norm", "norm", "1")


class PooledBins(nn.Module):
    """Adaptive average pooling of maps of one size: (B, C, H, W) → (B, C, s, s), as (B, C, H·W) x (H·W, s²)."""

    bins: torch.Tensor

    def __init__(self, size: tuple[int, int], side: int) -> None:
        super().__init__()
        self.side = side
        positions = torch.eye(size[0] * size[1]).reshape(-1, *size)
        self.register_buffer("bins", F.adaptive_avg_pool2d(positions, side).flatten(1))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return (x_BCHW.flatten(2) @ self.bins).unflatten(2, (self.side, self.side))


class StaticSegmenter(nn.Module):
    """A :class:`Segmenter` for images of one size."""

    task: Task = "segmentation"
    raw_names = ("logits",)
    decode_head: Any

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.size = segmenter.config.resolution
        self.backbone = segmenter.backbone
        self.decode_head = segmenter.network.decode_head

    def raw(self, images: torch.Tensor, picked: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """As :meth:`Segmenter.raw`; nothing is picked on the way."""
        return (self.decode_head(list(self.backbone(images))),)

    def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`Segmenter.decide`."""
        return (decide_masks(raw[0], self.size),)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.decide(*self.raw(images))


class QuerySelection(nn.Module):
    """The positions (B, Q) with the largest of the scores (B, N), from the largest on."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.float().topk(self.queries, dim=1).indices  # ONNX orders bfloat16 from opset 24 on


class StaticDetector(nn.Module):
    """A :class:`Detector` for images of one size: the parts of transformers' model, what lies between them constant.

    Picking queries is a jump: where two scores are nearly equal, rounding decides, and another query yields another
    box. So ``raw`` takes the choice from whoever wants to compare what follows from it.
    """

    task: Task = "detection"
    raw_names = ("logits", "query_boxes", "position_scores")
    anchors: torch.Tensor
    inside: torch.Tensor
    encoder_input_proj: Any
    encoder: Any
    decoder_input_proj: Any
    decoder: Any

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        model = detector.network.model
        self.backbone = detector.backbone
        self.encoder_input_proj, self.encoder = model.encoder_input_proj, model.encoder
        self.decoder_input_proj, self.decoder = model.decoder_input_proj, model.decoder
        self.enc_output, self.enc_score_head = model.enc_output, model.enc_score_head
        self.enc_bbox_head = model.enc_bbox_head
        self.query_selection = QuerySelection(detector.head.queries)
        maps = stage_resolutions(detector.config.resolution)
        anchors, inside = model.generate_anchors(tuple(maps[i] for i in self.backbone.out_indices))
        # Anchors outside are the largest number there is, so that their sigmoid is 1; this is large enough for it, and
        # stays a number in every type.
        self.register_buffer("anchors", anchors[0].clamp(max=_FAR))
        self.register_buffer("inside", inside.to(anchors.dtype))

    def raw(self, images: torch.Tensor, picked: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """As :meth:`Detector.raw`; with the queries at the positions ``picked`` (B, Q), where given."""
        maps = [project(x) for project, x in zip(self.encoder_input_proj, self.backbone(images), strict=True)]
        encoded = self.encoder(maps).last_hidden_state
        sources = [project(x) for project, x in zip(self.decoder_input_proj, encoded, strict=True)]
        memory = torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1)
        candidates = self.enc_output(memory * self.inside)
        scores = self.enc_score_head(candidates).amax(-1)
        picked = self.query_selection(scores) if picked is None else picked
        index = picked[:, :, None]
        chosen = candidates.gather(1, index.expand(-1, -1, candidates.shape[2]))
        # The boxes of those alone: transformers' model makes them of all positions first.
        logit = self.enc_bbox_head(chosen) + F.embedding(picked, self.anchors)  # of the box, whose sides lie in [0, 1]
        queries, box = chosen, logit.sigmoid()
        for layer, correct in zip(self.decoder.layers, self.decoder.bbox_embed, strict=True):
            queries = layer(
                queries,
                object_queries_position_embeddings=self.decoder.query_pos_head(box),
                encoder_hidden_states=memory,
                reference_points=box[:, :, None],
            )
            # There, sigmoid(correction + inverse sigmoid(box)); the inverse of what is at hand need not be computed, it
            # only ends where theirs does.
            logit = correct(queries) + logit.clamp(-_STEEPEST, _STEEPEST)
            box = logit.sigmoid()
        classes = self.decoder.class_embed[-1](queries)
        return classes, box, scores

    def picked(self, *raw: torch.Tensor) -> torch.Tensor:
        """As :meth:`Detector.picked`."""
        return self.query_selection(raw[2])

    def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`Detector.decide`."""
        return decide_boxes(raw[0], raw[1])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.decide(*self.raw(images))


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (arXiv 2010.04159, equation 2) of RT-DETRv2 for maps of known sizes.

    Every query looks at a few points around its box on every map; the scales of the offsets are in the weights.
    Drop-in for transformers' module: (B, Q, D) queries, (B, positions, D) maps in a row, (B, Q, 1, 4) boxes as centre
    and size → (B, Q, D), and the weights of the points.
    """

    def __init__(self, original: Any, sizes: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        points: list[int] = original.n_points_list
        self.sizes, self.heads, self.points = sizes, int(original.n_heads), tuple(points)
        # Offsets are in shares of the box, per point; a grid for sampling runs from -1 to 1, so twice that.
        scale = 2 * original.offset_scale * original.n_points_scale
        rows = scale.repeat(self.heads).repeat_interleave(2)
        offsets: nn.Linear = original.sampling_offsets
        self.sampling_offsets = nn.Linear(offsets.in_features, offsets.out_features, device="meta")
        self.sampling_offsets.weight = nn.Parameter(offsets.weight * rows[:, None])
        self.sampling_offsets.bias = nn.Parameter(offsets.bias * rows)
        self.attention_weights, self.value_proj, self.output_proj = (
            original.attention_weights,
            original.value_proj,
            original.output_proj,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert encoder_hidden_states is not None and position_embeddings is not None and reference_points is not None
        queries = hidden_states + position_embeddings
        count, total = queries.shape[1], sum(self.points)
        offsets = self.sampling_offsets(queries).unflatten(2, (self.heads, total, 2))
        weights = self.attention_weights(queries).unflatten(2, (self.heads, total)).softmax(-1)
        boxes = reference_points[:, :, :, None]  # (B, Q, 1, 1, 4)
        grids = (2 * boxes[..., :2] - 1 + offsets * boxes[..., 2:]).transpose(1, 2).flatten(0, 1)  # (B·heads, Q, P, 2)
        values = self.value_proj(encoder_hidden_states).unflatten(2, (self.heads, -1))
        values = values.permute(0, 2, 3, 1).flatten(0, 1)  # (B·heads, D/heads, positions)
        lengths = [height * width for height, width in self.sizes]
        looked_up = [
            F.grid_sample(value.unflatten(2, size), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            for value, grid, size in zip(
                values.split(lengths, dim=2), grids.split(list(self.points), dim=2), self.sizes, strict=True
            )
        ]
        per_head = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B·heads, 1, Q, P)
        summed = (torch.cat(looked_up, dim=3) * per_head).sum(-1)  # (B·heads, D/heads, Q)
        together = summed.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2)
        return self.output_proj(together), weights.reshape(-1, count, self.heads, total)


class SelfAttention(nn.Module):
    """RT-DETR's self-attention: positions go into queries and keys, not into values.

    Queries and keys, which are made of the same, in one product; their scale is in the weights. Drop-in for
    transformers' module: (B, N, D) → (B, N, D), and no weights.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        q, k = original.q_proj, original.k_proj
        assert isinstance(q, nn.Linear) and isinstance(k, nn.Linear)
        self.heads = q.out_features // int(original.head_dim)
        scale = float(original.scaling)
        self.qk = nn.Linear(q.in_features, 2 * q.out_features, device="meta")
        self.qk.weight = nn.Parameter(torch.cat([q.weight * scale, k.weight]))
        self.qk.bias = nn.Parameter(torch.cat([q.bias * scale, k.bias]))
        self.v_proj, self.o_proj = original.v_proj, original.o_proj

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        with_positions = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        q, k = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.qk(with_positions).chunk(2, dim=2))
        v = self.v_proj(hidden_states).unflatten(2, (self.heads, -1)).transpose(1, 2)
        weights = (q @ k.transpose(2, 3)).softmax(dim=3)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), None


def fold_batchnorm_into_head_convolutions(model: nn.Module) -> int:
    """conv → BN becomes one convolution, in heads."""
    folded = 0
    for head in _heads(model):
        for parent in head.modules():
            children = dict(parent.named_children())
            for conv_name, norm_name in product(_CONV_NAMES, _NORM_NAMES):
                conv, norm = children.get(conv_name), children.get(norm_name)
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, norm_name, nn.Identity())
                    folded += 1
    return folded


def merge_repvgg_branches(model: nn.Module) -> int:
    """A 3x3 and a 1x1 convolution of the same map, added, become one (arXiv 2101.03697). Needs folded BatchNorms."""
    merged = 0
    for head in _heads(model):
        block: Any
        for block in head.modules():
            if type(block).__name__ != "RTDetrV2RepVggBlock" or isinstance(block.conv2, _Nothing):
                continue
            large, small = block.conv1.conv, block.conv2.conv
            assert isinstance(large, nn.Conv2d) and isinstance(small, nn.Conv2d)
            weight, bias = large.weight + F.pad(small.weight, (1, 1, 1, 1)), _bias(large) + _bias(small)
            conv = nn.Conv2d(large.in_channels, large.out_channels, 3, padding=1, device="meta")
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            block.conv1, block.conv2 = conv, _Nothing()
            merged += 1
    return merged


def make_pooling_static(model: nn.Module) -> int:
    """Adaptive pooling of UperNet's pyramid becomes a product with the constant matrix of its bins."""
    replaced = 0
    for segmenter in model.modules():
        if not isinstance(segmenter, Segmenter):
            continue
        size = stage_resolutions(segmenter.config.resolution)[segmenter.backbone.out_indices[-1]]
        for parent in segmenter.network.modules():
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    side = child.output_size
                    assert isinstance(side, int)
                    setattr(parent, name, PooledBins(size, side))
                    # transformers' block runs through a plain list that holds its modules, too
                    layers = getattr(parent, "layers", None)
                    if isinstance(layers, list):
                        parent.layers = [getattr(parent, str(i)) for i in range(len(layers))]
                    replaced += 1
    return replaced


def make_deformable_attention_static(model: nn.Module) -> int:
    """RT-DETRv2's deformable attention becomes :class:`DeformableAttention`."""
    replaced = 0
    for detector in model.modules():
        if not isinstance(detector, Detector):
            continue
        maps = stage_resolutions(detector.config.resolution)
        sizes = tuple(maps[stage] for stage in detector.backbone.out_indices)
        for parent in detector.network.modules():
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "RTDetrV2MultiscaleDeformableAttention":
                    setattr(parent, name, DeformableAttention(child, sizes))
                    replaced += 1
    return replaced


def merge_queries_and_keys(model: nn.Module) -> int:
    """RT-DETR's self-attention becomes :class:`SelfAttention`."""
    replaced = 0
    for head in _heads(model):
        for parent in head.modules():
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "RTDetrV2SelfAttention":
                    setattr(parent, name, SelfAttention(child))
                    replaced += 1
    return replaced


def make_task_models_static(model: nn.Module) -> int:
    """Detectors and segmenters become :class:`StaticDetector` and :class:`StaticSegmenter`."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (Detector, Segmenter)):
                setattr(parent, name, StaticDetector(child) if isinstance(child, Detector) else StaticSegmenter(child))
                replaced += 1
    return replaced


class _Nothing(nn.Module):
    """Adds nothing to what it is added to."""

    def forward(self, x: torch.Tensor) -> float:
        return 0.0


def _heads(model: nn.Module) -> list[nn.Module]:
    """What stands on backbones; their own BatchNorms are not touched, having been folded."""
    return [module.network for module in model.modules() if isinstance(module, (Segmenter, Detector))]


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias


HEAD_REWRITES: tuple[Callable[[nn.Module], int], ...] = (
    fold_batchnorm_into_head_convolutions,
    merge_repvgg_branches,
    make_pooling_static,
    make_deformable_attention_static,
    merge_queries_and_keys,
    make_task_models_static,
)
