"""Dropout that does not wait for its random numbers on a CPU.

torch draws one number for each element there, by one thread: 15 % of a T5's training step. Here a 64-bit number serves eight
elements, a byte each, so that the share dropped is a multiple of 1/256 (0.1016 for 0.1); the scale makes up for it exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """`nn.Dropout` with a byte of randomness for each element."""

    def forward(self, x: Tensor) -> Tensor:
        keep = round((1 - self.p) * 256)
        if not self.training or keep == 256:
            return x
        bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = (bits.view(torch.uint8)[: x.numel()] < keep).view(x.shape)
        return _Dropped.apply(x, kept, 256 / max(1, keep))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        kept, = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None, None


def quicken(model: nn.Module) -> None:
    """Puts ByteDropout in the place of a model's dropouts."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p).train(child.training))
