"""A mentor's own layers for a shallower student, and its states to be like: what `hybrid` does with a mentor of the same width.

A carved student begins with half of a mentor's depth gone and learns from a label's few tokens. The mentor's state after each
layer that the student keeps is known at every token of question and answer: on SVAMP five times as many places, each with as
many numbers as the student is wide (Sun et al. 2019, "Patient Knowledge Distillation"; Jiao et al. 2020, "TinyBERT"). Measured
there, 16 of 30 layers, 1,000 rows: 7.3 points more with a weight of 5, 2.3 with 1; with fresh numbers and four times the tokens
47.9 % where the 30 layers have 57.9 (benchmarks/LOG.md, 2026-11-26).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgedistill.errors import UsageError
from edgedistill.train.students import Student

WAYS = ("spread", "ends")


def stands_for(layers: int, total: int, way: str = "spread") -> list[int]:
    """Which of `total` layers each of `layers` ones is: evenly "spread", first and last among them, or the two "ends" of the
    stack, as a carved student has them (carve.drop_layers)."""
    if way == "ends":
        first = (layers - 1) // 2
        return [*range(first), *range(total - layers + first, total)]
    return [round(i * (total - 1) / max(1, layers - 1)) for i in range(layers)]


def check(student: Student, mentors: Sequence[Student], flag: str) -> None:
    """Raises `UsageError` where a mentor's layers and states cannot be the student's."""
    if not mentors:
        raise UsageError(f"{flag} needs a --mentor, a larger trained student of the same width")
    for mentor in mentors:
        _check(student, mentor, flag)


def _check(student: Student, mentor: Student, flag: str) -> None:
    if student.family != "decoder" or mentor.family != "decoder":
        raise UsageError(f"{flag}: only decoder-only students can take a mentor's layers or states; leave it out for a T5")
    ours, theirs = student.model.model.layers, mentor.model.model.layers
    if _shapes(ours[0]) != _shapes(theirs[0]) or len(ours) > len(theirs):
        widths = (each.model.config.hidden_size for each in (mentor, student))
        raise UsageError(f"{flag}: the mentor's layers must have the shapes of the student's and be no fewer (widths "
                         f"{' and '.join(map(str, widths))}, layers {len(theirs)} and {len(ours)}); take one that was cut from "
                         "the same file")
    if mentor.format.shared != student.format.shared:
        before, change = ("behind", "leave out") if mentor.format.shared else ("before", "add")
        raise UsageError(f"{flag}: the mentor was trained with its prefix {before} the question; {change} --two-pass, so that "
                         "the student reads the same")


def _shapes(layer: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in layer.named_parameters()}


@torch.no_grad()
def inherit(student: Student, mentor: Student, way: str) -> None:
    """Gives the student the mentor's embeddings, its last norm and those of its layers that the student's stand for."""
    ours, theirs = student.model, mentor.model
    for mine, other in ((ours.model.embed_tokens, theirs.model.embed_tokens), (ours.model.norm, theirs.model.norm),
                        (ours.lm_head, theirs.lm_head)):
        mine.load_state_dict(other.state_dict())
    for layer, of in zip(ours.model.layers, stands_for(len(ours.model.layers), len(theirs.model.layers), way), strict=True):
        layer.load_state_dict(theirs.model.layers[of].state_dict())


def unlikeness(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean squared difference of states [N, d] over the layers given, each token's brought to a root mean square of 1: 0 for
    the same ones, about 2 for unrelated ones. Else a few tokens of large states would be all that counts."""
    return torch.stack([(_unit(a) - _unit(b)).square().mean() for a, b in zip(ours, theirs, strict=True)]).mean()


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Guide:
    """The mentors beside a training: their states for a micro-batch as the student reads it, the first one's after its layers
    too."""

    def __init__(self, student: Student, mentors: Sequence[Student], way: str, weight: float, weights: Any) -> None:
        total = len(mentors[0].model.model.layers)
        of = stands_for(len(student.model.model.layers), total, way)
        # An inherited layer with nothing dropped before it has nothing to be taught.
        pairs = [(i, k) for i, k in enumerate(of) if i != k] or [(i, i) for i in range(total)]
        self.mentors, self.weight, self._weights = mentors, weight, weights
        self.taps, self.mentor_taps = [i for i, _ in pairs], [k for _, k in pairs]
        for mentor in mentors:
            mentor.model.eval()

    @torch.no_grad()
    def __call__(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """([targets, sum of d] before the heads, the states [N, d] after each layer that one of `taps` stands for)."""
        first, *others = self.mentors
        last, states = first.hidden(batch, weights=self._weights, taps=self.mentor_taps)
        return torch.cat([last, *(each.hidden(batch, weights=self._weights) for each in others)], 1), states
