"""Damaged and forged bundles, each loaded and asked in a process of its own: a clear error, or an answer; nothing else.

    python benchmarks/bundle_fuzz.py [--cases 2000]

Tiny students with the real operators (a T5 and a Llama, int8 and int4, with a calibration), copied and mutated: the manifest's
JSON (values swapped, deleted, made huge, other types, paths like ../x and /etc/passwd), the graphs, the weights and the
tokenizer (bytes flipped, cut off, doubled, swapped with one another, emptied, replaced by noise or by a link). Half are signed
again, so that the hash check lets them through.
A case is a failure where the process dies by a signal, takes more than 20 s or 4 GB, raises anything but an error of ours, or
where a file beside the bundle was changed. Writes benchmarks/results/bundle-fuzz.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS, BYTES = 20, 4 << 30
HUGE = [2**31, 2**63, -1, 0, 10**30, 1e308]
FORGED = ["../outside", "/etc/passwd", "..", "a/../../b", "C:\\x", "\0", "", "weights.bin\n"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from edgedistill import machine, runs

    outcomes: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as place:
        originals = [make(family, precision, Path(place) / f"{family}-{precision}")
                     for family in ("t5", "decoder") for precision in ("int8", "int4")]
        (Path(place) / "outside").write_text("canary")
        for case in range(args.cases):
            rng = random.Random(f"{args.seed}-{case}")
            folder = Path(place) / "case"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(originals[case % 4], folder)
            done = mutate(folder, rng)
            signed = case % 8 > 3
            if signed:
                sign(folder)
            before = {p: p.stat().st_mtime_ns for p in Path(place).rglob("*") if folder not in p.parents and p != folder}
            outcome, detail = attempt(folder)
            after = {p: p.stat().st_mtime_ns for p in Path(place).rglob("*") if folder not in p.parents and p != folder}
            if before != after:
                outcome, detail = "touched", str(set(before.items()) ^ set(after.items()))[:200]
            outcomes[f"{'signed' if signed else 'unsigned'}: {outcome}"] += 1
            if outcome not in ("refused", "answered"):
                failures.append({"case": case, "mutation": done, "signed": signed, "outcome": outcome, "detail": detail})
                print(failures[-1], flush=True)
    result = {**machine.origin("bundle-fuzz"), "cases": args.cases, "seed": args.seed,
              "outcomes": dict(sorted(outcomes.items())), "failures": failures}
    runs.write_json(HERE / "results" / "bundle-fuzz.json", result)
    print(json.dumps(result["outcomes"]))


def make(family: str, precision: str, folder: Path) -> Path:
    """A bundle to be mutated."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import tiny_students

    from edgedistill import cards, runs
    from edgedistill.cards import Target
    from edgedistill.export import write

    student = tiny_students.t5() if family == "t5" else tiny_students.decoder()
    write(student, folder, precision, cards.load(Target, "x86-vnni"))
    manifest = runs.read_json(folder / "bundle.json")  # what the gates would have added
    runs.write_json(folder / "bundle.json", {**manifest, "calibration": {"slope": 0.8, "offset": 0.1}, "accuracy": 0.5})
    return folder


def mutate(folder: Path, rng: random.Random) -> str:
    """Changes one to three things; returns what."""
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        files = sorted(p for p in folder.iterdir() if not p.is_symlink())
        path = rng.choice(files)
        if path.name == "bundle.json" or rng.random() < 0.3:
            done.append(_manifest(folder / "bundle.json", rng))
            continue
        data = bytearray(path.read_bytes())
        kind = rng.choice(["flip", "flip", "cut", "double", "swap", "empty", "noise", "link"])
        at = rng.randrange(max(1, len(data)))
        if kind == "flip":
            for _ in range(rng.choice([1, 4, 64])):
                if data:
                    data[rng.randrange(min(len(data), rng.choice([200, 5000, len(data)])))] = rng.randrange(256)
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[: 1 + at]
        elif kind == "empty":
            data.clear()
        elif kind == "noise":
            data[at: at + 1000] = rng.randbytes(1000)
        elif kind == "swap":
            other = rng.choice(files)
            data = bytearray(other.read_bytes())
        path.unlink(missing_ok=True)
        if kind == "link":
            path.symlink_to(rng.choice(["/etc/passwd", "../outside", "/dev/zero"]))
        else:
            path.write_bytes(data)
        done.append(f"{kind} {path.name}")
    return ", ".join(done)


def _manifest(path: Path, rng: random.Random) -> str:
    try:
        manifest = json.loads(b"" if path.is_symlink() else path.read_bytes())
        assert isinstance(manifest, dict)
    except (ValueError, AssertionError):
        return "manifest again"
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(manifest)
    node, key = rng.choice(places)
    kind = rng.choice(["delete", "huge", "type", "forge", "swap"])
    if kind == "delete":
        del node[key]
    elif kind == "huge":
        node[key] = rng.choice(HUGE)
    elif kind == "type":
        node[key] = rng.choice([None, [], {}, "x", True, [[[]]], "a" * 100_000, {"a": {"b": []}}])
    elif kind == "forge" and isinstance(node, dict):
        node[rng.choice(FORGED)] = copy.deepcopy(node.pop(key))
    else:
        other, its = rng.choice(places)
        node[key] = copy.deepcopy(other[its]) if (its in other if isinstance(other, dict) else its < len(other)) else None
    path.write_text(json.dumps(manifest))
    return f"manifest {kind} {key}"


def sign(folder: Path) -> None:
    """Puts the files' true hashes and sizes into the manifest, where it still is one."""
    from edgedistill.edge import bundle

    path = folder / "bundle.json"
    try:
        manifest = json.loads(b"" if path.is_symlink() else path.read_bytes())
        for name in list(manifest["files"]):
            file = folder / name
            if file.is_file() and not file.is_symlink():
                manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": bundle.digest(file)}
        path.write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return


def attempt(folder: Path) -> tuple[str, str]:
    """(outcome, detail) of loading the bundle and asking it, in a forked process with limits."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os.write(write, _try(folder).encode()[:4000])
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], SECONDS)
    said = os.read(read, 4000).decode() if ready else ""
    os.close(read)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ready:
        return "hung", ""
    if os.WIFSIGNALED(status):
        return "crashed", f"signal {os.WTERMSIG(status)}"
    outcome, _, detail = said.partition(" ")
    return outcome or "died", detail


def _try(folder: Path) -> str:
    from edgedistill.edge import Student
    from edgedistill.errors import Error

    try:
        student = Student.load(folder, 1)
        student.answer("Tom has 3 apples and buys 4 more. How many has he?", explain=True)
    except Error as error:
        return f"refused {error}"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}"
    return "answered"


if __name__ == "__main__":
    main()
