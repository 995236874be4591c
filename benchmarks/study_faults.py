"""A study that is killed, whose disk is full, whose result files are damaged: nothing lost, nothing counted twice.

    python benchmarks/study_faults.py [--kills 20]

Two methods x two folds x two seeds of a tiny T5 on built-in problems, with a checkpoint after every step. A study that nothing
disturbs is compared with one that goes through faults in random order and is started again after each: SIGKILL at a random
moment; no file may grow over a random limit, as on a disk that is full (an error in one line is asked for, no traceback); a
finished cell's file cut in two, or an answer in it changed, which must be noticed and made anew. In the end all cells' answers
and the study's entries must be the undisturbed ones, and each row of the data counted once for a method and seed. Writes
benchmarks/results/study-faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.tasks import wordmath

HERE = Path(__file__).parent
ROWS = {"train": 40, "test": 16}
OFTEN = "import edgedistill.defaults as d; d.CHECKPOINT_MINUTES = 0; from edgedistill.cli import main; main()"
STUDY = """
title = "faults"
baseline = ["finetune"]
budget = "finetune"
seeds = [0, 1]
[settings]
epochs = 3
batch_size = 8
learning_rate = 0.003
[data.words]
task = "wordmath"
source = "{place}/data"
folds = 2
[students.tiny]
student = "{place}/tiny"
[teachers.given.words]
column = {{rationale = "why"}}
[methods.finetune]
method = "finetune"
[methods.step-by-step]
method = "step-by-step"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    import tiny_students

    rng, faults = random.Random(args.seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["EDGEDISTILL_READINGS"] = str(place / "readings.jsonl")
        tiny_students.t5().save(place / "tiny", {}, "# card\n")
        (place / "data").mkdir()
        for split, n in ROWS.items():
            (place / "data" / f"{split}.jsonl").write_text("".join(json.dumps({
                "id": row["id"], "input": row["input"], "label": row["label"], "why": f"It asks for {row['label']}."}) + "\n"
                for row in wordmath.generate(split, n)), encoding="utf-8")
        (place / "faults.toml").write_text(STUDY.format(place=place), encoding="utf-8")
        start = time.monotonic()
        whole = started(place, "whole")
        assert whole.wait() == 0, whole.stderr.read()
        took, run = time.monotonic() - start, place / "disturbed"
        while sum(faults.values()) < 2 * args.kills or faults["killed"] < args.kills:
            kind = rng.choice(["killed", "killed", "killed", "full", "cut", "changed"])
            cells = sorted((run / "cells").glob("*.json"))
            if kind in ("cut", "changed") and cells:
                path = rng.choice(cells)
                text = path.read_text(encoding="utf-8")
                turned = re.sub('"correct": (true|false)', turned_over, text, count=1)
                path.write_text(turned if kind == "changed" else text[: len(text) // 2], encoding="utf-8")
            elif kind == "full":
                limit = 10 ** rng.uniform(2, 6)
                process = started(place, "disturbed", int(limit))
                said = process.communicate()[1].decode()
                assert "Traceback" not in said, said
                if process.returncode == 0:
                    continue  # it had room enough
                assert "no space left" in said, said
            elif kind == "killed":
                process = started(place, "disturbed")
                try:
                    process.wait(rng.uniform(0, took / 3))
                    continue  # all was done before
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
            else:
                continue
            faults[kind] += 1
            print(dict(faults), len(cells), "cells", flush=True)
        last = started(place, "disturbed")
        said = last.communicate()[1].decode()
        assert last.returncode == 0, said
        answers = {name: told(place / name) for name in ("whole", "disturbed")}
        counted = Counter((result["config"]["axes"]["method"], result["config"]["axes"]["seed"], p["id"])
                          for path in (run / "cells").glob("*.json") for result in [runs.read_json(path)]
                          for p in result["tests"]["words"]["predictions"])
        entries = [[{**entry, "seconds": None} for entry in runs.read_json(place / name / "study.json")["entries"]]
                   for name in ("whole", "disturbed")]  # all but what the time was
        result = {
            **machine.origin("study-faults"), "seed": args.seed, "faults": dict(faults), "cells": len(answers["disturbed"]),
            "rows_counted": len(counted), "wanted": 2 * 2 * sum(ROWS.values()),
            "counted_twice": sum(n > 1 for n in counted.values()),
            "same_answers": answers["whole"] == answers["disturbed"], "same_entries": entries[0] == entries[1],
            "set_aside": len(list((run / "cells").glob("*.damaged*")))}
    assert result["rows_counted"] == result["wanted"] and not result["counted_twice"], result
    assert result["same_answers"] and result["same_entries"], result
    runs.write_json(HERE / "results" / "study-faults.json", result)
    print(json.dumps(result))


def started(place: Path, name: str, limit: int | None = None) -> subprocess.Popen[bytes]:
    """The study, begun or gone on with; no file of it may grow over `limit` bytes."""
    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-c", OFTEN, "study", str(place / "faults.toml"), "--run", str(place / name), "--threads", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=full if limit else None)


def turned_over(match: re.Match[str]) -> str:
    """The other truth value."""
    return match[0].replace(match[1], str(match[1] == "false").lower())


def told(run: Path) -> dict[str, Any]:
    """Each cell's answers, by its name."""
    return {path.stem: [(p["id"], p["text"], p["correct"]) for p in runs.read_json(path)["tests"]["words"]["predictions"]]
            for path in (run / "cells").glob("*.json")}


if __name__ == "__main__":
    main()
