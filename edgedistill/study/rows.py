"""The rows of a study's cells: read once, split by fold, cut to a share of the rows and of their labels."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edgedistill import cards, defaults
from edgedistill.errors import UsageError
from edgedistill.progress import say
from edgedistill.study.grid import Cell
from edgedistill.study.spec import Source, Study, Teaching, place
from edgedistill.tasks import data as rows_
from edgedistill.tasks import groups
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task


@dataclass(frozen=True)
class Pool:
    """A data set read with one teacher's columns. `group` is by row id, empty where no folds are asked for."""

    name: str
    task: Task
    splits: dict[str, list[Row]]
    group: dict[str, int]

    @cached_property
    def everything(self) -> list[Row]:
        return [row for rows in self.splits.values() for row in rows]


class Rows:
    """The rows of one study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._pools: dict[tuple[str, str | None], Pool] = {}
        self._tests: dict[str, dict[str, tuple[str, str, list[Row]]]] = {}

    def pool(self, data: str, teacher: str | None = None) -> Pool:
        """The data set as `teacher` sees it. Raises `UsageError`."""
        if (data, teacher) not in self._pools:
            self._pools[data, teacher] = self._read(data, teacher)
        return self._pools[data, teacher]

    def splits(self, cell: Cell) -> dict[str, list[Row]]:
        """The cell's train, dev and test rows: its fold, its share of the rows and of their labels.

        All cells of one replica get the same rows. Dev rows lose labels as training rows do; a fraction spares them.
        """
        pool, data = self.pool(cell.data, cell.teacher), self.study.data[cell.data]
        splits = dict(pool.splits)
        if data.folds:
            everything = pool.everything
            grouped = [pool.group[row.id] for row in everything]
            fold = groups.folds(grouped, data.folds)
            rest = [i for i in range(len(everything)) if fold[i] != cell.fold]
            held = groups.hold_out([grouped[i] for i in rest], defaults.DEV_SHARE)
            splits = {"train": [everything[i] for n, i in enumerate(rest) if n not in held],
                      "dev": [everything[i] for n, i in enumerate(rest) if n in held],
                      "test": [everything[i] for i in range(len(everything)) if fold[i] == cell.fold]}
        drawn = 0 if self.study.same_rows else cell.seed
        train = _part(splits["train"], cell.fraction, f"fraction-{drawn}")
        test = [row for row in splits.get("test", []) if row.label is not None]
        return {name: _with_labels(rows, cell.labels, f"labels-{drawn}") for name, rows in
                (("train", train), ("dev", splits["dev"]))} | ({"test": test} if test else {})

    def tests(self, cell: Cell) -> dict[str, tuple[str, str, list[Row]]]:
        """{name: (data set, split, labelled rows)} that the trained student is counted on: its own test rows, and others."""
        if cell.data not in self._tests:
            task = self.pool(cell.data).task
            self._tests[cell.data] = {
                name: (name, "test", [row for row in _labelled(task, self._rows(source, "test", {}), source.skip_unreadable)
                                      if row.label is not None][: source.limit])
                for name, source in self.study.data[cell.data].tests.items()}
        own = self.splits(cell).get("test")
        return {**({cell.data: (self.pool(cell.data).name, "test", own)} if own else {}), **self._tests[cell.data]}

    def _read(self, data: str, teacher: str | None) -> Pool:
        asked = self.study.data[data]
        teaching = self.study.teachers[teacher][data] if teacher else Teaching()
        columns = {**asked.column, **teaching.column}
        if asked.source:
            read = rows_.load(place(asked.source), columns, defaults.SEED, defaults.DEV_SHARE)
            name, splits = read.name, read.splits
        else:
            sources = {"train": asked.train, "dev": asked.dev, "test": asked.test}
            splits = {split: self._rows(source, split, columns)[: source.limit] for split, source in sources.items() if source}
            name = data
            if "dev" not in splits:
                splits["train"], splits["dev"] = rows_.hold_out(splits["train"], defaults.DEV_SHARE, defaults.SEED)
        if not teaching.column:  # what the rows say is then nobody's; a run may have scored what they say
            splits = {split: [replace(row, rationale=None, stated=None) for row in rows] for split, rows in splits.items()}
        task = cards.load(Task, asked.task)
        limits = {"train": asked.limit, "test": asked.test_limit}
        for split, rows in splits.items():
            source = getattr(asked, split)
            splits[split] = _labelled(task, rows[: limits.get(split)], bool(source) and source.skip_unreadable)
        if not asked.folds:
            return Pool(name, task, splits, {})
        everything = [row for rows in splits.values() for row in rows]
        ids = Counter(row.id for row in everything)
        if ids and ids.most_common(1)[0][1] > 1:
            raise UsageError(f"data.{data}: the id {ids.most_common(1)[0][0]!r} is in two splits, which folds would mix; give "
                             "ids that differ")
        return Pool(name, task, splits, dict(zip(ids, groups.groups([row.input for row in everything]), strict=True)))

    def _rows(self, source: Source, split: str, columns: dict[str, str]) -> list[Row]:
        path = place(source.source)
        columns = {**columns, **source.column}
        if Path(path).is_file():
            rows = rows_.read_file(Path(path), columns)
        else:
            splits = rows_.load(path, columns, defaults.SEED, defaults.DEV_SHARE).splits
            split = source.split or split
            if split not in splits:
                raise UsageError(f"{source.source} has no split {split!r}; it has {', '.join(splits)}")
            rows = splits[split]
        for key, value in source.where.items():
            rows = [row for row in rows if str(rows_.lookup(vars(row), key)) == value]
        if not rows:
            raise UsageError(f"{source.source}: no row is left by where = {source.where}")
        return rows


def _labelled(task: Task, rows: list[Row], skip: bool) -> list[Row]:
    """The rows; an unreadable label is told now, not in an hour, or its row left out."""
    found = []
    for row in rows:
        try:
            task.label(row)
        except UsageError:
            if not skip:
                raise
        else:
            found.append(row)
    if len(found) < len(rows):
        say(f"study: {len(rows) - len(found)} of {len(rows)} rows are left out, their labels are no {task.kind}")
    return found


def _with_labels(rows: list[Row], share: float, salt: str) -> list[Row]:
    """The rows, of which a share of the labelled ones keep their label."""
    keep = {row.id for row in _part([row for row in rows if row.label is not None], share, salt)}
    return [row if row.id in keep else replace(row, label=None) for row in rows]


def _part(rows: list[Row], share: float, salt: str) -> list[Row]:
    """A share of the rows in their order, drawn by `salt`; a smaller one lies in a larger one."""
    if share == 1:
        return rows
    order = list(range(len(rows)))
    random.Random(salt).shuffle(order)
    return [rows[i] for i in sorted(order[: round(share * len(rows))])]
