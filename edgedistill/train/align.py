"""A teacher's soft targets on the tokens of a student that cuts the same text differently.

`by_recurrence` is the published way (Fu et al. 2023, Specializing Smaller Language Models, and its code): only a student
token that equals the one teacher token it is matched with gets the teacher's candidates. `by_spans` goes by the bytes of
the text: each student token gets what the teacher's candidates say about the bytes that come next. `Targets.mass`
compares them. Both work on one text; neither needs torch.

What `by_spans` gives is exact, but for the mass that the records do not name (below), where
- a student token begins and ends with a teacher token and each candidate is one piece of the student;
- a student token begins with a teacher token and ends within it (12 -> 1, 2): candidates are summed by the student's first
  piece, and for the pieces that follow only those count which begin with what is written already;
- a student token spans several teacher tokens (ap, ple -> apple): the product along the way that was taken, and at each
  teacher token the candidates that leave it.
It is an approximation where a candidate that was not taken could have gone on within the student's piece: its text is known
only up to its own end (` 3` may have become ` 36`, a teacher's bare space ` 12`), so its mass goes to the piece that this
much text begins with; and where the teacher's next token could have changed the student's piece (` cat`, `s`), which is not
looked at. Left out are candidates that would have changed the student's earlier pieces and are none themselves, blanks and
incomplete characters that the student has no piece for: as if the teacher went on after them as after all others.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

_STRETCH = 16  # bytes of a target that must be found in the teacher's text for it to begin later than after blanks
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's name of a single byte


@dataclass(frozen=True)
class Targets:
    """Soft targets of a text's N student tokens, the last of which is EOS; K entries each.

    `ids` [N, K] int64 and `probs` [N, K] float32 by falling probability, filled up with the target token at 0. `mass` [N]
    float32 is the share of the teacher's probability that was transferred, 0 where the target is one-hot for want of it.
    """

    ids: np.ndarray
    probs: np.ndarray
    mass: np.ndarray


class Pieces:
    """A student's vocabulary by the bytes that its pieces stand for, a space written as a space.

    `lead` is the space that the tokenizer puts before a text (T5: `We` is `▁We`), else empty.
    """

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self.tokenizer, self.eos_id = tokenizer, eos_id
        byte_level = tokenizer.decoder is not None and b"ByteLevel" in bytes(tokenizer.decoder.__getstate__())
        added = tokenizer.get_added_tokens_decoder()
        self.special = {i for i, token in added.items() if token.special}  # `<unk>` among them
        self.bytes: dict[int, bytes] = {}
        self.ids: dict[bytes, int] = {}
        # A byte's own piece gives way to a character's.
        for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: (bool(_FALLBACK.fullmatch(item[0])), item)):
            self.bytes[i] = token.encode() if i in added else _bytes(token, byte_level)
            if i not in self.special:
                self.ids.setdefault(self.bytes[i], i)
        word = next((piece.strip() for piece in self.ids if piece.strip().isalpha()), b"a").decode()
        first = tokenizer.encode(word, add_special_tokens=False).ids[0]
        self.lead = b" " if self.bytes[first][:1] == b" " else b""
        self._cut_after = lru_cache(maxsize=1 << 17)(self._first_after)

    def cut(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, ends) of a text's tokens; each ends at that byte of `lead` + text and begins where the last one ended."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        pieces = [self.bytes[i] for i in encoding.ids]
        if b"".join(pieces) == self.lead + text.encode():
            return encoding.ids, list(accumulate(map(len, pieces)))
        # The tokenizer rewrote the text, or has no piece for some of it.
        at = [0, *accumulate(len(character.encode()) for character in text)]
        return encoding.ids, list(accumulate((len(self.lead) + at[end] for _, end in encoding.offsets), max))

    def first(self, before: bytes, more: bytes, whole: bool) -> int | None:
        """The token after `before`, the word so far, in a text that goes on with `more`; None where that is not known.

        With `whole`, a piece of just these bytes comes first, whatever the word would make of them.
        """
        if whole and more in self.ids:
            return self.ids[more]
        return self._cut_after(b"" if more[:1].isspace() else before, more)

    def _first_after(self, before: bytes, more: bytes) -> int | None:
        try:
            text = (before + more).decode()
        except UnicodeDecodeError:
            return self.ids.get(more)
        if not text.strip():
            return None
        floor = 0 if text[0] == " " else len(self.lead)  # of a lead that is not in the text
        ids, ends = self.cut(text[len(self.lead) - floor:])
        begin = len(before) + floor
        spans = zip(ids, [0, *ends], ends, strict=False)
        first = next((i for i, start, end in spans if max(start, floor) == begin < end), None)
        return None if first in self.special else first


class Step(NamedTuple):
    """One teacher token: the bytes that were taken, their probability, the other candidates, and the mass `rest` outside.

    The probabilities and `rest` add up to 1. A candidate without bytes ends the text.
    """

    taken: bytes
    p: float
    others: list[tuple[bytes, float]]
    rest: float

    def after(self, written: bytes) -> Step:
        """The step given the first bytes of what was taken; all the mass outside may agree with them: `rest` is a bound."""
        n = len(written)
        if not n:
            return self
        agree = [(piece, p) for piece, p in self.others if piece and piece[:n] == written[:len(piece)]]
        total = self.p + sum(p for _, p in agree) + self.rest
        longer = [(piece[n:], p / total) for piece, p in agree if len(piece) > n]
        return Step(self.taken[n:], self.p / total, longer, 1 - (self.p / total + sum(p for _, p in longer)))


def steps(records: np.ndarray, vocabulary: dict[int, bytes]) -> list[Step]:
    """The records of a sample (`teach.soft.record`) as bytes. Raises `KeyError` for an id outside `vocabulary`."""
    p = np.exp(np.maximum(records["logprobs"].astype(np.float64), -700))  # float16 rounds; no 0, which cannot be a condition
    total = p.sum(axis=1) + records["rest"]
    out = []
    for ids, place, row, rest in zip(records["ids"].tolist(), records["place"].tolist(), (p / total[:, None]).tolist(),
                                     (records["rest"] / total).tolist(), strict=True):
        pieces = [(vocabulary[i], p) for i, p in zip(ids, row, strict=True)]
        out.append(Step(*pieces.pop(place), pieces, rest))
    return out


@lru_cache(maxsize=1 << 18)
def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and replacements that make `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def dtw(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[int, int]]:
    """The published alignment: (teacher token, student token) pairs from the first to the last, a monotone path.

    M[0, 0] = 0, M[i, 0] = M[0, j] = inf, M[i+1, j+1] = c(i, j) + min(M[i, j+1], M[i+1, j], M[i, j]) with c the edit
    distance of the teacher's token without spaces and the student's without `▁`; from the end back to the smallest of
    diagonal, previous teacher token, previous student token, the first of these among equals.
    """
    if not teacher or not student:
        return []
    plain = [token.replace("▁", "") for token in student]
    total = [[0.0] + [np.inf] * len(student)]
    for token in teacher:
        above, row, bare = total[-1], [np.inf], token.replace(" ", "")
        for j, other in enumerate(plain):
            row.append(levenshtein(bare, other) + min(above[j + 1], row[j], above[j]))
        total.append(row)
    i, j = len(teacher) - 1, len(student) - 1
    path = [(i, j)]
    while i or j:
        i, j = min((i - 1, j - 1), (i - 1, j), (i, j - 1), key=lambda at: total[at[0] + 1][at[1] + 1])
        path.append((i, j))
    return path[::-1]


def by_recurrence(pieces: Pieces, text: str, records: np.ndarray, vocabulary: dict[int, bytes], k: int | None = None,
                  limit: int | None = None) -> Targets:
    """The published targets of `text`; arguments as `by_spans`.

    A student token matched with exactly one teacher token of the same bytes (`▁` is a space) gets the candidates that are
    pieces of the student, with the teacher's own probabilities: rows add up to at most 1. All others, and EOS, are one-hot.
    """
    both = _Both.lay(pieces, text, records, vocabulary, limit)
    teacher = [step.taken for step, start in zip(both.steps, both.starts, strict=True) if start < both.shared and step.taken]
    student = [pieces.bytes[i] for i, end in zip(both.ids, both.ends, strict=True) if end <= both.shared]
    partners = defaultdict(list)
    for i, j in dtw([token.decode(errors="replace") for token in teacher],
                    [token.decode(errors="replace").replace(" ", "▁") for token in student]):
        partners[j].append(i)
    taken = [step for step in both.steps if step.taken]
    rows: list[dict[int, float]] = [{} for _ in range(len(both.ids) + 1)]
    for j, token in enumerate(student):
        if len(partners[j]) == 1 and teacher[partners[j][0]] == token:
            step = taken[partners[j][0]]
            rows[j] = {pieces.ids[piece]: p for piece, p in [*step.others, (token, step.p)] if piece in pieces.ids}
    return _targets([*both.ids, pieces.eos_id], rows, k or records.dtype["ids"].shape[0], divide=False)


def by_spans(pieces: Pieces, text: str, records: np.ndarray, vocabulary: dict[int, bytes], k: int | None = None,
             limit: int | None = None) -> Targets:
    """Soft targets of `text`, a student's target, from the records of the teacher's text that it begins like.

    `records` are one sample's (`teach.soft.read`), `vocabulary` its folder's bytes by id. `k` entries a token (None: as the
    records), `limit` the longest target in tokens, EOS among them, as `Format.encode_target` cuts it. The text may begin
    anywhere in the teacher's. Rows are divided by what is known, so that they add up to 1; `mass` is what it was (given the
    bytes that are written, where the student's token begins within a teacher's: there it is a lower bound). One-hot are
    tokens beyond the teacher's text or where the two differ, and EOS unless the teacher ends there, blanks aside.
    """
    both = _Both.lay(pieces, text, records, vocabulary, limit)
    if both.steps:
        step = both.steps[0].after(both.steps[0].taken[:both.skipped])
        both.steps[0] = Step(pieces.lead + step.taken, step.p,
                             [(piece and pieces.lead + piece, p) for piece, p in step.others], step.rest)
    said = b"".join(step.taken for step in both.steps)
    reaches = [start + len(step.taken) for start, step in zip(both.starts, both.steps, strict=True)]
    rows: list[dict[int, float]] = []
    begin = word = 0  # where the token begins, and the word that it goes on
    for token, end in zip(both.ids, both.ends, strict=True):
        known = begin < end <= both.shared
        path, whole = both.path(begin, bisect_left(reaches, end)) if known else ([], True)
        rows.append(_spread(pieces, path, both.text[word:begin], whole, token))
        word = begin if both.text[begin:begin + 1].isspace() else word
        begin = end
    ended = begin <= both.shared and both.steps and not both.steps[-1].taken and not said[begin:].strip()
    path, whole = both.path(begin, len(both.steps) - 1) if ended else ([], True)
    rows.append(_spread(pieces, path, both.text[word:begin], whole, pieces.eos_id))
    return _targets([*both.ids, pieces.eos_id], rows, k or records.dtype["ids"].shape[0], divide=True)


@dataclass
class _Both:
    """A student's target and the teacher's steps on one scale: bytes of `text`, which is the target after its `lead`.

    The first step is the one that holds the target's first byte, of which `skipped` bytes lie before it. Up to `shared` the
    two texts are the same.
    """

    text: bytes
    ids: list[int]
    ends: list[int]
    steps: list[Step]
    starts: list[int]
    skipped: int
    shared: int

    @classmethod
    def lay(cls, pieces: Pieces, text: str, records: np.ndarray, vocabulary: dict[int, bytes], limit: int | None) -> _Both:
        ids, ends = pieces.cut(text)
        if limit is not None:
            ids, ends = ids[:limit - 1], ends[:limit - 1]
        all_steps, body, lead = steps(records, vocabulary), text.encode(), len(pieces.lead)
        said = b"".join(step.taken for step in all_steps)
        longest = bisect_left(range(1, len(body) + 1), True, key=lambda n: body[:n] not in said)
        begin = said.find(body[:longest])
        if longest < min(len(body), _STRETCH):
            begin = len(said) - len(said.lstrip())
        edges = [0, *accumulate(len(step.taken) for step in all_steps)]
        first = bisect_right(edges, begin, 1) - 1
        starts = [0, *(edge - begin + lead for edge in edges[first + 1:-1])][:len(all_steps) - first]
        same = len(os.path.commonprefix([body, said[begin:]]))
        return cls(pieces.lead + body, ids, ends, all_steps[first:], starts, begin - edges[first], same + lead if same else 0)

    def path(self, begin: int, last: int) -> tuple[list[Step], bool]:
        """The steps from the byte `begin` to the step `last`, the first given its bytes before `begin`; whether it has none."""
        at = bisect_right(self.starts, begin) - 1
        written = self.steps[at].taken[:begin - self.starts[at]]
        return [self.steps[at].after(written), *self.steps[at + 1:last + 1]], not written


def _spread(pieces: Pieces, path: list[Step], before: bytes, whole: bool, token: int) -> dict[int, float]:
    """Probabilities of the student's token after `before`, the word so far, where the way that was taken gives `token`.

    Within a teacher's token (not `whole`) a candidate counts only if the student would have come here with it: otherwise it
    went to another piece before. At a teacher's token none did yet, so that a piece's own bytes are enough.
    """
    row: dict[int, float] = defaultdict(float)
    more, weight = b"", 1.0
    for step in path:
        for piece, p in step.others:
            other = pieces.first(before, more + piece, whole) if more + piece else pieces.eos_id
            if other is not None:
                row[other] += weight * p
        more += step.taken
        weight *= step.p
    if path:
        row[token] += weight
    return row


def _targets(tokens: list[int], rows: list[dict[int, float]], k: int, divide: bool) -> Targets:
    """Rows of token to probability, the `k` best of each, divided by their sum if `divide`; an empty row is one-hot."""
    ids = np.repeat(np.array(tokens, np.int64)[:, None], k, axis=1)
    probs, mass = np.zeros(ids.shape, np.float32), np.zeros(len(tokens), np.float32)
    probs[:, 0] = 1
    for n, row in enumerate(rows):
        best = sorted(row.items(), key=lambda item: (-item[1], item[0]))[:k]
        total = sum(p for _, p in best)
        if total > 0:
            ids[n, :len(best)] = [token for token, _ in best]
            probs[n, :len(best)] = [p / total if divide else p for _, p in best]
            mass[n] = total
    return Targets(ids, probs, mass)


def _bytes(token: str, byte_level: bool) -> bytes:
    """The bytes that a vocabulary entry stands for."""
    fallback = _FALLBACK.fullmatch(token)
    if fallback:
        return bytes([int(fallback[1], 16)])
    if byte_level and all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: those that print stand for themselves, the others follow from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(0x100 + n): byte for n, byte in enumerate(others)}}


_BYTES = _byte_alphabet()
