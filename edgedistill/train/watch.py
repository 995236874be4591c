"""What is measured at the end of each epoch: dev accuracy, another task's, the perplexity of general text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from edgedistill import defaults
from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Answer, Task
from edgedistill.train.objectives import token_loss
from edgedistill.train.packed import Weights, mapped
from edgedistill.train.students import Branch, Encoded, Student


def evaluations(card: Task, student: Student, dev: list[Row], ood: list[Row], general: str | None, bf16: bool,
                ) -> Callable[[], dict[str, float]]:
    """What is measured at the end of each epoch: {"accuracy"}, and "ood_accuracy", "general_perplexity" if asked for."""

    def accuracy(rows: list[Row], gold: list[Answer | None]) -> float:
        answers = student.answers([card.question(row) for row in rows])
        return sum(card.same(card.parse(a, row.choices), label)
                   for a, row, label in zip(answers, rows, gold, strict=True)) / len(rows)

    own, others = ([card.label(row) for row in rows] for rows in (dev, ood))  # an unreadable label is told before training
    halves = _general(general, student) if general else []

    def measure() -> dict[str, float]:
        # In the training's own precision: four times as fast here, and a checkpoint's rank hardly depends on it.
        with torch.autocast(student.model.device.type, torch.bfloat16, enabled=bf16):
            found = {"accuracy": accuracy(dev, own)}
            if ood:
                found["ood_accuracy"] = accuracy(ood, others)
        if halves:
            found["general_perplexity"] = _perplexity(student, halves, Weights(torch.bfloat16 if bf16 else torch.float32))
        return found

    return measure


def _general(place: str, student: Student) -> list[Encoded]:
    """A text's lines, each cut in halves: the second one is to be predicted from the first, with nothing between them."""
    try:
        text = Path(place).read_text(encoding="utf-8")[: defaults.GENERAL_BYTES]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--general {place}: cannot be read ({type(error).__name__}); give a plain text file") from error
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 8:
            half = len(words) // 2
            first, second = (student.rust.encode(part, add_special_tokens=False).ids
                             for part in (" ".join(words[:half]), " " + " ".join(words[half:])))
            opening = [student.format.start_id] if student.family == "t5" else []
            found.append(Encoded(first + [student.format.eos_id] * len(opening), (Branch(opening, second),)))
    if not found:
        raise UsageError(f"--general {place}: no line has eight words; give running text")
    return found


@torch.no_grad()
def _perplexity(student: Student, rows: list[Encoded], weights: Weights) -> float:
    training = student.model.training
    student.model.eval()
    total, tokens = 0.0, 0
    for at in range(0, len(rows), 16):
        batch, order = student.tensors(rows[at:at + 16])
        targets = torch.tensor([t for b in order for t in b.target], device=student.model.device)
        hidden = student.hidden(mapped(batch, lambda tensor: tensor.to(student.model.device)), weights=weights)
        loss, _ = token_loss(hidden, weights(student.head), targets, torch.ones(len(targets), device=targets.device))
        total, tokens = total + loss.item(), tokens + len(targets)
    student.model.train(training)
    return float(torch.tensor(total / tokens).exp())
