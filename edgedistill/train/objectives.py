"""The losses. All are sums over target tokens, each with a weight, so that micro-batches and processes add up exactly.

The head and its loss are one function: logits exist for target tokens only, a chunk at a time, and their gradient is made
on the spot. So nothing of size [tokens, vocabulary] is kept for the backward pass, and nothing is computed twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

CHUNK = 2**24  # logits held at once: 32 MB in bf16
ROWS = 2**20   # of them in fp32


@dataclass(frozen=True)
class Soft:
    """A teacher's distributions: `ids` [N, K], `probs` [N, K]. `share` of the loss is the forward KL to them."""

    ids: Tensor
    probs: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Mentor:
    """Larger students of the same vocabulary, or several of one size: their states before their heads side by side
    [N, sum of e], and the heads [V, e].

    `share` of the loss is T^2 KL(mentors at T || student at T) (Hinton et al. 2015, the form in Lee 2023); several count by the
    mean of their distributions.
    """

    hidden: Tensor
    heads: list[Tensor]
    temperature: float = 2.0
    share: float = 0.5


def token_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, soft: Soft | None = None,
               mentor: Mentor | None = None) -> tuple[Tensor, Tensor]:
    """(the weighted sum of the tokens' losses, the cross-entropy of each token [N] without gradient).

    hidden [N, d], head [V, d], targets [N], weights [N]. What `soft` and `mentor` leave of a token's weight is its
    cross-entropy. Products are in the dtype of hidden and head, the rest in fp32.
    """
    return _TokenLoss.apply(hidden, head, targets, weights, soft, mentor)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, soft: Soft | None,
                mentor: Mentor | None) -> tuple[Tensor, Tensor]:
        entropy = torch.empty(len(hidden), device=hidden.device)
        total = torch.zeros((), device=hidden.device)
        grad_hidden, grad_head = torch.empty_like(hidden), None
        size, rows = (max(1, numbers // len(head)) for numbers in (CHUNK, ROWS))
        for at in range(0, len(hidden), size):
            h = hidden[at:at + size]
            logits = h @ head.T
            for begin in range(0, len(h), rows):  # so few rows at a time that fp32 copies of them stay in the cache
                piece = logits[begin:begin + rows]
                part = slice(at + begin, at + begin + len(piece))
                entropy[part], loss, grad = _rows(piece.float(), targets[part, None], part, soft, mentor)
                total += (weights[part] * loss).sum()
                piece.copy_(grad.mul_(weights[part, None]))
            torch.mm(logits, head, out=grad_hidden[at:at + size])
            piece = logits.T @ h
            grad_head = piece if grad_head is None else grad_head.add_(piece)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(entropy)
        return total, entropy

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Any, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = scale.to(grad_hidden.dtype)
        return grad_hidden * scale, grad_head * scale, None, None, None, None


def _rows(logits: Tensor, target: Tensor, part: slice, soft: Soft | None, mentor: Mentor | None,
          ) -> tuple[Tensor, Tensor, Tensor]:
    """(cross-entropy [n], loss [n], gradient of the loss [n, V]) of logits [n, V] in fp32 and targets [n, 1]."""
    probs = logits.softmax(1)
    normaliser = logits.amax(1, keepdim=True) - probs.amax(1, keepdim=True).log_()
    entropy = (normaliser - logits.gather(1, target))[:, 0]
    hard = 1.0 - (soft.share if soft else 0) - (mentor.share if mentor else 0)
    loss = hard * entropy
    extra, mass = None, hard  # p - target is the gradient of a cross-entropy whose target's mass is `mass`
    if mentor:
        t = mentor.temperature
        theirs = _mean([log_softmax((states.to(head.dtype) @ head.T).float() / t, 1) for states, head in zip(
            mentor.hidden[part].split([head.shape[1] for head in mentor.heads], 1), mentor.heads, strict=True)])
        ours = log_softmax(logits / t, 1)
        loss = loss + mentor.share * t * t * (theirs.exp() * (theirs - ours)).sum(1)
        extra = (ours.exp_() - theirs.exp_()).mul_(mentor.share * t)
    if soft:
        ids, given = soft.ids[part], soft.probs[part]
        cross = given * (normaliser - logits.gather(1, ids)) + torch.xlogy(given, given)
        loss = loss + soft.share * cross.sum(1)
        mass = mass + soft.share * given.sum(1, keepdim=True)
    grad = probs if soft is None and mass == 1 else probs.mul_(mass)
    grad.scatter_add_(1, target, torch.full_like(target, -hard, dtype=grad.dtype))
    if soft:
        grad.scatter_add_(1, ids, -soft.share * given)
    return entropy, loss, grad if extra is None else grad.add_(extra)


def _mean(logs: list[Tensor]) -> Tensor:
    """The logarithm of the mean of distributions that are given by theirs."""
    return logs[0] if len(logs) == 1 else torch.stack(logs).logsumexp(0) - math.log(len(logs))


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
