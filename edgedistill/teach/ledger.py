"""The ledger: what the teacher can do on these rows and what it cost, before anybody trains on it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgedistill.progress import clock, say
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval, majority
from edgedistill.tasks.task import Task
from edgedistill.teach.verify import usable


def ledger(corpus: list[dict[str, Any]], rows: list[Row], task: Task, seconds: float,
           api_price: tuple[float, float] | None) -> dict[str, Any]:
    """The teacher's ceiling over `rows`, with what each rejected sample was rejected for.

    `rows_usable` have a rationale to train on, of these `rows_hinted` only by being told the label. `vote` is the
    accuracy of the most frequent value of a row's samples, None without labels or with one sample a row. `api_dollars`
    is what these tokens would cost at `api_price` (input, output) dollars a million tokens, a prompt counted for each of
    its samples; None where no price is given.
    """
    own = [entry for entry in corpus if not entry["hint"]]
    answered = {entry["id"] for entry in own if entry["answer"] is not None}
    good = {entry["id"] for entry in own if usable(entry)}
    hinted = {entry["id"] for entry in corpus if entry["hint"] and usable(entry)} - good
    asked = [entry for entry in corpus if entry["finish_reason"] not in ("prompt_too_long", "scored")]
    tokens = [sum(entry[key] for entry in asked) for key in ("prompt_tokens", "generated_tokens")]
    return {
        "rows": len(rows), "rows_answered": len(answered), "rows_usable": len(good | hinted), "rows_hinted": len(hinted),
        "rationales": sum(map(usable, corpus)),
        "dropped": dict(Counter(entry["reason"] for entry in corpus if "reason" in entry).most_common()),
        "vote": _vote(own, rows, task), "prompt_tokens": tokens[0], "generated_tokens": tokens[1],
        "generated_per_s": round(tokens[1] / max(seconds, 1e-3), 1),
        "api_dollars": round((tokens[0] * api_price[0] + tokens[1] * api_price[1]) / 1e6, 4) if api_price else None,
    }


def show(found: dict[str, Any], seconds: float) -> None:
    """Prints a ledger."""
    n = found["rows"]
    say("teach ledger")
    say(f"  rows      {found['rows_answered']} of {n} answered, {found['rows_usable']} with a usable rationale"
        + (f" ({found['rows_hinted']} of them told the label)" if found["rows_hinted"] else "")
        + f": {found['rationales']} rationales")
    if found["vote"]:
        low, high = found["vote"]["ci95"]
        say(f"  vote      the most frequent answer is right in {100 * found['vote']['accuracy']:.1f} % of the labelled rows "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f})")
    for reason, count in found["dropped"].items():
        say(f"  dropped   {count:5} because {reason}")
    cost = "--api-price IN,OUT (dollars a million tokens) adds what an API would charge" if found["api_dollars"] is None else (
        f"an API would charge {found['api_dollars']:.2f} dollars at the price given")
    say(f"  cost      {clock(seconds)}, {found['prompt_tokens']} prompt and {found['generated_tokens']} new tokens "
        f"({found['generated_per_s']:g}/s); {cost}")


def _vote(own: list[dict[str, Any]], rows: list[Row], task: Task) -> dict[str, Any] | None:
    taught: dict[str, list[dict[str, Any]]] = {}
    for entry in own:
        taught.setdefault(entry["id"], []).append(entry)
    labels = {row.id: task.label(row) for row in rows if row.label is not None}
    if not labels or max(map(len, taught.values()), default=0) < 2:
        return None
    right = 0
    for row in rows:
        if row.id in labels:
            winner = majority([entry["value"] for entry in taught.get(row.id, [])])
            right += winner is not None and any(
                entry["value"] == winner and task.same(task.parse(entry["answer"], row.choices), labels[row.id])
                for entry in taught[row.id])
    return {"accuracy": round(right / len(labels), 4), "ci95": interval(right, len(labels))}
