"""Problems that are one problem: the same text but for its numbers and its question. They stay on one side of a split.

SVAMP varies about a hundred problems a thousand times, and 105 of its 200 test rows have the text of a training row once
numbers are masked: a split by rows measures in part what was learned by heart.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict

from edgedistill.errors import UsageError

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def mask(text: str) -> str:
    """The body of a problem: numbers are `#`, the question (the last line, or the last sentence of a single line) is cut,
    case, punctuation and spacing do not count."""
    lines = text.strip().split("\n")
    body = " ".join(lines[:-1] if len(lines) > 1 else _SENTENCE.split(lines[0])[:-1])
    return " ".join(re.findall(r"[^\W_]+|#", _NUMBER.sub("#", (body or text).lower())))


def groups(texts: list[str]) -> list[int]:
    """The group of each text, numbered in order of appearance: texts with one mask share it."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(mask(text), len(numbers)) for text in texts]


def folds(grouped: list[int], k: int, seed: int = 0) -> list[int]:
    """The fold, 0 to k - 1, of each row: whole groups, folds of nearly the same number of rows. Raises `UsageError`."""
    rows = _rows(grouped)
    if not 2 <= k <= len(rows):
        raise UsageError(f"folds = {k}: give 2 to {len(rows)}, the number of groups of rows with one body")
    order = list(rows)
    random.Random(f"folds-{seed}").shuffle(order)
    sizes, found = [0] * k, [0] * len(grouped)
    for group in sorted(order, key=lambda group: -len(rows[group])):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(rows[group])
        for i in rows[group]:
            found[i] = fold
    return found


def hold_out(grouped: list[int], share: float, seed: int = 0) -> set[int]:
    """Indices of about `share` of the rows, at least one: whole groups, drawn by `seed`."""
    rows = _rows(grouped)
    if len(rows) < 2:
        raise UsageError("all rows have one body and cannot be split into training and dev rows; give others besides")
    order = list(rows)
    random.Random(f"dev-{seed}").shuffle(order)
    chosen: set[int] = set()
    for group in order[:-1]:
        if len(chosen) >= max(1, round(share * len(grouped))):
            break
        chosen.update(rows[group])
    return chosen


def _rows(grouped: list[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(grouped):
        rows[group].append(i)
    return rows
