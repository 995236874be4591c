"""`run`: a bundle answers a text or a file of texts, without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgedistill.errors import UsageError
from edgedistill.tasks import data as rows_


def run(bundle: str, text: str | None = None, *, file: str | None = None, column: dict[str, str] | None = None,
        explain: bool = False, vote: int = 1, abstain: float = 0.0, as_json: bool = False,
        threads: int | None = None) -> list[dict[str, Any]]:
    """Prints the answer to `text`, or to each row of `file`, and returns them; `vote` and `abstain` as in `Student.answer`.

    Raises `UsageError`.
    """
    from edgedistill.edge import Student

    if (text is None) == (file is None):
        raise UsageError("give either a text or --file FILE")
    if vote < 1 or not 0 <= abstain <= 1:
        raise UsageError(f"--vote {vote}, --abstain {abstain:g}: give at least one sample, and a confidence between 0 and 1")
    student = Student.load(bundle, threads)
    rows = [("", text, ())] if text is not None else [
        (row.id, student.task.question(row) if student.task else row.input, row.choices)
        for row in rows_.read_file(Path(file), column)]
    answers = []
    for identity, question, choices in rows:
        answer = asdict(student.answer(question, explain, choices, vote, abstain))
        entry = {**({"id": identity} if file else {}), **answer, "confidence": round(answer["confidence"], 4)}
        answers.append(entry)
        print(json.dumps(entry, ensure_ascii=False) if as_json else _line(entry), flush=True)
    return answers


def _line(entry: dict[str, Any]) -> str:
    """`42   ( 84 / 2 )   0.97`, with the id in front and the rationale below where there are any."""
    value = entry["value"] if entry["value"] is not None else "no answer"
    parts = [entry.get("id"), value, entry["text"] if entry["text"] != value else None,
             f"confidence {entry['confidence']:.2f}", entry["votes"] and f"votes {entry['votes']:.0%}"]
    line = "   ".join(part for part in parts if part)
    return f"{line}\n    {entry['rationale']}" if entry["rationale"] else line
