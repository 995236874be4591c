"""Rows of one body stay together, and statistics know it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from edgedistill.errors import UsageError
from edgedistill.study.statistics import Outcomes, accuracy, compare
from edgedistill.tasks import data, groups
from edgedistill.tasks.metrics import holm, interval, paired


def test_a_body_is_the_text_without_numbers_and_question() -> None:
    one = groups.mask("Tom has 1,200 red apples, and 3.5 pears.\nHow many apples has he?")
    assert one == "tom has # red apples and # pears"
    assert one == groups.mask("Tom has 7 red apples and .5 pears. How many pears does he have?")
    assert one != groups.mask("Tom has 7 red apples.\nHow many apples has he?")
    assert groups.mask("How many apples are 3 apples?") == "how many apples are # apples"


def test_folds_are_whole_groups_of_nearly_equal_size() -> None:
    rng = random.Random(0)
    grouped = [rng.randrange(60) for _ in range(500)]
    fold = groups.folds(grouped, 5)
    assert all(len({f for f, g in zip(fold, grouped, strict=True) if g == group}) == 1 for group in set(grouped))
    sizes = [fold.count(f) for f in range(5)]
    assert max(sizes) - min(sizes) <= 3 and sum(sizes) == 500
    assert fold == groups.folds(grouped, 5) != groups.folds(grouped, 5, seed=1)
    held = groups.hold_out(grouped, 0.1)
    assert 50 <= len(held) <= 70 and not {grouped[i] for i in held} & {g for i, g in enumerate(grouped) if i not in held}
    with pytest.raises(UsageError, match="folds = 4: give 2 to 3, the number of groups"):
        groups.folds([0, 1, 2, 2], 4)
    with pytest.raises(UsageError, match="all rows have one body"):
        groups.hold_out([0, 0], 0.1)


def test_half_of_svamps_test_bodies_are_in_its_training_rows() -> None:
    if not os.environ.get("EDGEDISTILL_DATA"):
        pytest.skip("EDGEDISTILL_DATA is not set: give the folder of the public sets")
    train, test = (data.read_file(Path(os.environ["EDGEDISTILL_DATA"]) / "svamp" / f"{split}.jsonl.gz")
                   for split in ("train", "test"))
    bodies = {groups.mask(row.input) for row in train}
    assert sum(groups.mask(row.input) in bodies for row in test) == 105


def outcomes(right: list[bool], group: int = 1, seed: int = 0) -> Outcomes:
    """Row i is in group i // group, or alone."""
    return Outcomes({(seed, str(i)): value for i, value in enumerate(right)},
                    {str(i): i // group for i in range(len(right))} if group > 1 else {},
                    {(seed, str(i)): seed for i in range(len(right))})


def merged(*parts: Outcomes) -> Outcomes:
    found = Outcomes({}, {}, {})
    for part in parts:
        found.right.update(part.right), found.group.update(part.group), found.replica.update(part.replica)
    return found


def pair(n: int = 200) -> tuple[list[bool], list[bool]]:
    rng = random.Random(0)
    a = [rng.random() < 0.6 for _ in range(n)]
    return a, [value if rng.random() < 0.8 else rng.random() < 0.3 for value in a]


def test_one_seed_without_groups_is_the_paired_test_of_eval() -> None:
    a, b = pair()
    found, known = compare(outcomes(a), outcomes(b)), paired(a, b)
    assert (found["difference"], found["p_mcnemar"]) == (known["difference"], known["p"])
    assert found["ci95"] == pytest.approx(known["ci95"], abs=0.006)
    assert found["p"] == max(found["p_mcnemar"], found["p_bootstrap"])
    assert accuracy(outcomes(a))["ci95"] == interval(sum(a), 200)
    assert compare(outcomes(a), outcomes(a))["p"] == 1.0


def test_rows_of_one_group_count_as_one() -> None:
    a, b = pair(40)
    ten = [v for v in a for _ in range(10)], [v for v in b for _ in range(10)]
    alone, together = compare(outcomes(a), outcomes(b)), compare(*(outcomes(x, 10) for x in ten))
    assert together["ci95"] == pytest.approx(alone["ci95"], abs=0.02)
    assert together["p"] == together["p_bootstrap"] > together["p_mcnemar"]  # which takes them for 400
    assert accuracy(outcomes(ten[0], 10))["ci95"] == pytest.approx(accuracy(outcomes(a))["ci95"], abs=0.02)
    assert accuracy(outcomes([False] * 40, 10))["ci95"] == interval(0, 4)


def test_seeds_on_the_same_rows_are_not_more_rows() -> None:
    a, b = pair(60)
    four = [merged(*(outcomes(x, seed=seed) for seed in range(4))) for x in (a, b)]
    one, found = compare(outcomes(a), outcomes(b)), compare(*four)
    assert found["n"] == 240 and found["difference"] == one["difference"] and found["p_mcnemar"] == one["p_mcnemar"]
    assert found["ci95"] == pytest.approx(one["ci95"], abs=0.02)
    alone, together = accuracy(outcomes(a)), accuracy(four[0])
    assert together["ci95"] == pytest.approx(alone["ci95"], abs=0.02) and together["se"] == 0.0 and alone["se"] is None
    other = accuracy(merged(outcomes(a), outcomes(b, seed=1)))
    assert other["se"] == pytest.approx(abs(sum(a) - sum(b)) / 60 / 2, abs=1e-4)  # sd of two over root two
    # Subjects that answered different rows are compared where both did, those of other seeds by their means.
    assert compare(four[0], outcomes(b[:20], seed=2))["n"] == 20 and compare(outcomes(a), outcomes([], seed=1)) is None
    means = compare(outcomes(a), outcomes(b, seed=1))
    assert means == {**one, "p_mcnemar": None, "p": one["p_bootstrap"]}
    half = compare(merged(outcomes(a), outcomes(b, seed=1)), outcomes(b))
    assert half["difference"] == pytest.approx(one["difference"] / 2, abs=1e-4) and half["n"] == 60
    folds = [Outcomes({((0, seed), row): value for (_, row), value in outcomes(x).right.items()}, {}, {})
             for seed, x in ((0, a), (1, b))]  # another set's rows, answered by each fold
    assert compare(*folds)["difference"] == one["difference"]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
