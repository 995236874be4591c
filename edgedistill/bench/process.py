"""The bench's side of an engine's process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import edgedistill
from edgedistill.errors import Error, UsageError

ROOT = Path(edgedistill.__file__).parents[1]  # of the package: a folder, or a packed file


@cache
def _alone() -> Path:
    """A folder with this package and nothing else: for a peer's interpreter, whose other packages are to be its own."""
    folder = Path(tempfile.mkdtemp(prefix="edgedistill-"))
    atexit.register(shutil.rmtree, folder, True)
    source = Path(edgedistill.__file__).parent
    try:
        (folder / "edgedistill").symlink_to(source, target_is_directory=True)
    except OSError:  # a system without links
        shutil.copytree(source, folder / "edgedistill")
    return folder


class Process:
    """An engine behind pipes: `ask` gives it a request and waits for the answer. A context manager: it ends the process."""

    def __init__(self, name: str, job: dict[str, Any], python: str = sys.executable) -> None:
        """Starts `python` (an interpreter with the engine's packages) on `job`; `opened` is its first answer.

        Raises `UsageError` with the engine's own words where it cannot be opened.
        """
        self.name = name
        threads = str(job["threads"])
        own = python == sys.executable
        env = {**os.environ, "PYTHONPATH": str(ROOT if own else _alone()), "TOKENIZERS_PARALLELISM": "false", **{
               f"{library}_NUM_THREADS": threads for library in ("OMP", "OPENBLAS", "MKL")}}
        self.noise = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen([python, "-m", "edgedistill.bench.worker"], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=self.noise, env=env)
        except OSError as error:
            raise UsageError(f"{python} cannot be started ({error.strerror}); give --peers-python an interpreter") from error
        try:
            self.opened = self.ask(job)
        except BaseException:
            self.__exit__()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises `Error` where the process ended."""
        line = b""
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.noise.seek(0)
            words = self.noise.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise Error(f"{self.name}: its process ended with {self.process.returncode} ({words[-1][:200]})")
        answer = json.loads(line)
        if "error" in answer:
            raise UsageError(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.noise):
            with contextlib.suppress(OSError):  # what it did not read any more
                pipe.close()


class Inline:
    """The same without a process: for boards that are emulated, and for pairs that are compared in one process."""

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        from edgedistill.bench.worker import Served

        self.name, self.served = name, Served(job)
        self.opened, self.ask = self.served.opened, self.served.ask

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        del self.served, self.ask
