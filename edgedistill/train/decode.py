"""Continuations of many rows at once by a Llama-family student, over the forward pass of training.

A row that has ended makes room for the next one, so a batch does not take as long as its longest row: of GSM8K's questions to
a student of 135M a few never end, and with padded batches 184 took six minutes (benchmarks/LOG.md). Keys and
values lie in one tensor a layer, in which each row has a place and a length of its own; nothing is padded but attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from edgedistill import defaults
from edgedistill.train import packed, stacks
from edgedistill.train.packed import Batch, Weights

ROOM = 64  # tokens by which the places grow: each time everything is copied once


def continuations(model: Any, rows: list[list[int]], read: Callable[[list[list[int]]], Batch], eos: int, limit: int,
                  most: int, pick: Callable[[Tensor], Tensor]) -> list[list[int]]:
    """At most `limit` tokens behind each row of token ids, up to `eos` and without it; `most` rows at a time.

    `read` makes a batch of rows that predicts behind each; `pick` takes logits [B, V] to token ids [B]. Products are in
    autocast's dtype where it is on, else in the weights'.
    """
    most = min(most, max(1, defaults.ANSWERED_PLACES // (max(map(len, rows), default=0) + limit)))
    kind, head = model.device.type, model.get_output_embeddings().weight
    weights = Weights(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.dtype)
    cache = _Cache(model, weights)
    out: list[list[int]] = [[] for _ in rows]
    going, waiting = set(range(len(rows))), list(reversed(range(len(rows))))
    who: list[int] = []   # the row in each place; one that has ended stays until its place is needed
    last: list[int] = []  # its last token

    def said(states: Tensor, of: list[int]) -> list[int]:
        tokens = pick(linear(states, weights(head))).tolist()
        for row, token in zip(of, tokens, strict=True):
            if row in going:
                out[row] += [token] * (token != eos)
                if token == eos or len(out[row]) == limit:
                    going.remove(row)
        return tokens

    with torch.no_grad(), torch.autocast(kind, enabled=False):
        while going:
            kept = [at for at, row in enumerate(who) if row in going]
            joining = _next(waiting, rows, most - len(kept)) if 4 * len(kept) <= 3 * most else []
            if joining or 4 * len(kept) <= 3 * len(who) or cache.full():
                cache.keep(kept, [rows[row] for row in joining])
                who, last = [who[at] for at in kept], [last[at] for at in kept]
            if joining:
                last += said(cache.read(read([rows[row] for row in joining]), len(joining)), joining)
                who += joining
            else:
                last = said(cache.step(last), who)
    return out


def _next(waiting: list[int], rows: list[list[int]], most: int) -> list[int]:
    """Takes the next rows off `waiting`, `most` of them or fewer: so many that one pass over them is not too much."""
    taken: list[int] = []
    while waiting and len(taken) < most and (
            not taken or sum(len(rows[row]) for row in (*taken, waiting[-1])) <= defaults.ANSWERED_TOKENS):
        taken.append(waiting.pop())
    return taken


class _Cache:
    """What the rows' tokens left in each layer: keys and values [B, Hk, T, size], of which `lengths` [B] are in use."""

    def __init__(self, model: Any, weights: Weights) -> None:
        self.model, self.weights = model, weights
        shape = 0, model.config.num_key_value_heads, 0, model.model.layers[0].self_attn.head_dim
        self.layers = [[torch.zeros(shape, dtype=weights.dtype, device=model.device) for _ in range(2)]
                       for _ in model.model.layers]
        self.lengths = torch.zeros(0, dtype=torch.long)

    def full(self) -> bool:
        """Whether the longest row has no place for one token more."""
        return bool(len(self.lengths)) and int(self.lengths.max()) == self.layers[0][0].shape[2]

    def keep(self, kept: list[int], more: list[list[int]]) -> None:
        """Leaves the rows at the places `kept`, one behind the other, and makes room behind them for `more`."""
        lengths = self.lengths[kept]
        longest = max([*lengths.tolist(), *map(len, more)])
        width = (longest // ROOM + 1) * ROOM
        for pair in self.layers:
            for n, old in enumerate(pair):
                new = old.new_zeros(len(kept) + len(more), old.shape[1], width, old.shape[3])
                at = min(width, old.shape[2])
                new[: len(kept), :, :at] = old[kept, :, :at]
                pair[n] = new
        self.lengths = torch.cat([lengths, torch.tensor([len(row) for row in more], dtype=torch.long)])

    def read(self, batch: Batch, count: int) -> Tensor:
        """[count, d], the states before the head behind the rows in `batch`, for which `keep` made room behind the others."""
        ends, batch = batch["at"].tolist(), self._there(batch)
        lengths = torch.tensor([end - before for end, before in zip(ends, [-1, *ends], strict=False)])
        at = torch.arange(len(self.lengths) - count, len(self.lengths)).repeat_interleave(lengths)
        return self._passed(batch, at, lambda q, k, v, layer, scale: packed.attend(
            q, k, v, packed.near(batch["rows"], self._window(layer)), scale))

    def step(self, last: list[int]) -> Tensor:
        """[B, d], the states before the head behind one token more of each row."""
        at, places = torch.arange(len(last)), self.lengths
        self.lengths = places + 1
        width = int(self.lengths.max())
        mask = packed.seen(self.lengths.tolist(), width).to(self.model.device)
        back = (self.lengths[:, None] - torch.arange(width))[:, None, None].to(self.model.device)  # 1 for the token itself

        def look(q: Tensor, _: Tensor, __: Tensor, layer: int, scale: float) -> Tensor:
            keys, values = (each[:, :, :width] for each in self.layers[layer])  # [B, Hk, T, size]
            q = q.view(len(q), keys.shape[1], -1, q.shape[2])                   # query heads of one key head lie together
            scores = (q @ keys.transpose(2, 3)).float().mul_(scale).add_(mask)
            if (window := self._window(layer)) and window < width:
                scores.masked_fill_(back > window, -torch.inf)
            return (scores.softmax(-1).to(q.dtype) @ values).flatten(1)

        return self._passed({"ids": torch.tensor(last), "places": places, "at": at}, at, look)

    def _passed(self, batch: Batch, at: Tensor, look: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]) -> Tensor:
        """A forward pass over tokens of the rows `at`, each layer's keys and values of which are put in their places."""
        batch = self._there(batch)
        places = at.to(self.model.device), slice(None), batch["places"]

        def kept(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, _: float) -> Tensor:
            for whole, new in zip(self.layers[layer], (k, v), strict=True):
                whole[places] = new
            return look(q, k, v, layer, scale)

        return stacks.llama(self.model, batch, self.weights, look=kept)

    def _there(self, batch: Batch) -> Batch:
        return packed.mapped(batch, lambda tensor: tensor.to(self.model.device))

    def _window(self, layer: int) -> int | None:
        return stacks.window(self.model.config, layer)
