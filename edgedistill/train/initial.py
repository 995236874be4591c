"""The student before its training: loaded, or carved, its vocabulary trimmed; as a folder where several trainings share it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import transformers

from edgedistill import cards, defaults, runs
from edgedistill.edge.format import PREFIXES
from edgedistill.progress import say
from edgedistill.tasks.task import Task
from edgedistill.teach.source import resolve
from edgedistill.train import trainer
from edgedistill.train.carve import carve
from edgedistill.train.students import Student, load
from edgedistill.train.vocabulary import trim_student


def open_student(place: str, texts: Iterable[str], gguf: Path | None = None, layers: int | None = None,
                 vocabulary: int | None = None) -> Student:
    """The student at `place` (a folder or a hub id), or `layers` of the `gguf` file. `vocabulary` trims it to about so many
    pieces, all that `texts` use among them. Raises `UsageError`."""
    texts = [*texts, *PREFIXES.values()]
    if gguf:
        return carve(gguf, texts, layers or defaults.CARVE_LAYERS, vocabulary or defaults.VOCABULARY)
    student = load(place)
    if vocabulary:
        before = student.model.config.vocab_size
        trim_student(student, texts, vocabulary)
        say(f"train: vocabulary trimmed from {before} to {len(student.tokenizer)} pieces")
    return student


def shared(student: str, folder: Path, task: Task, texts: Callable[[], list[str]], *, layers: int | None = None,
           vocabulary: int | None = None, carve_from: str = defaults.TEACHER) -> str:
    """What `train` takes for `student`: `folder`, where it is written once if it must be carved or trimmed (to `texts()`),
    else the student's own place. Raises `UsageError`, and `Error` when the disk is full."""
    place = cards.STUDENTS.get(student, student)
    if not (place.startswith("carve:") or vocabulary):
        return place
    cut = resolve(carve_from) if place.startswith("carve:") else None
    used = texts()
    made_of = {"student": student, "layers": layers or (int(place.removeprefix("carve:")) if cut else None),
               "vocabulary": vocabulary, "from": cut.sha256 if cut else None,
               "texts": hashlib.sha256("\0".join(used).encode()).hexdigest()}
    described = folder / "edgedistill.json"
    if described.is_file() and runs.read_json(described)["provenance"] == made_of:
        return str(folder)
    transformers.logging.disable_progress_bar()
    made = open_student(place, used, cut.path if cut else None, made_of["layers"], vocabulary)
    made.set_task(task)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with trainer.saving(folder):
        part.mkdir(parents=True)
        made.save(part, made_of, f"# {student}, untrained\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return str(folder)
