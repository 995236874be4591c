"""The cells that are to do: one after the other here, or several at once in processes that stay.

On a large GPU a small student's training waits for Python most of the time, so that several side by side take little longer
than one: 135M on an H200, 150 ms a step alone, about 200 with fifteen others beside it (benchmarks/LOG.md, 2026-11-26).
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgedistill import runs
from edgedistill.errors import Error, Stopped
from edgedistill.progress import say
from edgedistill.study import cell as cell_
from edgedistill.study.grid import Cell, cells, mentors, needs
from edgedistill.study.material import Material
from edgedistill.study.spec import Study, read

Made = tuple[Cell, dict[str, Any] | Error]  # a cell with its result, or with why it has none
_WORKER = "import sys; from edgedistill.study import crew; crew.main(*sys.argv[1:])"


def one_by_one(study: Study, material: Material, planned: list[Cell], todo: list[Cell], results: dict[str, dict[str, Any]],
               threads: int, deadline: float) -> Iterator[Made]:
    """Makes `todo` in its order until `deadline`, by time.monotonic(). `results` are the finished cells, which the caller adds
    to as he gets them."""
    for n, cell in enumerate(todo):
        if time.monotonic() >= deadline:
            return
        say(f"study: cell {len(planned) - len(todo) + n + 1} of {len(planned)}, {cell.name}")
        missing = _missing(study, planned, cell, results)
        made = missing[0] if missing else _make(study, material, planned, cell, _tokens(study, planned, cell, results), threads,
                                                deadline)
        yield cell, made
        if isinstance(made, Stopped):
            return


def together(study: Study, file: str, material: Material, planned: list[Cell], todo: list[Cell],
             results: dict[str, dict[str, Any]], threads: int, deadline: float, jobs: int) -> Iterator[Made]:
    """As `one_by_one`, `jobs` at once, each with its share of the threads; a cell begins when those that it needs are made."""
    heard: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    waiting, idle = list(todo), []
    busy: dict[_Worker, set[str]] = {}  # with what it is making for others too
    try:
        while waiting or busy:
            free = len(busy) < jobs and time.monotonic() < deadline
            ready = next((c for c in waiting if free and not _missing(study, planned, c, results)
                          and not material.parts(c) & set().union(*busy.values())), None)
            if ready:
                waiting.remove(ready)
                say(f"study: {ready.name} begins")
                worker = idle.pop() if idle else _Worker(file, material.folder, max(1, threads // jobs), heard)
                busy[worker] = material.parts(ready)
                worker.give(ready, _tokens(study, planned, ready, results), deadline)
                continue
            if not busy:
                break
            worker, said = heard.get()
            if said and said["prepared"]:
                busy[worker] = set()
            elif worker in busy:  # else it ended between two cells
                del busy[worker]
                if said:
                    idle.append(worker)
                yield worker.cell, worker.result(material, said)
        if time.monotonic() < deadline:
            for cell in waiting:  # what they need has failed
                yield cell, _missing(study, planned, cell, results)[0]
    finally:
        for worker in (*idle, *busy):
            worker.dismiss()


def _make(study: Study, material: Material, planned: list[Cell], cell: Cell, tokens: int | None, threads: int,
          deadline: float) -> dict[str, Any] | Error:
    hours = max(1e-9, (deadline - time.monotonic()) / 3600)
    try:
        made = cell_.run(study, material, cell, tokens=tokens, mentors=mentors(needs(study, planned, cell)), threads=threads,
                         max_hours=hours if hours < float("inf") else None)
        cell_.write(cell_.file(material, cell), made)
    except Error as error:
        return error
    return made


def _missing(study: Study, planned: list[Cell], cell: Cell, results: dict[str, dict[str, Any]]) -> list[Error]:
    return [Error(f"it needs {other.name}, which failed") for other in needs(study, planned, cell).values()
            if other.name not in results]


def _tokens(study: Study, planned: list[Cell], cell: Cell, results: dict[str, dict[str, Any]]) -> int | None:
    budget = needs(study, planned, cell).get("budget")
    return cell_.trained_tokens(results[budget.name]) if budget else None


class _Worker:
    """A process that makes the cells that it is given. It says on stdout how each ended, all else goes to `workers/`; when its
    stdin is closed, by whoever ends, it ends too."""

    number = itertools.count(1)

    def __init__(self, file: str, folder: Path, threads: int, heard: queue.Queue[Any]) -> None:
        self.log, self.heard = folder / "workers" / f"{os.getpid()}-{next(self.number)}.txt", heard
        with runs.disk_errors(self.log):
            self.log.parent.mkdir(exist_ok=True)
            with self.log.open("w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _WORKER, file, str(folder), str(threads)], stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        threading.Thread(target=self._listen, daemon=True).start()

    def give(self, cell: Cell, tokens: int | None, deadline: float) -> None:
        self.cell: Cell = cell
        seconds = deadline - time.monotonic()
        job = {"cell": cell.name, "tokens": tokens, "seconds": seconds if seconds < float("inf") else None}
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError:  # it ended between two cells
            self.heard.put((self, None))

    def result(self, material: Material, said: dict[str, Any] | None) -> dict[str, Any] | Error:
        if said is None:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            return Error(f"its process ended with code {self.process.wait()}, its last words ({self.log}): {last[-1][:200]}")
        if said["error"]:
            return (Stopped if said["stopped"] else Error)(said["error"])
        return cell_.load(cell_.file(material, self.cell)) or Error(f"{cell_.file(material, self.cell)} is damaged")

    def dismiss(self) -> None:
        try:
            self.process.stdin.close()
        except OSError:
            pass
        self.process.wait()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.heard.put((self, json.loads(line)))
        self.heard.put((self, None))


def main(file: str, folder: str, threads: str) -> None:
    """The worker's side."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    study = read(file)
    material, planned = Material(study, Path(folder)), cells(study)
    by_name = {cell.name: cell for cell in planned}

    def tell(made: Any = None, prepared: bool = False) -> None:
        error = made if isinstance(made, Error) else None
        print(json.dumps({"prepared": prepared, "error": str(error) if error else None,
                          "stopped": isinstance(error, Stopped)}), file=out, flush=True)

    while True:
        job = jobs.get()
        cell, deadline = by_name[job["cell"]], time.monotonic() + (float("inf") if job["seconds"] is None else job["seconds"])
        try:
            cell_.prepare(study, material, cell)
            tell(prepared=True)
            tell(_make(study, material, planned, cell, job["tokens"], int(threads), deadline))
        except Error as error:
            tell(error)
        _forget()


def _forget() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # others may need it
