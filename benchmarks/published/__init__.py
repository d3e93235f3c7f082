"""What others published of FasterViT and its competitors: accuracy and speed on machines that are not at hand."""

from fastervit_trt.benchmarks.published.points import PublishedPoint, load_published

__all__ = ["PublishedPoint", "load_published"]
