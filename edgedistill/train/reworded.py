"""Training problems in a teacher's other words: more texts for the labels that there are.

A run of `teach` with a task card like `svamp-reworded` holds them: its rationales are the new texts, its answers what the
teacher itself makes of them. A text counts where that answer is the row's label and the text has the row's numbers, no other.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from edgedistill import runs
from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.teach import read_corpus
from edgedistill.teach.verify import SAME_WORDS, overlap, words_of
from edgedistill.train.resample import in_words, numbers


def read(run: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The corpus of a finished teach run by row, without what was told the label. Raises `UsageError` where there is none."""
    if not runs.finished(run, "teach"):
        raise UsageError(f"--reworded {run}: no finished teach stage; make it: edgedistill teach --task svamp-reworded "
                         f"--data ROWS --run {run}")
    found = defaultdict(list)
    for entry in read_corpus(run):
        if not entry.get("hint"):
            found[entry["id"]].append(entry)
    return found


def texts(task: Task, row: Row, label: str, entries: list[dict[str, Any]]) -> list[str]:
    """The row's question in other words: each text that has its numbers, none besides in words, and comes to `label`, once.

    A row whose label has a number that its question lacks (or says in words) stays alone. Texts that share SAME_WORDS of
    their words with the question, or with an earlier one, are repetitions.
    """
    question, gold, kept = task.question(row), task.parse(label, row.choices), []
    known = [words_of(question)]
    if gold is None or not numbers(label) <= numbers(question):
        return []
    for entry in entries:
        text, answer = (entry["rationale"] or "").strip(), entry["answer"] and task.parse(entry["answer"], row.choices)
        if answer and task.same(answer, gold) and numbers(text) == numbers(question) and (
                in_words(text) <= in_words(question)) and not any(
                overlap(words_of(text), other) >= SAME_WORDS for other in known):
            kept.append(text)
            known.append(words_of(text))
    return kept
