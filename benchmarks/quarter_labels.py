"""What a quarter of the labels and a local teacher are worth: the study's cells on a quarter against `finetune` on all of them.

    python benchmarks/quarter_labels.py [--cells benchmarks/results/studies/svamp-quarter-gpu/cells]

A study's own tables compare within one share of the labels. Here each method's cells stand against `finetune` with all labels,
as the GPU trained it in bf16, in fp32, and the machine without a GPU: on the test rows that both have answered, each method's
mean over its seeds (paired bootstrap by groups of one body, and McNemar's test where the seeds are the same).
Writes benchmarks/results/quarter-labels.json.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from edgedistill import machine, runs
from edgedistill.study import cell as cell_
from edgedistill.study.statistics import accuracy, compare
from edgedistill.study.summary import answered

HERE = Path(__file__).parent
BASES = ("finetune", "finetune-fp32", "finetune-again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=HERE / "results" / "studies" / "svamp-quarter-gpu" / "cells")
    args = parser.parse_args()
    kinds = defaultdict(list)
    for cell, found in (all_ := cell_.load_all(args.cells)):
        kinds[cell.method, cell.labels].append((cell, found))
    if ("finetune", 1.0) not in kinds:
        raise SystemExit(f"{args.cells} has no finished cell of finetune on all labels: give svamp-quarter-gpu/cells")
    outcomes = {kind: answered(cells, cells[0][0].data) for kind, cells in kinds.items()}
    bases = {name: outcomes[name, 1.0] for name in BASES if (name, 1.0) in outcomes}
    made = {"study": "svamp-quarter-gpu", "commits": sorted({found["commit"] for _, found in all_})}
    result = {**machine.origin("quarter-labels"), "cells": made, "entries": [
        {"method": method, "labels": labels, "cells": len(kinds[method, labels]), **accuracy(its),
         "minus": {name: compare(its, base) for name, base in bases.items() if its is not base}}
        for (method, labels), its in outcomes.items()]}
    runs.write_json(HERE / "results" / "quarter-labels.json", result)
    for entry in result["entries"]:
        print(json.dumps({key: entry[key] for key in ("method", "labels", "cells", "accuracy", "minus")}))


if __name__ == "__main__":
    main()
