"""Two runs beside each other: the paired test on the rows that both answered."""

from __future__ import annotations

from typing import Any

from edgedistill.report.device import asked_of, model_of, name_of, valid
from edgedistill.report.page import Section, number, p, percent, points, table
from edgedistill.tasks.metrics import paired

_Result = dict[str, Any]


def compare(names: tuple[str, str], first: dict[str, Any], second: dict[str, Any]) -> Section:
    """Accuracy of `first` minus that of `second` on their common rows, and their speed on the same machine."""
    tests = [(a, b, test) for a, b in _pairs(first.get("eval", []), second.get("eval", [])) if (test := common(a, b))]
    if tests:
        body = "".join(p(_sentence(names, a, b, test)) for a, b, test in tests)
        body += table("Paired tests of the two runs", {
            "precision": [_both(a["precision"], b["precision"]) for a, b, _ in tests],
            "rows": [f"{test['n']} of {a['data']}, {a['split']}" for a, _, test in tests],
            f"{names[0]} right": [percent(test["first"]) for *_, test in tests],
            f"{names[1]} right": [percent(test["second"]) for *_, test in tests],
            "difference": [points(test) for *_, test in tests]})
        body += p("On the rows that both answered: 95 % interval by a paired bootstrap, McNemar's exact p.", "soft")
    else:
        body = p(f"{names[0]} and {names[1]} have no evaluated rows in common, so there is no paired test: run edgedistill "
                 "eval on the same rows in both.")
    return Section(f"Which is right more often: {names[0]} or {names[1]}", body + _speed(names, first, second))


def common(a: _Result, b: _Result) -> dict[str, Any] | None:
    """`paired` on the rows of the same id, with {n, first, second}: rows and the shares right; None where there are none."""
    theirs = {entry["id"]: entry["correct"] for entry in b.get("predictions") or []}
    both = [(entry["correct"], theirs[entry["id"]]) for entry in a.get("predictions") or [] if entry["id"] in theirs]
    if not both:
        return None
    ours, others = ([bool(pair[i]) for pair in both] for i in (0, 1))
    return {**paired(ours, others), "n": len(both), "first": sum(ours) / len(both), "second": sum(others) / len(both)}


def _pairs(first: list[_Result], second: list[_Result]) -> list[tuple[_Result, _Result]]:
    """The latest results on the same rows with the same precision; where there are none, the latest on the same rows."""
    def latest(results: list[_Result], *keys: str) -> dict[tuple[Any, ...], _Result]:
        return {tuple(r[key] for key in keys): r for r in results}

    first, second = ([r for r in results if r["precision"] != "gguf"] for results in (first, second))  # a teacher is no run's
    for keys in (("data", "split", "precision"), ("data", "split")):
        ours, theirs = latest(first, *keys), latest(second, *keys)
        if found := [(ours[place], theirs[place]) for place in ours if place in theirs]:
            return found
    return []


def _sentence(names: tuple[str, str], a: _Result, b: _Result, test: dict[str, Any]) -> str:
    low, high = test["ci95"]
    what = f"{_both(a['precision'], b['precision'])}, {a['data']}, {a['split']}"
    what += f": {names[0]} minus {names[1]} is {points(test)}"
    if low <= 0 <= high:
        return f"{what}: these {test['n']} rows do not tell them apart."
    return f"{what}: {names[0] if low > 0 else names[1]} is right more often."


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a} and {b}"


def _speed(names: tuple[str, str], first: dict[str, Any], second: dict[str, Any]) -> str:
    def entries(found: dict[str, Any]) -> dict[tuple[str, str, str, int], dict[str, Any]]:
        return {(model_of(r["machine"]), asked_of(entry, r), name_of(entry), entry["threads"]): entry
                for r in found.get("bench", []) if valid(r) for entry in r["results"]}

    ours, theirs = entries(first), entries(second)
    both = [place for place in ours if place in theirs]
    if not both:
        return ""

    def pair(key: str, place: tuple[str, str, str, int], scale: float = 1.0) -> str:
        return f"{number(ours[place][key] / scale)} and {number(theirs[place][key] / scale)}"

    return p("Speed where both were measured on the same kind of machine, at different times: no test, only a look.") + table(
        "Speed of the two runs", {
            "engine": [name for *_, name, _ in both], "asked": [place[1] for place in both],
            "threads": [place[3] for place in both],
            "p50 ms": [pair("p50_ms", place) for place in both], "MB": [pair("bytes", place, 1e6) for place in both],
            "machine": [place[0] for place in both]})
