"""Every error a user can cause: one line that says what, which value, and what to do next.

    Error (exit 1: the work failed)
    +-- Stopped (exit 1: its time was over; the same command goes on)
    +-- UsageError (exit 2: the request was wrong)
    +-- GateError (exit 3: a quality gate said no)
"""

from __future__ import annotations

import importlib
from types import ModuleType


class Error(Exception):
    """The work failed; the message is shown to the user as it is."""

    exit_code = 1


class Stopped(Error):
    """The time that was given is over; everything up to here is kept."""


class UsageError(Error):
    """The request cannot be carried out as asked."""

    exit_code = 2


class GateError(Error):
    """A quality gate refused the result."""

    exit_code = 3


def need(module: str, extra: str) -> ModuleType:
    """Imports `module`, or raises `UsageError` with the exact pip line of the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module} is not usable here ({error}); run: pip install 'edgedistill[{extra}]'"
        ) from error
