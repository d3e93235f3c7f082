"""A name in, a FasterViT out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig, Preprocessing, Variant, with_resolution
from fastervit_trt.models.fastervit import FasterViT, FasterViTBackbone
from fastervit_trt.models.geometry import CarrierOrder
from fastervit_trt.models.tasks.heads import TASK_CLASSES, DetectionHead, SegmentationHead, Task, get_task
from fastervit_trt.models.variants import VARIANTS

if TYPE_CHECKING:
    from fastervit_trt.models.tasks.model import TaskModel

__all__ = ["ModelSpec", "construct", "create_model", "get_variant", "list_models", "resolve_config"]

_HEADS: dict[Task, SegmentationHead | DetectionHead] = {
    "segmentation": SegmentationHead(),
    "detection": DetectionHead(),
}


@dataclass(frozen=True)
class ModelSpec:
    """A model as someone asked for it: a registered name and what differs from it. None: as registered."""

    name: str
    resolution: tuple[int, int] | None = None
    num_classes: int | None = None
    window_size: tuple[int, ...] | None = None
    ct_size: int | None = None
    carrier_order: str | None = None
    out_indices: tuple[int, ...] | None = None  # stages of the backbone form; None: a model with its head
    task: str | None = None

    @property
    def head(self) -> SegmentationHead | DetectionHead | None:
        """What is on top of the backbone; None: the classifier, or nothing.

        Raises:
            FasterViTError: unknown name or task, or a task for a bare backbone.
        """
        own = get_variant(self.name).head
        task = self.chosen_task
        if self.out_indices is not None:
            if self.task is not None:
                raise FasterViTError("a backbone has no task; leave out either the task or features_only")
            return None
        return own if own is not None and task == _task_of(own) else _HEADS.get(task)

    @property
    def preprocessing(self) -> Preprocessing:
        """The variant's; boxes and masks are of whole pictures, which are squashed to the model's size."""
        how = get_variant(self.name).preprocessing
        return how if self.head is None else replace(how, crop_pct=1.0, crop_mode="squash")

    @property
    def chosen_task(self) -> Task:
        """What the model does: asked for, or as its variant was trained; a bare backbone counts as a classifier.

        Raises:
            FasterViTError: unknown name or task.
        """
        own = None if self.out_indices is not None else get_variant(self.name).head
        return _task_of(own) if self.task is None else get_task(self.task)

    def config(self) -> FasterViTConfig:
        """The configuration asked for.

        Raises:
            FasterViTError: as :func:`resolve_config`.
        """
        chosen = ("num_classes", "window_size", "ct_size", "carrier_order")
        overrides = {name: getattr(self, name) for name in chosen if getattr(self, name) is not None}
        task = self.chosen_task
        if task in TASK_CLASSES and task != _task_of(get_variant(self.name).head):
            overrides.setdefault("num_classes", TASK_CLASSES[task])
        return resolve_config(self.name, self.resolution, **overrides)

    def record(self) -> dict[str, Any]:
        """For a manifest: only what was asked for."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ModelSpec:
        asked: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
        return cls(**asked)


def list_models() -> list[str]:
    """Registered variant names."""
    return list(VARIANTS)


def get_variant(name: str) -> Variant:
    """The registered variant called ``name``.

    Raises:
        FasterViTError: unknown name; the message suggests the closest registered ones.
    """
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4) or list(VARIANTS)[:3]
        raise FasterViTError(f"unknown model '{name}'; closest names: {', '.join(close)}")
    return VARIANTS[name]


def resolve_config(name: str, resolution: int | Sequence[int] | None = None, **overrides: Any) -> FasterViTConfig:
    """The variant's configuration with ``resolution`` (pixels, or (H, W)) and other fields replaced.

    Raises:
        FasterViTError: unknown name or field, impossible resolution, windows, carriers or class count.
    """
    config = get_variant(name).config
    known = {f.name for f in fields(FasterViTConfig)}
    unknown = [field for field in overrides if field not in known]
    if unknown:
        raise FasterViTError(f"{name} has no setting '{unknown[0]}'; it has {', '.join(sorted(known))}")
    if overrides.get("carrier_order", "reference") not in get_args(CarrierOrder):
        raise FasterViTError(f"carrier order must be one of {', '.join(get_args(CarrierOrder))}")
    if overrides.get("num_classes", 1) < 1:
        raise FasterViTError(f"num_classes must be at least 1, not {overrides['num_classes']}")
    changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    config = replace(config, **changes)
    if resolution is not None:
        sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
        if len(sides) != 2:
            raise FasterViTError(f"resolution {sides} must be one number or (height, width)")
        config = with_resolution(config, (sides[0], sides[1]))
    _check_windows(config, chosen="window_size" in overrides)
    return config


@overload
def create_model(
    name: str,
    resolution: int | Sequence[int] | None = None,
    *,
    features_only: Literal[False] = False,
    task: Literal["segmentation", "detection"],
    **overrides: Any,
) -> TaskModel: ...


@overload
def create_model(
    name: str,
    resolution: int | Sequence[int] | None = None,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **overrides: Any,
) -> FasterViTBackbone: ...


@overload
def create_model(
    name: str,
    resolution: int | Sequence[int] | None = None,
    *,
    features_only: Literal[False] = False,
    task: Literal["classification"] | None = None,
    **overrides: Any,
) -> FasterViT: ...


def create_model(
    name: str,
    resolution: int | Sequence[int] | None = None,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    task: str | None = None,
    **overrides: Any,
) -> FasterViT | FasterViTBackbone | TaskModel:
    """A FasterViT with random weights: ``create_model("faster_vit_1_224", num_classes=10)``.

    Args:
        name: a registered variant, see :func:`list_models`.
        resolution: input size in pixels, one side or (H, W); the variant's own by default. Any size from 32 works.
        features_only: the backbone form, :class:`FasterViTBackbone`, instead of the classifier.
        out_indices: stages whose maps the backbone yields.
        task: "segmentation" (UperNet) or "detection" (RT-DETRv2) put that head of transformers on the backbone, as
            :class:`TaskModel`, with the classes of ADE20K or COCO unless ``num_classes`` says otherwise.
        **overrides: any other field of :class:`FasterViTConfig`; ``head`` = :class:`SegmentationHead` or
            :class:`DetectionHead` for a head of other sizes.

    Raises:
        FasterViTError: unknown name, task or field, impossible resolution, windows, carriers, class count or stages, or
            transformers is not installed.
    """
    head = overrides.pop("head", None)
    spec = ModelSpec(name, task=task, out_indices=tuple(out_indices) if features_only else None)
    head = spec.head if head is None else head
    task_classes = spec.config().num_classes
    config = resolve_config(name, resolution, **{"num_classes": task_classes, **overrides})
    return construct(config, head, spec.out_indices)


def construct(
    config: FasterViTConfig,
    head: SegmentationHead | DetectionHead | None = None,
    out_indices: tuple[int, ...] | None = None,
) -> FasterViT | FasterViTBackbone | TaskModel:
    """The classifier of ``config``, its backbone form where ``out_indices`` are given, or its backbone under ``head``.

    Raises:
        FasterViTError: impossible stages, a resolution that the head cannot take, or transformers is not installed.
    """
    if out_indices is not None:
        return FasterViTBackbone(config, out_indices)
    if head is None:
        return FasterViT(config)
    try:
        from fastervit_trt.models.tasks.model import build_task_model
    except ImportError as error:
        if (error.name or "").split(".")[0] == "fastervit_trt":
            raise
        raise FasterViTError(
            f"{_task_of(head)} needs transformers: pip install 'fastervit-trt[tasks]' ({error})"
        ) from error
    return build_task_model(config, head)


def _task_of(head: SegmentationHead | DetectionHead | None) -> Task:
    if head is None:
        return "classification"
    return "segmentation" if isinstance(head, SegmentationHead) else "detection"


def _check_windows(config: FasterViTConfig, *, chosen: bool) -> None:
    """Published windows may exceed a small map, which is then padded; windows someone chose must fit."""
    if len(config.window_size) != 4:
        raise FasterViTError(f"window_size {config.window_size} must name a window for each of the four stages")
    for stage in (2, 3):
        geometry = config.geometry(stage)  # checks the carriers
        if chosen and geometry.window > min(geometry.size):
            raise FasterViTError(
                f"window {geometry.window} of stage {stage} exceeds its {geometry.size[0]}x{geometry.size[1]} map at "
                f"{config.resolution[0]}x{config.resolution[1]} pixels; choose at most {min(geometry.size)}"
            )
