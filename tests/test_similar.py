"""Exemplars are chosen by BM25: its scores are those of the formula, and its order is the same everywhere."""

import math

import pytest

from edgedistill.teach.similar import Similar, words

POOL = ["red fox", "red red hen sleeps", "a cow"]   # 2, 4 and 2 words: 8 / 3 on average
ONE = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))        # the idf of a word in one of three texts
TWO = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))        # and in two


def weight(n, length, mean=8 / 3):
    return n * 2.2 / (n + 1.2 * (0.25 + 0.75 * length / mean))


def test_scores_are_those_of_the_formula():
    assert (ONE, TWO) == (pytest.approx(0.980829), pytest.approx(0.470004))
    assert Similar(POOL).scores("Red fox!") == pytest.approx(
        [(TWO + ONE) * weight(1, 2), TWO * weight(2, 4), 0], abs=1e-9)
    assert (weight(1, 2), weight(2, 4)) == (pytest.approx(2.2 / 1.975), pytest.approx(4.4 / 3.65))
    # By hand: 1.450833 * 1.113924 and 0.470004 * 1.205479.
    assert Similar(POOL).scores("red fox") == pytest.approx([1.616117, 0.566580, 0], abs=1e-5)


def test_word_that_the_question_repeats_counts_once():
    similar = Similar(POOL)
    assert list(similar.scores("red red fox")) == list(similar.scores("fox red"))


def test_words_are_lower_case_letters_and_every_number_is_one_word():
    assert words("Ann's 3 new_hats cost $1,250.50, not 7.") == ["ann", "s", "#", "new", "hats", "cost", "#", "not", "#"]
    assert words("ÄPFEL und Žába, 東京 ٣") == ["äpfel", "und", "žába", "東京", "#"]
    assert words(" \n-+*/_ ") == words("") == []


def test_problems_that_differ_in_numbers_only_are_alike():
    scores = Similar(["Tom has 3 hats.", "Tom has 1,999 hats.", "A hen."]).scores("Tom has 12.5 hats.")
    assert scores[0] == scores[1] > scores[2]


def test_most_similar_comes_last():
    pool = ["hens lay eggs", "ships sail far", "ships carry eggs", "ships carry coal north"]
    assert Similar(pool).best("Which ships carry coal?", 3) == [1, 2, 3]
    assert Similar(pool).best("Which ships carry coal?", 1) == [3]


def test_ties_go_by_place_and_the_first_counts_as_most_similar():
    pool = ["a hen", "red fox", "fox red", "a cow", "red fox"]
    assert Similar(pool).best("red fox", 3) == [4, 2, 1]
    assert Similar(pool).best("red fox", 2) == [2, 1]
    assert Similar(pool).best("nothing known", 5) == [4, 3, 2, 1, 0]


def test_order_of_the_words_does_not_decide_a_tie():
    pool = [f"{a} {b} {c}" for a, b, c in ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")] + ["x", "x x", "y"]
    for question in ("x y z", "z y x", "y z x"):
        assert Similar(pool).best(question, 6) == [5, 4, 3, 2, 1, 0]


def test_texts_are_left_out_by_their_place():
    pool = ["red fox", "red hen", "a cow", "red fox sleeps"]
    similar = Similar(pool)
    assert similar.best("red fox", 2, leave_out=lambda place: place == 0) == [1, 3]
    assert similar.best("red fox", 4, leave_out=lambda place: pool[place] == "red fox") == [2, 1, 3]
    assert similar.best("red fox", 4, leave_out=lambda place: True) == []


def test_small_and_empty_pools_give_what_there_is():
    assert Similar(POOL).best("cow", 10) == [1, 0, 2]
    assert Similar(POOL).best("cow", 0) == []
    assert Similar([]).best("cow", 3) == []
    assert Similar(["", "..."]).best("cow", 3) == [1, 0]
    assert Similar(["", "a cow", ""]).best("cow", 2) == [0, 1]
    assert Similar(POOL).best("", 2) == [1, 0]


def test_places_are_plain_integers():
    assert {type(place) for place in Similar(POOL).best("red", 3)} == {int}


def test_letters_beyond_ascii_match_in_either_case():
    assert Similar(["Straße nach Köln", "ŽÁBA skáče", "東京 駅"]).best("žába", 1) == [1]
    assert Similar(["Straße nach Köln", "ŽÁBA skáče", "東京 駅"]).best("KÖLN", 1) == [0]
    assert Similar(["Straße nach Köln", "ŽÁBA skáče", "東京 駅"]).best("駅 の 東京", 1) == [2]
