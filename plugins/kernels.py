"""The compiled kernels as functions of torch tensors: checks what C cannot check, launches on the current stream.

    kernels = Kernels(find_library("kernels"))
    tokens = kernels.window_partition(map, None, table, window=7)

Whoever calls sees to it that tensors are contiguous, and gets the reason when a case is not served
(:class:`UnsupportedError`); :mod:`cuda` is the caller that never fails. Legend of the layouts: :mod:`reference`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins.library import load

__all__ = ["ALIGNMENT", "DTYPES", "SIGNATURES", "TACTICS", "Kernels", "Signature", "UnsupportedError"]

# enum FastervitDataType and FastervitTactic of plugins/csrc/common/types.h
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
TACTICS = {name: i for i, name in enumerate("automatic plain resident streamed staged fused".split())}

ALIGNMENT = 16  # bytes that a kernel reads at once
_NO_KERNEL_IMAGE = 209  # cudaErrorNoKernelImageForDevice
_EMULATOR = "fastervit_emulator_error"  # exported by a library that runs on the CPU, for tests


class UnsupportedError(FasterViTError):
    """The library does not serve this case; the message says what it serves."""


class Signature(NamedTuple):
    """Of a C function: what it returns, and its parameters by name, in order."""

    returns: type[Any]
    parameters: dict[str, type[Any]]


def _c(returns: type[Any], *groups: tuple[type[Any], str]) -> Signature:
    return Signature(returns, {name: kind for kind, names in groups for name in names.split()})


_TEXT, _POINTER, _INT, _FLOAT = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_float

# plugins/csrc/*/kernel.h, without the prefix fastervit_. A test compares the two.
SIGNATURES: dict[str, Signature] = {
    "window_partition_unsupported": _c(
        _TEXT, (_INT, "dtype channels height width window carriers_per_window channels_last")
    ),
    "window_partition": _c(
        _INT,
        (_POINTER, "tokens map carriers table"),
        (_INT, "dtype batch channels height width window carriers_per_window channels_last"),
        (_POINTER, "stream"),
    ),
    "window_reverse_unsupported": _c(
        _TEXT, (_INT, "dtype channels height width window carriers_per_window propagates channels_last")
    ),
    "window_reverse": _c(
        _INT,
        (_POINTER, "map tokens gamma"),
        (_INT, "dtype batch channels height width window carriers_per_window channels_last"),
        (_POINTER, "stream"),
    ),
    "window_attention_unsupported": _c(_TEXT, (_INT, "tactic dtype tokens heads head_dim")),
    "window_attention": _c(
        _INT,
        (_POINTER, "context qkv bias"),
        (_INT, "dtype windows tokens heads head_dim"),
        (_FLOAT, "qkv_scale context_scale"),
        (_INT, "tactic"),
        (_POINTER, "stream"),
    ),
    "carrier_attention_unsupported": _c(
        _TEXT, (_INT, "tactic dtype channels heads head_dim carriers_of_image carriers_per_window shared_memory")
    ),
    "carrier_attention_workspace": _c(
        ctypes.c_longlong, (_INT, "tactic dtype images carriers_of_image heads head_dim")
    ),
    "carrier_attention": _c(
        _INT,
        (_POINTER, "out tokens table norm_weight norm_bias qkv_weight qkv_bias bias proj_weight proj_bias workspace"),
        (_INT, "dtype images carriers_of_image carriers_per_window tokens_per_window channels heads head_dim"),
        (_FLOAT, "epsilon"),
        (_INT, "tactic"),
        (_POINTER, "stream"),
    ),
}


class Kernels:
    """The kernels of one library.

    Tensors are contiguous, on one device and at multiples of 16 bytes. ``out`` receives the result, which is allocated
    where it is left out. Nothing waits for the GPU, so calls can be captured into a CUDA graph.

    Raises:
        UnsupportedError: the library does not serve the case.
        FasterViTError: tensors do not fit each other or the library, or a launch failed.
    """

    def __init__(self, path: Path) -> None:
        library = load(path)
        self.path = path
        self.device_type = "cpu" if hasattr(library, _EMULATOR) else "cuda"
        self._functions = {name: _bind(library, path, name) for name in SIGNATURES}
        if self.device_type == "cpu":
            self._emulator_error = getattr(library, _EMULATOR)
            self._emulator_error.restype = ctypes.c_char_p

    def unsupported(self, operator: str, **case: Any) -> str | None:
        """Why ``operator`` does not serve a case, or None where it does.

        Args:
            case: the parameters of the C function, with a ``torch.dtype`` and the name of a tactic.
        """
        if case["dtype"] not in DTYPES:
            served = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            return f"{operator}: {case['dtype']} is not served, only {served}"
        text: bytes | None = self._call(f"{operator}_unsupported", case)
        return None if text is None else text.decode()

    def window_partition(
        self,
        x_BCHW: Tensor,
        carriers_BCHW: Tensor | None,
        table_1NC: Tensor,
        window: int,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Map and carriers are contiguous as they are, or both in torch.channels_last."""
        operator = "window_partition"
        batch, channels, height, width = _shape(operator, x_BCHW, "BCHW", "map")
        rows = _shape(operator, table_1NC, "1NC", "table")[1]
        carriers = 0 if carriers_BCHW is None else max(rows - window**2, 0)
        maps = [x for x in (x_BCHW, carriers_BCHW) if x is not None]
        channels_last = not all(x.is_contiguous() for x in maps)
        case = {"dtype": x_BCHW.dtype, "channels": channels, "height": height, "width": width, "window": window}
        case |= {"carriers_per_window": carriers, "channels_last": channels_last}
        with self._on(operator, x_BCHW):
            self._refuse(operator, case)
            grid, side = (height // window, width // window), math.isqrt(carriers)
            _require(operator, "map", x_BCHW, x_BCHW, tuple(x_BCHW.shape), channels_last)
            if carriers_BCHW is not None:
                shape = (batch, channels, grid[0] * side, grid[1] * side)
                _require(operator, "carriers", carriers_BCHW, x_BCHW, shape, channels_last)
            _require(operator, "table", table_1NC, x_BCHW, (1, carriers + window**2, channels))
            out = _result(operator, out, x_BCHW, (batch * grid[0] * grid[1], rows, channels))
            tensors = {"tokens": out, "map": x_BCHW, "carriers": carriers_BCHW, "table": table_1NC}
            return self._launch(operator, out, tensors, case | {"batch": batch})

    def window_reverse(
        self,
        tok_WnNC: Tensor,
        gamma_C: Tensor | None,
        carriers: int,
        window: int,
        height: int,
        width: int,
        *,
        channels_last: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """``channels_last``: the map comes out in torch.channels_last."""
        operator = "window_reverse"
        windows, _, channels = _shape(operator, tok_WnNC, "WNC", "tokens")
        case = {"dtype": tok_WnNC.dtype, "channels": channels, "height": height, "width": width, "window": window}
        case |= {"carriers_per_window": carriers, "channels_last": channels_last}
        with self._on(operator, tok_WnNC):
            self._refuse(operator, case | {"propagates": gamma_C is not None})
            of_image = (height // window) * (width // window)
            batch = _whole(operator, "windows", windows, of_image)
            _require(operator, "tokens", tok_WnNC, tok_WnNC, (windows, carriers + window**2, channels))
            if gamma_C is not None:
                _require(operator, "gamma", gamma_C, tok_WnNC, (channels,))
            out = _result(operator, out, tok_WnNC, (batch, channels, height, width), channels_last)
            tensors = {"map": out, "tokens": tok_WnNC, "gamma": gamma_C}
            return self._launch(operator, out, tensors, case | {"batch": batch})

    def window_attention(
        self,
        qkv_X3D: Tensor,
        bias_1hNN: Tensor,
        tactic: str = "automatic",
        qkv_scale: float = 1.0,
        context_scale: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """int8 in gives int8 out, real values being scale · integer, with an fp16 bias; else the scales are unused."""
        operator = "window_attention"
        rows, packed = _shape(operator, qkv_X3D, "X3", "qkv")
        _, heads, tokens, _ = _shape(operator, bias_1hNN, "1hNN", "bias")
        head_dim = _whole(operator, "columns of qkv", packed, 3 * heads)
        case = {"tactic": tactic, "dtype": qkv_X3D.dtype, "tokens": tokens, "heads": heads, "head_dim": head_dim}
        with self._on(operator, qkv_X3D):
            self._refuse(operator, case)
            windows = _whole(operator, "rows of qkv", rows, tokens)
            _require(operator, "qkv", qkv_X3D, qkv_X3D, (rows, packed))
            dtype = torch.float16 if qkv_X3D.dtype == torch.int8 else qkv_X3D.dtype
            _require(operator, "bias", bias_1hNN, qkv_X3D, (1, heads, tokens, tokens), dtype=dtype)
            out = _result(operator, out, qkv_X3D, (rows, heads * head_dim))
            tensors = {"context": out, "qkv": qkv_X3D, "bias": bias_1hNN}
            scalars = {"windows": windows, "qkv_scale": qkv_scale, "context_scale": context_scale}
            return self._launch(operator, out, tensors, case | scalars)

    def carrier_attention(
        self,
        tok_WnNC: Tensor,
        table_1GC: Tensor | None,
        norm_weight_C: Tensor,
        norm_bias_C: Tensor,
        qkv_weight_3DC: Tensor,
        qkv_bias_3D: Tensor,
        bias_1hGG: Tensor,
        proj_weight_CD: Tensor,
        proj_bias_C: Tensor,
        carriers: int,
        eps: float,
        tactic: str = "automatic",
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Without a table and with all N rows as carriers it is the attention half of every window by itself."""
        operator = "carrier_attention"
        windows, rows, channels = _shape(operator, tok_WnNC, "WNC", "tokens")
        _, heads, of_image, _ = _shape(operator, bias_1hGG, "1hGG", "bias")
        dim = _shape(operator, proj_weight_CD, "CD", "proj_weight")[1]
        head_dim = _whole(operator, "columns of proj_weight", dim, heads)
        case = {"tactic": tactic, "dtype": tok_WnNC.dtype, "channels": channels, "heads": heads, "head_dim": head_dim}
        case |= {"carriers_of_image": of_image, "carriers_per_window": carriers}
        weights: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "norm_weight": (norm_weight_C, (channels,)),
            "norm_bias": (norm_bias_C, (channels,)),
            "qkv_weight": (qkv_weight_3DC, (3 * dim, channels)),
            "qkv_bias": (qkv_bias_3D, (3 * dim,)),
            "bias": (bias_1hGG, (1, heads, of_image, of_image)),
            "proj_weight": (proj_weight_CD, (channels, dim)),
            "proj_bias": (proj_bias_C, (channels,)),
        }
        with self._on(operator, tok_WnNC):
            self._refuse(operator, case | {"shared_memory": 0})
            if not 1 <= carriers <= rows:
                raise FasterViTError(f"{operator}: {carriers} carriers do not fit the {rows} rows of a window")
            images = _whole(operator, "carriers of all windows", windows * carriers, of_image)
            _require(operator, "tokens", tok_WnNC, tok_WnNC, (windows, rows, channels))
            if table_1GC is not None:
                _require(operator, "table", table_1GC, tok_WnNC, (1, of_image, channels))
            for name, (tensor, shape) in weights.items():
                _require(operator, name, tensor, tok_WnNC, shape)
            out = _result(operator, out, tok_WnNC, (windows * carriers, channels))
            case["images"] = images
            workspace = tok_WnNC.new_empty(self._call(f"{operator}_workspace", case), dtype=torch.uint8)
            tensors = {name: tensor for name, (tensor, _) in weights.items()}
            tensors |= {"out": out, "tokens": tok_WnNC, "workspace": workspace}
            case |= {"tokens_per_window": rows, "epsilon": eps}
            return self._launch(operator, out, {**tensors, "table": table_1GC}, case)

    @contextlib.contextmanager
    def _on(self, operator: str, tensor: Tensor) -> Iterator[None]:
        """With the tensor's device as the current one."""
        if tensor.device.type != self.device_type:
            message = f"{operator}: tensors are on {tensor.device}, {self.path} runs on {self.device_type}"
            raise FasterViTError(f"{message}; move them there")
        with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
            yield

    def _refuse(self, operator: str, case: Mapping[str, Any]) -> None:
        reason = self.unsupported(operator, **case)
        if reason is not None:
            raise UnsupportedError(reason)

    def _launch(
        self, operator: str, out: Tensor, tensors: Mapping[str, Tensor | None], scalars: Mapping[str, Any]
    ) -> Tensor:
        if out.numel() == 0:
            return out  # CUDA refuses a grid of no blocks
        stream = torch.cuda.current_stream(out.device).cuda_stream if out.is_cuda else None
        pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
        code = self._call(operator, {**pointers, **scalars, "stream": stream})
        if code == _NO_KERNEL_IMAGE:
            message = f"{operator}: {self.path} is not compiled for this GPU"
            raise UnsupportedError(f"{message}; add it to FASTERVIT_TRT_CUDA_ARCHITECTURES and build again")
        if code:
            raise FasterViTError(f"{operator} failed: {self._error(code)}")
        return out

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        values = dict(arguments)
        values["dtype"] = DTYPES[values["dtype"]]
        if "tactic" in values:
            if values["tactic"] not in TACTICS:
                raise FasterViTError(f"{name}: no tactic {values['tactic']!r}; known are {', '.join(TACTICS)}")
            values["tactic"] = TACTICS[values["tactic"]]
        return self._functions[name](*(values[parameter] for parameter in SIGNATURES[name].parameters))

    def _error(self, code: int) -> str:
        if self.device_type == "cpu":
            text = self._emulator_error()
            return f"emulated CUDA error {code}" + (f": {text.decode()}" if text else "")
        runtime = torch.cuda.cudart()
        return f"CUDA error {code}: {runtime.cudaGetErrorString(runtime.cudaError(code))}"


def _bind(library: ctypes.CDLL, path: Path, name: str) -> Any:
    try:
        function = library[f"fastervit_{name}"]
    except AttributeError as error:
        raise FasterViTError(f"{path} lacks fastervit_{name}; build it again from this version") from error
    function.restype, parameters = SIGNATURES[name]
    function.argtypes = list(parameters.values())
    return function


def _shape(operator: str, tensor: Tensor, axes: str, name: str) -> tuple[int, ...]:
    if tensor.ndim != len(axes):
        raise FasterViTError(f"{operator}: {name} has {tensor.ndim} axes {tuple(tensor.shape)}, not {len(axes)}")
    return tuple(tensor.shape)


def _whole(operator: str, name: str, number: int, divisor: int) -> int:
    if divisor < 1 or number % divisor:
        raise FasterViTError(f"{operator}: {number} {name} are no multiple of {divisor}")
    return number // divisor


def _require(
    operator: str,
    name: str,
    tensor: Tensor,
    like: Tensor,
    shape: tuple[int, ...],
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse what would make a kernel read or write elsewhere; ``like`` says device and, where not given, dtype."""
    dtype = dtype or like.dtype
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if tuple(tensor.shape) != shape:
        raise FasterViTError(f"{operator}: {name} has shape {tuple(tensor.shape)}, expected is {shape}")
    if tensor.dtype != dtype or tensor.device != like.device:
        found, expected = f"{tensor.dtype} on {tensor.device}", f"{dtype} on {like.device}"
        raise FasterViTError(f"{operator}: {name} is {found}, expected is {expected}")
    if not tensor.is_contiguous(memory_format=memory_format):
        strides = f"strides {tensor.stride()} of shape {shape}"
        raise FasterViTError(f"{operator}: {name} is not contiguous ({strides}, {memory_format}); copy it first")
    if tensor.data_ptr() % ALIGNMENT:
        raise FasterViTError(f"{operator}: {name} does not start at a multiple of {ALIGNMENT} bytes; clone it first")


def _result(
    operator: str, out: Tensor | None, like: Tensor, shape: tuple[int, ...], channels_last: bool = False
) -> Tensor:
    if out is None:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)
    _require(operator, "out", out, like, shape, channels_last)
    return out
