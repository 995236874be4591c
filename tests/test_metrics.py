"""Intervals and tests agree with published values and with counts made by hand."""

import math
import random

import pytest

from edgedistill.tasks.metrics import interval, paired


@pytest.mark.parametrize(("correct", "n", "low", "high"), [
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    # By symmetry, and by the formula's closed form at 0 and n: z^2 / (n + z^2).
    (20, 20, 0.8389, 1.0), (0, 10, 0.0, 0.2775), (50, 100, 0.4038, 0.5962),
])
def test_wilson_interval_is_the_published_one(correct, n, low, high):
    assert interval(correct, n) == pytest.approx([low, high], abs=1e-4)


def test_interval_of_nothing_is_everything():
    assert interval(0, 0) == [0.0, 1.0]


def test_interval_holds_the_share_and_shrinks():
    for n in (1, 7, 200, 10_000):
        for correct in (0, n // 3, n):
            low, high = interval(correct, n)
            assert 0 <= low <= correct / n <= high <= 1
    widths = [high - low for low, high in (interval(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def subjects(both, first, second, neither):
    """Two subjects' outcomes from the four cells of their table."""
    cells = [*[(True, True)] * both, *[(True, False)] * first, *[(False, True)] * second,
             *[(False, False)] * neither]
    random.Random(0).shuffle(cells)
    return [a for a, _ in cells], [b for _, b in cells]


@pytest.mark.parametrize(("first", "second", "p"), [
    (8, 2, 112 / 1024),    # 2 * (1 + 10 + 45) / 2^10
    (5, 0, 2 / 32),        # 2 * 1 / 2^5
    (1, 0, 1.0),           # 2 * 1 / 2
    (3, 3, 1.0),           # more than 1 before it is cut
    (10, 1, 24 / 2048),    # 2 * (1 + 11) / 2^11
])
def test_mcnemar_p_is_the_exact_one(first, second, p):
    a, b = subjects(20, first, second, 7)
    assert paired(a, b)["p"] == pytest.approx(p, rel=1e-12)
    assert paired(b, a)["p"] == paired(a, b)["p"]


def test_rows_on_which_both_agree_do_not_change_p():
    assert paired(*subjects(0, 8, 2, 0))["p"] == paired(*subjects(500, 8, 2, 300))["p"]


def test_difference_is_symmetric():
    a, b = subjects(60, 25, 10, 5)
    ours, theirs = paired(a, b), paired(b, a)
    assert ours["difference"] == 0.15 == -theirs["difference"]
    assert ours["ci95"] == pytest.approx([-x for x in theirs["ci95"][::-1]], abs=0.02)
    assert ours["ci95"][0] < 0.15 < ours["ci95"][1]


def test_interval_of_a_difference_has_the_width_of_the_normal_one():
    a, b = subjects(600, 250, 100, 50)
    half = 1.96 * math.sqrt((0.35 - 0.15**2) / 1000)
    assert paired(a, b)["ci95"] == pytest.approx([0.15 - half, 0.15 + half], abs=4e-3)


def test_identical_subjects_do_not_differ():
    a, _ = subjects(30, 10, 0, 10)
    assert paired(a, a) == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


def test_many_rows_do_not_overflow():
    a, b = subjects(0, 6000, 5000, 0)
    assert 0 < paired(a, b)["p"] < 1e-15
    assert paired(*subjects(0, 5000, 5000, 0))["p"] == 1.0


def test_same_seed_gives_the_same_interval():
    a, b = subjects(40, 20, 10, 30)
    assert paired(a, b) == paired(a, b)


def test_subjects_of_other_rows_are_refused():
    for a, b in (([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="paired test"):
            paired(a, b)
