"""`teach` with the real embedded model: what it writes, and that no kill and no full disk changes it."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgedistill import runs
from edgedistill.errors import Error, UsageError
from edgedistill.tasks.data import Row, read_file
from edgedistill.tasks.metrics import interval
from edgedistill.tasks.task import Task
from edgedistill.teach import judge, read_corpus, row_seed, teach

CARD = '''
title = "Short sums"
kind = "equation"
instruction = "Solve it."
max_new_tokens = 24

[[exemplars]]
input = "Ben has 3 cups and gets 5 more. How many has he?"
rationale = "He has 3 and 5 more."
answer = "3 + 5"

[[exemplars]]
input = "Of 9 cups 4 fall. How many are left?"
rationale = "There were 9 and 4 fell."
answer = "9 - 4"
'''
KEYS = ["id", "sample", "input", "label", "rationale", "answer", "value", "verdict", "hint", "finish_reason",
        "prompt_tokens", "generated_tokens", "seed"]
RESULT_KEYS = {
    "schema", "kind", "created", "commit", "machine", "versions", "rows", "samples", "verified", "accuracy",
    "ci95", "prompt_tokens", "generated_tokens", "seconds", "rows_per_s", "rejected"}
VERDICTS = {"verified", "wrong", "unparsed", "truncated", "duplicate", "unlabelled"}


def sums(n):
    names, things = ("Ann", "Tom", "Mia", "Leo", "Eva"), ("pens", "hats", "eggs", "keys")
    text = "{} has {} {} and gets {} more. How many are there?"
    return [{"id": f"q{i}", "input": text.format(names[i % 5], i + 2, things[i % 4], 2 * i + 3),
             "label": f"{i + 2} + {2 * i + 3}"} for i in range(n)]


def material(folder, rows):
    """A card and a folder of splits below `folder`; returns what `teach` needs to find them."""
    (folder / "set").mkdir(parents=True)
    (folder / "sums.toml").write_text(CARD)
    for split, its in (("train", rows), ("dev", [{"id": "d", "input": "1 and 1?", "label": "1 + 1"}])):
        (folder / "set" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its))
    return {"task": str(folder / "sums.toml"), "data": str(folder / "set")}


def options(flags):
    return [part for name, value in flags.items() for part in (
        [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)])]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


SEEDS = [2300282254, 563040100, 2922677406]
LONG = {"id": "long", "input": "Sam has 2 " + "very " * 300 + "old hats and gets 3 more.", "label": "2 + 3"}
OPEN = [{"id": "open1", "input": "Kim has 2 cups and gets 6 more. How many has she?"},
        {"id": "open2", "input": "Of 8 cups 3 fall. How many are left?", "label": None}]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, teacher_path):
    """A run of 4 sequences, 2 samples a row, with rows that have no label and one that does not fit."""
    folder = tmp_path_factory.mktemp("taught")
    rows = [*sums(6), LONG, *OPEN]
    flags = {**material(folder, rows), "run": str(folder / "run"), "samples": 2, "parallel": 4, "temp": 0.3,
             "ctx_size": 256, "form": "completion", "threads": 1}
    return folder / "run", teach(str(teacher_path), **flags), rows, {**flags, "gguf": str(teacher_path)}


def test_result_has_the_documented_keys_and_adds_up(taught):
    run, result, rows, _ = taught
    corpus = read_corpus(run)
    assert set(result) >= RESULT_KEYS and (result["schema"], result["kind"]) == (1, "teach")
    assert (result["rows"], result["samples"]) == (len(rows), len(corpus)) == (9, 18)
    verdicts = [row["verdict"] for row in corpus]
    assert result["verified"] == verdicts.count("verified") > 0
    assert sum(result["rejected"].values()) + result["verified"] + verdicts.count("unlabelled") == 18
    assert set(result["rejected"]) <= VERDICTS - {"verified", "unlabelled"}
    for key in ("prompt_tokens", "generated_tokens"):
        assert result[key] == sum(row[key] for row in corpus) > 0
    assert result == runs.read_json(run / "teach" / "result.json") == runs.finished(run, "teach")["result"]


def test_accuracy_counts_labelled_samples_and_a_repeated_right_answer(taught):
    run, result, rows, _ = taught
    journal = [row for row in lines(run / "teach" / "journal.jsonl") if row["label"] is not None]
    right = sum(row["verdict"] == "verified" for row in journal)
    assert len(journal) == 2 * 7
    assert result["accuracy"] == round(right / len(journal), 4)
    assert result["ci95"] == interval(right, len(journal))


def test_every_sample_is_there_once_in_the_rows_order(taught):
    run, _, rows, _ = taught
    wanted = [(row["id"], sample) for row in rows for sample in range(2)]
    assert [(row["id"], row["sample"]) for row in read_corpus(run)] == wanted
    journal = [(row["id"], row["sample"]) for row in lines(run / "teach" / "journal.jsonl")]
    assert sorted(journal) == sorted(wanted)


def test_corpus_rows_have_exactly_the_contracts_keys(taught):
    run, _, rows, _ = taught
    given = {row["id"]: row for row in rows}
    for row in read_corpus(run):
        assert list(row) == KEYS
        assert row["input"] == given[row["id"]]["input"] and row["label"] == given[row["id"]].get("label")
        assert row["seed"] == row_seed(0, row["id"], row["sample"]) and row["hint"] is False
        assert row["verdict"] in VERDICTS and row["finish_reason"] in {"stop", "length", "prompt_too_long"}
        assert 0 <= row["generated_tokens"] <= 24 and row["prompt_tokens"] > 0


def test_verdict_of_every_row_follows_from_its_answer(taught):
    run, _, _, _ = taught
    card = Task.from_dict(runs.finished(run, "teach")["task"])
    for row in read_corpus(run):
        answer = card.parse(row["answer"])
        assert (answer.value if answer else None) == row["value"]
        if row["verdict"] in ("verified", "wrong"):
            assert card.same(answer, card.parse(row["label"])) == (row["verdict"] == "verified")
        if row["verdict"] in ("unparsed", "truncated"):
            assert row["answer"] is None


def test_rows_without_a_label_are_taught_and_not_judged(taught):
    run, _, _, _ = taught
    rows = [row for row in read_corpus(run) if row["id"].startswith("open")]
    assert len(rows) == 4 and any(row["verdict"] == "unlabelled" for row in rows)
    for row in rows:
        assert row["label"] is None and row["verdict"] in {"unlabelled", "duplicate", "unparsed", "truncated"}
        assert (row["verdict"] in {"unlabelled", "duplicate"}) == (row["answer"] is not None)


def test_row_that_does_not_fit_is_kept_and_never_asked(taught):
    run, result, _, _ = taught
    rows = [row for row in read_corpus(run) if row["id"] == "long"]
    assert len(rows) == 2
    for row in rows:
        assert (row["verdict"], row["finish_reason"]) == ("truncated", "prompt_too_long")
        assert (row["generated_tokens"], row["rationale"]) == (0, "") and row["prompt_tokens"] > 256
    assert result["rejected"]["truncated"] >= 2


def test_rows_are_kept_for_the_later_stages(taught):
    run, _, rows, _ = taught
    manifest = runs.finished(run, "teach")
    assert [row.id for row in read_file(run / "teach/data/train.jsonl")] == [row["id"] for row in rows]
    assert [row.id for row in read_file(run / "teach/data/dev.jsonl")] == ["d"]
    assert set(manifest["outputs"]) == {"corpus.jsonl", "result.json", "data/train.jsonl", "data/dev.jsonl"}
    for name, digest in manifest["outputs"].items():
        assert runs.sha256(run / "teach" / name) == digest
    assert manifest["teacher"]["name"] == manifest["result"]["teacher"] == "smollm2-135m"


def test_run_holds_no_trace_of_the_machine(taught, teacher_path):
    run, _, _, _ = taught
    traces = [os.uname().nodename, os.environ["HOME"], str(teacher_path.parent), str(run.parent)]
    for path in (run / "teach").rglob("*.json*"):
        assert not [trace for trace in traces if trace in path.read_text(encoding="utf-8")], path


def test_asked_again_it_does_nothing(taught, capfd):
    run, result, _, flags = taught
    before = contents(run)
    start = time.monotonic()
    assert teach(**{**flags, "threads": 2, "parallel": 2}) == result  # neither makes another configuration
    assert time.monotonic() - start < 2 and "nothing to do" in capfd.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize(("change", "difference"), [
    ({"seed": 5}, "seed is 0 there, 5 asked"), ({"samples": 3}, "samples is 2 there, 3 asked"),
    ({"limit": 4}, "rows is 9 there, 4 asked"), ({"temp": 0.0}, "min_p is 0.05 there, null asked"),
    ({"form": "chat"}, 'form is "completion" there, "chat" asked'), ({"task": "svamp"}, "card (hash)"),
    ({"deterministic": True}, "deterministic is false there, true asked"),
    ({"ctx_size": None}, "ctx_size is 256 there, null asked"),
])
def test_other_configuration_is_refused_and_nothing_changes(taught, change, difference):
    run, _, _, flags = taught
    before = contents(run)
    with pytest.raises(UsageError) as caught:
        teach(**{**flags, **change})
    assert difference in str(caught.value) and "--overwrite" in str(caught.value)
    assert contents(run) == before


def test_changed_data_under_the_same_name_are_refused(taught, tmp_path):
    run, _, rows, flags = taught
    changed = [{**rows[0], "label": "1 + 1"}, *rows[1:]]
    with pytest.raises(UsageError, match=r"rows \(hash\) is "):
        teach(**{**flags, **material(tmp_path, changed)})


def test_row_with_choices_of_its_own_keeps_them(tmp_path, teacher_path):
    (tmp_path / "pick.toml").write_text('title = "Pick"\nkind = "choice"\nmax_new_tokens = 16\n' + "".join(
        f'[[exemplars]]\ninput = "{q}\\nAnswer Choices:\\n(a) {a}\\n(b) {b}"\n'
        f'rationale = "It is so."\nanswer = "{a}"\n'
        for q, a, b in (("What is hot?", "fire", "ice"), ("What is wet?", "rain", "sand"))))
    rows = [{"input": "What is cold?", "label": "ice", "choices": ["ice", "fire"]},
            {"input": "What can fly?", "label": "bird", "choices": ["cow", "bird"]}]
    (tmp_path / "picks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    result = teach(str(teacher_path), run="run", task="pick.toml", data="picks.jsonl", threads=1, parallel=1)
    corpus = read_corpus("run")
    assert result["rows"] == 2 and all(list(row) == [*KEYS[:4], "choices", *KEYS[4:]] for row in corpus)
    assert all(row["choices"] in (["ice", "fire"], ["cow", "bird"]) for row in corpus)
    assert all(row["answer"] in [*row["choices"], None] for row in corpus)


def test_same_rationale_twice_is_a_duplicate_and_wrong_ones_stay_wrong(tmp_path, teacher_path):
    flags = {**material(tmp_path, sums(3)), "run": "run", "threads": 1, "form": "completion"}
    result = teach(str(teacher_path), samples=2, temp=0.0, parallel=1, **flags)
    corpus = read_corpus("run")
    for first, second in zip(corpus[::2], corpus[1::2], strict=True):
        assert first["rationale"] == second["rationale"]
        assert second["verdict"] == {"verified": "duplicate"}.get(first["verdict"], first["verdict"])
    verified = sum(row["verdict"] == "verified" for row in corpus)
    assert result["verified"] == verified > 0 and result["accuracy"] == round(2 * verified / 6, 4)


@pytest.mark.parametrize(("text", "finish", "label", "verdict"), [
    (" So. The answer is 3 + 4.", "stop", "7", "verified"), (" The answer is 7", "length", "7", "verified"),
    (" So. The answer is 3 - 4.", "stop", "7", "wrong"), (" The answer is 7.", "stop", None, "unlabelled"),
    (" So it is 7.", "stop", "7", "unparsed"), (" So it is", "length", "7", "truncated"),
    (" The answer is many.", "stop", "7", "unparsed"), ("", "prompt_too_long", None, "truncated"),
    (" The answer is 9**9**9.", "stop", "7", "unparsed"),
    (" The answer is " + "9" * 10_000, "length", "7", "truncated"),
])
def test_judgement_of_a_completion(text, finish, label, verdict):
    judged = judge(Task("own", "t", "equation"), Row("1", "?", label), text, finish)
    assert judged["verdict"] == verdict
    assert (judged["answer"] is None) == (judged["value"] is None) == (verdict in ("unparsed", "truncated"))


def test_seeds_of_samples_are_the_same_on_every_machine_and_all_differ():
    assert [row_seed(0, "q1", 0), row_seed(0, "q1", 1), row_seed(7, "ü", 0)] == SEEDS
    assert len({row_seed(s, f"q{i}", k) for s in range(5) for i in range(50) for k in range(4)}) == 1000


def test_no_row_that_fits_is_one_line_and_a_larger_context_goes_on(tmp_path, teacher_path):
    flags = {**material(tmp_path, sums(2)), "run": "run", "threads": 1, "form": "completion"}
    with pytest.raises(UsageError, match="no row fits: prompt and answer exceed the context of 40 tokens"):
        teach(str(teacher_path), ctx_size=40, **flags)
    assert teach(str(teacher_path), **flags)["samples"] == 2


# Kills and full disks


def start(flags, prepare=""):
    """`edgedistill teach` in a process of its own, after the Python statement `prepare`."""
    code = f"{prepare}\nfrom edgedistill.cli import main\nmain()"
    command = [sys.executable, "-c", code, "teach", *options(flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, teacher_path):
    """(flags, corpus) of a run that nothing disturbed; sampled, so that seed and rounding decide tokens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    flags = {**material(folder, sums(9)), "gguf": str(teacher_path), "samples": 2, "temp": 0.8, "threads": 1,
             "deterministic": True}
    teach(run=str(folder / "run"), **flags)
    return flags, (folder / "run/teach/corpus.jsonl").read_bytes()


def test_run_killed_five_times_gives_the_same_bytes(undisturbed):
    flags, wanted = undisturbed
    flags, rng = {**flags, "run": "run"}, random.Random(0)
    journal = Path("run/teach/journal.jsonl")
    reached = []
    for goal in (0, 1, 4, 8, 12):
        with start(flags) as process:
            # At 0: while it loads; then with some samples, at any moment of the next one.
            while len(reached) > 0 and process.poll() is None and (
                    not journal.exists() or journal.read_bytes().count(b"\n") < goal):
                time.sleep(0.005)
            time.sleep(rng.uniform(0.2, 1.0) if goal == 0 else rng.uniform(0, 0.15))
            process.kill()  # SIGKILL
            assert process.wait() != 0
        reached.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
    assert reached == sorted(reached) and 1 <= reached[1] and 12 <= reached[-1] < 18
    assert not Path("run/teach/corpus.jsonl").exists() and runs.finished("run", "teach") is None
    with start(flags) as process:
        assert process.wait() == 0 and f"{reached[-1]} samples are there already" in process.stderr.read()
    assert Path("run/teach/corpus.jsonl").read_bytes() == wanted
    assert len(lines(journal)) == 18
    assert runs.finished("run", "teach")["seconds"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE to fake a full disk with")
def test_full_disk_is_one_line_exit_1_and_the_run_goes_on_to_the_same_bytes(undisturbed):
    flags, wanted = undisturbed
    flags = {**flags, "run": "run"}
    limit = 4500
    prepare = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    with start(flags, prepare) as process:
        assert process.wait() == 1
        errors = [line for line in process.stderr.read().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "no space left for run/teach/journal.jsonl" in errors[0]
    kept = Path("run/teach/journal.jsonl").read_bytes()
    assert len(kept) <= limit and kept.endswith(b"}\n") and len(lines(Path("run/teach/journal.jsonl"))) > 5
    assert runs.finished("run", "teach") is None
    assert teach(**flags)["samples"] == 18
    assert Path("run/teach/journal.jsonl").read_bytes().startswith(kept)
    assert Path("run/teach/corpus.jsonl").read_bytes() == wanted


def test_damaged_journal_is_an_error_and_is_not_touched(tmp_path, teacher_path):
    flags = {**material(tmp_path, sums(2)), "run": "run", "threads": 1, "form": "completion", "ctx_size": 40}
    with pytest.raises(UsageError, match="no row fits"):  # makes the stage and stops before the first row
        teach(str(teacher_path), **flags)
    journal = Path("run/teach/journal.jsonl")
    journal.write_bytes(b'{"id": "q0", "sam\n{"id": "q1"}\n')
    before = contents("run")
    with pytest.raises(Error, match="journal.jsonl:1 is damaged"):
        teach(str(teacher_path), **flags)
    del before[Path("run/teach/manifest.json")]  # notes the time
    assert {path: content for path, content in contents("run").items() if path in before} == before
