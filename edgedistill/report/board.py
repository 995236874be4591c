"""`report --board`: a table of bench results by machine. A file that does not fit is named in one line."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from edgedistill.errors import UsageError
from edgedistill.report import schema
from edgedistill.report.device import asked_of, model_of, valid
from edgedistill.report.page import number, share_words


def board(folder: str | Path) -> str:
    """A Markdown table of the bench results in `folder` and the folders below it; a sentence where there are none.

    The last result of a machine, subject, engine and thread count on the same rows or lengths stands; invalid ones are named
    below.
    Raises `UsageError` for a folder that is none, or for the first file that does not fit.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"--board {folder} is no folder; give the one that holds the bench results, by machine")
    results = [check(path) for path in sorted(Path(folder).rglob("*.json"))]
    if not results:
        return "No result was added yet."
    lines, left_out = {}, []
    for result in sorted(results, key=lambda result: result["created"]):
        machine = model_of(result["machine"])
        if not valid(result):
            left_out.append(f"{result['subject']} on {machine} ({'; '.join(result['health']['why'])})")
            continue
        for entry in result["results"]:
            right = share_words(entry["accuracy"], entry["ci95"]) if entry.get("accuracy") is not None else ""
            asked = asked_of(entry, result)
            lines[machine, result["subject"], asked, entry["name"], entry["threads"]] = (
                entry["p50_ms"], [number(entry["p50_ms"]), right, asked, number(entry["bytes"] / 1e6),
                                  number(entry["peak_rss_mb"])])
    ordered = sorted(lines.items(), key=lambda item: (item[0][:3], item[1][0]))
    head = ["machine", "student", "engine", "threads", "p50 ms", "right", "on", "MB", "memory MB"]
    table = [head, ["---"] * len(head), *([machine, subject, name, threads, *cells]
                                          for (machine, subject, _, name, threads), (_, cells) in ordered)]
    text = "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in table) if ordered else ""
    return "\n\n".join(filter(None, [text, left_out and f"Left out as invalid: {_cell('; '.join(left_out))}."]))


def check(path: Path) -> dict[str, Any]:
    """The bench result in `path`. Raises `UsageError` that names the file, the key and what is expected there.

    Beside the keys: percentiles rise, an accuracy lies in its interval, each p50 is the median of its raw samples.
    """
    result = schema.read(path, schema.BOARD, "bench")
    for i, entry in enumerate(result["results"]):
        key = f"{path}: results[{i}]"
        order = [entry[name] for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms") if entry.get(name) is not None]
        if order != sorted(order):
            raise UsageError(f"{key}.p50_ms to p99_ms are {order}, expected rising percentiles")
        if entry.get("accuracy") is not None:
            low, high = entry.get("ci95") or (1, 0)
            if not low <= entry["accuracy"] <= high:
                raise UsageError(f"{key}.accuracy is {entry['accuracy']}, expected a ci95 around it")
        samples = [ms for raw in result["raw"] if (raw["name"], raw["threads"]) == (entry["name"], entry["threads"])
                   for ms in raw["ms"]]
        if not samples or abs(statistics.median(samples) - entry["p50_ms"]) > 0.01 * entry["p50_ms"] + 0.01:
            found = f"{statistics.median(samples):.3f}" if samples else "not there"
            raise UsageError(f"{key}.p50_ms is {entry['p50_ms']}, expected the median of its samples in raw, which is {found}")
    return result


def _cell(value: Any) -> str:
    """A value that cannot break a table or bring HTML into a README."""
    text = " ".join(str("" if value is None else value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
