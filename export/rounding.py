"""Run a half-precision PyTorch module as its target hardware would: float32 arithmetic, every result rounded once.

CPUs without half-precision arithmetic run PyTorch's float16 kernels many times slower than float32, and round in places
of their own. Tensor cores multiply in half precision and accumulate in float32; so does this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastervit_trt.plugins import reference
from fastervit_trt.plugins.names import DOMAIN

__all__ = ["RoundedArithmetic"]


_CONVERSIONS = (torch.ops.aten.to, torch.ops.aten._to_copy)


class RoundedArithmetic(TorchDispatchMode):
    """Within this context, operators on tensors of ``dtype`` compute in float32 and round what they yield."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == DOMAIN:  # a fused operator rounds where its definition does
            with self:
                return getattr(reference, func._opname)(*args, **(kwargs or {}))
        if (
            func.overloadpacket is torch.ops.aten.copy_
        ):  # rounds to the type it writes, and must reach the tensor itself
            return func(*args, **(kwargs or {}))
        narrow = False

        def widen(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal narrow
            if tensor.dtype is not self.dtype:
                return tensor
            narrow = True
            return tensor.float()

        wide_args, wide_kwargs = tree_map_only(torch.Tensor, widen, (args, kwargs or {}))
        result = func(*wide_args, **wide_kwargs)
        # A conversion says itself what it yields; everything else stays in the precision it started from.
        if not narrow or func.overloadpacket in _CONVERSIONS:
            return result
        return tree_map_only(torch.Tensor, self._round, result)

    def _round(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.dtype is torch.float32 else tensor
