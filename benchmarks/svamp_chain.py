"""The chain on SVAMP: qwen2.5-coder-1.5b teaches 200 rows, SmolLM2-135M learns them by two methods.

    EDGEDISTILL_MODELS=... python benchmarks/svamp_chain.py --data PATH/svamp [--work runs/svamp]

Both students see the same 200 questions. Every stage is a verb; the JSON files that the verbs wrote are copied
unchanged to benchmarks/results/svamp-chain/. About 40 minutes on 2 cores; interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from edgedistill.bench import bench
from edgedistill.evaluate import evaluate
from edgedistill.export import export
from edgedistill.teach import teach
from edgedistill.train import train

RESULTS = Path(__file__).parent / "results" / "svamp-chain"
TEACHER = "qwen2.5-coder-1.5b"
ROWS, EPOCHS, LEARNING_RATE = 200, 6, 2e-4
METHODS = ("finetune", "step-by-step")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder with SVAMP's train and test")
    parser.add_argument("--work", default="runs/svamp", type=Path)
    args = parser.parse_args()
    teach(TEACHER, run=str(args.work / "taught"), task="svamp", data=args.data, limit=ROWS)
    keep(args.work / "taught" / "teach" / "result.json", "teach.json")
    for method in METHODS:
        run = args.work / method
        if not (run / "teach").exists():
            shutil.copytree(args.work / "taught" / "teach", run / "teach")
        train("smollm2-135m", run=str(run), method=method, epochs=EPOCHS, learning_rate=LEARNING_RATE)
        keep(run / "train" / "result.json", f"{method}_train.json")
        # The gate reads dev rows; what int8 costs on the test rows is counted below, beside the fp32 student.
        export(run=str(run), target="x86")
        keep(run / "export" / "result.json", f"{method}_export.json")
        evaluate(run=str(run), split="test", compare=str(run / "train" / "student"))
        evaluate(str(run / "train" / "student"), run=str(run), split="test")
        bench(run=str(run), threads=[1, 2])
        for kind in ("eval", "bench"):
            for path in sorted((run / kind).glob("*.json")):
                keep(path, f"{method}_{kind}_{path.name}")
    evaluate(TEACHER, run=str(args.work / METHODS[0]), split="test")
    for path in (args.work / METHODS[0] / "eval").glob(f"{TEACHER}*.json"):
        keep(path, "teacher_eval.json")


def keep(path: Path, name: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, RESULTS / name)


if __name__ == "__main__":
    main()
