"""Arithmetic from a model is computed exactly, and what is no arithmetic is refused at once."""

import time
from fractions import Fraction

import pytest

from edgedistill.tasks.arithmetic import MAX_CHARACTERS, NotArithmetic, equal, evaluate, normalise, results, show

VALUES = {
    "42": 42, "( 84.0 / 2.0 )": 42, "(3+4)*2": 14, "3+4*2": 11, "10-4-3": 3, "96/8/2": 6, "2 - -3": 5,
    "-(2+3)": -5, "( ( 58 - 21 ) + 16 )": 53, "0.1+0.2": Fraction(3, 10), "1/3": Fraction(1, 3), "8/3*3": 8,
    ".5 * 4": 2, ".0": 0, "7.": 7, "1,234,567 + 1": 1_234_568, "$12.50 + $2.50": 15, "[2+3]*{4}": 20,
    "6 × 7": 42, "84 ÷ 2": 42, "50 − 8": 42, "50 – 8": 42,
}
REFUSED = [
    "", " ", "9**9**9", "9^9", "2 ** 3", "__import__('os')", "abs(3)", "x + 1", "1e5", "0x10", "1_000",
    "True", "1;2", "3 4", "5 .0 2", "3 (4)", "(3)(4)", "( 3 + 4", "3 + 4 )", "()", "3 +", "* 3", "+5",
    "1.2.3", "3 = 3", "10 % 3", "7 // 2", "1 / 0", "5 / ( 3 - 3 )", "3\x00", "½", "∞",
]
COSTLY = {
    "power tower": "9**9**9", "10,000 digits": "9" * 10_000, "199 digits": "9" * 199,
    "10,000 open parentheses": "(" * 10_000, "as deep as is read": "(" * MAX_CHARACTERS,
    "10,000 signs": "-" * 10_000 + "1", "10,000 terms": "1+" * 10_000 + "1",
    "import": "__import__('os').system('true')", "10,000 commas": "1" + "," * 10_000,
    "10,000 spaces": " " * 10_000 + "x",
}


@pytest.mark.parametrize("text", VALUES)
def test_value_is_exact(text):
    assert evaluate(text) == VALUES[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(NotArithmetic):
        evaluate(text)


@pytest.mark.parametrize("text", COSTLY.values(), ids=COSTLY)
def test_costly_text_is_refused_within_a_tenth_of_a_second(text):
    start = time.perf_counter()
    with pytest.raises(NotArithmetic):
        evaluate(text)
    assert time.perf_counter() - start < 0.1


def test_deepest_text_that_is_read_is_evaluated():
    depth = (MAX_CHARACTERS - 1) // 2
    assert evaluate("(" * depth + "7" + ")" * depth) == 7
    assert evaluate("-" * (MAX_CHARACTERS - 1) + "7") == -7


def test_largest_value_that_is_read_costs_nothing():
    text = "*".join(["9" * 18] * 10)
    start = time.perf_counter()
    assert evaluate(text) == (10**18 - 1) ** 10
    assert show(evaluate(text)).startswith("99999")
    assert show(1 / (evaluate(text) + Fraction(1, 7))) == "0"
    assert time.perf_counter() - start < 0.1


def test_refusal_names_the_reason():
    for text, reason in (("1 / 0", "division by zero"), ("9" * 19, "19 digits"), ("3 * y", "unexpected ' y'"),
                         ("1" * 201, "201 characters"), ("( 3", "not closed"), ("3 +", "ends too early")):
        with pytest.raises(NotArithmetic, match=reason):
            evaluate(text)


def test_spellings_of_one_equation_become_the_same():
    for text in ("(84.0/2.0)", "( 84 / 2 )", "[84÷2]", "(84.00 ÷ $2)", "  ( 84./2 ) "):
        assert normalise(text) == "( 84 / 2 )"
    assert normalise("1,000-2.50") == "1000 - 2.50"
    assert normalise("100") == "100"


def test_normalising_keeps_the_value():
    for text in VALUES:
        assert evaluate(normalise(text)) == evaluate(text)


def test_value_is_shown_as_people_write_it():
    assert [show(Fraction(v)) for v in ("42", "-3", "5/2", "100", "8/3", "-1/4", "1/1000000")] == [
        "42", "-3", "2.5", "100", "2.666667", "-0.25", "0.000001"]


def test_rounded_values_are_equal_to_what_they_round():
    assert equal(Fraction("2.6667"), Fraction(8, 3))
    assert not equal(Fraction("2.67"), Fraction(8, 3))
    assert equal(Fraction("0.3333"), Fraction(1, 3))
    assert not equal(Fraction(-5), Fraction(5))


def test_whole_numbers_are_equal_only_to_themselves():
    assert equal(Fraction(123_456), Fraction(123_456))
    assert not equal(Fraction(123_456), Fraction(123_457))
    assert not equal(Fraction(0), Fraction(1))


def test_each_operation_has_its_result_in_the_order_of_calculation():
    assert results("( ( 24 + 27 ) * 2 ) - 9") == [51, 102, 93]
    assert results("2 + 3 * 4 / 5") == [12, Fraction(12, 5), Fraction(22, 5)]
    assert results("-(3 - 5)") == [-2] and results("42") == []
