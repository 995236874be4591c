"""What a layer is made of, on rows laid end to end: no padding but inside attention, and little kept for the backward pass.

Activations are [N, width], N the tokens of all rows. The residual stream is fp32; products and what is kept are in the dtype
of the weights given (bf16, or fp32 where everything is exact). Norm and the products that read it are one function that keeps
the normalised input; dropout keeps a byte of randomness for each element, which on a CPU costs an eighth of torch's numbers.
Measured on 2 cores for t5-small's shape: a third of the step's time was casts, fills and copies around the products
(benchmarks/LOG.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module
from torch.nn.functional import linear

# A product of another shape is another kernel for oneDNN, which keeps 1,024 of them at 600 KB each: up to 600 MB more in a
# training whose lengths vary (measured). A micro-batch needs about 90.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "128")

Batch = dict[str, Any]  # tensors, or lists and dicts of them
STEP = 8                # attention's padded lengths are multiples of it: fewer shapes, whose kernels are made once
SPREAD = 1.6            # rows whose lengths differ more are padded apart


class Weights:
    """Weights in the dtype that a step computes in, each cast once however many micro-batches use it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype, self._made = dtype, {}

    def __call__(self, *parts: Tensor | None) -> Tensor | None:
        """The parts as one matrix (or bias) on top of each other; None for no parts at all."""
        present = [part for part in parts if part is not None]
        if not present:
            return None
        key = tuple(map(id, present))
        if key not in self._made:
            self._made[key] = (present[0] if len(present) == 1 else torch.cat(present)).to(self.dtype)
        return self._made[key]


def side(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows of token numbers as attention reads them.

    `index` [B, T]: the tokens, padded with the first one; `slots` [n]: where in B x T they are, `tokens` [n]: which they are.
    """
    width = -(-max(map(len, rows)) // STEP) * STEP
    return {"index": torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in rows]),
            "slots": torch.tensor([at * width + t for at, row in enumerate(rows) for t in range(len(row))]),
            "tokens": torch.tensor([token for row in rows for token in row])}


def seen(keys: Sequence[int], width: int) -> Tensor:
    """[B, 1, 1, T]: 0 for each row's own keys, -inf for its padding."""
    return _hidden(torch.arange(width) >= torch.tensor(keys)[:, None])[:, None, None]


def causal(width: int) -> Tensor:
    """[1, 1, T, T]: no token sees a later one. Padding on the right is never seen by this alone."""
    return _hidden(torch.ones(width, width, dtype=torch.bool).triu(1))[None, None]


def apart(owners: Sequence[Sequence[int]], width: int) -> Tensor:
    """[B, 1, T, T]: causal, and a token sees those of its own owner and of owner 0 only. Padding is owned by nobody."""
    whose = torch.tensor([[*row, *[-1] * (width - len(row))] for row in owners])
    sees = (whose[:, :, None] == whose[:, None]) | (whose[:, None] == 0)
    return _hidden(~(sees & torch.ones(width, width, dtype=torch.bool).tril()))[:, None]


def near(groups: list[Batch], window: int | None) -> list[Batch]:
    """The groups, of one sequence a row, in which a token sees no further back than `window` tokens, itself among them."""
    return [group if not window or (width := group["mask"].shape[-1]) <= window else {**group, "mask": group["mask"] + _hidden(
        torch.ones(width, width, dtype=torch.bool).tril(-window)).to(group["mask"].device)} for group in groups]


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with each of its tensors changed."""
    if isinstance(batch, dict):
        return {name: mapped(each, change) for name, each in batch.items()}
    return [mapped(each, change) for each in batch] if isinstance(batch, list) else change(batch)


def _hidden(where: Tensor) -> Tensor:
    return torch.zeros(where.shape).masked_fill_(where, -torch.inf)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of rows, the longest first, in groups of nearly one length."""
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if not groups or lengths[groups[-1][0]] > max(2 * STEP, SPREAD * lengths[at]):
            groups.append([])
        groups[-1].append(at)
    return groups


def norm(x: Tensor, module: Module, weights: Weights) -> Tensor:
    """Root-mean-square norm [N, d] of x [N, d], scaled."""
    return _Norm.apply(x, module.weight, module.variance_epsilon, weights.dtype)


def norm_linear(x: Tensor, module: Module, linears: Sequence[Module], weights: Weights) -> Tensor:
    """The outputs [N, sum of widths] of several linear layers of the normalised x [N, d], side by side."""
    return _NormLinear.apply(x, module.weight, weights(*(each.weight for each in linears)),
                             weights(*(each.bias for each in linears)), module.variance_epsilon)


def apply(x: Tensor, module: Module, weights: Weights) -> Tensor:
    """A linear layer of x [N, d]."""
    return linear(x, weights(module.weight), weights(module.bias))


def dropout(x: Tensor, p: float) -> Tensor:
    """x with a share p of its elements at 0 and the others scaled up."""
    return _Dropped.apply(x, *_mask(x, p)) if p else x


def add(x: Tensor, y: Tensor, p: float) -> Tensor:
    """The residual stream x [N, d] plus a layer's output y after dropout."""
    return x + dropout(y, p)


def activated(inner: Tensor, name: str, gated: bool, p: float) -> Tensor:
    """An FFN's inside [N, F] from [N, F], or from [N, 2F] (the activation's half first) where it is gated."""
    if not gated and name == "relu":
        return _Relu.apply(inner, *_mask(inner, p))
    forward, backward = ACTIVATIONS[name]
    shape = inner[:, : inner.shape[1] // 2] if gated else inner
    return _Activated.apply(inner, forward, backward, gated, *_mask(shape, p))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, size] turned by its position; cos and sin [N, 1, size / 2]."""
    return _Rotated.apply(x, cos, sin)


def attend(q: Tensor, k: Tensor, v: Tensor, groups: list[Batch], scale: float = 1.0, p: float = 0.0,
           bias: Tensor | None = None) -> Tensor:
    """[Nq, H * size]: attention of q [Nq, H, size] to k, v [Nk, Hk, size], group by group of rows.

    A group has the sides `q` and `k` and a `mask` that is added; Hk divides H. `bias` [1, H, T, T] is added too.
    """
    biases = [None if bias is None else bias[:, :, : g["q"]["index"].shape[1], : g["k"]["index"].shape[1]] for g in groups]
    return _Attention.apply(q, k, v, groups, scale, p, *biases).flatten(1)


ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "silu": (torch.nn.functional.silu, torch.ops.aten.silu_backward),
    "relu": (torch.relu, lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0)),
    "gelu": (torch.nn.functional.gelu, torch.ops.aten.gelu_backward)}
for _name in ("gelu_new", "gelu_pytorch_tanh"):
    ACTIVATIONS[_name] = (lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
                          lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"))


def _mask(x: Tensor, p: float) -> tuple[Tensor | None, float]:
    """(what is kept, a byte each; what makes up for the rest). The share dropped is a multiple of 1/256 (0.1016 for 0.1)."""
    keep = round((1 - p) * 256)
    if keep == 256:
        return None, 1.0
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return (bits.view(torch.uint8)[: x.numel()] < keep).view(x.shape), 256 / max(1, keep)


def _drop(x: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    return x if kept is None else (x * kept).mul_(scale)


class _Dropped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _drop(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _drop(grad, *ctx.saved_tensors, ctx.scale), None, None


def _normed(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x over its root mean square [N, d] in dtype, 1 over that [N, 1])."""
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).to(dtype), inverse


def _norm_backward(grad: Tensor, unit: Tensor, inverse: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and scale from that of `unit * scale`."""
    product = grad * unit
    along = product.to(torch.float32) @ scale[:, None].to(torch.float32) / unit.shape[1]  # [N, 1]
    return ((grad * scale.to(grad.dtype)) - unit * along).mul_(inverse), product.sum(0, dtype=torch.float32).to(scale.dtype)


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        unit, inverse = _normed(x, eps, dtype)
        ctx.save_for_backward(unit, inverse, scale)
        return unit * scale.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_norm_backward(grad, *ctx.saved_tensors), None, None


class _NormLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        unit, inverse = _normed(x, eps, weight.dtype)
        ctx.save_for_backward(unit, inverse, scale, weight)
        ctx.biased = bias is not None
        return linear(unit * scale.to(unit.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        unit, inverse, scale, weight = ctx.saved_tensors
        of_weight = grad.T @ (unit * scale.to(unit.dtype))
        of_x, of_scale = _norm_backward(grad @ weight, unit, inverse, scale)
        return of_x, of_scale, of_weight, grad.sum(0) if ctx.biased else None, None


class _Relu(Function):
    """What is 0 after ReLU and dropout passes no gradient, so the output is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor | None, scale: float) -> Tensor:
        out = _drop(torch.relu(x), kept, scale)
        ctx.save_for_backward(out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        out, = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        return grad if ctx.scale == 1 else grad.mul_(ctx.scale), None, None


class _Activated(Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor, act: Any, back: Any, gated: bool, kept: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(inner, kept)
        ctx.settings = act, back, gated, scale
        if not gated:
            return _drop(act(inner), kept, scale)
        gate, up = inner.chunk(2, 1)
        return _drop(act(gate).mul_(up), kept, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inner, kept = ctx.saved_tensors
        act, back, gated, scale = ctx.settings
        grad = _drop(grad, kept, scale)
        if not gated:
            return back(grad, inner), *[None] * 5
        gate, up = inner.chunk(2, 1)
        return torch.cat((back(grad * up, gate), act(gate).mul_(grad)), 1), *[None] * 5


class _Rotated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: list[Batch], scale: float, p: float,
                *biases: Tensor | None) -> Tensor:
        out, kept = torch.empty(q.shape, dtype=q.dtype, device=q.device), []
        for group, bias in zip(groups, biases, strict=True):
            queries, keys, values = _wide(q, k, v, group)
            scores = queries @ keys.transpose(-1, -2)
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
            shape = scores.shape  # [B, Hk, H / Hk * Tq, Tk]
            scores = scores.view(shape[0], q.shape[1], -1, shape[3])
            if bias is not None:
                scores += bias
            probs = scores.add_(group["mask"]).softmax(-1).to(q.dtype)
            mask, factor = _mask(probs, p)
            _narrow(out, _drop(probs, mask, factor).view(shape) @ values, group["q"])
            kept += [probs, mask]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.groups, ctx.scale, ctx.factor = groups, scale, factor
        ctx.biases = [None if bias is None else bias.shape for bias in biases]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, *kept = ctx.saved_tensors
        of_q, of_k, of_v = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
        of_biases: list[Tensor | None] = []
        for n, (group, shape) in enumerate(zip(ctx.groups, ctx.biases, strict=True)):
            probs, mask = kept[2 * n: 2 * n + 2]
            queries, keys, values = _wide(q, k, v, group)
            of_out = _heads(_filled(grad, group["q"]), k.shape[1])
            flat = (*of_out.shape[:3], probs.shape[3])
            _narrow(of_v, _drop(probs, mask, ctx.factor).view(flat).transpose(-1, -2) @ of_out, group["k"])
            of_probs = _drop((of_out @ values.transpose(-1, -2)).view(probs.shape), mask, ctx.factor)
            # Softmax: p * (g - sum(p g)).
            of_scores = torch.ops.aten._softmax_backward_data(of_probs, probs, -1, probs.dtype)
            of_biases.append(None if shape is None else of_scores.sum(0, keepdim=True, dtype=torch.float32))
            of_scores = of_scores.view(flat)
            _narrow(of_q, (of_scores @ keys).mul_(ctx.scale), group["q"])
            _narrow(of_k, (of_scores.transpose(-1, -2) @ queries).mul_(ctx.scale), group["k"])
        return of_q, of_k, of_v, None, None, None, *of_biases


def _wide(q: Tensor, k: Tensor, v: Tensor, group: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Padded [B, Hk, T, size] of each; a key's several query heads one after the other in T."""
    keys = group["k"]["index"]
    return _heads(q[group["q"]["index"]], k.shape[1]), _heads(k[keys], k.shape[1]), _heads(v[keys], k.shape[1])


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H, size] -> [B, heads, H / heads * T, size]."""
    return x.transpose(1, 2).reshape(x.shape[0], heads, -1, x.shape[3])


def _filled(x: Tensor, its: dict[str, Tensor]) -> Tensor:
    """[N, H, size] -> [B, T, H, size] with zeros for padding."""
    wide = torch.zeros(its["index"].numel(), *x.shape[1:], dtype=x.dtype, device=x.device)
    wide[its["slots"]] = x[its["tokens"]]
    return wide.view(*its["index"].shape, *x.shape[1:])


def _narrow(out: Tensor, wide: Tensor, its: dict[str, Tensor]) -> None:
    """Writes [B, heads, H / heads * T, size] into the group's tokens of out [N, H, size]."""
    rows, width = its["index"].shape
    wide = wide.reshape(rows, out.shape[1], width, -1).transpose(1, 2).reshape(rows * width, *out.shape[1:])
    out[its["tokens"]] = wide[its["slots"]]
