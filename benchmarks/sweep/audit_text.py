"""What an artifact is made of, in a line for a row: an engine as its audit found it, a graph as its export left it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastervit_trt.artifacts import Manifest
from fastervit_trt.export.fusion import FusionReport
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.export.quantisation.qdq import QuantisationReport

__all__ = ["audit_text"]


def audit_text(manifest: Manifest, artifact: str) -> str:
    """Of the file ``artifact`` of an export; empty for what is no file of it."""
    for engine in manifest.engines:
        if engine.get("file") == artifact and engine.get("audit"):
            return _engine(engine["audit"])
    return _graph(manifest) if artifact == GRAPH_FILE else ""


def _engine(audit: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{share:.0%} {kind}" for kind, share in audit["multiplications"].items())
    attentions = ", ".join(f"{count} {form}" for form, count in audit["attentions"].items())
    proof = "proven" if audit["proven"] else "not proven"
    return (
        f"{proof}: multiplications {shares}; attentions: {attentions}; {audit['launches']} launches, "
        f"{audit['reformats']} reformats or casts"
    )


def _graph(manifest: Manifest) -> str:
    fusion = FusionReport(**manifest.graph["fusion"])
    parts = [f"{fusion.nodes} nodes", f"fused: {fusion}"]
    if (quantisation := manifest.graph["quantisation"]) is not None:
        parts.append(str(QuantisationReport(**quantisation)))
    return "; ".join(parts)
