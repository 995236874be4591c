"""Word problems with fresh numbers: a question, its label and its rationales, rewritten together.

Nothing is guessed. A problem is rewritten only where each number of its label is one number of its question, a rationale only
where each of its numbers is one of the question's or what an operation of the label gives; and its equations must hold again.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from edgedistill.tasks import arithmetic
from edgedistill.teach.verify import equations, holds

TRIES = 200  # draws for one problem: of numbers like 72 and 9 one pair in four divides, like 4896 and 72 one in forty

# A number that stands alone: not 2nd, mp3, 3:30, 007 or 1.2.3.
_NUMBER = re.compile(r"((?<![\w:.])(?<!\d,)(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|0|[1-9][0-9]*)(?:\.[0-9]+)?(?!\w|[:.,]\d))")
_DIGITS, _LETTERS = re.compile(r"[0-9]+"), re.compile(r"[a-z]+")
_WORDS = {word: Fraction(n) for n, words in {
    0: "zero", 1: "one once", 2: "two twice double both pair pairs couple second half halves", 3: "three thrice triple third",
    4: "four fourth quarter quarters", 5: "five fifth", 6: "six sixth", 7: "seven seventh", 8: "eight eighth", 9: "nine ninth",
    10: "ten tenth", 11: "eleven", 12: "twelve dozen dozens", 13: "thirteen", 14: "fourteen", 15: "fifteen", 16: "sixteen",
    17: "seventeen", 18: "eighteen", 19: "nineteen", 20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty",
    70: "seventy", 80: "eighty", 90: "ninety", 100: "hundred", 1000: "thousand"}.items() for word in words.split()}


@dataclass(frozen=True)
class Fresh:
    """A problem with fresh numbers; `rationales` are those that could be rewritten."""

    question: str
    label: str
    rationales: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A problem whose numbers can be drawn anew. `question`, `label` and each of `rationales` are texts and numbers by turns,
    `values` the question's numbers in order of size, `results` what the label's operations give."""

    question: tuple[str, ...]
    label: tuple[str, ...]
    rationales: tuple[tuple[str, ...], ...]
    values: tuple[Fraction, ...]
    results: tuple[Fraction, ...]

    def draw(self, rng: random.Random) -> Fresh | None:
        """The problem with other numbers of the same digits and decimals, in the same order of size; each result of the label
        keeps its sign and stays whole where it was. None where no such numbers were found in TRIES draws."""
        for _ in range(TRIES):
            new = dict(zip(self.values, _drawn(self.values, rng), strict=True))
            if [*map(_form, new.values())] != [*map(_form, self.values)] or sorted(set(new.values())) != [*new.values()]:
                continue
            label = _written(self.label, new)
            try:
                results = arithmetic.results(label) if label else []
            except arithmetic.NotArithmetic:  # a division by zero
                continue
            if [*map(_kind, results)] != [*map(_kind, self.results)]:
                continue
            known = {**dict(zip(self.results, results, strict=True)), **new}
            told = (_written(parts, known) for parts in self.rationales)
            return Fresh(_written(self.question, new), label, tuple(text for text in told if text and _sound(text)))
        return None


def template(question: str, label: str, rationales: Iterable[str] = ()) -> Template | None:
    """The problem as a template, with those of its rationales that can be rewritten; None where it is not sure which number of
    the question the label means, or there is nothing to draw."""
    parts, items = _parts(question), _parts(label)
    counts, used = Counter(_values(parts)), set(_values(items))
    try:
        results = arithmetic.results(label)
    except arithmetic.NotArithmetic:
        return None
    drawn = {value for value in counts if _form(value)}
    if not results or not used & drawn or _DIGITS.search("".join(items[::2])) or any(counts[value] != 1 for value in used):
        return None
    # A number in words, too, may be the one that is meant; and one beside the label's that is a result probably states it.
    if drawn & _otherwise(parts) or (counts.keys() - used) & set(results) or max(map(len, parts[1::2])) > arithmetic.MAX_DIGITS:
        return None
    known = counts.keys() | set(results)
    twice = {value for value, n in Counter([*counts, *results]).items() if n > 1}  # a rationale may mean either
    kept = []
    for text in rationales:
        said = _parts(text)
        if set(_values(said)) <= known - twice and not _otherwise(said) & (drawn | set(results)) and _sound(text):
            kept.append(said)
    return Template(parts, items, tuple(kept), tuple(sorted(counts)), tuple(results))


def numbers(text: str) -> set[Fraction]:
    """The numbers in a text's digits."""
    return set(_values(_parts(text)))


def in_words(text: str) -> set[Fraction]:
    """What a text says in words, or in digits that are no number of their own."""
    return _otherwise(_parts(text))


def _parts(text: str) -> tuple[str, ...]:
    """text, number, text, number, ..., text"""
    return tuple(_NUMBER.split(text))


def _values(parts: tuple[str, ...]) -> list[Fraction]:
    return [Fraction(number.replace(",", "")) for number in parts[1::2]]


def _otherwise(parts: tuple[str, ...]) -> set[Fraction]:
    """What the text says in words, or in digits that are no number of their own."""
    rest = " ".join(parts[::2]).lower()
    return {_WORDS[word] for word in _LETTERS.findall(rest) if word in _WORDS} | set(map(Fraction, _DIGITS.findall(rest)))


def _sound(rationale: str) -> bool:
    return all(holds(*step) for step in equations(rationale))


def _kind(value: Fraction) -> tuple[int, bool]:
    """(sign, whether it is whole)."""
    return (value > 0) - (value < 0), value.denominator == 1


def _form(value: Fraction) -> tuple[int, int] | None:
    """(digits before the point, decimals); None for 0 and 1, which are never drawn: one apple is not two apples."""
    if value in (0, 1):
        return None
    return len(str(int(value))) if value >= 1 else 0, next(n for n in range(99) if (value * 10**n).denominator == 1)


def _drawn(values: tuple[Fraction, ...], rng: random.Random) -> list[Fraction]:
    """Fresh numbers for `values`, which are in order of size: those of one form are drawn together and keep their order."""
    forms: dict[tuple[int, int] | None, list[Fraction]] = defaultdict(list)
    for value in values:
        forms[_form(value)].append(value)
    fresh: dict[Fraction, Fraction] = {}
    for form, its in forms.items():
        if form is None:
            fresh |= zip(its, its, strict=True)
            continue
        digits, decimals = form
        low = 2 if form == (1, 0) else 10 ** (digits + decimals - 1) if digits else 1
        numbers = sorted(rng.sample(range(low, 10 ** (digits + decimals)), len(its)))
        fresh |= zip(its, (Fraction(n, 10**decimals) for n in numbers), strict=True)
    return [fresh[value] for value in values]


def _written(parts: tuple[str, ...], new: Mapping[Fraction, Fraction]) -> str | None:
    """The text with its numbers replaced, each in its own spelling; None where one cannot be spelled so exactly."""
    out = list(parts)
    for at, value in zip(range(1, len(parts), 2), _values(parts), strict=True):
        places = len(parts[at].partition(".")[2])
        scaled = new[value] * 10**places
        if scaled < 0 or scaled.denominator != 1:
            return None
        whole, rest = divmod(scaled.numerator, 10**places)
        out[at] = f"{whole:{',' if ',' in parts[at] else ''}}" + (f".{rest:0{places}}" if places else "")
    return "".join(out)
