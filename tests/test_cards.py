"""All cards on disk load, say what they must, and hold examples that are right and our own."""

import dataclasses
import gzip
import json
import os
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from edgedistill import cards, kit
from edgedistill.errors import UsageError
from edgedistill.tasks import arithmetic, wordmath
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.teach import judge
from edgedistill.teach.source import resolve
from edgedistill.train.reworded import texts

KINDS = {"teachers/models": cards.Teacher, "teachers/tasks": Task, "export/targets": cards.Target}
FILES = sorted(path for top in ("teachers", "export") for path in kit.folder(top).rglob("*.toml"))
TASKS = [cards.load(Task, name) for name in cards.names(Task)]
EXEMPLARS = [(task, exemplar) for task in TASKS for exemplar in task.exemplars]
STEPPED = [(task, exemplar) for task, exemplar in EXEMPLARS if exemplar.steps]
LISTED = re.compile(r"^\([a-z]\) (.+)$", re.MULTILINE)
STEP = re.compile(r"[A-Z][^\W\d_]*(?: [^\W\d_]+)*: ([-+*/() .\d]+) = (\d+(?:\.\d+)?)\.(?: |$)")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def ids(values):
    return [f"{task.name}-{i}" for i, (task, _) in enumerate(values)]


def choices(task, exemplar):
    """The answers that an exemplar may have: the card's, or those listed in its text."""
    return task.choices or tuple(LISTED.findall(exemplar.input))


def plain(text):
    """Letters and digits only, so that spacing and punctuation do not hide a copy."""
    return " ".join(re.findall(r"\w+", text.lower()))


def test_every_card_on_disk_is_listed_under_its_kind():
    listed = {kit.folder(place.split("/")[0]) / place.split("/")[1] / f"{name}.toml"
              for place, kind in KINDS.items() for name in cards.names(kind)}
    assert len(FILES) > 0 and set(FILES) == listed
    assert all(cards.names(kind) for kind in KINDS.values())


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_card_loads_by_name_and_by_path(path):
    kind = KINDS[f"{path.parents[1].name}/{path.parent.name}"]
    card = cards.load(kind, path.stem)
    assert card == cards.load(kind, str(path))
    assert card.name == path.stem and card.title and "\n" not in card.title


def test_folders_of_cards_hold_no_python():
    for top in ("teachers", "export"):
        files = [path for path in kit.folder(top).rglob("*") if path.is_file()]
        # export/pi holds the emulated boards, a script for people: nothing imports it.
        assert files and [path for path in files if path.suffix in (".py", ".pyc", ".so") and "pi" not in path.parts] == []


@pytest.mark.parametrize(("kind", "readme"), [
    (cards.Teacher, "teachers"), (Task, "teachers"), (cards.Target, "export")])
def test_readme_explains_every_key(kind, readme):
    text = (kit.folder(readme) / "README.md").read_text(encoding="utf-8")
    keys = {field.name for field in dataclasses.fields(kind)} - {"name"}
    assert {key for key in keys if f"`{key}`" not in text and f"[[{key}]]" not in text} == set()


def test_unknown_name_is_refused_with_the_nearest_one():
    for kind, wrong, right in ((Task, "wordmaths", "wordmath"), (cards.Target, "portabel", "portable"),
                               (cards.Teacher, "smollm2-135", "smollm2-135m")):
        with pytest.raises(UsageError) as caught:
            cards.load(kind, wrong)
        assert f"there is no {kind.__name__.lower()} {wrong!r}; did you mean {right!r}?" in str(caught.value)
        assert all(name in str(caught.value) for name in cards.names(kind))
    with pytest.raises(UsageError, match="there is no task 'qqqqqq'; known: "):
        cards.load(Task, "qqqqqq")
    with pytest.raises(UsageError, match="there is no task './absent.toml'"):
        cards.load(Task, "./absent.toml")


@pytest.mark.parametrize(("change", "message"), [
    ("choises = []", "there is no key 'choises'; did you mean 'choices'?"),
    ("max_new_token = 4", "there is no key 'max_new_token'; did you mean 'max_new_tokens'?"),
    ("kind = 'number'", "not valid TOML"),
    ("max_new_tokens = 0", "max_new_tokens = 0"),
    ("instruction = 5", "instruction = 5 must be a text"),
    ("answer_lead = ' '", "answer_lead = ' ' must not be empty"),
    ("choices = 'yes'", "choices = 'yes' must be a list of texts"),
    ("choices = [1]", "choices = [1] must be a list of texts"),
    ("max_input_tokens = '9'", "max_input_tokens = '9'"),
    ("[[exemplars]]\ninput = 'a'\nrationale = 'b'", "answer"),
    ("[[exemplars]]\ninput = 'a'\nrationale = 'b'\nanswer = 'c'\nhint = 'd'", "hint"),
    ("title = '\udcff'", "not valid TOML"),
])
def test_mistake_in_a_card_is_refused_and_never_guessed(change, message):
    text = f"title = 't'\nkind = 'text'\n{change}\n".replace("title = 't'\n", "", "title = " in change)
    Path("mine.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError) as caught:
        cards.load(Task, "mine.toml")
    assert str(caught.value).startswith("mine.toml: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_key_of_a_card_is_named():
    Path("mine.toml").write_text("title = 't'\n")
    for kind, key in ((Task, "kind"), (cards.Target, "linear"), (cards.Teacher, "source")):
        with pytest.raises(UsageError, match=f"mine.toml: .*'{key}'"):
            cards.load(kind, "mine.toml")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("format", "chatty", "neither chat nor completion"),
    ("distilling", "maybe", "none of allowed, ask, forbidden"),
    ("source", "https://example.org/x.gguf", "neither with package: nor with hf:")])
def test_bad_value_of_a_teacher_card_is_named(key, value, message):
    text = kit.folder("teachers").joinpath("models", "smollm2-135m.toml").read_text()
    Path("mine.toml").write_text(re.sub(rf'^{key} = ".*"$', f'{key} = "{value}"', text, flags=re.MULTILINE))
    with pytest.raises(UsageError, match=f"mine.toml: {key} = '{value}'.*{message}"):
        cards.load(cards.Teacher, "mine.toml")


def test_students_that_are_named_come_from_a_hub_or_the_embedded_teacher():
    for name, place in cards.STUDENTS.items():
        assert re.fullmatch(r"carve:\d+|[\w.-]+/[\w.-]+", place), name


def test_every_task_has_four_exemplars_and_an_instruction():
    for task in TASKS:
        assert len(task.exemplars) >= 4, task.name
        assert task.answer_lead in task.instruction, task.name
        assert len({exemplar.input for exemplar in task.exemplars}) == len(task.exemplars)


@pytest.mark.parametrize(("task", "exemplar"), EXEMPLARS, ids=ids(EXEMPLARS))
def test_exemplar_verifies_by_the_tasks_own_rules(task, exemplar):
    row = Row("1", exemplar.input, exemplar.answer, choices=choices(task, exemplar))
    judged = judge(task, row, f" {exemplar.rationale} {task.answer_lead} {exemplar.answer}.", "stop")
    assert judged["verdict"] == "verified"
    assert (judged["rationale"], judged["answer"]) == (exemplar.rationale, exemplar.answer)
    assert task.answer_lead not in exemplar.rationale


@pytest.mark.parametrize(("task", "exemplar"), [(t, e) for t, e in EXEMPLARS if t.kind == "equation"],
                         ids=ids([(t, e) for t, e in EXEMPLARS if t.kind == "equation"]))
def test_numbers_of_an_equation_occur_in_its_question(task, exemplar):
    stated = re.findall(r"\d+", exemplar.input)
    assert set(re.findall(r"\d+", exemplar.answer)) <= set(stated)
    assert float(task.parse(exemplar.answer).value) > 0


@pytest.mark.parametrize(("task", "exemplar"), [(t, e) for t, e in EXEMPLARS if t.kind == "number"],
                         ids=ids([(t, e) for t, e in EXEMPLARS if t.kind == "number"]))
def test_calculations_in_a_rationale_are_right(task, exemplar):
    found = re.findall(r"([\d.]+(?: [-+*/] [\d.]+)+) = ([\d.]*\d)", exemplar.rationale)
    assert found and found[-1][1] == exemplar.answer
    equation = Task("e", "e", "equation")
    for calculation, value in found:
        assert equation.same(equation.parse(calculation), equation.parse(value)), calculation


def test_equations_come_with_steps():
    asked = [task for task in TASKS if any(style.executable for style in task.prompts.values())]
    assert {id(e) for _, e in STEPPED} >= {id(e) for task in asked for e in task.exemplars} and len(asked) >= 2


def test_reworded_exemplars_count_as_other_words():
    task = next(task for task in TASKS if task.name == "svamp-reworded")
    for exemplar in task.exemplars:
        entry = {"rationale": exemplar.rationale, "answer": exemplar.answer}
        assert texts(task, Row("1", exemplar.input, exemplar.answer), exemplar.answer, [entry]) == [exemplar.rationale]


@pytest.mark.parametrize(("task", "exemplar"), STEPPED, ids=ids(STEPPED))
def test_steps_hold_and_end_at_the_answer(task, exemplar):
    steps = STEP.findall(exemplar.steps)
    assert steps and STEP.sub("", exemplar.steps) == ""
    for expression, value in steps:
        assert arithmetic.equal(arithmetic.evaluate(expression), arithmetic.evaluate(value)), expression
    answer = task.parse(exemplar.answer, choices(task, exemplar))
    assert arithmetic.equal(arithmetic.evaluate(steps[-1][1]), Fraction(answer.value))


@pytest.mark.parametrize(("task", "exemplar"), STEPPED, ids=ids(STEPPED))
def test_steps_use_the_numbers_of_the_question_and_every_earlier_result(task, exemplar):
    known, unused = set(NUMBER.findall(exemplar.input)), set()
    if task.kind != "equation":  # where the rationale may state others, such as the 0.25 of 25%
        known |= set(NUMBER.findall(exemplar.rationale))
    for expression, value in STEP.findall(exemplar.steps):
        used = set(NUMBER.findall(expression))
        assert used <= known
        known.add(value)
        unused = unused - used | {value}
    assert len(unused) == 1


def test_right_answers_stand_in_every_place_about_equally_often():
    for task in TASKS:
        if task.kind == "choice":
            of = [choices(task, exemplar) for exemplar in task.exemplars]
            places = Counter({place: 0 for place in range(max(map(len, of)))})
            places.update(listed.index(exemplar.answer) for listed, exemplar in zip(of, task.exemplars, strict=True))
            assert max(places.values()) - min(places.values()) <= 1, (task.name, places)


def test_exemplars_show_every_fixed_choice():
    for task in TASKS:
        if task.choices:
            assert {exemplar.answer for exemplar in task.exemplars} == set(task.choices), task.name


def test_exemplars_are_none_of_the_built_in_rows():
    rows = {plain(row["input"]) for split in wordmath.SPLITS for row in wordmath.generate(split, 1000)}
    assert not rows & {plain(exemplar.input) for _, exemplar in EXEMPLARS}


def test_no_exemplar_is_taken_from_the_public_data():
    folder = os.environ.get("EDGEDISTILL_DATA")
    if not folder:
        pytest.skip("EDGEDISTILL_DATA is not set: give the folder of the public sets")
    files = sorted(Path(folder).rglob("*.jsonl.gz"))
    rows = [json.loads(line)["input"] for file in files for line in gzip.open(file, "rt", encoding="utf-8")]
    assert len(rows) > 10_000
    public = "\n".join(map(plain, rows))
    for task, exemplar in EXEMPLARS:
        # A premise, a hypothesis or a question without its choices is looked for by itself.
        for part in re.split(r"</s>|\nAnswer Choices:", exemplar.input)[:2]:
            if len(part.split()) > 4 and not LISTED.search(part):
                assert plain(part) not in public, (task.name, part)


def test_embedded_teacher_is_the_file_that_its_card_records(teacher_path):
    source = resolve("smollm2-135m")
    assert source.path == teacher_path and source.sha256 == source.card.sha256
    assert source.path.stat().st_size == source.card.bytes
    by_path = resolve(str(teacher_path))
    assert (by_path.name, by_path.card) == ("smollm2-135m", source.card)


def test_another_file_under_a_cards_name_is_refused(monkeypatch, tmp_path):
    (tmp_path / "smollm2-135m.gguf").write_bytes(b"GGUF but another")
    monkeypatch.setenv("EDGEDISTILL_MODELS", str(tmp_path))
    with pytest.raises(UsageError, match="its sha256 is .*, the card smollm2-135m records b179c9523d0e"):
        resolve("smollm2-135m")
    assert resolve("smollm2-135m.gguf").card is None
