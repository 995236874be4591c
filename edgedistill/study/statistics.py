"""What is known about an accuracy, and about the difference of two, from right and wrong answers to the same rows.

Rows of one group (tasks/groups.py) are not independent and are drawn together; several seeds that answer the same rows are
drawn beside the rows. With one seed and no groups this is the paired bootstrap and McNemar's test of tasks/metrics.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedistill.tasks.metrics import interval, mcnemar

DRAWS = 10_000


@dataclass(frozen=True)
class Outcomes:
    """`right` by (trial, row), `group` by row, `replica` (a fold, a seed) by (trial, row). A trial is one answering of the
    rows: a seed, or a fold and a seed where every fold answers the same."""

    right: dict[tuple[Any, str], bool]
    group: dict[str, int | str]
    replica: dict[tuple[Any, str], Any]


def accuracy(a: Outcomes) -> dict[str, Any]:
    """{n, correct, accuracy, ci95, se, replicas}. `ci95` is Wilson's at the number of independent rows that would vary as
    much as these do; `se` the standard error of the mean over replicas, None where there is one."""
    n, correct = len(a.right), sum(a.right.values())
    share = correct / n
    sums, counts = _sums({key: float(value) for key, value in a.right.items()}, a.group)
    spread = float(_draws(sums, counts).std())
    units = counts.shape[1]
    independent = min(float(n), share * (1 - share) / spread**2) if spread else float(units)
    if len({seed for seed, _ in a.right}) == 1 and units == n:
        independent = float(n)
    replicas: dict[Any, list[bool]] = defaultdict(list)
    for key, value in a.right.items():
        replicas[a.replica[key]].append(value)
    means = [sum(values) / len(values) for values in replicas.values()]
    se = float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return {"n": n, "correct": correct, "accuracy": round(share, 4), "ci95": interval(share * independent, independent),
            "se": None if se is None else round(se, 4), "replicas": [round(mean, 4) for mean in means]}


def compare(a: Outcomes, b: Outcomes) -> dict[str, Any] | None:
    """`a` minus `b` on the rows that both answered: {n, difference, ci95, p_mcnemar, p_bootstrap, p}; None without any.

    Seed by seed; where the seeds of the two differ, the mean of each over its own, so that no seed is left out. `p_mcnemar`
    counts the rows (its mean over seeds) where one is better, None for such means, whose parts of a row are no better or worse;
    `p_bootstrap` draws groups, and seeds where there are several; `p` is the larger of the two.
    """
    mine, theirs = ({key: float(value) for key, value in each.right.items()} for each in (a, b))
    means = _seeds(a) != _seeds(b)
    if means:
        mine, theirs = _over_seeds(mine), _over_seeds(theirs)
    common = mine.keys() & theirs.keys()
    if not common:
        return None
    difference = {key: mine[key] - theirs[key] for key in sorted(common)}
    sums, counts = _sums(difference, a.group)
    draws = _draws(sums, counts)
    low, high = np.quantile(draws, [0.025, 0.975])
    p_bootstrap = min(1.0, 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (1 + len(draws)))
    rows: dict[str, float] = defaultdict(float)
    for (_, row), value in difference.items():
        rows[row] += value
    p_mcnemar = None if means else mcnemar(sum(v > 0 for v in rows.values()), sum(v < 0 for v in rows.values()))
    return {"n": len(common), "difference": round(sum(difference.values()) / len(common), 4),
            "ci95": [round(float(low), 4), round(float(high), 4)], "p_mcnemar": p_mcnemar, "p_bootstrap": float(p_bootstrap),
            "p": float(max(p_mcnemar or 0.0, p_bootstrap))}


def _seeds(outcomes: Outcomes) -> set[int]:
    return {trial[1] if isinstance(trial, tuple) else trial for trial, _ in outcomes.right}


def _over_seeds(values: dict[tuple[Any, str], float]) -> dict[tuple[Any, str], float]:
    """The mean over seeds of each row's values, or of each fold's answer to it: keys are (fold or 0, row)."""
    found: dict[tuple[Any, str], list[float]] = defaultdict(list)
    for (trial, row), value in values.items():
        found[trial[0] if isinstance(trial, tuple) else 0, row].append(value)
    return {key: sum(each) / len(each) for key, each in found.items()}


def _sums(values: dict[tuple[Any, str], float], group: dict[str, int | str]) -> tuple[np.ndarray, np.ndarray]:
    """(sums, counts) [seeds, groups] of the values."""
    seeds = {seed: i for i, seed in enumerate(sorted({seed for seed, _ in values}))}
    units: dict[Any, int] = {}
    places = [(seeds[seed], units.setdefault(group.get(row, row), len(units))) for seed, row in values]
    at = tuple(np.array(places).T)
    sums, counts = np.zeros((len(seeds), len(units))), np.zeros((len(seeds), len(units)))
    np.add.at(sums, at, np.fromiter(values.values(), float))
    np.add.at(counts, at, 1.0)
    return sums, counts


def _draws(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[DRAWS] means of as many groups, and seeds, drawn with replacement."""
    rng = np.random.default_rng(0)
    seeds, units = sums.shape
    # Groups with the same sums are exchangeable: how often each kind is drawn is a multinomial of few categories.
    kinds, times = np.unique(np.concatenate([sums, counts]), axis=1, return_counts=True)
    drawn = rng.multinomial(units, times / units, size=DRAWS)  # [DRAWS, kinds]
    weights = rng.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) if seeds > 1 else np.ones((DRAWS, 1))
    total = ((drawn @ kinds[:seeds].T) * weights).sum(1)
    return total / np.maximum(1.0, ((drawn @ kinds[seeds:].T) * weights).sum(1))
