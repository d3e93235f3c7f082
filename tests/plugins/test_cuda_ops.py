"""The operators on CUDA tensors: kernels where they serve a case, PyTorch where not, the same result either way.

Without a GPU the registered functions themselves are called, on CPU tensors and the emulated kernels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins import cuda, operators, reference
from fastervit_trt.plugins.kernels import Kernels
from fastervit_trt.plugins.library import VARIABLE
from tests.plugins.conftest import KernelLibrary
from tests.plugins.judgement import assert_as_good_as
from tests.plugins.recorder import Recorder, compile_c, recorder_source

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = sorted({operator.torch_name for operator in operators.OPERATORS})


class Call(NamedTuple):
    """An operator, shapes of its tensors (None: left out) and its scalars, in the order of its arguments."""

    operator: str
    shapes: tuple[tuple[int, ...] | None, ...]
    scalars: tuple[float, ...]


def attention_weights(rows: int, channels: int, heads: int, head_dim: int) -> tuple[tuple[int, ...], ...]:
    dim = heads * head_dim
    bias = (1, heads, rows, rows)
    return (channels,), (channels,), (3 * dim, channels), (3 * dim,), bias, (channels, dim), (channels,)


CALLS = {
    "partition": Call("window_partition", ((2, 24, 10, 15), None, (1, 25, 24)), (5,)),
    "partition with carriers": Call("window_partition", ((2, 40, 14, 21), (2, 40, 4, 6), (1, 53, 40)), (7,)),
    "partition of one channel": Call("window_partition", ((3, 1, 6, 4), (3, 1, 3, 2), (1, 5, 1)), (2,)),
    "reverse": Call("window_reverse", ((12, 25, 24), None), (0, 5, 10, 15)),
    "reverse with carriers": Call("window_reverse", ((12, 53, 40), None), (4, 7, 14, 21)),
    "reverse with propagation": Call("window_reverse", ((6, 58, 33), (33,)), (9, 7, 14, 21)),
    "attention": Call("window_attention", ((3 * 49, 3 * 2 * 32), (1, 2, 49, 49)), ()),
    "attention of large windows": Call("window_attention", ((2 * 130, 3 * 1 * 24), (1, 1, 130, 130)), ()),
    "carriers": Call("carrier_attention", ((8, 10, 48), (1, 16, 48), *attention_weights(16, 48, 2, 24)), (4, 1e-5)),
    "attention half": Call("fused_window_attention", ((3 * 25, 32), *attention_weights(25, 32, 2, 16)), (1e-5,)),
}
ATTENTION_HALF = CALLS["attention half"]


def random_inputs(call: Call, dtype: torch.dtype, seed: int = 0) -> list[Tensor | None]:
    """Fresh ones, rounded to ``dtype``; weights that keep the size of what they multiply."""
    generator = torch.Generator().manual_seed(seed)
    tensors: list[Tensor | None] = []
    for shape in call.shapes:
        scale = shape[-1] ** -0.5 if shape is not None and len(shape) == 2 and call.scalars else 1.0
        tensors.append(None if shape is None else (torch.randn(shape, generator=generator) * scale).to(dtype))
    return tensors


def definition(call: Call) -> Callable[..., Tensor]:
    return getattr(reference, call.operator)


def implementation(call: Call) -> Callable[..., Tensor]:
    return getattr(cuda, call.operator)


def on(device: torch.device | str, tensors: list[Tensor | None]) -> list[Any]:
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def doubled(tensors: list[Tensor | None]) -> list[Any]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def judge(result: Tensor, call: Call, tensors: list[Tensor | None]) -> None:
    """Against the definition in float64, with the definition in this dtype as measure; and as the fake promises."""
    exact = definition(call)(*doubled(tensors), *call.scalars)
    assert_as_good_as(result, definition(call)(*tensors, *call.scalars), exact)
    assert result.is_contiguous()


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    """As if nothing had been warned of or loaded yet."""
    for cached in (cuda._kernels, cuda._warn, cuda._nearest_carrier):
        cached.cache_clear()
    yield
    for cached in (cuda._kernels, cuda._warn, cuda._nearest_carrier):
        cached.cache_clear()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | None], None]:
    """Make a library, or none, the one that is found."""

    def set_variable(path: Path | None) -> None:
        cuda._kernels.cache_clear()
        monkeypatch.setenv(VARIABLE, "nowhere.so" if path is None else str(path))

    return set_variable


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return Recorder(compile_c(recorder_source(), tmp_path_factory.mktemp("recorder") / "recorder.so"))


# Kernels.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_compute_it(
    kernel_library: KernelLibrary, use: Callable[[Path], None], name: str, dtype: torch.dtype
) -> None:
    use(kernel_library.kernels.path)
    call = CALLS[name]
    tensors = random_inputs(call, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that PyTorch computes it
        result = implementation(call)(*on(kernel_library.device, tensors), *call.scalars)
    judge(result, call, tensors)


def shifted(tensor: Tensor) -> Tensor:
    """The same values, contiguous, at an address that is no multiple of 16."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:].view_as(tensor)
    assert memory.data_ptr() % 16
    return memory.copy_(tensor)


def backwards(tensor: Tensor) -> Tensor:
    """The same values with the last axis outermost in memory."""
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


LAYOUTS = {"backwards": backwards, "shifted": shifted, "strided": lambda tensor: tensor.repeat_interleave(2, 0)[::2]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_memory_that_kernels_cannot_read_is_copied(
    kernel_library: KernelLibrary, use: Callable[[Path], None], name: str, layout: str
) -> None:
    use(kernel_library.kernels.path)
    call = CALLS[name]
    tensors = on(kernel_library.device, random_inputs(call, torch.float16))
    expected = implementation(call)(*tensors, *call.scalars)
    others = [None if tensor is None else LAYOUTS[layout](tensor) for tensor in tensors]
    assert torch.equal(implementation(call)(*others, *call.scalars), expected)


@pytest.mark.parametrize("name", ["partition", "partition with carriers"])
def test_channels_last_maps_mean_the_same(
    kernel_library: KernelLibrary, use: Callable[[Path], None], name: str
) -> None:
    use(kernel_library.kernels.path)
    call = CALLS[name]
    x, carriers, table = on(kernel_library.device, random_inputs(call, torch.float16))
    expected = implementation(call)(x, carriers, table, *call.scalars)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(implementation(call)(last, carriers, table, *call.scalars), expected)
    if carriers is not None:  # in the other layout
        carriers = carriers.contiguous(memory_format=torch.channels_last)
        assert torch.equal(implementation(call)(x, carriers, table, *call.scalars), expected)


def test_channels_last_maps_are_read_where_they_lie(recorder: Recorder, use: Callable[[Path], None]) -> None:
    use(recorder.path)
    call = CALLS["partition with carriers"]
    for last in (False, True):
        recorder.prepare()
        layout = torch.channels_last if last else torch.contiguous_format
        x, carriers, table = random_inputs(call, torch.float16)
        assert x is not None and carriers is not None
        x, carriers = x.contiguous(memory_format=layout), carriers.contiguous(memory_format=layout)
        cuda.window_partition(x, carriers, table, 7)  # type: ignore[arg-type]
        name, values = recorder.calls[-1]
        assert (name, values["channels_last"]) == ("window_partition", str(int(last)))
        assert (values["map"], values["carriers"]) == (hex(x.data_ptr()), hex(carriers.data_ptr()))


def test_the_attention_half_is_carrier_attention_without_a_table(
    recorder: Recorder, use: Callable[[Path], None]
) -> None:
    use(recorder.path)
    recorder.prepare()
    tensors = random_inputs(ATTENTION_HALF, torch.float16)
    cuda.fused_window_attention(*tensors, *ATTENTION_HALF.scalars)  # type: ignore[arg-type]
    name, values = recorder.calls[-1]
    expected = {"table": "(nil)", "images": "3", "carriers_of_image": "25", "carriers_per_window": "25"}
    expected |= {"tokens_per_window": "25", "channels": "32", "heads": "2", "head_dim": "16"}
    assert name == "carrier_attention"
    assert {key: values[key] for key in expected} == expected


def test_a_failed_launch_is_no_case_for_pytorch(recorder: Recorder, use: Callable[[Path], None]) -> None:
    use(recorder.path)
    recorder.prepare(code=719)
    call = CALLS["attention"]
    with pytest.raises(FasterViTError, match="window_attention failed: emulated CUDA error 719"):
        implementation(call)(*random_inputs(call, torch.float16))


# PyTorch in their place.


def equal_to_definition(call: Call, tensors: list[Any]) -> None:
    before = [None if tensor is None else tensor.clone() for tensor in tensors]
    result = implementation(call)(*tensors, *call.scalars)
    assert torch.equal(result, definition(call)(*tensors, *call.scalars))
    assert result.is_contiguous()
    result.fill_(torch.nan)  # memory of its own
    assert all(old is None or torch.equal(new, old) for new, old in zip(tensors, before, strict=True))


DEGENERATE = {
    "one window": Call("window_reverse", ((1, 9, 8), None), (0, 3, 3, 3)),
    "one token": Call("window_reverse", ((4, 1, 8), None), (0, 1, 1, 1)),
    "one channel": Call("window_reverse", ((1, 9, 1), None), (0, 3, 3, 3)),
    "one of everything": Call("window_attention", ((1, 3), (1, 1, 1, 1)), ()),
}


@pytest.mark.parametrize("name", {**CALLS, **DEGENERATE})
def test_without_a_library_the_definition_runs(use: Callable[[None], None], name: str) -> None:
    use(None)
    call = {**CALLS, **DEGENERATE}[name]
    with pytest.warns(UserWarning, match="PyTorch code") as caught:
        equal_to_definition(call, random_inputs(call, torch.float16))
    (warning,) = caught
    message = "FasterViT's operators run as PyTorch code on CUDA: Plugin library not found. Looked in: nowhere.so."
    assert str(warning.message).startswith(message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once per process
        equal_to_definition(call, random_inputs(call, torch.float16))


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_case_runs_as_the_definition_and_is_told_once(
    recorder: Recorder, use: Callable[[Path], None], name: str
) -> None:
    use(recorder.path)
    call = CALLS[name]
    recorder.prepare(refusal="heads of 99; served are others")
    with pytest.warns(UserWarning, match="PyTorch code") as caught:
        equal_to_definition(call, random_inputs(call, torch.float16))
    (warning,) = caught
    expected = f"fastervit::{call.operator} runs as PyTorch code on CUDA: heads of 99; served are others"
    assert str(warning.message) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal_to_definition(call, random_inputs(call, torch.float16))
    recorder.prepare(refusal="another reason")
    with pytest.warns(UserWarning, match="another reason"):
        equal_to_definition(call, random_inputs(call, torch.float16))


def test_a_gpu_that_is_not_compiled_for_runs_the_definition(recorder: Recorder, use: Callable[[Path], None]) -> None:
    use(recorder.path)
    recorder.prepare(code=209)
    call = CALLS["attention"]
    with pytest.warns(UserWarning, match="not compiled for this GPU"):
        equal_to_definition(call, random_inputs(call, torch.float16))


@pytest.mark.parametrize("name", CALLS)
def test_float64_runs_as_the_definition(recorder: Recorder, use: Callable[[Path], None], name: str) -> None:
    use(recorder.path)
    recorder.prepare()
    call = CALLS[name]
    with pytest.warns(UserWarning, match=r"torch.float64 is not served, only float32, float16, bfloat16, int8$"):
        equal_to_definition(call, random_inputs(call, torch.float64))
    assert recorder.calls == []


def test_mixed_dtypes_run_as_the_definition(recorder: Recorder, use: Callable[[Path], None]) -> None:
    use(recorder.path)
    recorder.prepare()
    call = CALLS["partition"]
    x, _, table = random_inputs(call, torch.float32)
    assert x is not None
    with pytest.warns(UserWarning, match=r"tensors of torch.float16 and torch.float32; one dtype for all is served$"):
        equal_to_definition(call, [x.half(), None, table])
    assert recorder.calls == []


def test_registration_is_for_cuda_and_for_every_operator(tmp_path: Path) -> None:
    cuda.register_cuda_kernels()
    assert len(NAMES) == 5
    for name in NAMES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{operators.DOMAIN}::{name}", "CUDA")
    cuda.register_cuda_kernels()  # again does no harm
    call = CALLS["attention"]
    tensors = random_inputs(call, torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody looks for a library on behalf of CPU tensors
        result = torch.ops.fastervit.window_attention(*tensors)
    assert torch.equal(result, reference.window_attention(*tensors))  # type: ignore[arg-type]


# On a GPU, as torch.ops.


@pytest.fixture
def gpu(use: Callable[[Path], None]) -> Kernels:
    """The library of this machine's GPU, registered."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    kernels = cuda._kernels()
    if kernels is None or kernels.device_type != "cuda":
        pytest.skip("no library of CUDA kernels has been built")
    cuda.register_cuda_kernels()
    return kernels


def torch_operator(call: Call) -> Any:
    return getattr(getattr(torch.ops, operators.DOMAIN), call.operator)


def poison_free_memory() -> None:
    """What is allocated next holds NaN wherever a kernel forgets to write."""
    torch.cuda.empty_cache()
    for count in (2**18, 2**22, 2**26):  # small and large blocks of PyTorch's allocator
        blocks = [torch.full((count // 16,), torch.nan, device="cuda") for _ in range(16)]
        del blocks


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_gpu_operators_compute_it(gpu: Kernels, name: str, dtype: torch.dtype, seed: int) -> None:
    call = CALLS[name]
    tensors = random_inputs(call, dtype, seed)
    poison_free_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = torch_operator(call)(*on("cuda", tensors), *call.scalars)
    judge(result, call, tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_gpu_opcheck(gpu: Kernels, name: str) -> None:
    call = CALLS[name]
    torch.library.opcheck(torch_operator(call), (*on("cuda", random_inputs(call, torch.float16)), *call.scalars))


@pytest.mark.gpu
@pytest.mark.parametrize("served", [True, False], ids=["kernels", "PyTorch"])
@pytest.mark.parametrize("name", CALLS)
@torch.inference_mode()
def test_gpu_calls_are_captured_into_graphs(gpu: Kernels, use: Callable[[None], None], name: str, served: bool) -> None:
    if not served:
        use(None)
    call, operator = CALLS[name], torch_operator(CALLS[name])
    static = on("cuda", random_inputs(call, torch.float16))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator(*static, *call.scalars)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = operator(*static, *call.scalars)
    for seed in (1, 2):
        fresh = random_inputs(call, torch.float16, seed)
        for old, new in zip(static, fresh, strict=True):
            if old is not None:
                old.copy_(new)
        result.fill_(torch.nan)
        graph.replay()
        judge(result, call, fresh)


@pytest.mark.gpu
def test_gpu_kernels_run_on_the_current_stream(gpu: Kernels) -> None:
    call = CALLS["attention"]
    tensors = random_inputs(call, torch.float16)
    ready = on("cuda", tensors)
    inputs = [torch.full_like(tensor, torch.nan) for tensor in ready]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # on another stream the kernel would be done before its inputs are there
        for static, tensor in zip(inputs, ready, strict=True):
            static.copy_(tensor)
        result = torch_operator(call)(*inputs)
    stream.synchronize()
    judge(result, call, tensors)


@pytest.mark.gpu
def test_gpu_tensors_of_another_than_the_current_device(gpu: Kernels) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    call = CALLS["carriers"]
    tensors = random_inputs(call, torch.float16)
    with torch.cuda.device(0):
        result = torch_operator(call)(*on("cuda:1", tensors), *call.scalars)
    assert result.device == torch.device("cuda", 1)
    judge(result, call, tensors)


@pytest.mark.gpu
def test_gpu_errors_are_spelled_out(gpu: Kernels) -> None:
    assert re.fullmatch(r"CUDA error 1: \w[\w ]+", gpu._error(1))
