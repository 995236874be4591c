"""Which texts of a pool are most like a given one: BM25 (Robertson and Sparck Jones), to choose exemplars by."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice

import numpy as np

K1, B = 1.2, 0.75      # the usual values: how fast a repeated word stops counting, how much a long text is discounted
DECIMALS = 9           # of a score: sums in another order differ beyond, and must not decide a tie

_WORD = re.compile(r"(\d+(?:[.,]\d+)*)|[^\W\d_]+")


def words(text: str) -> list[str]:
    """Runs of letters in lower case; every number is the word `#`, so that only the numbers' presence counts."""
    return ["#" if match[1] else match[0] for match in _WORD.finditer(text.lower())]


class Similar:
    """A pool of texts, indexed once: for each word the places of its texts and what it adds to their scores."""

    def __init__(self, texts: list[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = [count.total() for count in counts]
        mean = sum(lengths) / len(texts) if any(lengths) else 1.0
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            discount = K1 * (1 - B + B * length / mean)
            for word, n in count.items():
                found[word].append((place, n * (K1 + 1) / (n + discount)))
        self._size = len(texts)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, entries in found.items():
            idf = math.log(1 + (len(texts) - len(entries) + 0.5) / (len(entries) + 0.5))
            places, weights = zip(*entries, strict=True)
            self._postings[word] = np.array(places), idf * np.array(weights)

    def scores(self, text: str) -> np.ndarray:
        """The score of every text of the pool. A word that `text` repeats counts once."""
        total = np.zeros(self._size)
        for word in dict.fromkeys(words(text)):
            if word in self._postings:
                places, weights = self._postings[word]
                total[places] += weights
        return total.round(DECIMALS)

    def best(self, text: str, n: int, leave_out: Callable[[int], bool] | None = None) -> list[int]:
        """Places of the `n` most similar texts, the most similar last: next to the question, in a prompt.

        Of equal ones the first in the pool counts as the most similar. Fewer than `n` when there are not more.
        """
        ranked = map(int, np.argsort(-self.scores(text), kind="stable"))
        return list(islice((place for place in ranked if not (leave_out and leave_out(place))), n))[::-1]
