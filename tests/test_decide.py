from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_students
import torch

from edgedistill import cards
from edgedistill.cards import Target
from edgedistill.edge import Student, decide
from edgedistill.errors import Error
from edgedistill.export import write
from edgedistill.runs import read_json, write_json
from edgedistill.tasks import arithmetic, wordmath
from edgedistill.tasks.task import Task

PORTABLE = cards.load(Target, "portable")
CHOICE = Task("colours", "test", "choice", choices=("2 apples", "2 pears", "no"), max_input_tokens=96, max_label_tokens=16,
              max_rationale_tokens=16)
QUESTION = "Tom has 3 apples and buys 4 more. How many has he?"


def bundle(folder: Path, family: str, task: Task = tiny_students.TASK, **form) -> tuple[object, Student]:
    student = tiny_students.t5() if family == "t5" else tiny_students.decoder()
    student.set_task(task, **form)
    write(student, folder, "fp32", PORTABLE)
    return student, Student.load(folder)


@pytest.mark.parametrize("text", ["7", "( 3 + 4 )", "((1,200-3.5)*2)/-4", "- 3 + .5", "3 * - 2"])
def test_arithmetic_is_allowed_from_its_first_character_to_its_end(text: str) -> None:
    arithmetic.evaluate(text)
    for end in range(len(text) + 1):
        assert decide.follow((0, ""), text[:end]) is not None, text[:end]
    assert decide.follow((0, ""), text) in [(0, "1"), (0, "."), (0, ")")]


@pytest.mark.parametrize("text", ["3 4", "3 )", "( + 3", ") 3", "3 ( 4", "x", "( )", "* 3", "1.2.3", "( 3 ) 4"])
def test_what_is_no_beginning_of_arithmetic_is_not_allowed(text: str) -> None:
    with pytest.raises(arithmetic.NotArithmetic):
        arithmetic.evaluate(text)
    assert decide.follow((0, ""), text) is None


def test_random_walks_through_what_is_allowed_are_arithmetic() -> None:
    rng = random.Random(0)
    pieces = list(enumerate(["</s>", "▁(", "▁)", "▁+", "▁-", "▁*", "▁/", "3", "▁12", ".", ",", "▁", "apples", "5▁+"]))
    walked = 0
    for _ in range(300):
        grammar, text = decide.Arithmetic(pieces, 0), ""
        while len(text) < 60:
            token = rng.choice([t for t, _ in pieces if grammar.allows(t)])
            if token == 0:
                break
            text += pieces[token][1].replace("▁", " ")
            grammar.take(token)
        else:
            continue
        walked += 1
        try:
            arithmetic.evaluate(text)
        except arithmetic.NotArithmetic as error:
            assert "division by zero" in str(error), text
    assert walked > 100


@pytest.mark.parametrize("family", ["t5", "decoder"])
def test_an_untrained_student_writes_arithmetic_or_is_cut(family: str, tmp_path: Path) -> None:
    _, edge = bundle(tmp_path / "bundle", family)
    for row in wordmath.generate("dev", 6):
        free, bound = edge.generate(row["input"]), edge.generate(row["input"], grammar=edge._grammar())
        assert decide.follow((0, ""), bound.text) is not None and free.ids != bound.ids
        answer = edge.answer(row["input"])
        assert answer.text == bound.text or answer.value is not None


@pytest.mark.parametrize("family", ["t5", "decoder"])
def test_choices_are_scored_where_they_part_and_the_winner_is_torchs(family: str, tmp_path: Path) -> None:
    student, edge = bundle(tmp_path / "bundle", family, CHOICE)
    options = [student.format.encode_target(student.rust, choice, "label") for choice in CHOICE.choices]
    source = student.format.encode_source(student.rust, QUESTION, "label")
    opening = student.format.opening(student.rust, "label")

    def after(tokens: list[int]) -> torch.Tensor:
        if family == "t5":
            return student.model(input_ids=torch.tensor([source]),
                                 decoder_input_ids=torch.tensor([opening + tokens])).logits[0, -1]
        return student.model(input_ids=torch.tensor([source + opening + tokens])).logits[0, -1]

    left, probability, taken = set(range(3)), 1.0, []
    while len(left) > 1:
        scores = after(taken)
        tokens = sorted({options[i][len(taken)] for i in left})
        shares = torch.softmax(scores[tokens], 0)
        probability *= shares.max().item()
        token = tokens[int(shares.argmax())]
        left = {i for i in left if options[i][len(taken)] == token}
        taken.append(token)
    answer = edge.answer(QUESTION)
    assert answer.text == CHOICE.choices[left.pop()] and answer.confidence == pytest.approx(probability, abs=1e-4)
    own = edge.answer(QUESTION, choices=("red", "blue"))
    assert own.value in ("red", "blue")


@pytest.mark.parametrize("family", ["t5", "decoder"])
def test_samples_vote_from_one_reading_of_the_question(family: str, tmp_path: Path) -> None:
    _, edge = bundle(tmp_path / "bundle", family)
    greedy = edge.generate(QUESTION).ids
    limit = edge._start(QUESTION, "label")
    for _ in range(2):
        edge.graphs.state.rewind()
        assert edge._decode(limit).ids == greedy
    first, again, other = (edge.answer(QUESTION, vote=5, seed=seed) for seed in (1, 1, 2))
    assert first == again and 0 < first.votes == first.confidence <= 1 and first != other
    assert decide.follow((0, ""), first.text) is not None or first.value is not None


def test_a_confidence_under_what_is_asked_for_has_no_value(tmp_path: Path) -> None:
    _, edge = bundle(tmp_path / "bundle", "t5", CHOICE)
    sure = edge.answer(QUESTION)
    assert sure.value is not None and edge.answer(QUESTION, abstain=sure.confidence + 0.01).value is None
    manifest = read_json(tmp_path / "bundle" / "bundle.json")
    write_json(tmp_path / "bundle" / "bundle.json", {**manifest, "calibration": {"slope": 0.0, "offset": 0.0, "n": 30}})
    assert Student.load(tmp_path / "bundle").answer(QUESTION).confidence == pytest.approx(0.5)
    for forged in ("x", {"slope": None}, [1], {"slope": "a", "offset": 0}):
        write_json(tmp_path / "bundle" / "bundle.json", {**manifest, "calibration": forged})
        with pytest.raises(Error, match="fails while it runs"):
            Student.load(tmp_path / "bundle").answer(QUESTION)


def test_calibration_learns_how_often_a_confidence_is_right() -> None:
    rng = np.random.default_rng(0)
    told = rng.uniform(0.7, 0.999, 400)
    right = rng.random(400) < told - 0.4  # far too sure of itself
    settings = decide.fit(list(told), list(right))
    mended = [decide.calibrated(c, settings) for c in told]
    assert np.mean(mended) == pytest.approx(right.mean(), abs=0.03) and mended[int(told.argmax())] > mended[int(told.argmin())]
    assert decide.fit([0.9] * 50, [True] * 50) is None and decide.fit([0.9] * 5, [True, False] * 2 + [True]) is None
    assert decide.calibrated(0.8, None) == 0.8


def test_a_chain_of_thought_is_not_scored(tmp_path: Path) -> None:
    chain = dataclasses.replace(CHOICE, name="chain")
    _, edge = bundle(tmp_path / "bundle", "t5", chain, chain=True)
    assert edge._options(()) == {}


def test_spaces_do_not_fill_an_answer() -> None:
    """A student that would write nothing but spaces writes one."""
    grammar = decide.Arithmetic([(0, "</s>"), (1, "▁"), (2, "▁7"), (3, "7"), (4, "▁▁")], 0)
    logits, written = np.array([0.0, 5.0, 1.0, 2.0, 4.0]), []
    for _ in range(3):
        written.append(grammar.pick(logits))
        grammar.take(written[-1])
    assert written == [1, 3, 1]
    grammar.begin()
    assert grammar.pick(logits) == 1
