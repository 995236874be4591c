"""The built-in word problems: the same everywhere, split by template, right in every equation."""

import ast
import re
from fractions import Fraction
from operator import add, mul, sub, truediv
from pathlib import Path

import pytest

from edgedistill.tasks.wordmath import SPLITS, TEMPLATES, generate, template_counts

README = Path(__file__).parents[1] / "teachers" / "README.md"
FIRST_DEV = [
    ("How many pages does Pablo still have to read in a book of 319 pages after reading 34 pages on Friday "
     "and 49 pages on Saturday?", "( ( 319 - 34 ) - 49 )"),
    ('"Each guest gets 5 muffins," says Sven. "And 27 guests are coming, 8 of them by train," says Hanna. '
     'How many muffins are needed?', "( 5 * 27 )"),
]
SIGNS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}


def steps(equation):
    """The values of all steps of an equation, its result last. Independent of the package's own parser."""
    found = []

    def walk(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        found.append(SIGNS[type(node.op)](walk(node.left), walk(node.right)))
        return found[-1]

    walk(ast.parse(equation, mode="eval").body)
    return found


def skeletons(split):
    return {t.skeleton for t in TEMPLATES if t.split == split}


@pytest.fixture(scope="module", params=SPLITS)
def rows(request):
    return generate(request.param, 600)


def test_rows_have_the_form_of_a_data_set(rows):
    split = rows[0]["id"].split("-")[1]
    for i, row in enumerate(rows):
        assert set(row) == {"id", "input", "label", "rationale", "choices", "meta"}
        assert row["id"] == f"wordmath-{split}-{i:04d}"
        assert row["rationale"] is None and row["choices"] is None
        assert set(row["meta"]) == {"template", "answer"}


def test_rows_are_distinct(rows):
    assert len({row["input"] for row in rows}) == len(rows) == 600


def test_same_arguments_give_same_rows():
    assert generate("train", 50, seed=7) == generate("train", 50, seed=7)
    assert generate("train", 50, seed=7) != generate("train", 50, seed=8)
    assert generate("dev", 20) == generate("dev", 200)[:20]
    assert generate("test", 0) == []


def test_rows_are_the_same_on_every_machine():
    # A change of templates or words changes these: numbers measured on the built-in task are then history.
    assert [(row["input"], row["label"]) for row in generate("dev", 2)] == FIRST_DEV


def test_few_rows_cover_all_templates():
    for split, count in template_counts().items():
        assert len({row["meta"]["template"] for row in generate(split, count)}) == count


def test_labels_are_spaced_equations_with_positive_whole_steps(rows):
    for row in rows:
        label = row["label"]
        assert re.fullmatch(r"(?:[()+*/-]|[1-9]\d*)(?: (?:[()+*/-]|[1-9]\d*))*", label), label
        assert label.count("(") == label.count(")") == sum(label.count(f" {sign} ") for sign in "+-*/")
        values = steps(label)
        assert all(value > 0 and value.denominator == 1 for value in values), row
        assert row["meta"]["answer"] == str(values[-1])


def test_numbers_of_the_equation_stand_in_the_text(rows):
    for row in rows:
        stated = re.findall(r"\d+", row["input"])
        used = re.findall(r"\d+", row["label"])
        assert set(used) <= set(stated), row
        assert len(set(stated)) == len(stated), row
        assert all(int(number) >= 2 for number in stated), row


def test_texts_are_filled_in(rows):
    for row in rows:
        text = row["input"]
        assert not set("{}[]") & set(text) and "  " not in text, text
        assert text[0].isupper() or text[0] == '"', text
        assert text.endswith("?"), text


def test_templates_belong_to_one_split_each():
    assert len(TEMPLATES) >= 90
    assert len({t.id for t in TEMPLATES}) == len({t.text for t in TEMPLATES}) == len(TEMPLATES)
    assert {t.split for t in TEMPLATES} == set(SPLITS)
    for split in SPLITS:
        used = {row["meta"]["template"] for row in generate(split, 300)}
        assert used == {t.id for t in TEMPLATES if t.split == split}


def test_skeletons_of_dev_and_test_are_known_from_train():
    assert skeletons("dev") <= skeletons("train")
    assert skeletons("test") == skeletons("train")


def test_many_templates_have_a_number_that_is_not_needed():
    for split in SPLITS:
        own = [t for t in TEMPLATES if t.split == split]
        assert sum("{d:" in t.text for t in own) / len(own) > 0.3, split


def test_readme_states_the_true_counts():
    text = README.read_text(encoding="utf-8")
    stated = re.findall(r"^\| (train|dev|test) \| (\d+) \|$", text, re.M)
    assert {split: int(count) for split, count in stated} == template_counts()
    unneeded = sum("{d:" in t.text for t in TEMPLATES)
    assert f"{len(skeletons('train'))} equation skeletons" in text
    assert f"{unneeded} of the {len(TEMPLATES)} templates" in " ".join(text.split())


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="unknown wordmath split 'valid'.*train, dev, test"):
        generate("valid", 3)
