"""What an exported graph is measured by before it becomes a bundle: tokens against torch's, and answers to the dev rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from edgedistill import defaults
from edgedistill.errors import GateError
from edgedistill.progress import Progress
from edgedistill.tasks import data, wordmath
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task


class Answered(NamedTuple):
    """The dev rows as the device answers them: choices scored, equations under their grammar."""

    confidences: list[float]
    right: list[bool]

    @property
    def accuracy(self) -> float:
        return round(sum(self.right) / len(self.right), 4) if self.right else 0.0


def task(student: Any) -> Task | None:
    """The student's task."""
    return Task.from_dict(student.format.task) if student.format.task else None


def rows(run: str, its: Task | None) -> tuple[list[Row], list[str]]:
    """(labelled dev rows, texts) for a task: the dev rows first, filled up to the parity gate's number with training rows."""
    folder = Path(run) / "teach" / "data"
    splits = {p.stem: data.read_file(p) for p in folder.glob("*.jsonl")} if folder.is_dir() else {}
    dev = [row for row in splits.get("dev", []) if row.label is not None] if its else []
    texts = [its.question(row) if its else row.input for row in dev]
    more = [its.question(row) if its else row.input for row in splits.get("train", [])]
    texts += more[: max(0, defaults.PARITY_INPUTS - len(texts))]
    if len(texts) < defaults.PARITY_INPUTS:
        made = wordmath.generate("dev", defaults.PARITY_INPUTS - len(texts))
        texts += [row["input"] for row in made]
    return dev, texts


def tokens(edge: Any, texts: list[str], name: str) -> list[list[int]]:
    """Greedy tokens of each text."""
    progress = Progress(f"gate {name}", len(texts), "inputs")
    out = []
    for text in texts:
        out.append(edge.generate(text).ids)
        progress.advance()
    return out


def answered(edge: Any, dev: list[Row]) -> Answered:
    """Confidence and rightness of the answer to each dev row."""
    answers = [edge.answer(edge.task.question(row), choices=row.choices) for row in dev]
    return Answered([answer.confidence for answer in answers], [
        edge.task.same(edge.task.parse(answer.text, row.choices), edge.task.label(row))
        for answer, row in zip(answers, dev, strict=True)])


def drop(scores: dict[str, float], precision: str) -> float:
    """Points of accuracy that quantizing costs."""
    return round(100 * (scores["fp32"] - scores[precision]), 6)


def identical(exact: list[list[int]], reference: list[list[int]], texts: list[str]) -> None:
    """Raises `GateError` where the fp32 graph gives other tokens than torch."""
    wrong = [text for text, a, b in zip(texts, exact, reference, strict=True) if a != b]
    if wrong:
        raise GateError(f"the fp32 graph gives other tokens than torch on {len(wrong)} of {len(texts)} inputs, "
                        f"first on {wrong[0][:60]!r}; the student's architecture is not exported right: please report")


def agreement(a: list[list[int]], b: list[list[int]]) -> float:
    """Share of positions with the same token, over the longer of each two outputs."""
    same = sum(sum(x == y for x, y in zip(left, right, strict=False)) for left, right in zip(a, b, strict=True))
    total = sum(max(len(left), len(right)) for left, right in zip(a, b, strict=True))
    return round(same / total, 4) if total else 1.0
