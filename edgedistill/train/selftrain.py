"""Self-training: before each further round the student answers the training questions that have no label, several times each;
where most of its answers agree, that is the question's label in the next round, which begins again from the untrained student.

A round lies in `train/rounds/N/` as a training of its own, with `pseudo.jsonl`: one line a question with its votes, appended
as they are counted. The rows are those of the training split without a gold label; no other row is ever asked.
"""

from __future__ import annotations

import gc
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgedistill import defaults, runs
from edgedistill.errors import Stopped
from edgedistill.progress import Progress, say
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import majority
from edgedistill.tasks.task import Task
from edgedistill.train.fit import Job, fit
from edgedistill.train.methods import Question
from edgedistill.train.students import Student, load

CHUNK = 16  # questions answered together: a chunk is sampled as a whole, so that a resumed one has the same samples


def fit_rounds(stage: Any, job: Job, rows: list[Row], rounds: int,
               ask: Callable[[list[Row]], list[Question]]) -> dict[str, Any]:
    """`fit` after `rounds` rounds of self-training; each of them, and the last training, has its share of the `tokens`.

    `rows` are the training rows, `ask` makes questions of them. Resumes in the round it was in. Raises as `fit` does, and
    `Stopped` when time is over.
    """
    unlabelled = [row for row in rows if row.label is None]
    if not unlabelled:
        say("train: every question has a label, so there is nothing to train itself on; no rounds")
        return fit(stage, job)
    job = replace(job, tokens=job.tokens and job.tokens / (rounds + 1))
    told, inputs = [], stage.inputs
    for n in range(1, rounds + 1):
        say(f"train: round {n} of {rounds} of self-training on {len(unlabelled)} questions without a label")
        inner = runs.Stage(stage.path / "rounds", str(n), {**stage.config, "round": n}, inputs)
        try:
            made = inner.finished or fit(inner, job)
            gc.collect()  # the trainer's
            entries = _answered(inner.path, job, unlabelled, stage.config["seed"], n)
        finally:
            inner.close()
            stage.checkpoint()  # the time of a round counts even if it was stopped
        answers = {entry["id"]: entry["answer"] for entry in entries if entry["taken"]}
        say(f"train: {len(answers)} of {len(unlabelled)} questions have a label by {defaults.SELF_SHARE:.0%} of "
            f"{defaults.SELF_SAMPLES} answers")
        inputs = {**stage.inputs, "pseudo": runs.sha256(inner.path / "pseudo.jsonl")}
        told.append({**{key: made[key] for key in ("questions", "steps", "epochs", "tokens_per_question", "best_dev_accuracy",
                                                   "seconds")},
                     "asked": len(unlabelled), "taken": len(answers), "pseudo_sha256": inputs["pseudo"]})
        job = replace(job, questions=ask([replace(row, label=answers.get(row.id, row.label)) for row in rows]), resume=False)
    return fit(stage, replace(job, rounds=told))


def _answered(folder: Path, job: Job, rows: list[Row], seed: int, n: int) -> list[dict[str, Any]]:
    """The lines of `pseudo.jsonl`, those that are missing made by the round's student, which goes when all are there."""
    journal = runs.Journal(folder / "pseudo.jsonl")
    try:
        done = {entry["id"] for entry in journal.rows}
        if len(done) < len(rows):
            student = load(folder / "student")
            if torch.cuda.is_available():
                student.model.to("cuda")
            origin = {"round": n, "student": runs.sha256(folder / "student" / "model.safetensors"), "seed": seed,
                      "temperature": defaults.VOTE_TEMP}
            progress = Progress("self-training", len(rows) - len(done), "questions")
            for at in range(0, len(rows), CHUNK):
                chunk = rows[at:at + CHUNK]
                if {row.id for row in chunk} <= done:
                    continue
                if time.monotonic() > job.deadline:
                    raise Stopped(f"the time is over after {len(journal.rows)} of {len(rows)} questions, which are kept; the "
                                  "same command goes on from there")
                torch.manual_seed(random.Random(f"self-{seed}-{n}-{at}").getrandbits(63))
                for entry in votes(student, job.card, chunk):
                    if entry["id"] not in done:
                        journal.append({**entry, **origin})
                        progress.advance()
        shutil.rmtree(folder / "student", ignore_errors=True)  # as large as the last one, and nobody's any more
        return journal.rows
    finally:
        journal.close()


def votes(student: Student, card: Task, rows: list[Row]) -> list[dict[str, Any]]:
    """{id, input, answer, value, votes, share, samples, taken} of each row: the value that most of the student's samples came
    to, in its most frequent spelling. `taken`: by SELF_SHARE of all samples, those counted that state no answer."""
    k = defaults.SELF_SAMPLES
    ids = student.generate([card.question(row) for row in rows], batch_size=len(rows) * k, samples=k,
                           temperature=defaults.VOTE_TEMP)
    found = []
    for at, row in enumerate(rows):
        answers = [card.parse(student.answer(its), row.choices) for its in ids[at * k:(at + 1) * k]]
        value = majority([answer.value for answer in answers if answer])
        text = majority([answer.text for answer in answers if answer and answer.value == value])
        count = Counter(answer.value for answer in answers if answer)
        share = count[value] / k if value is not None else 0.0
        found.append({"id": row.id, "input": row.input, "answer": text, "value": value, "votes": dict(count), "share": share,
                      "samples": k, "taken": share >= defaults.SELF_SHARE})
    return found
