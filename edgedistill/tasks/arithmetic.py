"""Arithmetic that a model wrote, evaluated without executing anything.

A text is read into numbers, + - * / and parentheses, and that tree is walked with exact fractions. Names,
calls, powers and everything else are refused; so is a text long enough to cost time.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 200   # SVAMP's longest gold equation has 31, ASDiv's longest formula 180
MAX_DIGITS = 18        # of one number

_TOKEN = re.compile(r"\s*(\d[\d,]*\.?\d*|\.\d+|[-+*/()])")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "$": " ", "{": "(", "}": ")"})
_FRACTION_DIGITS = re.compile(r"\.0+$")


class NotArithmetic(ValueError):
    """The text is no plain arithmetic, or too long, or divides by zero."""


def tokens(text: str) -> list[str]:
    """The numbers, operators and parentheses of `text`, numbers without thousands commas or a trailing .0.

    Raises `NotArithmetic` for any other character, and for texts beyond the limits above.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotArithmetic(f"{len(text)} characters, at most {MAX_CHARACTERS} are evaluated")
    text = text.translate(_SIGNS).strip()
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise NotArithmetic(f"unexpected {text[at:at + 12]!r}")
        token = _FRACTION_DIGITS.sub("", match[1].replace(",", "")).removesuffix(".") or "0"
        if len(token) > MAX_DIGITS:
            raise NotArithmetic(f"a number of {len(token)} digits, at most {MAX_DIGITS} are evaluated")
        found.append(token)
        at = match.end()
    return found


def evaluate(text: str) -> Fraction:
    """The exact value of `text`, e.g. `"( 84.0 / 2.0 )"` -> `Fraction(42)`. Raises `NotArithmetic`."""
    return _evaluate(text, [])


def results(text: str) -> list[Fraction]:
    """What each + - * / of `text` gives, in the order of calculation: `"( 3 + 4 ) * 2"` -> 7, 14. Raises `NotArithmetic`."""
    found: list[Fraction] = []
    _evaluate(text, found)
    return found


def _evaluate(text: str, results: list[Fraction]) -> Fraction:
    items = tokens(text)
    value, rest = _sum(items, 0, results)
    if rest != len(items):
        raise NotArithmetic(f"unexpected {items[rest]!r}")
    return value


def normalise(text: str) -> str:
    """One spelling for all sources: single spaces, no trailing .0: `"(84.0/2.0)"` -> `"( 84 / 2 )"`."""
    return " ".join(tokens(text))


def show(value: Fraction) -> str:
    """A value as text: `42`, `2.5`; up to six decimals where it does not end."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def equal(a: Fraction, b: Fraction) -> bool:
    """Whole numbers exactly, others up to one part in 10,000: 2.6667 passes for 8 / 3 and 2.67 does not."""
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= Fraction(1, 10_000) * max(1, abs(b))


# Recursive descent over `items`; each function returns (value, index after what it read) and adds what its operators give to
# `results`. The depth is bounded by MAX_CHARACTERS, far below Python's own limit.


def _sum(items: list[str], at: int, results: list[Fraction]) -> tuple[Fraction, int]:
    value, at = _product(items, at, results)
    while at < len(items) and items[at] in "+-":
        sign = 1 if items[at] == "+" else -1
        right, at = _product(items, at + 1, results)
        value += sign * right
        results.append(value)
    return value, at


def _product(items: list[str], at: int, results: list[Fraction]) -> tuple[Fraction, int]:
    value, at = _atom(items, at, results)
    while at < len(items) and items[at] in "*/":
        operator = items[at]
        right, at = _atom(items, at + 1, results)
        if operator == "/" and right == 0:
            raise NotArithmetic("division by zero")
        value = value * right if operator == "*" else value / right
        results.append(value)
    return value, at


def _atom(items: list[str], at: int, results: list[Fraction]) -> tuple[Fraction, int]:
    if at >= len(items):
        raise NotArithmetic("ends too early")
    if items[at] == "-":
        value, at = _atom(items, at + 1, results)
        return -value, at
    if items[at] == "(":
        value, at = _sum(items, at + 1, results)
        if at >= len(items) or items[at] != ")":
            raise NotArithmetic("a parenthesis is not closed")
        return value, at + 1
    try:
        return Fraction(items[at]), at + 1
    except ValueError as error:
        raise NotArithmetic(f"unexpected {items[at]!r}") from error
