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
from edgedistill.tasks.metrics import interval, paired
from edgedistill.tasks.task import Exemplar, Task
from edgedistill.teach import judge, read_corpus, read_exemplars, row_seed, soft, teach
from edgedistill.teach.compare import compare_prompts
from edgedistill.teach.verify import settle

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
LATER = {"agreement", "reason"}  # behind the contract's keys, where they mean something
USABLE = {"verified", "unlabelled"}
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


def keys(row):
    """A corpus row's keys: the contract's, after a look at the later ones."""
    own = [key for key in row if key not in LATER]
    assert list(row)[:len(own)] == own
    assert ("reason" in row) == (row["verdict"] not in USABLE)
    return own


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


def test_accuracy_counts_the_first_sample_of_each_labelled_row(taught):
    run, result, rows, _ = taught
    journal = [row for row in lines(run / "teach" / "journal.jsonl") if row["label"] is not None and row["sample"] == 0]
    right = sum(row["verdict"] == "verified" for row in journal)
    assert len(journal) == 7
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
        assert keys(row) == KEYS and 0 <= row["agreement"] <= 1
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
    ({"prompt": "zero-shot"}, 'prompt is "few-shot" there, "zero-shot" asked'),
    ({"enough": 1}, "enough is null there, 1 asked"), ({"hint": True}, "hint is null there, true asked"),
    ({"soft_targets": 5}, "soft_targets is null there, 5 asked"),
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
    assert result["rows"] == 2 and all(keys(row) == [*KEYS[:4], "choices", *KEYS[4:]] for row in corpus)
    assert not any("agreement" in row for row in corpus)  # one sample a row
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
    assert result["verified"] == verified > 0 and result["accuracy"] == round(verified / 3, 4)


@pytest.mark.parametrize(("text", "finish", "label", "verdict"), [
    (" So. The answer is 3 + 4.", "stop", "7", "verified"), (" The answer is 7", "length", "7", "truncated"),
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


# Several rounds, hints, soft targets


@pytest.fixture(scope="module")
def rounds(tmp_path_factory, teacher_path):
    """A run that asks until a row has two usable rationales, then with a hint, and keeps soft targets."""
    folder = tmp_path_factory.mktemp("rounds")
    rows = [*sums(4), {"id": "odd", "input": "Ann has 2 pens and gets 3 more.", "label": "999 * 7"}, *OPEN, LONG]
    flags = {**material(folder, rows), "run": str(folder / "run"), "samples": 4, "enough": 2, "hint": True, "soft_targets": 5,
             "parallel": 4, "temp": 0.8, "ctx_size": 256, "form": "completion", "threads": 1, "api_price": (1.0, 10.0)}
    return folder / "run", teach(str(teacher_path), **flags), rows


def by_row(run):
    rows = {}
    for row in read_corpus(run):
        rows.setdefault(row["id"], []).append(row)
    return rows


def test_row_is_asked_until_it_has_enough_usable_rationales(rounds):
    run, _, rows = rounds
    taught = by_row(run)
    assert list(taught) == [row["id"] for row in rows]
    ended = set()
    for samples in taught.values():
        own = [row for row in samples if not row["hint"]]
        assert [row["sample"] for row in own] == list(range(len(own)))
        usable = [row["verdict"] in USABLE and bool(row["rationale"]) for row in own]
        assert sum(usable[:-1]) < 2 <= len(own) and (sum(usable) >= 2 or len(own) == 4)
        ended.add(len(own))
    assert len(ended) > 1  # some rows needed more rounds than others
    assert len(taught["odd"]) == 5 and len(taught["long"]) == 4


def test_row_without_a_rationale_gets_one_more_try_that_is_told_the_label(rounds):
    run, _, rows = rounds
    labels = {row["id"]: row.get("label") for row in rows}
    for identity, samples in by_row(run).items():
        told = [row for row in samples if row["hint"]]
        lacking = not any(row["verdict"] in USABLE for row in samples if not row["hint"])
        assert len(told) == (lacking and labels[identity] is not None and identity != "long")
        for row in told:
            assert row is samples[-1] and row["sample"] == 4 and row["seed"] == row_seed(0, identity, 4)
            assert keys(row) == KEYS and "agreement" not in row
            assert row["prompt_tokens"] > samples[0]["prompt_tokens"]


def test_hints_count_neither_as_right_nor_as_verified(rounds):
    run, result, _ = rounds
    journal = lines(run / "teach/journal.jsonl")
    own = [row for row in journal if not row["hint"] and row["label"] is not None and row["sample"] == 0]
    right = sum(row["verdict"] == "verified" for row in own)
    assert len(own) < len(journal) == result["samples"] and result["accuracy"] == round(right / len(own), 4)
    corpus = read_corpus(run)
    assert result["verified"] == sum(row["verdict"] == "verified" and not row["hint"] for row in corpus)
    assert sum(result["rejected"].values()) == sum(row["verdict"] not in USABLE and not row["hint"] for row in corpus)


def test_ledger_says_what_was_asked_and_what_it_would_have_cost(rounds):
    run, result, rows = rounds
    ledger = result["ledger"]
    prompts = sum(row["prompt_tokens"] for row in read_corpus(run) if row["finish_reason"] != "prompt_too_long")
    assert ledger["rows"] == len(rows) and ledger["rows_usable"] >= ledger["rows_hinted"]
    assert (ledger["prompt_tokens"], ledger["generated_tokens"]) == (prompts, result["generated_tokens"])
    assert ledger["api_dollars"] == round((prompts + 10 * result["generated_tokens"]) / 1e6, 4)
    assert ledger["dropped"]["the prompt does not fit the context"] == 4


def test_every_sample_has_its_soft_targets(rounds):
    run, _, _ = rounds
    corpus = {(row["id"], row["sample"]): row for row in read_corpus(run) if row["generated_tokens"]}
    pieces = soft.vocabulary(run / "teach/soft")
    read = {(identity, sample): records for identity, sample, records in soft.read(run / "teach/soft")}
    assert list(read) == list(corpus) and any(row["hint"] for row in corpus.values())
    for key, records in read.items():
        row = corpus[key]
        assert 0 <= len(records) - row["generated_tokens"] <= (row["finish_reason"] == "stop")  # the end of text
        taken = records["ids"][range(len(records)), records["place"]]
        assert row["rationale"] in b"".join(pieces[int(token)] for token in taken).decode(errors="ignore")
    assert not any("soft" in row for row in read_corpus(run))


def test_soft_targets_are_outputs_of_the_stage_and_nothing_raw_is_left(rounds):
    run, _, _ = rounds
    manifest = runs.finished(run, "teach")
    files = {f"soft/{path.name}" for path in (run / "teach/soft").iterdir()}
    assert files == {"soft/00000.safetensors", "soft/vocabulary.json"} <= set(manifest["outputs"])
    assert all(runs.sha256(run / "teach" / name) == manifest["outputs"][name] for name in files)


def test_duplicates_of_the_corpus_are_those_of_settling_the_journal(rounds):
    run, _, _ = rounds
    journal = {}
    for row in lines(run / "teach/journal.jsonl"):
        journal.setdefault(row["id"], []).append({k: v for k, v in row.items() if k != "soft"})
    for identity, samples in by_row(run).items():
        assert samples == settle(sorted(journal[identity], key=lambda row: row["sample"]))


# The data's own rationales


def test_rationales_of_the_data_are_scored_and_not_written_anew(tmp_path, teacher_path, monkeypatch):
    rows = [{"id": "a", "input": "1 and 2?", "label": "1 + 2", "rationale": "Add both."},
            {"id": "b", "input": "1 and 3?", "label": "1 + 3", "rationale": "So. The answer is 9 - 1."},
            {"id": "c", "input": "1 and 4?", "label": "1 + 4", "rationale": "Count: " + "one, " * 70},
            {"id": "d", "input": "1 and 5?", "label": "1 + 5", "rationale": "More " * 200},
            {"id": "e", "input": "1 and 6?", "label": "1 + 6"}, {"id": "f", "input": "1 and 7?", "rationale": "Add."}]
    flags = {**material(tmp_path, rows), "run": "run", "threads": 1, "form": "completion", "soft_targets": 4, "score": True,
             "ctx_size": 256}

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as late, pytest.raises(KeyboardInterrupt):
        late.setattr(runs.Stage, "done", kill)  # all is there but the result
        teach(str(teacher_path), **flags)
    result = teach(str(teacher_path), **flags)
    corpus = {row["id"]: row for row in read_corpus("run")}
    assert {identity: (row["verdict"], row["finish_reason"]) for identity, row in corpus.items()} == {
        "a": ("verified", "scored"), "b": ("wrong", "scored"), "c": ("verified", "scored"),  # longer than max_new_tokens
        "d": ("truncated", "prompt_too_long")}
    assert (result["rows"], result["samples"], result["verified"]) == (4, 4, 2)
    assert all(keys(row) == KEYS for row in corpus.values())
    assert [corpus[i]["rationale"] for i in "abcd"] == ["Add both.", "So.", rows[2]["rationale"].strip(), ""]
    pieces = soft.vocabulary("run/teach/soft")
    texts = {}
    for identity, _, records in soft.read("run/teach/soft"):
        taken = records["ids"][range(len(records)), records["place"]]
        assert len(taken) == corpus[identity]["generated_tokens"] + 1 and pieces[int(taken[-1])] == b""
        texts[identity] = b"".join(pieces[int(token)] for token in taken).decode()
    assert texts["a"] == " Add both. The answer is 1 + 2." and texts["b"] == " So. The answer is 9 - 1."
    assert len(texts) == 3


# Ways to ask


def test_prompt_and_exemplars_decide_what_the_teacher_reads(tmp_path, teacher_path):
    Path("worked.jsonl").write_text("".join(json.dumps({**row, "rationale": "Add."}) + "\n" for row in sums(4)))
    flags = {**material(tmp_path, sums(2)), "limit": 1, "threads": 1, "form": "completion", "parallel": 1}
    read = {}
    for name, prompt, exemplars in (("few", None, None), ("zero", "zero-shot", None), ("similar", "similar", "worked.jsonl")):
        result = teach(str(teacher_path), run=name, prompt=prompt, exemplars=exemplars, **flags)
        assert result["prompt"] == runs.finished(name, "teach")["config"]["prompt"] == (prompt or "few-shot")
        read[name] = result["prompt_tokens"]
    assert read["zero"] < read["few"] < read["similar"]  # none, the card's two, the file's without the row itself
    assert {name for name in read if "exemplars" in runs.finished(name, "teach")["inputs"]} == {"similar"}
    Path("other.jsonl").write_text('{"input": "1 and 1?", "rationale": "Add.", "label": "1 + 1"}\n')
    with pytest.raises(UsageError, match=r"exemplars \(hash\) is "):
        teach(str(teacher_path), run="similar", prompt="similar", exemplars="other.jsonl", **flags)


def test_exemplars_are_what_was_verified_without_a_hint_one_a_row(tmp_path):
    row = {"input": "1 and 2?", "label": "3", "rationale": "Add.", "answer": "1 + 2", "verdict": "verified", "hint": False}
    rows = [{**row, "verdict": "wrong", "rationale": "No."}, {**row, "hint": True, "rationale": "Told."}, row,
            {**row, "rationale": "Again."}, {"input": "2 and 2?", "label": "4", "rationale": "Twice."},
            {"input": "3 and 2?", "label": "5"}, {"input": "4 and 2?", "rationale": "Add.", "verdict": "unlabelled"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = Task("own", "t", "equation")
    assert read_exemplars("rows.jsonl", card) == (Exemplar("1 and 2?", "Add.", "1 + 2"), Exemplar("2 and 2?", "Twice.", "4"))
    Path("rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UsageError, match="--exemplars rows.jsonl: no row has a rationale and a label"):
        read_exemplars("rows.jsonl", card)


@pytest.mark.parametrize(("flags", "message"), [
    ({"samples": 0}, "--samples and --parallel must be at least 1"), ({"parallel": 0}, "--samples and --parallel"),
    ({"samples": 2, "enough": 3}, "--enough 3: give 1 to 2"), ({"enough": 0}, "--enough 0: give 1 to 1"),
    ({"gguf": "a.gguf", "url": "http://localhost:1"}, "--gguf and --url exclude each other"),
    ({"soft_targets": 256}, "--soft-targets 256: give 1 to 255"), ({"soft_targets": -1}, "--soft-targets -1"),
    ({"url": "http://localhost:1", "soft_targets": 5}, "--soft-targets needs the model's own logits"),
    ({"score": True}, "--score keeps .* give --soft-targets K, one sample"),
    ({"score": True, "soft_targets": 5, "samples": 2}, "--score keeps"),
    ({"score": True, "soft_targets": 5, "hint": True}, "--score keeps .* and no --hint"),
    ({"score": True, "soft_targets": 5}, "no training rows with a rationale and a label; name the column"),
    ({"api_price": (1.0, -2.0)}, "--api-price 1,-2: prices are not negative"),
    ({"prompt": "best"}, "--prompt best: there is no prompt 'best'; this task has few-shot, zero-shot, answer-first, similar"),
    ({"exemplars": "absent.jsonl", "prompt": "similar"}, "absent.jsonl"), ({"limit": 0}, "--limit 0: at least 1 row is needed"),
], ids=str)
def test_flags_that_do_not_fit_are_one_line_and_leave_no_run(flags, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        teach(**{**material(tmp_path, sums(2)), "run": "run", **flags})
    assert "\n" not in str(caught.value) and not Path("run").exists()


@pytest.fixture(scope="module")
def compared(tmp_path_factory, teacher_path):
    """Every prompt of a card with one of its own, on the few labelled dev rows."""
    folder = tmp_path_factory.mktemp("compared")
    flags = material(folder, sums(4))
    with (folder / "sums.toml").open("a") as file:
        file.write('\n[prompts.short]\nshots = 1\ninstruction = "Add."\n')
    (folder / "set/dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*sums(3), OPEN[0], sums(4)[3]]))
    flags = {**flags, "run": str(folder / "run"), "threads": 1, "form": "completion", "parallel": 4}
    return folder / "run", compare_prompts(str(teacher_path), **flags), {**flags, "gguf": str(teacher_path)}


STYLES = {"few-shot", "zero-shot", "answer-first", "similar", "short"}


def test_every_prompt_is_measured_on_the_labelled_dev_rows(compared):
    run, result, _ = compared
    assert {"schema", "kind", "teacher", "task", "data", "split", "best", "prompts"} <= set(result)
    assert (result["kind"], result["split"]) == ("prompts", "dev")
    assert {entry["prompt"] for entry in result["prompts"]} == STYLES
    for entry in result["prompts"]:
        assert entry["n"] == 4 and entry["accuracy"] == entry["correct"] / 4 and entry["ci95"] == interval(entry["correct"], 4)
        assert entry["generated_tokens"] > 0 and entry["rows_per_s"] > 0
    own = {entry["prompt"]: entry["shared_tokens"] for entry in result["prompts"]}
    assert own["zero-shot"] < own["short"] < own["few-shot"]
    assert result == runs.finished(run, "prompts")["result"]


def test_best_prompt_is_first_and_the_others_are_compared_with_it_row_by_row(compared):
    run, result, _ = compared
    best, *others = result["prompts"]
    assert best["prompt"] == result["best"] and best["behind"] is None
    assert [e["correct"] for e in result["prompts"]] == sorted((e["correct"] for e in result["prompts"]), reverse=True)
    measured = {row["prompt"]: row["correct"] for row in lines(run / "prompts/journal.jsonl")}
    for entry in others:
        assert entry["behind"] == paired(measured[best["prompt"]], measured[entry["prompt"]])
        assert entry["behind"]["difference"] >= 0
        assert entry["correct"] < best["correct"] or entry["generated_tokens"] >= best["generated_tokens"]


def test_prompts_that_were_measured_are_kept(compared, capfd):
    run, result, flags = compared
    assert compare_prompts(**flags) == result
    stage, folder = run / "prompts", Path("again/prompts")
    folder.mkdir(parents=True)
    kept = (stage / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(kept[:4]))
    manifest = {**runs.read_json(stage / "manifest.json"), "state": "running"}
    runs.write_json(folder / "manifest.json", manifest)
    capfd.readouterr()
    again = compare_prompts(**{**flags, "run": "again"})
    assert capfd.readouterr().err.count("prompt short: ") == 1  # the last one alone
    assert (folder / "journal.jsonl").read_bytes().startswith(b"".join(kept[:4]))
    assert {e["prompt"]: e["correct"] for e in again["prompts"]} == {e["prompt"]: e["correct"] for e in result["prompts"]}


def test_prompts_cannot_be_compared_without_labelled_dev_rows(tmp_path):
    flags = material(tmp_path, sums(2))
    (tmp_path / "set/dev.jsonl").write_text(json.dumps(OPEN[0]) + "\n")
    with pytest.raises(UsageError, match="set has no dev rows with labels to compare prompts on"):
        compare_prompts(**flags)


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
             "deterministic": True, "parallel": 3, "soft_targets": 4}
    teach(run=str(folder / "run"), **flags)
    return flags, made(folder / "run")


def made(run):
    """What a run makes of its journal, byte for byte."""
    folder = Path(run) / "teach"
    return {path.name: path.read_bytes() for path in (folder / "corpus.jsonl", *(folder / "soft").iterdir())}


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
    assert made("run") == wanted and set(wanted) == {"corpus.jsonl", "00000.safetensors", "vocabulary.json"}
    assert len(lines(journal)) == 18
    assert runs.finished("run", "teach")["seconds"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE to fake a full disk with")
def test_full_disk_is_one_line_exit_1_and_the_run_goes_on_to_the_same_bytes(undisturbed):
    flags, wanted = undisturbed
    flags = {**flags, "run": "run", "soft_targets": 0}
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
    assert Path("run/teach/corpus.jsonl").read_bytes() == wanted["corpus.jsonl"]


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


def test_only_the_prompts_asked_for_are_compared_and_one_that_cannot_be_used_is_left_out(tmp_path, teacher_path, capfd):
    flags = {**material(tmp_path, sums(2)), "run": "run", "threads": 1, "form": "completion", "parallel": 1}
    with pytest.raises(UsageError, match="there is no prompt 'few'; this task has few-shot, "):
        compare_prompts(str(teacher_path), prompts=("zero-shot", "few"), **flags)
    with (tmp_path / "sums.toml").open("a") as card:
        card.write("\n[prompts.steps]\nexecutable = true\n")  # its exemplars have none
    result = compare_prompts(str(teacher_path), prompts=("zero-shot", "steps"), **flags)
    assert [entry["prompt"] for entry in result["prompts"]] == ["zero-shot"]
    assert "prompt steps is left out: the task sums has no exemplar with steps" in capfd.readouterr().err


def test_exemplars_need_a_prompt_that_picks(tmp_path, teacher_path):
    flags = {**material(tmp_path, sums(2)), "run": "run", "exemplars": "any.jsonl"}
    with pytest.raises(UsageError, match="few-shot shows the card's first; add --prompt similar"):
        teach(str(teacher_path), **flags)
