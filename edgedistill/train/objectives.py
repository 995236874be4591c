"""The losses. All are sums over target tokens, each with a weight, so that micro-batches and processes add up exactly.

The head and its loss are one function: logits exist for target tokens only, a chunk at a time, and their gradient is made
on the spot. So nothing of size [tokens, vocabulary] is kept for the backward pass, and nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

CHUNK = 2**23  # logits held at once: 32 MB in fp32


@dataclass(frozen=True)
class Soft:
    """A teacher's distributions: `ids` [N, K], `probs` [N, K]. `share` of the loss is the forward KL to them."""

    ids: Tensor
    probs: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Mentor:
    """A larger student of the same vocabulary: its states before its head [N, e], and the head [V, e].

    `share` of the loss is T^2 KL(mentor at T || student at T) (Hinton et al. 2015, the form in Lee 2023).
    """

    hidden: Tensor
    head: Tensor
    temperature: float = 2.0
    share: float = 0.5


def token_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, soft: Soft | None = None,
               mentor: Mentor | None = None) -> tuple[Tensor, Tensor]:
    """(the weighted sum of the tokens' losses, the cross-entropy of each token [N] without gradient).

    hidden [N, d], head [V, d], targets [N], weights [N]. What `soft` and `mentor` leave of a token's weight is its
    cross-entropy. Under autocast the products are in its dtype, the rest in fp32.
    """
    return _TokenLoss.apply(hidden, head, targets, weights, soft, mentor)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, soft: Soft | None,
                mentor: Mentor | None) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.dtype
        hard = 1.0 - (soft.share if soft else 0) - (mentor.share if mentor else 0)
        with torch.autocast(kind, enabled=False):
            h, w = hidden.to(dtype), head.to(dtype)
            entropy = torch.empty(len(h), device=h.device)
            total = torch.zeros((), device=h.device)
            grad_hidden = torch.empty_like(h)
            grad_head: Tensor | None = None
            size = max(1, CHUNK // len(w))
            for part in (slice(at, at + size) for at in range(0, len(h), size)):
                logits = (h[part] @ w.T).float()
                weight, target = weights[part, None], targets[part, None]
                normaliser = logits.logsumexp(1, keepdim=True)
                entropy[part] = (normaliser - logits.gather(1, target))[:, 0]
                loss = hard * entropy[part, None]
                # p - target, the gradient of a cross-entropy whose target's mass is `mass`.
                mass = hard
                extra = None
                if mentor:
                    t = mentor.temperature
                    theirs = log_softmax((mentor.hidden[part].to(dtype) @ mentor.head.to(dtype).T).float() / t, 1)
                    ours = log_softmax(logits / t, 1)
                    loss = loss + mentor.share * t * t * (theirs.exp() * (theirs - ours)).sum(1, keepdim=True)
                    extra = (ours.exp_() - theirs.exp_()).mul_(mentor.share * t)
                if soft:
                    ids, probs = soft.ids[part], soft.probs[part]
                    known = probs.sum(1, keepdim=True)
                    cross = (probs * (normaliser - logits.gather(1, ids))).sum(1, keepdim=True)
                    loss = loss + soft.share * (cross + torch.xlogy(probs, probs).sum(1, keepdim=True))
                    mass = mass + soft.share * known
                total += (weight * loss).sum()
                # The token's weight goes into the exponent: one pass over the logits less.
                grad = logits.sub_(normaliser - torch.log(weight * mass)).exp_()
                grad.scatter_add_(1, target, -hard * weight)
                if soft:
                    grad.scatter_add_(1, ids, -soft.share * probs * weight)
                if extra is not None:
                    grad += extra.mul_(weight)
                grad = grad.to(dtype)
                grad_hidden[part] = grad @ w
                piece = grad.T @ h[part]
                grad_head = piece.float() if grad_head is None else grad_head.add_(piece)
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_head)
        ctx.mark_non_differentiable(entropy)
        return total, entropy

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Any, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * scale, grad_head * scale, None, None, None, None


def mutual_information(hidden: Tensor, head: Tensor, example: Tensor, pairs: Tensor) -> Tensor:
    """Sum over pairs of the cross-entropy between a label's and its rationale's distributions (Chen et al. 2024).

    A target's distribution is the largest probability that each piece gets at any of its positions, normalised here to a
    sum of one; the label's is held fixed. hidden [N, d], example [N] the target of each token, pairs [P, 2] (label,
    rationale) as such targets. Holds all logits of the micro-batch.
    """
    probs = softmax((hidden @ head.T.to(hidden.dtype)).float(), 1)
    index = example[:, None].expand_as(probs)
    highest = torch.zeros(int(example.max()) + 1, probs.shape[1], device=probs.device).scatter_reduce(0, index, probs, "amax")
    highest = highest / highest.sum(1, keepdim=True)
    label, rationale = highest[pairs[:, 0]].detach(), highest[pairs[:, 1]]
    return -(label * rationale.clamp_min(1e-9).log()).sum()
