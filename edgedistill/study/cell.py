"""One cell: its training, what its student is counted on, and its file `cells/NAME.json`; the same again, to verify it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.errors import Error, UsageError
from edgedistill.evaluate import count
from edgedistill.progress import clock, say
from edgedistill.study import grid
from edgedistill.study.grid import Cell, needs
from edgedistill.study.material import Material, link
from edgedistill.study.spec import Study, place
from edgedistill.train import train

_KEYS = {"cell", "config", "inputs", "tokens", "train", "tests", "seconds", "mentor"}


def config(study: Study, cell: Cell) -> dict[str, Any]:
    """What makes a cell what it is, beside the hashes of its inputs; names, no paths."""
    method, student = study.methods[cell.method], study.students[cell.student]
    return json.loads(json.dumps({
        "axes": cell.axes(), "method": method.method, "task": study.data[cell.data].task, "folds": study.data[cell.data].folds,
        "student": _name(student.student), "layers": student.layers, "vocabulary": student.vocabulary,
        "from": _name(student.carve_from), "mentor": method.mentor, "budget": study.budget,
        **{key: _name(value) for key, value in study.settings_of(cell.data, cell.student, cell.method).items()}}))


def load(path: Path) -> dict[str, Any] | None:
    """The finished cell in `path`, None where there is none that is whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = found.pop("sha256") == _digest(found) and found.keys() >= _KEYS
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        return None
    return found if whole else None


def load_all(folder: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """Every whole result of a `cells/` folder, with the cell that it is of."""
    return [(Cell(**found["config"]["axes"]), found) for path in sorted(folder.glob("*.json")) if (found := load(path))]


def read(path: Path) -> dict[str, Any] | None:
    """Like `load`; a damaged file is set aside, and said so."""
    found = load(path)
    if found or not path.is_file():
        return found
    aside = next(p for n in range(1000) if not (p := path.with_suffix(f".damaged{n or ''}")).exists())
    with runs.disk_errors(path):
        path.rename(aside)
    say(f"study: {path.name} is damaged; it is set aside as {aside.name} and the cell is run again")
    return None


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a finished cell with its own checksum: it is there whole, or not at all."""
    with runs.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, {**result, "sha256": _digest(result)})


def trained_tokens(result: dict[str, Any]) -> int:
    """Tokens that went through the model in a finished cell's training, rounds of self-training included."""
    trainings = [result["train"], *result["train"].get("rounds", [])]
    return round(sum(made["tokens_per_question"] * made["questions"] * made["epochs"] for made in trainings))


def outcome(result: dict[str, Any] | None) -> str | None:
    """sha256 of what a finished cell's student answered and how long it was trained: the same for one that was repeated."""
    return result and _digest({"tokens": trained_tokens(result), "texts": {
        name: [prediction["text"] for prediction in test["predictions"]] for name, test in result["tests"].items()}})


def _outcomes(results: Sequence[dict[str, Any] | None]) -> Any:
    """The `outcome` of the one mentor that there is, those of several, or None."""
    found = [outcome(result) for result in results]
    return found if len(found) > 1 else found[0] if found else None


def run(study: Study, material: Material, cell: Cell, *, tokens: int | None, mentors: list[Cell], threads: int,
        max_hours: float | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Trains and counts the cell in `folder`, where an interrupted one goes on; returns its result, not yet written.

    Raises `Stopped` when `max_hours` are over, `UsageError` and `Error`.
    """
    folder = folder or home(material, cell)
    taught, at = material.run(cell), folder / "teach"
    if at.is_symlink() and not at.exists():
        at.unlink()
    if not at.exists():
        link(taught / "teach", at)
    keywords = _keywords(study, material, cell, tokens, mentors)
    student = folder / "train" / "student"
    gone = runs.finished(folder, "train") and not student.is_dir()  # it was not kept
    made = train(run=str(folder), threads=threads, max_hours=max_hours, overwrite=bool(gone), **keywords)
    start, tests = time.monotonic(), {}
    pool = material.rows.pool(cell.data)
    for name, (data, split, rows) in material.rows.tests(cell).items():
        for suffix in ("", "-ood"):  # the checkpoint that was best on another task, where there is one
            if (trained := folder / "train" / f"student{suffix}").is_dir():
                found = count(str(trained), pool.task, rows, data, split, threads)
                tests[name + suffix] = {key: found[key] for key in (
                    "data", "split", "rows_sha256", "n", "correct", "accuracy", "ci95", "metric", "predictions")}
                for prediction in found["predictions"]:
                    if prediction["id"] in pool.group and name == cell.data:
                        prediction["group"] = pool.group[prediction["id"]]
    inputs = {**material.inputs(cell), **{name: digest for name, digest in runs.finished(folder, "train")["inputs"].items()
                                          if name not in ("rows", "corpus")}}
    return {**machine.origin("cell"), "study": study.name, "cell": cell.name, "config": config(study, cell), "inputs": inputs,
            "tokens": tokens, "mentor": _outcomes([load(file(material, mentor)) for mentor in mentors]),
            "threads": threads, "groups": len(set(pool.group.values())) or None,
            "seconds": round(made["seconds"] + time.monotonic() - start, 1), "train": made, "tests": tests}


def prepare(study: Study, material: Material, cell: Cell) -> None:
    """Makes what the cell shares with others: its corpus, its untrained student, the text whose perplexity is watched."""
    material.run(cell)
    material.student(cell)
    if general := study.settings_of(cell.data, cell.student, cell.method).get("general"):
        material.general(general)


def dry_run(study: Study, material: Material, cell: Cell, mentors: list[Cell], threads: int) -> dict[str, Any]:
    """`train --dry-run` of the cell: one real step. Raises `UsageError` and `Error`, also where a mentor is not trained."""
    return train(run=str(material.run(cell)), threads=threads, dry_run=True, **_keywords(study, material, cell, None, mentors))


def _keywords(study: Study, material: Material, cell: Cell, tokens: int | None, mentors: list[Cell]) -> dict[str, Any]:
    """train's, but for the run folder and the machine's."""
    keywords = {"student": material.student(cell), "method": study.methods[cell.method].method, "seed": cell.seed,
                **study.settings_of(cell.data, cell.student, cell.method)}
    if tokens:
        keywords["tokens"] = tokens
    keywords |= {key: place(keywords[key]) for key in ("ood", "reworded") if key in keywords}
    if "general" in keywords:
        keywords["general"] = material.general(keywords["general"])
    keywords["mentor"] = [str(home(material, mentor) / "train" / "student") for mentor in mentors]
    for mentor, at in zip(mentors, keywords["mentor"], strict=True):
        if not Path(at).is_dir():
            raise Error(f"{cell.name} learns from the student of {mentor.name}, which is not trained yet, or was not kept: "
                        f"give the study keep_students = true and remove cells/{mentor.name}.json to have it trained again")
    return keywords


def home(material: Material, cell: Cell) -> Path:
    """The cell's run folder."""
    return material.folder / "cells" / cell.name


def file(material: Material, cell: Cell) -> Path:
    """Where the finished cell is."""
    return material.folder / "cells" / f"{cell.name}.json"


def check(study: Study, material: Material, cell: Cell, result: dict[str, Any], budget: dict[str, Any] | None = None,
          mentors: Sequence[dict[str, Any] | None] = ()) -> list[str]:
    """What the study file, or a finished cell that this one needed, now asks otherwise than the cell was made, in words."""
    inputs = material.inputs(cell)
    found = runs.differences({"config": result["config"], "inputs": {k: v for k, v in result["inputs"].items() if k in inputs}},
                             {"config": config(study, cell), "inputs": inputs})
    if budget and trained_tokens(budget) != result["tokens"]:
        found.append(f"its budget is {result['tokens']} tokens there, {trained_tokens(budget)} now")
    if mentors and all(mentors) and _outcomes(mentors) != result["mentor"]:
        names = " or ".join(str(mentor["cell"]) for mentor in mentors if mentor)
        found.append(f"its mentor {names} was another one there")
    return found


def verify(study: Study, material: Material, cell: Cell, result: dict[str, Any], mentors: list[Cell],
           threads: int) -> dict[str, Any]:
    """Runs the cell once more, in a folder of its own, and compares; returns the result object.

    Raises `UsageError` where the study file or the data are not those of `result`.
    """
    differences = check(study, material, cell, result)
    if differences:
        raise UsageError(f"{cell.name}: the study file and its data are not those of the result: {'; '.join(differences[:3])}")
    folder = material.folder / "verify" / cell.name
    again = run(study, material, cell, tokens=result["tokens"], mentors=mentors, threads=threads, folder=folder)
    tests = {}
    for name, then in result["tests"].items():
        now = again["tests"].get(name)
        if now is None:
            raise Error(f"{cell.name}: it is not counted on {name} any more; give the study file of its commit")
        texts = {p["id"]: p["text"] for p in then["predictions"]}
        same = sum(texts.get(p["id"]) == p["text"] for p in now["predictions"])
        tests[name] = {"then": then["accuracy"], "now": now["accuracy"], "n": now["n"], "same_predictions": same,
                       "within": abs(then["accuracy"] - now["accuracy"]) <= study.tolerance + 1e-9}
    shutil.rmtree(folder)
    return {**machine.origin("verify"), "study": study.name, "cell": cell.name, "of": {
        key: result[key] for key in ("created", "commit", "machine", "versions", "threads")}, "threads": threads,
        "tolerance": study.tolerance, "tests": tests, "seconds": again["seconds"], "same_inputs":
            again["inputs"] == result["inputs"], "verified": all(test["within"] for test in tests.values())}


def drop_students(study: Study, material: Material, planned: list[Cell], results: dict[str, Any]) -> None:
    """Removes the weights of finished cells, but for mentors that another cell still needs."""
    wanted = {mentor for cell in planned if cell.name not in results for mentor in grid.mentors(needs(study, planned, cell))}
    for cell in planned:
        if cell.name in results and cell not in wanted:
            for folder in (home(material, cell) / "train").glob("student*"):
                shutil.rmtree(folder)


def told(result: dict[str, Any]) -> str:
    """One line on a finished cell."""
    tests = ", ".join(f"{name} {100 * test['accuracy']:.1f} % of {test['n']}" for name, test in result["tests"].items())
    return f"{tests or 'no test rows'}; dev {100 * result['train']['best_dev_accuracy']:.1f} %, {clock(result['seconds'])}"


def _name(value: Any) -> Any:
    """A text that leads to a place as the place's name."""
    return Path(value).name if isinstance(value, str) and (Path(value).is_absolute() or "$" in value) else value


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
