"""`eval`: accuracy of a student folder, a bundle or a GGUF teacher on a split, with its interval."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, kit, machine, runs
from edgedistill.errors import UsageError
from edgedistill.progress import Progress, say
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval, majority, paired
from edgedistill.tasks.task import Task

Predict = Callable[[list[Row]], list[str]]


def evaluate(
    subject: str | None = None, *, run: str = defaults.RUN, task: str | None = None, data: str | None = None,
    column: dict[str, str] | None = None, split: str | None = None, compare: str | None = None,
    limit: int | None = None, prompt: str | None = None, exemplars: str | None = None, vote: int = 1,
    threads: int | None = None, seed: int = defaults.SEED,
) -> dict[str, Any]:
    """Answers every row of a split and counts the right ones; returns the result object (DESIGN section 2).

    `subject` is a bundle, a student folder, a GGUF file or a teacher card (default: the run's bundle, else its
    student). `data` defaults to the rows that the run was taught from. `split` defaults to test where there is one,
    else dev. `compare` is another subject for a paired test on the same rows. `prompt`, `exemplars` and `vote` (the
    majority of so many samples) are for GGUF subjects, as in `teach`. Raises `UsageError`.
    """
    threads = threads or machine.cores()
    place = subject or _default_subject(run)
    card = _task(place, run, task)
    name, splits = rows_of(run, card, data, column, seed)
    split = split or next(s for s in ("test", "dev", *splits) if s in splits)
    if split not in splits:
        raise UsageError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    rows = [row for row in splits[split] if row.label is not None][:limit]
    asking = (prompt, exemplars, vote)
    if any(_is_teacher(each) for each in (place, compare) if each) and not task:
        card = whole_card(card, run)
    result = count(place, card, rows, name, split, threads, asking)
    other = None
    if compare:
        gold = [card.label(row) for row in rows]
        theirs, _, other_name, _ = _judge(compare, card, rows, gold, threads, asking)
        other = {"other": other_name, **paired([p["correct"] for p in result["predictions"]], theirs)}
        result["compare"] = other
    subject_name = result["subject"]
    asked = [*([prompt] if prompt else []), *([f"vote{vote}"] if vote > 1 else [])]
    file = _result_file(run, "_".join([subject_name, *asked]), name, split, len(rows), other)
    runs.write_json(file, result)
    low, high = result["ci95"]
    say(f"eval: {subject_name} on {name}/{split}: {result['correct']} of {len(rows)} right, {100 * result['accuracy']:.1f} % "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}); {file}")
    if other:
        say(f"      minus {other['other']}: {100 * other['difference']:+.1f} points "
            f"({100 * other['ci95'][0]:+.1f} to {100 * other['ci95'][1]:+.1f}), p = {other['p']:.3g}")
    return result


def count(place: str, card: Task, rows: list[Row], name: str, split: str, threads: int,
          asking: tuple[str | None, str | None, int] = (None, None, 1)) -> dict[str, Any]:
    """The result object of `place` on labelled rows, not written anywhere; `name` and `split` say which rows they are.

    A reading of a test split is noted (DESIGN section 8). Raises `UsageError`.
    """
    if not rows:
        raise UsageError(f"{name}: no row of {split} has a label, so there is nothing to count")
    outcomes, predictions, subject, precision = _judge(place, card, rows, [card.label(row) for row in rows], threads, asking)
    # The test split is for reporting only: each reading of a public one is noted where the project is developed.
    if split == "test" and not name.startswith("builtin:"):
        note_reading(f"{subject} on {name}")
    prompt, _, vote = asking
    return {
        **machine.origin("eval"), "subject": subject, "precision": precision, "task": card.name, "data": name,
        "rows_sha256": rows_.digest(rows), "split": split, "n": len(rows), "correct": sum(outcomes),
        "accuracy": round(sum(outcomes) / len(rows), 4), "ci95": interval(sum(outcomes), len(rows)),
        "metric": "value" if card.kind in ("equation", "number") else "exact", "compare": None,
        **({"prompt": prompt or card.prompt, "vote": vote} if precision == "gguf" else {}),
        "predictions": predictions}


def _judge(place: str, card: Task, rows: list[Row], gold: list[Any], threads: int, asking: tuple[str | None, str | None, int],
           ) -> tuple[list[bool], list[dict[str, Any]], str, str]:
    """(right or wrong by row, predictions, the subject's name, its precision)."""
    predict, name, precision = _subject(place, card, threads, asking)
    texts = predict(rows)
    outcomes, predictions = [], []
    for row, text, label in zip(rows, texts, gold, strict=True):
        answer = card.parse(text, row.choices)
        outcomes.append(card.same(answer, label))
        predictions.append({"id": row.id, "text": text, "value": answer.value if answer else None,
                            "correct": outcomes[-1]})
    return outcomes, predictions, name, precision


def _subject(place: str, card: Task, threads: int, asking: tuple[str | None, str | None, int]) -> tuple[Predict, str, str]:
    folder = Path(place)
    if (folder / "bundle.json").is_file():
        from edgedistill.edge import Student

        student = Student.load(folder, threads)

        def predict(rows: list[Row]) -> list[str]:
            progress = Progress("eval", len(rows), "rows")
            texts = []
            for row in rows:
                texts.append(student.answer(card.question(row), choices=row.choices).text)
                progress.advance()
            return texts

        return predict, runs.subject_name(place), student.manifest["precision"]
    if folder.is_dir():
        import torch

        from edgedistill.train.students import load

        torch.set_num_threads(threads)
        model = load(folder)
        if torch.cuda.is_available():
            model.model.to("cuda")
        if model.format is None:
            model.set_task(card)
        return (lambda rows: model.answers([card.question(row) for row in rows])), runs.subject_name(place), "torch fp32"
    return _teacher(place, card, threads, *asking)


def _teacher(place: str, card: Task, threads: int, prompt: str | None, exemplars: str | None,
             vote: int) -> tuple[Predict, str, str]:
    """A GGUF model with the task card's prompt: the same path as `teach`. Greedy, or the majority of `vote` samples."""
    from edgedistill.teach import prompter_of
    from edgedistill.teach.asker import Ask, ready
    from edgedistill.teach.completion import Sampling
    from edgedistill.teach.session import row_seed
    from edgedistill.teach.source import resolve
    from edgedistill.teach.verify import judge

    source = resolve(place)
    prompter = prompter_of(card, prompt, exemplars)

    def predict(rows: list[Row]) -> list[str]:
        progress = Progress("eval", vote * len(rows), "answers")
        answers: dict[str, dict[int, tuple[str, str]]] = {row.id: {} for row in rows}  # by seed: (value, text)
        seeds = {row.id: [row_seed(defaults.SEED, row.id, sample) for sample in range(vote)] for row in rows}
        temp = defaults.SAMPLED_TEMP if vote > 1 else defaults.TEMP
        sampling = Sampling(temp, defaults.TOP_K, defaults.TOP_P, defaults.MIN_P)
        with ready(source, prompter, rows, threads=threads, samples=vote) as asker:
            for identity, _ in sorted(asker.too_long):
                say(f"  too long  row {identity}: its prompt and answer exceed the context; counted as wrong")
            fitting = (row for row in rows if (row.id, False) not in asker.too_long)
            for done in asker.ask((Ask(row, row, tuple(seeds[row.id])) for row in fitting), sampling):
                judged = judge(card, done.key, done.text, done.finish)
                if judged["value"] is not None:
                    answers[done.key.id][done.seed] = judged["value"], judged["answer"]
                progress.advance()
        texts = []
        for row in rows:  # in the samples' order, whichever ended first
            its = [answers[row.id][seed] for seed in seeds[row.id] if seed in answers[row.id]]
            winner = majority([value for value, _ in its])
            texts.append(next((text for value, text in its if value == winner), ""))
        return texts

    return predict, source.name, "gguf"


def _is_teacher(place: str) -> bool:
    return not Path(place).is_dir()


def _default_subject(run: str) -> str:
    for stage, folder in (("export", "bundle"), ("train", "student")):
        if runs.finished(run, stage):
            return str(Path(run) / stage / folder)
    raise UsageError(f"{run} holds neither a bundle nor a student: run edgedistill train and export first, or name "
                     "a folder")


def _task(place: str, run: str, task: str | None) -> Task:
    """--task, else the subject's own, else the run's."""
    if task:
        return cards.load(Task, task)
    for name, key in (("bundle.json", ("format", "task")), ("edgedistill.json", ("task",))):
        if (Path(place) / name).is_file():
            data: Any = runs.read_json(Path(place) / name)
            for part in key:
                data = data.get(part) if isinstance(data, dict) else None
            if data:
                return Task.from_dict(data)
    taught = runs.finished(run, "teach")
    return Task.from_dict(taught["task"]) if taught else cards.load(Task, defaults.TASK)


def whole_card(card: Task, run: str) -> Task:
    """A bundle's or student's card with what only a teacher is shown: prompts and worked examples, which they leave out.

    From the run that was taught, else the card of that name. Raises `UsageError` where there is neither.
    """
    taught = runs.finished(run, "teach")
    if card.exemplars or card.prompts:
        return card
    if taught and taught["task"]["name"] == card.name:
        return Task.from_dict(taught["task"])
    try:
        return cards.load(Task, card.name)
    except UsageError as error:
        raise UsageError(f"the task card {card.name} is needed whole, to show a GGUF model its examples: give --run of the run "
                         "that was taught by it") from error


def rows_of(run: str, card: Task, data: str | None, column: dict[str, str] | None,
            seed: int = defaults.SEED) -> tuple[str, dict[str, list[Row]]]:
    """(name, rows by split) of `data`; by default those that the run was taught from, else the card's."""
    taught = runs.finished(run, "teach")
    if data is None and taught:
        folder = Path(run) / "teach" / "data"
        splits = {split: rows_.read_file(folder / f"{split}.jsonl") for split in rows_.SPLITS
                  if (folder / f"{split}.jsonl").is_file()}
        return taught["config"]["data"], splits
    if data and Path(data).is_file():
        # A single file is what the user wants counted, whole; its name may say which split it is.
        name = Path(data).name.split(".")[0]
        return name, {name if name in rows_.SPLITS else "all": rows_.read_file(Path(data), column)}
    dataset = rows_.load(data or card.data or f"builtin:{defaults.TASK}", column, seed, defaults.DEV_SHARE)
    return dataset.name, dataset.splits


def _result_file(run: str, subject: str, data: str, split: str, n: int, other: dict[str, Any] | None) -> Path:
    folder = Path(run) / "eval"
    with runs.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / runs.file_name(subject, data, split, str(n), *([f"vs-{other['other']}"] if other else []))


def note_reading(what: str) -> None:
    """Appends to the log of test readings (DESIGN section 8), in a checkout only."""
    root = kit.checkout()
    named = os.environ.get("EDGEDISTILL_READINGS")
    path = Path(named) if named else root / defaults.READINGS if root else None
    if path is None:
        return
    with runs.disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"what": what, "when": machine.now(), "commit": machine.commit()}) + "\n")
