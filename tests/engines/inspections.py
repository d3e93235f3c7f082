"""What the engine inspector of TensorRT 10 or 11 would say of an exported graph.

Layers carry the graph's own nodes, tensors, shapes and types, in the fields and spellings of recorded/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from fastervit_trt.engines.explain import ATTENTIONS
from fastervit_trt.export.graph import shape_at

__all__ = ["Inspector"]

SPELT = {"FLOAT": "Float", "FLOAT16": "Half", "BFLOAT16": "BFloat16", "INT8": "Int8", "FLOAT8E4M3FN": "FP8"}
IN_LAYOUTS = {"Float": "FP32", "Half": "FP16", "BFloat16": "BFloat16", "Int8": "Int8", "FP8": "FP8"}
HIDDEN = "N/A due to dynamic shapes"


@dataclass(frozen=True)
class Inspector:
    """Writes the JSON of one release for a graph; what is not said otherwise runs as the graph asks."""

    version: int
    ran: Mapping[str, str] = field(default_factory=dict)  # block → type that its operands have instead; "*": all
    reformatted: Collection[str] = ()  # nodes whose input is brought into another layout before
    plugins: bool = True
    hides: bool = False  # types of activations of the library, as 10.x with a dynamic batch

    def text(self, model: ir.Model) -> str:
        return json.dumps({"Layers": list(self._layers(model)), "Bindings": ["images", "logits"]})

    def _layers(self, model: ir.Model) -> Iterator[dict[str, Any]]:
        for number, node in enumerate(model.graph):
            if node.op_type == "DequantizeLinear":  # folded into what it is for
                continue
            if node.name in self.reformatted:
                yield self._reformat(node)
            layer = self._layer(node, f"_myl{number // 7}_{number}")
            outputs = [
                self._tensor(node, value, library=layer["LayerType"].startswith("Cask")) for value in node.outputs
            ]
            yield {"Metadata": f"[ONNX Layer: {node.name}]", "Outputs": outputs, **layer}

    def _layer(self, node: ir.Node, mark: str) -> dict[str, Any]:
        if node.op_type == "Conv":
            return self._convolution(node, mark)
        if node.op_type == "Gemm":
            return {"Name": f"{node.name}{mark}", "LayerType": "gemm", **self._operands(node)}
        if node.op_type in ATTENTIONS and self.plugins:
            inputs = [self._tensor(node, value) for value in node.inputs if value is not None]
            return {"Name": node.name, "LayerType": "PluginV3", "PluginType": node.op_type, "Inputs": inputs}
        if node.op_type in ATTENTIONS:
            parts = ("MatMul_1", "Softmax_0", "Add_0", "MatMul_0")
            metadata = "\x1f".join(f"[ONNX Layer: {part} | {node.name} ({node.op_type})]" for part in parts)
            return {"Name": f"_gemm_mha_v2{mark}", "LayerType": "kgen", "Metadata": metadata, **self._operands(node)}
        name = {"Cast": "__myl_Cast", "QuantizeLinear": "__myl_MulMinMaxRounCast"}.get(
            node.op_type, "__myl_ReshTranMove"
        )
        return {"Name": f"{name}{mark}", "LayerType": "kgen", **self._operands(node)}

    def _convolution(self, node: ir.Node, mark: str) -> dict[str, Any]:
        if self.version == 11:
            return {"Name": f"{node.name}{mark}", "LayerType": "correlation", **self._operands(node)}
        weights, rounded = self._tensor(node, node.inputs[1]), source(node.inputs[1])
        held = {"Type": weights["Format/Datatype"], "Count": rounded.const_value.size if rounded.const_value else 0}
        inputs = [self._tensor(node, node.inputs[0], library=True)]
        maps = weights["Dimensions"][0]
        return {"Name": node.name, "LayerType": "CaskConvolution", "Inputs": inputs, "Weights": held, "OutMaps": maps}

    def _operands(self, node: ir.Node) -> dict[str, Any]:
        """Weights are inputs with names of Myelin's in 10.x, and apart in 11.x."""
        values = [value for value in node.inputs if value is not None]
        activations = [self._tensor(node, value) for value in values if source(value).const_value is None]
        constants = [self._tensor(node, value) for value in values if source(value).const_value is not None]
        if self.version == 11:
            return {"Inputs": activations, "Constants": constants}
        renamed = [{**tensor, "Name": f"__mye{i}_dconst"} for i, tensor in enumerate(constants)]
        return {"Inputs": [*activations, *renamed]}

    def _reformat(self, node: ir.Node) -> dict[str, Any]:
        tensor = self._tensor(node, node.inputs[0])
        if self.version == 11:
            moved = {**tensor, "Name": "moved"}
            return {"Name": "reformat_myl0_9", "LayerType": "reformat", "Inputs": [tensor], "Outputs": [moved]}
        name = f"Reformatting CopyNode for Input Tensor 0 to {node.name}"
        return {"Name": name, "LayerType": "Reformat", "Origin": "REFORMAT", "Inputs": [tensor], "Outputs": []}

    def _tensor(self, node: ir.Node, value: ir.Value | None, *, library: bool = False) -> dict[str, Any]:
        stored = source(value)
        assert stored.dtype is not None and stored.shape is not None
        block = str(node.name).partition("/")[0]
        asked = SPELT.get(stored.dtype.name, stored.dtype.name.capitalize())
        type_ = self.ran.get(block, self.ran.get("*", asked)) if asked in IN_LAYOUTS else asked
        tensor = {"Name": stored.name, "Location": "Device", "Dimensions": list(shape_at(stored, 8))}
        if self.version == 11:
            return {**tensor, "Format": "Row major linear format", "Datatype": type_}
        if library and self.hides:
            return {**tensor, "Format/Datatype": HIDDEN}
        return {**tensor, "Format/Datatype": f"Row major linear {IN_LAYOUTS[type_]} format" if library else type_}


def source(value: ir.Value | None) -> ir.Value:
    """What is read: of a value that was dequantised, the 8 bits."""
    assert value is not None
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        assert producer.inputs[0] is not None
        return producer.inputs[0]
    return value
