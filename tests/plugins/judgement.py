"""How a kernel's result is judged: at most twice as wrong as the same maths in the same dtype in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_as_good_as", "poisoned"]


def assert_as_good_as(result: Tensor, same_dtype: Tensor, exact: Tensor) -> None:
    """Hold ``result`` to twice the error of ``same_dtype`` against ``exact``, plus half a unit of rounding.

    Args:
        result: of the kernel.
        same_dtype: of the reference in the kernel's dtype.
        exact: of the reference in float64 on the same (already rounded) inputs. The last step of any kernel rounds a
            result of its size; that half unit is granted even where the reference happens to be exact.
    """
    result, same_dtype, exact = result.cpu(), same_dtype.cpu(), exact.cpu()
    assert result.dtype == same_dtype.dtype
    assert result.shape == exact.shape
    rounding = torch.finfo(result.dtype).eps / 2 * exact.abs().max().item()
    allowed = 2 * (same_dtype.double() - exact).abs().max().item() + rounding
    error = (result.double() - exact).abs()
    error = torch.where(error.isnan(), torch.inf, error)
    if error.max() <= allowed:
        return
    wrong = error > allowed
    worst = error.argmax()
    first = tuple(index[0].item() for index in wrong.nonzero(as_tuple=True))
    raise AssertionError(
        f"{int(wrong.sum())} of {wrong.numel()} values are off by more than {allowed:.3g}; "
        f"first at {first}: {result[first].item():.6g}, expected {exact[first].item():.6g}; "
        f"worst: {result.flatten()[worst].item():.6g}, expected {exact.flatten()[worst].item():.6g}"
    )


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """What a result is written over: NaN, or the smallest integer, wherever the kernel forgets to write."""
    return torch.full(
        shape, torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min, dtype=dtype, device=device
    )
