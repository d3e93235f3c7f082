"""Pictures with boxes or masks, to measure detection and segmentation on."""

from fastervit_trt.models.annotated.images import AnnotatedImages, Objects
from fastervit_trt.models.annotated.opening import open_annotated

__all__ = ["AnnotatedImages", "Objects", "open_annotated"]
