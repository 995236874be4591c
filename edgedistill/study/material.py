"""What cells share: a corpus a teacher and the untrained student of one size. Made when first needed.

`corpora/KEY/` is a run folder with a finished `teach` stage, as `teach` leaves it; every cell on these rows links to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.errors import UsageError
from edgedistill.study.grid import Cell, cells
from edgedistill.study.rows import Rows
from edgedistill.study.spec import Study, place
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval
from edgedistill.tasks.task import Task
from edgedistill.teach import read_corpus
from edgedistill.train import reworded
from edgedistill.train.methods import given


class Material:
    """Corpora and untrained students of one study, in its folder, and its `rows`."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder, self.rows = study, folder, Rows(study)
        self._taught: dict[str, list[dict[str, Any]]] = {}
        self._digests: dict[str, dict[str, str]] = {}

    def corpus(self, cell: Cell) -> list[dict[str, Any]]:
        """The teacher's texts for the training rows; what was known by a label that is gone is not known any more."""
        if not cell.teacher:
            return []
        train = self.rows.splits(cell)["train"]
        if not self._teach_run(cell):
            return given(self.rows.pool(cell.data, cell.teacher).task, train)
        labels = {row.id: row.label for row in train}
        found = []
        for entry in self._written(cell):
            if entry["id"] not in labels:
                continue
            if labels[entry["id"]] is None and entry["label"] is not None:
                if entry.get("hint"):
                    continue
                entry = {**entry, "label": None,
                         "verdict": "unlabelled" if entry["verdict"] in ("verified", "wrong") else entry["verdict"]}
            found.append(entry)
        return found

    def run(self, cell: Cell) -> Path:
        """The run folder whose `teach` stage holds the cell's rows and corpus."""
        pool, splits, corpus = self.rows.pool(cell.data, cell.teacher), self.rows.splits(cell), self.corpus(cell)
        path, text = self.folder / "corpora" / _key(cell), _lines(corpus)
        inputs = {**_hashes(splits, text), "card": _card(pool.task)}
        before = runs.finished(path, "teach")
        if before and before["inputs"] == inputs:
            return path  # without its lock, which another cell may have
        stage = runs.Stage(path, "teach", {"teacher": cell.teacher, "replica": cell.replica}, inputs,
                           overwrite=bool(before) and before["inputs"] != inputs)  # the cells say what it means for them
        try:
            if not stage.finished:
                (stage.path / "data").mkdir(exist_ok=True)
                for split, rows in splits.items():
                    with runs.disk_errors(stage.path):
                        rows_.write(rows, stage.path / "data" / f"{split}.jsonl")
                runs.write_text(stage.path / "corpus.jsonl", text)
                taught = self._teach_run(cell)
                if taught and (soft := taught / "teach" / "soft").is_dir() and not (stage.path / "soft").exists():
                    link(soft, stage.path / "soft")
                stage.done(self._result(cell, splits, corpus), [stage.path / "corpus.jsonl"], task=pool.task.to_dict())
        finally:
            stage.close()
        return path

    def parts(self, cell: Cell) -> set[str]:
        """What the cell has in common with others that is made by the first of them: no two may make the same at a time."""
        general = self.study.settings_of(cell.data, cell.student, cell.method).get("general")
        return {f"corpus {_key(cell)}", f"student {_student(cell)}", *([f"text {general}"] if general else [])}

    def inputs(self, cell: Cell) -> dict[str, str]:
        """sha256 of the rows, the corpus and the reworded rows that the cell learns from, and of the rows it is counted on."""
        if _key(cell) not in self._digests:
            self._digests[_key(cell)] = {**_hashes(self.rows.splits(cell), _lines(self.corpus(cell))),
                                         "card": _card(self.rows.pool(cell.data).task), **{
                f"test {name}": rows_.digest(rows) for name, (_, _, rows) in self.rows.tests(cell).items()}}
        found = self._digests[_key(cell)]
        other_words = self.study.settings_of(cell.data, cell.student, cell.method).get("reworded")
        if other_words and (corpus := Path(place(other_words)) / "teach" / "corpus.jsonl").is_file():
            found = found | {"reworded": runs.sha256(corpus)}
        return found

    def student(self, cell: Cell) -> str:
        """What `train` takes: the student's place, or the folder of the carved or trimmed one, which all cells on these rows
        share. Its pieces are those of the training and dev rows, of their teachers' answers, and of the rationales that some
        cell learns."""
        from edgedistill.train.initial import shared

        card = self.study.students[cell.student]

        def texts() -> list[str]:
            found, task = [], self.rows.pool(cell.data).task
            told = {other.teacher for other in cells(self.study) if other.data == cell.data and self.study.settings_of(
                other.data, other.student, other.method).get("rationales", True)}
            for teacher in [None, *(name for name, per_data in self.study.teachers.items() if cell.data in per_data)]:
                whole = replace(cell, fraction=1.0, labels=1.0, teacher=teacher)
                splits = self.rows.splits(whole)
                for row in [*splits["train"], *splits["dev"]]:
                    label = task.label(row)
                    found += [task.question(row), *([label.text] if label else [])]
                found += [text for entry in self.corpus(whole)
                          for text in (entry["rationale"] if teacher in told else None, entry["answer"]) if text]
            for method in self.study.methods:
                if run := self.study.settings_of(cell.data, cell.student, method).get("reworded"):
                    found += [entry["rationale"] for entries in reworded.read(place(run)).values() for entry in entries
                              if entry["rationale"]]
            return list(dict.fromkeys(found))

        return shared(place(card.student), self.folder / "students" / _student(cell), self.rows.pool(cell.data).task, texts,
                      layers=card.layers, vocabulary=card.vocabulary, carve_from=place(card.carve_from))

    def general(self, source: str) -> str:
        """A text file for `train`'s general: `source` itself, or the texts of a data set, one row a line."""
        path = Path(place(source))
        if not path.is_dir() and not path.name.endswith((".jsonl", ".jsonl.gz", ".csv", ".parquet")):
            return str(path)
        rows = rows_.read_file(path) if path.is_file() else rows_.load(str(path)).splits["train"]
        text = self.folder / "general.txt"
        lines = "".join(" ".join(f"{row.input} {row.rationale or ''}".split()) + "\n" for row in rows)
        if not text.is_file() or text.read_text(encoding="utf-8") != lines:
            runs.write_text(text, lines)
        return str(text)

    def _teach_run(self, cell: Cell) -> Path | None:
        run = self.study.teachers[cell.teacher][cell.data].run if cell.teacher else ""
        return Path(place(run)) if run else None

    def _written(self, cell: Cell) -> list[dict[str, Any]]:
        """The corpus of a finished teach run. Raises `UsageError` with the command that makes it."""
        run = self._teach_run(cell)
        if str(run) not in self._taught:
            if not runs.finished(run, "teach"):
                task = self.study.data[cell.data].task
                raise UsageError(f"teachers.{cell.teacher}.{cell.data}: {run} has no finished teach stage; make it: "
                                 f"edgedistill teach --gguf FILE --task {task} --data {self._to_teach(cell.data)} --run {run}; "
                                 "add --samples 5 for labels by vote, --soft-targets 20 for specialize")
            entries = read_corpus(run)
            ids = {row.id for row in self.rows.pool(cell.data).everything}
            if not any(entry["id"] in ids for entry in entries):
                raise UsageError(f"teachers.{cell.teacher}.{cell.data}: {run} was taught other rows; make it with --data "
                                 f"{self._to_teach(cell.data)}")
            self._taught[str(run)] = entries
        return self._taught[str(run)]

    def _to_teach(self, data: str) -> Path:
        """A folder of all rows that some cell trains on, for `teach --data`; with folds these are all there are."""
        pool, folder = self.rows.pool(data), self.folder / "rows" / data
        folds = bool(self.study.data[data].folds)
        with runs.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            rows_.write(pool.everything if folds else pool.splits["train"], folder / "train.jsonl")
            rows_.write(pool.splits["dev"], folder / "dev.jsonl")
        return folder

    def _result(self, cell: Cell, splits: dict[str, list[Row]], corpus: list[dict[str, Any]]) -> dict[str, Any]:
        """The keys of `teach`'s result that other verbs read."""
        run = self._teach_run(cell)
        taught = runs.finished(run, "teach") if run else None
        verdicts = Counter(entry["verdict"] for entry in corpus)
        judged = verdicts["verified"] + verdicts["wrong"] + verdicts["unparsed"]
        return {**machine.origin("teach"), "teacher": taught["result"]["teacher"] if taught else cell.teacher or "none",
                "licence": taught["result"]["licence"] if taught else "licence not recorded",
                "data": self.rows.pool(cell.data).name, "rows": len(splits["train"]), "samples": len(corpus),
                "verified": verdicts["verified"],
                "accuracy": round(verdicts["verified"] / judged, 4) if judged else None,
                "ci95": interval(verdicts["verified"], judged) if judged else None,
                "prompt_tokens": 0, "generated_tokens": 0, "seconds": 0.0,
                "rejected": {name: n for name, n in verdicts.items() if name not in ("verified", "unlabelled")}}


def link(target: Path, at: Path) -> None:
    """`at` leads to the folder `target`; a copy where the system allows no links."""
    with runs.disk_errors(at):
        at.parent.mkdir(parents=True, exist_ok=True)
        try:
            at.symlink_to(os.path.relpath(target.resolve(), at.parent.resolve()), target_is_directory=True)
        except OSError:
            shutil.copytree(target, at)


def _key(cell: Cell) -> str:
    return "_".join([cell.data, cell.teacher or "no_teacher", cell.replica])


def _student(cell: Cell) -> str:
    return "_".join([cell.student, cell.data, *([f"fold{cell.fold}"] if cell.fold is not None else [])])


def _card(task: Task) -> str:
    return hashlib.sha256(json.dumps(task.to_dict(), sort_keys=True).encode()).hexdigest()


def _lines(corpus: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in corpus)


def _hashes(splits: dict[str, list[Row]], corpus: str) -> dict[str, str]:
    return {"rows": rows_.digest([*splits["train"], *splits["dev"]]),
            **({"corpus": hashlib.sha256(corpus.encode()).hexdigest()} if corpus else {})}
