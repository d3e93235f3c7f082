"""The bindings: the table is the headers, and every call hands over what it was given or says what is wrong with it.

Nothing is computed here: the library is the one of :mod:`recorder`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.kernels import DTYPES, SIGNATURES, TACTICS, Kernels, Signature, UnsupportedError
from tests.conftest import ROOT
from tests.plugins.recorder import HEADERS, Recorder, compile_c, declarations, recorder_source

C_NAMES = {"c_int": "int", "c_float": "float", "c_void_p": "void*", "c_char_p": "const char*"}
C_NAMES |= {"c_long": "long long", "c_longlong": "long long"}  # one type where long has 64 bits


def spelled(signature: Signature) -> tuple[str, list[tuple[str, str]]]:
    """As :func:`declarations` does, pointers all being void*."""
    parameters = [(C_NAMES[kind.__name__], name) for name, kind in signature.parameters.items()]
    return C_NAMES[signature.returns.__name__], parameters


def test_declarations_are_read() -> None:
    text = """
        /* FASTERVIT_API int fastervit_comment(int a); */
        FASTERVIT_API const char* fastervit_f(int a,
                                              float b);
        FASTERVIT_API long long fastervit_g(const void* p, void* q);
    """
    assert declarations(text) == {
        "f": ("const char*", [("int", "a"), ("float", "b")]),
        "g": ("long long", [("const void*", "p"), ("void*", "q")]),
    }


def test_the_table_is_the_headers() -> None:
    assert len(HEADERS) == 4
    found: dict[str, Any] = {}
    for header in HEADERS:
        text = header.read_text()
        functions = declarations(text)
        assert len(functions) == text.count("FASTERVIT_API")
        found |= functions
    as_table = {
        name: (returns, [(kind.replace("const void*", "void*"), parameter) for kind, parameter in parameters])
        for name, (returns, parameters) in found.items()
    }
    assert as_table == {name: spelled(signature) for name, signature in SIGNATURES.items()}


def test_numbers_of_dtypes_and_tactics_are_those_of_the_header() -> None:
    text = (ROOT / "plugins" / "csrc" / "common" / "types.h").read_text()
    enums = [
        dict(re.findall(r"FASTERVIT_(\w+) = (\d+)", body)) for body in re.findall(r"enum \w+ \{(.*?)\}", text, re.S)
    ]
    dtypes, tactics = ({name.lower(): int(number) for name, number in enum.items()} for enum in enums)
    assert {str(dtype).removeprefix("torch."): number for dtype, number in DTYPES.items()} == dtypes
    assert tactics == TACTICS


@pytest.fixture(scope="module")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(recorder_source(), tmp_path_factory.mktemp("recorder") / "recorder.so")


@pytest.fixture
def recorder(library_path: Path) -> Recorder:
    recorder = Recorder(library_path)
    recorder.prepare()
    return recorder


def pointer(tensor: torch.Tensor | None) -> str:
    return "(nil)" if tensor is None else f"{tensor.data_ptr():#x}"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# Sizes that no two parameters share, so that none can stand for another: 2 images of 3x5 windows of 7x7 tokens and
# 4 carriers, 24 channels.
MAP, CARRIERS, TABLE = (2, 24, 21, 35), (2, 24, 6, 10), (1, 53, 24)
TOKENS = (30, 53, 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("with_carriers", [True, False])
def test_window_partition_hands_over(recorder: Recorder, with_carriers: bool, last: bool, dtype: torch.dtype) -> None:
    x, carriers, table = (zeros(*shape, dtype=dtype) for shape in (MAP, CARRIERS, TABLE))
    if last:
        x, carriers = channels_last(x), channels_last(carriers)
    given = carriers if with_carriers else None
    table = table if with_carriers else zeros(1, 49, 24, dtype=dtype)
    tokens = recorder.kernels.window_partition(x, given, table, 7)
    assert (tokens.shape, tokens.dtype) == ((30, 53 if with_carriers else 49, 24), dtype)
    case = {"dtype": DTYPES[dtype], "channels": 24, "height": 21, "width": 35, "window": 7}
    case |= {"carriers_per_window": 4 if with_carriers else 0, "channels_last": int(last)}
    pointers = {"tokens": tokens, "map": x, "carriers": given, "table": table, "stream": None}
    expected = {**case, "batch": 2} | {name: pointer(tensor) for name, tensor in pointers.items()}
    assert recorder.calls == [
        ("window_partition_unsupported", {name: str(value) for name, value in case.items()}),
        ("window_partition", {name: str(value) for name, value in expected.items()}),
    ]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("propagates", [True, False])
def test_window_reverse_hands_over(recorder: Recorder, propagates: bool, last: bool) -> None:
    tokens, gamma = zeros(*TOKENS), zeros(24) if propagates else None
    x = recorder.kernels.window_reverse(tokens, gamma, 4, 7, 21, 35, channels_last=last)
    assert x.shape == MAP
    assert x.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    case = {"dtype": 0, "channels": 24, "height": 21, "width": 35, "window": 7, "carriers_per_window": 4}
    case |= {"channels_last": int(last)}
    pointers = {"map": x, "tokens": tokens, "gamma": gamma, "stream": None}
    expected = {**case, "batch": 2} | {name: pointer(tensor) for name, tensor in pointers.items()}
    assert recorder.calls == [
        ("window_reverse_unsupported", {n: str(v) for n, v in {**case, "propagates": int(propagates)}.items()}),
        ("window_reverse", {name: str(value) for name, value in expected.items()}),
    ]


@pytest.mark.parametrize("tactic", TACTICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_window_attention_hands_over(recorder: Recorder, dtype: torch.dtype, tactic: str) -> None:
    qkv, bias = zeros(5 * 53, 3 * 8 * 32, dtype=dtype), zeros(1, 8, 53, 53, dtype=dtype)
    if dtype == torch.int8:
        bias = bias.half()
    context = recorder.kernels.window_attention(qkv, bias, tactic, qkv_scale=0.5, context_scale=0.25)
    assert (context.shape, context.dtype) == ((5 * 53, 8 * 32), dtype)
    case = {"tactic": TACTICS[tactic], "dtype": DTYPES[dtype], "tokens": 53, "heads": 8, "head_dim": 32}
    pointers = {"context": context, "qkv": qkv, "bias": bias, "stream": None}
    expected = {**case, "windows": 5, "qkv_scale": 0.5, "context_scale": 0.25}
    expected |= {name: pointer(tensor) for name, tensor in pointers.items()}
    assert recorder.calls == [
        ("window_attention_unsupported", {name: str(value) for name, value in case.items()}),
        ("window_attention", {name: str(value) for name, value in expected.items()}),
    ]


# 2 images of 3 windows, 4 carriers and 9 tokens in each, 20 channels, 3 heads of 8.
WEIGHTS = {
    "norm_weight": (20,),
    "norm_bias": (20,),
    "qkv_weight": (72, 20),
    "qkv_bias": (72,),
    "bias": (1, 3, 12, 12),
    "proj_weight": (20, 24),
    "proj_bias": (20,),
}


@pytest.mark.parametrize("with_table", [True, False])
def test_carrier_attention_hands_over(recorder: Recorder, with_table: bool) -> None:
    tokens, table = zeros(6, 13, 20), zeros(1, 12, 20) if with_table else None
    weights = {name: zeros(*shape) for name, shape in WEIGHTS.items()}
    out = recorder.kernels.carrier_attention(tokens, table, *weights.values(), 4, 0.125, "staged")
    assert out.shape == (24, 20)
    case = {"tactic": 4, "dtype": 0, "channels": 20, "heads": 3, "head_dim": 8, "carriers_of_image": 12}
    case |= {"carriers_per_window": 4}
    size = {"tactic": 4, "dtype": 0, "images": 2, "carriers_of_image": 12, "heads": 3, "head_dim": 8}
    pointers = {"out": out, "tokens": tokens, "table": table, **weights, "stream": None}
    expected = {**case, "images": 2, "tokens_per_window": 13, "epsilon": 0.125}
    expected |= {name: pointer(tensor) for name, tensor in pointers.items()}
    asked, sized, (name, launched) = recorder.calls
    assert asked == ("carrier_attention_unsupported", {n: str(v) for n, v in {**case, "shared_memory": 0}.items()})
    assert sized == ("carrier_attention_workspace", {name: str(value) for name, value in size.items()})
    workspace = launched.pop("workspace")
    assert (name, launched) == ("carrier_attention", {name: str(value) for name, value in expected.items()})
    assert workspace not in {"(nil)", *launched.values()}


def call(operator: str, **changes: Any) -> Callable[[Kernels], torch.Tensor]:
    """A correct call of ``operator`` but for ``changes``."""
    arguments: dict[str, dict[str, Any]] = {
        "window_partition": {
            "x_BCHW": zeros(*MAP),
            "carriers_BCHW": zeros(*CARRIERS),
            "table_1NC": zeros(*TABLE),
            "window": 7,
        },
        "window_reverse": {
            "tok_WnNC": zeros(*TOKENS),
            "gamma_C": zeros(24),
            "carriers": 4,
            "window": 7,
            "height": 21,
            "width": 35,
        },
        "window_attention": {"qkv_X3D": zeros(265, 768), "bias_1hNN": zeros(1, 8, 53, 53)},
        "carrier_attention": {
            "tok_WnNC": zeros(6, 13, 20),
            "table_1GC": zeros(1, 12, 20),
            "norm_weight_C": zeros(20),
            "norm_bias_C": zeros(20),
            "qkv_weight_3DC": zeros(72, 20),
            "qkv_bias_3D": zeros(72),
            "bias_1hGG": zeros(1, 3, 12, 12),
            "proj_weight_CD": zeros(20, 24),
            "proj_bias_C": zeros(20),
            "carriers": 4,
            "eps": 1e-5,
        },
    }
    given = {**arguments[operator], **changes}
    return lambda kernels: getattr(kernels, operator)(**given)


OPERATORS = ("window_partition", "window_reverse", "window_attention", "carrier_attention")
RESULTS = {
    "window_partition": TOKENS,
    "window_reverse": MAP,
    "window_attention": (265, 256),
    "carrier_attention": (24, 20),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_out_receives_the_result(recorder: Recorder, operator: str) -> None:
    out = zeros(*RESULTS[operator])
    assert call(operator, out=out)(recorder.kernels) is out
    assert pointer(out) in recorder.calls[-1][1].values()


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_refusal_of_the_library_is_told_and_nothing_launched(recorder: Recorder, operator: str) -> None:
    recorder.prepare(refusal=f"{operator}: 100% of this is not served")
    with pytest.raises(UnsupportedError, match=f"^{operator}: 100% of this is not served$"):
        call(operator)(recorder.kernels)
    assert recorder.names == [f"{operator}_unsupported"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_failed_launch_is_told(recorder: Recorder, operator: str) -> None:
    recorder.prepare(code=700)
    with pytest.raises(FasterViTError) as error:
        call(operator)(recorder.kernels)
    assert str(error.value) == f"{operator} failed: emulated CUDA error 700: thread 3 of block 1 fell over"
    assert not isinstance(error.value, UnsupportedError)  # which would be answered by computing it in PyTorch


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_gpu_that_the_library_was_not_compiled_for_is_a_refusal(recorder: Recorder, operator: str) -> None:
    recorder.prepare(code=209)
    with pytest.raises(
        UnsupportedError, match=f"^{operator}: .*recorder.so is not compiled for this GPU; add it to FAST"
    ):
        call(operator)(recorder.kernels)


def misaligned(*shape: int) -> torch.Tensor:
    tensor = zeros(torch.Size(shape).numel() + 1)[1:].view(shape)
    assert tensor.data_ptr() % 16 == 4
    return tensor


BAD = {
    "map is a vector": ("window_partition", {"x_BCHW": zeros(5)}, "map has 1 axes"),
    "map is transposed": ("window_partition", {"x_BCHW": zeros(2, 24, 35, 21).mT}, "map is not contiguous"),
    "map is channels last, carriers are not": (
        "window_partition",
        {"x_BCHW": channels_last(zeros(*MAP))},
        "carriers is not contiguous",
    ),
    "carriers are channels last, map is not": (
        "window_partition",
        {"carriers_BCHW": channels_last(zeros(*CARRIERS))},
        "map is not contiguous",
    ),
    "carriers of fewer windows": ("window_partition", {"carriers_BCHW": zeros(2, 24, 4, 10)}, "carriers has shape"),
    "carriers of fewer images": ("window_partition", {"carriers_BCHW": zeros(1, 24, 6, 10)}, "carriers has shape"),
    "table without carriers": ("window_partition", {"table_1NC": zeros(1, 49, 24)}, "carriers has shape"),
    "table for carriers": (
        "window_partition",
        {"carriers_BCHW": None},
        "table has shape (1, 53, 24), expected is (1, 49",
    ),
    "table of other channels": ("window_partition", {"table_1NC": zeros(1, 53, 23)}, "table has shape"),
    "table in another dtype": (
        "window_partition",
        {"table_1NC": zeros(*TABLE).half()},
        "table is torch.float16 on cpu",
    ),
    "table on another device": (
        "window_partition",
        {"table_1NC": torch.empty(TABLE, device="meta")},
        "table is torch.float32 on meta, expected is torch.float32 on cpu",
    ),
    "misaligned map": ("window_partition", {"x_BCHW": misaligned(*MAP)}, "map does not start at a multiple of 16"),
    "misaligned table": ("window_partition", {"table_1NC": misaligned(*TABLE)}, "table does not start"),
    "out of another shape": ("window_partition", {"out": zeros(30, 53, 25)}, "out has shape (30, 53, 25), expected"),
    "out in another dtype": ("window_partition", {"out": zeros(*TOKENS).half()}, "out is torch.float16"),
    "out transposed": ("window_partition", {"out": zeros(30, 24, 53).mT}, "out is not contiguous"),
    "misaligned out": ("window_partition", {"out": misaligned(*TOKENS)}, "out does not start"),
    "part of an image": ("window_reverse", {"tok_WnNC": zeros(29, 53, 24)}, "29 windows are no multiple of 15"),
    "tokens of another window": ("window_reverse", {"tok_WnNC": zeros(30, 52, 24)}, "tokens has shape"),
    "tokens are a matrix": ("window_reverse", {"tok_WnNC": zeros(30 * 53, 24)}, "tokens has 2 axes"),
    "tokens are transposed": ("window_reverse", {"tok_WnNC": zeros(30, 24, 53).mT}, "tokens is not contiguous"),
    "gamma of other channels": ("window_reverse", {"gamma_C": zeros(23)}, "gamma has shape"),
    "gamma in another dtype": ("window_reverse", {"gamma_C": zeros(24).double()}, "gamma is torch.float64"),
    "out in another layout": ("window_reverse", {"out": channels_last(zeros(*MAP))}, "out is not contiguous"),
    "out contiguous, asked in channels last": (
        "window_reverse",
        {"out": zeros(*MAP), "channels_last": True},
        "out is not contiguous",
    ),
    "qkv is transposed": ("window_attention", {"qkv_X3D": zeros(768, 265).mT}, "qkv is not contiguous"),
    "misaligned qkv": ("window_attention", {"qkv_X3D": misaligned(265, 768)}, "qkv does not start"),
    "part of a window": ("window_attention", {"qkv_X3D": zeros(264, 768)}, "264 rows of qkv are no multiple of 53"),
    "columns for other heads": (
        "window_attention",
        {"qkv_X3D": zeros(265, 767)},
        "columns of qkv are no multiple of 24",
    ),
    "bias is not square": ("window_attention", {"bias_1hNN": zeros(1, 8, 53, 54)}, "bias has shape"),
    "bias per window": ("window_attention", {"bias_1hNN": zeros(5, 8, 53, 53)}, "bias has shape"),
    "bias of a matrix": ("window_attention", {"bias_1hNN": zeros(8, 53, 53)}, "bias has 3 axes"),
    "bias of no heads": ("window_attention", {"bias_1hNN": zeros(1, 0, 53, 53)}, "columns of qkv are no multiple of 0"),
    "int8 with an int8 bias": (
        "window_attention",
        {"qkv_X3D": zeros(265, 768, dtype=torch.int8), "bias_1hNN": zeros(1, 8, 53, 53, dtype=torch.int8)},
        "bias is torch.int8 on cpu, expected is torch.float16",
    ),
    "unknown tactic": ("window_attention", {"tactic": "fast"}, "no tactic 'fast'; known are automatic, plain"),
    "rows are transposed": ("carrier_attention", {"tok_WnNC": zeros(6, 20, 13).mT}, "tokens is not contiguous"),
    "carriers of half an image": ("carrier_attention", {"tok_WnNC": zeros(4, 13, 20)}, "16 carriers of all windows"),
    "more carriers than rows": ("carrier_attention", {"carriers": 14}, "14 carriers do not fit the 13 rows"),
    "no carriers": ("carrier_attention", {"carriers": 0}, "0 carriers do not fit"),
    "heads that split no projection": (
        "carrier_attention",
        {"bias_1hGG": zeros(1, 5, 12, 12)},
        "24 columns of proj_weight",
    ),
    "table of fewer carriers": ("carrier_attention", {"table_1GC": zeros(1, 11, 20)}, "table has shape"),
    "transposed QKV weight": (
        "carrier_attention",
        {"qkv_weight_3DC": zeros(20, 72).mT},
        "qkv_weight is not contiguous",
    ),
    "QKV weight of fewer heads": ("carrier_attention", {"qkv_weight_3DC": zeros(71, 20)}, "qkv_weight has shape"),
    "QKV bias of fewer heads": ("carrier_attention", {"qkv_bias_3D": zeros(71)}, "qkv_bias has shape"),
    "projection of other channels": ("carrier_attention", {"proj_weight_CD": zeros(19, 24)}, "proj_weight has shape"),
    "projection bias in another dtype": (
        "carrier_attention",
        {"proj_bias_C": zeros(20).half()},
        "proj_bias is torch.float16",
    ),
    "misaligned norm weight": ("carrier_attention", {"norm_weight_C": misaligned(20)}, "norm_weight does not start"),
    "norm bias of other channels": ("carrier_attention", {"norm_bias_C": zeros(21)}, "norm_bias has shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_before_the_launch(recorder: Recorder, case: str) -> None:
    operator, changes, message = BAD[case]
    with pytest.raises(FasterViTError, match=re.escape(message)) as error:
        call(operator, **changes)(recorder.kernels)
    assert str(error.value).startswith(operator)
    assert operator not in recorder.names


@pytest.mark.parametrize("operator", OPERATORS)
def test_other_dtypes_are_refused_by_name(recorder: Recorder, operator: str) -> None:
    first = {
        "window_partition": {"x_BCHW": zeros(*MAP).double()},
        "window_reverse": {"tok_WnNC": zeros(*TOKENS).double()},
        "window_attention": {"qkv_X3D": zeros(265, 768).double()},
        "carrier_attention": {"tok_WnNC": zeros(6, 13, 20).double()},
    }[operator]
    message = f"^{operator}: torch.float64 is not served, only float32, float16, bfloat16, int8$"
    with pytest.raises(UnsupportedError, match=message):
        call(operator, **first)(recorder.kernels)
    assert recorder.calls == []


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_do_launches_nothing(recorder: Recorder, operator: str) -> None:
    empty = {
        "window_partition": {"x_BCHW": zeros(0, 24, 21, 35), "carriers_BCHW": zeros(0, 24, 6, 10)},
        "window_reverse": {"tok_WnNC": zeros(0, 53, 24)},
        "window_attention": {"qkv_X3D": zeros(0, 768)},
        "carrier_attention": {"tok_WnNC": zeros(0, 13, 20)},
    }[operator]
    assert call(operator, **empty)(recorder.kernels).shape == (0, *RESULTS[operator][1:])
    assert operator not in recorder.names


# A map with one channel or one pixel is contiguous in both senses, and lies in memory the same way.
@pytest.mark.parametrize(
    ("shape", "carriers", "window"), [((2, 1, 21, 35), (2, 1, 6, 10), 7), ((2, 24, 1, 1), (2, 24, 1, 1), 1)]
)
@pytest.mark.parametrize("last", [False, True])
def test_a_map_in_both_layouts_takes_carriers_in_either(
    recorder: Recorder, shape: tuple[int, ...], carriers: tuple[int, ...], window: int, last: bool
) -> None:
    x, ct = zeros(*shape), zeros(*carriers)
    if last:
        x, ct = channels_last(x), channels_last(ct)
    rows = window**2 + ct.shape[2] * ct.shape[3] // ((shape[2] // window) * (shape[3] // window))
    recorder.kernels.window_partition(x, ct, zeros(1, rows, shape[1]), window)
    assert recorder.names[-1] == "window_partition"


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_gpu_library_refuses_tensors_on_the_cpu(operator: str, tmp_path: Path) -> None:
    kernels = Kernels(compile_c(recorder_source(emulated=False), tmp_path / "gpu.so"))
    assert kernels.device_type == "cuda"
    with pytest.raises(
        FasterViTError, match=f"^{operator}: tensors are on cpu, .*gpu.so runs on cuda; move them there"
    ):
        call(operator)(kernels)


def test_unsupported_asks_and_answers(recorder: Recorder) -> None:
    case = {"tactic": "resident", "dtype": torch.bfloat16, "tokens": 49, "heads": 8, "head_dim": 32}
    assert recorder.kernels.unsupported("window_attention", **case) is None
    expected = {"tactic": "2", "dtype": "2", "tokens": "49", "heads": "8", "head_dim": "32"}
    assert recorder.calls == [("window_attention_unsupported", expected)]
    recorder.prepare(refusal="window_attention: no")
    assert recorder.kernels.unsupported("window_attention", **case) == "window_attention: no"
    assert "float64" in str(recorder.kernels.unsupported("window_attention", **{**case, "dtype": torch.float64}))


def test_a_library_that_lacks_a_function_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    source = recorder_source().replace("int fastervit_window_reverse(", "int fastervit_window_forward(")
    path = tmp_path / "old.so"
    path.with_suffix(".c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", str(path), str(path.with_suffix(".c"))], check=True)
    with pytest.raises(
        FasterViTError, match=r"old.so lacks fastervit_window_reverse; build it again from this version"
    ):
        Kernels(path)
