"""An engine that answers requests, and the process around it: one JSON object a line on stdin, one on stdout.

First comes the job (see engines), answered by {load_ms, first_request_ms, ...}, or with `prepare` by {settings} and the end;
then requests {text or ids, row, n}, answered by {ms, text, ...}; at last {"end": true}, answered by what memory it took.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from edgedistill import machine
from edgedistill.bench import engines
from edgedistill.errors import Error


class Served:
    """An engine of a job, open; `opened` tells how that went. Raises `Error` where a package is missing."""

    def __init__(self, job: dict[str, Any]) -> None:
        kind = engines.ENGINES[job["engine"]]
        lacking = engines.missing(job["engine"])
        if lacking:
            raise Error(lacking)
        if job.get("prepare"):
            self.opened: dict[str, Any] = {"settings": kind.prepare(job)}
            return
        self.engine = kind(job)
        if job.get("cold"):
            for place in ("place", "made"):
                _forget(Path(job.get(place, job["place"])))
        self.imported = machine.rss_mb()
        machine.reset_peak()
        begin = time.perf_counter()
        self.engine.open()
        loaded = time.perf_counter()
        self.engine.ask(job["first"])
        self.opening = machine.peak_rss_mb()
        machine.reset_peak()
        self.opened = {
            "load_ms": 1e3 * (loaded - begin), "first_request_ms": 1e3 * (time.perf_counter() - loaded),
            **{key: getattr(self.engine, key) for key in ("precision", "bytes", "read_by_a_token", "settings")}}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, timed; to the last one, what memory there was."""
        if request.get("end"):
            serving = machine.peak_rss_mb()
            return {"peak_rss_mb": round(max(self.opening, serving) - self.imported, 1),
                    "serving_mb": round(serving - self.imported, 1), "pss_mb": _pss_mb()}
        begin = time.perf_counter()
        answer = self.engine.ask(request)
        return {"ms": 1e3 * (time.perf_counter() - begin), **answer}


def main() -> None:
    """Serves what comes on stdin. What libraries print on stdout goes to stderr, so that only answers are there."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    served = None
    for line in sys.stdin:
        try:
            if served is None:
                served = Served(json.loads(line))
                answer = served.opened
            else:
                answer = served.ask(json.loads(line))
        except Error as error:
            answer = {"error": str(error)}
        except Exception as error:  # a library's own kind: its words go into one line
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()


def _forget(folder: Path) -> None:
    """Lets the system drop a folder's files from its cache, where it can: the next reading comes from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not on the disk yet is not dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _pss_mb() -> float | None:
    """The process's share of all resident memory, pages that several processes map counted in parts."""
    try:
        match = re.search(r"^Pss:\s*(\d+) kB", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return round(int(match[1]) * 1024 / 1e6, 1) if match else None


if __name__ == "__main__":
    main()
