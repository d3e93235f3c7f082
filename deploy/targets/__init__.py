"""The machines that FasterViT is deployed to, as a table, and which of them this one is."""

from fastervit_trt.deploy.targets.detect import detect_target, why_not_here
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.table import TARGETS, get_target
from fastervit_trt.deploy.targets.target import Fact, Target, VersionRange

__all__ = ["TARGETS", "Fact", "Here", "Target", "VersionRange", "detect_target", "get_target", "why_not_here"]
