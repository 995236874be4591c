"""SIGKILL at 20 random moments, for a GGUF file and for a server: nothing lost, nothing twice, the same bytes.

    python benchmarks/teach_kill.py [--teacher in-process|url]

The embedded teacher, 50 built-in rows with at most 24 new tokens, 2 samples at temperature 0.8, 2 sequences at once,
`--deterministic`, with soft targets where the engine gives them. The server is asked zero-shot: it computes each prompt
anew, and long ones would be most of the time. A run that nothing disturbs is compared byte for byte with
one that is killed at 20 random moments, some while it loads, the others spread over the samples, and goes on each time. Once
more without `--deterministic`: every (id, sample) exactly once. The server is llama-cpp-python's own, on loopback, and lives
on. Writes benchmarks/results/teach-kill.json.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgedistill import cards, kit, machine, runs
from edgedistill.cards import Teacher
from edgedistill.teach import read_corpus
from edgedistill.teach.source import locate

ROWS, SAMPLES, KILLS, SOFT = 50, 2, 20, 20
RESULT = Path(__file__).parent / "results" / "teach-kill.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", choices=("in-process", "url"), help="only this one; the other's trials are kept")
    only = parser.parse_args().teacher
    model = str(locate(cards.load(Teacher, "smollm2-135m")))
    found = []
    with tempfile.TemporaryDirectory() as folder, served(model) as url:
        soft = ["--soft-targets", str(SOFT)]
        card = Path(folder) / "short.toml"
        own = (kit.folder("teachers") / "tasks" / "wordmath.toml").read_text(encoding="utf-8")
        card.write_text(re.sub(r"(?m)^max_new_tokens = .*", "max_new_tokens = 24", own), encoding="utf-8")
        for teacher, flags in (("in-process", ["--gguf", model]), ("url", ["--url", url, "--prompt", "zero-shot"])):
            if only not in (None, teacher):
                continue
            for mode, more in (("deterministic", ["--deterministic"]), ("default", [])):
                more = more + (soft if teacher == "in-process" else [])
                found.append({"teacher": teacher, "mode": mode,
                              **trial(Path(folder) / f"{teacher}-{mode}", ["--task", str(card), *flags, *more])})
                print(found[-1], flush=True)
    assert all(t["once_each"] and (t["same_bytes"] or t["mode"] == "default") for t in found), found
    if RESULT.exists():
        found += [t for t in runs.read_json(RESULT)["trials"] if t["teacher"] not in {new["teacher"] for new in found}]
    runs.write_json(RESULT, {**machine.origin("teach-kill"), "rows": ROWS, "samples": SAMPLES, "trials": found})


def trial(folder: Path, flags: list[str]) -> dict[str, Any]:
    """The killed run against the undisturbed one."""
    assert command(folder / "whole", flags).wait() == 0
    rng, reached = random.Random(0), []
    journal = folder / "killed" / "teach" / "journal.jsonl"
    while len(reached) < KILLS:
        # One in four while it loads; else once some more samples are there, at any moment of the next.
        goal = _lines(journal) + (0 if rng.random() < 0.25 else rng.randint(1, 4))
        process = command(folder / "killed", flags)
        while _lines(journal) < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3 if goal > (reached or [0])[-1] else 2.0))
        if process.poll() is not None:
            raise SystemExit(f"done before the kill {len(reached) + 1}: take more rows")
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(_lines(journal))
    if command(folder / "killed", flags).wait() != 0:
        raise SystemExit("the killed run does not go on")
    rows = [(row["id"], row["sample"]) for row in read_corpus(folder / "killed")]
    entries = [line for line in journal.read_text(encoding="utf-8").splitlines() if line]
    files = [path.relative_to(folder / "whole") for path in [folder / "whole/teach/corpus.jsonl",
                                                             *sorted((folder / "whole/teach").glob("soft/*"))]]
    return {"kills": len(reached), "samples_there_at_each_kill": reached, "samples": len(rows), "different": len(set(rows)),
            "journal_lines": len(entries), "wanted": ROWS * SAMPLES,
            "once_each": len(rows) == len(set(rows)) == len(entries) == ROWS * SAMPLES,
            "same_bytes": all((folder / "whole" / f).read_bytes() == (folder / "killed" / f).read_bytes() for f in files),
            "files_compared": [path.as_posix() for path in files]}


def command(run: Path, flags: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([
        sys.executable, "-m", "edgedistill", "teach", "--limit", str(ROWS), "--samples", str(SAMPLES), "--temp", "0.8",
        "--parallel", "2", "--threads", "1", "--run", str(run), *flags], stderr=subprocess.DEVNULL)


@contextmanager
def served(model: str) -> Iterator[str]:
    """llama-cpp-python's own server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", "--model", model, "--n_ctx", "2048", "--port",
                                str(port), "--n_threads", "1"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    main()
