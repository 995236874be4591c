"""Counting right answers, with what is known about the count."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np


def interval(correct: float, n: float, z: float = 1.96) -> list[float]:
    """Wilson's 95 % interval of a share, [low, high] in 0..1 (Wilson 1927; sound at small n and at 0 or 1)."""
    if n == 0:
        return [0.0, 1.0]
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]


def paired(a: list[bool], b: list[bool], seed: int = 0, draws: int = 10_000) -> dict[str, Any]:
    """The difference of two subjects on the same rows: {difference, ci95, p}.

    `ci95` is a paired bootstrap over rows, `p` McNemar's exact two-sided test on the rows where they differ.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired test of {len(a)} against {len(b)} rows")
    difference = np.asarray(a, float) - np.asarray(b, float)
    n = len(difference)
    # The bootstrap of values in {-1, 0, 1} is a multinomial draw: no resampling loop is needed.
    shares = [(difference == v).mean() for v in (-1, 0, 1)]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=draws)
    low, high = np.quantile((counts[:, 2] - counts[:, 0]) / n, [0.025, 0.975])
    return {"difference": round(float(difference.mean()), 4), "ci95": [round(float(low), 4), round(float(high), 4)],
            "p": mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))}


def mcnemar(better: int, worse: int) -> float:
    """The p of McNemar's exact two-sided test: one subject alone was right `better` times, the other `worse` times."""
    k, m = min(better, worse), better + worse
    ways = total = 1  # of choosing none, then up to k, of the m rows where they differ
    for i in range(k):
        ways = ways * (m - i) // (i + 1)
        total += ways
    return min(1.0, 2 * total / 2**m)


def holm(ps: list[float]) -> list[float]:
    """The ps corrected for being several (Holm 1979): below 0.05 they are, all together, seldom so by chance."""
    corrected, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = least
    return corrected


def majority(values: list[str | None]) -> str | None:
    """The most frequent value, the earliest among equals; None where there is none."""
    counts = Counter(value for value in values if value is not None)
    return max(counts, key=lambda value: (counts[value], -values.index(value)), default=None)
