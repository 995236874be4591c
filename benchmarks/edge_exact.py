"""What quantising costs a trained student: SVAMP's 200 test rows in fp32, int8 and int4, against torch.

    python benchmarks/edge_exact.py --run runs/svamp-methods/finetune [--target x86-vnni]

The run's student is exported by the verb in each precision, its gates and defaults included, and asked the test rows: greedy
tokens against torch's (`same` counts rows with the same tokens, `agreement` positions), accuracy by the same greedy text in
all, so that only quantising differs, and by `answer`, which is bound to arithmetic. Nothing is chosen here. Writes
benchmarks/results/edge-exact/.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from edgedistill import machine, runs
from edgedistill.edge import Student
from edgedistill.errors import GateError
from edgedistill.export import export
from edgedistill.export.gates import agreement
from edgedistill.tasks import data as rows_
from edgedistill.tasks.metrics import interval, paired
from edgedistill.tasks.task import Task
from edgedistill.train.students import load

RESULTS = Path(__file__).parent / "results" / "edge-exact"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True, type=Path, help="a run with a trained student")
    parser.add_argument("--target", default="portable")
    parser.add_argument("--work", default=Path("runs/edge-exact"), type=Path)
    args = parser.parse_args()
    torch.set_num_threads(machine.cores())
    student = load(args.run / "train" / "student")
    task = Task.from_dict(student.format.task)
    rows = rows_.read_file(args.run / "teach" / "data" / "test.jsonl")
    texts, gold = [task.question(row) for row in rows], [task.label(row) for row in rows]
    reference = student.generate(texts)

    def right(answers: list[str]) -> list[bool]:
        return [task.same(task.parse(text, row.choices), label) for text, row, label in zip(answers, rows, gold, strict=True)]

    by_torch = right([student.answer(ids) for ids in reference])
    entries: list[dict[str, Any]] = [{"precision": "torch fp32", **share(by_torch)}]
    for precision in ("fp32", "int8", "int4"):
        run = args.work / f"{args.run.name}-{precision}-{args.target}"
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "teach").exists():
            (run / "teach").symlink_to((args.run / "teach").resolve(), target_is_directory=True)
        try:
            made = export(str(args.run / "train" / "student"), run=str(run), precision=precision, target=args.target)
        except GateError as error:
            entries.append({"precision": precision, "refused": str(error)})
            print(entries[-1], flush=True)
            continue
        edge = Student.load(run / "export" / "bundle")
        tokens = [edge.generate(text).ids for text in texts]
        answers = right([student.answer(ids) for ids in tokens])
        bound = [edge.answer(text, choices=row.choices) for text, row in zip(texts, rows, strict=True)]
        entries.append({
            "precision": precision, **share(answers), "minus_torch": paired(answers, by_torch),
            "same": sum(a == b for a, b in zip(tokens, reference, strict=True)), "agreement": agreement(reference, tokens),
            "answer": share(right([each.text for each in bound])), "confidence": round(sum(
                each.confidence for each in bound) / len(bound), 4),
            **{key: made[key] for key in ("bytes", "kept_high", "fp32_accuracy", "accuracy_rows")}, "dev": made["accuracy"]})
        print(entries[-1], flush=True)
        shutil.rmtree(run / "export" / "bundle", ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    runs.write_json(RESULTS / f"{args.run.name}_{args.target}.json", {
        **machine.origin("edge-exact"), "run": args.run.name, "target": args.target, "rows": len(rows), "results": entries})


def share(right: list[bool]) -> dict[str, Any]:
    return {"accuracy": round(sum(right) / len(right), 4), "ci95": interval(sum(right), len(right))}


if __name__ == "__main__":
    main()
