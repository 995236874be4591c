"""`teach --compare-prompts`: every way to ask, measured on the dev rows, instead of guessed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.errors import UsageError
from edgedistill.progress import Progress, say
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval, paired
from edgedistill.tasks.task import Task
from edgedistill.teach import digest, read_exemplars, style_of
from edgedistill.teach.asker import Ask, Local
from edgedistill.teach.completion import Sampling
from edgedistill.teach.engine import Engine
from edgedistill.teach.prompts import Prompter
from edgedistill.teach.source import Source, resolve
from edgedistill.teach.verify import judge


def compare_prompts(
    gguf: str | None = None, *, run: str = defaults.RUN, task: str = defaults.TASK, data: str | None = None,
    column: dict[str, str] | None = None, prompts: tuple[str, ...] = (), exemplars: str | None = None,
    limit: int | None = None, parallel: int | None = None, seed: int = defaults.SEED, ctx_size: int | None = None,
    gpu_layers: int = 0, threads: int | None = None, form: str | None = None, overwrite: bool = False,
) -> dict[str, Any]:
    """Asks the labelled dev rows (the first `limit`) in each of the card's styles, greedily; returns the result object.

    `prompts` holds for each {prompt, n, correct, accuracy, ci95, generated_tokens, rows_per_s, behind}: `behind` is the
    paired test of the best against it. Right is what could be trained on: of an executable prompt also its equations hold.
    Test rows are never read. Writes `run/prompts/`; interrupted, the styles that were
    finished are kept. Raises `UsageError` without labelled dev rows.
    """
    card = cards.load(Task, task)
    for name in prompts:
        style_of(card, name)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 row is needed")
    if not (data or card.data):
        raise UsageError(f"the task {card.name} names no data; give --data FILE.jsonl")
    dataset = rows_.load(data or card.data, column, seed, defaults.DEV_SHARE)
    rows = [row for row in dataset.splits.get("dev", []) if row.label is not None][:limit]
    if not rows:
        raise UsageError(f"{dataset.name} has no dev rows with labels to compare prompts on")
    for row in rows:
        card.label(row)  # an unreadable one is an error now
    pool = read_exemplars(exemplars, card) if exemplars else None
    source = resolve(gguf or defaults.TEACHER)
    config = {"task": card.name, "data": dataset.name, "rows": len(rows), "teacher": source.name, "form": form or "auto",
              "prompts": list(prompts or card.styles()), **({"exemplars": Path(exemplars).name} if exemplars else {})}
    inputs = {"teacher": source.sha256, "rows": rows_.digest(rows), "card": digest(card.to_dict()), "exemplars": digest(
        [vars(e) for e in pool or ()])}
    stage = runs.Stage(run, "prompts", config, inputs, overwrite)
    try:
        if not stage.finished:
            journal = runs.Journal(stage.path / "journal.jsonl")
            engine = Engine(source.path, threads=threads or machine.cores(), gpu_layers=gpu_layers)
            try:
                done = {entry["prompt"] for entry in journal.rows}
                for name in config["prompts"]:
                    if name in done:
                        continue
                    try:
                        prompter = Prompter(card, card.style(name), pool)
                        asker = Local(engine, source, prompter, rows, form=form, parallel=parallel, ctx_size=ctx_size)
                    except UsageError as error:
                        say(f"prompt {name} is left out: {error}")
                        continue
                    journal.append({"prompt": name, **_measure(asker, rows, name)})
                    stage.checkpoint()
                if not journal.rows:
                    raise UsageError(f"none of the prompts of {card.name} can be put to this teacher")
            finally:
                engine.close()
                journal.close()
            stage.done(_result(journal.rows, card, source, dataset.name, len(rows)), [journal.path])
        result = stage.finished or runs.finished(run, "prompts")["result"]
    finally:
        stage.close()
    _show(result)
    return result


def _measure(asker: Local, rows: list[Row], name: str) -> dict[str, Any]:
    progress, start = Progress(f"prompt {name}", len(rows), "rows", settle=asker.slots), time.monotonic()
    right, tokens = set(), 0
    asks = (Ask(row, row, (0,)) for row in rows if (row.id, False) not in asker.too_long)
    for done in asker.ask(asks, Sampling()):
        judged = judge(asker.task, done.key, done.text, done.finish, asker.prompter.style)
        right |= {done.key.id} if judged["verdict"] == "verified" else set()
        tokens += done.generated_tokens
        progress.advance(note=f"{len(right)} right")
    progress.close(f"{len(right)} right")
    seconds = time.monotonic() - start
    return {"correct": [row.id in right for row in rows], "generated_tokens": tokens, "shared_tokens": len(asker.prefix),
            "own_tokens": round(asker.own, 1), "rows_per_s": round(len(rows) / seconds, 3)}


def _result(measured: list[dict[str, Any]], card: Task, source: Source, data: str, n: int) -> dict[str, Any]:
    # Of equally good ones the one with the fewest new tokens is the best.
    best = max(measured, key=lambda entry: (sum(entry["correct"]), -entry["generated_tokens"]))
    prompts = []
    for entry in sorted(measured, key=lambda entry: (-sum(entry["correct"]), entry["generated_tokens"])):
        correct = sum(entry["correct"])
        prompts.append({**entry, "n": n, "correct": correct, "accuracy": round(correct / n, 4), "ci95": interval(correct, n),
                        "behind": None if entry is best else paired(best["correct"], entry["correct"])})
    return {**machine.origin("prompts"), "teacher": source.name, "task": card.name, "data": data, "split": "dev",
            "best": best["prompt"], "prompts": prompts}


def _show(result: dict[str, Any]) -> None:
    say(f"prompts of {result['task']} for {result['teacher']}, {result['prompts'][0]['n']} dev rows of {result['data']}")
    say(f"  {'prompt':16} {'right':>6} {'95 % interval':>15} {'rows/s':>7} {'new tokens':>11}  behind the best")
    for entry in result["prompts"]:
        low, high = entry["ci95"]
        behind = "" if entry["behind"] is None else (
            f"{100 * entry['behind']['difference']:.1f} points (p = {entry['behind']['p']:.2g})")
        say(f"  {entry['prompt']:16} {100 * entry['accuracy']:5.1f}% {100 * low:6.1f} to {100 * high:5.1f} "
            f"{entry['rows_per_s']:7.2f} {entry['generated_tokens'] / entry['n']:11.1f}  {behind}")
    say(f"best: --prompt {result['best']}; to make it the card's own: prompt = \"{result['best']}\"")
