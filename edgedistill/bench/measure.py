"""Rounds of requests through engines that take turns, and what follows from their times."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgedistill.bench.compare import SITTINGS, compare, in_turns
from edgedistill.bench.engines import ENGINES, missing
from edgedistill.bench.health import Energy, Health
from edgedistill.bench.probe import Product
from edgedistill.bench.process import Inline, Process
from edgedistill.edge.format import Format
from edgedistill.progress import Progress, clock, say
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval
from edgedistill.tasks.task import Task

PROBE = "probe"
_TEXT = "Mara has 14 pears and buys 9 more . Then she gives 5 of them to her brother . How many pears has she now ? "
_WARM_UP = 3
_PAUSE = 0.02  # seconds between requests: the threads of the one before may still be looking for work
_QUICK = 50    # seconds where a minute must do; what opens the engines counts too


@dataclass(frozen=True)
class Workload:
    """What every engine is asked: requests (see worker), and the rows that tell what is right. `where` says whose they are."""

    requests: list[dict[str, Any]]
    card: Task | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    where: dict[str, Any] | None = None

    @classmethod
    def of(cls, card: Task, rows: list[Row], where: dict[str, Any] | None) -> Workload:
        """A task's questions."""
        requests = [{"text": card.question(row), "row": row.to_dict()} for row in rows]
        return cls(requests, card, {row.id: row for row in rows}, where)

    @classmethod
    def text(cls, bundle: Path, form: Format, input_tokens: int | None, output_tokens: int | None) -> Workload:
        """A built-in text, or what fits exactly so many tokens of it; `output_tokens` forces how many are written."""
        request: dict[str, Any] = {"text": _TEXT.strip(), "row": {"id": "", "choices": []}, "n": output_tokens}
        if input_tokens:
            tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
            text = _TEXT * (1 + input_tokens // 8)
            request["ids"] = replace(form, max_input_tokens=input_tokens).encode_source(tokenizer, text, "label")
        return cls([request])


def measure(jobs: dict[str, dict[str, Any]], counts: list[int], work: Workload, rounds: int, *, quick: bool = False,
            python: str = sys.executable, inline: bool = False) -> dict[str, Any]:
    """{data, results, comparisons, probes, health, raw} of the engines, for each count of threads.

    Peers run by the interpreter `python`. With `inline` all is opened in this process and the machine is not probed: that is
    for emulated boards, whose times mean nothing.
    """
    asked = f"{len(work.rows)} question{'s' * (len(work.rows) > 1)}" if work.rows else "a built-in text"
    say(f"bench: {', '.join(jobs)}; {rounds} rounds of {asked} at {' and '.join(map(str, counts))} threads")
    start, health = time.monotonic(), Health()
    found: dict[str, Any] = {"data": work.where, "results": [], "comparisons": [], "probes": [], "raw": []}
    energy = Energy()
    health.start()
    try:
        with tempfile.TemporaryDirectory() as place:
            made = _made(jobs, max(counts), work, Path(place), python)
            for i, count in enumerate(counts, 1):
                turns = Turns(made, count, work, energy, Inline if inline else Process)
                until = start + _QUICK * i / len(counts) if quick else None
                turns.run(rounds, 1 if inline or quick else min(rounds, SITTINGS), until)
                entries, comparisons = turns.entries(), turns.comparisons()
                for key, values in (("results", entries), ("comparisons", comparisons), ("probes", turns.probes()),
                                    ("raw", turns.raw())):
                    found[key] += values
                _tell(entries, comparisons)
    finally:
        health.stop()
    found["health"] = {**health.result(), "energy": energy.source}
    for line in found["health"]["why"]:
        say(f"  INVALID: {line}")
    for line in found["health"]["notes"]:
        say(f"  note: {line}")
    say(f"bench: {clock(time.monotonic() - start)}")
    return found


def _made(jobs: dict[str, dict[str, Any]], threads: int, work: Workload, place: Path,
          python: str) -> dict[str, dict[str, Any]]:
    """The jobs with the interpreter of each and, for peers, what their converters made in `place` and their best settings."""
    made = {}
    for i, (name, job) in enumerate(jobs.items()):
        job = {**job, "first": work.requests[0], "python": sys.executable}
        if "student" in job:
            if not ENGINES[job["engine"]].extra or missing(job["engine"]):  # what an extra of ours brings runs here
                job["python"] = python
            (place / str(i)).mkdir()
            job |= {"made": str(place / str(i)), "threads": threads}
            with Process(name, {**job, "prepare": True}, job["python"]) as maker:
                job |= maker.opened
        made[name] = job
    return made


def _tell(entries: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    ratios = {each["other"]: each for each in comparisons}
    for e in entries:
        right = "" if e["accuracy"] is None else f", {100 * e['accuracy']:.1f} % of {e['counted']} right"
        say(f"  {e['name']}, {e['threads']} thread{'s' if e['threads'] > 1 else ''}: p50 {e['p50_ms']:.1f} ms, "
            f"p90 {e['p90_ms']:.1f}, p99 {e['p99_ms']:.1f}; {e['input_tokens']} tokens in, {e['output_tokens']:g} out{right}; "
            f"load {e['load_ms']:.0f} ms, peak memory {e['peak_rss_mb']:.0f} MB, {e['bytes'] / 1e6:.1f} MB")
        if e["name"] in ratios:
            ratio = ratios[e["name"]]
            say(f"    takes {ratio['ratio']:.2f} times {ratio['name']} ({ratio['ci95'][0]:.2f} to {ratio['ci95'][1]:.2f})"
                + ("" if ratio["different"] else ": no difference"))


class Turns:
    """Engines with one count of threads, opened, asked in turns and closed again by `run`; then `entries` and the rest tell.

    `jobs`: {name: an engine's job (see engine), made}. `opener` is `Process` or `Inline`.
    """

    def __init__(self, jobs: dict[str, dict[str, Any]], threads: int, work: Workload, energy: Energy, opener: Any = Process,
                 ) -> None:
        self.threads, self.work, self.requests, self.energy, self.opener = threads, work, work.requests, energy, opener
        self.jobs = {name: {**job, "threads": threads} for name, job in jobs.items()}
        self.sittings: list[dict[str, list[dict[str, Any]]]] = []  # answers by engine, round by round
        self.opened: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        self.memory: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        self.cold: dict[str, float] = {}
        self.joules: dict[str, float] = dict.fromkeys(jobs, 0.0)

    @property
    def answers(self) -> dict[str, list[dict[str, Any]]]:
        """Answers by engine, of all sittings."""
        return {name: [answer for sitting in self.sittings for answer in sitting[name]] for name in self.sittings[0]}

    def run(self, rounds: int, sittings: int, until: float | None = None) -> None:
        """`rounds` rounds in so many `sittings`; with a time `until` which (of `time.monotonic`) it may take, fewer, of one at
        least, and one to warm up. Each sitting opens all anew."""
        for name, job in self.jobs.items():
            with self._open(name, {**job, "cold": True}) as cold:
                self.cold[name] = cold.opened["load_ms"]
        progress = Progress(f"bench, {self.threads} threads", rounds, "rounds")
        for i in range(sittings):
            self._sitting(range(i * rounds // sittings, (i + 1) * rounds // sittings), until, progress)
        progress.close()

    def _open(self, name: str, job: dict[str, Any]) -> Any:
        time.sleep(_PAUSE)  # what was opened before may still be at work
        return self.opener(name, job, *([job["python"]] if self.opener is Process else []))

    def _sitting(self, rounds: range, until: float | None, progress: Progress) -> None:
        with ExitStack() as stack:
            processes = {}
            order = list(self.jobs)
            Random(f"open {rounds.start}").shuffle(order)  # who comes first gets other memory
            for name in order:
                processes[name] = stack.enter_context(self._open(name, self.jobs[name]))
                self.opened[name].append(processes[name].opened)
            reads = next((o[0]["read_by_a_token"] for o in self.opened.values() if o[0]["read_by_a_token"]), None)
            self.reads = reads or self.opened[order[0]][0]["bytes"]
            if self.opener is Process:
                processes[PROBE] = stack.enter_context(Process(PROBE, {
                    "engine": "probe", "threads": self.threads, "read_by_a_token": self.reads, "first": {}}))
            answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
            asks = {name: self._asking(process, answers[name]) for name, process in processes.items()}
            in_turns(asks, range(-1 if until else -_WARM_UP, 0))
            for i in rounds:
                in_turns(asks, range(i, i + 1))
                progress.advance()
                if until is not None and time.monotonic() > until:
                    break
            for name in self.jobs:
                self.memory[name].append(processes[name].ask({"end": True}))
        self.sittings.append(answers)

    def _asking(self, process: Any, answers: list[dict[str, Any]]) -> Callable[[int], float]:
        """Asks a process the question of a round, keeps the answer (rounds before 0 warm up), returns its time."""
        def ask(i: int) -> float:
            request = self.requests[i % len(self.requests)]
            time.sleep(_PAUSE)
            before = self.energy.joules()
            answer = process.ask(request)
            if before is not None and i >= 0 and process.name != PROBE:
                self.joules[process.name] += self.energy.joules() - before
            if i >= 0 and "read_ms" not in answer and process.name != PROBE:  # what a peer takes up to its first token
                answer["first_ms"] = process.ask({**request, "n": None, "limit": 1})["ms"]
            if i >= 0:
                answers.append({**answer, "request": i % len(self.requests)})
            return answer["ms"]
        return ask

    def entries(self) -> list[dict[str, Any]]:
        """An entry of `results` for each engine (DESIGN section 2)."""
        return [self._entry(name) for name in self.jobs]

    def _entry(self, name: str) -> dict[str, Any]:
        answers, opened = self.answers[name], self.opened[name]
        memory = self.memory[name]
        pss = [each["pss_mb"] for each in memory if each["pss_mb"] is not None]
        times = [answer["ms"] for answer in answers]
        p50, p90, p95, p99 = (round(float(q), 3) for q in np.percentile(times, [50, 90, 95, 99]))
        first = [a.get("first_ms", a.get("tokenize_ms", 0.0) + a.get("read_ms", 0.0)) for a in answers]
        forced = bool(self.requests[0].get("n"))
        # The first scores choose a token and cost no step; the end, unless a length is forced, is a step of its own.
        steps = [max(0, answer["tokens_out"] - forced) for answer in answers]
        decode = [max(0.0, ms - before) for ms, before in zip(times, first, strict=True)]
        token_ms = sum(decode) / sum(steps) if sum(steps) else None
        probe = [answer["ms"] for answer in self.answers.get(PROBE, [])]
        n, engine = len(answers), self.jobs[name]["engine"].replace("gguf", "llama.cpp")
        phases = {"tokenize_ms": _median(answers, "tokenize_ms"), "read_ms": _median(answers, "read_ms"),
                  "decode_ms": round(median(decode), 3), "token_ms": token_ms and round(token_ms, 3)}
        return {
            "name": name, "engine": engine, "precision": opened[0]["precision"], "threads": self.threads,
            "input_tokens": round(median(a["tokens_in"] for a in answers)),
            "output_tokens": round(fmean(a["tokens_out"] for a in answers), 1), "n": n, "p50_ms": p50, "p90_ms": p90,
            "p95_ms": p95, "p99_ms": p99, "mean_ms": round(fmean(times), 3), "first_token_ms": round(median(first), 3),
            "tokens_per_s": token_ms and round(1e3 / token_ms, 1), "load_ms": _median(opened, "load_ms"),
            "load_cold_ms": round(self.cold[name], 1), "first_request_ms": _median(opened, "first_request_ms"),
            "phases": phases, **{key: max(each[key] for each in memory) for key in ("peak_rss_mb", "serving_mb")},
            "pss_mb": max(pss) if pss else None, "bytes": opened[0]["bytes"], **self._counted(name),
            "joules": round(self.joules[name] / n, 4) if self.energy.source != "not measured" else None,
            "floor_ms": self._floor(opened[0]), "probe_ratio": round(p50 / median(probe), 4) if probe else None,
            "settings": opened[0]["settings"]}

    def _counted(self, name: str) -> dict[str, Any]:
        """{accuracy, correct, counted, ci95} over the rows that were asked, each once."""
        card, rows = self.work.card, self.work.rows
        texts: dict[str, str] = {}
        for answer in self.answers[name]:
            row = self.requests[answer["request"]].get("row")
            if row and row["id"] in rows:
                texts.setdefault(row["id"], answer["text"])
        if not card or not texts:
            return {"accuracy": None, "correct": None, "counted": 0, "ci95": None}
        correct = sum(card.same(card.parse(text, rows[identity].choices), card.label(rows[identity]))
                      for identity, text in texts.items())
        return {"accuracy": round(correct / len(texts), 4), "correct": correct, "counted": len(texts),
                "ci95": interval(correct, len(texts))}

    def _floor(self, opened: dict[str, Any]) -> float | None:
        """Milliseconds that reading a token's weights takes at the rate of the probe, in the same rounds."""
        if not opened["read_by_a_token"] or PROBE not in self.answers:
            return None
        seconds = median(answer["read_s"] for answer in self.answers[PROBE])
        return round(1e3 * seconds * opened["read_by_a_token"] / self.reads, 3)

    def comparisons(self) -> list[dict[str, Any]]:
        """Every other engine against the first, round by round; none of fewer sittings than that takes."""
        first, *others = self.jobs
        times = [{name: [answer["ms"] for answer in answers] for name, answers in sitting.items()} for sitting in self.sittings]
        return [{"name": first, "other": other, "threads": self.threads, **compare([(t[first], t[other]) for t in times])}
                for other in others if len(times) >= SITTINGS]

    def probes(self) -> list[dict[str, Any]]:
        """[{threads, read_gb_s, read_bytes, gemm_gflops, ms}], medians; nothing where there was no probe."""
        answers = self.answers.get(PROBE)
        return [{"threads": self.threads, "ms": round(median(a["ms"] for a in answers), 3), "read_bytes": self.reads,
                 "read_gb_s": round(self.reads / median(a["read_s"] for a in answers) / 1e9, 2),
                 "gemm_gflops": round(Product.flops / median(a["product_s"] for a in answers) / 1e9, 1)}] if answers else []

    def raw(self) -> list[dict[str, Any]]:
        """Every round's milliseconds, in the order of the rounds."""
        return [{"name": name, "threads": self.threads, "ms": [round(answer["ms"], 3) for answer in answers]}
                for name, answers in self.answers.items()]


def _median(answers: list[dict[str, Any]], key: str) -> float | None:
    values = [answer[key] for answer in answers if key in answer]
    return round(median(values), 3) if values else None
