"""What a worker opens and asks.

A job: {engine, place (what is opened: a bundle's folder, a student's, a GGUF file), student (the Hugging Face folder that a
peer is made from), made (where it may write), precision, threads, task, rows, first (a request), settings}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from edgedistill.errors import UsageError


class Engine(ABC):
    """What a worker opens and asks. `bytes` and `read_by_a_token` are known once it is open."""

    packages: tuple[str, ...] = ()  # that its interpreter must have
    extra = ""  # ours, if one brings them: it runs here where they are installed, whatever the peers' interpreter
    precision = ""
    bytes = 0
    read_by_a_token: int | None = None  # bytes of weights that one more token reads

    def __init__(self, job: dict[str, Any]) -> None:
        """Imports what it needs: what that takes is not the engine's memory or time."""
        self.job, self.settings = job, job.get("settings") or {}

    @classmethod
    def prepare(cls, job: dict[str, Any]) -> dict[str, Any]:
        """Makes what is opened, in a process that ends before anything is measured; the best settings."""
        return {}

    @abstractmethod
    def open(self) -> None:
        """Loads it. This is timed."""

    @abstractmethod
    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to {text or ids, row, n, limit}: {text, tokens_in, tokens_out, ...}; `n` tokens, if given, exactly."""


def exactly(wanted: int | None, tokens: list[int]) -> list[int]:
    """The tokens. Raises `UsageError` where another number of them was to be written."""
    if wanted and len(tokens) != wanted:
        raise UsageError(f"it wrote {len(tokens)} of {wanted} tokens, for which it has no room; lower --output-tokens")
    return tokens
