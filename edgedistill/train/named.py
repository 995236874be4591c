"""Equations that say what their numbers are: `( scored points 84 / playing rounds 2 )` instead of `( 84.0 / 2.0 )`.

The words are the question's own, the one before the number and what it counts, so no teacher is needed and nothing can be
wrong. The student has to say which quantity it takes before it writes the number: a rationale of a few tokens that can be
executed. `Format.split` takes the words out again (edge/format.py).
"""

from __future__ import annotations

import re
from fractions import Fraction

from edgedistill.edge.format import FILLERS

_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_TOKEN = re.compile(_NUMBER.pattern + r"|[A-Za-z][A-Za-z'-]*|\S|\n")
_PASSED = frozenset("more less fewer other new of the old big small".split())  # between a number and what it counts
WITHIN = 4  # words after a number in which it is looked for


def named(question: str, equation: str) -> str:
    """The equation with each of its numbers that the question has behind the words that stand around it there (the first time),
    and in its shortest spelling."""
    tokens = _TOKEN.findall(question)
    words: dict[Fraction, list[str]] = {}
    for at, token in enumerate(tokens):
        if _NUMBER.fullmatch(token):
            words.setdefault(_value(token), _around(tokens, at))

    def spoken(match: re.Match[str]) -> str:
        value = _value(match[0])
        return " ".join([*words.get(value, ()), str(value.numerator) if value.denominator == 1 else match[0]])

    return _NUMBER.sub(spoken, equation)


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _around(tokens: list[str], at: int) -> list[str]:
    """The word before the number and the first one after it that is not passed over, in lower case; `$` counts dollars.
    None but those that `Format.split` takes out again."""
    money = at > 0 and tokens[at - 1] == "$"
    before = tokens[max(0, at - 1 - money):at - money]
    after = []
    for token in () if money else tokens[at + 1:at + 1 + WITHIN]:
        if not FILLERS.fullmatch(token):
            break
        if token.lower() not in _PASSED:
            after = [token]
            break
    return [word.lower() for word in (*before, *(["dollars"] if money else after)) if FILLERS.fullmatch(word)]
