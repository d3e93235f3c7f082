"""Run an exported graph on the CPU with ONNX Runtime, whatever its precision.

ONNX Runtime's CPU provider has few bfloat16 kernels, so a bfloat16 graph runs as its *widened twin*: the same graph
in float32 in which every arithmetic result is rounded to bfloat16. That is what bfloat16 hardware with float32
accumulation computes, so accuracy is meaningful; speed is not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import inline_functions, save_onnx

__all__ = ["OnnxCpuSession", "widened_bfloat16"]

# It rounds biases to int32 where a graph does not, in steps that it computes in the graph's type: in float16 these are
# off, or reach no further than 65504.
_DISABLED = ["WeightBiasQuantization"]
# Moving a rounded value rounds nothing.
_MOVES_ONLY = frozenset(
    "Reshape Transpose Slice Squeeze Unsqueeze Concat Gather GatherND Split Identity Flatten Pad Expand Relu".split()
)


class OnnxCpuSession:
    """``session(images)``: float32 (B, 3, H, W) → the float32 outputs in order, on ONNX Runtime's CPU provider.

    Args:
        optimised: file to write the graph to that ONNX Runtime makes of it.

    Raises:
        FasterViTError: ONNX Runtime is not installed or refuses the graph.
    """

    def __init__(self, path: Path, threads: int | None = None, optimised: Path | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise FasterViTError("ONNX Runtime is not installed: pip install 'fastervit-trt[cpu]'") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings about constant folding concern nobody here
        if threads is not None:
            options.intra_op_num_threads = threads
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        model = ir.load(path)
        self.emulated = _uses(model, ir.DataType.BFLOAT16)
        if _uses(model, ir.DataType.FLOAT8E4M3FN):
            # Beyond this ONNX Runtime moves Q/DQ pairs across transposes, which it has for 8-bit integers but not for
            # float8, and refuses the graph it has made.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        with tempfile.TemporaryDirectory() as scratch:
            source = path
            if self.emulated:
                (source, *_) = save_onnx(widened_bfloat16(model), Path(scratch))
            try:
                self._session = onnxruntime.InferenceSession(
                    source, options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED
                )
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                reason = " ".join(str(error).split())[:300]
                raise FasterViTError(f"ONNX Runtime {onnxruntime.__version__} refuses '{path}': {reason}") from error
        self._input = self._session.get_inputs()[0].name
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, images: np.ndarray, **others: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(output) for output in self._session.run(None, {self._input: images, **others}))


def widened_bfloat16(model: ir.Model) -> ir.Model:
    """``model``, changed in place: bfloat16 becomes float32, rounded to bfloat16 after every arithmetic operator.

    Fused operators are written out first, so that they round within as PyTorch does.
    """
    inline_functions(model)
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype is ir.DataType.BFLOAT16 and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        rounded = [v for v in node.outputs if v.dtype is ir.DataType.BFLOAT16]
        if node.op_type == "Cast" and rounded:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        for value in rounded:
            value.dtype = ir.DataType.FLOAT
            if node.op_type not in _MOVES_ONLY:
                _round_after(graph, node, value)
    return model


def _round_after(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    uses = list(value.uses())
    narrow = ir.node("Cast", [value], attributes={"to": ir.DataType.BFLOAT16}, name=f"{node.name}/narrow")
    narrow.outputs[0].dtype = ir.DataType.BFLOAT16
    widen = ir.node("Cast", [narrow.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{node.name}/widen")
    widen.outputs[0].dtype = ir.DataType.FLOAT
    widen.outputs[0].shape = value.shape
    graph.insert_after(node, [narrow, widen])
    for user, index in uses:
        user.replace_input_with(index, widen.outputs[0])


def _uses(model: ir.Model, dtype: ir.DataType) -> bool:
    return any(v.dtype is dtype for v in model.graph.initializers.values())
