"""The bundle: what is copied to the device. Read and checked here, written by `edgedistill.export`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from edgedistill.errors import UsageError

MANIFEST = "bundle.json"
ONNX = (".onnx", ".onnx_data", ".bin")  # graphs and their weights


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there, inside the folder, and unchanged.

    Raises `UsageError` naming the file that is missing, changed, or outside.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} is no bundle: it has no {MANIFEST}; edgedistill export makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        manifest["graph"]["kind"], manifest["format"]["family"], manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: not a bundle's manifest ({error!r}); export the bundle again") from error
    for name, entry in files.items():
        check(folder, name, entry)
    return manifest


def check(folder: Path, name: str, entry: dict[str, Any]) -> Path:
    """The path of a file of the bundle after comparing its bytes and sha256 with `entry`."""
    parts = PurePosixPath(name).parts
    if len(parts) != 1 or name in (".", "..") or "\\" in name or ":" in name:
        raise UsageError(f"bundle file {name!r} is not a plain name; do not trust this bundle")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise UsageError(f"bundle file {name} is missing from {folder}; copy the whole folder again")
    try:
        expected_size, expected_hash = int(entry["bytes"]), str(entry["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{MANIFEST} does not describe {name}; export the bundle again") from error
    if path.stat().st_size != expected_size or digest(path) != expected_hash:
        raise UsageError(f"bundle file {name} differs from the one that was exported; copy the folder again")
    return path


def digest(path: Path) -> str:
    """sha256 as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
