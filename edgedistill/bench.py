"""`bench`: latency, load time, memory and bytes of a bundle on this machine. Needs no torch.

Each thread count runs in a process of its own, so that load time and peak memory are its own; in that process every
request is timed whole (tokenise, decode, detokenise).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgedistill import defaults, machine, runs
from edgedistill.errors import Error, UsageError
from edgedistill.progress import clock, say

_TEXT = "Mara has 14 pears and buys 9 more . Then she gives 5 of them to her brother . How many pears has she now ? "


def bench(
    bundle: str | None = None, *, run: str = defaults.RUN, threads: list[int] | None = None,
    input_tokens: int | None = None, output_tokens: int | None = None, n: int = defaults.BENCH_RUNS,
) -> dict[str, Any]:
    """Measures a bundle (default: the run's) and returns the result object (DESIGN section 2).

    Without `input_tokens` the run's own dev questions are asked (else a built-in text) and outputs end where the
    student ends them; with both lengths given, every request has exactly those. Raises `UsageError`.
    """
    folder = Path(bundle) if bundle else Path(run) / "export" / "bundle"
    if not (folder / "bundle.json").is_file():
        raise UsageError(f"{folder} is no bundle; run edgedistill export first, or name one")
    if n < 1 or (input_tokens or 1) < 1 or (output_tokens or 1) < 1 or min(threads or [1]) < 1:
        raise UsageError("--n, --threads, --input-tokens and --output-tokens must be at least 1")
    counts = threads or sorted({1, machine.cores()})
    say(f"bench: {folder.name}, threads {', '.join(map(str, counts))}, {n} requests each after a warm-up")
    job = {"bundle": str(folder), "texts": _texts(run) if input_tokens is None else None, "input_tokens": input_tokens,
           "output_tokens": output_tokens, "n": n}
    results, raw = [], []
    start = time.monotonic()
    for count in counts:
        entry, samples = _measure({**job, "threads": count})
        results.append(entry)
        raw.append({"threads": count, "ms": samples})
        say(f"  {count} thread{'s' if count > 1 else ''}: p50 {entry['p50_ms']:.1f} ms, p90 {entry['p90_ms']:.1f} ms, "
            f"p99 {entry['p99_ms']:.1f} ms; {entry['input_tokens']} tokens in, {entry['output_tokens']} out; "
            f"load {entry['load_ms']:.0f} ms, peak memory {entry['peak_rss_mb']:.0f} MB, {entry['bytes'] / 1e6:.1f} MB")
    result = {**machine.origin("bench"), "subject": runs.subject_name(folder), "results": results,
              "health": {"loadavg": _loadavg()}, "raw": raw}
    with runs.disk_errors(Path(run) / "bench"):
        (Path(run) / "bench").mkdir(parents=True, exist_ok=True)
    shape = f"{input_tokens or 'own'}-{output_tokens or 'own'}"
    file = Path(run) / "bench" / f"{result['subject']}_{shape}_t{'-'.join(map(str, counts))}.json"
    runs.write_json(file, result)
    say(f"bench: {clock(time.monotonic() - start)}; {file}")
    return result


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in its own process: {entry, samples}."""
    import numpy as np
    import onnxruntime  # noqa: F401 -- imported before the memory is read
    import tokenizers  # noqa: F401

    from edgedistill.edge import Student, bundle

    imported = machine.peak_rss_mb()
    start = time.perf_counter()
    student = Student.load(job["bundle"], job["threads"])
    load_ms = 1e3 * (time.perf_counter() - start)
    texts = job["texts"] or [_fitted(student, job["input_tokens"] or 32)]
    out = job["output_tokens"]

    def ask(text: str) -> int:
        return len(student.generate(text, max_new_tokens=out, min_new_tokens=out or 0).ids)

    for text in texts[:3] * 2:
        ask(text)
    samples, lengths, firsts = [], [], []
    for i in range(job["n"]):
        text = texts[i % len(texts)]
        start = time.perf_counter()
        lengths.append(ask(text))
        samples.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        student.generate(text, max_new_tokens=1)
        firsts.append(1e3 * (time.perf_counter() - start))
    sources = [len(student.format.encode_source(student.tokenizer, text, "label")) for text in texts]
    p50, p90, p99 = (round(float(q), 3) for q in np.percentile(samples, [50, 90, 99]))
    first = float(np.median(firsts))
    mean_out = float(np.mean(lengths))
    steps = max(mean_out - (1 if out else 0), 1e-9)  # a forced length has no end-of-text step
    entry = {
        "engine": "edge", "precision": student.manifest["precision"], "threads": job["threads"],
        "input_tokens": round(float(np.median(sources))), "output_tokens": round(mean_out, 1), "n": job["n"],
        "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "first_token_ms": round(first, 3),
        "tokens_per_s": round(1e3 * steps / max(float(np.mean(samples)) - first, 1e-3), 1) if mean_out > 1 else None,
        "load_ms": round(load_ms, 1), "peak_rss_mb": round(machine.peak_rss_mb() - imported, 1),
        "bytes": sum(f["bytes"] for name, f in student.manifest["files"].items() if name.endswith(bundle.ONNX))}
    return {"entry": entry, "samples": [round(sample, 3) for sample in samples]}


def _measure(job: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
    code = "import json, sys; from edgedistill.bench import work; print(json.dumps(work(json.loads(sys.stdin.read()))))"
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Error(f"the measuring process failed: {reason[:200]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["entry"], answer["samples"]


def _texts(run: str) -> list[str]:
    """The run's dev questions, or the built-in text."""
    from edgedistill.tasks import data as rows_

    path = Path(run) / "teach" / "data" / "dev.jsonl"
    return [row.input for row in rows_.read_file(path)][:50] if path.is_file() else [_TEXT.strip()]


def _fitted(student: Any, tokens: int) -> str:
    """A text that the student reads as exactly `tokens` tokens (prefix and end included), or as near as it goes."""
    form, tokenizer = student.format, student.tokenizer
    words = (_TEXT * (1 + tokens // 8)).split()
    best = words[0]
    for i in range(1, len(words)):
        text = " ".join(words[:i])
        if len(form.encode_source(tokenizer, text, "label")) > tokens:
            break
        best = text
    return best


def _loadavg() -> list[float] | None:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
