"""The TensorRT plugins, driven as TensorRT drives them, on emulated kernels; and in TensorRT's own registry."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastervit_trt import __version__
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.kernels import TACTICS
from fastervit_trt.plugins.names import DOMAIN, PLUGIN_VERSION
from fastervit_trt.plugins.operators import OPERATORS, Operator
from tests.plugins.judgement import assert_as_good_as
from tests.plugins.plugin_driver import Driver, Input, cuda_driver, emulated_driver, tensorrt_headers, unavailable
from tests.plugins.test_operators import Sizes, inputs_of, result_shape

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BY_NAME = {operator.onnx_name: operator for operator in OPERATORS}
SIZES = Sizes(batch=2, grid=(3, 1), window=3, ct_size=2, channels=32, heads=2)
SCALES = {"qkv_scale": 0.05, "context_scale": 0.02}
REGISTRIES = ("tensorrt_lean", "tensorrt_rtx")  # run on a machine without a GPU
TACTICS_OF = {
    "WindowAttention": ["resident", "streamed"],
    "CarrierAttention": ["staged", "fused"],
    "FusedWindowAttention": ["staged", "fused"],
}
WITH_MAPS = [operator for operator in OPERATORS if operator.torch_name in ("window_partition", "window_reverse")]


def name_of(operator: Operator) -> str:
    return operator.onnx_name


every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "cuda":
        return on_gpu()
    if reason := unavailable():
        pytest.skip(reason)
    return emulated_driver()


def on_gpu() -> Driver:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    try:
        return cuda_driver()
    except FasterViTError as error:
        pytest.skip(str(error))


def case(operator: Operator, dtype: torch.dtype, sizes: Sizes = SIZES) -> tuple[list[Tensor], dict[str, int | float]]:
    """A call whose attention neither is uniform nor sees one token only."""
    tensors, attributes = inputs_of(operator, sizes)
    weights = {"qkv_weight_3DC": sizes.channels**-0.5, "proj_weight_CD": sizes.channels**-0.5, "qkv_X3D": 0.4}
    return [(x * weights.get(n, 1)).to(dtype) for n, x in zip(operator.inputs, tensors, strict=True)], attributes


def inputs(operator: Operator, dtype: torch.dtype = torch.float16, sizes: Sizes = SIZES, **layout: Any) -> list[Input]:
    return [Input(tensor, **layout) for tensor in case(operator, dtype, sizes)[0]]


def judge(operator: Operator, result: Tensor, tensors: list[Tensor], attributes: Mapping[str, int | float]) -> None:
    exact = operator.call([tensor.double() for tensor in tensors], attributes)
    assert_as_good_as(result, operator.call(tensors, attributes), exact)


# What the library has.


def test_every_operator_has_a_plugin(driver: Driver) -> None:
    creators = {creator["name"]: creator for creator in driver.creators()}
    assert creators.keys() == BY_NAME.keys()
    for name, creator in creators.items():
        assert (creator["namespace"], creator["version"]) == (DOMAIN, PLUGIN_VERSION)
        optional = set(SCALES) if name == "WindowAttention" else set()
        assert set(creator["attributes"]) == {*BY_NAME[name].attributes, *optional}


# What runs.


@every_dtype
@every_operator
def test_the_plugin_computes_the_operator(driver: Driver, operator: Operator, dtype: torch.dtype) -> None:
    tensors, attributes = case(operator, dtype)
    judge(operator, driver.run(operator.onnx_name, attributes, [Input(x) for x in tensors]), tensors, attributes)


@pytest.mark.parametrize("name", TACTICS_OF)
def test_every_tactic_computes_the_operator_in_its_own_way(driver: Driver, name: str) -> None:
    """What tells them apart: last bits, of attention in one go or in steps; intermediates in the workspace."""
    operator = BY_NAME[name]
    sizes = replace(SIZES, window=8, ct_size=4, grid=(1, 1)) if name == "WindowAttention" else SIZES
    tensors, attributes = case(operator, torch.float16, sizes)
    given = [Input(tensor) for tensor in tensors]
    tactics = driver.describe(name, attributes, given).answer["tactics"]
    assert tactics == [TACTICS[tactic] for tactic in TACTICS_OF[name]]
    done = [driver.execute(name, attributes, given, tactic=tactic) for tactic in tactics]
    for tactic, executed in zip(TACTICS_OF[name], done, strict=True):
        assert executed.workspace_used == (tactic == "staged")
        assert torch.equal(executed.result, of_kernel(driver, operator, tensors, attributes, tactic))
        judge(operator, executed.result, tensors, attributes)
    assert name != "WindowAttention" or not torch.equal(done[0].result, done[1].result)


def of_kernel(
    driver: Driver, operator: Operator, tensors: list[Tensor], attributes: Mapping[str, Any], tactic: str
) -> Tensor:
    first, *weights = (tensor.to(driver.device) for tensor in tensors)
    if operator.torch_name == "window_attention":
        return driver.kernels.window_attention(first, *weights, tactic=tactic).cpu()
    if operator.torch_name == "carrier_attention":
        return driver.kernels.carrier_attention(first, *weights, **attributes, tactic=tactic).cpu()
    tokens = weights[4].shape[2]
    windows = first.reshape(-1, tokens, first.shape[1])
    result = driver.kernels.carrier_attention(windows, None, *weights, carriers=tokens, **attributes, tactic=tactic)
    return result.cpu()


@pytest.mark.gpu
@every_operator
def test_it_runs_from_a_cuda_graph(operator: Operator) -> None:
    """Over what was poisoned after the capture."""
    driver, name = on_gpu(), operator.onnx_name
    tensors, attributes = case(operator, torch.float16)
    given = [Input(tensor) for tensor in tensors]
    for tactic in [0, *driver.describe(name, attributes, given).answer["tactics"]]:
        result = driver.run(name, attributes, given, tactic=tactic, graph=True)
        assert torch.equal(result, driver.run(name, attributes, given, tactic=tactic))


@pytest.mark.parametrize(("name", "tactic"), [("WindowAttention", "resident"), ("FusedWindowAttention", "fused")])
def test_a_tactic_that_does_not_serve_here_gives_way(driver: Driver, name: str, tactic: str) -> None:
    """As on a GPU with less memory than that of the build; here it is windows of 81 tokens."""
    tensors, attributes = case(BY_NAME[name], torch.float16, replace(SIZES, window=9, ct_size=0))
    done = driver.execute(name, attributes, [Input(tensor) for tensor in tensors], tactic=TACTICS[tactic])
    judge(BY_NAME[name], done.result, tensors, attributes)
    (line,) = done.errors
    assert line.endswith(f"; the engine was tuned for the {tactic} kernel, taking another")
    assert "81" in line


def test_tactics_are_those_that_serve_the_case(driver: Driver) -> None:
    def tactics(dtype: torch.dtype, tokens: int, **scales: float) -> list[int]:
        bias = torch.empty(1, 2, tokens, tokens, dtype=torch.float16 if dtype == torch.int8 else dtype)
        given = [Input(torch.empty(3 * tokens, 192, dtype=dtype)), Input(bias)]
        return driver.describe("WindowAttention", scales, given).answer["tactics"]

    resident, streamed = TACTICS["resident"], TACTICS["streamed"]
    assert tactics(torch.float16, 53) == [resident, streamed]
    assert tactics(torch.bfloat16, 144) == [streamed]
    assert tactics(torch.int8, 53, **SCALES) == [resident]
    assert tactics(torch.float32, 53) == []  # there is but one kernel: nothing to measure


@pytest.mark.parametrize("operator", WITH_MAPS, ids=name_of)
@every_dtype
def test_maps_may_be_channels_last(driver: Driver, operator: Operator, dtype: torch.dtype) -> None:
    tensors, attributes = case(operator, dtype)
    given = [Input(x, channels_last=n.endswith("BCHW")) for n, x in zip(operator.inputs, tensors, strict=True)]
    result = driver.run(operator.onnx_name, attributes, given, channels_last="Reverse" in operator.onnx_name)
    assert torch.equal(result, driver.run(operator.onnx_name, attributes, [Input(tensor) for tensor in tensors]))


def test_int8_is_what_the_kernel_computes(driver: Driver) -> None:
    """With other scales, other integers: both reach the kernel, each in its place."""
    qkv, bias = case(BY_NAME["WindowAttention"], torch.float32)[0]
    tensors = ((qkv / SCALES["qkv_scale"]).round().clamp(-127, 127).to(torch.int8), bias.half())
    on_device = [tensor.to(driver.device) for tensor in tensors]
    for scales in (SCALES, {"qkv_scale": 0.02, "context_scale": 0.01}):
        result = driver.run("WindowAttention", scales, [Input(tensor) for tensor in tensors])
        assert result.dtype == torch.int8
        assert result.unique().numel() > 20
        assert torch.equal(result, driver.kernels.window_attention(*on_device, **scales).cpu())


@every_operator
def test_an_empty_batch_is_no_work(driver: Driver, operator: Operator) -> None:
    tensors, attributes = case(operator, torch.float16)
    empty = [x[:0] if n in operator.batched else x for n, x in zip(operator.inputs, tensors, strict=True)]
    result = driver.run(operator.onnx_name, attributes, [Input(tensor) for tensor in empty])
    assert result.shape[0] == 0


def test_the_driver_runs_all_tactics_at_once(driver: Driver, tmp_path: Path) -> None:
    given = inputs(BY_NAME["WindowAttention"])
    for i, tensor in enumerate(given):
        (tmp_path / str(i)).write_bytes(tensor.bytes())
    files = [part for i, tensor in enumerate(given) for part in ("--input", tensor.argument(tmp_path / str(i)))]
    done = driver.command(["WindowAttention", *files, "--output", tmp_path / "result", "--tactic", "all"])
    assert done.returncode == 0, done.stderr
    tactics = [TACTICS[name] for name in TACTICS_OF["WindowAttention"]]
    assert [ran["tactic"] for ran in json.loads(done.stdout)["ran"]] == tactics
    expected = driver.run("WindowAttention", {}, given).view(torch.uint8).numpy().tobytes()
    for tactic in tactics:
        assert len((tmp_path / f"result.{tactic}").read_bytes()) == len(expected)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["Softmax"], "has no operator Softmax; without an operator this lists what it has"),
        (["WindowAttention", "--fast"], "unknown argument --fast"),
        (["WindowAttention", "--input"], "--input needs a value"),
        (["WindowAttention", "--input", "x:fp16"], "--input x:fp16: must be FILE:TYPE:SHAPE[:FORMAT]"),
        (["WindowAttention", "--input", "x:fp64:1x2"], "'fp64' is no type: fp32, fp16, bf16, int8"),
        (["WindowAttention", "--input", "x:fp16:1xtwo"], "'two' is no number"),
        (["WindowAttention", "--attribute", "eps"], "--attribute eps: must be NAME=VALUE"),
        (["WindowAttention", "--attribute", "eps=small"], "--attribute eps=small: 'small' is no number"),
    ],
)
def test_the_driver_explains_itself(driver: Driver, arguments: list[str], error: str) -> None:
    done = driver.command(arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(error)


# Shapes.


@every_operator
def test_shapes_follow_the_batch(driver: Driver, operator: Operator) -> None:
    """What comes out is a formula of what is unknown, and right for another batch."""
    tensors, attributes = case(operator, torch.float16)
    batched = [n in operator.batched for n in operator.inputs]
    given = [Input(x, unknown={0: 99999} if b else None) for x, b in zip(tensors, batched, strict=True)]
    answer = driver.describe(operator.onnx_name, attributes, given).answer
    assert tuple(answer["shape"]) == result_shape(operator, SIZES)
    five = replace(SIZES, batch=5)
    shapes = {f"i{i}": tuple(x.shape) for i, x in enumerate(inputs_of(operator, five)[0])}
    assert tuple(eval(formula, shapes) for formula in answer["formulas"]) == result_shape(operator, five)
    assert [formula for formula in answer["formulas"][1:] if not formula.isdigit()] == []  # constant when built


def test_partitions_follow_the_resolution(driver: Driver) -> None:
    (x, table), attributes = case(BY_NAME["WindowPartition"], torch.float16)
    unknown = {0: 9, 2: 999, 3: 999}
    answer = driver.describe("WindowPartition", attributes, [Input(x, unknown), Input(table)]).answer
    windows = eval(answer["formulas"][0], {"i0": (5, 32, 12, 21)})
    assert windows == 5 * 4 * 7


def test_the_workspace_is_enough_for_the_largest_batch(driver: Driver) -> None:
    tensors, attributes = case(BY_NAME["CarrierAttention"], torch.float16)

    def workspace(most: int) -> int:
        first = Input(tensors[0], unknown={0: most})
        given = [first, *(Input(tensor) for tensor in tensors[1:])]
        return driver.describe("CarrierAttention", attributes, given).answer["workspace"]

    windows = tensors[0].shape[0]
    assert workspace(windows * 8) >= 8 * workspace(windows) > 0


# Axes that can be larger without a contradiction: a batch, or channels that nothing else names.
FREE = {
    ("WindowPartition", "x_BCHW", 0),
    ("WindowReverse", "tok_WnNC", 2),
    ("WindowReverseWithCarriers", "tok_WnNC", 2),
    ("CarrierAttention", "tok_WnNC", 1),
}


@every_operator
def test_shapes_that_contradict_each_other_are_refused(driver: Driver, operator: Operator) -> None:
    tensors, attributes = case(operator, torch.float16)
    for i, (name, tensor) in enumerate(zip(operator.inputs, tensors, strict=True)):
        for axis in range(tensor.ndim):
            if (operator.onnx_name, name, axis) in FREE:
                continue
            shape = [size + (k == axis) for k, size in enumerate(tensor.shape)]
            wrong = [*tensors[:i], torch.empty(shape, dtype=tensor.dtype), *tensors[i + 1 :]]
            done = driver.describe(operator.onnx_name, attributes, [Input(x) for x in wrong])
            assert done.code == 2, (name, shape)
            assert any(f": {operator.onnx_name}: " in line for line in done.errors), done.errors


@every_operator
def test_axes_are_counted(driver: Driver, operator: Operator) -> None:
    tensors, attributes = case(operator, torch.float16)
    for i, tensor in enumerate(tensors):
        for wrong in (tensor[None], tensor[0]):
            given = [Input(x) for x in (*tensors[:i], wrong, *tensors[i + 1 :])]
            done = driver.describe(operator.onnx_name, attributes, given)
            assert done.code == 2
            assert any(f" {wrong.ndim} axes, must have {tensor.ndim}" in line for line in done.errors), done.errors


# Formats.


def formats(driver: Driver, operator: Operator, sizes: Sizes = SIZES, **attributes: float) -> set[str]:
    answer = driver.describe(
        operator.onnx_name,
        {**case(operator, torch.float16, sizes)[1], **attributes},
        inputs(operator, sizes=sizes),
        "--formats",
    ).answer
    assert len(answer["formats"]) == len(set(answer["formats"]))
    return set(answer["formats"])


def all_of(dtype: str, operator: Operator, map_format: str = "linear") -> str:
    """One type for all tensors, and a format for the maps among them."""
    names = [*operator.inputs, "map_BCHW" if "Reverse" in operator.onnx_name else "tokens"]
    return " ".join(f"{dtype}:{map_format if name.endswith('BCHW') else 'linear'}" for name in names)


@every_operator
def test_types_and_formats(driver: Driver, operator: Operator) -> None:
    linear = {all_of(dtype, operator) for dtype in ("fp32", "fp16", "bf16")}
    last = {("fp32", "hwc"), ("fp16", "hwc8"), ("bf16", "hwc8")}
    maps = {all_of(dtype, operator, layout) for dtype, layout in last}
    assert formats(driver, operator) == linear | maps  # without maps, the same


def test_int8_needs_scales(driver: Driver) -> None:
    operator = BY_NAME["WindowAttention"]
    assert formats(driver, operator, **SCALES) - formats(driver, operator) == {"int8:linear fp16:linear int8:linear"}


@pytest.mark.parametrize("name", ["WindowPartitionWithCarriers", "WindowReverseWithPropagation"])
def test_channels_that_tensorrt_would_pad_are_not_offered(driver: Driver, name: str) -> None:
    """kHWC8 of 12 channels lies in memory as 16 do."""
    found = formats(driver, BY_NAME[name], replace(SIZES, channels=12))
    assert all_of("fp16", BY_NAME[name]) in found
    assert not [combination for combination in found if "hwc8" in combination]


# Refusals.


def test_what_no_kernel_serves_is_refused_once_with_the_reason(driver: Driver) -> None:
    """FasterViT-4 has a head dim of 49, which only the plain kernel knows."""
    operator, sizes = BY_NAME["WindowAttention"], replace(SIZES, channels=98)
    reason = "WindowAttention: head dim 49 in {}; served are multiples of 8 up to 80"
    in_fp32 = driver.describe("WindowAttention", {}, inputs(operator, torch.float32, sizes))
    assert (in_fp32.code, in_fp32.errors) == (0, [])
    in_fp16 = driver.describe("WindowAttention", {}, inputs(operator, sizes=sizes), "--formats")  # asks for fp16 twice
    assert in_fp16.code == 2
    assert in_fp16.errors[:-1] == [f"warning: {reason.format(dtype)}" for dtype in ("fp16", "bf16")]


def test_a_refusal_does_not_wait_for_the_batch(driver: Driver) -> None:
    qkv, bias = case(BY_NAME["WindowAttention"], torch.float16, replace(SIZES, channels=98))[0]
    done = driver.describe("WindowAttention", {}, [Input(qkv, unknown={0: 9999}), Input(bias)])
    assert "warning: WindowAttention: head dim 49" in done.errors[0]


def test_a_tactic_of_another_version_is_refused(driver: Driver) -> None:
    given = inputs(BY_NAME["WindowAttention"])
    with pytest.raises(
        AssertionError, match="WindowAttention: tactic 17 is unknown; build the engine with this version"
    ):
        driver.run("WindowAttention", {}, given, tactic=17)


# Attributes.


@every_operator
def test_attributes_survive_a_plan(driver: Driver, operator: Operator) -> None:
    _, attributes = case(operator, torch.float16)
    ours = {**attributes, **(SCALES if operator.onnx_name == "WindowAttention" else {})}
    foreign = {"reshape_0_shape": 7, "slope": 0.5}  # constants of the function's body
    answer = driver.describe(operator.onnx_name, {**ours, **foreign}, inputs(operator)).answer
    assert answer["fields"] == pytest.approx(ours)
    assert all(f" {name}=" in answer["timing_cache_id"] for name in ours)
    assert answer["timing_cache_id"].startswith(__version__)  # of other kernels, other timings


def test_plugins_with_other_attributes_are_timed_apart(driver: Driver) -> None:
    def cache_id(height: int) -> str:
        given = [Input(torch.empty(4, 9, 32, dtype=torch.float16))]
        attributes = {"window": 3, "height": height, "width": 36 // height}
        return driver.describe("WindowReverse", attributes, given).answer["timing_cache_id"]

    assert cache_id(3) != cache_id(12)


WINDOWED = {"window": 7, "height": 14, "width": 14}
WRONG_ATTRIBUTES: list[tuple[str, dict[str, int | float], str]] = [
    ("WindowPartition", {}, "attribute window is missing, must be an integer from 1 to 256"),
    ("WindowPartition", {"window": 0}, "attribute window is 0, must be an integer from 1 to 256"),
    ("WindowPartition", {"window": -7}, "attribute window is -7, must be an integer from 1 to 256"),
    ("WindowPartition", {"window": 257}, "attribute window is 257, must be an integer from 1 to 256"),
    ("WindowPartition", {"window": 7.0}, "attribute window must be an integer from 1 to 256"),
    ("WindowPartitionWithCarriers", {"carriers": 4}, "attribute window is missing"),
    ("WindowAttention", {"qkv_scale": 0.1}, "both must be above 0 (int8) or left out"),
    ("WindowAttention", {"context_scale": 0.1}, "both must be above 0 (int8) or left out"),
    ("WindowAttention", {"qkv_scale": -0.1, "context_scale": 0.1}, "attribute qkv_scale is -0.1, must be a float"),
    ("WindowAttention", {"qkv_scale": 1, "context_scale": 1}, "attribute qkv_scale must be a float from 0 to 1e+06"),
    ("FusedWindowAttention", {}, "attribute eps is missing, must be a float from 0 to 1"),
    ("FusedWindowAttention", {"eps": float("nan")}, "attribute eps is nan, must be a float from 0 to 1"),
    ("CarrierAttention", {"eps": 1e-5}, "attribute carriers is missing, must be an integer from 1 to 256"),
    ("CarrierAttention", {"eps": -1e-5, "carriers": 4}, "attribute eps is -1e-05, must be a float from 0 to 1"),
    ("CarrierAttention", {"eps": 1e-5, "carriers": 0}, "attribute carriers is 0, must be an integer from 1 to 256"),
    ("WindowReverse", {"window": 7, "height": 14}, "attribute width is missing, must be an integer from 1 to 32768"),
    ("WindowReverse", {**WINDOWED, "height": 15}, "height 15 and width 14 must be multiples of window 7"),
    ("WindowReverseWithCarriers", WINDOWED, "attribute carriers is missing, must be an integer from 1 to 256"),
    ("WindowReverseWithPropagation", {**WINDOWED, "carriers": 3}, "attribute carriers is 3, must be a square number"),
]


# TensorRT's registry. Never in this process: plugins that TensorRT-RTX knows of abort its engine builds.


def in_registry(module: str, library: Path, code: str, **values: Any) -> tuple[Any, list[str]]:
    """Run ``code`` in a process of its own, with that TensorRT's registry; its ``answer``, and lines on stderr."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module}; pip install {module.replace('_', '-')}")
    program = f"""
import ctypes, json, sys
import numpy as np
import {module} as trt

library, values = sys.argv[1], json.loads(sys.argv[2])
registry = trt.get_plugin_registry()

def registered():
    return sorted(creator.name for creator in registry.all_creators if creator.plugin_namespace == "{DOMAIN}")

def create(name, attributes):
    creator = registry.get_creator(name, "{PLUGIN_VERSION}", "{DOMAIN}")
    kinds = {{int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}}
    fields = [
        trt.PluginField(key, np.array([value], kinds[type(value)][0]), kinds[type(value)][1])
        for key, value in attributes.items()
    ]
    return creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)

{code}
print(json.dumps(answer))
"""
    command = [sys.executable, "-c", program, str(library), json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


every_registry = pytest.mark.parametrize("module", REGISTRIES)


@every_registry
def test_tensorrt_loads_the_library_and_creates_plugins(driver: Driver, module: str) -> None:
    code = """
assert registry.load_library(library) is not None
created = {}
for name, attributes in values.items():
    plugin = create(name, attributes)
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    created[name] = [core.plugin_name, core.plugin_version, core.plugin_namespace]
answer = [registered(), created]
"""
    values = {name: {**case(o, torch.float16)[1], "reshape_0_shape": 3} for name, o in BY_NAME.items()}
    (registered, created), errors = in_registry(module, driver.library, code, **values)
    assert registered == sorted(BY_NAME)
    assert created == {name: [name, PLUGIN_VERSION, DOMAIN] for name in BY_NAME}
    assert errors == []


@every_registry
def test_tensorrt_gets_no_plugin_from_wrong_attributes(driver: Driver, module: str) -> None:
    code = """
registry.load_library(library)
answer = [create(name, attributes) is None for name, attributes, _ in values["cases"]]
"""
    refused, errors = in_registry(module, driver.library, code, cases=WRONG_ATTRIBUTES)
    assert all(refused)
    assert len(errors) == len(WRONG_ATTRIBUTES)
    for (name, _, reason), line in zip(WRONG_ATTRIBUTES, errors, strict=True):
        assert line.startswith(f"{name}: ")
        assert reason in line


def test_an_opened_library_registers_itself(driver: Driver) -> None:
    """With a TensorRT of the headers' major version; in others the registry is laid out in another way.

    And loadLibrary, which refuses what is registered already, takes it all the same.
    """
    code = """
steps = [registered()]
opened = ctypes.CDLL(library)
steps.append(registered())
handle = registry.load_library(library)
assert handle is not None
steps.append(registered())
registry.deregister_library(handle)
steps.append(registered())
assert registry.load_library(library) is not None
assert create("WindowPartition", {"window": 7}) is not None
steps.append(registered())
answer = [trt.__version__, steps]
"""
    (version, steps), _ = in_registry("tensorrt_lean", driver.library, code)
    all_of_them = sorted(BY_NAME)
    assert steps == [[], all_of_them if version.split(".")[0] == headers_major() else [], all_of_them, [], all_of_them]


def headers_major() -> str:
    folder = tensorrt_headers()
    if folder is None:
        pytest.skip("no TensorRT headers to tell which the library was built with")
    found = re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_\w+) (\d+)", (folder / "NvInferVersion.h").read_text())
    assert found is not None
    return found[1]


def test_an_opened_library_keeps_away_from_another_tensorrt(driver: Driver) -> None:
    """TensorRT-RTX, whose engine builds abort on plugins, and whose registry may be laid out in another way."""
    registered, _ = in_registry("tensorrt_rtx", driver.library, "ctypes.CDLL(library)\nanswer = registered()")
    assert registered == []


def test_the_library_loads_without_tensorrt(driver: Driver) -> None:
    code = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).fastervit_interface())"
    done = subprocess.run([sys.executable, "-c", code, driver.library], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
