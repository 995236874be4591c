"""Whether one series of times differs from another that was taken in turns with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np

SITTINGS = 6  # of a comparison: with fewer, none can be significant at 5 %


def compare(sittings: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """{ratio, ci95, different} of b over a: above 1, b is slower. Each sitting holds the times of a and of b, round by round.

    A sitting is what was measured without opening anything anew. Its ratio is the median of its rounds' own ratios, so that
    what slows the machine for a while strikes both. The ratio of all is the median of the sittings', its interval the sign
    test's over them: order statistics, exact whatever the distribution; `different` if 1 lies outside. Rounds are not trials
    enough: where a process's memory happens to lie makes 10 % on some machines (benchmarks/LOG.md), the same in each of
    its rounds. Raises `ValueError` for fewer than SITTINGS.
    """
    n = len(sittings)
    if n < SITTINGS or not all(0 < len(a) == len(b) for a, b in sittings):
        raise ValueError(f"{n} sittings: give at least {SITTINGS}, each with as many times of both")
    ratios = sorted(float(np.median(np.asarray(b, float) / np.asarray(a, float))) for a, b in sittings)
    # The largest k with P(fewer than k of n fair coins) <= 2.5 %: the interval goes from the k-th to the k-th from the end.
    k, tail = 0, 0.0
    while (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    low, high = ratios[k - 1], ratios[n - k]
    return {"ratio": round(float(np.median(ratios)), 4), "ci95": [round(low, 4), round(high, 4)],
            "different": not low <= 1 <= high, "sittings": n}


def in_turns(subjects: dict[str, Callable[[int], float]], rounds: range, seed: int = 0) -> dict[str, list[float]]:
    """What each subject returns when it is called with the number of each round, in an order drawn anew for every round."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for i in rounds:
        order = list(subjects)
        Random(f"{seed} {i}").shuffle(order)
        for name in order:
            found[name].append(subjects[name](i))
    return found
