"""A study file: what is compared, on what, with what. All of it is checked before anything runs.

benchmarks/studies/README.md explains each key. In `[settings]`, `[data.NAME]`, `[students.NAME]` and `[methods.NAME]` any
keyword of `train` may stand beside the keys below; the later of them wins.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import string
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults
from edgedistill.errors import UsageError
from edgedistill.tasks.task import Task
from edgedistill.train import train
from edgedistill.train.methods import MENTORED, METHODS

AXES = ("data", "student", "method", "teacher", "fraction", "labels", "fold", "seed")
# What a study says in another way, or a cell has of its own.
_OURS = ("student", "run", "tiny", "method", "task", "data", "column", "layers", "vocabulary", "carve_from", "mentor", "seed",
         "threads", "dry_run", "resume", "max_hours", "report_to", "overwrite")
TRAIN = {name: hint for name, hint in typing.get_type_hints(train).items()
         if name in inspect.signature(train).parameters and name not in _OURS}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")  # no _, which joins names


@dataclass(frozen=True)
class Source:
    """Rows of one split: `source` as `--data` takes it, `where` what a row must have at a dotted path. Rows whose label the
    task cannot read are an error, unless they are to be skipped."""

    source: str
    split: str = ""
    where: dict[str, str] = field(default_factory=dict)
    column: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Data:
    """A data set: a `source` with its splits, or each split's own. `folds`: cross-validation over all of its rows."""

    task: str
    source: str = ""
    train: Source | None = None
    dev: Source | None = None
    test: Source | None = None
    column: dict[str, str] = field(default_factory=dict)
    folds: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    tests: dict[str, Source] = field(default_factory=dict)
    only: dict[str, list[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Student:
    """What `train --student` takes, and how it is carved or trimmed."""

    student: str
    layers: int | None = None
    vocabulary: int | None = None
    carve_from: str = defaults.TEACHER
    only: dict[str, list[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Teaching:
    """Where a data set's rationales are: in columns of its own, or in a run folder that `teach` has finished, or both where
    that run scored them."""

    column: dict[str, str] = field(default_factory=dict)
    run: str = ""


@dataclass(frozen=True)
class Method:
    """A method and its settings; `mentor` is the cell {method, student} whose student teaches this one, or, with `seeds`, the
    cells of these seeds."""

    method: str
    mentor: dict[str, Any] = field(default_factory=dict)
    only: dict[str, list[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The whole file. `theirs` are the papers' own numbers, out of papers.toml beside it."""

    name: str
    title: str
    data: dict[str, Data]
    students: dict[str, Student]
    methods: dict[str, Method]
    note: str = ""
    teachers: dict[str, dict[str, Teaching]] = field(default_factory=dict)
    baseline: list[str] = field(default_factory=list)
    budget: str = ""
    seeds: list[int] = field(default_factory=lambda: [defaults.SEED])
    fractions: list[float] = field(default_factory=lambda: [1.0])
    labels: list[float] = field(default_factory=lambda: [1.0])
    same_rows: bool = False
    tolerance: float = defaults.VERIFY_TOLERANCE
    keep_students: bool = True
    papers: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    theirs: list[dict[str, Any]] = field(default_factory=list)

    def settings_of(self, data: str, student: str, method: str) -> dict[str, Any]:
        """train's keywords for cells of these three."""
        return {**self.settings, **self.data[data].settings, **self.students[student].settings, **self.methods[method].settings}


def read(file: str | Path) -> Study:
    """The study in `file`. Raises `UsageError` that names the file, the key and what would be right."""
    path = Path(file)
    raw = _toml(path)
    where = path.name
    if "theirs" in raw or "name" in raw:
        raise UsageError(f"{where}: leave out 'theirs' and 'name', which are made; papers = [...] names papers.toml's tables")
    study = _parse(Study, {**raw, "name": path.stem, "theirs": _papers(path, raw.get("papers", []))}, where)
    for table in ("data", "students", "methods", "teachers"):
        for name in getattr(study, table):
            if not _NAME.fullmatch(name):
                raise UsageError(f"{where}: {table}.{name}: a name has letters, digits and dashes")
    _check(study, where)
    return study


def place(text: str) -> str:
    """`text` with environment variables put in. Raises `UsageError` naming one that is not set."""
    missing = [name for name in _variables(text) if name not in os.environ]
    if missing:
        raise UsageError(f"{text}: {missing[0]} is not set; export {missing[0]}=FOLDER first")
    return string.Template(text).safe_substitute(os.environ)


def _variables(text: str) -> list[str]:
    return [name for a, b in re.findall(r"\$(?:(\w+)|\{(\w+)\})", text) if (name := a or b)]


def _check(study: Study, where: str) -> None:
    def known(what: str, name: str, names: Any) -> None:
        if name not in names:
            raise UsageError(f"{where}: {what}: {cards.unknown('entry', name, sorted(names))}")

    for name, data in study.data.items():
        cards.load(Task, data.task)
        if bool(data.source) == bool(data.train):
            raise UsageError(f"{where}: data.{name}: give source = \"...\" or [data.{name}.train], one of them")
        if data.source and (data.dev or data.test):
            raise UsageError(f"{where}: data.{name}: source = \"...\" has its own splits; leave out its dev and test, or give "
                             "train too instead of source")
        if data.folds is not None and data.folds < 2:
            raise UsageError(f"{where}: data.{name}.folds = {data.folds}: give at least 2")
    for name, method in study.methods.items():
        if method.method not in METHODS:
            raise UsageError(f"{where}: methods.{name}: {cards.unknown('method', method.method, list(METHODS))}")
        if method.method == "logit-kd" and not method.mentor or method.mentor and method.method not in MENTORED:
            raise UsageError(f"{where}: methods.{name}: logit-kd has mentor = {{method = \"...\", student = "
                             "\"...\"}}, hybrid may have one, and no other method")
        if method.mentor:
            for axis, names in (("method", study.methods), ("student", study.students)):
                known(f"methods.{name}.mentor", method.mentor.get(axis, ""), names)
            seeds = method.mentor.get("seeds", study.seeds)
            if not isinstance(seeds, list) or not seeds or any(seed not in study.seeds for seed in seeds):
                raise UsageError(f"{where}: methods.{name}.mentor.seeds = {seeds!r}: give some of the study's seeds = "
                                 f"{study.seeds}")
    for name in study.baseline:
        known("baseline", name, study.methods)
    if study.budget:
        known("budget", study.budget, study.methods)
    for name, per_data in study.teachers.items():
        for data, teaching in per_data.items():
            known(f"teachers.{name}", data, study.data)
            if not (teaching.column or teaching.run):
                raise UsageError(f"{where}: teachers.{name}.{data}: give column = {{...}} or run = \"FOLDER\" (both where "
                                 "the run scored what the column says)")
    for key in ("fractions", "labels"):
        for share in getattr(study, key):
            if not (0 < share <= 1 or (key == "labels" and share == 0)):
                raise UsageError(f"{where}: {key} has {share:g}: a share is above 0 and at most 1")
    if not (study.seeds and study.fractions and study.labels and study.data and study.students and study.methods):
        raise UsageError(f"{where}: seeds, fractions, labels, data, students and methods must not be empty")
    for seed in study.seeds:
        if not 0 <= seed < 2**32:
            raise UsageError(f"{where}: seeds has {seed}: give whole numbers from 0 to {2**32 - 1}")
    names = {"data": study.data, "student": study.students, "method": study.methods, "teacher": study.teachers,
             "seed": study.seeds, "fraction": study.fractions, "labels": study.labels,
             "fold": range(max(data.folds or 1 for data in study.data.values()))}
    for entry in (*study.data.items(), *study.students.items(), *study.methods.items()):
        for axis, allowed in entry[1].only.items():
            if axis not in AXES:
                raise UsageError(f"{where}: {entry[0]}.only: {cards.unknown('axis', axis, list(AXES))}")
            for value in allowed:
                if value not in names[axis]:
                    raise UsageError(f"{where}: {entry[0]}.only.{axis}: there is no {value!r} in the study")


def _papers(path: Path, names: Any) -> list[dict[str, Any]]:
    """The values of the papers.toml tables `names`, each with its table's source."""
    if not names:
        return []
    tables = _toml(path.with_name("papers.toml"))
    found = []
    for name in _parse(list[str], names, f"{path.name}: papers"):
        if name not in tables:
            raise UsageError(f"{path.name}: papers: {cards.unknown('table', name, sorted(tables))}")
        table = tables[name]
        found += [{**{k: v for k, v in table.items() if k != "values"}, **value} for value in table["values"]]
    return found


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: no such study file; the studies are in benchmarks/studies/") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name}: not valid TOML ({error})") from error


def _parse(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` wants it: nothing is guessed, only a whole number stands for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        return _parse(next(arg for arg in args if arg is not types.NoneType), value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _parse(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_parse(args[0], item, where) for item in value]
    if hint is Any or type(value) is hint:
        return value
    if hint is float and type(value) is int:
        return float(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
        hint, "a list" if origin is list else "a table")
    raise UsageError(f"{where} = {value!r:.60}: {wanted} is wanted")


def _build(kind: Any, table: dict[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    inline = "settings" in fields and kind is not Study  # train's keywords stand beside the table's own
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if inline and key in TRAIN:
            settings[key] = _parse(TRAIN[key], value, f"{where}: {key}")
        elif key in fields and not (inline and key == "settings"):
            values[key] = _parse(hints[key], value, f"{where}: {key}")
        else:
            known = {*fields, *TRAIN} - {"settings"} if inline else fields
            raise UsageError(f"{where}: {cards.unknown('key', key, sorted(known))}")
    if kind is Study:
        for key, value in values.get("settings", {}).items():
            if key not in TRAIN:
                raise UsageError(f"{where}: settings: {cards.unknown('key', key, sorted(TRAIN))}")
            values["settings"][key] = _parse(TRAIN[key], value, f"{where}: settings.{key}")
    if settings:
        values["settings"] = settings
    for name, each in fields.items():
        if name not in values and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: the key {name!r} is missing")
    return kind(**values)
