"""What others published of FasterViT and its competitors: accuracy and speed on machines that are not at hand."""

from fastervit_trt.benchmarks.published.points import PublishedPoint, load_published
from fastervit_trt.benchmarks.published.scores import PublishedScore, load_scores, published_scores

__all__ = ["PublishedPoint", "PublishedScore", "load_published", "load_scores", "published_scores"]
