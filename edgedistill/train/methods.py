"""What each method trains on. Every method sees the same questions; they differ in the targets.

| method | label target | rationale target |
|---|---|---|
| finetune | the gold label | - |
| seq-kd | the teacher's answer, right or wrong | - |
| step-by-step | the gold label, or the teacher's answer where there is none | the teacher's, where verified |
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task

METHODS = ("finetune", "seq-kd", "step-by-step")


@dataclass(frozen=True)
class Question:
    """One question with its targets; `rationales` may hold several, of which each batch draws one."""

    id: str
    text: str
    label: str | None
    rationales: tuple[str, ...] = ()


def questions(method: str, task: Task, rows: list[Row], corpus: list[dict[str, Any]]) -> list[Question]:
    """The training questions of `method`, in the rows' order. Raises `UsageError` when none has a target."""
    if method not in METHODS:
        raise UsageError(f"--method {method}: known methods are {', '.join(METHODS)}")
    if method != "finetune" and not corpus:
        raise UsageError(f"--method {method} needs a teacher's corpus: run edgedistill teach first, or train with "
                         "--method finetune")
    taught: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in corpus:
        taught[entry["id"]].append(entry)
    made = []
    for row in rows:
        label: str | None = None
        rationales: tuple[str, ...] = ()
        gold = task.label(row)
        if method != "seq-kd" and gold:
            label = gold.text
        if method == "seq-kd" or (method == "step-by-step" and not gold):
            label = vote(task, row, taught[row.id])
        if method == "step-by-step":
            # Without a gold label, the rationales of the answer that won the vote are the trusted ones.
            winner = task.parse(label, row.choices)
            rationales = tuple(e["rationale"] for e in taught[row.id] if e["rationale"] and (
                e["verdict"] == "verified" or (e["verdict"] == "unlabelled"
                                               and task.same(task.parse(e["answer"], row.choices), winner))))
        if label is not None:
            made.append(Question(row.id, task.question(row), label, rationales))
    if not made:
        raise UsageError(f"--method {method}: no question has a target; "
                         + ("the rows have no labels" if method == "finetune" else "the teacher answered none"))
    return made


def vote(task: Task, row: Row, entries: list[dict[str, Any]]) -> str | None:
    """The teacher's answer to a row: the most frequent value over its samples, the earliest among equals.

    Samples that were told the label, and given texts that the teacher only scored, are left out.
    """
    answers = [task.parse(entry["answer"], row.choices) for entry in entries if entry["answer"] and not entry.get("hint")
               and entry.get("finish_reason") != "scored"]
    counts = Counter(answer.value for answer in answers if answer)
    if not counts:
        return None
    best = max(counts.values())
    return next(answer.text for answer in answers if answer and counts[answer.value] == best)
