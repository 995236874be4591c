"""How the device decides on an answer: by scoring choices, by writing arithmetic only, or by a vote of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_SPACES = ("▁", "Ġ")  # how T5's kind of tokenizers and byte-level BPE write a space in a piece
_WRITTEN = set("0123456789.,+-*/() ")


def choose(graphs: Any, options: Sequence[Sequence[int]]) -> tuple[int, float]:
    """(which of `options`, its probability among them): token sequences, each with its end, none the beginning of another.

    After `graphs.start`. At each token where options part, the ones that may come next are compared and no others: most often
    that is the first token, and costs no step.
    """
    left, logprob = list(range(len(options))), 0.0
    logits, depth = graphs.logits, 0
    while len(left) > 1:
        tokens = sorted({options[i][depth] for i in left})
        scores = logits[tokens]
        best = int(scores.argmax())
        logprob += float(scores[best] - _log_sum_exp(scores))
        left = [i for i in left if options[i][depth] == tokens[best]]
        depth += 1
        if len(left) > 1:
            logits = graphs.step(tokens[best])
    return left[0], math.exp(logprob)


class Arithmetic:
    """Which tokens may come next where only + - * / ( ) and numbers are written, of a tokenizer's pieces.

    A state is (open parentheses, what came last): `""` where a number or a parenthesis must come, `"1"` inside a number,
    `"."` after its point, `"point"` after one that has no digit yet, `")"` after an operand. `state` is that after the tokens
    taken so far.
    """

    BEGIN = (0, "")

    def __init__(self, pieces: Iterable[tuple[int, str]], end: int) -> None:
        """`pieces`: (id, piece as the tokenizer spells it). `end` is the end-of-text token."""
        self.texts = {}
        for token, piece in pieces:
            for space in _SPACES:
                piece = piece.replace(space, " ")
            if piece and token != end and set(piece) <= _WRITTEN:
                self.texts[token] = piece
        self.ids = np.array([end, *self.texts])
        self.end = end
        self.begin()

    def begin(self) -> None:
        """Before the first token of a text."""
        self.state, self.blank = self.BEGIN, False

    def allows(self, token: int) -> bool:
        """Whether the token may come now."""
        if token == self.end:
            return self.state[0] == 0 and self.state[1] not in ("", "point")
        text = self.texts.get(token)  # spaces go nowhere: none behind another, or they could fill an answer
        return text is not None and not (self.blank and text.isspace()) and follow(self.state, text) is not None

    def pick(self, logits: np.ndarray) -> int:
        """The most probable token that may come now; the end where nothing may."""
        for place in np.argsort(-logits[self.ids]):
            if self.allows(int(self.ids[place])):
                return int(self.ids[place])
        return self.end

    def take(self, token: int) -> None:
        """Goes on behind a token that was allowed."""
        self.state, self.blank = follow(self.state, self.texts[token]), self.texts[token].endswith(" ")


def follow(state: tuple[int, str], text: str) -> tuple[int, str] | None:
    """The state behind `text`, None where it is no beginning of arithmetic."""
    depth, last = state
    for character in text:
        if last == "point" or (last == "" and character == "."):  # .5 has its digits behind the point
            last = "point" if last == "" else "." if character.isdigit() else None
            if last is None:
                return None
        elif character == " ":
            last = ")" if last in ("1", ".") else last
        elif character.isdigit() and last != ")":
            last = last or "1"
        elif character == "." and last == "1":
            last = "."
        elif character == "," and last == "1":
            pass
        elif character == "(" and last == "":
            depth += 1
        elif character == ")" and last and depth:
            depth, last = depth - 1, ")"
        elif (character in "+*/" and last) or character == "-":
            last = ""
        else:
            return None
    return depth, last


def sample(logits: np.ndarray, temperature: float, random: np.random.Generator, allowed: np.ndarray | None = None) -> int:
    """A token drawn from softmax(logits / temperature), of the `allowed` ids where they are given."""
    x = (logits if allowed is None else logits[allowed]).astype(np.float64) / temperature
    p = np.exp(x - x.max())
    drawn = int(random.choice(len(p), p=p / p.sum()))
    return drawn if allowed is None else int(allowed[drawn])


def calibrated(confidence: float, settings: dict[str, float] | None) -> float:
    """The share of right answers among such confidences, by `fit`'s settings; the confidence itself without any."""
    return confidence if settings is None else _sigmoid(settings["slope"] * _logit(confidence) + settings["offset"])


def fit(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, float] | None:
    """Platt's logistic curve (1999) from confidences to shares of right answers, with his smoothed targets.

    None for fewer than 30 answers, or where all are right or none: then there is nothing to fit.
    """
    y = np.asarray(right, float)
    if len(y) < 30 or not 0 < y.mean() < 1:
        return None
    x = np.stack([[_logit(c) for c in confidences], np.ones(len(y))], 1)
    target = np.where(y > 0, (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2))
    prior = np.array([1.0, 0.0])  # confidences as they are, held on to weakly

    def cost(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - target * z).sum() + 5e-4 * np.square(w - prior).sum())

    w = prior
    for _ in range(50):  # Newton's method, a step halved until it helps
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (p - target) + 1e-3 * (w - prior)
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + 1e-3 * np.eye(2), slope)
        size = next((size for size in 0.5 ** np.arange(20) if cost(w - size * step) < cost(w)), 0.0)
        w = w - size * step
        if size == 0:
            break
    return {"slope": round(float(w[0]), 4), "offset": round(float(w[1]), 4), "n": len(y)}


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-min(max(x, -30.0), 30.0)))


def _log_sum_exp(x: np.ndarray) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))
