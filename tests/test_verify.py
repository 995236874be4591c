"""A completion is worth what its equations and its answer are; repetitions are found; what is due follows from it."""

import random
import time

import pytest

from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import majority
from edgedistill.tasks.task import Style, Task
from edgedistill.teach.ledger import ledger
from edgedistill.teach.session import due
from edgedistill.teach.verify import equations, holds, judge, settle

EQUATION, NUMBER, TEXT = (Task("own", "a task", kind) for kind in ("equation", "number", "text"))
STEPS = Style(executable=True)


# Equations


@pytest.mark.parametrize(("text", "found"), [
    ("so 3 * 4 = 12 eggs", [("3 * 4", "12")]),
    ("Eggs in all: 3 * 4 = 12. Eggs left: 12 - 5 = 7.", [("3 * 4", "12"), ("12 - 5", "7")]),
    ("So 3 * 4 = 12, 12 + 5 = 17", [("3 * 4", "12"), ("12 + 5", "17")]),
    ("3 * 4 = 12; 12 + 5 = 17\n17 / 2 = 8.5", [("3 * 4", "12"), ("12 + 5", "17"), ("17 / 2", "8.5")]),
    ("of 3 and 4, 3 + 4 = 7", [("3 + 4", "7")]),
    ("12 pens (3 * 4 = 12), that is a lot", [("3 * 4", "12")]),
    ("1) 3 + 4 = 7", [("3 + 4", "7")]), ("2. ( 3 + 4 ) * 2 = 14", [("( 3 + 4 ) * 2", "14")]),
    ("It is 1,000 + 1 = 1,001 dollars", [("1,000 + 1", "1,001")]),
    ("$2.50 * 4 = $10.00.", [("2.50 * 4", "10.00")]), ("2 / 3 = .67", [("2 / 3", ".67")]), (".5 * 4 = 2", [(".5 * 4", "2")]),
    ("3 - 5 = -2 degrees", [("3 - 5", "-2")]),
    ("3 x 4 = 12", [("3 * 4", "12")]), ("84 ÷ 2 − 2 = 40", [("84 ÷ 2 − 2", "40")]),
    ("x = 3 * 4 = 12", [("3 * 4", "12")]), ("3 + 4 = 7 = 14 / 2", [("3 + 4", "7"), ("7", "14 / 2")]),
    ("7 = 3 + 4", [("7", "3 + 4")]),
    ("n = 5", []), ("3 + 4 = seven", []), ("3x = 12", []), ("=", []), ("= 7", []), ("no numbers", []), ("", []),
])
def test_equations_are_read_out_of_sentences(text, found):
    assert equations(text) == found


@pytest.mark.parametrize(("left", "right"), [
    ("3 * 4", "12"), ("3 * 4", "12.0"), ("( 3 + 4 ) * 2", "14"), ("1,000 * 2", "2,000"), ("7", "3 + 4"), ("3 - 5", "-2"),
    ("10 / 3", "3.33"), ("10 / 3", "3.3"), ("2 / 3", "0.67"), ("2 / 3", ".67"), ("50 / 3", "$16.67"), ("-10 / 3", "-3.33"),
    ("0.1 + 0.2", "0.3"), ("8 / 3", "2.6667"), ("10000 / 7", "1428.6"),
])
def test_equation_that_holds_may_be_rounded_to_its_decimals(left, right):
    assert holds(left, right)


@pytest.mark.parametrize(("left", "right"), [
    ("3 * 4", "13"), ("10 / 3", "3"), ("10 / 4", "2"), ("10 / 3", "3.34"), ("2 / 3", "0.66"), ("2 / 3", "0.7 + 0"),
    ("5 / 0", "0"), ("5", "5 / 0"), ("5 / ( 3 - 3 )", "5 / 0"),
    ("9" * 30, "9" * 30), ("1 + " * 100 + "1", "101"), ("9 ** 9", "387420489"), ("2 ^ 3", "8"),
    ("3 pens", "3"), ("", ""), ("( 3", "3"), ("3 4", "7"), ("__import__('os')", "1"), ("1e3", "1000"), ("3 * 4", "twelve"),
])
def test_equation_that_does_not_hold_or_is_no_arithmetic(left, right):
    assert not holds(left, right)


@pytest.mark.parametrize("text", [
    "9" * 10_000 + " = 9", "1 " * 5000 + "x = 3", "(" * 10_000 + "1 = 1", ")" * 10_000 + "1 = 1", "1 = " * 2500, "=" * 10_000,
    "1" + " " * 10_000 + "= 1", "= 1" + " * 1" * 2500, "x" * 10_000, "1x" * 5000 + " = 1", "9**9**9 = 9", "\x00 = ½",
], ids=lambda text: repr(text[:12]))
def test_hostile_text_costs_nothing(text):
    start = time.perf_counter()
    for equation in equations(text):
        holds(*equation)
    judge(EQUATION, Row("1", "?", "7"), f"{text} The answer is 7.", "stop", STEPS)
    assert time.perf_counter() - start < 0.3


# Judgement


@pytest.mark.parametrize(("task", "text", "finish", "label", "verdict", "reason"), [
    (EQUATION, "So. The answer is 3 + 4.", "stop", "7", "verified", None),
    (EQUATION, "So. The answer is 3 + 4.", "stop", None, "unlabelled", None),
    (EQUATION, "So. The answer is 3 - 4.", "stop", "7", "wrong", "another answer than the label"),
    (EQUATION, "So it is 7.", "stop", "7", "unparsed", "no answer lead"),
    (EQUATION, "So. The answer is many.", "stop", None, "unparsed", "the answer cannot be read"),
    (EQUATION, "So it is", "length", "7", "truncated", "it did not end within max_new_tokens"),
    (EQUATION, "", "prompt_too_long", "7", "truncated", "the prompt does not fit the context"),
    (TEXT, "It is big. The answer is Paris.", "stop", "Rome", "wrong", "another answer than the label"),
])
def test_what_cannot_be_used_has_a_reason(task, text, finish, label, verdict, reason):
    judged = judge(task, Row("1", "?", label), text, finish)
    assert (judged["verdict"], judged.get("reason")) == (verdict, reason)
    assert list(judged) == ["rationale", "answer", "value", "verdict", *(["reason"] if reason else [])]


@pytest.mark.parametrize(("text", "reason"), [
    ("Eggs: 3 + 4 = 7.", None), ("Eggs: 3 * 4 = 12. Left: 12 - 5 = 7.", None), ("So (3 + 4 = 7).", None),
    ("Eggs: 3 * 4 = 13. Left: 12 - 5 = 7.", "an equation does not hold"),
    ("Eggs: 7 / 0 = 7. Left: 12 - 5 = 7.", "an equation does not hold"),
    ("Left: 12 - 5 = 7. Eggs: 3 * 4 = 12.", "its last equation does not give the answer"),
    ("He has 3 and 4 more.", "no equation in it"), ("", "no equation in it"),
])
def test_executable_rationale_holds_step_by_step(text, reason):
    for task, label in ((EQUATION, "7"), (NUMBER, "7"), (NUMBER, None)):
        judged = judge(task, Row("1", "?", label), f"{text} The answer is 7.", "stop", STEPS)
        usable = "verified" if label else "unlabelled"
        assert (judged["verdict"], judged.get("reason")) == ("wrong" if reason else usable, reason)
        assert (judged["answer"], judged["value"]) == ("7", "7")
    assert judge(EQUATION, Row("1", "?", "7"), f"{text} The answer is 7.", "stop")["verdict"] == "verified"


def test_executable_rationale_of_a_wrong_answer_is_wrong_for_its_answer():
    judged = judge(EQUATION, Row("1", "?", "7"), "Eggs: 3 + 4 = 8. The answer is 8.", "stop", STEPS)
    assert judged["reason"] == "another answer than the label"


def test_rounded_last_step_gives_an_answer_that_does_not_end():
    for text in ("Each: 8 / 3 = 2.67. The answer is 8 / 3.", "Each: 8 / 3 = 2.67. The answer is 2.67."):
        assert judge(EQUATION, Row("1", "?"), text, "stop", STEPS)["verdict"] == "unlabelled"


def test_other_kinds_of_answer_need_only_true_equations():
    task = Task("own", "a task", "choice", choices=("yes", "no"))
    right = judge(task, Row("1", "?", "yes"), "Feet: 2 * 2 = 4. The answer is yes.", "stop", STEPS)
    false = judge(task, Row("1", "?", "yes"), "Feet: 2 * 2 = 5. The answer is yes.", "stop", STEPS)
    assert (right["verdict"], false["reason"]) == ("verified", "an equation does not hold")


@pytest.mark.parametrize("text", ["As the hint says, add.", "The KNOWN answer fits.", "It is known to be 7."])
def test_rationale_that_speaks_of_the_hint_is_not_used(text):
    told = judge(EQUATION, Row("1", "?", "7"), f"{text} The answer is 7.", "stop", hint=True)
    assert (told["verdict"], told["reason"]) == ("wrong", "it speaks of the hint")
    assert judge(EQUATION, Row("1", "?", "7"), f"{text} The answer is 7.", "stop")["verdict"] == "verified"
    fine = judge(EQUATION, Row("1", "?", "7"), "It is unknown to chintz. The answer is 7.", "stop", hint=True)
    assert fine["verdict"] == "verified"


# Repetitions


def entry(sample, rationale="", answer="3 + 4", value="7", verdict="verified", hint=False, **more):
    return {"id": "q", "sample": sample, "rationale": rationale, "answer": answer, "value": value, "verdict": verdict,
            "hint": hint, **more}


def verdicts(*entries):
    return [done["verdict"] for done in settle(list(entries))]


def test_same_equations_with_most_words_shared_are_a_repetition():
    first = entry(0, "He had 3 red and 4 blue pens: 3 + 4 = 7.")
    assert verdicts(first, entry(1, "She had 3 red and 4 blue pens: 3+4 = 7.")) == ["verified", "duplicate"]
    assert verdicts(first, entry(1, "Count what lies there, both kinds: 3 + 4 = 7.")) == ["verified", "verified"]
    # Another calculation of the same value says something new.
    assert verdicts(first, entry(1, "She had 3 red and 4 blue pens: 4 + 3 = 7.")) == ["verified", "verified"]


def test_without_equations_the_answer_stands_for_them():
    words = "He had some red and some blue pens and put them"
    assert verdicts(entry(0, f"{words} there."), entry(1, f"{words} here.")) == ["verified", "duplicate"]
    assert verdicts(entry(0, f"{words} there."), entry(1, f"{words} here.", "4 + 3")) == ["verified", "verified"]


def test_nearly_all_words_shared_are_a_repetition_whatever_the_equations():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    assert verdicts(entry(0, words), entry(1, f"{words} more", "4 + 3")) == ["verified", "duplicate"]
    assert verdicts(entry(0, words), entry(1, f"{words} but there are more", "4 + 3")) == ["verified", "verified"]
    assert verdicts(entry(0, words), entry(1, words.upper())) == ["verified", "duplicate"]
    assert verdicts(entry(0, ""), entry(1, "")) == ["verified", "duplicate"]


def test_repetition_names_the_sample_that_it_repeats_and_others_are_not_touched():
    entries = [entry(0, "no", verdict="wrong", reason="r"), entry(1, "a b c"), entry(2, "no", verdict="wrong"),
               entry(3, "a b c", verdict="unlabelled"), entry(4, "x y z")]
    before = [dict(e) for e in entries]
    done = settle(entries)
    assert [e["verdict"] for e in done] == ["wrong", "verified", "wrong", "duplicate", "verified"]
    assert done[3]["reason"] == "it repeats an earlier sample" and done[0]["reason"] == "r" and "reason" not in done[4]
    assert entries == before


def test_rationales_without_a_label_are_repetitions_too():
    same = [entry(i, "a b c", verdict="unlabelled") for i in range(3)]
    assert verdicts(*same) == ["unlabelled", "duplicate", "duplicate"]


def test_agreement_is_the_share_of_the_own_samples_with_the_same_value():
    entries = [entry(0, "a"), entry(1, "b", value="8", verdict="wrong"), entry(2, "c"),
               entry(3, "", None, None, "unparsed"), entry(4, "d", hint=True)]
    assert [e.get("agreement") for e in settle(entries)] == [0.5, 0.25, 0.5, 0.0, None]
    assert settle(entries[:3])[0]["agreement"] == 0.6667
    assert "agreement" not in settle(entries[:1])[0]
    assert all("agreement" not in e for e in settle([entries[0], entries[4]]))  # one sample of its own


def test_hinted_rationale_that_repeats_one_is_a_repetition():
    assert verdicts(entry(0, "a b c", verdict="wrong"), entry(1, "a b c", hint=True)) == ["wrong", "verified"]
    assert verdicts(entry(0, "a b c"), entry(1, "a b c", hint=True)) == ["verified", "duplicate"]


# What is due


# 2 is like 0, 1 and 3, which are not like each other: whether it comes first decides how many are kept.
LIKE = ["a b c d e f x", "c d e f g h y", "a b c d e f g h", "a b e f g h z"]


def outcomes_of(random, samples):
    """What comes of each sample: rationales that are like others, new ones, wrong ones."""
    texts = random.sample([*LIKE, *LIKE, "q r s", "q r s", "m n o", "t u v", "", ""], samples)
    return [entry(k, text, verdict="verified" if text else "wrong") for k, text in enumerate(texts)]


def taught(outcomes, samples, enough, interrupt=None):
    """The samples that a row ends with; each round an interruption leaves any part of what was asked."""
    entries = []
    while asked := due(entries, samples, enough):
        assert len(set(asked)) == len(asked) and not set(asked) & {e["sample"] for e in entries}
        done = [k for k in asked if not interrupt or interrupt.random() < 0.7]
        entries += [outcomes[k] for k in done]
        if interrupt:
            interrupt.shuffle(entries)
    return entries


def test_row_ends_with_the_same_samples_however_it_was_interrupted():
    rng = random.Random(0)
    for _ in range(1500):
        samples = rng.randint(1, 9)
        enough = rng.randint(1, samples)
        outcomes = outcomes_of(rng, samples)
        ended = sorted(e["sample"] for e in taught(outcomes, samples, enough))
        assert ended == list(range(len(ended)))
        for n in ended:  # asked exactly when fewer than `enough` of those before it are usable
            assert verdicts(*outcomes[:n]).count("verified") < enough
        assert len(ended) == samples or verdicts(*outcomes[:len(ended)]).count("verified") >= enough
        for _ in range(3):
            assert sorted(e["sample"] for e in taught(outcomes, samples, enough, rng)) == ended


def test_gaps_are_filled_first():
    assert due([entry(0, "a"), entry(3, "b")], 5, None) == [1, 2, 4]
    have = [entry(4, LIKE[1]), entry(0, "q r s"), entry(2, LIKE[2]), entry(3, LIKE[3])]
    assert due(have, 8, 5) == [1]  # with 1 here, 2 repeats it and 3 and 4 repeat nothing
    assert due([*have, entry(1, LIKE[0])], 8, 5) == [5]


def test_without_enough_every_sample_is_due_and_hints_are_no_samples():
    assert due([], 3, None) == [0, 1, 2] and due([], 3, 2) == [0, 1] and due([], 1, 1) == [0]
    assert due([entry(0, "a"), entry(3, "b", hint=True)], 3, 2) == [1]
    assert due([entry(k, f"{k}") for k in range(3)], 3, None) == []
    assert due([entry(k, "", verdict="truncated") for k in range(3)], 3, 1) == []


# The ledger


def test_most_frequent_value_wins_and_the_earliest_of_equals():
    assert majority(["1", "2", "2", None, None, None]) == "2"
    assert majority(["2", "1", "1", "2"]) == "2" and majority([None, "1", "2"]) == "1"
    assert majority([]) is None and majority([None]) is None


def test_ledger_counts_what_the_teacher_can_do():
    rows = [Row("a", "?", "7"), Row("b", "?", "3 + 4"), Row("c", "?", "7"), Row("d", "?"), Row("e", "?", "7")]

    def made(identity, sample, value, verdict="verified", **more):
        answered = {"answer": value, "value": value} if value else {"answer": None, "value": None}
        return {**entry(sample, "Add.", verdict=verdict), **answered, "id": identity, "prompt_tokens": 100,
                "generated_tokens": 10, "finish_reason": "stop", **more}

    corpus = [
        made("a", 0, "7"), made("a", 1, "8", "wrong", reason="x"), made("a", 2, "7", "duplicate", reason="y"),
        made("b", 0, "8", "wrong", reason="x"), made("b", 1, "8", "wrong", reason="x"), made("b", 2, "7", hint=True),
        made("c", 0, None, "unparsed", reason="z"), made("c", 1, None, "unparsed", reason="z"),
        made("d", 0, "5", "unlabelled"), made("d", 1, "6", "unlabelled"),
        made("e", 0, "8", "wrong", reason="x"), made("e", 1, "7")]
    found = ledger(corpus, rows, EQUATION, 4.0, (1.0, 10.0))
    assert {key: found[key] for key in ("rows", "rows_answered", "rows_usable", "rows_hinted", "rationales")} == {
        "rows": 5, "rows_answered": 4, "rows_usable": 4, "rows_hinted": 1, "rationales": 5}
    assert found["dropped"] == {"x": 4, "z": 2, "y": 1} and list(found["dropped"]) == ["x", "z", "y"]
    assert found["vote"]["accuracy"] == 0.25  # of a, b, c and e only a; e's first of two equals is wrong
    assert (found["prompt_tokens"], found["generated_tokens"], found["generated_per_s"]) == (1200, 120, 30.0)
    assert found["api_dollars"] == 0.0024
    bare = ledger(corpus[:1] + corpus[3:4], rows, EQUATION, 4.0, None)
    assert bare["vote"] is bare["api_dollars"] is None  # one sample a row is no vote
    assert ledger(corpus, rows, EQUATION, 4.0, (0, 0))["api_dollars"] == 0
    assert ledger(corpus[8:10], rows[3:4], EQUATION, 4.0, None)["vote"] is None
