"""What the compiled kernels serve, said without them: an export decides by it which calls become plugins.

Mirrors the functions ``fastervit_*_unsupported`` of ``csrc/*/kernel.cu``, where the kernel is chosen automatically, and
the ranges of attributes in ``csrc/plugin/contract.h``; tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from fastervit_trt.plugins.operators import Operator

__all__ = ["KERNELS", "unserved", "unserved_call"]

_FLOATS = ("fp32", "fp16", "bf16")
_MAX_INT = 2**31 - 1

# Of csrc/window_attention/tile_config.h.
_HEAD_DIM_MULTIPLE = 8
_MAX_HEAD_DIM = 80
_MAX_INT8_TOKENS = 80  # only the resident kernel knows int8
_MAX_FP32_TOKENS = 3072  # only the plain kernel knows fp32

_CHANNEL_MULTIPLE = 8  # of csrc/carrier_attention/kernel.cu: rows are copied in pieces of 16 bytes

# Of csrc/common/window_tile.h.
_MAX_CHANNELS = 2**20
_MAX_AREA = _MAX_INT - 1024

# Of csrc/plugin/contract.h.
_MOST = {"window": 256, "carriers": 256, "height": 32768, "width": 32768, "eps": 1}


def unserved(kernel: str, dtype: str, **sizes: int) -> str | None:
    """Why ``kernel`` serves no such case, or None where it does.

    Args:
        kernel: one of :data:`KERNELS`.
        dtype: fp32, fp16, bf16 or int8.
        sizes: the integers of the C function, by name.
    """
    return KERNELS[kernel](dtype=dtype, **sizes)


def unserved_call(
    operator: Operator, dtype: str, shapes: Mapping[str, Sequence[int]], attributes: Mapping[str, int | float]
) -> str | None:
    """Why no plugin serves a call of ``operator``, or None where one does.

    Args:
        shapes: of the inputs, by name; how many images there are does not matter.
        attributes: by name.
    """
    for name, value in attributes.items():
        if value > _MOST[name]:
            return f"{operator.onnx_name}: {name} {value}; served are up to {_MOST[name]}"
    kernel, sizes = _case(operator, shapes, attributes)
    reason = unserved(kernel, dtype, **sizes)
    if reason is None and dtype == "fp32" and "attention" in kernel:
        # The library would serve it, slowly: a compiler's own kernels are made for speed, the plain one is not.
        reason = "fp32 has the plain kernel only, the oracle of the others"
    return reason and f"{operator.onnx_name}: {reason}"


def _case(
    operator: Operator, shapes: Mapping[str, Sequence[int]], attributes: Mapping[str, int | float]
) -> tuple[str, dict[str, int]]:
    """The kernel of a call, and its sizes as the C function names them."""
    if operator.torch_name == "window_partition":
        channels, height, width = shapes["x_BCHW"][1:]
        window = int(attributes["window"])
        carriers = shapes["table_1NC"][1] - window**2
        return "window_partition", _windows(channels, height, width, window, carriers)
    if operator.torch_name == "window_reverse":
        window, height, width = (int(attributes[name]) for name in ("window", "height", "width"))
        sizes = _windows(shapes["tok_WnNC"][2], height, width, window, int(attributes.get("carriers", 0)))
        return "window_reverse", {**sizes, "propagates": int("gamma_C" in shapes)}
    if operator.torch_name == "window_attention":
        _, heads, tokens, _ = shapes["bias_1hNN"]
        return "window_attention", {
            "tokens": tokens,
            "heads": heads,
            "head_dim": shapes["qkv_X3D"][1] // 3 // heads,
        }
    # One kernel for both: every row of a window can be its carrier, and the window an image.
    _, heads, tokens, _ = shapes.get("bias_1hGG") or shapes["bias_1hNN"]
    channels, dim = shapes["proj_weight_CD"]
    return "carrier_attention", {
        "channels": channels,
        "heads": heads,
        "head_dim": dim // heads,
        "carriers_of_image": tokens,
        "carriers_per_window": int(attributes.get("carriers", tokens)),
    }


def _windows(channels: int, height: int, width: int, window: int, carriers: int) -> dict[str, int]:
    sizes = {"channels": channels, "height": height, "width": width, "window": window}
    return {**sizes, "carriers_per_window": carriers}


def _partition(
    dtype: str, channels: int, height: int, width: int, window: int, carriers_per_window: int, square: bool = True
) -> str | None:
    if dtype not in _FLOATS:
        return f"tensors of {dtype}; served are fp32, fp16 and bf16"
    if not 1 <= channels <= _MAX_CHANNELS:
        return f"{channels} channels; served are 1 to {_MAX_CHANNELS}"
    if window < 1 or min(height, width) < 0 or height % window or width % window:
        return f"windows of {window} x {window} on a {height} x {width} map; served are maps of whole windows"
    if carriers_per_window < 0 or (square and math.isqrt(carriers_per_window) ** 2 != carriers_per_window):
        return f"{carriers_per_window} carriers per window; served are square numbers"
    windows = height * width // window**2
    if max(height * width, windows * carriers_per_window) > _MAX_AREA or window**2 + carriers_per_window > _MAX_INT:
        return f"a {height} x {width} map; served are up to {_MAX_AREA} pixels and carriers"
    return None


def _reverse(dtype: str, carriers_per_window: int, propagates: int, **sizes: int) -> str | None:
    if propagates and carriers_per_window == 0:
        return "no carriers to propagate"
    return _partition(dtype, carriers_per_window=carriers_per_window, square=bool(propagates), **sizes)


def _window_attention(dtype: str, tokens: int, heads: int, head_dim: int) -> str | None:
    if min(tokens, heads, head_dim) < 1:
        return f"{tokens} tokens, {heads} heads of {head_dim} channels; all must be at least 1"
    most = {"fp32": _MAX_FP32_TOKENS, "int8": _MAX_INT8_TOKENS}.get(dtype, _MAX_INT)
    if tokens > most:
        return f"windows of {tokens} tokens in {dtype}; served are up to {most}"
    return _head_dim(dtype, head_dim)


def _carrier_attention(
    dtype: str, channels: int, heads: int, head_dim: int, carriers_of_image: int, carriers_per_window: int
) -> str | None:
    if dtype not in _FLOATS:
        return f"tensors of {dtype}; served are fp32, fp16 and bf16"
    if min(channels, carriers_of_image, carriers_per_window) < 1 or carriers_of_image % carriers_per_window:
        return (
            f"{channels} channels, {carriers_of_image} carriers an image, {carriers_per_window} a window; all must be "
            "at least 1, and windows have equally many"
        )
    if dtype != "fp32" and channels % _CHANNEL_MULTIPLE:
        return f"{channels} channels in {dtype}; served are multiples of {_CHANNEL_MULTIPLE}"
    return _window_attention(dtype, carriers_of_image, heads, head_dim)


def _head_dim(dtype: str, head_dim: int) -> str | None:
    padded = -(-head_dim // _HEAD_DIM_MULTIPLE) * _HEAD_DIM_MULTIPLE
    if dtype == "fp32" or (head_dim == padded and head_dim <= _MAX_HEAD_DIM):
        return None
    remedy = f" (--pad-head-dims {_HEAD_DIM_MULTIPLE} makes it {padded})" if padded <= _MAX_HEAD_DIM else ""
    return f"head dim {head_dim} in {dtype}{remedy}; served are multiples of {_HEAD_DIM_MULTIPLE} up to {_MAX_HEAD_DIM}"


KERNELS: dict[str, Callable[..., str | None]] = {
    "window_partition": _partition,
    "window_reverse": _reverse,
    "window_attention": _window_attention,
    "carrier_attention": _carrier_attention,
}
