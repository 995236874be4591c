"""What a student's tokenizer does to the training texts, said before training; and stand-ins for what it lacks.

T5's vocabulary has no `{ } < \\ ~ ^` and its whitespace is one space (transformers issues 19293 and 6150): a target with
such a character or a newline cannot be learned as it stands. `escapes` finds texts that stand for them. They are kept in
the student's format, put in wherever a text is encoded and taken out wherever an output is decoded, on the device too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice, permutations
from typing import Any

from edgedistill.edge.format import PREFIXES

MOST = 64  # stand-ins of one student; a text in a script that the vocabulary lacks is no case for them
_SHOWN = {"\n": "newline", "\t": "tab"}


@dataclass(frozen=True)
class Report:
    """Counts of targets by what the tokenizer does to them; `_before` is without the stand-ins.

    `spaces` have repeated spaces, which are joined; `cut` are longer than their part's limit. `left` are the characters
    of the targets that are lost for want of a stand-in, `examples` the beginnings of targets that are unk, cut or lose
    newlines.
    """

    targets: int
    unk_before: int
    unk: int
    newlines_before: int
    newlines: int
    spaces: int
    cut: int
    escapes: dict[str, str]
    left: str
    examples: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the result file; `unk_share` is the share of the targets that hold `<unk>`, 0 to 1."""
        share = round(self.unk / max(1, self.targets), 4)
        return {**asdict(self), "examples": list(self.examples), "unk_share": share}

    def lines(self) -> list[str]:
        """What the plan says: one or two lines, none where there is nothing to say."""
        made = []
        if self.escapes:
            made.append(f"stand-ins for {_show(self.escapes)}: of {self.targets} targets {self.unk_before} held <unk> and "
                        f"{self.newlines_before} lost newlines, now {self.unk} and {self.newlines}")
        elif self.unk or self.newlines:
            made.append(f"{self.unk} of {self.targets} targets hold <unk>, {self.newlines} lose newlines")
        if made and self.left:
            made[0] += f"; without a stand-in: {_show(self.left)}"
        if self.cut or self.spaces:
            made.append(f"{self.cut} of {self.targets} targets are longer than the task card allows and are cut off, "
                        f"{self.spaces} have repeated spaces, which are joined")
        if self.examples:
            made[-1] += f"; e.g. {self.examples[0]!r}"
        return [f"  lint      {line}" for line in made]


def escapes(rust: Any, unk_id: int | None, texts: Iterable[str]) -> dict[str, str]:
    """{character: stand-in} for what a `tokenizers.Tokenizer` does not give back of the training texts.

    A stand-in is a rare character of the vocabulary, or a pair of characters once those are used up. It occurs in no text,
    holds nothing that has a stand-in itself and cannot arise between two others or a text and another, so replacing in any
    order, and back, is exact. It is tried beside each neighbour that the character has in the texts, with the decoding that
    the device does; T5's `<extra_id_N>` never pass, as decoding skips special tokens. The most frequent characters choose
    first. Those for which nothing passes, and all after the first `MOST`, have none. The same texts give the same map.
    """
    texts = list(texts)
    counts = _count(texts)
    trip = _Trip(rust, unk_id, counts)
    missing = trip.lost(counts)
    if not missing:
        return {}
    taken = [_plain(text) for text in (*texts, *PREFIXES.values())]
    free = list(islice(_stand_ins(trip, taken), 4 * MOST))
    beside = _neighbours(texts, missing)
    chosen: dict[str, str] = {}
    for character in sorted(missing, key=lambda c: (-counts[c], c))[:MOST]:
        around = [(trip.anchor + before, after + trip.anchor) for before, after in sorted(beside[character])]
        passing = (text for text in free if _apart(text, chosen.values()) and all(
            trip.returns(before + text * n + after) for before, after in around for n in (1, 2)))
        for text in islice(passing, 1):
            chosen[character] = text
    return chosen


def lint(student: Any, targets: Iterable[tuple[str, str]]) -> Report:
    """The report on (target, part) pairs for a student whose format is set, its stand-ins in it."""
    targets = list(targets)
    form, rust, unk_id = student.format, student.rust, student.tokenizer.unk_token_id
    counts = _count(text for text, _ in targets)
    left = "".join(sorted(set(_Trip(rust, unk_id, counts).lost(counts)) - set(form.escapes)))
    found: Counter[str] = Counter()
    examples = []
    for text, part in targets:
        text = escaped = text.strip()
        for character, stands_for in form.escapes.items():
            escaped = escaped.replace(character, stands_for)
        raw = rust.encode(text, add_special_tokens=False).ids
        ids = rust.encode(escaped, add_special_tokens=False).ids if escaped != text else raw
        back, newlines = form.decode(rust, ids), text.count("\n")
        found["unk_before"] += unk_id in raw
        found["newlines_before"] += rust.decode(raw).count("\n") < newlines
        found["spaces"] += "  " in text and "  " not in back
        bad = {"unk": unk_id in ids, "newlines": back.count("\n") < newlines,
               "cut": len(ids) >= form.max_new_tokens(part)}  # EOS is one of them
        for name, is_so in bad.items():
            found[name] += is_so
        if any(bad.values()) and len(examples) < 3:
            examples.append(text[:60])
    return Report(len(targets), found["unk_before"], found["unk"], found["newlines_before"], found["newlines"],
                  found["spaces"], found["cut"], form.escapes, left, tuple(examples))


class _Trip:
    """Texts on their way through a tokenizer and back. `anchor` is a character that surely survives it."""

    def __init__(self, rust: Any, unk_id: int | None, counts: Counter[str]) -> None:
        self.rust, self.unk_id = rust, unk_id
        common = sorted((c for c in counts if c.isalnum()), key=lambda c: (-counts[c], c))
        self.anchor = next((c for c in common if self.returns(c)), "")

    def returns(self, text: str) -> bool:
        """Whether the text comes back, up to what the tokenizer does to case and to composed accents."""
        ids = self.rust.encode(text, add_special_tokens=False).ids
        back = self.rust.decode(ids)
        return self.unk_id not in ids and _plain(back) == _plain(text)

    def survives(self, text: str) -> bool:
        """Whether the text comes back inside a word, at the beginning of one, and twice."""
        return all(self.returns(self.anchor + form) for form in (text + self.anchor, " " + text, text + text))

    def lost(self, counts: Counter[str]) -> list[str]:
        """The characters that do not survive. Blanks other than newline and tab, and unseen signs, are not counted."""
        return [c for c in counts if not _blank(c) and not self.survives(c)]

    def tokens(self, text: str) -> int:
        """What the text costs, inside a word and at the beginning of one."""
        return sum(len(self.rust.encode(self.anchor + form, add_special_tokens=False).ids)
                   for form in (text + self.anchor, " " + text))


def _stand_ins(trip: _Trip, taken: list[str]) -> Iterator[str]:
    """What survives and is in no text of `taken`: characters, then pairs of any. Cheap ones first, and rare ones.

    A vocabulary is ordered by frequency, so a high id is a rare piece. Free ASCII letters and digits are left to texts that
    are still to come. Capitals are passed over: a tokenizer that respells them would seem to give them back.
    """
    used = set().union(*taken)
    pairs = {text[i:i + 2] for text in taken for i in range(len(text) - 1)}
    ids: dict[str, int] = defaultdict(int)
    for piece, token in trip.rust.get_vocab(with_added_tokens=False).items():
        character = piece.removeprefix("▁")
        if len(character) == 1 and not _blank(character):
            ids[character] = max(ids[character], token)
    known = [c for c in ids if _plain(c) == c and trip.survives(c)]
    free = [c for c in known if c not in used and not (c.isascii() and c.isalnum())]
    yield from sorted(free, key=lambda c: (trip.tokens(c), c.isascii(), -ids[c], c))
    known.sort(key=lambda c: (c.isalnum(), -ids[c], c))
    yield from (a + b for a, b in permutations(known, 2) if a + b not in pairs and trip.survives(a + b))


def _neighbours(texts: list[str], missing: list[str]) -> dict[str, set[tuple[str, str]]]:
    """What stands before and after each missing character: characters that survive, spaces, or nothing."""
    gone, pattern = set(missing), re.compile(f"[{re.escape(''.join(missing))}]")
    beside: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for text in texts:
        for match in pattern.finditer(text):
            before, after = text[:match.start()][-1:], text[match.end():][:1]
            beside[match[0]].add(tuple("" if c in gone or (c != " " and _blank(c)) else c for c in (before, after)))
    return beside


def _apart(text: str, others: Iterable[str]) -> bool:
    """Whether no stand-in is in another and none begins as another ends: then each occurrence of one was put there."""
    return not any(
        a in b or any(a.endswith(b[:n]) for n in range(1, min(len(a), len(b))))
        for other in others for a, b in ((text, other), (other, text)))


def _count(texts: Iterable[str]) -> Counter[str]:
    return Counter(chain.from_iterable(texts))


def _blank(text: str) -> bool:
    """Whether a character is nothing or whitespace of no meaning, or not seen (zero-width ones, controls)."""
    return text not in ("\n", "\t") and (not text or text.isspace() or unicodedata.category(text) in ("Cc", "Cf"))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _show(characters: Iterable[str]) -> str:
    named = [_SHOWN.get(c, c) for c in characters]
    return " ".join(named[:12]) + (f" and {len(named) - 12} more" if len(named) > 12 else "")
