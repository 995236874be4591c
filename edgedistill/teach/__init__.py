"""`teach`: a local teacher writes rationales and answers; each is verified and kept with its verdict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.errors import UsageError
from edgedistill.progress import say
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Exemplar, Style, Task
from edgedistill.teach import ledger
from edgedistill.teach.asker import ready
from edgedistill.teach.prompts import Prompter
from edgedistill.teach.server import Server
from edgedistill.teach.session import Session, row_seed
from edgedistill.teach.soft import MAX_K
from edgedistill.teach.source import Source, resolve
from edgedistill.teach.verify import judge

__all__ = ["digest", "judge", "prompter_of", "read_corpus", "read_exemplars", "row_seed", "style_of", "teach"]


def teach(
    gguf: str | None = None, *, url: str | None = None, model: str | None = None, run: str = defaults.RUN,
    task: str = defaults.TASK, data: str | None = None, column: dict[str, str] | None = None, prompt: str | None = None,
    exemplars: str | None = None, samples: int = defaults.SAMPLES, enough: int | None = None, hint: bool = False,
    soft_targets: int = 0, score: bool = False, limit: int | None = None, parallel: int | None = None,
    temp: float | None = None, top_k: int = defaults.TOP_K, top_p: float = defaults.TOP_P, min_p: float = defaults.MIN_P,
    seed: int = defaults.SEED, ctx_size: int | None = None, gpu_layers: int = 0, threads: int | None = None,
    form: str | None = None, deterministic: bool = False, api_price: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Teaches the training rows of `data` and returns the result object (DESIGN section 2).

    Writes `teach/journal.jsonl` as samples complete and `teach/corpus.jsonl` in input order; killed at any moment and
    called again, it goes on where it was.

    - `gguf` is a file, a card or `hf:REPO:QUANT` (default: the embedded teacher); `url` a running OpenAI-compatible
      server instead, `model` one of its models.
    - `prompt` is one of the card's ways to ask; `exemplars` a file of worked rows to pick examples from, such as the
      corpus of an earlier run (of which only what was verified is taken).
    - `samples` is the most a row gets; with `enough` a row that has so many usable, different rationales gets no more.
      `hint` gives a row without any one more try in which it is told the label.
    - `soft_targets` K keeps the teacher's K best candidates of each token in `teach/soft/`; `score` does so for the
      rationales that the data have, instead of writing new ones.
    - `parallel` None measures what pays. `deterministic` makes a row's text independent of the rows beside it.
    - `api_price` is (input, output) dollars a million tokens, for the ledger.

    Raises `UsageError`; `Error` when the disk is full or a server stays away.
    """
    _check(gguf, url, samples, enough, hint, parallel, soft_targets, score, api_price)
    card = cards.load(Task, task)
    dataset = rows_.load(data or card.data or _no_data(card), column, seed, defaults.DEV_SHARE)
    rows = _training_rows(dataset, card, limit, score)
    prompter = prompter_of(card, prompt, exemplars)
    source = _source(gguf, url, model, parallel, deterministic)
    temp = temp if temp is not None else defaults.TEMP if samples == 1 else defaults.SAMPLED_TEMP
    sampling = {"temp": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    config = {
        "task": card.name, "data": dataset.name, "rows": len(rows), "samples": samples, "seed": seed, "temp": temp,
        **({"top_k": top_k, "top_p": top_p, "min_p": min_p} if temp > 0 else {}), "form": form or "auto",
        "prompt": prompt or card.prompt, "deterministic": deterministic, "teacher": source.name,
        # What is not asked for leaves no key.
        **({"ctx_size": ctx_size} if ctx_size else {}),  # it decides which rows are too long
        **({"parallel": parallel or defaults.PARALLEL_DETERMINISTIC, "threads": threads or machine.cores(),
            "gpu_layers": gpu_layers} if deterministic and not url else {}),
        **({"enough": enough} if enough else {}), **({"hint": True} if hint else {}),
        **({"soft_targets": soft_targets} if soft_targets else {}), **({"score": True} if score else {}),
    }
    inputs = {"teacher": source.sha256, "rows": rows_.digest(rows), "card": digest(card.to_dict()),
              **({"exemplars": digest([asdict(e) for e in prompter.pool])} if exemplars else {})}
    stage = runs.Stage(run, "teach", config, inputs, overwrite)
    try:
        if stage.finished:
            say(f"teach: {stage.path} is finished with this configuration; nothing to do")
            ledger.show(stage.finished["ledger"], stage.finished["seconds"])
            return stage.finished
        _snapshot(stage.path, dataset, rows)
        with Session(stage, prompter, rows, source, sampling) as session:
            if session.due():
                with ready(source, prompter, rows, samples=samples, hint=hint, parallel=1 if score else parallel, form=form,
                           ctx_size=ctx_size, gpu_layers=gpu_layers, threads=threads or machine.cores(),
                           deterministic=deterministic) as asker:
                    session.fill(asker)
            return session.finish(api_price)
    finally:
        stage.close()


def read_corpus(run: str | Path) -> list[dict[str, Any]]:
    """The corpus of a finished teach stage, one row a sample."""
    with (Path(run) / "teach" / "corpus.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def style_of(task: Task, prompt: str | None) -> Style:
    """The card's prompt of that name, else its own. Raises `UsageError` with those known."""
    try:
        return task.style(prompt)
    except ValueError as error:
        raise UsageError(f"--prompt {prompt}: {error}") from error


def prompter_of(task: Task, prompt: str | None, exemplars: str | None) -> Prompter:
    """Puts rows in `style_of`, with what the file `exemplars` holds to pick from. Raises `UsageError`."""
    style = style_of(task, prompt)
    if exemplars and style.pick != "similar":
        raise UsageError(f"--exemplars is for prompts that pick similar examples, and {prompt or task.prompt} shows the card's "
                         "first; add --prompt similar")
    return Prompter(task, style, read_exemplars(exemplars, task) if exemplars else None)


def read_exemplars(path: str, task: Task) -> tuple[Exemplar, ...]:
    """Worked examples from a file of rows with rationale and label, or from a corpus (its verified samples, one a row).

    Raises `UsageError` where there is none.
    """
    found: dict[str, Exemplar] = {}
    for number, record in rows_.records(Path(path)):
        if record.get("verdict", "verified") != "verified" or record.get("hint"):
            continue
        row = rows_.to_row({**record, "id": None}, {}, Path(path).name, number)
        if row.rationale and row.label and (question := task.question(row)) not in found:
            stated = record.get("answer") or task.label(row).text
            found[question] = Exemplar(question, row.rationale, str(stated))
    if not found:
        raise UsageError(f"--exemplars {Path(path).name}: no row has a rationale and a label (or was verified)")
    return tuple(found.values())


def _source(gguf: str | None, url: str | None, model: str | None, parallel: int | None, deterministic: bool) -> Source:
    if not url:
        return resolve(gguf or defaults.TEACHER)
    # One after the other and without its prompt cache a server computes a row alone, if it does as it is asked.
    server = Server(url, model=model, parallel=1 if deterministic else parallel or defaults.PARALLEL_SERVER,
                    cache=not deterministic)
    return Source(server.name, None, "", None, server)


def _check(gguf: str | None, url: str | None, samples: int, enough: int | None, hint: bool, parallel: int | None,
           soft_targets: int, score: bool, api_price: tuple[float, float] | None) -> None:
    if samples < 1 or (parallel is not None and parallel < 1):
        raise UsageError("--samples and --parallel must be at least 1")
    if enough is not None and not 1 <= enough <= samples:
        raise UsageError(f"--enough {enough}: give 1 to {samples}, the number of --samples")
    if gguf and url:
        raise UsageError("--gguf and --url exclude each other; give one")
    if not 0 <= soft_targets <= MAX_K:
        raise UsageError(f"--soft-targets {soft_targets}: give 1 to {MAX_K}")
    if url and soft_targets:
        raise UsageError("--soft-targets needs the model's own logits, which a server does not give; give --gguf FILE")
    if score and (not soft_targets or samples > 1 or hint):
        raise UsageError("--score keeps the soft targets of the data's own rationales: give --soft-targets K, one sample and "
                         "no --hint")
    if api_price is not None and min(api_price) < 0:
        raise UsageError(f"--api-price {api_price[0]:g},{api_price[1]:g}: prices are not negative")


def _training_rows(dataset: rows_.Dataset, task: Task, limit: int | None, score: bool) -> list[Row]:
    rows = dataset.splits.get("train", [])
    if score:
        rows = [row for row in rows if row.rationale and row.label is not None]
    if not rows:
        raise UsageError(f"{dataset.name} has no training rows" + (
            " with a rationale and a label; name the column: --column rationale=NAME" if score else ""))
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


def digest(value: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _no_data(task: Task) -> str:
    raise UsageError(f"the task {task.name} names no data; give --data FILE.jsonl")
