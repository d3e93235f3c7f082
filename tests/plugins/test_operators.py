"""The operators as torch and ONNX know them: descriptions, registration, shapes, memory, export and compilation."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from fastervit_trt.export.deploy import deploy_form
from fastervit_trt.export.packed import PackedHATStage
from fastervit_trt.models import HATStage
from fastervit_trt.models.geometry import StageGeometry
from fastervit_trt.plugins.names import DOMAIN
from fastervit_trt.plugins.operators import OPERATORS, Operator
from tests.conftest import fill_from_names

pytestmark = pytest.mark.usefixtures("one_thread")  # tensors are small: threads cost more than they save

BY_NAME = {operator.onnx_name: operator for operator in OPERATORS}
TORCH_NAMES = ("carrier_attention", "fused_window_attention", "window_attention", "window_partition", "window_reverse")


@dataclass(frozen=True)
class Sizes:
    """Of a call: windows per column and row, side of a window and of its carrier grid."""

    batch: int
    grid: tuple[int, int]
    window: int
    ct_size: int
    channels: int = 8
    heads: int = 2

    @property
    def windows(self) -> int:
        return self.grid[0] * self.grid[1]

    def carriers(self, operator: Operator) -> int:
        return 0 if {"carriers", "carriers_BCHW"} & set(operator.without) else self.ct_size**2

    def tokens(self, operator: Operator) -> int:
        return self.carriers(operator) + self.window**2


SIZES = {
    "three images": Sizes(3, (2, 3), 3, 2),
    "one image": Sizes(1, (3, 2), 4, 1),
    "one window": Sizes(2, (1, 1), 3, 1),
    "one window of one image": Sizes(1, (1, 1), 7, 2),
    "windows of one token": Sizes(1, (2, 3), 1, 1),
    "one of everything": Sizes(1, (1, 1), 1, 1, channels=1, heads=1),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(operator: Operator, sizes: Sizes) -> tuple[list[torch.Tensor], dict[str, int | float]]:
    """Tensors and attributes of a call."""
    carriers, tokens = sizes.carriers(operator), sizes.tokens(operator)
    height, width = (n * sizes.window for n in sizes.grid)
    channels, heads = sizes.channels, sizes.heads
    of_image, of_batch = sizes.windows * carriers, sizes.batch * sizes.windows
    shapes: dict[str, tuple[int, ...]] = {
        "x_BCHW": (sizes.batch, channels, height, width),
        "carriers_BCHW": (sizes.batch, channels, *(n * sizes.ct_size for n in sizes.grid)),
        "table_1NC": (1, tokens, channels),
        "tok_WnNC": (of_batch, tokens, channels),
        "gamma_C": (channels,),
        "x_XC": (of_batch * tokens, channels),
        "qkv_X3D": (of_batch * tokens, 3 * channels),
        "bias_1hNN": (1, heads, tokens, tokens),
        "table_1GC": (1, of_image, channels),
        "norm_weight_C": (channels,),
        "norm_bias_C": (channels,),
        "qkv_weight_3DC": (3 * channels, channels),
        "qkv_bias_3D": (3 * channels,),
        "bias_1hGG": (1, heads, of_image, of_image),
        "proj_weight_CD": (channels, channels),
        "proj_bias_C": (channels,),
    }
    scalars = {"window": sizes.window, "carriers": carriers, "height": height, "width": width, "eps": 1e-5}
    tensors = [noise(*shapes[name], seed=i) for i, name in enumerate(operator.inputs)]
    return tensors, {name: scalars[name] for name in operator.attributes}


def result_shape(operator: Operator, sizes: Sizes) -> tuple[int, ...]:
    of_batch, channels, tokens = sizes.batch * sizes.windows, sizes.channels, sizes.tokens(operator)
    return {
        "window_partition": (of_batch, tokens, channels),
        "window_reverse": (sizes.batch, channels, *(n * sizes.window for n in sizes.grid)),
        "window_attention": (of_batch * tokens, channels),
        "fused_window_attention": (of_batch * tokens, channels),
        "carrier_attention": (of_batch * sizes.ct_size**2, channels),
    }[operator.torch_name]


def torch_operator(operator: Operator) -> Any:
    return getattr(getattr(torch.ops, DOMAIN), operator.torch_name)


def torch_arguments(operator: Operator, tensors: list[Any], attributes: dict[str, int | float]) -> tuple[Any, ...]:
    """What is left out is None, and 0 carriers."""
    given = {**dict(zip(operator.inputs, tensors, strict=True)), **attributes}
    return tuple(given.get(name, 0 if name == "carriers" else None) for name in operator.arguments)


def backwards_in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the last axis outermost in memory."""
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


# What ONNX sees: inputs, attributes, and the inputs that grow with the batch.
def weights(bias: str) -> list[str]:
    return f"norm_weight_C norm_bias_C qkv_weight_3DC qkv_bias_3D {bias} proj_weight_CD proj_bias_C".split()


WINDOWS = {"window": "int", "height": "int", "width": "int"}
DESCRIPTIONS: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "WindowPartition": (["x_BCHW", "table_1NC"], {"window": "int"}, ["x_BCHW"]),
    "WindowPartitionWithCarriers": (
        ["x_BCHW", "carriers_BCHW", "table_1NC"],
        {"window": "int"},
        ["x_BCHW", "carriers_BCHW"],
    ),
    "WindowAttention": (["qkv_X3D", "bias_1hNN"], {}, ["qkv_X3D"]),
    "FusedWindowAttention": (["x_XC", *weights("bias_1hNN")], {"eps": "float"}, ["x_XC"]),
    "CarrierAttention": (
        ["tok_WnNC", "table_1GC", *weights("bias_1hGG")],
        {"carriers": "int", "eps": "float"},
        ["tok_WnNC"],
    ),
    "WindowReverse": (["tok_WnNC"], WINDOWS, ["tok_WnNC"]),
    "WindowReverseWithCarriers": (["tok_WnNC"], {"carriers": "int", **WINDOWS}, ["tok_WnNC"]),
    "WindowReverseWithPropagation": (["tok_WnNC", "gamma_C"], {"carriers": "int", **WINDOWS}, ["tok_WnNC"]),
}


def test_every_operator_is_described_once() -> None:
    assert sorted(operator.onnx_name for operator in OPERATORS) == sorted(DESCRIPTIONS)
    assert {operator.torch_name for operator in OPERATORS} == set(TORCH_NAMES)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_the_description_is_the_signature_of_the_reference(name: str) -> None:
    operator, (inputs, attributes, batched) = BY_NAME[name], DESCRIPTIONS[name]
    assert list(operator.inputs) == inputs
    assert list(operator.attributes.items()) == list(attributes.items())  # in this order
    assert list(operator.batched) == batched
    signature = [name for name in operator.arguments if name not in operator.without]
    assert signature == [*inputs, *attributes]
    schema = torch_operator(operator).default._schema
    assert tuple(argument.name for argument in schema.arguments) == operator.arguments
    assert not schema.is_mutable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", DESCRIPTIONS)
@torch.inference_mode()
def test_call_and_torch_operator_are_the_reference(name: str, sizes: str, dtype: torch.dtype) -> None:
    operator = BY_NAME[name]
    tensors, attributes = inputs_of(operator, SIZES[sizes])
    tensors = [tensor.to(dtype) for tensor in tensors]
    arguments = torch_arguments(operator, tensors, attributes)
    expected = operator.reference(*arguments)
    assert expected.isfinite().all()
    assert expected.any()
    for actual in (operator.call(tensors, attributes), torch_operator(operator)(*arguments)):
        assert actual.dtype == dtype
        assert actual.shape == result_shape(operator, SIZES[sizes])
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_call_hands_over_every_argument_and_what_is_left_out_as_none_or_0(name: str) -> None:
    operator, calls = BY_NAME[name], []

    @functools.wraps(operator.reference)
    def recorder(**arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return torch.zeros(())

    tensors, attributes = inputs_of(operator, SIZES["three images"])
    replace(operator, reference=recorder).call(tensors, attributes)
    expected = dict(zip(operator.arguments, torch_arguments(operator, tensors, attributes), strict=True))
    assert calls == [expected]
    assert all(type(calls[0][name]) is type(expected[name]) for name in expected)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", DESCRIPTIONS)
@torch.inference_mode()
def test_the_result_is_memory_of_its_own(name: str, sizes: str) -> None:
    operator = BY_NAME[name]
    tensors, attributes = inputs_of(operator, SIZES[sizes])
    before = [tensor.clone() for tensor in tensors]
    result = torch_operator(operator)(*torch_arguments(operator, tensors, attributes))
    assert all(result.untyped_storage().data_ptr() != t.untyped_storage().data_ptr() for t in tensors)
    result.fill_(torch.nan)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


# Schema, aliasing, autograd registration, and shapes and strides of the fake one, with static and dynamic sizes.
@pytest.mark.parametrize("memory", ["forwards", "backwards"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_opcheck(name: str, sizes: str, memory: str) -> None:
    operator = BY_NAME[name]
    tensors, attributes = inputs_of(operator, SIZES[sizes])
    if memory == "backwards":
        tensors = [backwards_in_memory(tensor) for tensor in tensors]
    torch.library.opcheck(torch_operator(operator), torch_arguments(operator, tensors, attributes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_the_fake_one_knows_shape_and_type(name: str, dtype: torch.dtype) -> None:
    operator = BY_NAME[name]
    for sizes in SIZES.values():
        tensors, attributes = inputs_of(operator, sizes)
        tensors = [tensor.to(dtype) for tensor in tensors]
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(tensor) for tensor in tensors]
            fake = torch_operator(operator)(*torch_arguments(operator, fakes, attributes))
        assert (tuple(fake.shape), fake.dtype) == (result_shape(operator, sizes), dtype)


FLATTENING = (torch.ops.aten.flatten.using_ints, torch.ops.aten.view.default)


class Call(nn.Module):
    """A model of nothing but one operator; what does not grow with the batch are its weights."""

    def __init__(self, operator: Operator, sizes: Sizes) -> None:
        super().__init__()
        tensors, self.attributes = inputs_of(operator, sizes)
        self.operator, self.names = operator, []
        for name, tensor in zip(operator.inputs, tensors, strict=True):
            if name not in operator.batched:
                self.register_buffer(name, tensor)

    def forward(self, *batched: torch.Tensor) -> torch.Tensor:
        rows = [tensor.flatten(0, 1) for tensor in batched]
        given = {**dict(zip(self.operator.batched, rows, strict=True)), **dict(self.named_buffers())}
        tensors = [given[name] for name in self.operator.inputs]
        return torch_operator(self.operator)(*torch_arguments(self.operator, tensors, self.attributes))


def batched_inputs(operator: Operator, sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """Those that grow with the batch, with an axis of its own for it."""
    given = dict(zip(operator.inputs, inputs_of(operator, sizes)[0], strict=True))
    return tuple(given[name].unflatten(0, (sizes.batch, -1)) for name in operator.batched)


@pytest.mark.parametrize("name", DESCRIPTIONS)
@torch.no_grad()
def test_exported_with_dynamic_batch_it_stays_one_call(name: str) -> None:
    operator, sizes = BY_NAME[name], SIZES["three images"]
    model, example, batch = Call(operator, sizes), batched_inputs(operator, sizes), torch.export.Dim("batch")
    program = torch.export.export(model, example, dynamic_shapes=(tuple({0: batch} for _ in example),))
    for stage in (program, program.run_decompositions()):
        tensors = [n for n in stage.graph.nodes if n.op == "call_function" and isinstance(n.meta["val"], torch.Tensor)]
        (call,) = [node for node in tensors if node.target not in FLATTENING]
        assert call.target == torch_operator(operator).default
        shape, module = call.meta["val"].shape, stage.module()
        assert isinstance(shape[0], torch.SymInt)
        (symbol,) = shape[0].node.expr.free_symbols
        for images in (1, 2, 5):
            others = replace(sizes, batch=images)
            inputs = batched_inputs(operator, others)
            assert (int(shape[0].node.expr.subs(symbol, images)), *shape[1:]) == result_shape(operator, others)
            assert torch.equal(module(*inputs), model(*inputs))


STAGES: dict[str, tuple[StageGeometry, dict[str, Any]]] = {
    "carriers": (StageGeometry((6, 6), window=3, ct_size=2, hat=True), {}),
    "propagation": (StageGeometry((6, 6), window=3, ct_size=2, hat=True), {"propagate": True, "layer_scale": 0.5}),
    "non-square": (StageGeometry((6, 9), window=3, ct_size=2, hat=True), {}),
    "padded": (StageGeometry((5, 7), window=3, ct_size=1, hat=True), {}),
    "no carriers": (StageGeometry((6, 9), window=3, ct_size=2, hat=False), {}),
    "one window": (StageGeometry((3, 3), window=3, ct_size=2, hat=True), {}),
}


def packed_stage(case: str) -> tuple[nn.Module, torch.Tensor]:
    geometry, options = STAGES[case]
    stage, _ = deploy_form(fill_from_names(HATStage(8, 2, 2, geometry, **options)))
    assert isinstance(stage, PackedHATStage)
    return stage, noise(2, 8, *geometry.size)


@pytest.mark.parametrize("case", STAGES)
@torch.no_grad()
def test_a_packed_stage_compiles_without_a_graph_break(case: str) -> None:
    stage, x = packed_stage(case)
    torch._dynamo.reset()
    compiled = torch.compile(stage, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), stage(x))


@pytest.mark.parametrize("case", STAGES)
@torch.no_grad()
def test_a_packed_stage_computes_the_same_after_export_and_decomposition(case: str) -> None:
    stage, x = packed_stage(case)
    program = torch.export.export(stage, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).run_decompositions()
    x = noise(3, *x.shape[1:], seed=1)
    assert torch.equal(program.module()(x), stage(x))


REGISTRATION = f"""
import importlib, torch
def registered():
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("{DOMAIN}::"))
from fastervit_trt.plugins import reference
importlib.reload(reference)
assert registered() == [], registered()
import fastervit_trt.plugins.operators as operators
import fastervit_trt.plugins.operators
names = registered()
print(*names)
importlib.reload(operators)
assert registered() == names, registered()
x = torch.arange(16.0).reshape(1, 1, 4, 4)
assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in names)
assert not torch.cuda.is_initialized()
tok = torch.ops.{DOMAIN}.window_partition(x, None, torch.zeros(1, 4, 1), 2)
assert tok[0].flatten().tolist() == [0, 1, 4, 5], tok
"""


def test_registration_happens_once_with_the_operators_only_and_looks_for_no_library() -> None:
    environment = {**os.environ, "FASTERVIT_TRT_PLUGINS": "nowhere"}
    command = [sys.executable, "-W", "error", "-c", REGISTRATION]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [f"{DOMAIN}::{name}" for name in TORCH_NAMES]
