"""A study runs each cell once, whatever happens to it, and says no more than its cells do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_students

from edgedistill import runs
from edgedistill.errors import Error, GateError, Stopped, UsageError
from edgedistill.study import cell as cell_
from edgedistill.study import crew, study
from edgedistill.study.grid import Cell, cells, mentors, needs
from edgedistill.study.material import Material
from edgedistill.study.plan import Plan
from edgedistill.study.spec import Study, read
from edgedistill.study.summary import markdown, summary
from edgedistill.tasks import groups, wordmath
from edgedistill.tasks.metrics import holm
from edgedistill.train import train

ROOT = Path(__file__).parent.parent
STUDIES = sorted(path for path in (ROOT / "benchmarks" / "studies").glob("*.toml") if path.stem != "papers")


def rows(split: str, n: int) -> list[dict[str, Any]]:
    """Built-in problems, each second one the first one with other numbers, and a teacher that is wrong on every third."""
    found = []
    for i, row in enumerate(wordmath.generate(split, n)):
        text, label = (re.sub(r"\d+", lambda m, by=i % 2: str(int(m[0]) + by), x)
                       for x in ((found[-1] if i % 2 else row)["input"], (found[-1] if i % 2 else row)["label"]))
        answer = label if i % 3 else "( 1 + 1 )"
        found.append({"id": row["id"], "input": text, "label": label, "why": f"It asks for {answer}.", "said": answer})
    return found


def write_study(folder: Path, **texts: str) -> Path:
    """A study of two folds and two methods in `folder`; `texts` are added to its tables."""
    text = f"""
title = "small"
baseline = ["finetune"]
budget = "finetune"
{texts.get("top", "")}
[settings]
epochs = 2
batch_size = 16
learning_rate = 0.003
{texts.get("settings", "")}
[data.words]
task = "wordmath"
source = "{folder}/data"
folds = 2
{texts.get("data", "")}
[students.tiny]
student = "{folder}/tiny"
[teachers.given.words]
column = {{rationale = "why", stated = "said"}}
[methods.finetune]
method = "finetune"
[methods.step-by-step]
method = "step-by-step"
{texts.get("methods", "")}
"""
    path = folder / "small.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny student, rows of two splits, and the study, run once."""
    folder = tmp_path_factory.mktemp("study")
    tiny_students.t5().save(folder / "tiny", {}, "# card\n")
    (folder / "data").mkdir()
    for split, n in (("train", 40), ("test", 16)):
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, n)))
    os.environ["EDGEDISTILL_READINGS"] = str(folder / "readings.jsonl")
    study(str(write_study(folder)), run=str(folder / "run"), threads=1)
    return folder


@pytest.fixture
def again(place: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of the finished study's folder, in which training anew is a failure of the test."""
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)

    def forbidden(**keywords: Any) -> None:
        if not keywords.get("dry_run"):
            assert runs.finished(keywords["run"], "train") and not keywords["overwrite"], keywords["run"]
        return train(**keywords)

    monkeypatch.setattr(cell_, "train", forbidden)
    return tmp_path / "run"


def one_missing(place: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the study's folder without one cell, and the cell's name."""
    run, name = tmp_path / "run", "words_tiny_finetune_fold0_seed0"
    shutil.copytree(place / "run", run, symlinks=True)
    (run / "cells" / f"{name}.json").unlink()
    shutil.rmtree(run / "cells" / name)
    return run, name


def finished(run: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "cells").glob("*.json"))}


def texts(result: dict[str, Any]) -> dict[str, str]:
    return {p["id"]: p["text"] for p in result["tests"]["words"]["predictions"]}


# The whole


def test_every_row_is_counted_once_and_no_body_is_on_both_sides(place: Path) -> None:
    found = finished(place / "run")
    assert sorted(found) == [f"words_tiny_{method}_fold{fold}_seed0" for method in ("finetune", "step-by-step_given")
                             for fold in (0, 1)]
    spec = read(place / "small.toml")
    material = Material(spec, place / "run")
    for cell in cells(spec):
        bodies = {split: {groups.mask(row.input) for row in its} for split, its in material.rows.splits(cell).items()}
        assert not bodies["test"] & (bodies["train"] | bodies["dev"]) and not bodies["train"] & bodies["dev"]
        assert found[cell.name]["groups"] == len(set.union(*bodies.values())) < 56
    for method in ("finetune", "step-by-step_given"):
        ids = [p["id"] for name, result in found.items() if f"_{method}_" in name
               for p in result["tests"]["words"]["predictions"]]
        assert len(ids) == 56 == len(set(ids))


def test_cells_say_where_they_come_from_and_train_on_equal_tokens(place: Path) -> None:
    found = finished(place / "run")
    for result in found.values():
        assert {"commit", "machine", "versions", "config", "inputs", "tokens", "train", "tests", "threads"} <= result.keys()
        assert {"rows", "test words", "student"} <= result["inputs"].keys() and result["config"]["axes"]["seed"] == 0
        assert str(place) not in json.dumps(result)
    spent = {name: cell_.trained_tokens(result) for name, result in found.items()}
    for fold in (0, 1):
        one, other = (spent[f"words_tiny_{method}_fold{fold}_seed0"] for method in ("finetune", "step-by-step_given"))
        assert other == pytest.approx(one, rel=0.01)
        assert found[f"words_tiny_step-by-step_given_fold{fold}_seed0"]["tokens"] == one
    assert "corpus" in found["words_tiny_step-by-step_given_fold0_seed0"]["inputs"]
    # Reading test rows is noted, once a cell.
    notes = [json.loads(line)["what"] for line in (place / "readings.jsonl").read_text().splitlines()]
    assert notes == [f"{name}-student on data" for name in (
        "words_tiny_finetune_fold0_seed0", "words_tiny_step-by-step_given_fold0_seed0", "words_tiny_finetune_fold1_seed0",
        "words_tiny_step-by-step_given_fold1_seed0")]


def test_a_finished_study_trains_nothing_and_its_summary_is_written_again(place: Path, again: Path) -> None:
    (again / "study.json").unlink()
    before = finished(again)
    found = study(str(place / "small.toml"), run=str(again), threads=1)
    assert finished(again) == before
    assert found["done"] == found["planned"] == 4 and found["groups"] == {"words": before[next(iter(before))]["groups"]}
    assert [(e["method"], e["n"], len(e["replicas"])) for e in found["entries"]] == [
        ("finetune", 56, 2), ("step-by-step", 56, 2)]
    assert runs.read_json(again / "study.json") == found
    text = (again / "study.md").read_text()
    assert f"{found['groups']['words']} groups of rows with one body" in text and "| tiny, 0.203 M | `finetune` |" in text


def test_the_plan_has_hours_and_runs_nothing(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cell_, "count", None)
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    for path in (tmp_path / "run" / "cells").glob("*_fold1_seed0.json"):
        path.unlink()
    plan = study(str(place / "small.toml"), run=str(tmp_path / "run"), dry_run=True, threads=1)
    states = {entry["cell"]: entry["state"] for entry in plan["cells"]}
    assert list(states.values()) == ["done", "done", "begun", "begun"]
    took = finished(tmp_path / "run")
    # Finished cells' own times, which are equal budgets here.
    assert plan["hours"] == pytest.approx(sum(result["seconds"] for result in took.values()) / 3600, rel=0.5)
    assert "4: 2 done, 2 begun, 0 to do" in capsys.readouterr().err
    fresh = study(str(place / "small.toml"), run=str(tmp_path / "fresh"), dry_run=True, threads=1)
    assert fresh["unknown"] == 0 and fresh["hours"] > 0 and not (tmp_path / "fresh" / "cells").exists()
    told = capsys.readouterr().err
    assert told.count("study: a step of ") == 2 and "train plan" not in told  # a line a kind, not a training's whole plan
    for path in (tmp_path / "run" / "cells").glob("*.json"):
        result = cell_.load(path)
        cell_.write(path, {**result, "machine": {**result["machine"], "cpu": "Another CPU"}, "seconds": 1e6})
    assert study(str(place / "small.toml"), run=str(tmp_path / "run"), dry_run=True, threads=1)["hours"] < 100


def test_mentors_other_tests_and_general_text(place: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, top="keep_students = false", settings=f'general = "{place}/data"', data=f"""
[data.words.tests.other]
source = "{place}/data/test.jsonl"
limit = 3""", methods=f"""
ood = "{place}/data"
only = {{method = []}}
[methods.kd]
method = "logit-kd"
mentor = {{method = "finetune", student = "tiny"}}
ood = "{place}/data"
""")
    path.write_text(path.read_text().replace(f"{tmp_path}/", f"{place}/").replace("folds = 2", "limit = 12\ntest_limit = 4")
                    .replace("epochs = 2", "epochs = 1"))
    found = study(str(path), run=str(tmp_path / "run"), threads=1)
    cell = finished(tmp_path / "run")["words_tiny_kd_seed0"]
    assert {name: test["n"] for name, test in cell["tests"].items()} == {"words": 4, "other": 3, "words-ood": 4, "other-ood": 3}
    assert "mentor" in cell["inputs"] and "general_perplexity" in cell["train"]["dev"][0] and cell["train"]["before"]
    assert {(e["method"], e["test"]) for e in found["entries"]} == {
        *(("kd", test) for test in cell["tests"]), ("finetune", "words"), ("finetune", "other")}
    said = (tmp_path / "run" / "study.md").read_text()
    assert "## words, tested on other" in said
    # What it cost elsewhere, beside the untrained student; the epoch that each rule chose is told.
    mentor, other = found["elsewhere"]
    assert [point["step"] for point in other["points"]] == [0, cell["train"]["dev"][0]["step"]]
    assert [point["chosen_by"] for point in other["points"]] == [[], ["own dev rows", "the other task's"]]
    assert "ood_accuracy" not in mentor["points"][0] and mentor["points"][1]["chosen_by"] == ["own dev rows"]
    assert f"| {other['points'][1]['general_perplexity']:.1f} | own dev rows, the other task's |" in said
    # The mentor's weights were kept until they were not needed any more.
    assert not list((tmp_path / "run" / "cells").glob("*/train/student*"))


# What goes wrong


def test_rounds_of_self_training_are_within_the_budget(place: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, top="labels = [0.5]", methods='[methods.hybrid]\nmethod = "hybrid"\nrounds = 1\n',
                       data="only = {fold = [0], method = [\"finetune\", \"hybrid\"]}")
    path.write_text(path.read_text().replace(f'"{tmp_path}/', f'"{place}/'))
    study(str(path), run=str(tmp_path / "run"), threads=1)
    base, hybrid = finished(tmp_path / "run").values()
    assert cell_.trained_tokens(hybrid) == pytest.approx(cell_.trained_tokens(base), rel=0.02)
    lines = (tmp_path / "run" / "cells" / hybrid["cell"] / "train" / "rounds" / "1" / "pseudo.jsonl").read_text().splitlines()
    told = {p["id"] for p in hybrid["tests"]["words"]["predictions"]}
    assert len(lines) == hybrid["train"]["rounds"][0]["asked"] > 8 and not told & {json.loads(line)["id"] for line in lines}


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_cell_is_set_aside_and_run_again(damage: str, place: Path, again: Path, capsys) -> None:
    path = again / "cells" / "words_tiny_finetune_fold0_seed0.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2] if damage == "cut" else text.replace('"correct": false', '"correct": true', 1))
    found = study(str(place / "small.toml"), run=str(again), threads=1)
    assert "words_tiny_finetune_fold0_seed0.json is damaged; it is set aside as" in capsys.readouterr().err
    assert path.with_suffix(".damaged").is_file() and cell_.load(path)
    assert found["done"] == 4 and [e["n"] for e in found["entries"]] == [56, 56]
    assert texts(finished(again)[path.stem]) == texts(finished(place / "run")[path.stem])


def test_a_killed_cell_goes_on_from_its_checkpoint_to_the_same_answers(place: Path, tmp_path: Path, capsys) -> None:
    code = ("import edgedistill.defaults as d; d.CHECKPOINT_MINUTES = 0\n"
            "import edgedistill.train.trainer as t, time\n"
            "step = t.DistillTrainer.training_step\n"
            "def slow(self, *a, **k): time.sleep(0.5); return step(self, *a, **k)\n"  # so that the kill comes in time
            "t.DistillTrainer.training_step = slow\n"
            "from edgedistill.cli import main; main()")
    run, name = one_missing(place, tmp_path)
    process = subprocess.Popen([sys.executable, "-c", code, "study", str(place / "small.toml"), "--run", str(run), "--threads",
                                "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((run / "cells" / name / "train" / "checkpoints").glob("checkpoint-*/sums.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # SIGKILL
    process.wait()
    assert not (run / "cells" / f"{name}.json").exists()
    assert study(str(place / "small.toml"), run=str(run), threads=1)["done"] == 4
    assert "resumed from checkpoint-" in capsys.readouterr().err
    straight = finished(place / "run")
    assert {name: texts(result) for name, result in finished(run).items()} == {n: texts(r) for n, r in straight.items()}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE to fake a full disk with")
def test_a_full_disk_loses_nothing(place: Path, again: Path, monkeypatch) -> None:
    import resource

    path = again / "cells" / "words_tiny_step-by-step_given_fold1_seed0.json"
    path.unlink()
    before, hard = finished(again), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    real = cell_.write

    def write(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            real(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    monkeypatch.setattr(cell_, "write", write)
    with pytest.raises(Error, match="1 of 4 cells failed, first words_tiny_step-by-step_given_fold1_seed0: no space left"):
        study(str(place / "small.toml"), run=str(again), threads=1)
    assert finished(again) == before and runs.read_json(again / "study.json")["done"] == 3
    monkeypatch.setattr(cell_, "write", real)
    assert study(str(place / "small.toml"), run=str(again), threads=1)["done"] == 4


def test_several_cells_at_once_are_the_same_cells(place: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    bad = '[methods.bad]\nmethod = "step-by-step"\nalpha = 2.0\nonly = {fold = [0]}\n'
    path = tmp_path / "small.toml"
    path.write_text((place / "small.toml").read_text() + bad)
    lost, give = "words_tiny_finetune_fold1_seed0", crew._Worker.give

    def kill(self: Any, cell: Cell, *more: Any) -> None:
        give(self, cell, *more)
        if cell.name == lost:
            self.process.kill()

    with monkeypatch.context() as patched, pytest.raises(Error, match="3 of 5 cells failed, first words_"):
        patched.setattr(crew._Worker, "give", kill)
        study(str(path), run=str(tmp_path / "run"), threads=2, jobs=2)
    told = capsys.readouterr().err
    assert f"{lost} failed: its process ended with code -9, its last words (" in told
    assert "step-by-step_given_fold1_seed0 failed: it needs words_tiny_finetune_fold1_seed0, which failed" in told
    assert "bad_given_fold0_seed0 failed: --batch-size 16, --alpha 2: the batch must be" in told and "train plan" not in told
    logs = [log.read_text() for log in (tmp_path / "run" / "workers").iterdir()]
    assert any(log.startswith("train plan") for log in logs)  # no warning of the interpreter before it
    found = study(str(place / "small.toml"), run=str(tmp_path / "run"), threads=2, jobs=2)
    straight = finished(place / "run")
    assert found["done"] == 4
    assert {name: texts(result) for name, result in finished(tmp_path / "run").items()} == {
        name: texts(result) for name, result in straight.items()}
    assert study(str(place / "small.toml"), run=str(tmp_path / "none"), threads=2, jobs=2, max_hours=1e-9)["done"] == 0
    # No two that make the same corpus or student are prepared at a time.
    material, planned = Material(read(path), tmp_path / "run"), cells(read(path))
    fold = [cell for cell in planned if cell.fold == 0 and cell.teacher]
    assert len(fold) == 2 and material.parts(fold[0]) == material.parts(fold[1])
    assert not material.parts(fold[0]) & material.parts(next(cell for cell in planned if cell.fold == 1 and cell.teacher))
    with pytest.raises(UsageError, match="--jobs 0: give at least 1"):
        study(str(place / "small.toml"), run=str(tmp_path / "run"), jobs=0)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to see which processes there are")
def test_a_killed_study_leaves_no_process_behind(place: Path, tmp_path: Path) -> None:
    def workers() -> list[Path]:
        found = []
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = each.read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if crew._WORKER.encode() in words and str(tmp_path / "run").encode() in words:
                found.append(each)
        return found

    process = subprocess.Popen([sys.executable, "-m", "edgedistill", "study", str(place / "small.toml"), "--run",
                                str(tmp_path / "run"), "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(workers()) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()  # SIGKILL
    process.wait()
    while workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_cell_does_not_keep_the_others_from_running(place: Path, again: Path, monkeypatch) -> None:
    for path in (again / "cells").glob("*_fold1_seed0.json"):
        path.unlink()
    real = cell_.run

    def run(spec: Study, material: Material, cell: Cell, **more: Any) -> dict[str, Any]:
        if cell.method == "step-by-step":
            raise Error("the loss is not finite")
        return real(spec, material, cell, **more)

    monkeypatch.setattr(cell_, "run", run)
    with pytest.raises(Error, match="1 of 4 cells failed, first words_.*_fold1_seed0: the loss is not finite"):
        study(str(place / "small.toml"), run=str(again), threads=1)
    assert len(finished(again)) == 3


def test_when_time_is_over_a_cell_ends_with_a_checkpoint_and_goes_on_next_time(place: Path, tmp_path: Path, monkeypatch,
                                                                              capsys) -> None:
    (run, name), path = one_missing(place, tmp_path), place / "small.toml"
    assert study(str(path), run=str(run), max_hours=1e-9, threads=1)["done"] == 3
    assert not (run / "cells" / name).exists()
    monkeypatch.setattr(cell_, "train", lambda **keywords: train(**{**keywords, "max_hours": 1e-9}))
    found = study(str(path), run=str(run), max_hours=1, threads=1)
    assert found["done"] == 3 and found["planned"] == 4
    assert "the time is over at step 1 of 4, which is kept" in capsys.readouterr().err
    assert [p.name for p in (run / "cells" / name / "train" / "checkpoints").iterdir()] == ["checkpoint-1"]
    # Stopped at step after step, the dev rows of every epoch are looked at once, and the answers are those of one go.
    material, spec = Material(read(path), run), read(path)
    cell = cells(spec)[0]
    while True:
        try:
            made = cell_.run(spec, material, cell, tokens=None, mentors=[], threads=1)
            break
        except Stopped:
            pass
    straight = finished(place / "run")[name]
    assert [e["step"] for e in made["train"]["dev"]] == [e["step"] for e in straight["train"]["dev"]] == [2, 4]
    assert texts(made) == texts(straight)


def test_another_configuration_is_named_and_never_mixed(place: Path, again: Path, tmp_path: Path) -> None:
    path = write_study(place, settings="alpha = 0.3")
    try:
        with pytest.raises(UsageError, match="alpha is null there, 0.3 asked.*--overwrite"):
            study(str(path), run=str(again), threads=1)
    finally:
        write_study(place)
    with pytest.raises(UsageError, match="another process works on"):
        lock = runs.lock(again / ".lock")
        try:
            study(str(path), run=str(again))
        finally:
            lock.close()


def test_what_hangs_on_a_cell_that_is_made_anew_is_made_anew_too(place: Path, tmp_path: Path, monkeypatch) -> None:
    """The others' budget is what finetune was trained: with another one they are not finished any more."""
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    path = write_study(place, methods="").read_text().replace('method = "finetune"', 'method = "finetune"\nepochs = 1')
    (tmp_path / "small.toml").write_text(path)
    with pytest.raises(UsageError, match="epochs is 2.0 there, 1.0 asked.*--overwrite"):
        study(str(tmp_path / "small.toml"), run=str(tmp_path / "run"), threads=1)
    study(str(tmp_path / "small.toml"), run=str(tmp_path / "run"), threads=1, overwrite=True)
    budgets = {cell["tokens"] for name, cell in finished(tmp_path / "run").items() if "step-by-step" in name}
    trained = {cell_.trained_tokens(cell) for name, cell in finished(tmp_path / "run").items() if "finetune" in name}
    assert budgets == trained and len(list((tmp_path / "run" / "cells").glob("*.replaced"))) == 4
    monkeypatch.setattr(cell_, "train", None)
    study(str(tmp_path / "small.toml"), run=str(tmp_path / "run"), threads=1)  # without the flag nothing is left to do


def test_verify_runs_a_cell_again_and_says_when_it_is_off(place: Path, tmp_path: Path) -> None:
    path = place / "run" / "cells" / "words_tiny_step-by-step_given_fold0_seed0.json"
    found = study(str(place / "small.toml"), run=str(tmp_path / "run"), verify=str(path), threads=1)
    test = found["tests"]["words"]
    assert found["verified"] and found["same_inputs"] and test["same_predictions"] == test["n"]
    wrong = {**cell_.load(path), "tests": {"words": {**cell_.load(path)["tests"]["words"], "accuracy": 0.9}}}
    cell_.write(tmp_path / "wrong.json", wrong)
    fake = {**wrong, "tests": {"words": {**wrong["tests"]["words"], "accuracy": test["now"]}}}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as m:
        m.setattr(cell_, "run", lambda *a, **k: (tmp_path / "run" / "verify" / wrong["cell"]).mkdir(parents=True) or fake)
        with pytest.raises(GateError, match="does not repeat within 2 points"):
            study(str(place / "small.toml"), run=str(tmp_path / "run"), verify=str(tmp_path / "wrong.json"), threads=1)
    (tmp_path / "broken.json").write_text(path.read_text()[:-9])
    with pytest.raises(UsageError, match="no file of a finished cell, or it is damaged"):
        study(str(place / "small.toml"), run=str(tmp_path / "run"), verify=str(tmp_path / "broken.json"))
    with pytest.raises(UsageError, match="small.toml is not in benchmarks/studies/"):
        study(verify=str(path), run=str(tmp_path / "run"))


# Rows and corpora


def spec_of(tmp_path: Path, text: str) -> Study:
    (tmp_path / "s.toml").write_text(text)
    return read(tmp_path / "s.toml")


def material_of(tmp_path: Path, teacher: str, top: str = "", data: str = "", methods: str = "") -> tuple[Material, list[Cell]]:
    (tmp_path / "data").mkdir(exist_ok=True)
    for split, n in (("train", 40), ("dev", 10), ("test", 8)):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, n)))
    spec = spec_of(tmp_path, f"""
title = "t"
{top}
[data.words]
task = "wordmath"
source = "{tmp_path}/data"
{data}
[students.tiny]
student = "none"
[teachers.t.words]
{teacher}
[methods.finetune]
method = "finetune"
[methods.step-by-step]
method = "step-by-step"
{methods}
""")
    return Material(spec, tmp_path / "run"), cells(spec)


def test_smaller_shares_lie_in_larger_ones_and_all_methods_see_the_same(tmp_path: Path) -> None:
    material, planned = material_of(tmp_path, 'column = {rationale = "why", stated = "said"}',
                                    "fractions = [0.25, 0.5, 1.0]\nseeds = [0, 1]")
    ids = {(c.method, c.seed, c.fraction): [row.id for row in material.rows.splits(c)["train"]] for c in planned}
    for seed in (0, 1):
        assert [len(ids["finetune", seed, f]) for f in (0.25, 0.5, 1.0)] == [10, 20, 40]
        assert set(ids["finetune", seed, 0.25]) < set(ids["finetune", seed, 0.5])
        assert all(ids["finetune", seed, f] == ids["step-by-step", seed, f] for f in (0.25, 0.5, 1.0))
    assert ids["finetune", 0, 0.5] != ids["finetune", 1, 0.5]


@pytest.mark.parametrize("kind", ["column", "run"])
def test_without_labels_nothing_that_a_label_told_is_left(kind: str, tmp_path: Path) -> None:
    teacher = 'column = {rationale = "why", stated = "said"}'
    if kind == "run":
        stage = runs.Stage(tmp_path / "taught", "teach", {}, {})
        entries = [{"id": row["id"], "sample": 0, "input": row["input"], "label": row["label"], "rationale": row["why"],
                    "answer": row["said"], "verdict": "verified" if i % 3 else "wrong", "hint": i == 4}
                   for i, row in enumerate(rows("train", 40))]
        (stage.path / "corpus.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        stage.done({"teacher": "t", "licence": "l"}, [stage.path / "corpus.jsonl"])
        teacher = f'run = "{tmp_path}/taught"'
    material, planned = material_of(tmp_path, teacher, "labels = [1.0, 0.25, 0.0]")
    by_labels = {c.labels: c for c in planned if c.method == "step-by-step"}
    assert [c.labels for c in planned if c.method == "finetune"] == [1.0, 0.25]  # nothing to learn from without any
    verdicts = {labels: [e["verdict"] for e in material.corpus(c)] for labels, c in by_labels.items()}
    assert sorted(set(verdicts[1.0])) == ["verified", "wrong"] and set(verdicts[0.0]) == {"unlabelled"}
    assert sum(v == "unlabelled" for v in verdicts[0.25]) == 30 - (kind == "run" and len(verdicts[0.25]) < 40)
    assert len(verdicts[0.0]) == (39 if kind == "run" else 40)  # what was told the label is gone
    splits = material.rows.splits(by_labels[0.25])
    assert sum(row.label is not None for row in splits["train"]) == 10
    assert sum(row.label is not None for row in splits["dev"]) == 2  # dev labels are labels too
    assert all(row.label is not None for row in splits["test"])


def test_a_text_in_other_words_is_an_input_of_the_cell_that_trains_on_it(tmp_path: Path) -> None:
    stage = runs.Stage(tmp_path / "words", "teach", {}, {})
    corpus = stage.path / "corpus.jsonl"
    corpus.write_text("{}\n")
    material, planned = material_of(tmp_path, 'column = {rationale = "why", stated = "said"}',
                                    methods=f'[methods.hybrid]\nmethod = "hybrid"\nreworded = "{tmp_path}/words"\n')
    its = {cell.method: material.inputs(cell) for cell in planned}
    assert its["hybrid"] == its["step-by-step"] | {"reworded": runs.sha256(corpus)}
    corpus.write_text("{} \n")
    assert material.inputs(next(c for c in planned if c.method == "hybrid")) != its["hybrid"]
    corpus.unlink()  # a finished cell needs it no more
    assert "reworded" not in material.inputs(next(c for c in planned if c.method == "hybrid"))


def test_the_students_pieces_have_the_other_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("edgedistill.train.initial.shared", lambda student, folder, task, texts, **_: texts())
    stage = runs.Stage(tmp_path / "words", "teach", {}, {})
    corpus = stage.path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": "train-0", "rationale": text, "answer": None}) + "\n"
                              for text in ("zebras and xylophones", None)))
    stage.done({}, [corpus])
    stage.close()
    teacher, words = 'column = {rationale = "why", stated = "said"}', f'reworded = "{tmp_path}/words"\n'
    made = {}
    for with_words in ("", words):
        material, planned = material_of(tmp_path, teacher, methods=f'[methods.hybrid]\nmethod = "hybrid"\n{with_words}')
        made[with_words] = material.student(planned[0])
    assert made[words] == [*made[""], "zebras and xylophones"]


def test_a_hybrid_without_rationales_needs_no_teacher(tmp_path: Path) -> None:
    def planned(settings: str, labels: str = "[1.0, 0.25, 0.0]") -> list[tuple[str | None, float]]:
        found = spec_of(tmp_path, f"""
title = "t"
labels = {labels}
[data.words]
task = "wordmath"
source = "{tmp_path}/data"
[students.tiny]
student = "none"
[methods.hybrid]
method = "hybrid"
{settings}
""")
        return [(cell.teacher, cell.labels) for cell in cells(found)]

    assert planned("rationales = false", "[1.0, 0.25]") == [(None, 1.0), (None, 0.25)]
    for settings in ("rationales = false", "rationales = true"):  # no label and no teacher: nothing to learn from
        with pytest.raises(UsageError, match=r"methods\.hybrid needs a teacher for words: add \[teachers\.NAME\.words\]"):
            planned(settings)


def test_a_missing_or_foreign_teach_run_names_the_command_that_makes_it(tmp_path: Path) -> None:
    material, planned = material_of(tmp_path, f'run = "{tmp_path}/none"', data="folds = 2")
    cell = next(c for c in planned if c.method == "step-by-step")
    told = "edgedistill teach --gguf FILE --task wordmath --data .*/rows/words --run .*--samples 5 .*--soft-targets 20"
    with pytest.raises(UsageError, match=told):
        material.corpus(cell)
    made = (tmp_path / "run" / "rows" / "words" / "train.jsonl").read_text()
    assert len(made.splitlines()) == 58  # all rows: folds need them
    tiny_students.taught_run(tmp_path / "none", 3)
    corpus = tmp_path / "none" / "teach" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("wordmath-train", "other"))
    with pytest.raises(UsageError, match="was taught other rows"):
        material.corpus(cell)


def test_a_plan_whose_hours_are_all_unknown_names_none(tmp_path: Path, capsys) -> None:
    material, planned = material_of(tmp_path, 'column = {rationale = "why", stated = "said"}')
    Plan(material.study, material, planned, {}).show(set())
    assert f"  time      {len(planned)} cells of unknown time\n" in capsys.readouterr().err


def test_a_carved_or_trimmed_student_is_made_once_for_all_methods(tmp_path: Path) -> None:
    tiny_students.t5().save(tmp_path / "tiny", {}, "# card\n")
    material, planned = material_of(tmp_path, 'column = {rationale = "why", stated = "said"}')
    spec = spec_of(tmp_path, (tmp_path / "s.toml").read_text().replace(
        'student = "none"', f'student = "{tmp_path}/tiny"\nvocabulary = 200'))
    material = Material(spec, tmp_path / "run")
    folders = {material.student(cell) for cell in cells(spec)}
    assert folders == {str(tmp_path / "run" / "students" / "tiny_words")}
    weights = Path(folders.pop()) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    material.student(cells(spec)[0])
    assert weights.stat().st_mtime_ns == before and weights.stat().st_size < (tmp_path / "tiny" / weights.name).stat().st_size


@pytest.mark.parametrize("rationales", [True, False])
def test_a_students_pieces_are_of_rationales_that_some_cell_learns(rationales: bool, tmp_path: Path, monkeypatch) -> None:
    material, planned = material_of(tmp_path, 'column = {rationale = "why", stated = "said"}',
                                    f"[settings]\nrationales = {str(rationales).lower()}")
    seen: list[str] = []
    monkeypatch.setattr("edgedistill.train.initial.shared", lambda place, folder, task, texts, **_: seen.extend(texts()))
    material.student(planned[0])
    assert all((row["why"] in seen) == rationales for row in rows("train", 40))


# The study file


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_each_study_file_can_be_planned_without_a_hub(path: Path) -> None:
    spec = read(path)
    planned = cells(spec)
    assert planned and len({cell.name for cell in planned}) == len(planned)
    done: set[Cell] = set()
    for cell in planned:
        assert set(needs(spec, planned, cell).values()) <= done  # in an order in which each finds what it needs
        done.add(cell)
    assert spec.theirs and all({"data", "method", "accuracy", "source"} <= set(value) for value in spec.theirs)
    assert ("not run here" in spec.note) == (not path.stem.endswith(("-cpu", "-gpu")) and path.stem != "svamp-methods")


def test_there_are_study_files_in_both_sizes() -> None:
    names = {path.stem for path in STUDIES}
    for name in ("dss-table1", "dss-data-curves", "dss-teachers", "fu-specialize", "lee-kd-reparam", "svamp-folds",
                 "hybrid-ablation"):
        assert {name, f"{name}-cpu"} <= names


@pytest.mark.parametrize("path", [path for path in STUDIES if path.stem.endswith("-cpu")], ids=lambda path: path.stem)
def test_the_small_studies_find_their_rows(path: Path, tmp_path: Path) -> None:
    if not os.environ.get("EDGEDISTILL_DATA"):
        pytest.skip("EDGEDISTILL_DATA is not set: give the folder of the public sets")
    spec = read(path)
    material = Material(spec, tmp_path)
    for cell in {(c.data, c.teacher): c for c in cells(spec)}.values():
        if cell.teacher and spec.teachers[cell.teacher][cell.data].run:
            continue  # made by teach
        splits = material.rows.splits(cell)
        assert min(map(len, splits.values())) >= 80 and material.rows.tests(cell)
        assert not cell.teacher or len(material.corpus(cell)) > 0.9 * len(splits["train"])


@pytest.mark.parametrize(("old", "new", "message"), [
    ('method = "step-by-step"', 'method = "step-by-stp"', "there is no method 'step-by-stp'; did you mean 'step-by-step'"),
    ('method = "step-by-step"', 'method = "hybrid2"', "methods.step-by-step: there is no method 'hybrid2'"),
    ('title = "small"', 'titel = "small"', "there is no key 'titel'; did you mean 'title'"),
    ("epochs = 2", 'epochs = "two"', "settings.epochs = 'two': a number is wanted"),
    ("epochs = 2", "epoch = 2", "settings: there is no key 'epoch'; did you mean 'epochs'"),
    ("folds = 2", "folds = 1", "data.words.folds = 1: give at least 2"),
    ('task = "wordmath"', 'task = "wordmaths"', "there is no task 'wordmaths'"),
    ('budget = "finetune"', 'budget = "fintune"', "budget: there is no entry 'fintune'"),
    ("[teachers.given.words]", "[teachers.given.word]", "there is no entry 'word'"),
    ("[students.tiny]", "[students.ti_ny]", "students.ti_ny: a name has letters, digits and dashes"),
    ("[students.tiny]", "[students.tiny]\nonly = {folt = [0]}", "there is no axis 'folt'"),
    ("[students.tiny]", "[students.tiny]\nseed = 3", "there is no key 'seed'"),
    ('title = "small"', "title = 3", "title = 3: a text is wanted"),
    ('title = "small"', 'title = "small"\npapers = ["dss"]', "papers.toml: no such study file"),
    ('title = "small"', 'title = "small"\nlabels = [2]', "labels has 2: a share"),
    ('title = "small"', 'title = "small', "not valid TOML"),
    ('title = "small"', 'title = "small"\nseeds = [-1]', "seeds has -1: give whole numbers from 0"),
    ("[students.tiny]", "[students.tiny]\nonly = {teacher = ['gven']}", "tiny.only.teacher: there is no 'gven' in the study"),
    ("[students.tiny]", "[data.words.test]\nsource = 'x'\n[students.tiny]", "has its own splits; leave out its dev and test"),
    ('budget = "finetune"', 'budget = "kd"\n[methods.kd]\nmethod = "logit-kd"\n'
     'mentor = {method = "finetune", student = "tiny"}', "would have to be trained before itself"),
    ('method = "step-by-step"', 'method = "logit-kd"', "logit-kd has mentor = {method"),
])
def test_a_wrong_key_or_value_is_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError) as caught:
        study(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unset_variable_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace(f"{tmp_path}/data", "$NOWHERE/data"))
    with pytest.raises(UsageError, match="NOWHERE is not set"):
        study(str(path))


def test_only_narrows_and_needs_are_met_first(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, """
title = "t"
budget = "finetune"
[data.a]
task = "wordmath"
source = "none"
folds = 3
[data.b]
task = "wordmath"
source = "none"
only = {student = ["large"]}
[students.small]
student = "none"
[students.large]
student = "none"
only = {method = ["finetune"]}
[methods.kd]
method = "logit-kd"
mentor = {method = "finetune", student = "large"}
only = {fold = [0]}
[methods.finetune]
method = "finetune"
""")
    names = [cell.name for cell in cells(spec)]
    assert sorted(names) == sorted([f"a_{s}_finetune_fold{f}_seed0" for s in ("small", "large") for f in range(3)]
                                   + ["a_small_kd_fold0_seed0", "b_large_finetune_seed0"])
    at = names.index("a_small_kd_fold0_seed0")
    assert {"a_large_finetune_fold0_seed0", "a_small_finetune_fold0_seed0"} <= set(names[:at])
    with pytest.raises(UsageError, match="needs the cell of finetune with large on the same rows"):
        cells(spec_of(tmp_path, (tmp_path / "s.toml").read_text().replace('only = {method = ["finetune"]}',
                                                                          'only = {fold = [1]}')))


def test_several_mentors_are_the_cells_of_other_seeds(tmp_path: Path) -> None:
    text = """
title = "t"
seeds = [0, 1, 2]
[data.a]
task = "wordmath"
source = "none"
folds = 2
[students.s]
student = "none"
[methods.kd]
method = "logit-kd"
mentor = {method = "finetune", student = "s", seeds = [1, 2]}
only = {seed = [0]}
[methods.finetune]
method = "finetune"
"""
    spec = spec_of(tmp_path, text)
    planned = cells(spec)
    cell = next(cell for cell in planned if cell.name == "a_s_kd_fold1_seed0")
    names = [each.name for each in mentors(needs(spec, planned, cell))]
    assert names == ["a_s_finetune_fold1_seed1", "a_s_finetune_fold1_seed2"]
    assert all([each.name for each in planned].index(name) < planned.index(cell) for name in names)
    # With a part of the labels the mentors must have seen the same ones.
    half = text.replace("title", "labels = [0.5]\ntitle", 1) + "\n[teachers.t.a]\ncolumn = {rationale = 'why'}\n"
    with pytest.raises(UsageError, match="would have other shares of rows or labels; add same_rows = true"):
        cells(spec_of(tmp_path, half))
    assert cells(spec_of(tmp_path, half.replace("title", "same_rows = true\ntitle", 1)))
    with pytest.raises(UsageError, match=r"methods.kd.mentor.seeds = .5.: give some of the study's seeds = .0, 1, 2."):
        spec_of(tmp_path, text.replace("seeds = [1, 2]", "seeds = [5]"))


def test_a_mentor_has_seen_no_label_that_its_cell_has_not(tmp_path: Path) -> None:
    text = """
title = "t"
labels = [0.0, 1.0]
[data.a]
task = "wordmath"
source = "none"
[students.s]
student = "none"
[teachers.t.a]
column = {rationale = "why"}
[methods.finetune]
method = "finetune"
[methods.kd]
method = "logit-kd"
mentor = {method = "finetune", student = "s"}
"""
    with pytest.raises(UsageError, match="a_s_kd_t_0-of-labels_seed0 needs the cell of finetune with s on the same rows"):
        cells(spec_of(tmp_path, text))
    assert len(cells(spec_of(tmp_path, text + "only = {labels = [1.0]}"))) == 2


# What the cells say together


def made_up(spec: Study, shares: dict[str, float], n: int = 200) -> dict[str, dict[str, Any]]:
    """Results of cells whose students are right on a share of the same rows, the easiest first; every tenth answer differs."""
    found = {}
    for cell in cells(spec):
        right = [i < shares[cell.method] * n if i % 10 else i < 0.5 * n for i in range(n)]
        found[cell.name] = {
            "commit": "c", "groups": None, "config": {"axes": cell.axes()}, "seconds": 60.0,
            "train": {"parameters": 1e6, "questions": 50, "tokens_per_question": 10.0, "epochs": 2.0, "best_dev_accuracy": 0.5},
            "tests": {"a": {"predictions": [{"id": f"{cell.fold}-{i}", "correct": r} for i, r in enumerate(right)]}}}
    return found


def methods_spec(tmp_path: Path, names: str, top: str = "") -> Study:
    return spec_of(tmp_path, f"""
title = "t"
baseline = ["base"]
{top}
[data.a]
task = "wordmath"
source = "none"
folds = 2
[students.s]
student = "none"
""" + "".join(f'[methods.{name}]\nmethod = "finetune"\n' for name in names.split()))


def test_best_is_bold_only_where_it_is_better_than_the_next(tmp_path: Path) -> None:
    spec = methods_spec(tmp_path, "base near far")
    found = summary(spec, cells(spec), made_up(spec, {"base": 0.3, "near": 0.69, "far": 0.7}), {})
    assert [e["mark"] for e in found["entries"]] == [None, "tied", "tied"]
    assert "**" not in markdown(found) and markdown(found).count(" =") >= 2
    found = summary(spec, cells(spec), made_up(spec, {"base": 0.3, "near": 0.5, "far": 0.7}), {})
    assert [e["mark"] for e in found["entries"]] == [None, None, "best"] and "| **" in markdown(found)
    behind = [e["behind"] for e in found["entries"]]
    assert behind[2] is None and behind[0]["difference"] > behind[1]["difference"] > 0 and behind[1]["p_holm"] < 0.05
    against = [e["against"] for e in found["entries"]]
    assert against[0] is None and [a["baseline"] for a in against[1:]] == ["base", "base"]
    assert [a["p_holm"] for a in against[1:]] == holm([a["p"] for a in against[1:]])
    assert [bar["difference"] for bar in found["bars"][0]["bars"]] == [None, against[1]["difference"], against[2]["difference"]]


def test_rows_of_another_set_are_counted_for_every_fold(tmp_path: Path) -> None:
    spec = methods_spec(tmp_path, "base")
    made = made_up(spec, {"base": 0.5}, 20)
    for fold, result in enumerate(made.values()):  # right on all rows of the other set in one fold, on none in the other
        result["tests"]["b"] = {"predictions": [{"id": str(i), "correct": fold == 0} for i in range(10)]}
    entry = next(e for e in summary(spec, cells(spec), made, {})["entries"] if e["test"] == "b")
    assert (entry["n"], entry["accuracy"], sorted(entry["replicas"])) == (20, 0.5, [0.0, 1.0])


def test_a_screening_on_one_fold_is_compared_there_and_takes_no_mark(tmp_path: Path) -> None:
    spec = methods_spec(tmp_path, "base far")
    found = made_up(spec, {"base": 0.3, "far": 0.9})
    del found["a_s_far_fold1_seed0"]
    made = summary(spec, cells(spec), found, {})
    base, far = made["entries"]
    assert far["n"] == far["against"]["n"] == 200 and base["n"] == 400
    assert (far["cells"], far["planned"], far["mark"]) == (1, 2, None) and "| 1 of 2 |" in markdown(made)
    assert made["done"] == 3 and made["planned"] == 4


def test_curves_and_the_papers_numbers_are_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "papers.toml").write_text('[them]\nsource = "Them 2020, Table 1"\nvalues = [{data = "a", method = "base", '
                                          'accuracy = 41.5}, {data = "elsewhere", method = "base", accuracy = 12}]\n')
    spec = methods_spec(tmp_path, "base far", 'papers = ["them"]\nfractions = [0.5, 1.0]')
    found = summary(spec, cells(spec), made_up(spec, {"base": 0.3, "far": 0.9}), {})
    assert [[p["fraction"] for p in curve["points"]] for curve in found["curves"]] == [[0.5, 1.0]] * 2
    text = markdown(found)
    assert "| *theirs*:  | `base` |" in text.split("## The papers' numbers")[0] and "Them 2020, Table 1" in text
    assert "| elsewhere |" in text.split("## The papers' numbers")[1]
