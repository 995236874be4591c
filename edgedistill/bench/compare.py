"""Whether one series of times differs from another that was taken in turns with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np


def compare(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """{ratio, ci95, different} of `b` over `a`, round by round: above 1, `b` is slower.

    The ratio is the median of the rounds' own ratios, so that what slows the machine for a while strikes both. Its interval is
    the sign test's: order statistics, exact whatever the distribution; `different` if 1 lies outside. Rounds that depend on
    each other make it too narrow: take the order within a round at random, as `in_turns` does. Raises `ValueError` for fewer
    than 6 rounds, of which none can be significant at 5 %.
    """
    if len(a) != len(b) or len(a) < 6:
        raise ValueError(f"{len(a)} rounds against {len(b)}: give the same number, at least 6")
    ratios = np.sort(np.asarray(b, float) / np.asarray(a, float))
    n = len(ratios)
    # The largest k with P(fewer than k of n fair coins) <= 2.5 %: the interval goes from the k-th to the k-th from the end.
    k, tail = 0, 0.0
    while (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    low, high = float(ratios[k - 1]), float(ratios[n - k])
    return {"ratio": round(float(np.median(ratios)), 4), "ci95": [round(low, 4), round(high, 4)],
            "different": not low <= 1 <= high}


def in_turns(subjects: dict[str, Callable[[int], float]], rounds: range, seed: int = 0) -> dict[str, list[float]]:
    """What each subject returns when it is called with the number of each round, in an order drawn anew for every round."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for i in rounds:
        order = list(subjects)
        Random(f"{seed} {i}").shuffle(order)
        for name in order:
            found[name].append(subjects[name](i))
    return found
