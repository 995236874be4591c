"""`bench`: how fast, large and right bundles are on this machine, beside their peers, in one run. Needs no torch.

Each engine is a process of its own that waits between requests. In a round every engine answers the same question once, in an
order drawn anew, and a probe of the machine takes its turn, so that results read as shares of what the machine gives.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from edgedistill import defaults, machine, runs
from edgedistill.bench.engines import PEERS
from edgedistill.bench.measure import Workload, measure
from edgedistill.edge import bundle as bundles
from edgedistill.edge.format import Format
from edgedistill.errors import UsageError
from edgedistill.progress import say
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task


def bench(
    bundle: list[str] | str | None = None, *, run: str = defaults.RUN, threads: list[int] | None = None,
    data: str | None = None, column: dict[str, str] | None = None, split: str | None = None,
    input_tokens: int | None = None, output_tokens: int | None = None, n: int | None = None,
    against: list[str] | None = None, student: str | None = None, peers_python: str | None = None, quick: bool = False,
    pack: str | None = None,
) -> dict[str, Any]:
    """Measures bundles (default: the run's), and peers, in turns; returns the result object (DESIGN section 2).

    Asked are the questions of a `split` (default dev) of `data` (default: the run's), counted right or wrong in the same run; a
    built-in text where there are none. `input_tokens` and `output_tokens` force the lengths instead, and nothing is counted.
    `against` names engines (torch, optimum, ctranslate2, llama.cpp), made from `student` (default: the run's) and run by the
    interpreter `peers_python`, or GGUF models that do the same task. `n` rounds after a warm-up (default: each question once,
    at most `defaults.BENCH_RUNS`; so many of the built-in text). `quick` ends within a minute, but for slow peers. `pack`
    writes one file to carry to a device instead, and returns {file, bytes, sha256}. Raises `UsageError`.
    """
    if any(each is not None and each < 1 for each in (n, input_tokens, output_tokens, *(threads or []))):
        raise UsageError("--n, --threads, --input-tokens and --output-tokens must be at least 1")
    folders = [Path(name) for name in ([bundle] if isinstance(bundle, str) else bundle or [f"{run}/export/bundle"])]
    for folder in folders:
        if not (folder / bundles.MANIFEST).is_file():
            raise UsageError(f"{folder} is no bundle; run edgedistill export first, or name one")
    manifests = [bundles.read(folder) for folder in folders]
    form = Format.from_dict(manifests[0]["format"])
    if any(each["format"] != manifests[0]["format"] for each in manifests[1:]):
        raise UsageError("the bundles ask differently (another task or prefix); measure them apart")
    card = Task.from_dict(form.task) if form.task else None
    forced = bool(input_tokens or output_tokens)
    if (data or split) and (forced or not card):
        why = "the lengths are forced" if forced else "the bundle has no task"
        raise UsageError(f"--data and --split: {why}, so there are no questions to ask; leave them out")
    where, rows = (None, []) if forced or not card else _rows(run, folders[0], card, data, column, split, n)
    work = Workload.of(card, rows, where) if rows else Workload.text(folders[0], form, input_tokens, output_tokens)
    rounds = n or (len(rows) or defaults.BENCH_RUNS)
    if pack:
        from edgedistill.bench.pack import write

        if len(folders) > 1 or against:
            raise UsageError("--pack takes one bundle and no --against")
        return write(Path(pack), folders[0], work, rounds, threads)
    jobs = ours(folders, manifests)
    jobs |= _peers(against or [], Path(student or f"{run}/train/student"), manifests[0], card, rows, run)
    counts = threads or sorted({1, machine.cores()})
    subject = runs.subject_name(folders[0])
    asked = f"{where['name']}-{where['split']}-{where['n']}" if where else f"{input_tokens or 'text'}-{output_tokens or 'own'}"
    file = Path(run) / "bench" / runs.file_name(
        subject, *map(runs.subject_name, folders[1:]), asked, f"t{'-'.join(map(str, counts))}", f"n{rounds}",
        "vs-" + "-".join(map(_named, against)) if against else "", "quick" * quick)
    with runs.disk_errors(file):  # now, not after an hour
        file.parent.mkdir(parents=True, exist_ok=True)
    measured = measure(jobs, counts, work, rounds, quick=quick, python=peers_python or sys.executable)
    command = _command(len(folders), {
        "data": data and where and f"PATH/{where['name']}", "column": column and [f"{a}={b}" for a, b in column.items()],
        "split": where and where["split"], "input-tokens": input_tokens, "output-tokens": output_tokens,
        "against": against and ",".join(map(_named, against)), "student": student and "STUDENT",
        "peers-python": peers_python and "PYTHON", "threads": ",".join(map(str, counts)), "n": rounds, "quick": quick})
    files = {name: {file: entry["sha256"] for file, entry in each["files"].items()}
             for name, each in zip(jobs, manifests, strict=False)}
    result = {**machine.origin("bench"), "subject": subject, "task": card.name if card else None, "command": command,
              "files": files, **measured}
    runs.write_json(file, result)
    say(f"bench: {file}")
    return result


def _command(bundles_: int, flags: dict[str, Any]) -> str:
    """The line that measures so again; words in capitals stand for paths, which are not kept."""
    words = ["edgedistill", "bench", *["BUNDLE"] * bundles_]
    for name, value in flags.items():
        for each in value if isinstance(value, list) else [value] if value else []:
            words += [f"--{name}", *([] if each is True else [str(each)])]
    return shlex.join(words)


def ours(folders: list[Path], manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The jobs of bundles, by name: their precision, and the folder where two have the same."""
    names = [f"edge {manifest['precision']}" for manifest in manifests]
    if len(set(names)) < len(names):
        names = [f"{name} {runs.subject_name(folder)}" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        raise UsageError("two bundles have the same name; rename a folder, so that they can be told apart")
    return {name: {"engine": "edge", "place": str(folder)} for name, folder in zip(names, folders, strict=True)}


def _named(name: str) -> str:
    """What `--against` named, without a path."""
    return Path(name).name.removesuffix(".gguf") if name.endswith(".gguf") else name


def _peers(against: list[str], student: Path, manifest: dict[str, Any], card: Task | None, rows: list[Row],
           run: str) -> dict[str, dict[str, Any]]:
    """The jobs of what `--against` names."""
    jobs: dict[str, dict[str, Any]] = {}
    for name in against:
        if name in PEERS:
            if not (student / "config.json").is_file():
                raise UsageError(f"--against {name} is made from the student, and {student} is no student's folder; "
                                 "name it by --student")
            if name == "llama.cpp" and manifest["format"]["family"] == "t5":
                raise UsageError("--against llama.cpp is for decoder-only students; leave it out for a T5")
            described = student / "edgedistill.json"
            job = {"engine": name, "place": str(student), "student": str(student),
                   "format": runs.read_json(described) if described.is_file() else manifest["format"]}
            kinds = {"torch": ["fp32"], "llama.cpp": ["Q8_0", "Q4_0"]}.get(name, ["int8"])
            jobs |= {f"{name} {kind}": {**job, "precision": kind} for kind in kinds}
        else:
            from edgedistill import cards
            from edgedistill.evaluate import whole_card
            from edgedistill.teach.source import resolve

            if not name.endswith(".gguf") and not name.startswith("hf:") and name not in (known := cards.names(cards.Teacher)):
                raise UsageError(f"--against {name}: known are {', '.join(PEERS)}, a GGUF file, or a card: {', '.join(known)}")
            source = resolve(name)
            if not card or not rows:
                raise UsageError(f"--against {name} needs a task's questions; leave out --input-tokens and --output-tokens, or "
                                 "give --data")
            jobs[source.name] = {"engine": "gguf", "place": str(source.path), "task": whole_card(card, run).to_dict(),
                                 "rows": [row.to_dict() for row in rows]}
    return jobs


def _rows(run: str, bundle: Path, card: Task, data: str | None, column: dict[str, str] | None, split: str | None,
          n: int | None) -> tuple[dict[str, Any] | None, list[Row]]:
    """({name, split, n, rows_sha256}, labelled rows) that are asked; (None, none) where nothing says which."""
    from edgedistill import evaluate
    from edgedistill.tasks.data import digest

    if data is None and not runs.finished(run, "teach"):
        return None, []
    name, splits = evaluate.rows_of(run, card, data, column)
    split = split or next(each for each in ("dev", *splits) if each in splits)
    if split not in splits:
        raise UsageError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    rows = [row for row in splits[split] if row.label is not None][: n or defaults.BENCH_RUNS]
    if not rows:
        raise UsageError(f"{name}: no row of {split} has a label, so there is nothing to count")
    if split == "test" and not name.startswith("builtin:"):
        evaluate.note_reading(f"{runs.subject_name(bundle)} on {name} (bench)")
    return {"name": name, "split": split, "n": len(rows), "rows_sha256": digest(rows)}, rows
