"""`study`: methods x students x teachers x data x shares x folds or seeds, one JSON a cell, then tables with tests.

    spec.py        the study file, checked before anything runs
    grid.py        its cells, in an order in which each finds what it needs
    rows.py        the rows that a cell sees
    material.py    what cells share: corpora and untrained students
    cell.py        one cell: train, count, `cells/NAME.json`
    crew.py        the cells, one after the other or several at once
    plan.py        the hours
    summary.py     means, tests, curves, tables; statistics.py what is known about an accuracy
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from pathlib import Path
from typing import Any

from edgedistill import kit, machine, runs
from edgedistill.errors import Error, GateError, Stopped, UsageError
from edgedistill.progress import clock, say
from edgedistill.study import cell as cell_
from edgedistill.study import crew
from edgedistill.study.grid import Cell, cells, mentors, needs
from edgedistill.study.material import Material
from edgedistill.study.plan import Plan
from edgedistill.study.spec import Study, read
from edgedistill.study.summary import markdown, summary

__all__ = ["study"]


def study(
    file: str | None = None, *, run: str | None = None, max_hours: float | None = None, dry_run: bool = False,
    verify: str | None = None, overwrite: bool = False, threads: int | None = None, jobs: int = 1,
) -> dict[str, Any]:
    """Runs the cells of a study `file` that are not finished yet, then writes `study.json` and `study.md`; returns the former.

    Everything is in the folder `run` (default: `runs/` and the file's name). A finished cell is `cells/NAME.json` and is never
    run again; interrupted in any way and called again, the study goes on where it was, with the last checkpoint of the cell
    that was begun.

    - `max_hours`: ends after so many, with a checkpoint of the cell that is being trained.
    - `dry_run`: prints the plan with its hours and runs nothing.
    - `verify`: the JSON of a finished cell, which is run once more and compared; `file` may be left out for the studies in
      `benchmarks/studies/`. Raises `GateError` where the accuracy is further off than the file's `tolerance`.
    - `jobs`: so many cells at once, in processes that share the threads (and a GPU); what they say goes to `workers/`.
    - `overwrite`: cells made with another configuration, and those that were begun, begin anew.

    A cell that fails does not keep the others from running. Raises `UsageError`, and `Error` where a cell failed.
    """
    began = time.monotonic()
    if max_hours is not None and not max_hours > 0:
        raise UsageError(f"--max-hours {max_hours:g}: give a number above 0")
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: give at least 1")
    result = _result(verify) if verify else None
    file = file or str(_shipped(result))
    spec = read(file)
    planned = cells(spec)
    beside = Path(verify).resolve().parents[1] if verify and Path(verify).resolve().parent.name == "cells" else None
    folder = Path(run or beside or f"runs/{spec.name}")
    with runs.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = runs.lock(folder / ".lock")
    try:
        material = Material(spec, folder)
        if result:
            return _verify(spec, material, planned, result, threads or machine.cores())
        deadline = began + 3600 * (max_hours or math.inf)
        return _run(spec, file, material, planned, deadline, dry_run, overwrite, threads or machine.cores(), jobs)
    finally:
        lock.close()


def _run(spec: Study, file: str, material: Material, planned: list[Cell], deadline: float, dry_run: bool, overwrite: bool,
         threads: int, jobs: int) -> dict[str, Any]:
    began = time.monotonic()
    results = _finished(spec, material, planned, overwrite, dry_run)
    begun = {cell.name for cell in planned if (cell_.home(material, cell) / "train" / "manifest.json").is_file()}
    todo = [cell for cell in planned if cell.name not in results]
    plan = Plan(spec, material, planned, results)
    plan.measure(threads)
    hours = plan.show(begun)
    if dry_run:
        return {**machine.origin("study-plan"), "study": spec.name, **hours}
    failed: dict[str, str] = {}
    work = (crew.one_by_one(spec, material, planned, todo, results, threads, deadline) if jobs == 1 else
            crew.together(spec, file, material, planned, todo, results, threads, deadline, jobs))
    for cell, made in work:
        if isinstance(made, Stopped):
            say(f"study: {cell.name}: {made}")
            continue
        if isinstance(made, Error):
            failed[cell.name] = str(made)
            say(f"study: {cell.name} failed: {made}")
            continue
        results[cell.name] = made
        gc.collect()
        machine.trim()  # else each training begins with what the one before it left behind
        say(f"study: {len(results)} of {len(planned)} cells done, {cell.name}: {cell_.told(made)}")
        if not spec.keep_students:
            cell_.drop_students(spec, material, planned, results)
    found = summary(spec, planned, results, failed)
    runs.write_json(material.folder / "study.json", found)
    runs.write_text(material.folder / "study.md", markdown(found))
    say(markdown(found))
    say(f"study: {len(results)} of {len(planned)} cells done, {clock(time.monotonic() - began)}; tables in "
        f"{material.folder / 'study.md'}" + ("" if len(results) == len(planned) else "; the same command "
                                               f"{'without --overwrite ' * overwrite}goes on"))
    if failed:
        name, reason = next(iter(failed.items()))
        raise Error(f"{len(failed)} of {len(planned)} cells failed, first {name}: {reason}. The same command tries them again")
    return found


def _finished(spec: Study, material: Material, planned: list[Cell], overwrite: bool,
              dry_run: bool) -> dict[str, dict[str, Any]]:
    """Finished cells by name. Those that were made otherwise, or with a mentor or budget that is made anew, are set aside, and
    what was begun is removed, if that is asked for: at once, so that later calls go on with what this one makes."""
    results: dict[str, dict[str, Any]] = {}
    stale: set[Cell] = set()
    for cell in planned:
        file = cell_.file(material, cell)
        result = cell_.read(file)
        if result is None:
            continue
        needed = needs(spec, planned, cell)
        budget = results.get(needed["budget"].name) if "budget" in needed else None
        differences = cell_.check(spec, material, cell, result, budget, [results.get(each.name) for each in mentors(needed)])
        differences += [f"its {role} {other.name} is made anew" for role, other in needed.items() if other in stale]
        if not differences:
            results[cell.name] = result
        elif overwrite:
            stale.add(cell)
        else:
            raise UsageError(f"{file} was made with another configuration: {'; '.join(differences[:3])}. Give --overwrite to "
                             "run it again, another --run, or another name to what changed")
    for cell in planned if overwrite and not dry_run else ():
        if cell.name not in results and (train := cell_.home(material, cell) / "train").is_dir():
            shutil.rmtree(train)
        if cell in stale:
            cell_.file(material, cell).replace(cell_.file(material, cell).with_suffix(".replaced"))
    return results


def _verify(spec: Study, material: Material, planned: list[Cell], result: dict[str, Any], threads: int) -> dict[str, Any]:
    cell = next((cell for cell in planned if cell.name == result["cell"]), None)
    if cell is None:
        raise UsageError(f"--verify: {spec.name} has no cell {result['cell']}; give the study file that made it")
    found = cell_.verify(spec, material, cell, result, mentors(needs(spec, planned, cell)), threads)
    runs.write_json(material.folder / "verify" / f"{cell.name}.json", found)
    for name, test in found["tests"].items():
        say(f"verify: {cell.name} on {name}: {100 * test['then']:.1f} % then, {100 * test['now']:.1f} % now; "
            f"{test['same_predictions']} of {test['n']} answers the same")
    if not found["verified"]:
        raise GateError(f"{cell.name} does not repeat within {100 * spec.tolerance:g} points: see "
                        f"{material.folder / 'verify' / cell.name}.json")
    return found


def _result(verify: str) -> dict[str, Any]:
    path = Path(verify)
    result = cell_.load(path)
    if result is None:
        raise UsageError(f"--verify {path}: no file of a finished cell, or it is damaged; give one of cells/*.json")
    return result


def _shipped(result: dict[str, Any] | None) -> Path:
    """The study's file in benchmarks/studies/ of a checkout."""
    root = kit.checkout()
    if result and root and (path := root / "benchmarks" / "studies" / f"{result['study']}.toml").is_file():
        return path
    raise UsageError("give the study's FILE.toml" + ("" if not result else f" too: {result['study']}.toml is not in "
                                                     "benchmarks/studies/ here"))

