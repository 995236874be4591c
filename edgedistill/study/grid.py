"""The cells of a study: one training each, in an order in which each comes after those that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgedistill.errors import UsageError
from edgedistill.study.spec import Study
from edgedistill.train.methods import GOLD_ONLY


@dataclass(frozen=True)
class Cell:
    """One training. `fraction`: share of the training rows; `labels`: share of the labelled rows that keep their label.

    `teacher` is None where the method does not look at one, so that such a cell is trained once for all teachers.
    """

    data: str
    student: str
    method: str
    teacher: str | None
    fraction: float
    labels: float
    fold: int | None
    seed: int

    @property
    def name(self) -> str:
        """The cell's own, for its files; the same whatever else the study has."""
        return "_".join([self.data, self.student, self.method, *([self.teacher] if self.teacher else []), self.replica])

    @property
    def replica(self) -> str:
        """What it has in common with the cells that it is compared with, beside data and student."""
        return "_".join([*([f"{self.fraction:g}-of-rows"] if self.fraction < 1 else []),
                         *([f"{self.labels:g}-of-labels"] if self.labels < 1 else []),
                         *([f"fold{self.fold}"] if self.fold is not None else []), f"seed{self.seed}"])

    def axes(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def cells(study: Study) -> list[Cell]:
    """All cells, those that others need first, else replica by replica: what has ended compares all methods.

    Raises `UsageError` where a cell needs one that the study has not.
    """
    found = list(dict.fromkeys(_all(study)))
    if not found:
        raise UsageError(f"{study.name}: its only = {{...}} leave no cell")
    ordered: dict[Cell, None] = {}
    waiting: list[Cell] = []

    def add(cell: Cell) -> None:
        if cell in waiting:
            raise UsageError(f"{study.name}: {cell.name} would have to be trained before itself: look at budget = and mentor =")
        if cell not in ordered:
            waiting.append(cell)
            for other in needs(study, found, cell).values():
                add(other)
            ordered[waiting.pop()] = None

    for cell in found:
        add(cell)
    return list(ordered)


def needs(study: Study, found: list[Cell], cell: Cell) -> dict[str, Cell]:
    """The cells that `cell` needs: {"budget"} whose trained tokens are its own, {"mentor", "mentor1", ...} whose students teach
    it."""
    wanted = {}
    if study.budget and cell.method != study.budget and "tokens" not in study.settings_of(cell.data, cell.student, cell.method):
        wanted["budget"] = _beside(found, cell, study.budget, cell.student, (cell.labels, 1.0))
    mentor = study.methods[cell.method].mentor
    for n, seed in enumerate(mentor.get("seeds", [cell.seed]) if mentor else ()):
        its = replace(cell, seed=seed)
        if seed != cell.seed and min(cell.fraction, cell.labels) < 1 and not study.same_rows:
            raise UsageError(f"{study.name}: {cell.name} and its mentors of other seeds would have other shares of rows or "
                             "labels; add same_rows = true")
        wanted[f"mentor{n or ''}"] = _beside(found, its, mentor["method"], mentor["student"], (cell.labels,))
    return wanted


def mentors(needed: dict[str, Cell]) -> list[Cell]:
    """The mentors among them."""
    return [cell for role, cell in needed.items() if role != "budget"]


def _beside(found: list[Cell], cell: Cell, method: str, student: str, shares: tuple[float, ...]) -> Cell:
    """The cell of another method or student on the same rows, with the first of these shares of labels that there is.

    A budget is a number of tokens and may come from a cell with all labels; a mentor must not have seen more than its cell.
    """
    same = [c for c in found if (c.data, c.student, c.method, c.fraction, c.fold, c.seed)
            == (cell.data, student, method, cell.fraction, cell.fold, cell.seed)
            and (c.teacher in (None, cell.teacher) or cell.teacher is None)]
    for labels in shares:
        if taken := next((c for c in same if c.labels == labels), None):
            return taken
    raise UsageError(f"{cell.name} needs the cell of {method} with {student} on the same rows, which this study has not; widen "
                     "their only = {...}")


def _all(study: Study) -> Iterator[Cell]:
    for seed in study.seeds:
        for fold in range(max([data.folds or 1 for data in study.data.values()])):
            for fraction in study.fractions:
                for labels in study.labels:
                    for data, student, method in ((d, s, m) for d in study.data for s in study.students for m in study.methods):
                        folds = study.data[data].folds
                        if fold >= (folds or 1):
                            continue
                        for teacher in _teachers(study, data, method, labels):
                            cell = Cell(data, student, method, teacher, fraction, labels, fold if folds else None, seed)
                            if _wanted(study, cell):
                                yield cell


def _teachers(study: Study, data: str, method: str, labels: float) -> list[str | None]:
    kind = study.methods[method].method
    if kind == "finetune":  # learns from labels alone, and from nothing where there are none
        return [None] if labels > 0 else []
    if kind in GOLD_ONLY and labels == 1:
        return [None]
    if there := [name for name, per_data in study.teachers.items() if data in per_data]:
        return [*there]
    settings = study.settings | study.methods[method].settings
    if labels > 0 and (kind in GOLD_ONLY or (kind == "hybrid" and not settings.get("rationales", True))):
        return [None]  # learns from the rows that have a label
    raise UsageError(f"{study.name}: methods.{method} needs a teacher for {data}: add [teachers.NAME.{data}] with "
                     "column = {rationale = \"...\"} or run = \"FOLDER\"")


def _wanted(study: Study, cell: Cell) -> bool:
    limits = (study.data[cell.data].only, study.students[cell.student].only, study.methods[cell.method].only)
    # A cell without a fold, or a teacher, is not what a limit on folds, or teachers, is about.
    return all(getattr(cell, axis) in allowed or getattr(cell, axis) is None
               for only in limits for axis, allowed in only.items())
