"""Rows are read whole or the error names file, line and remedy; nothing is skipped."""

import gzip
import json
from pathlib import Path

import pytest

from edgedistill.errors import UsageError
from edgedistill.tasks import data
from edgedistill.tasks.data import Row


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")
    return str(path)


def numbered(n, name="q"):
    return [{"id": f"{name}{i}", "input": f"What is {i} + 1?", "label": str(i + 1)} for i in range(n)]


def all_rows(source, **more):
    """The rows of a single file in its order, the dev rows put back."""
    return data.read_file(Path(source), more or None)


def refused(source, columns=None):
    with pytest.raises(UsageError) as caught:
        data.load(str(source), columns)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Readers


def test_jsonl_keeps_every_column():
    path = write("mine.jsonl", [
        {"id": 7, "input": " Which? ", "label": 42, "rationale": "Because.", "choices": ["42", "43"],
         "meta": {"a": 1}}, "", {"id": "8", "input": "Ключ 🔑?"}])
    assert all_rows(path) == [
        Row("7", "Which?", "42", "Because.", ("42", "43"), {"a": 1}), Row("8", "Ключ 🔑?")]


def test_all_formats_give_the_same_rows():
    import pyarrow.parquet

    rows = numbered(20)
    write("a.jsonl", rows)
    Path("a.jsonl.gz").write_bytes(gzip.compress(Path("a.jsonl").read_bytes()))
    lines = ["id,input,label", *(f"{r['id']},{r['input']},{r['label']}" for r in rows)]
    Path("a.csv").write_text("\n".join(lines))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    wanted = [Row(r["id"], r["input"], r["label"]) for r in rows]
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"):
        assert all_rows(name) == wanted, name


def test_csv_reads_quotes_line_breaks_and_empty_cells():
    Path("a.csv").write_bytes(b'label,input\r\n4,"Two, and ""two""\r\nmore?"\r\n,Without label?\r\n')
    first, second = all_rows("a.csv")
    assert (first.input, first.label) == ('Two, and "two"\r\nmore?', "4")
    assert (second.input, second.label) == ("Without label?", None)


def test_byte_order_mark_is_no_part_of_the_data():
    for name, text in (("a.csv", "input,label\nWhy?,1\n"), ("a.jsonl", '{"input": "Why?", "label": "1"}\n')):
        Path(name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert [row.input for row in all_rows(name)] == ["Why?"]


def test_columns_are_mapped_and_dots_descend():
    path = write("a.jsonl", [
        {"question": "Why?", "meta": {"llm": {"text": "So."}}, "answer": 3, "a.b": "dotted"}])
    row, = all_rows(path, input="question", rationale="meta.llm.text", label="answer", id="a.b")
    assert (row.id, row.input, row.rationale, row.label) == ("dotted", "Why?", "So.", "3")


def test_written_rows_are_read_back_the_same():
    rows = [Row("1", "a\nb", "x", "r", ("p", "q"), {"k": [1]}), Row("2", "ß🔑")]
    data.write(rows, Path("out.jsonl"))
    assert data.read_file(Path("out.jsonl")) == rows


def test_builtin_set_has_three_splits():
    splits = data.load("builtin:wordmath").splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1000, "dev": 100, "test": 200}
    assert not {r.input for r in splits["train"]} & {r.input for r in splits["dev"] + splits["test"]}


# Splits


def test_dev_rows_are_a_tenth_of_the_training_rows_and_the_same_each_time():
    path = write("a.jsonl", numbered(200))
    first, again = data.load(path), data.load(path)
    assert first == again and first.name == "a"
    train, dev = first.splits["train"], first.splits["dev"]
    assert (len(train), len(dev)) == (180, 20) and "test" not in first.splits
    assert sorted(train + dev, key=lambda r: int(r.id[1:])) == all_rows(path)
    assert [r for r in all_rows(path) if r in train] == train
    other = data.load(path, seed=1).splits["dev"]
    assert len(other) == 20 and other != dev


def test_two_rows_are_the_least_that_can_be_split():
    two = data.load(write("a.jsonl", numbered(2))).splits
    assert (len(two["train"]), len(two["dev"])) == (1, 1)
    assert "at least two" in refused(write("b.jsonl", numbered(1)))


@pytest.mark.parametrize("dev_name", ["dev", "valid", "validation"])
def test_folder_of_splits_is_taken_as_it_is(dev_name):
    Path("set").mkdir()
    write("set/train.jsonl", numbered(30))
    write(f"set/{dev_name}.jsonl", numbered(5, "d"))
    Path("set/test.csv").write_text("id,input,label\nt0,Why?,1\n")
    Path("set/LICENSE.txt").write_text("free")
    loaded = data.load("set")
    assert loaded.name == "set"
    assert {split: [r.id for r in rows] for split, rows in loaded.splits.items()} == {
        "train": [f"q{i}" for i in range(30)], "dev": [f"d{i}" for i in range(5)], "test": ["t0"]}


def test_folder_one_stands_in_has_its_own_name(monkeypatch):
    Path("set").mkdir()
    write("set/train.jsonl", numbered(5))
    monkeypatch.chdir("set")
    assert data.load(".").name == "set"


def test_test_rows_never_come_into_train_or_dev():
    Path("set").mkdir()
    write("set/train.jsonl", numbered(50))
    write("set/test.jsonl", numbered(20, "t"))
    splits = data.load("set").splits
    assert (len(splits["train"]), len(splits["dev"]), len(splits["test"])) == (45, 5, 20)
    assert {r.id[0] for r in splits["train"] + splits["dev"]} == {"q"}
    assert {r.id[0] for r in splits["test"]} == {"t"}
    train, dev = ({r.id for r in splits[split]} for split in ("train", "dev"))
    assert not train & dev


def test_folder_without_train_and_with_two_of_one_split_are_errors():
    Path("set").mkdir()
    write("set/test.jsonl", numbered(5))
    assert "has no train file" in refused("set")
    write("set/train.jsonl", numbered(5))
    Path("set/train.csv").write_text("input\nWhy?\n")
    assert "several files for train: train.csv, train.jsonl" in refused("set")


# Identities


def test_rows_without_ids_get_ids_from_their_content():
    rows = [{"input": "a", "label": "1"}, {"input": "b", "label": "1"}]
    first = all_rows(write("a.jsonl", rows))
    second = all_rows(write("b.jsonl", rows[::-1]))
    assert [r.id for r in first] == [r.id for r in second[::-1]]
    assert len({r.id for r in first}) == 2 and all(r.meta == {} for r in first)


def test_equal_rows_without_ids_are_both_kept():
    rows = all_rows(write("a.jsonl", [{"input": "a", "label": "1"}] * 3))
    assert [r.id for r in rows] == [rows[0].id, f"{rows[0].id}-2", f"{rows[0].id}-3"]
    assert {(r.input, r.label) for r in rows} == {("a", "1")} and all(r.meta == {} for r in rows)


def test_given_id_that_stands_twice_is_an_error():
    write("a.jsonl", [*numbered(3), {"id": "q1", "input": "other"}])
    assert "the id 'q1' stands twice" in refused("a.jsonl")
    write("a.jsonl", [{"id": 1, "input": "a"}, {"id": "1", "input": "b"}])
    assert "the id '1' stands twice" in refused("a.jsonl")


def test_digest_sees_every_change_of_the_rows():
    rows = [Row("1", "a", "x"), Row("2", "b", "y")]
    changed = [rows[::-1], rows[:1], [rows[0], Row("2", "b", "z")], [rows[0], Row("2", "b", "y", "r")]]
    assert len({data.digest(r) for r in [rows, *changed]}) == 5
    assert data.digest(rows) == data.digest(list(rows))


# Errors


BROKEN = {
    "cut": '{"input": "a", "la', "two objects": '{"input": "a"} {"input": "b"}', "bare": "hello",
    "single quotes": "{'input': 'a'}", "deep": "[" * 100_000,
    "5,000 digits": '{"input": "a", "label": ' + "9" * 5000 + "}",
    "half a character": '{"input": "a \\ud83d"}',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_broken_json_line_is_named(line):
    message = refused(write("mine.jsonl", [*numbered(2), "", line, *numbered(1, "z")]))
    assert message.startswith("mine.jsonl:4: not valid JSON") and message.endswith("mend or remove the line")
    assert len(message) < 300


def test_emoji_written_as_two_escapes_is_one_character():
    assert all_rows(write("a.jsonl", ['{"input": "key \\ud83d\\ude00"}']))[0].input == "key 😀"


def test_json_line_that_is_no_object_is_named():
    message = refused(write("mine.jsonl", [*numbered(1), "[1]"]))
    assert message == "mine.jsonl:2: a JSON object is needed, found list"


def test_missing_column_is_named_with_the_columns_there():
    path = write("mine.jsonl", [{"question": "Why?", "answer": "1"}] * 2)
    message = refused(path)
    assert "mine.jsonl:1: no column 'input'" in message
    assert "question, answer" in message and "--column input=NAME" in message
    assert "no column 'text'" in refused(path, {"input": "text"})
    message = refused(path, {"input": "question", "label": "gold.value"})
    assert "no column 'gold.value' for --column label=" in message and "question, answer" in message


def test_unknown_column_of_ours_is_named():
    assert "--column prompt=..." in refused(write("a.jsonl", numbered(2)), {"prompt": "input"})


@pytest.mark.parametrize("value", ["", "  ", None, 5, ["a"]])
def test_empty_input_is_named(value):
    message = refused(write("mine.jsonl", [*numbered(2), {"id": "x", "input": value}]))
    assert "mine.jsonl:3: the column 'input' is empty or no text" in message


@pytest.mark.parametrize("value", ["yes", {"label": ["A"], "text": ["a"]}, [1, 2], 5, True])
def test_choices_that_are_no_list_of_texts_are_named(value):
    message = refused(write("mine.jsonl", [*numbered(2), {"id": "x", "input": "a", "choices": value}]))
    assert "mine.jsonl:3: choices must be a list of texts" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_file_without_rows_is_an_error(name):
    Path(name).write_text("")
    assert refused(name) == f"{name}: no rows"
    Path(name).write_text("input,label\n" if name.endswith("csv") else "\n\n")
    assert refused(name) == f"{name}: no rows"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with byte order mark"])
def test_mixed_encodings_name_line_and_byte(mark):
    good = '{"input": "Grüße?"}\n'.encode()
    Path("mine.jsonl").write_bytes(mark + good * 2 + '{"input": "Grüße?"}\n'.encode("latin-1"))
    message = refused("mine.jsonl")
    assert message.startswith("mine.jsonl:3: byte 0xfc is not UTF-8") and "iconv" in message
    Path("mine.csv").write_bytes(mark + b"input\n" + "Grüße\n".encode("latin-1"))
    assert refused("mine.csv").startswith("mine.csv:2: byte 0xfc is not UTF-8")


@pytest.mark.parametrize(("line", "number"), [("only one", 3), ("a,b,c", 3), ('"a"b,c', 3), ('"open,1', 3)])
def test_csv_line_that_does_not_fit_the_header_is_named(line, number):
    Path("mine.csv").write_text(f"input,label\nWhy?,1\n{line}\n")
    assert refused("mine.csv").startswith(f"mine.csv:{number}: ")


def test_damaged_gz_is_an_error():
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in numbered(500)).encode())
    damaged = bytearray(whole)
    damaged[40:60] = b"\xff" * 20
    for content in (whole[:200], bytes(damaged), b"\x1f\x8b" + b"no gzip at all"):
        Path("mine.jsonl.gz").write_bytes(content)
        assert refused("mine.jsonl.gz").startswith("mine.jsonl.gz: cannot be read (")


def test_unknown_suffix_and_missing_file_are_errors():
    Path("mine.xlsx").write_bytes(b"PK")
    message = refused("mine.xlsx")
    assert message.startswith("mine.xlsx: unknown kind of file") and ".jsonl.gz, .csv, .parquet" in message
    assert refused("absent.jsonl") == "--data absent.jsonl: no such file or folder"
    assert "the built-in data set is builtin:wordmath" in refused("builtin:wordmaths")


def test_broken_parquet_is_one_line():
    Path("mine.parquet").write_bytes(b"PAR1 but not really")
    assert "mine.parquet" in refused("mine.parquet")


def test_hub_set_without_network_names_the_way_out():
    message = refused("hf:nobody/nothing-at-all")
    assert message.startswith("hf:nobody/nothing-at-all cannot be loaded") and "--data FILE.jsonl" in message
