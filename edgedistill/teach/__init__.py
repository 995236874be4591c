"""`teach`: a GGUF teacher writes rationales and answers; each is verified and kept with its verdict."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.errors import UsageError
from edgedistill.progress import Progress, clock, say
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval
from edgedistill.tasks.task import Task

TOO_LONG = "prompt_too_long"


def teach(
    gguf: str = defaults.TEACHER, *, run: str = defaults.RUN, task: str = defaults.TASK, data: str | None = None,
    column: dict[str, str] | None = None, samples: int = defaults.SAMPLES, limit: int | None = None,
    parallel: int = defaults.PARALLEL, temp: float | None = None, top_k: int = defaults.TOP_K,
    top_p: float = defaults.TOP_P, min_p: float = defaults.MIN_P, seed: int = defaults.SEED,
    ctx_size: int | None = None, gpu_layers: int = 0, threads: int | None = None, form: str | None = None,
    deterministic: bool = False, overwrite: bool = False,
) -> dict[str, Any]:
    """Teaches the training rows of `data` and returns the result object (DESIGN section 2).

    Writes `teach/journal.jsonl` as samples complete and `teach/corpus.jsonl` in input order; killed at any moment and
    called again, it goes on where it was. `deterministic` decodes one row at a time, so that a row's text does not
    depend on which rows ran beside it (without it, batches differ in their rounding). Raises `UsageError`.
    """
    from edgedistill.teach.source import resolve

    if samples < 1 or parallel < 1:
        raise UsageError("--samples and --parallel must be at least 1")
    card = cards.load(Task, task)
    dataset = rows_.load(data or card.data or _no_data(card), column, seed, defaults.DEV_SHARE)
    rows = _training_rows(dataset, card, limit)
    source = resolve(gguf)
    temp = temp if temp is not None else defaults.TEMP if samples == 1 else defaults.SAMPLED_TEMP
    config = {
        "task": card.name, "data": dataset.name, "rows": len(rows), "samples": samples, "seed": seed, "temp": temp,
        **({"top_k": top_k, "top_p": top_p, "min_p": min_p} if temp > 0 else {}), "form": form or "auto",
        "deterministic": deterministic, "teacher": source.name,
        **({"ctx_size": ctx_size} if ctx_size else {}),  # it decides which rows are too long
    }
    inputs = {"teacher": source.sha256, "rows": rows_.digest(rows), "card": _digest(card.to_dict())}
    stage = runs.Stage(run, "teach", config, inputs, overwrite)
    try:
        if stage.finished:
            say(f"teach: {stage.path} is finished with this configuration; nothing to do")
            return stage.finished
        _snapshot(stage.path, dataset, rows)
        journal = runs.Journal(stage.path / "journal.jsonl")
        try:
            _fill(stage, journal, source, card, rows, samples, parallel=1 if deterministic else parallel, seed=seed,
                  form=form, ctx_size=ctx_size, gpu_layers=gpu_layers, threads=threads or machine.cores(),
                  sampling={"temp": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p})
        finally:
            journal.close()
        return _finish(stage, journal.rows, rows, card, source)
    finally:
        stage.close()


def read_corpus(run: str | Path) -> list[dict[str, Any]]:
    """The corpus of a finished teach stage, one row a sample."""
    with (Path(run) / "teach" / "corpus.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def row_seed(seed: int, identity: str, sample: int) -> int:
    """The sampler's seed of one sample: a hash of (run seed, id, sample), 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{identity}\n{sample}".encode()).digest()[:4], "big")


def judge(task: Task, row: Row, text: str, finish: str) -> dict[str, Any]:
    """What a completion is worth: {rationale, answer, value, verdict}."""
    rationale, stated = task.split(text)
    answer = task.parse(stated, row.choices)
    label = task.label(row)
    if answer is None:
        verdict = "truncated" if finish != "stop" else "unparsed"
    elif label is None:
        verdict = "unlabelled"
    else:
        verdict = "verified" if task.same(answer, label) else "wrong"
    return {"rationale": rationale, "answer": answer.text if answer else None,
            "value": answer.value if answer else None, "verdict": verdict}


def _fill(stage: runs.Stage, journal: runs.Journal, source: Any, task: Task, rows: list[Row], samples: int, *,
          parallel: int, seed: int, form: str | None, ctx_size: int | None, gpu_layers: int, threads: int,
          sampling: dict[str, float]) -> None:
    """Completes the journal: every (id, sample) once."""
    from edgedistill.teach.asker import Asker
    from edgedistill.teach.engine import Request, Sampling

    have = {(entry["id"], entry["sample"]) for entry in journal.rows}
    todo = [(row, sample) for row in rows for sample in range(samples) if (row.id, sample) not in have]
    if not todo:
        return
    verified = 0

    def note(row: Row, sample: int, text: str, finish: str, prompt: int, generated: int) -> None:
        nonlocal verified
        judged = judge(task, row, text, finish)
        verified += judged["verdict"] == "verified"
        journal.append({
            "id": row.id, "sample": sample, "input": row.input, "label": row.label,
            **({"choices": list(row.choices)} if row.choices else {}), **judged, "hint": False,
            "finish_reason": finish, "prompt_tokens": prompt, "generated_tokens": generated,
            "seed": row_seed(seed, row.id, sample)})
        progress.advance(note=f"{verified} verified")
        if progress.done % 50 == 0:
            stage.checkpoint()

    with Asker(source, task, rows, parallel=parallel, samples=samples, threads=threads, gpu_layers=gpu_layers, form=form,
               ctx_size=ctx_size) as asker:
        _plan(stage, source, asker, len(rows), len(have), len(todo), sampling["temp"])
        progress = Progress("teach", len(todo), "samples")
        for row, sample in todo:
            if row.id in asker.too_long:
                note(row, sample, "", TOO_LONG, len(asker.prompts[row.id]), 0)
        # Lazily, so that the engine pulls a row when a slot is free.
        requests = (Request((row, sample), asker.prompts[row.id], row_seed(seed, row.id, sample))
                    for row, sample in todo if row.id not in asker.too_long)
        for done in asker.engine.generate(requests, Sampling(**sampling), task.max_new_tokens, asker.stop):
            note(*done.key, done.text, done.finish, done.prompt_tokens, done.generated_tokens)
    progress.close(f"{verified} verified")


def _plan(stage: runs.Stage, source: Any, asker: Any, rows: int, have: int, todo: int, temp: float) -> None:
    task = asker.task
    say("teach plan")
    say(f"  teacher   {source.name} ({source.licence()})")
    say(f"  task      {task.name} ({task.kind}), {rows} rows of {stage.config['data']}"
        + (f", {stage.config['samples']} samples a row" if stage.config["samples"] > 1 else ""))
    say(f"  prompt    {asker.form}, {len(task.exemplars)} exemplars; {len(asker.prefix)} shared tokens decoded once")
    say(f"  decoding  {f'temp {temp:g}' if temp > 0 else 'greedy'}, {asker.slots} at once, {asker.engine.threads} threads"
        + (f"; resumed: {have} samples are there already" if have else ""))
    say(f"  time      about {clock(asker.estimate(todo))} (from a probe of this machine)")
    for identity in sorted(asker.too_long):
        say(f"  too long  row {identity}: its prompt and answer exceed the context; kept with verdict truncated")


def _finish(stage: runs.Stage, journal: list[dict[str, Any]], rows: list[Row], task: Task,
            source: Any) -> dict[str, Any]:
    """Orders the journal into the corpus, marks repeated rationales, and makes the result."""
    order = {row.id: i for i, row in enumerate(rows)}
    ordered = sorted(journal, key=lambda entry: (order[entry["id"]], entry["sample"]))
    seen: dict[str, set[str]] = defaultdict(set)
    corpus = []
    for entry in ordered:
        text = " ".join((entry["rationale"] or "").lower().split())
        if entry["verdict"] in ("verified", "unlabelled") and text in seen[entry["id"]]:
            entry = {**entry, "verdict": "duplicate"}
        seen[entry["id"]].add(text)
        corpus.append(entry)
    path = stage.path / "corpus.jsonl"
    runs.write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in corpus))
    verdicts = Counter(entry["verdict"] for entry in corpus)
    labelled = [entry for entry in journal if entry["label"] is not None and not entry["hint"]]
    right = sum(entry["verdict"] == "verified" for entry in labelled)
    seconds = stage.seconds()
    result = {
        **machine.origin("teach"), "teacher": source.name, "teacher_sha256": source.sha256,
        "licence": source.licence(), "task": task.name, "data": stage.config["data"], "rows": len(rows),
        "samples": len(corpus), "verified": verdicts["verified"],
        "accuracy": round(right / len(labelled), 4) if labelled else None,
        "ci95": interval(right, len(labelled)) if labelled else None,
        "prompt_tokens": sum(entry["prompt_tokens"] for entry in corpus),
        "generated_tokens": sum(entry["generated_tokens"] for entry in corpus),
        "seconds": seconds, "rows_per_s": round(len(corpus) / max(seconds, 1e-3), 3),
        "rejected": {verdict: n for verdict, n in sorted(verdicts.items()) if verdict not in ("verified", "unlabelled")},
    }
    stage.done(result, [path, *sorted((stage.path / "data").iterdir())], task=task.to_dict(),
               teacher=asdict(source.card) if source.card else {"name": source.name})
    share = f", {verdicts['verified']} verified ({100 * result['accuracy']:.1f} % right)" if labelled else ""
    say(f"teach: {len(corpus)} samples of {len(rows)} rows in {clock(seconds)}{share}; "
        f"not usable: {result['rejected'] or 'none'}")
    return result


def _training_rows(dataset: rows_.Dataset, task: Task, limit: int | None) -> list[Row]:
    rows = dataset.splits.get("train", [])
    if not rows:
        raise UsageError(f"{dataset.name} has no training rows")
    if limit is None and dataset.name.startswith("builtin:"):
        limit = defaults.LIMIT  # the generator has no end; a user's own data are taught whole
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 row is needed")
    for split in dataset.splits.values():
        for row in split:
            task.label(row)  # an unreadable one is an error now, not in an hour
    return rows[:limit]


def _snapshot(folder: Path, dataset: rows_.Dataset, rows: list[Row]) -> None:
    """Keeps the rows as they were read, so that the later stages need neither flag nor file."""
    (folder / "data").mkdir(exist_ok=True)
    for split, all_rows in dataset.splits.items():
        with runs.disk_errors(folder / "data"):
            rows_.write(rows if split == "train" else all_rows, folder / "data" / f"{split}.jsonl")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _no_data(task: Task) -> str:
    raise UsageError(f"the task {task.name} names no data; give --data FILE.jsonl")
