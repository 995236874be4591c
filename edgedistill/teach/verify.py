"""What a completion is worth: its answer parsed and compared, its equations evaluated, repetitions found.

Nothing that a model wrote is executed: `tasks.arithmetic` reads numbers, + - * / and parentheses.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import Any

from edgedistill.tasks import arithmetic
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import TIMES, Style, Task

SAME_EQUATIONS, SAME_WORDS = 0.6, 0.9  # overlap of words from which two rationales count as one, see `settle`
USABLE = ("verified", "unlabelled")

_LEFT = re.compile(r"[-+*/×÷−–()\[\]$\d.,\s]*[\d)\]]\s*$")
_RIGHT = re.compile(r"\s*[-−]?\s*\$?\s*[\d,]*\.?\d+(?:\s*[-+*/×÷−–]\s*[-+*/×÷−–()\d.,\s]*\d\)*)?")
_OPERATOR = re.compile(r"[\d)]\s*[-+*/×÷−–]")
_WORD = re.compile(r"\w+")


def judge(task: Task, row: Row, text: str, finish: str, style: Style | None = None, hint: bool = False) -> dict[str, Any]:
    """{rationale, answer, value, verdict} and, for what cannot be used, the `reason`.

    In an executable `style` every equation of the rationale must hold and the last one give the answer.
    """
    rationale, stated = task.split(text)
    # What was cut off may be half a number, or half a reason.
    answer = None if finish == "length" else task.parse(stated, row.choices)
    label = task.label(row)
    reason = None
    if answer is None:
        verdict = "truncated" if finish != "stop" else "unparsed"
        reason = {"prompt_too_long": "the prompt does not fit the context", "length": "it did not end within max_new_tokens",
                  }.get(finish) or ("no answer lead" if stated is None else "the answer cannot be read")
    else:
        verdict = "unlabelled" if label is None else "verified" if task.same(answer, label) else "wrong"
        reason = "another answer than the label" if verdict == "wrong" else None
        if verdict in USABLE and style and style.executable:
            reason = _fault(task, rationale, answer.value)
        if verdict in USABLE and not reason and hint and re.search(r"\b(hint|known)\b", rationale, re.IGNORECASE):
            reason = "it speaks of the hint"
        verdict = "wrong" if reason else verdict
    return {"rationale": rationale, "answer": answer.text if answer else None, "value": answer.value if answer else None,
            "verdict": verdict, **({"reason": reason} if reason else {})}


def usable(entry: dict[str, Any]) -> bool:
    """Whether a sample has a rationale to train on."""
    return entry["verdict"] in USABLE and bool(entry["rationale"])


def equations(text: str) -> list[tuple[str, str]]:
    """(left, right) of each equation between plain numbers in `text`: "so 3 * 4 = 12 eggs" -> [("3 * 4", "12")]."""
    found = []
    for sentence in re.split(r"[.,]\s|\n|;", TIMES.sub("*", text)):
        sides = sentence.split("=")
        for left, right in zip(sides, sides[1:], strict=False):
            a, b = _LEFT.search(left[-4 * arithmetic.MAX_CHARACTERS:]), _RIGHT.match(right)
            if a and b and (_OPERATOR.search(a[0]) or _OPERATOR.search(b[0])):
                found.append((_closed(a[0]).strip(" ,$"), b[0].strip(" ,$")))
    return found


def holds(left: str, right: str) -> bool:
    """Whether both sides have one value; a right side with decimals may be rounded to them."""
    try:
        a, b = arithmetic.evaluate(left), arithmetic.evaluate(right)
    except arithmetic.NotArithmetic:
        return False
    decimals = len(right.partition(".")[2]) if re.fullmatch(r"[-−$\d,]*\.\d+", right) else 0
    return arithmetic.equal(a, b) or bool(decimals and abs(a - b) <= Fraction(1, 2 * 10**decimals))


def settle(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row's samples in order, repetitions marked; with several samples each has its `agreement`.

    A usable rationale repeats an earlier one when it has the same equations (those in it, else its answer's) and shares
    60 % of its words, or shares 90 % of them: two ways to say one calculation are both of use, a changed word is not.
    `agreement` is the share of the row's samples (without hints) that came to the same value.
    """
    own = [entry for entry in entries if not entry["hint"]]
    values = Counter(entry["value"] for entry in own if entry["value"] is not None)
    kept: list[tuple[tuple[str, ...], set[str]]] = []
    out = []
    for entry in entries:
        if len(own) > 1 and not entry["hint"]:
            entry = {**entry, "agreement": round(values[entry["value"]] / len(own), 4)}
        if entry["verdict"] in USABLE:
            seen, words = _spelled(entry), words_of(entry["rationale"] or "")
            if any(overlap(words, text) >= (SAME_EQUATIONS if seen == theirs else SAME_WORDS) for theirs, text in kept):
                entry = {**entry, "verdict": "duplicate", "reason": "it repeats an earlier sample"}
            else:
                kept.append((seen, words))
        out.append(entry)
    return out


def _fault(task: Task, rationale: str, value: str) -> str | None:
    """What keeps a rationale from being executable, None if nothing does."""
    steps = equations(rationale)
    if not steps:
        return "no equation in it"
    if not all(holds(*step) for step in steps):
        return "an equation does not hold"
    if task.kind in ("equation", "number") and not holds(value, steps[-1][1]):
        return "its last equation does not give the answer"
    return None


def _closed(left: str) -> str:
    """Without what stands before the equation: "12 pens (3 * 4" and "1) 3 * 4" are "3 * 4"."""
    while excess := left.count("(") - left.count(")"):
        left = left.partition("(" if excess > 0 else ")")[2]
    return left


def _spelled(entry: dict[str, Any]) -> tuple[str, ...]:
    sides = [left for left, _ in equations(entry["rationale"] or "")] or [entry["answer"] or ""]
    return tuple("".join(side.split()) for side in sides)


def words_of(text: str) -> set[str]:
    """The words of a text, numbers among them, in small letters."""
    return set(_WORD.findall(text.lower()))


def overlap(a: set[str], b: set[str]) -> float:
    """Shared words of two texts over all of them."""
    return len(a & b) / len(a | b) if a | b else 1.0
