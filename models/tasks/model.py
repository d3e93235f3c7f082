"""Images in, masks or boxes out: a FasterViT backbone under a head of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
    RTDetrV2SinePositionEmbedding,
    build_2d_sinusoidal_position_embedding,
)

from fastervit_trt.models.config import FasterViTConfig, with_resolution
from fastervit_trt.models.fastervit import FasterViTBackbone
from fastervit_trt.models.tasks.adapter import maps_config, set_trunk
from fastervit_trt.models.tasks.deciding import decide_boxes, decide_masks
from fastervit_trt.models.tasks.heads import DetectionHead, SegmentationHead, Task, check_detection_resolution

__all__ = ["Detector", "Segmenter", "TaskModel", "build_task_model"]


class TaskModel(nn.Module, ABC):
    """A backbone under a head. ``network`` is transformers' own model: train it as any of theirs.

    ``forward`` gives the named outputs of an export (:data:`OUTPUTS`); ``raw`` what they are decided from, which is
    continuous and therefore what a graph can be compared by.
    """

    task: Task
    network: Any

    @property
    @abstractmethod
    def backbone(self) -> FasterViTBackbone:
        """What is under the head."""

    @property
    def config(self) -> FasterViTConfig:
        """Of the backbone; ``num_classes`` is the head's."""
        return self.backbone.config

    def check_resolution(self, config: FasterViTConfig) -> None:
        """Refuse what the head cannot take.

        Raises:
            FasterViTError: it cannot.
        """

    def set_resolution(self, resolution: tuple[int, int]) -> None:
        """Serve images of another size (H, W), as :meth:`Trunk.set_resolution`.

        Raises:
            FasterViTError: as there, or the head cannot take the maps; the model is then as before.
        """
        self.check_resolution(with_resolution(self.config, resolution))
        self.backbone.set_resolution(resolution)

    def reset_derived_buffers(self) -> None:
        """As :meth:`Trunk.reset_derived_buffers`."""
        self.backbone.reset_derived_buffers()

    @abstractmethod
    def raw(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the outputs are decided from."""

    @abstractmethod
    def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of an export, from what :meth:`raw` gives."""

    def picked(self, *raw: torch.Tensor) -> torch.Tensor | None:
        """The choice that was made on the way to ``raw``, from which everything after it follows; None: none was."""
        return None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) normalised images → the outputs of the task, float32."""
        return self.decide(*self.raw(images))


class Segmenter(TaskModel):
    """Semantic segmentation with UperNet: (B, 3, H, W) → masks (B, H, W), the class of every pixel."""

    task: Task = "segmentation"

    def __init__(self, backbone: FasterViTBackbone, head: SegmentationHead) -> None:
        super().__init__()
        settings = UperNetConfig(
            backbone_config=maps_config(backbone),
            num_labels=backbone.config.num_classes,
            hidden_size=head.hidden_size,
            pool_scales=list(head.pool_scales),
            use_auxiliary_head=head.auxiliary,
        )
        self.network = UperNetForSemanticSegmentation(settings)
        set_trunk(self.network.backbone, backbone)

    @property
    def backbone(self) -> FasterViTBackbone:
        trunk = self.network.backbone.trunk
        assert isinstance(trunk, FasterViTBackbone)
        return trunk

    def raw(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (B, classes, ⌈H/4⌉, ⌈W/4⌉)."""
        return (self.network.decode_head(list(self.backbone(images))),)

    def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Masks (B, H, W)."""
        return (decide_masks(raw[0], self.config.resolution),)


class Detector(TaskModel):
    """Detection with RT-DETRv2: (B, 3, H, W) → boxes (B, Q, 4), scores (B, Q), labels (B, Q).

    Boxes are (left, top, right, bottom) as shares of the image's width and height, whatever size it had before it was
    resized; scores fall along Q.
    """

    task: Task = "detection"

    def __init__(self, backbone: FasterViTBackbone, head: DetectionHead) -> None:
        check_detection_resolution(backbone.config, head)
        super().__init__()
        self.head = head
        maps = len(backbone.out_indices)
        settings = RTDetrV2Config(
            backbone_config=maps_config(backbone),
            num_labels=backbone.config.num_classes,
            freeze_backbone_batch_norms=False,
            encoder_in_channels=[info.channels for info in backbone.feature_info],
            feat_strides=[info.stride for info in backbone.feature_info],
            encode_proj_layers=[maps - 1],
            decoder_in_channels=[head.hidden_size] * maps,
            num_feature_levels=maps,
            decoder_n_levels=maps,
            encoder_hidden_dim=head.hidden_size,
            d_model=head.hidden_size,
            encoder_ffn_dim=head.feedforward,
            decoder_ffn_dim=head.feedforward,
            encoder_layers=head.encoder_layers,
            decoder_layers=head.decoder_layers,
            encoder_attention_heads=head.heads,
            decoder_attention_heads=head.heads,
            decoder_n_points=head.points,
            hidden_expansion=head.expansion,
            num_queries=head.queries,
            num_denoising=head.denoising,
        )
        self.network = RTDetrV2ForObjectDetection(settings)
        for module in self.network.modules():
            if isinstance(module, RTDetrV2SinePositionEmbedding):
                # transformers keeps tables for all models of a process, and one from outside of inference mode cannot
                # be used within, where operators are dispatched anew.
                module._cached_build_2d_sinusoidal_position_embedding = build_2d_sinusoidal_position_embedding
        set_trunk(self.network.model.backbone.model, backbone)

    @property
    def backbone(self) -> FasterViTBackbone:
        trunk = self.network.model.backbone.model.trunk
        assert isinstance(trunk, FasterViTBackbone)
        return trunk

    def check_resolution(self, config: FasterViTConfig) -> None:
        check_detection_resolution(config, self.head)

    def raw(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Per query logits (B, Q, classes) and boxes (B, Q, 4) as (centre x, centre y, width, height) in [0, 1]; per
        position of the maps the score (B, N) of its surest class, by which the Q queries were picked.
        """
        found = self.network(images)
        return found.logits, found.pred_boxes, found.enc_outputs_class.max(-1).values

    def picked(self, *raw: torch.Tensor) -> torch.Tensor | None:
        """The positions (B, Q) of the queries."""
        return raw[2].topk(self.head.queries, dim=1).indices

    def decide(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Boxes (B, Q, 4), scores (B, Q), labels (B, Q)."""
        return decide_boxes(raw[0], raw[1])


def build_task_model(config: FasterViTConfig, head: SegmentationHead | DetectionHead) -> TaskModel:
    """A backbone of ``config`` under ``head``, with random weights.

    Raises:
        FasterViTError: a resolution that the head cannot take.
    """
    backbone = FasterViTBackbone(config, head.stages)
    return Segmenter(backbone, head) if isinstance(head, SegmentationHead) else Detector(backbone, head)
