"""PyTorch's CUDA tensors and streams, as far as an engine shares them; PyTorch is imported when a tensor comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastervit_trt.engines.runtime.device import Stream
from fastervit_trt.errors import FasterViTError

if TYPE_CHECKING:
    import torch

__all__ = ["TorchBridge"]


class TorchBridge:
    """Order between PyTorch's current stream and ours, on one GPU, without waiting on the host.

    What ours reads and writes needs no protection from PyTorch's allocator: it reuses memory in the order of the
    current stream, which continues only after ours.
    """

    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal

    def check(self, images: torch.Tensor) -> None:
        """Refuse a tensor of another GPU.

        Raises:
            FasterViTError: names both.
        """
        if images.device.index != self._ordinal:
            raise FasterViTError(
                f"images are on {images.device}, the engine on cuda:{self._ordinal}; move them there, or load the "
                "engine with another device"
            )

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A float32 tensor on the GPU."""
        import torch

        return torch.empty(shape, dtype=torch.float32, device=f"cuda:{self._ordinal}")

    def wait_for_pytorch(self, stream: Stream) -> None:
        """What comes next on ``stream`` comes after what PyTorch has enqueued."""
        import torch

        self._ours(stream).wait_stream(torch.cuda.current_stream(self._ordinal))

    def let_pytorch_wait(self, stream: Stream) -> None:
        """What PyTorch enqueues next comes after what is on ``stream``."""
        import torch

        torch.cuda.current_stream(self._ordinal).wait_stream(self._ours(stream))

    def synchronise(self) -> None:
        """Wait on the host for what PyTorch has enqueued."""
        import torch

        torch.cuda.current_stream(self._ordinal).synchronize()

    def _ours(self, stream: Stream) -> torch.cuda.ExternalStream:
        import torch

        return torch.cuda.ExternalStream(stream.handle, device=f"cuda:{self._ordinal}")
