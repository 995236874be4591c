"""Answers are read out of what teachers really write, in the four kinds of task."""

import os
import time
from pathlib import Path

import pytest

from edgedistill import cards
from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row, read_file
from edgedistill.tasks.task import Answer, Task

EQUATION, NUMBER, CHOICE, TEXT = (
    Task("own", "a task", kind, choices=("yes", "no") if kind == "choice" else ())
    for kind in ("equation", "number", "choice", "text"))
CQA = ("to save paper", "to keep warm", "to find an author", "not to disturb anyone", "to be heard outside")
HOSTILE = ["9**9**9", "9" * 10_000, "9 ** 9 ** 9 = 9 ** 9", "9^9^9", "1+" * 10_000 + "1", "1/0", "½", "\x00"]


def equation(text):
    answer = EQUATION.parse(text)
    return answer and (answer.text, answer.value)


def number(text):
    answer = NUMBER.parse(text)
    return answer and answer.value


def choice(text, choices):
    answer = CHOICE.parse(text, tuple(choices))
    return answer and answer.text


def test_completion_is_split_at_the_answer_lead():
    assert EQUATION.split(" He had 48 kites and 13 tore. The answer is ( 48 - 13 ).") == (
        "He had 48 kites and 13 tore.", "( 48 - 13 ).")
    assert EQUATION.split("Add them.\nThe answer is: 3 + 4\nQ: Next question") == ("Add them.", "3 + 4")
    assert EQUATION.split("First, the answer is 3.") == ("First, the answer is 3.", None)
    assert EQUATION.split("So the answer is 3? No. The answer is 4.") == ("So the answer is 3? No.", "4.")
    assert EQUATION.split("So. The answer is 3? No. The answer is 4.") == ("So. The answer is 3? No.", "4.")
    assert EQUATION.split("So. The answer is") == ("So.", "")
    assert EQUATION.split("") == ("", None)
    assert EQUATION.parse("") is EQUATION.parse(None) is EQUATION.parse("  \n") is None


@pytest.mark.parametrize(("text", "rationale", "answer"), [
    ("The answer is 2.5. He had 5 and half was eaten.", "He had 5 and half was eaten.", "2.5."),
    (" The answer is: 3 + 4\nAdd them.\nBoth of them.", "Add them.\nBoth of them.", "3 + 4"),
    ("The answer is yes.\n\nIt is so.", "It is so.", "yes."), ("The answer is:\n7.\nAdd.", "Add.", "7."),
    ("The answer is 7.", "", "7."), ("The answer is 7", "", "7"), ("The answer is", "", ""),
    ("The answer is 1,000.50. The answer is not 5.", "The answer is not 5.", "1,000.50."),
])
def test_answer_may_come_first(text, rationale, answer):
    assert EQUATION.split(text) == (rationale, answer)


def test_thoughts_of_a_reasoning_model_are_left_out():
    thoughts = "<think>\nThe answer is 5? No.\n</think>\n\n"
    assert EQUATION.split(f"{thoughts}Add them. The answer is 7.") == ("Add them.", "7.")
    assert EQUATION.split(f"{thoughts}The answer is 7. Add them.") == ("Add them.", "7.")
    assert EQUATION.split(thoughts) == ("", None)
    assert EQUATION.split("One. </think> Two. </think> Three.") == ("Three.", None)


@pytest.mark.parametrize(("text", "spelling", "value"), [
    ("( 48 - 13 ).", "( 48 - 13 )", "35"),
    ("( 84.0 / 2.0 )", "( 84 / 2 )", "42"),
    ("6 * 7 = 42", "6 * 7", "42"),
    ("6 * 7 = 42 kites.", "6 * 7", "42"),
    ("( 120 - ( 7 * 12 ) ) cars", "( 120 - ( 7 * 12 ) )", "36"),
    ("$12.50 + $2.50", "12.50 + 2.50", "15"),
    ("6 x 7", "6 * 7", "42"),
    ("6x7 boxes", "6 * 7", "42"),
    ("(3+4) x 2", "( 3 + 4 ) * 2", "14"),
    ("84 ÷ 2 × 3 − 1", "84 / 2 * 3 - 1", "125"),
    ("[58 - 21] + 16", "( 58 - 21 ) + 16", "53"),
    ("1,000 - 1", "1000 - 1", "999"),
    ("`( 3 + 4 )`", "( 3 + 4 )", "7"),
    ("**( 3 + 4 )**.", "( 3 + 4 )", "7"),
    ("8 / 3", "8 / 3", "8/3"),
    ("3 - 5", "3 - 5", "-2"),
    ("42", "42", "42"),
])
def test_equation_is_read_in_one_spelling(text, spelling, value):
    assert equation(text) == (spelling, value)


@pytest.mark.parametrize("text", [
    "no idea", "( 3 + 4", "3 +", "x * y", "9^9", "( 5 ) ( 6 )", "5 / ( 3 - 3 )", "= 7", "(" * 10_000 + "1",
    "-" * 10_000 + "1"])
def test_what_states_no_equation_is_not_read(text):
    assert equation(text) is None


@pytest.mark.parametrize(("text", "value"), [
    ("42", "42"), ("42.", "42"), ("$1,000.50", "1000.5"), ("$ 18", "18"), ("-5", "-5"), ("−5 degrees", "-5"),
    ("-$5", "-5"), ("3 * 4 = 12 dollars", "12"), ("3 + 4 = 7, 7 * 2 = 14 apples.", "14"),
    ("x = -2.5", "-2.5"), ("10 - 15 hours", "10"),
    ("12 dollars and 50 cents", "12"), ("1,000", "1000"), ("18.00", "18"), (".5", "0.5"), ("1/2", "0.5"),
    ("8/3", "8/3"), ("3 * 4", "12"), ("25%", "25"), ("**44**", "44"), ("9 (apples)", "9"),
])
def test_number_is_read(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["none", "twelve", "18 =", "9^9", "$", "-", "1/0", "9**9**9", "9" * 10_000])
def test_what_states_no_number_is_not_read(text):
    assert number(text) is None


@pytest.mark.parametrize(("text", "found"), [
    ("(d)", "not to disturb anyone"), ("d)", "not to disturb anyone"), ("(D).", "not to disturb anyone"),
    ("d", "not to disturb anyone"), ("b.", "to keep warm"),
    ("(d) not to disturb anyone.", "not to disturb anyone"),
    ("not to disturb anyone", "not to disturb anyone"), ("Not  to\ndisturb anyone.", "not to disturb anyone"),
    ('"to keep warm"', "to keep warm"), ("she wants to keep warm there", "to keep warm"),
    ("(f)", None), ("z", None), ("to save paper or to keep warm", None), ("to save", None),
    ("something else", None),
])
def test_choice_is_read_by_letter_and_by_text(text, found):
    assert choice(text, CQA) == found


def test_choice_inside_a_longer_one_is_not_taken_for_it():
    assert choice("the river bank.", ["bank", "river bank"]) == "river bank"
    assert choice("a bank.", ["bank", "river bank"]) == "bank"
    assert choice("a bank near the river bank", ["bank", "river bank"]) is None
    assert choice("it is not entailment", ["entailment", "not entailment"]) == "not entailment"
    assert choice("nobody", ["no", "yes"]) is None
    assert choice("written in C++ I think", ["C", "C++"]) == "C++"


def test_negated_choice_is_no_answer():
    card = cards.load(Task, "esnli")
    assert card.parse("not entailment") is None
    assert card.parse("neutral, not entailment").text == "neutral"


def test_esnli_answers_are_its_three_words():
    card = cards.load(Task, "esnli")
    read = {text: card.parse(text) for text in (
        "entailment", "Contradiction.", "neutral (it may be so)", "**neutral**", "entailment or neutral",
        "maybe", "contradictory")}
    assert {text: answer and answer.text for text, answer in read.items()} == {
        "entailment": "entailment", "Contradiction.": "contradiction", "neutral (it may be so)": "neutral",
        "**neutral**": "neutral", "entailment or neutral": None, "maybe": None, "contradictory": None}
    assert card.same(card.parse("Neutral."), card.label(Row("1", "?", "neutral")))
    assert not card.same(card.parse("Neutral."), card.label(Row("1", "?", "entailment")))


def test_row_choices_go_before_the_cards():
    assert CHOICE.parse("(b)") == Answer("no", "no")
    assert CHOICE.parse("(b)", ("left", "Right")) == Answer("Right", "right")
    assert CHOICE.parse("no", ("left", "Right")) is None


def test_text_answer_is_compared_without_case_and_spaces():
    assert TEXT.parse(" The  Eiffel\tTower. ") == Answer("The Eiffel Tower", "the eiffel tower")
    assert TEXT.same(TEXT.parse("PARIS."), TEXT.parse("paris"))
    assert not TEXT.same(TEXT.parse("Paris"), TEXT.parse("Rome"))


def test_equations_are_compared_by_value_with_labels_of_either_form():
    gold = EQUATION.label(Row("1", "?", "( 84.0 / 2.0 )"))
    for text in ("42", "84 / 2", "21 x 2", "( 40 + 2 ) = 42"):
        assert EQUATION.same(EQUATION.parse(text), gold), text
    assert EQUATION.same(EQUATION.parse("2.6667"), EQUATION.label(Row("1", "?", "8 / 3")))
    assert not EQUATION.same(EQUATION.parse("2 / 84"), gold)
    assert NUMBER.same(NUMBER.parse("$1,000.00"), NUMBER.label(Row("1", "?", "1000")))
    assert not NUMBER.same(NUMBER.parse("123457"), NUMBER.label(Row("1", "?", "123456")))


def test_no_answer_is_the_same_as_nothing():
    for task in (EQUATION, NUMBER, CHOICE, TEXT):
        assert not task.same(None, None)
        assert not task.same(task.parse("42"), None)


@pytest.mark.parametrize("text", HOSTILE, ids=[repr(text[:20]) for text in HOSTILE])
def test_hostile_output_is_no_answer_and_costs_nothing(text):
    start = time.perf_counter()
    assert EQUATION.parse(text) is NUMBER.parse(text) is CHOICE.parse(text) is None
    assert EQUATION.split(text) == (text.strip(), None)
    assert time.perf_counter() - start < 0.1


def test_unreadable_label_is_an_error_that_names_row_and_label():
    with pytest.raises(UsageError, match="row q7: label 'many' is no answer of kind number; take a card"):
        NUMBER.label(Row("q7", "?", "many"))
    with pytest.raises(UsageError, match="label 'perhaps' is no answer of kind choice"):
        CHOICE.label(Row("q7", "?", "perhaps"))
    assert NUMBER.label(Row("q7", "?")) is None


def test_choices_are_listed_once_in_the_question():
    row = Row("1", "Where do ducks swim?", choices=("pond", "sky"))
    listed = "Where do ducks swim?\nAnswer Choices:\n(a) pond\n(b) sky"
    open_ = Task("own", "t", "choice")
    assert open_.question(row) == listed
    assert open_.question(Row("1", listed, choices=("pond", "sky"))) == listed
    assert CHOICE.question(row) == "Where do ducks swim?"
    assert open_.parse("(b)", row.choices).text == "sky"


def test_card_survives_the_way_through_a_manifest():
    for name in cards.names(Task):
        card = cards.load(Task, name)
        assert Task.from_dict(card.to_dict()) == card
        assert "exemplars" not in card.to_dict(exemplars=False)


@pytest.mark.parametrize("change", [{"kind": "essay"}, {"max_label_tokens": 0}, {"max_new_tokens": "96"}])
def test_bad_value_of_a_card_is_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} = "):
        Task.from_dict({"name": "own", "title": "t", "kind": "text", **change})


@pytest.mark.parametrize(("folder", "name", "rows"), [
    ("svamp", "svamp", 1000), ("gsm8k", "gsm8k", 8792), ("multiarith", "gsm8k", 600), ("cqa", "cqa", 10_962),
    ("esnli", "esnli", 19_666), ("strategyqa", "strategyqa", 2290)])
def test_labels_of_the_public_data_are_read_by_their_cards(folder, name, rows):
    if not os.environ.get("EDGEDISTILL_DATA"):
        pytest.skip("EDGEDISTILL_DATA is not set: give the folder of the public sets")
    card, count = cards.load(Task, name), 0
    for file in (Path(os.environ["EDGEDISTILL_DATA"]) / folder).glob("*.jsonl.gz"):
        for row in read_file(file):
            label = card.label(row)  # raises for one that it cannot read
            # SVAMP states the value beside the equation; chal-680's equation is wrong at the source.
            if folder == "svamp" and row.id != "chal-680":
                assert card.same(label, card.parse(row.meta["answer"])), row.id
            count += 1
    assert count == rows
