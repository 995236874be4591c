"""What a study will take: hours from the times of cells that this machine finished, else from `train --dry-run`'s real step."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from edgedistill import defaults, machine, runs
from edgedistill.errors import Error
from edgedistill.progress import clock, quietly, say
from edgedistill.study import cell as cell_
from edgedistill.study.grid import Cell, mentors, needs
from edgedistill.study.material import Material
from edgedistill.study.spec import Study


class Plan:
    """The hours of the cells that are not finished.

    A rate is {tokens_per_question, seconds_per_token} of one data set, student, method and teacher.
    """

    def __init__(self, study: Study, material: Material, planned: list[Cell], results: dict[str, dict[str, Any]]) -> None:
        self.study, self.material, self.planned, self.results = study, material, planned, results
        self.unknown: dict[str, str] = {}  # why there is no rate
        self._file = material.folder / "rates.json"  # of the dry runs
        self.rates: dict[str, dict[str, float]] = runs.read_json(self._file) if self._file.is_file() else {}
        times: dict[str, list[float]] = defaultdict(list)
        here = machine.machine()
        for cell in planned:
            result = results.get(cell.name)
            # Another machine's time says nothing about this one.
            if result and all(result["machine"].get(key) == here[key] for key in ("cpu", "cores")):
                its = times[_kind(cell)]
                its.append(result["seconds"] / max(1, cell_.trained_tokens(result)))
                self.rates[_kind(cell)] = {"tokens_per_question": result["train"]["tokens_per_question"],
                                           "seconds_per_token": sum(its) / len(its)}

    def measure(self, threads: int) -> None:
        """One real step of each kind of cell that has no rate. What cannot be had here stays unknown."""
        for cell in self.planned:
            name = _kind(cell)
            if name in self.rates or name in self.unknown or cell.name in self.results:
                continue
            try:
                for teacher in (None, cell.teacher):
                    self.material.rows.pool(cell.data, teacher)  # read now, where it may say what it leaves out
                taught_by = mentors(needs(self.study, self.planned, cell))
                with quietly():
                    found = cell_.dry_run(self.study, self.material, cell, taught_by, threads)
            except Error as error:
                self.unknown[name] = str(error)
                continue
            a_step = defaults.BESIDE_STEPS * found["seconds_per_step"]
            self.rates[name] = {"tokens_per_question": found["tokens_per_question"],
                                "seconds_per_token": a_step / found["longest_tokens"]}
            runs.write_json(self._file, self.rates)
            say(f"study: a step of {name} takes {found['seconds_per_step']:g} s")

    def seconds(self, cell: Cell) -> float | None:
        """What a cell will take from its beginning, None where nothing like it was measured."""
        rate, tokens = self._rate(cell), self._tokens(cell)
        return rate["seconds_per_token"] * tokens if rate and tokens else None

    def show(self, begun: set[str]) -> dict[str, Any]:
        """Prints the plan; returns {cells: [{cell, state, hours}], hours, unknown (cells without hours)}."""
        cells = []
        for cell in self.planned:
            state = "done" if cell.name in self.results else "begun" if cell.name in begun else "to do"
            took = None if state == "done" else self.seconds(cell)
            cells.append({"cell": cell.name, "state": state, "hours": None if took is None else round(took / 3600, 5)})
        states = [entry["state"] for entry in cells]
        hours = sum(entry["hours"] or 0 for entry in cells)
        unknown = sum(entry["hours"] is None for entry in cells) - states.count("done")
        say(f"study {self.study.name}: {self.study.title}")
        if self.study.note:
            say(f"  note      {self.study.note}")
        for name in dict.fromkeys(cell.data for cell in self.planned):
            pool, folds = self.material.rows.pool(name), self.study.data[name].folds
            say(f"  data      {name}: " + ", ".join(f"{len(rows)} {split}" for split, rows in pool.splits.items()) + " rows"
                + (f"; {folds} folds of all of them by {len(set(pool.group.values()))} groups of one body" if folds else ""))
        say(f"  cells     {len(cells)}: {states.count('done')} done, {states.count('begun')} begun, {states.count('to do')} to "
            f"do; a checkpoint at least every {defaults.CHECKPOINT_MINUTES} minutes")
        if self.study.budget:
            say(f"  budget    each cell trains on as many tokens as {self.study.budget}'s does")
        self._show_kinds(cells)
        known = len(cells) - states.count("done") - unknown
        told = [f"{unknown} cells of unknown time"] if unknown else []
        if known or not unknown:
            told.insert(0, f"about {clock(3600 * hours)}" + (", one cell after the other" if known > 1 else ""))
        say(f"  time      {' and '.join(told)}" + (", what cells have begun included" if "begun" in states else ""))
        return {"cells": cells, "hours": round(hours, 5), "unknown": unknown}

    def _show_kinds(self, cells: list[dict[str, Any]]) -> None:
        kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell, entry in zip(self.planned, cells, strict=True):
            if entry["state"] != "done":
                kinds[_kind(cell)].append(entry)
        for name, entries in kinds.items():
            hours = [entry["hours"] for entry in entries if entry["hours"] is not None]
            say(f"    {name}: {len(entries)}, " + (f"about {clock(3600 * sum(hours) / len(hours))} each" if hours else
                f"time not known ({self.unknown.get(name, 'nothing like it was measured')})"))

    def _tokens(self, cell: Cell) -> float | None:
        """The tokens that a cell will train on."""
        settings, rate = self.study.settings_of(cell.data, cell.student, cell.method), self._rate(cell)
        if "tokens" in settings:
            return settings["tokens"]
        if budget := needs(self.study, self.planned, cell).get("budget"):
            return self._tokens(budget)
        questions = len(self.material.rows.splits(cell)["train"])
        trainings = 1 + settings.get("rounds", 0) if cell.labels < 1 else 1
        return trainings * rate["tokens_per_question"] * questions * settings.get("epochs", defaults.EPOCHS) if rate else None

    def _rate(self, cell: Cell) -> dict[str, float] | None:
        """That of cells of its kind, else that of another method with its student (a mentor may not be there yet)."""
        alike = (_kind(other) for other in self.planned if (other.data, other.student) == (cell.data, cell.student))
        return next((self.rates[name] for name in (_kind(cell), *alike) if name in self.rates), None)


def _kind(cell: Cell) -> str:
    """What cells of one rate have in common."""
    return " ".join(name for name in (cell.data, cell.student, cell.method, cell.teacher) if name)
