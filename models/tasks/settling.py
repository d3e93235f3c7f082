"""Random weights in, random weights through which a signal passes out: norms that fit what comes to them.

Convolutions of transformers' heads start so small that, behind norms that were never trained, 1e-6 of a signal is left
after the encoder of RT-DETR. In float16 all queries are then alike, and a comparison of precisions shows nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

__all__ = ["settle_norms"]

_ENOUGH = 64  # values per channel, for their mean and variance to mean something
_COARSE = 32  # pixels of a patch of one colour


@torch.no_grad()
def settle_norms(model: Any) -> None:
    """Give every BatchNorm of ``model`` (a :class:`TaskModel` in eval mode) the statistics of a random image.

    Norms of maps of a few pixels are left as they are. The image comes from PyTorch's generator: half of it is noise,
    half are patches.
    """
    height, width = model.config.resolution
    image = torch.randn(1, model.config.in_chans, height, width)
    patches = torch.randn(1, model.config.in_chans, -(-height // _COARSE), -(-width // _COARSE))
    patches = patches.repeat_interleave(_COARSE, 2).repeat_interleave(_COARSE, 3)[:, :, :height, :width]
    image[..., width // 2 :] = patches[..., width // 2 :]
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                stack.callback(module.register_forward_pre_hook(_settle).remove)
        model.raw(image)


def _settle(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    """What follows is computed with the new statistics, so that norms fit what earlier ones make."""
    (x_BCHW,) = inputs
    if x_BCHW.numel() // x_BCHW.shape[1] >= _ENOUGH:
        variance, mean = torch.var_mean(x_BCHW, dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
