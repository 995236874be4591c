"""Whatever a user gets wrong ends in one line that says what to do, exit 1 or 2, and nothing overwritten."""

import json
from pathlib import Path

import pytest

from edgedistill import runs
from edgedistill.bench import bench
from edgedistill.errors import Error, UsageError
from edgedistill.evaluate import evaluate
from edgedistill.export import export
from edgedistill.report import report
from edgedistill.run import run as answer
from edgedistill.teach import teach
from edgedistill.train import train

CARD = 'title = "Sums"\nkind = "number"\nmax_new_tokens = 8\n'
ROWS = [{"id": f"q{i}", "input": f"{i} + {i}?", "label": str(2 * i)} for i in range(4)]


def contents(folder):
    """All files but the log of readings, to which `eval` appends."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file() and path.name != "test_readings.jsonl"}


def one_line(done, code):
    """The message of a process that ended as a user's mistake must."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1 and done.stderr.splitlines()[-1] == errors[0], done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    plan = ("teach", "train", "export", "  ")
    assert all(line.startswith(plan) for line in done.stderr.splitlines()[:-1]), done.stderr
    return errors[0]


@pytest.fixture
def mine(tmp_path):
    """A folder with good rows, a good card and a finished teach stage, to see that nothing of it changes."""
    Path("sums.toml").write_text(CARD)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    stage = runs.Stage("runs/default", "teach", {"samples": 1, "data": "rows"}, {"rows": "a" * 64})
    (stage.path / "corpus.jsonl").write_text("{}\n")
    stage.done({"rows": 4}, [stage.path / "corpus.jsonl"])
    return tmp_path


def data_file(name):
    """A data file with one mistake; the name says which."""
    content = {
        "broken.jsonl": b'{"input": "1 + 1?"}\n{"input": "1 +\n',
        "column.jsonl": b'{"question": "1 + 1?"}\n' * 3,
        "empty.jsonl": b"\n",
        "empty.csv": b"input,label\n",
        "mixed.csv": "input\nGrün?\n".encode() + b"Gr\xfcn?\n",
        "fields.csv": b"input,label\n1 + 1?,2,3\n",
        "labels.jsonl": b'{"input": "1 + 1?", "label": "two"}\n' * 3,
        "one.jsonl": b'{"input": "1 + 1?"}\n',
        "rows.xlsx": b"PK\x03\x04",
        "deep.jsonl": b"[" * 100_000 + b"\n",
        "half.jsonl": b'{"input": "\\ud800"}\n' * 3,
    }[name]
    Path(name).write_bytes(content)
    return name


# The verbs


@pytest.mark.parametrize(("name", "message"), [
    ("broken.jsonl", "broken.jsonl:2: not valid JSON"),
    ("column.jsonl", "no column 'input'; it has question"),
    ("empty.jsonl", "empty.jsonl: no rows"), ("empty.csv", "empty.csv: no rows"),
    ("mixed.csv", "mixed.csv:3: byte 0xfc is not UTF-8"),
    ("fields.csv", "fields.csv:2: has not the 2 fields"),
    ("labels.jsonl", "label 'two' is no answer of kind number"), ("one.jsonl", "at least two"),
    ("rows.xlsx", "unknown kind of file"), ("deep.jsonl", "deep.jsonl:1: not valid JSON"),
    ("half.jsonl", "half.jsonl:1: not valid JSON"),
])
@pytest.mark.parametrize("verb", [teach, train])
def test_bad_data_file_is_refused_before_anything_is_written(mine, verb, name, message):
    data = data_file(name)
    before = contents(mine)
    more = {"method": "finetune"} if verb is train else {}
    with pytest.raises(UsageError) as caught:
        verb(data=data, task="sums.toml", run="runs/new", **more)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert contents(mine) == before


@pytest.mark.parametrize("name", ["broken.jsonl", "column.jsonl", "empty.jsonl", "mixed.csv", "labels.jsonl"])
def test_bad_data_file_is_refused_by_eval(mine, name, teacher_path):
    data = data_file(name)
    before = contents(mine)
    with pytest.raises(UsageError, match="label 'two'" if name == "labels.jsonl" else name):
        evaluate(str(teacher_path), task="sums.toml", data=data, run="runs/new")
    assert contents(mine) == before


@pytest.mark.parametrize(("flags", "message"), [
    ({"gguf": "absent.gguf"}, "absent.gguf: no such file"),
    ({"gguf": "smollm2-135"}, "did you mean 'smollm2-135m'?"),
    ({"gguf": "hf:nobody/nothing:Q4"}, "--gguf PATH"), ({"task": "sum"}, "there is no task 'sum'"),
    ({"task": "./absent.toml"}, "there is no task './absent.toml'"),
    ({"data": "absent.jsonl"}, "no such file"),
    ({"data": "builtin:sums"}, "builtin:wordmath"), ({"data": None}, "names no data"),
    ({"limit": 0}, "--limit 0: at least 1"), ({"limit": -3}, "--limit -3: at least 1"),
    ({"samples": 0}, "at least 1"), ({"parallel": 0}, "at least 1"),
    ({"column": {"prompt": "x"}}, "--column prompt="), ({"column": {"label": "gold"}}, "no column 'gold'"),
])
def test_wrong_flag_of_teach_is_refused_before_anything_is_written(mine, flags, message):
    before = contents(mine)
    with pytest.raises(UsageError) as caught:
        teach(**{"task": "sums.toml", "data": "rows.jsonl", "run": "runs/new", **flags})
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert contents(mine) == before


@pytest.mark.parametrize(("call", "message"), [
    (lambda: train(run="runs/new"), "no finished teach stage: run edgedistill teach"),
    (lambda: train("t5-smal", run="runs/new", method="finetune", data="rows.jsonl", task="sums.toml"),
     "did you mean 't5-small'"),
    (lambda: train("nobody/nothing", run="runs/new", method="finetune", data="rows.jsonl", task="sums.toml"),
     "nobody/nothing"),
    (lambda: train(run="runs/new", data="rows.jsonl", task="sums.toml"), "needs rationales"),
    (lambda: train(run="runs/new", method="magic", data="rows.jsonl", task="sums.toml"), "known methods are"),
    (lambda: train(run="runs/new", epochs=0, data="rows.jsonl"), "--epochs 0: give a number above 0"),
    (lambda: export(run="runs/new"), "no finished train stage: run edgedistill train"),
    (lambda: export("rows.jsonl", run="runs/new"), "no student folder"),
    (lambda: export(run="runs/new", target="rpi9"), "there is no target 'rpi9'"),
    (lambda: export(run="runs/new", precision="int3"), "none of fp32, int8"),
    (lambda: evaluate(run="runs/new"), "neither a bundle nor a student"),
    (lambda: evaluate("nothing-of-this-name", data="rows.jsonl", run="runs/new"), "there is no teacher"),
    (lambda: answer("runs", "1 + 1?"), "runs is no bundle"),
    (lambda: answer("absent", "1 + 1?"), "absent is no bundle"),
    (lambda: answer("runs"), "either a text or --file"),
    (lambda: answer("runs", "1 + 1?", file="rows.jsonl"), "either a text or --file"),
    (lambda: bench(run="runs/new"), "runs/new"),
    (lambda: bench("runs"), "runs is no bundle"),
    (lambda: report(["runs/new"]), "runs/new"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_verb_without_what_it_needs_says_so_and_writes_nothing(mine, call, message):
    before = contents(mine)
    with pytest.raises(Error) as caught:
        call()
    assert caught.value.exit_code in (1, 2)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    after = {path for path in contents(mine) if path.name not in (".lock", "manifest.json")}
    assert after <= set(before) and {path: contents(mine)[path] for path in before} == before


def test_bundle_with_a_broken_manifest_is_refused(mine):
    Path("bundle").mkdir()
    outside = {"files": {"../x": {}}, "graph": {"kind": "t5"}, "schema": 1, "format": {"family": "t5"}}
    for content in ("", "{", "[]", '{"files": []}', json.dumps(outside)):
        Path("bundle/bundle.json").write_text(content)
        with pytest.raises(UsageError, match="bundle") as caught:
            answer("bundle", "1 + 1?")
        assert "\n" not in str(caught.value)


# Through the command line


def test_file_that_is_no_gguf_ends_in_one_line(cli, mine):
    Path("page.gguf").write_text("<html>Not found</html>")
    before = contents("runs")
    done = cli("teach", "--gguf", "page.gguf", "--task", "sums.toml", "--data", "rows.jsonl", "--run", "new")
    assert "page.gguf is not a GGUF file" in one_line(done, 2)
    assert contents("runs") == before


def test_file_that_was_cut_off_ends_in_one_line(cli, mine, teacher_path):
    with teacher_path.open("rb") as whole:
        Path("cut.gguf").write_bytes(whole.read(20_000_000))
    done = cli("teach", "--gguf", "cut.gguf", "--task", "sums.toml", "--data", "rows.jsonl", "--run", "new")
    assert "cut.gguf: llama.cpp cannot load it" in one_line(done, 2)
    # The run is not spoiled by it: the right file needs no --overwrite.
    assert teach(task="sums.toml", data="rows.jsonl", run="new", threads=1, form="completion")["samples"] == 3


def test_run_of_another_configuration_ends_in_one_line_and_stays(cli, mine):
    before = contents("runs")
    done = cli("teach", "--task", "sums.toml", "--data", "rows.jsonl")
    message = one_line(done, 2)
    assert "runs/default/teach was made with another configuration" in message and "--overwrite" in message
    assert contents("runs") == before


@pytest.mark.parametrize(("args", "message"), [
    (["teach", "--limit", "0"], "--limit 0"), (["teach", "--task", "wordmaths"], "did you mean 'wordmath'?"),
    (["teach", "--format", "cat"], "--format cat: known are chat, completion"),
    (["teach", "--column", "input"], "--column input"), (["teach", "--data", "broken.jsonl"], "jsonl:2: not"),
    (["export", "--int8", "--fp32"], "exclude each other"), (["export", "--layout", "onnx"], "known are edge, optimum"),
    (["run", "runs", "1 + 1?"], "is no bundle"),
    (["eval", "--run", "runs/new"], "neither a bundle nor a student"), (["bench", "--threads", "two"], "two"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistake_on_the_command_line_ends_in_one_line(cli, mine, args, message):
    data_file("broken.jsonl")
    before = contents(mine)
    assert message in one_line(cli(*args), 2)
    assert contents(mine) == before


@pytest.mark.parametrize("verb", ["train", "export"])
def test_stage_without_the_one_before_ends_in_one_line(cli, mine, verb):
    before = contents(mine)
    assert "runs/new has no finished" in one_line(cli(verb, "--run", "runs/new"), 2)
    assert contents(mine) == before


def test_damaged_manifest_ends_in_one_line_with_exit_1(cli, mine):
    Path("runs/default/teach/manifest.json").write_text("{")
    before = contents(mine)
    message = one_line(cli("teach", "--task", "sums.toml", "--data", "rows.jsonl"), 1)
    assert "manifest.json cannot be read" in message and "--overwrite" in message
    assert contents(mine) == before


def test_debug_shows_the_traceback(cli, mine):
    done = cli("teach", "--limit", "0", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr and "UsageError" in done.stderr


@pytest.mark.parametrize("verb", ["teach", "train", "export"])
def test_list_prints_the_cards(cli, verb):
    done = cli(verb, "--list")
    assert done.returncode == 0 and done.stderr == ""
    wanted = {"teach": ("smollm2-135m", "wordmath"), "train": ("carve", "t5-small"), "export": ("x86",)}
    assert all(f"  {name} " in done.stdout for name in wanted[verb])
