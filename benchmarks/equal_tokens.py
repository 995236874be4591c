"""The hybrid against every other method on as many trained tokens, from a study's finished cells.

    python benchmarks/equal_tokens.py [--cells benchmarks/results/studies/svamp-folds-gpu/cells]

A study's own tables compare with one baseline and with the highest, whatever their tokens. Here, for each student and budget,
the hybrid that is best by its dev rows stands against each method that is no hybrid, where both have all folds of seed 0:
paired bootstrap by groups of one body, McNemar's test, and Holm's correction for all the comparisons of the file. The tokens
are those of the student's own training: a mentor's come on top. Writes benchmarks/results/equal-tokens.json.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.study import cell as cell_
from edgedistill.study.grid import Cell
from edgedistill.study.statistics import accuracy, compare
from edgedistill.study.summary import answered
from edgedistill.tasks.metrics import holm

HERE = Path(__file__).parent
DATA, FOLDS = "svamp-folds", 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=HERE / "results" / "studies" / "svamp-folds-gpu" / "cells")
    args = parser.parse_args()
    its: dict[tuple[str, float], dict[str, list[tuple[Cell, dict[str, Any]]]]] = defaultdict(lambda: defaultdict(list))
    for cell, found in cell_.load_all(args.cells):
        if cell.data == DATA and cell.seed == 0 and cell.labels == 1:
            its[cell.student, found["config"]["tokens"]][cell.method].append((cell, found))
    if not its:
        raise SystemExit(f"{args.cells} has no finished cell of {DATA}: give the cells/ folder of svamp-folds-gpu")
    entries = [entry for (student, tokens), methods in sorted(its.items())
               for entry in compared(student, tokens, {name: made for name, made in methods.items() if len(made) == FOLDS})]
    for entry, p in zip(entries, holm([entry["hybrid_minus_it"]["p"] for entry in entries]), strict=True):
        entry["p_holm"] = p
        print(json.dumps(entry))
    runs.write_json(HERE / "results" / "equal-tokens.json", {
        **machine.origin("equal-tokens"), "data": DATA, "entries": entries,
        "commits": sorted({made[1]["commit"] for methods in its.values() for cells in methods.values() for made in cells})})


def compared(student: str, tokens: float, methods: dict[str, list[tuple[Cell, dict[str, Any]]]]) -> list[dict[str, Any]]:
    """An entry a method that is no hybrid; none where there is no hybrid of that budget."""
    kind = {name: made[0][1]["config"]["method"] for name, made in methods.items()}
    dev = {name: sum(found["train"]["best_dev_accuracy"] for _, found in made) / FOLDS for name, made in methods.items()}
    best = max((name for name in methods if kind[name] == "hybrid"), key=dev.__getitem__, default=None)
    if best is None:
        return []
    outcomes = {name: answered(made, DATA) for name, made in methods.items()}
    return [{"student": student, "tokens": tokens, "hybrid": best, "accuracy_of_hybrid": accuracy(outcomes[best])["accuracy"],
             "method": name, "accuracy": accuracy(outcomes[name])["accuracy"],
             "hybrid_minus_it": compare(outcomes[best], outcomes[name])}
            for name in sorted(methods) if kind[name] != "hybrid"]


if __name__ == "__main__":
    main()
