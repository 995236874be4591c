from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_students
import torch

from edgedistill import cards
from edgedistill.cards import Target
from edgedistill.edge import Student as Edge
from edgedistill.edge.format import Format
from edgedistill.export import write
from edgedistill.runs import read_json
from edgedistill.tasks.task import Task
from edgedistill.train import train
from edgedistill.train.lint import MOST, escapes, lint
from edgedistill.train.students import load

HARD = "a {b} < c \\ d\ne"
TEXT = Task("text", "test", "text", max_input_tokens=96, max_label_tokens=48, max_rationale_tokens=48)
TOKENIZERS = {"tiny": tiny_students.t5_tokenizer, "t5-like": tiny_students.t5_like_tokenizer}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def found(tokenizer, *texts: str) -> dict[str, str]:
    return escapes(tokenizer.backend_tokenizer, tokenizer.unk_token_id, texts)


def there_and_back(tokenizer, form: Format, text: str) -> str:
    rust = tokenizer.backend_tokenizer
    return form.decode(rust, form.encode_target(rust, text, "label")[:-1])


def format_of(made: dict[str, str], task: Task = TEXT) -> Format:
    return Format.for_task(task, family="t5", eos_id=1, pad_id=0, start_id=0, escapes=made)


@pytest.mark.parametrize("text", [
    HARD, "{{}}", "}{<\\\n\n<", "x{1}y{ 2 }z", "if a<b\nthen {\n\tc\n}", "~^{}<\\", "How many?\nAnswer Choices:\n(a) 3"])
def test_a_target_with_characters_that_t5_lacks_comes_back_exactly(tokenizer, text: str) -> None:
    made = found(tokenizer, text, "How many are there in all?")
    rust = tokenizer.backend_tokenizer
    form = format_of(made)
    assert there_and_back(tokenizer, form, text) == text
    assert tokenizer.unk_token_id not in form.encode_target(rust, text, "label")
    assert there_and_back(tokenizer, format_of({}), text) != text


def test_stand_ins_hold_nothing_that_is_replaced_and_occur_in_no_text(tokenizer) -> None:
    texts = [HARD, "~^ {x}\n", *tiny_students.texts(20)]
    made = found(tokenizer, *texts)
    assert set("{}<\\~^\n") <= set(made) and len(set(made.values())) == len(made)
    for stand_in in made.values():
        assert not set(stand_in) & set(made)
        assert not any(stand_in in text for text in texts)
        assert not any(stand_in in other for other in made.values() if other != stand_in)


def test_stand_ins_are_one_piece_where_the_vocabulary_has_a_free_character() -> None:
    tokenizer = tiny_students.t5_like_tokenizer()
    made = found(tokenizer, HARD, *tiny_students.texts(20))
    for stand_in in made.values():
        assert len(tokenizer.backend_tokenizer.encode(f"a{stand_in}a", add_special_tokens=False).ids) == 3
        assert not stand_in.isascii()


def test_where_no_character_is_free_a_pair_stands_in() -> None:
    tokenizer = tiny_students.t5_tokenizer()
    everything = [piece.replace("▁", " ") for piece in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)]
    text = "a{b}\n{{c}} \\ <\n)+("
    made = found(tokenizer, text, *everything)
    assert {len(stand_in) for stand_in in made.values()} == {2}
    assert there_and_back(tokenizer, format_of(made), text) == text


def test_the_map_does_not_depend_on_the_order_of_the_texts(tokenizer) -> None:
    texts = [HARD, "{{{ <<", *tiny_students.texts(5)]
    assert found(tokenizer, *texts) == found(tokenizer, *texts) == found(tokenizer, *reversed(texts))


def test_respelled_characters_come_back_too() -> None:
    tokenizer = tiny_students.t5_like_tokenizer()
    text = "5 m² … and ▁ more"  # NFKC makes 2 and ... of two of them, decoding a space of the third
    assert there_and_back(tokenizer, format_of({}), text) != text
    assert there_and_back(tokenizer, format_of(found(tokenizer, text)), text) == text


def test_what_has_no_stand_in_stays_unk() -> None:
    tokenizer = tiny_students.t5_like_tokenizer()
    assert found(tokenizer, "two\u00a0apples  and\u200b pears") == {}  # blanks
    many = "".join(chr(0x4e00 + i) for i in range(2 * MOST))
    made = found(tokenizer, f"a {many} b")
    assert len(made) <= MOST
    student = tiny_students.t5(task=None, tokenizer=tokenizer)
    student.set_task(TEXT, escapes=made)
    report = lint(student, [(f"a {many} b", "label")])
    assert report.unk == 1 and len(report.left) == 2 * MOST - len(made)
    assert "without a stand-in" in report.lines()[0]


def test_a_tokenizer_that_encodes_everything_needs_no_stand_in() -> None:
    assert found(tiny_students.bpe_tokenizer(), HARD, "東京 🙂\t  ~^") == {}
    assert found(tiny_students.t5_tokenizer(), *tiny_students.texts(20)) == {}
    assert found(tiny_students.t5_tokenizer()) == {}


def test_lint_counts_targets() -> None:
    student = tiny_students.t5(task=None, tokenizer=tiny_students.t5_like_tokenizer())
    targets = [("a {b}", "label"), ("one\ntwo", "label"), ("two  spaces", "label"), ("plain", "label"),
               ("many apples " * 40, "rationale")]
    student.set_task(TEXT)
    before = lint(student, targets)
    assert (before.targets, before.unk, before.newlines, before.spaces, before.cut) == (5, 1, 1, 1, 1)
    assert before.examples == ("a {b}", "one\ntwo", ("many apples " * 40)[:60])
    student.set_task(TEXT, escapes=found(student.tokenizer, *(text for text, _ in targets)))
    after = lint(student, targets)
    assert (after.unk_before, after.newlines_before, after.unk, after.newlines) == (1, 1, 0, 0)
    assert (after.spaces, after.cut, after.left) == (1, 1, "")
    assert after.lines() == [
        "  lint      stand-ins for newline { }: of 5 targets 1 held <unk> and 1 lost newlines, now 0 and 0",
        "  lint      1 of 5 targets are longer than the task card allows and are cut off, 1 have repeated spaces, which are "
        f"joined; e.g. {('many apples ' * 5)!r}"]
    assert after.to_dict()["unk_share"] == 0.0 and before.to_dict()["unk_share"] == 0.2
    assert json.loads(json.dumps(after.to_dict())) == after.to_dict()


def test_lint_has_nothing_to_say_about_good_targets() -> None:
    for student in (tiny_students.t5(), tiny_students.decoder()):
        assert lint(student, [(text, "rationale") for text in tiny_students.texts(5)][1::2]).lines() == []


def test_the_device_takes_the_stand_ins_out_again(tmp_path: Path) -> None:
    student = tiny_students.t5(task=None, tokenizer=tiny_students.t5_like_tokenizer())
    question = "What does {x} < 3 \\ 4\nprint?"
    student.set_task(TEXT, escapes=found(student.tokenizer, question, HARD))
    source = torch.tensor([student.format.encode_source(student.rust, question, "label")])
    labels = torch.tensor([student.format.encode_target(student.rust, HARD, "label")])
    optimizer = torch.optim.Adam(student.model.parameters(), 3e-3)
    student.model.eval()
    for _ in range(400):
        optimizer.zero_grad()
        loss = student.model(input_ids=source, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss < 0.04:  # by heart
            break
    write(student, tmp_path / "bundle", "fp32", cards.load(Target, "portable"))
    edge = Edge.load(tmp_path / "bundle")
    assert edge.generate(question).text == student.answers([question])[0] == HARD
    assert edge.answer(question).text == " ".join(HARD.split())  # the task's own spelling of a text


def rows_with_braces(path: Path) -> Path:
    rows = [{"input": f"Write {i} in braces\non two lines.", "label": f"{{ {i} }}\n{{ {i + 1} }}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_train_keeps_the_stand_ins_with_the_student(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    card = tmp_path / "braces.toml"
    card.write_text('title = "braces"\nkind = "text"\nmax_input_tokens = 64\nmax_label_tokens = 32\n')
    data = rows_with_braces(tmp_path / "braces.jsonl")
    made = {}
    for name, student in (("t5", tiny_students.t5(tokenizer=tiny_students.t5_like_tokenizer())),
                          ("bpe", tiny_students.decoder())):
        student.save(tmp_path / name, {}, "# card\n")
        train(str(tmp_path / name), run=str(tmp_path / f"run-{name}"), method="finetune", task=str(card), data=str(data),
              epochs=1, batch_size=8)
        shown = capsys.readouterr().err
        result = read_json(tmp_path / f"run-{name}" / "train" / "result.json")
        made[name] = load(tmp_path / f"run-{name}" / "train" / "student").format.escapes
        assert result["lint"]["escapes"] == made[name] and result["lint"]["targets"] == 18
        assert ("stand-ins for { } newline" in shown) == (name == "t5")
    assert set(made["t5"]) == set("{}\n") and made["bpe"] == {}
    assert read_json(tmp_path / "run-t5" / "train" / "result.json")["lint"]["unk_before"] == 18
