"""Work on one teach stage: which samples are due, what comes of them, and the corpus made of the journal.

What is due follows from the journal alone, so that a kill at any moment changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import numpy as np

from edgedistill import machine, runs
from edgedistill.progress import Progress, clock, say
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval
from edgedistill.teach import ledger, soft
from edgedistill.teach.asker import Ask, Local, Remote
from edgedistill.teach.completion import Sampling
from edgedistill.teach.prompts import Prompter
from edgedistill.teach.source import Source
from edgedistill.teach.verify import USABLE, judge, settle, usable

TOO_LONG, SCORED = "prompt_too_long", "scored"
_EARLY = 20  # samples after which a teacher that gives no answer is remarked on


def row_seed(seed: int, identity: str, sample: int) -> int:
    """The sampler's seed of one sample: a hash of (run seed, id, sample), 32 bits."""
    return int.from_bytes(sha256(f"{seed}\n{identity}\n{sample}".encode()).digest()[:4], "big")


def due(entries: list[dict[str, Any]], samples: int, enough: int | None) -> list[int]:
    """The samples that a row must still be asked, given its journal entries so far.

    With `enough`, as many as it lacks usable rationales; asked again when they are there, it says whether more are due.
    The samples that a row ends with are the same however often it was interrupted: sample k is asked exactly when
    fewer than `enough` of those before it are usable.
    """
    entries = sorted((e for e in entries if not e["hint"]), key=lambda e: e["sample"])
    have = {entry["sample"] for entry in entries}
    want = samples
    if enough:
        gaps = [sample for sample in range(max(have, default=0)) if sample not in have]
        if gaps:  # of a round that was interrupted; without them it is not known what repeats what
            return gaps
        good = sum(map(usable, settle(entries)))
        want = min(samples, len(have) + max(0, enough - good))
    return [sample for sample in range(want) if sample not in have]


class Session:
    """The rows of one stage and their journal. A context manager: it closes its files."""

    def __init__(self, stage: runs.Stage, prompter: Prompter, rows: list[Row], source: Source,
                 sampling: dict[str, float]) -> None:
        """Opens the journal. Raises `Error` where it, or the soft targets beside it, are damaged."""
        self.stage, self.prompter, self.task, self.rows, self.source = stage, prompter, prompter.task, rows, source
        self.config, self.sampling = stage.config, sampling
        self.samples, self.enough = self.config["samples"], self.config.get("enough")
        self.soft_targets = self.config.get("soft_targets", 0)
        self.journal = runs.Journal(stage.path / "journal.jsonl")
        self.entries: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.journal.rows:
            self.entries[entry["id"]].append(entry)
        self._verified = sum(entry["verdict"] == "verified" for entry in self.journal.rows)
        self.soft = soft.Writer(stage.path / "soft", self.soft_targets, self.journal.rows) if self.soft_targets else None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        if self.soft:
            self.soft.close()

    def due(self) -> list[tuple[Row, list[int], bool]]:
        """(row, samples, whether with a hint) that are to be asked next; empty when the stage has all."""
        found = [(row, samples, False) for row in self.rows
                 if (samples := due(self.entries[row.id], self.samples, self.enough))]
        if found or not self.config.get("hint"):
            return found
        return [(row, [self.samples], True) for row in self.rows
                if row.label is not None and not any(e["hint"] or usable(e) or e["finish_reason"] == TOO_LONG
                                                     for e in self.entries[row.id])]

    def fill(self, asker: Local | Remote) -> None:
        """Asks until nothing is due: once, or in rounds where rows without enough rationales get further samples."""
        work = self.due()
        self._plan(asker, work)
        if self.soft:
            self.soft.name(asker.engine.pieces)
        self._progress = Progress("teach", 0, "samples", settle=asker.slots)
        while work:
            self._progress.total = self._progress.done + sum(len(samples) for _, samples, _ in work)
            if self.config.get("score"):
                self._score(asker, work)
            else:
                self._ask(asker, work)
            work = self.due()
        self._progress.close(self._note())

    def finish(self, api_price: tuple[float, float] | None) -> dict[str, Any]:
        """Makes the corpus of the journal, shards of the soft targets, and the result; prints the ledger."""
        corpus = [entry for row in self.rows
                  for entry in settle(sorted(self.entries[row.id], key=lambda entry: entry["sample"]))]
        path = self.stage.path / "corpus.jsonl"
        runs.write_text(path, "".join(json.dumps({k: v for k, v in entry.items() if k != "soft"}, ensure_ascii=False) + "\n"
                                      for entry in corpus))
        outputs = [path, *sorted((self.stage.path / "data").iterdir())]
        if self.soft:
            outputs += self.soft.finish([entry for entry in corpus if entry["soft"][1]])
        result = self._result(corpus, api_price)
        card = self.source.card
        self.stage.done(result, outputs, task=self.task.to_dict(),
                        teacher=asdict(card) if card else {"name": self.source.name})
        if self.soft:
            self.soft.discard()
        ledger.show(result["ledger"], result["seconds"])
        share = "" if result["accuracy"] is None else (
            f", {result['verified']} verified ({100 * result['accuracy']:.1f} % right)")
        say(f"teach: {len(corpus)} samples of {len(self.rows)} rows in {clock(result['seconds'])}{share}; "
            f"not usable: {result['rejected'] or 'none'}")
        return result

    def _ask(self, asker: Local | Remote, work: list[tuple[Row, list[int], bool]]) -> None:
        for row, samples, hint in work:
            if (row.id, hint) in asker.too_long:
                for sample in samples:
                    self._keep(row, sample, "", TOO_LONG, asker.too_long[row.id, hint], 0, hint)

        def asks() -> Iterator[Ask]:  # lazily: a row is taken when there is room for it
            for row, samples, hint in work:
                if (row.id, hint) not in asker.too_long:
                    places: dict[int, list[int]] = defaultdict(list)
                    for sample in samples:
                        places[row_seed(self.config["seed"], row.id, sample)].append(sample)
                    yield Ask((row, places, hint), row, tuple(seed for seed, its in places.items() for _ in its), hint)

        for done in asker.ask(asks(), Sampling(**self.sampling), self.soft_targets):
            row, places, hint = done.key
            if done.soft is not None:
                soft.check(done.soft, done.text, asker.engine.piece, asker.engine.is_end)
            self._keep(row, places[done.seed].pop(0), done.text, done.finish, done.prompt_tokens, done.generated_tokens, hint,
                       done.soft)

    def _score(self, asker: Local, work: list[tuple[Row, list[int], bool]]) -> None:
        for row, _, _ in work:
            text = row.rationale if self.task.answer_lead in row.rationale else (
                f"{row.rationale} {self.task.answer_lead} {row.stated or self.task.label(row).text}.")
            prompt, records = (asker.too_long[row.id, False], None) if (row.id, False) in asker.too_long else (
                asker.score(row, text, self.soft_targets))
            if records is None:
                self._keep(row, 0, "", TOO_LONG, prompt, 0, False)
            else:
                soft.check(records, "", asker.engine.piece, asker.engine.is_end)
                self._keep(row, 0, text, SCORED, prompt, len(records) - 1, False, records)

    def _keep(self, row: Row, sample: int, text: str, finish: str, prompt: int, generated: int, hint: bool,
              records: np.ndarray | None = None) -> None:
        """Writes down a sample: its records first, so that a kill between the two writes leaves none without an entry."""
        judged = judge(self.task, row, text, "stop" if finish == SCORED else finish, self.prompter.style, hint)
        entry = {
            "id": row.id, "sample": sample, "input": row.input, "label": row.label,
            **({"choices": list(row.choices)} if row.choices else {}), **judged, "hint": hint, "finish_reason": finish,
            "prompt_tokens": prompt, "generated_tokens": generated, "seed": row_seed(self.config["seed"], row.id, sample)}
        if "reason" in entry:  # last, where later keys are
            entry["reason"] = entry.pop("reason")
        if self.soft:
            entry["soft"] = self.soft.add(records) if records is not None else (0, 0)
        self.journal.append(entry)
        self.entries[row.id].append(entry)
        self._verified += entry["verdict"] == "verified"
        self._progress.advance(note=self._note())
        if len(self.journal.rows) == _EARLY and not any(entry["answer"] for entry in self.journal.rows):
            say(f"none of the first {_EARLY} samples has an answer that can be read, the last one begins {text[:60]!r}; "
                "another --prompt or --format may suit this teacher (stop with Ctrl-C; --compare-prompts measures them)")
        if self._progress.done % 50 == 0:
            self.stage.checkpoint()

    def _note(self) -> str:
        return f"{self._verified} verified"

    def _plan(self, asker: Local | Remote, work: list[tuple[Row, list[int], bool]]) -> None:
        style, have, count = self.config["prompt"], len(self.journal.rows), sum(len(samples) for _, samples, _ in work)
        temp = self.sampling["temp"]
        say("teach plan")
        say(f"  teacher   {self.source.name} ({self.source.licence()})")
        say(f"  task      {self.task.name} ({self.task.kind}), {len(self.rows)} rows of {self.config['data']}"
            + (f", up to {self.samples} samples a row" if self.samples > 1 else "")
            + (f" until {self.enough} are usable" if self.enough else ""))
        say(f"  prompt    {style}" + (", the data's own rationales are scored" if self.config.get("score") else ""))
        for line in asker.plan():
            say(line)
        say(f"  sampling  {f'temp {temp:g}' if temp > 0 else 'greedy'}"
            + (f"; soft targets: {self.soft_targets} a token" if self.soft_targets else "")
            + (f"; resumed: {have} samples are there already" if have else ""))
        seconds = asker.estimate(count, len(work))
        if seconds is not None:
            say(f"  time      about {clock(seconds)} (from a probe of this machine)")
        for identity, told in sorted(asker.too_long):
            say(f"  too long  row {identity}: its prompt{' with the hint' if told else ''} and answer exceed the context; kept "
                "with verdict truncated")

    def _result(self, corpus: list[dict[str, Any]], api_price: tuple[float, float] | None) -> dict[str, Any]:
        verdicts = Counter(entry["verdict"] for entry in corpus if not entry["hint"])
        # The first sample of each row: further ones are no independent trials, and with `enough` hard rows have more.
        labelled = [entry for entry in self.journal.rows if entry["label"] is not None and entry["sample"] == 0
                    and not entry["hint"] and not self.config.get("score")]  # a given text is not the teacher's answer
        right = sum(entry["verdict"] == "verified" for entry in labelled)
        seconds = self.stage.seconds()
        return {
            **machine.origin("teach"), "teacher": self.source.name, "teacher_sha256": self.source.sha256,
            "licence": self.source.licence(), "task": self.task.name, "data": self.config["data"],
            "prompt": self.config["prompt"], "rows": len(self.rows), "samples": len(corpus), "verified": verdicts["verified"],
            "accuracy": round(right / len(labelled), 4) if labelled else None,
            "ci95": interval(right, len(labelled)) if labelled else None,
            "prompt_tokens": sum(entry["prompt_tokens"] for entry in corpus),
            "generated_tokens": sum(entry["generated_tokens"] for entry in corpus),
            "seconds": seconds, "rows_per_s": round(len(self.rows) / max(seconds, 1e-3), 3),
            "hints": sum(entry["hint"] for entry in corpus),
            "rejected": {verdict: n for verdict, n in sorted(verdicts.items()) if verdict not in USABLE},
            "ledger": ledger.ledger(corpus, self.rows, self.task, seconds, api_price),
        }
