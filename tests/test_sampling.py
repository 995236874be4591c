"""The next token is drawn as llama.cpp means it, and the best candidates are those of a full sort."""

import numpy as np
import pytest

from edgedistill.errors import Error
from edgedistill.teach.completion import Sampling
from edgedistill.teach.sampling import best, draw, log_normaliser

ALL = dict(top_k=0, top_p=1.0, min_p=0.0)  # no filter
SIX = np.log(np.array([0.05, 0.4, 0.02, 0.3, 0.15, 0.08], np.float32))
BIG = np.random.default_rng(0).normal(size=6413).astype(np.float32)  # 100 columns and 13 more


def drawn(logits, n=300, seed=0, **options):
    random = np.random.default_rng(seed)
    return [draw(logits, Sampling(**{"temp": 1.0, **ALL, **options}), random) for _ in range(n)]


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 200, 1000, 4097, 10_000])
@pytest.mark.parametrize("values", [1, 3, 50, 10**9], ids=["all equal", "many ties", "some ties", "none"])
def test_best_are_those_of_a_full_sort_the_lower_id_first(size, values):
    random = np.random.default_rng(size)
    for k in {1, 2, 3, 20, 40, 255, size // 64 - 1, size // 64, size // 64 + 1, size}:
        if 1 <= k <= size:
            logits = random.integers(0, values, size).astype(np.float32) - values / 2
            assert best(logits, k).tolist() == sorted(range(size), key=lambda i: (-logits[i], i))[:k]


def test_best_are_found_wherever_they_are():
    for place in (0, 99, 100, 6399, 6400, 6412):  # in the first and last column, and behind the last whole block
        logits = BIG.copy()
        logits[place] = 50
        assert best(logits, 20)[0] == place and len(set(best(logits, 20))) == 20


def test_impossible_tokens_come_last():
    logits = np.full(6413, -np.inf, np.float32)
    logits[[6410, 7, 300]] = [1, 3, 2]
    assert best(logits, 5)[:3].tolist() == [7, 300, 6410]
    assert set(drawn(logits, 200, top_k=5)) == {7, 300, 6410}


def test_greedy_takes_the_largest_and_draws_no_number():
    random = np.random.default_rng(0)
    assert draw(SIX, Sampling(), random) == 1 and draw(BIG, Sampling(), random) == int(BIG.argmax())
    assert random.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("temp", [0.0, 0.7])
@pytest.mark.parametrize("places", [slice(None), [4000]], ids=["all", "one"])
def test_what_is_no_number_is_one_line(temp, places):
    for wrong in (np.nan, np.inf):
        logits = BIG.copy()
        logits[places] = wrong
        with pytest.raises(Error, match="computes no numbers .*; try another GGUF file or --gpu-layers 0") as caught:
            draw(logits, Sampling(temp=temp), np.random.default_rng(0))
        assert "\n" not in str(caught.value)
        with pytest.raises(Error, match="computes no numbers"):
            log_normaliser(logits)


@pytest.mark.parametrize(("options", "possible"), [
    ({}, {0, 1, 2, 3, 4, 5}), ({"top_k": 3}, {1, 3, 4}), ({"top_k": 1}, {1}), ({"top_k": 99}, {0, 1, 2, 3, 4, 5}),
    ({"top_p": 0.69}, {1, 3}), ({"top_p": 0.71}, {1, 3, 4}), ({"top_p": 0.3}, {1}), ({"top_p": 0.0}, {1}),
    ({"min_p": 0.36}, {1, 3, 4}), ({"min_p": 0.39}, {1, 3}), ({"min_p": 1.0}, {1}),
    # Top-p counts within the top-k: 0.4 + 0.3 are 82 % of the best three.
    ({"top_k": 3, "top_p": 0.8}, {1, 3}), ({"top_p": 0.8}, {1, 3, 4}), ({"top_p": 0.8, "min_p": 0.6}, {1, 3}),
    # The temperature comes after the filters: a flat softmax does not let more through.
    ({"top_p": 0.69, "temp": 50.0}, {1, 3}), ({"min_p": 0.36, "temp": 50.0}, {1, 3, 4}), ({"temp": 0.01}, {1}),
], ids=str)
def test_filters_leave_what_they_should(options, possible):
    assert set(drawn(SIX, **options)) == possible


@pytest.mark.parametrize("logits", [SIX, BIG], ids=["six", "a vocabulary"])
def test_frequencies_are_the_exact_probabilities(logits):
    n, k = 20_000, 6
    counts = np.bincount(drawn(logits, n, temp=0.7, top_k=k), minlength=len(logits))
    ids = np.argsort(-logits)[:k]
    p = np.exp(logits[ids].astype(float) / 0.7)
    p /= p.sum()
    assert counts.sum() == counts[ids].sum() == n
    assert (np.abs(counts[ids] - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()


def test_same_seed_draws_the_same_tokens():
    assert drawn(BIG, 50, seed=3) == drawn(BIG, 50, seed=3) != drawn(BIG, 50, seed=4)


@pytest.mark.parametrize("logits", [SIX, BIG, BIG + 1000, BIG * 40 - 500, np.repeat(BIG, 24)], ids=[
    "six", "normal", "far up", "wide", "a large vocabulary"])
def test_normaliser_is_that_of_double_precision(logits):
    exact = logits.astype(np.float64)
    exact = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    assert log_normaliser(logits) == pytest.approx(exact, abs=1e-5)
