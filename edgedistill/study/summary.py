"""What the finished cells say together: means with intervals, tests against the baseline, the best, curves and bars."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from edgedistill import machine
from edgedistill.study.cell import trained_tokens
from edgedistill.study.grid import Cell
from edgedistill.study.spec import Study
from edgedistill.study.statistics import Outcomes, accuracy, compare
from edgedistill.tasks.metrics import holm

SIGNIFICANT = 0.05
_ENTRY = ("data", "student", "method", "teacher", "fraction", "labels")
_BLOCK = ("data", "test", "student", "fraction", "labels")  # what is compared: methods and teachers on the same of these


def summary(study: Study, planned: list[Cell], results: dict[str, dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    """The result object of a study: `entries`, one for each test set and kind of cell, over its folds and seeds.

    `against` is an entry minus the baseline on the rows that both answered; `p_holm` is corrected for all comparisons with the
    baseline on that test set. `mark` is "best" where an entry is better than each other of its student and share of data, all
    of these comparisons (`behind`: the highest minus the entry) corrected; else "tied" are the highest and those not
    significantly below it.
    """
    entries, outcomes = [], {}
    for key, cells in _grouped(planned).items():
        done = [(cell, results[cell.name]) for cell in cells if cell.name in results]
        for test in dict.fromkeys(name for _, result in done for name in result["tests"]):
            found = answered(done, test)
            entries.append({**dict(zip(_ENTRY, key, strict=True)), "test": test, **_trained([r for _, r in done]),
                            "cells": len(done), "planned": len(cells), "folds": len({cell.fold for cell, _ in done}),
                            **accuracy(found), "against": None,
                            "behind": None, "mark": None})
            outcomes[id(entries[-1])] = found
    blocks: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        blocks[tuple(entry[axis] for axis in _BLOCK)].append(entry)
    for block in blocks.values():
        _against(study, block, outcomes)
        _mark(block, outcomes)
    for key in {(entry["data"], entry["test"]) for entry in entries}:
        family = [e["against"] for e in entries if (e["data"], e["test"]) == key and e["against"]]
        for comparison, p in zip(family, holm([c["p"] for c in family]), strict=True):
            comparison["p_holm"] = p
    done = [results[cell.name] for cell in planned if cell.name in results]
    return {
        **machine.origin("study"), "study": study.name, "title": study.title, "note": study.note, "planned": len(planned),
        "done": len(done), "failed": failed, "commits": sorted({str(r["commit"]) for r in done}),
        "groups": {r["config"]["axes"]["data"]: r["groups"] for r in done if r["groups"]},
        "seconds": round(sum(r["seconds"] for r in done), 1), "entries": entries, "curves": _curves(entries),
        "bars": [_bars(block) for block in blocks.values() if len(block) > 1],
        "elsewhere": [_elsewhere(cell, results[cell.name]["train"]) for cell in planned
                      if cell.name in results and results[cell.name]["train"].get("before")], "theirs": study.theirs}


def _grouped(planned: list[Cell]) -> dict[tuple[Any, ...], list[Cell]]:
    found: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in planned:
        found[tuple(getattr(cell, axis) for axis in _ENTRY)].append(cell)
    return found


def _trained(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over an entry's cells of what their trainings were."""
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {"parameters": results[0]["train"]["parameters"],
            "questions": round(mean([r["train"]["questions"] for r in results])),
            "tokens": round(mean([trained_tokens(r) for r in results])),
            "dev_accuracy": round(mean([r["train"]["best_dev_accuracy"] for r in results]), 4),
            "seconds": round(mean([r["seconds"] for r in results]), 1)}


def answered(done: list[tuple[Cell, dict[str, Any]]], test: str) -> Outcomes:
    """Every answer. Folds share out a data set's own rows; another set's rows are answered by each of them, as by seeds."""
    found = Outcomes({}, {}, {})
    for cell, result in done:
        trial = cell.seed if test.removesuffix("-ood") == cell.data else (cell.fold, cell.seed)
        for prediction in result["tests"].get(test, {"predictions": []})["predictions"]:
            key = trial, prediction["id"]
            found.right[key], found.replica[key] = prediction["correct"], (cell.fold, cell.seed)
            if "group" in prediction:
                found.group[prediction["id"]] = prediction["group"]
    return found


def _against(study: Study, block: list[dict[str, Any]], outcomes: dict[int, Outcomes]) -> None:
    there = {entry["method"] for entry in block}
    name = next((name for name in study.baseline if name in there), None)
    for entry in block if name else []:
        its = [e for e in block if e["method"] == name]
        base = next((e for e in its if e["teacher"] in (None, entry["teacher"])), its[0])
        if base is not entry:
            found = compare(outcomes[id(entry)], outcomes[id(base)])
            entry["against"] = found and {"baseline": name, **found}


def _mark(block: list[dict[str, Any]], outcomes: dict[int, Outcomes]) -> None:
    """An entry with fewer folds than another (a screening on one of them) takes no part; one with fewer seeds does."""
    whole = [entry for entry in block if entry["folds"] == max(e["folds"] for e in block)]
    best = max(whole, key=lambda entry: entry["accuracy"])
    others = [entry for entry in whole if entry is not best]
    found = [compare(outcomes[id(best)], outcomes[id(entry)]) for entry in others]
    ps = holm([each["p"] if each else 1.0 for each in found])
    for entry, each, p in zip(others, found, ps, strict=True):
        entry["behind"] = each and {**each, "p_holm": p}
    tied = [entry for entry, p in zip(others, ps, strict=True) if p >= SIGNIFICANT]
    for entry in [best, *tied] if others else []:
        entry["mark"] = "tied" if tied else "best"


def _curves(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by share of the training rows, where there are several."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    axes = ("data", "test", "student", "method", "teacher", "labels")
    for entry in entries:
        found[tuple(entry[axis] for axis in axes)].append(
            {key: entry[key] for key in ("fraction", "questions", "n", "accuracy", "ci95", "se")})
    return [{**dict(zip(axes, key, strict=True)), "points": sorted(points, key=lambda point: point["fraction"])}
            for key, points in found.items() if len(points) > 1]


def _bars(block: list[dict[str, Any]]) -> dict[str, Any]:
    """What an ablation's bars show: each entry of a block beside the baseline."""
    return {**{axis: block[0][axis] for axis in _BLOCK}, "bars": [
        {**{key: entry[key] for key in ("method", "teacher", "n", "accuracy", "ci95", "mark")},
         "difference": entry["against"] and entry["against"]["difference"],
         "difference_ci95": entry["against"] and entry["against"]["ci95"]} for entry in block]}


def _elsewhere(cell: Cell, made: dict[str, Any]) -> dict[str, Any]:
    """What a cell's training gained on its own dev rows and cost elsewhere, epoch by epoch, and which epoch each rule chose."""
    def best(name: str) -> int | None:
        return max(made["dev"], key=lambda e: (e[name], e["step"]))["step"] if name in made["dev"][0] else None

    chosen = {"own dev rows": best("accuracy"), "the other task's": best("ood_accuracy")}
    return {"cell": cell.name, **{axis: getattr(cell, axis) for axis in _ENTRY}, "points": [
        {**point, "chosen_by": [rule for rule, step in chosen.items() if step == point["step"]]}
        for point in ({"step": 0, **made["before"]}, *made["dev"])]}


def markdown(found: dict[str, Any]) -> str:
    """The summary as Markdown tables, one a test set, the papers' own numbers below ours."""
    lines = [f"# {found['title']}", ""]
    if found["note"]:
        lines += [found["note"], ""]
    lines += [f"{found['done']} of {found['planned']} cells, commit {', '.join(found['commits']) or 'none yet'}."
              + (f" Failed: {', '.join(found['failed'])}." if found["failed"] else ""), ""]
    told = set()
    for data, test in dict.fromkeys((e["data"], e["test"]) for e in found["entries"]):
        rows = [_row(e) for e in found["entries"] if (e["data"], e["test"]) == (data, test)]
        theirs = [t for t in found["theirs"] if t["data"] == data and t.get("test", data) == test]
        told.update(map(id, theirs))
        groups = found["groups"].get(data) if data == test else None
        lines += [f"## {data}" + (f", tested on {test}" if test != data else ""), ""]
        if groups:
            lines += [f"Cross-validated; {groups} groups of rows with one body, each on one side of every split.", ""]
        lines += _table([*rows, *map(_their_row, theirs)]) + [""]
    left = [t for t in found["theirs"] if id(t) not in told]
    if left:
        lines += ["## The papers' numbers on what was not measured here", ""]
        lines += _table([{"data": t["data"] + (f", tested on {t['test']}" if "test" in t else ""), **_their_row(t)}
                         for t in left]) + [""]
    if found["elsewhere"]:
        lines += ["## What the training gained, and what it cost elsewhere", ""]
        lines += [*elsewhere(found), ""]
    lines += ["Accuracy with 95 % intervals (rows of one group drawn together), SE over folds or seeds. The difference is by "
              "paired bootstrap; p is the larger of its and McNemar's (of other seeds the bootstrap's), by Holm for all "
              "comparisons of the table. Bold: better "
              "than each other method of the same student and data; =: highest, or not significantly below it. *Theirs*: the "
              "papers' own numbers, other students and splits, not measured here.", ""]
    return "\n".join(lines)


def _row(e: dict[str, Any]) -> dict[str, str]:
    shown = f"{100 * e['accuracy']:.1f} % ({100 * e['ci95'][0]:.0f} to {100 * e['ci95'][1]:.0f})"
    other, behind = e["against"], e["behind"]
    return {
        "student": f"{e['student']}, {e['parameters'] / 1e6:.3g} M", **_what(e),
        "accuracy": {"best": f"**{shown}**", "tied": f"{shown} ="}.get(e["mark"], shown),
        "SE": f"{100 * e['se']:.1f} ({len(e['replicas'])})" if e["se"] is not None else "", "n": str(e["n"]),
        "minus baseline": f"{100 * other['difference']:+.1f} ({100 * other['ci95'][0]:+.1f} to {100 * other['ci95'][1]:+.1f})"
        if other else "", "p (Holm)": f"{other['p']:.2g} ({other['p_holm']:.2g})" if other else "",
        "behind highest (p, Holm)": f"{100 * behind['difference']:.1f} ({behind['p_holm']:.2g})" if behind else "",
        "dev": f"{100 * e['dev_accuracy']:.1f} %", "tokens": f"{e['tokens']:,}", "minutes": f"{e['seconds'] / 60:.1f}",
        "cells": f"{e['cells']} of {e['planned']}" if e["cells"] < e["planned"] else ""}


def elsewhere(found: dict[str, Any]) -> list[str]:
    """The lines of a table: each epoch's dev accuracies and perplexity, and which rule chose it."""
    return _table([_point(e, point) for e in found["elsewhere"] for point in e["points"]])


def _point(e: dict[str, Any], point: dict[str, Any]) -> dict[str, str]:
    def percent(name: str) -> str:
        return f"{100 * point[name]:.1f} %" if name in point else ""

    return {"data": e["data"], "student": e["student"], **_what(e), "step": str(point["step"]), "dev": percent("accuracy"),
            "the other task's dev": percent("ood_accuracy"), "perplexity of general text":
                f"{point['general_perplexity']:.1f}" if "general_perplexity" in point else "",
            "chosen by": ", ".join(point["chosen_by"])}


def _their_row(t: dict[str, Any]) -> dict[str, str]:
    return {"student": f"*theirs*: {t.get('student', '')}", **_what({"fraction": 1.0, "labels": 1.0, "teacher": None, **t}),
            "accuracy": f"{t['accuracy']:g} %", "source": t["source"] + (f"; {t['note']}" if t.get("note") else "")}


def _what(e: dict[str, Any]) -> dict[str, str]:
    return {"method": f"`{e['method']}`", "teacher": e["teacher"] or "",
            "rows": f"{100 * e['fraction']:g} %" if e["fraction"] < 1 else "",
            "labels": f"{100 * e['labels']:g} %" if e["labels"] < 1 else ""}


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Lines of a Markdown table; columns that are empty throughout are left out."""
    columns = [c for c in dict.fromkeys(name for row in rows for name in row) if any(row.get(c) for row in rows)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows]
