"""Cards: teachers, tasks and targets as TOML files, named by their stem, replaceable by a path."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgedistill import kit
from edgedistill.errors import UsageError
from edgedistill.tasks.task import Task


@dataclass(frozen=True)
class Teacher:
    """A teacher card (`teachers/models/*.toml`); teachers/README.md explains each key."""

    name: str
    title: str
    source: str
    licence: str
    distilling: str
    distilling_note: str
    sha256: str = ""
    bytes: int = 0
    format: str = "chat"
    context: int = 4096
    parameters: int = 0

    def __post_init__(self) -> None:
        if self.format not in ("chat", "completion"):
            raise ValueError(f"format = {self.format!r} is neither chat nor completion")
        if self.distilling not in ("allowed", "ask", "forbidden"):
            raise ValueError(f"distilling = {self.distilling!r} is none of allowed, ask, forbidden")
        if not self.source.startswith(("package:", "hf:")):
            raise ValueError(f"source = {self.source!r} starts neither with package: nor with hf:")


@dataclass(frozen=True)
class Target:
    """A device card (`export/targets/*.toml`): which operators a class of CPU gets.

    `linear` is the int8 matrix product: "nbits" (MatMulNBits, weight blocks, needs dot-product instructions to be
    fast) or "integer" (MatMulInteger with a scale for each token, decent on every CPU). `encoder` is that of a T5's
    encoder, which has many tokens at once: "integer" is two to three times as fast there, but saturates on an x86 CPU
    without VNNI (research: onnxruntime's 16-bit sums).
    """

    name: str
    title: str
    linear: str
    threads: int
    encoder: str = "nbits"
    note: str = ""

    def __post_init__(self) -> None:
        for key in ("linear", "encoder"):
            if getattr(self, key) not in ("nbits", "integer"):
                raise ValueError(f"{key} = {getattr(self, key)!r} is neither nbits nor integer")


# Students that have a name. A hub id or a folder may stand instead; `carve:` students come from the embedded GGUF.
STUDENTS = {
    "t5-small": "google-t5/t5-small",
    "t5-base": "google-t5/t5-base",
    "t5-v1_1-small": "google/t5-v1_1-small",
    "t5-v1_1-base": "google/t5-v1_1-base",
    "flan-t5-small": "google/flan-t5-small",
    "flan-t5-base": "google/flan-t5-base",
    "smollm2-135m": "carve:30",
    "carve": "carve:16",
}

_FOLDERS = {Teacher: ("teachers", "models"), Task: ("teachers", "tasks"), Target: ("export", "targets")}
Card = TypeVar("Card", Teacher, Task, Target)


def names(kind: type[Card]) -> list[str]:
    """The names of all cards of a kind, sorted."""
    return sorted(path.stem for path in _folder(kind).glob("*.toml"))


def load(kind: type[Card], name: str) -> Card:
    """The card called `name`, or the one at the path `name`. Raises `UsageError` with the nearest known name."""
    path = Path(name)
    if path.suffix != ".toml":
        path = _folder(kind) / f"{name}.toml"
    if not path.is_file():
        raise UsageError(unknown(kind.__name__.lower(), name, names(kind)))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name}: not valid TOML ({error})") from error
    known = {f.name for f in dataclasses.fields(kind)} - {"name"}
    for key in data:
        if key not in known:
            raise UsageError(f"{path.name}: {unknown('key', key, sorted(known))}")
    return _build(kind, {"name": path.stem, **data}, path)


def unknown(what: str, name: str, candidates: list[str]) -> str:
    """The message for a name that does not exist: the nearest one is suggested, never applied."""
    near = difflib.get_close_matches(name, candidates, 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no {what} {name!r}; {hint}known: {', '.join(candidates)}"


def _build(kind: type[Card], data: dict[str, Any], path: Path) -> Card:
    try:
        return kind.from_dict(data) if kind is Task else kind(**data)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path.name}: {error}") from error


def _folder(kind: type[Card]) -> Path:
    top, sub = _FOLDERS[kind]
    return kit.folder(top) / sub
