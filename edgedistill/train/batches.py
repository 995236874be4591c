"""Questions to micro-batches: everything is tokenised once, before training; a step's rows are cut by length.

The questions of a step are those that the sampler drew, whatever their lengths. Only within a step they are ordered by
length and cut into micro-batches of `batch_tokens` tokens: bounded memory, the same gradient.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgedistill.edge.format import PREFIXES
from edgedistill.train.methods import Question, Target
from edgedistill.train.packed import Weights, mapped
from edgedistill.train.resample import Template, template
from edgedistill.train.students import Branch, Encoded, Student

PARTS = tuple(PREFIXES)  # the losses that are weighted against each other
WEIGHTINGS = ("token", "sequence")


class Batcher:
    """Steps of an epoch to tensors: `{"indices", "micro": [tensors, ...], "counts" [parts], "cut"}`.

    The order of the questions and what is drawn of each follow from seed and epoch alone: any process, and any resume,
    finds the same. Each of `processes` takes its share of a step's questions. With the probability `resample` a question and
    its targets have fresh numbers, in each epoch others.

    Each micro-batch holds what `Student.hidden` wants and for its N target tokens: `targets`, `part`, `unit` (what a token
    weighs against others of its part: its question's weight, under `weighting` "sequence" by the length of its target),
    `example` (its target), `pairs` (label and rationale of one question) and, where there are any, `soft_ids`, `soft_probs`
    [N, K] and `mentor` [N, sum of e]. `counts` is the sum of the units of this process's share, `cut` the `batch_tokens` it
    was cut by.

    `mentors` are asked once for all targets as they stand, and in each step for those with fresh numbers, in the dtype of
    the training; of several the states lie side by side.
    """

    def __init__(self, student: Student, questions: list[Question], *, batch_tokens: int, batch_size: int = 16,
                 weighting: str = "token", seed: int = 0, soft: dict[tuple[str, int], Any] | None = None,
                 mentors: Sequence[Student] = (), bf16: bool = False, resample: float = 0.0, rank: int = 0,
                 processes: int = 1) -> None:
        self.student, self.batch_tokens, self.weighting, self.seed = student, batch_tokens, weighting, seed
        self.batch_size, self.rank, self.processes = batch_size, rank, processes
        self.resample, self.epoch = resample, 0
        self.templates = [_template(q) if resample else None for q in questions]
        self.ids, self.weights = [q.id for q in questions], [q.weight for q in questions]
        self.slots = [[[(t.share, encode(student, q, t, soft)) for t in slot] for slot in q.slots] for q in questions]
        self.mentor: dict[int, Tensor] = {}  # of the standing targets
        self.asking = list(mentors) if resample else []  # kept for what is drawn later
        self._weights, self._asked = Weights(torch.bfloat16 if bf16 else torch.float32), []
        if mentors:
            self.mentor = _states(mentors, [
                (q.text, t, row.branches[0])
                for q, its in zip(questions, self.slots, strict=True) for targets, slot in zip(q.slots, its, strict=True)
                for t, (_, row) in zip(targets, slot, strict=True)], batch_tokens, self._weights)
        if not self.asking:
            self._weights = Weights()  # else it would hold the mentors'

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.ids) // self.batch_size)

    def step(self, n: int) -> dict[str, Any]:
        """The n-th step of this epoch, this process's share of it."""
        order = list(range(len(self.ids)))
        random.Random(f"order-{self.seed}-{self.epoch}").shuffle(order)
        whole = order[n * self.batch_size: (n + 1) * self.batch_size]
        mine = whole[self.rank:: self.processes]
        # The last step of an epoch may have fewer questions than processes: one of them then adds nothing, but takes part.
        return self(mine) if mine else self(whole[:1], idle=True)

    def __call__(self, indices: list[int], idle: bool = False) -> dict[str, Any]:
        """These questions, whatever step they belong to; `idle` ones weigh nothing."""
        rows = self.draw(indices)
        told = _states(self.asking, self._asked, self.batch_tokens, self._weights) if self.asking and self._asked else {}
        micro = [self._tensors(group, told) for group in self.cut(rows)]
        counts = torch.zeros(len(PARTS))
        for piece in micro:
            piece["unit"] *= not idle
            counts.index_add_(0, piece["part"], piece["unit"])
        return {"indices": indices, "micro": micro, "counts": counts, "cut": self.batch_tokens, "idle": idle}

    def draw(self, indices: Iterable[int]) -> list[Encoded]:
        """The rows of these questions in this epoch: of each slot one target, the same on every process and resume."""
        rows = []
        self._asked = []
        for i in indices:
            taken = self._fresh(i) or [slot[self._which(i, n, [share for share, _ in slot])][1]
                                       for n, slot in enumerate(self.slots[i])]
            if self.student.format.shared:
                rows.append(Encoded(taken[0].source, tuple(b for row in taken for b in row.branches)))
            else:
                rows += taken
        return rows

    def _which(self, i: int, n: int, shares: list[float]) -> int:
        """Which of a slot's targets this epoch has: each in turn, or by their shares where these differ."""
        if len(set(shares)) == 1:
            return (random.Random(f"{self.seed}-{self.ids[i]}-{n}").randrange(len(shares)) + self.epoch) % len(shares)
        return random.Random(f"{self.seed}-{self.epoch}-{self.ids[i]}-{n}").choices(range(len(shares)), shares)[0]

    def _fresh(self, i: int) -> list[Encoded] | None:
        """The question with fresh numbers, its label and, where one goes with them, a rationale; None where it stays."""
        rng, made = random.Random(f"resample-{self.seed}-{self.epoch}-{self.ids[i]}"), self.templates[i]
        drawn = made.draw(rng) if made and rng.random() < self.resample else None
        if drawn is None:
            return None
        told = drawn.rationales
        targets = [Target("label", drawn.label)]
        if told:
            targets.append(Target("rationale", told[self._which(i, 1, [1.0] * len(told))]))
        rows = [self.student.encode(drawn.question, target.text, target.part, weight=self.weights[i]) for target in targets]
        if self.asking:
            self._asked += [(drawn.question, target, row.branches[0]) for target, row in zip(targets, rows, strict=True)]
        return rows

    def cut(self, rows: list[Encoded], tokens: int | None = None) -> list[list[Encoded]]:
        """Rows in order of length, in groups of at most `tokens` (else `batch_tokens`) and of about one size; a longer row
        alone."""
        limit = tokens or self.batch_tokens
        whole = sum(map(len, rows))
        share = min(limit, whole / -(-whole // limit) + max(map(len, rows)) / 2)
        groups: list[list[Encoded]] = []
        size = 0
        for row in sorted(rows, key=len):
            if not groups or size + len(row) > share:
                groups.append([])
                size = 0
            groups[-1].append(row)
            size += len(row)
        return groups

    def tokens(self) -> float:
        """Mean tokens (sources and targets) that a question puts through the model, without padding."""
        rows = [row for i in range(len(self.ids)) for row in self.draw([i])]
        return sum(map(len, rows)) / max(1, len(self.ids))

    def _tensors(self, rows: list[Encoded], told: dict[int, Tensor]) -> dict[str, Tensor]:
        batch, order = self.student.tensors(rows)
        lengths = [len(branch.target) for branch in order]
        place = {id(branch): n for n, branch in enumerate(order)}
        batch["targets"] = torch.tensor([token for branch in order for token in branch.target])
        batch["part"] = torch.tensor([b.part for b in order]).repeat_interleave(torch.tensor(lengths))
        units = [b.weight if self.weighting == "token" else b.weight / n for b, n in zip(order, lengths, strict=True)]
        batch["unit"] = torch.tensor(units).repeat_interleave(torch.tensor(lengths))
        batch["example"] = torch.arange(len(order)).repeat_interleave(torch.tensor(lengths))
        batch["pairs"] = torch.tensor([[place[id(b)] for b in row.branches] for row in rows if len(row.branches) == 2],
                                      dtype=torch.long).reshape(-1, 2)
        if any(branch.soft for branch in order):
            width = max(branch.soft[0].shape[1] for branch in order if branch.soft)
            batch["soft_ids"], batch["soft_probs"] = _sparse(order, width)
        if self.mentor:
            batch["mentor"] = torch.cat([(told if id(branch) in told else self.mentor)[id(branch)] for branch in order])
        return batch


def _template(question: Question) -> Template | None:
    label, *others = question.slots
    return template(question.text, label[0].text, [target.text for slot in others for target in slot])


def encode(student: Student, question: Question, target: Target, soft: dict[tuple[str, int], Any] | None = None) -> Encoded:
    """A target of a question as token ids; with the teacher's distributions where `soft` (id, sample) has them."""
    row = student.encode(question.text, target.text, target.part, target.source, question.weight)
    found = (soft or {}).get((question.id, target.sample)) if target.sample is not None else None
    if found is None:
        return row
    branch = row.branches[0]
    return Encoded(row.source, (replace(branch, soft=found(target.text, branch.target)),))


def _sparse(order: list[Branch], width: int) -> tuple[Tensor, Tensor]:
    """(ids [N, K], probs [N, K]): the branches' soft targets, all of the mass on the token itself where there are none."""
    tokens = [token for branch in order for token in branch.target]
    ids = torch.tensor(tokens)[:, None].repeat(1, width)
    probs = torch.zeros(len(tokens), width)
    probs[:, 0] = 1
    at = 0
    for branch in order:
        if branch.soft:
            part, k = slice(at, at + len(branch.target)), branch.soft[0].shape[1]
            ids[part, :k], probs[part, :k] = (torch.as_tensor(each) for each in branch.soft)
        at += len(branch.target)
    return ids, probs


def _asked(mentor: Student, question: str, target: Target, branch: Branch) -> Encoded:
    """The student's own target tokens after the question as the mentor reads it."""
    row = mentor.encode(question, target.text, target.part, target.source)
    return Encoded(row.source, (Branch(row.branches[0].opening, branch.target, branch.part),))


def _states(mentors: Sequence[Student], wanted: list[tuple[str, Target, Branch]], batch_tokens: int,
            weights: Weights) -> dict[int, Tensor]:
    """The mentors' states [T, sum of e] in bf16 for targets of questions, by the identity of the student's branch.

    Kept instead of logits: exact at any temperature, and small (6 MB for 720 labels of a 135M mentor).
    """
    found = [_its_states(mentor, [(_asked(mentor, *one), one[2]) for one in wanted], batch_tokens, weights)
             for mentor in mentors]
    return {key: torch.cat([states[key] for states in found], 1) for key in found[0]}


@torch.no_grad()
def _its_states(mentor: Student, wanted: list[tuple[Encoded, Branch]], batch_tokens: int,
                weights: Weights) -> dict[int, Tensor]:
    mentor.model.eval()
    found, rows = {}, sorted(wanted, key=lambda pair: len(pair[0]))
    size = max(1, batch_tokens // max(len(row) for row, _ in wanted))
    for at in range(0, len(rows), size):
        part = rows[at:at + size]
        batch, order = mentor.tensors([row for row, _ in part])
        states = mentor.hidden(mapped(batch, lambda tensor: tensor.to(mentor.model.device)), weights=weights).bfloat16()
        for (_, branch), piece in zip(part, states.split([len(b.target) for b in order]), strict=True):
            found[id(branch)] = piece
    return found
