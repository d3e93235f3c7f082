"""Detectors and segmenters for images of one size: parts of transformers' models, what lies between them constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastervit_trt.models.geometry import stage_resolutions
from fastervit_trt.models.tasks.deciding import decide_boxes, decide_masks
from fastervit_trt.models.tasks.heads import Task
from fastervit_trt.models.tasks.model import Detector, Segmenter

__all__ = ["QuerySelection", "StaticDetector", "StaticSegmenter"]

_FAR = 1e4
_EPS = 1e-5  # where transformers' inverse sigmoid ends
_STEEPEST = math.log((1 - _EPS) / _EPS)


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
