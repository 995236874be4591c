"""The run folder: one folder a stage, each with a manifest that says what was done, from what, where.

A finished stage asked for again with the same configuration is not repeated; with another one it refuses and names
the difference. Only `config` and the hashes in `inputs` make the configuration: threads and the like do not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edgedistill import machine
from edgedistill.errors import Error, UsageError


def sha256(path: Path) -> str:
    """The file's sha256 as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Like `write_json`, for text."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises `Error` when it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Error(f"{path} cannot be read ({error}); remove it or run its stage again with --overwrite") from error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or forbidden disk into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC):
            raise Error(f"no space left for {path}; what was finished is kept: free space, then give the same "
                        "command again") from error
        raise Error(f"{path} cannot be written ({error.strerror}); check its rights or give another --run") from error


class Stage:
    """One stage's folder in a run. `finished` holds the result when there is nothing left to do."""

    def __init__(self, run: str | Path, name: str, config: dict[str, Any], inputs: dict[str, str],
                 overwrite: bool = False) -> None:
        """Opens or makes `run/name`. `inputs` maps names to sha256.

        Raises `UsageError` when the folder holds another configuration, or another process works on it.
        """
        self.path = Path(run) / name
        self.name, self.config, self.inputs = name, json.loads(json.dumps(config)), inputs
        self.manifest_path = self.path / "manifest.json"
        self.start = time.monotonic()
        self.finished: dict[str, Any] | None = None
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.path / ".lock")
        try:
            self._open(overwrite)
        except BaseException:
            self.close()
            raise

    def _open(self, overwrite: bool) -> None:
        if overwrite and self.manifest_path.exists():  # never a folder that no stage made
            self._clear()
        old = _manifest(self.manifest_path)
        if old and old["state"] != "done" and self._differences(old) and not self._begun():
            self._clear()  # it failed before it made anything (a wrong file, a gate): no reason to refuse
            old = None
        if old:
            self._check(old)
        self.seconds_before = old["seconds"] if old else 0.0
        self.resumed = bool(old) and old["state"] != "done"
        if old and old["state"] == "done":
            self.finished = old["result"]
        else:
            self._write("running")

    def done(self, result: dict[str, Any], outputs: list[Path], **more: Any) -> dict[str, Any]:
        """Marks the stage finished; `result` becomes `result.json` and part of the manifest."""
        write_json(self.path / "result.json", result)
        hashes = {str(p.relative_to(self.path).as_posix()): sha256(p) for p in [*outputs, self.path / "result.json"]}
        self._write("done", outputs=hashes, result=result, **more)
        self.close()
        return result

    def checkpoint(self) -> None:
        """Notes the time spent so far, so that a kill does not lose it."""
        self._write("running")

    def seconds(self) -> float:
        """Wall time of this stage over all its starts, as far as it was noted."""
        return round(self.seconds_before + time.monotonic() - self.start, 1)

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _differences(self, old: dict[str, Any]) -> list[str]:
        return differences(old, {"config": self.config, "inputs": self.inputs})

    def _begun(self) -> bool:
        """Whether there is work that could be lost: more than the manifest, a copy of the rows and `.part` folders."""
        made = (child for child in self._children() if child.name not in ("manifest.json", "data") and child.suffix != ".part")
        return any(p.is_file() and p.stat().st_size for child in made for p in [child, *child.rglob("*")])

    def _check(self, old: dict[str, Any]) -> None:
        differences = self._differences(old)
        if differences:
            raise UsageError(f"{self.path} was made with another configuration: {'; '.join(differences[:3])}. "
                             "Give --overwrite to replace it or another --run")

    def _clear(self) -> None:
        for child in self._children():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def _children(self) -> list[Path]:
        """What is in the folder, but for the lock and for other stages (`export/optimum` in `export`)."""
        return [child for child in self.path.iterdir() if child.name != ".lock" and not (child / "manifest.json").is_file()]

    def _write(self, state: str, **more: Any) -> None:
        write_json(self.manifest_path, {
            **machine.origin("manifest"), "stage": self.name, "state": state, "config": self.config,
            "inputs": self.inputs, "seconds": self.seconds(), "peak_memory_mb": machine.peak_rss_mb(), **more})


def finished(run: str | Path, name: str) -> dict[str, Any] | None:
    """The manifest of a finished stage, None where there is none."""
    manifest = _manifest(Path(run) / name / "manifest.json")
    return manifest if manifest and manifest["state"] == "done" else None


def _manifest(path: Path) -> dict[str, Any] | None:
    """The stage's manifest, None where there is none. Raises `Error` for what no stage wrote."""
    if not path.exists():
        return None
    manifest = read_json(path)
    keys = {"state", "config", "inputs", "seconds"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise Error(f"{path} is no manifest of edgedistill; remove it or run its stage again with --overwrite")
    return manifest


# Where a run has what can be asked: (stage, folder).
PLACES = (("export", "bundle"), ("export", "optimum"), ("train", "student"), ("train", "student-ood"))


def subject_name(place: str | Path) -> str:
    """A subject's name for results, without a path: the run's folder for what lies in one, else the last part."""
    path = Path(place).resolve()
    for stage, folder in PLACES:
        if path.name == folder and path.parent.name == stage:
            return f"{path.parents[1].name}-{folder}"
    return path.stem if path.suffix == ".gguf" else path.name


def file_name(*parts: str) -> str:
    """A result's file: what it is of, without characters that a path or another system gives a meaning."""
    return re.sub(r'[/\\:*?"<>|\s]', "-", "_".join(part for part in parts if part)) + ".json"


class Journal:
    """An append-only JSONL file that survives a kill: a line is there whole, or it is dropped on opening."""

    def __init__(self, path: Path) -> None:
        """Opens `path` for appending and cuts off a half-written last line."""
        self.path = path
        with disk_errors(path):
            self._file = open(path, "a+b", buffering=0)  # unbuffered: a line that was written is in the kernel
            size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            self.rows = []
            whole = 0
            for number, line in enumerate(self._file.read().split(b"\n")[:-1], 1):
                try:
                    self.rows.append(json.loads(line))
                except ValueError as error:
                    raise Error(f"{path}:{number} is damaged; remove that line and give the command again") from error
                whole += len(line) + 1
            if whole < size:
                self._file.truncate(whole)

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row. Raises `Error` when the disk is full; what was there stays whole."""
        data = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            with disk_errors(self.path):
                while data:  # a write may be partial when the disk fills up; the rest then raises
                    data = data[self._file.write(data):]
        except Error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise
        self.rows.append(row)

    def close(self) -> None:
        """Flushes to the disk and closes."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._file.close()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two configurations, each with `config` and the hashes of its `inputs`, differ in, in words."""
    a, b = ({**each["config"], **{f"{name} (hash)": digest[:12] for name, digest in each["inputs"].items()}}
            for each in (old, new))
    return [f"{key} is {_short(a.get(key))} there, {_short(b.get(key))} asked" for key in sorted({*a, *b})
            if a.get(key) != b.get(key)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def lock(path: Path) -> IO[bytes]:
    """An exclusive lock, released by the system when the process ends in whatever way. Raises `UsageError` where it is
    another's."""
    with disk_errors(path):
        file = open(path, "a+b")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UsageError(f"another process works on {path.parent}; wait for it or give another --run") from error
    return file
