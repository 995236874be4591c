"""The chain's small end: a study's 16-layer students as int4 bundles, how large they are and what they answer.

    edgedistill study benchmarks/studies/svamp-folds-gpu.toml --run RUN
    python benchmarks/chain_int4.py --run RUN --method hybrid-chain-5-longest [--fold K]

Each fold's student is exported to int4 (through export's gates, which look at its dev rows) and counted on the test rows of its
fold as the device answers them. Against the fp32 answers of the 135M students of REFERENCES on the same rows. What a fold
gave is in RUN/int4/foldK.json and not made again; `--fold` makes one of them alone, so that several can be made at a time.
Writes benchmarks/results/chain-int4.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.evaluate import count
from edgedistill.export import export
from edgedistill.study import cell as cell_
from edgedistill.study.grid import Cell, cells
from edgedistill.study.material import Material
from edgedistill.study.spec import Study, read
from edgedistill.study.statistics import accuracy, compare
from edgedistill.study.summary import answered

HERE = Path(__file__).parent
STUDY, STUDENT, LARGE = HERE / "studies" / "svamp-folds-gpu.toml", "layers16", "smollm2-135m"
REFERENCES = ("hybrid-numbers-long", "hybrid-numbers-double", "finetune", "finetune-long")  # 135M, fp32


def made(study: Study, material: Material, cell: Cell) -> dict[str, Any]:
    """The fold's bundle and what it answers."""
    out = material.folder / "int4" / f"fold{cell.fold}.json"
    if out.is_file():
        return runs.read_json(out)
    home = cell_.home(material, cell)
    exported = export(run=str(home), precision="int4")
    data, split, rows = material.rows.tests(cell)[cell.data]
    found = count(str(home / "export" / "bundle"), material.rows.pool(cell.data).task, rows, data, split, machine.cores())
    for prediction in found["predictions"]:
        prediction["group"] = material.rows.pool(cell.data).group[prediction["id"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(out, {**machine.origin("chain-int4-fold"), "cell": cell.name, "bytes": exported["bytes"],
                          "export": exported, "test": found})
    return runs.read_json(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="the study's folder, with its students")
    parser.add_argument("--method", required=True, help="of the 16 layers, chosen by the dev column")
    parser.add_argument("--fold", type=int)
    args = parser.parse_args()
    study = read(STUDY)
    material, planned = Material(study, Path(args.run)), cells(study)
    mine = [c for c in planned if (c.data, c.student, c.method, c.seed) == ("svamp-folds", STUDENT, args.method, 0)]
    wanted = [c for c in mine if args.fold in (None, c.fold)]
    if not wanted:
        raise SystemExit(f"{study.name} has no {STUDENT} by {args.method!r}" + (f" in fold {args.fold}" if mine else ""))
    if args.fold is not None:
        made(study, material, wanted[0])
        return
    bundles = [made(study, material, cell) for cell in mine]
    int4 = answered([(c, {"tests": {c.data: bundle["test"]}}) for c, bundle in zip(mine, bundles, strict=True)], "svamp-folds")

    def fp32(student: str, method: str) -> Any:
        its = [c for c in planned if (c.data, c.student, c.method, c.seed) == ("svamp-folds", student, method, 0)]
        return answered([(c, found) for c in its if (found := cell_.load(cell_.file(material, c)))], "svamp-folds")

    its = accuracy(int4)
    against = {}
    for student, method in ((STUDENT, args.method), *((LARGE, name) for name in REFERENCES)):
        other = fp32(student, method)
        if not other.right:
            continue
        against[f"{student} {method}"] = {**accuracy(other), "kept": round(its["accuracy"] / accuracy(other)["accuracy"], 4),
                                          "int4_minus_it": compare(int4, other)}
    found = {**machine.origin("chain-int4"), "study": study.name, "student": STUDENT, "method": args.method,
             "bytes": [bundle["bytes"] for bundle in bundles], "made": [
                 {key: bundle[key] for key in ("created", "commit", "machine", "versions")} for bundle in bundles],
             "dev": [bundle["export"]["accuracy"] for bundle in bundles], "int4": its, "fp32": against}
    runs.write_json(HERE / "results" / "chain-int4.json", found)
    print(json.dumps({key: found[key] for key in ("bytes", "dev", "int4", "fp32")}, indent=1))


if __name__ == "__main__":
    main()
