"""`bench --pack`: one file with a bundle, its questions and this bench, which any machine with three packages runs.

    python3 PACK.pyz [--threads 1,4] [--n 100] [--quick] [--out result.json]

A Python zip application. Every member's sha256 is in it and is checked before anything is opened; the bundle is unpacked to a
temporary folder while it is measured. It brings back one JSON, of `bench`'s own kind, and says how many of the answers are
those that the bundle gave where it was packed; where they are not all the same it ends with 3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.bench.measure import Workload, measure
from edgedistill.bench.process import ROOT
from edgedistill.edge import bundle as bundles
from edgedistill.errors import Error, UsageError
from edgedistill.progress import say
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task

_HASHES, _WORK, _BUNDLE = "SHA256.json", "work.json", "bundle/"
_CODE = ("__init__.py", "defaults.py", "errors.py", "kit.py", "machine.py", "progress.py", "runs.py", "bench", "edge", "tasks")
_GOLDEN = 20  # questions whose answers are compared
_MAIN = b"""import sys
if sys.version_info < (3, 11):
    sys.exit("error: this pack needs Python 3.11 or later, this is " + sys.version.split()[0])
try:
    import numpy, onnxruntime, tokenizers
except ImportError as error:
    sys.exit("error: %s; run: python3 -m pip install numpy 'onnxruntime>=1.31' tokenizers" % error)
from edgedistill.bench.pack import main
sys.exit(main(sys.argv[0], sys.argv[1:]))
"""


def write(path: Path, bundle: Path, work: Workload, rounds: int, threads: list[int] | None) -> dict[str, Any]:
    """Writes the pack and returns {file, bytes, sha256}. Raises `UsageError` where `path` exists."""
    from edgedistill.edge import Student

    if path.exists():
        raise UsageError(f"--pack {path} exists; name another file or remove it")
    manifest = bundles.read(bundle)
    student = Student.load(bundle)
    golden = [_answer(student, request) for request in work.requests[:_GOLDEN]]
    members: dict[str, bytes] = {"__main__.py": _MAIN}
    for name in _CODE:
        place = ROOT / "edgedistill" / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            members[str(file.relative_to(ROOT))] = file.read_bytes()
    members |= {f"{_BUNDLE}{name}": (bundle / name).read_bytes() for name in (bundles.MANIFEST, *manifest["files"])}
    rows = [row.to_dict() for row in work.rows.values()]
    members[_WORK] = json.dumps({
        "subject": runs.subject_name(bundle), "requests": work.requests, "card": work.card and work.card.to_dict(),
        "rows": rows, "where": work.where, "rounds": rounds, "threads": threads, "golden": golden, "packed": machine.now(),
        "commit": machine.commit(), "on": machine.machine()}, ensure_ascii=False).encode()
    members[_HASHES] = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in members.items()}).encode()
    part = path.with_name(path.name + ".part")
    with runs.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as sink:
            sink.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in members.items():
                    # A fixed date: the same bundle and questions give the same bytes but for the time of packing.
                    archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        part.replace(path)
    result = {"file": path.name, "bytes": path.stat().st_size, "sha256": bundles.digest(path)}
    say(f"bench: {path}, {result['bytes'] / 1e6:.1f} MB, sha256 {result['sha256'][:16]}...; on the device: python3 {path.name}")
    return result


def main(pack: str, arguments: list[str]) -> int:
    """What the pack does when it is run."""
    parser = argparse.ArgumentParser(prog=Path(pack).name, description="Measures the packed bundle on this machine.")
    parser.add_argument("--threads", help="thread counts, as 1,2,4 (default: 1 and all cores)")
    parser.add_argument("--n", type=int, help="timed rounds a thread count")
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--inline", action="store_true", help="everything in this process: for emulated boards")
    parser.add_argument("--out", type=Path, help="the result's file (default: PACK-result.json in this folder)")
    args = parser.parse_args(arguments)
    try:
        counts = _counts(args.threads)
        if args.n is not None and args.n < 1:
            raise UsageError(f"--n {args.n}: give at least 1")
        out = _free(args.out, Path(pack).stem)
        members = _checked(Path(pack))
        work = json.loads(members[_WORK])
        result = _measured(members, work, counts or work["threads"] or sorted({1, machine.cores()}), args)
        runs.write_json(out, result)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    say(f"bench: {out}; carry it back to the report")
    golden = result["golden"]
    return 0 if golden["same"] == golden["asked"] else 3


def _counts(text: str | None) -> list[int] | None:
    try:
        counts = [int(part) for part in text.split(",")] if text else None
    except ValueError:
        counts = [0]
    if counts and min(counts) < 1:
        raise UsageError(f"--threads {text}: give counts as 1,2,4")
    return counts


def _free(out: Path | None, stem: str) -> Path:
    """Where the result goes, writable and not there yet: found out before an hour is spent. Raises `UsageError`."""
    found = out or next(path for i in range(1, 10**6) if not (path := Path(f"{stem}-result{f'-{i}' if i > 1 else ''}.json")
                                                              ).exists())
    if found.exists():
        raise UsageError(f"--out {found} exists; name another file or remove it")
    try:
        found.touch()
        found.unlink()
    except OSError as error:
        raise UsageError(f"--out {found} cannot be written ({error.strerror}); name another place") from error
    return found


def _checked(pack: Path) -> dict[str, bytes]:
    """All members, each as its hash says. Raises `UsageError` for one that is missing, added or changed."""
    try:
        with zipfile.ZipFile(pack) as archive:
            names = archive.namelist()
            members = {name: archive.read(name) for name in names}
        hashes = json.loads(members.pop(_HASHES, b"{}"))
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError) as error:
        raise UsageError(f"{pack.name}: {' '.join(str(error).split())[:160]}; copy the file again") from error
    if len(names) != len(set(names)) or set(hashes) != set(members):
        raise UsageError("the pack does not hold the files that it lists; copy it again")
    for name, data in members.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise UsageError(f"{name} in the pack is not as it was packed; copy the file again")
    return members


def _measured(members: dict[str, bytes], work: dict[str, Any], counts: list[int], args: argparse.Namespace) -> dict[str, Any]:
    from edgedistill.bench import ours
    from edgedistill.edge import Student

    card = Task.from_dict(work["card"]) if work["card"] else None
    rows = {row["id"]: Row.from_dict(row) for row in work["rows"]}
    load = Workload(work["requests"], card, rows, work["where"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / work["subject"]
        folder.mkdir()
        for name, data in members.items():
            if name.startswith(_BUNDLE):
                (folder / name.removeprefix(_BUNDLE)).write_bytes(data)
        manifest = bundles.read(folder)
        measured = measure(ours([folder], [manifest]), counts, load, args.n or work["rounds"], quick=args.quick,
                           inline=args.inline)
        student = Student.load(folder)
        same = sum(_answer(student, request) == text
                   for request, text in zip(work["requests"], work["golden"], strict=False))
    say(f"  {same} of {len(work['golden'])} answers are those that it gave where it was packed")
    return {**machine.origin("bench"), "commit": work["commit"], "subject": work["subject"], "task": card and card.name,
            "command": "python3 PACK.pyz", "packed": {"at": work["packed"], "on": work["on"]},
            "golden": {"asked": len(work["golden"]), "same": same}, **measured}


def _answer(student: Any, request: dict[str, Any]) -> str:
    """The bundle's answer to a request, without a forced length."""
    if "ids" in request:
        return student.generate(request["ids"], request["n"]).text
    return student.answer(request["text"], choices=tuple(request["row"]["choices"])).text
