"""The methods on SVAMP at equal trained tokens: SmolLM2-135M, PaLM's rationales, 720 / 80 / 200 rows, one seed.

    EDGEDISTILL_MODELS=... python benchmarks/svamp_methods.py --data PATH/svamp [--work runs/svamp-methods]

`teach --score` gives PaLM's rationales the soft targets of a local teacher; its corpus then serves every method. The budget is
the tokens of `--epochs` epochs of `finetune`. `logit-kd` distils the `finetune` student into one of 16 layers, beside which
`finetune` of those 16 layers is run. Checkpoints are chosen on the dev rows; the test rows are read once, at the end, each
student paired with `finetune`. Interrupted, the same command goes on; finished parts are not repeated. The verbs' results are
copied unchanged to benchmarks/results/svamp-methods/.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from edgedistill import runs
from edgedistill.evaluate import evaluate
from edgedistill.teach import teach
from edgedistill.train import train

RESULTS = Path(__file__).parent / "results" / "svamp-methods"
TEACHER, SOFT, RATE = "qwen2.5-coder-0.5b", 20, 2e-4
WHOLE = ("finetune", "seq-kd", "step-by-step", "specialize")
SMALL = {"finetune-16": {"method": "finetune"},
         # Lee's best for a near mentor: a = 0.1, T = 3 (Small to Mini) and 2 (Small to Tiny).
         "logit-kd-16": {"method": "logit-kd", "alpha": 0.1, "temperature": 2.0}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder with SVAMP's splits")
    parser.add_argument("--work", default="runs/svamp-methods", type=Path)
    parser.add_argument("--epochs", type=float, default=5, help="of finetune: the budget of all")
    parser.add_argument("--methods", default=",".join([*WHOLE, *SMALL]))
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    corpus = args.work / "corpus"
    teach(TEACHER, run=str(corpus), task="svamp", data=args.data, column={"stated": "meta.llm_label"}, score=True,
          soft_targets=SOFT, threads=args.threads)
    shutil.copyfile(corpus / "teach" / "result.json", RESULTS / "teach.json")
    budget: dict[bool, float | None] = {}
    wanted = args.methods.split(",")
    for name in wanted:
        small = name in SMALL
        settings: dict[str, Any] = {"method": name, **SMALL.get(name, {})}
        if settings["method"] == "logit-kd":
            settings["mentor"] = str(args.work / "finetune" / "train" / "student")
        reference = "finetune-16" if small else "finetune"
        budget[small] = None if name == reference else tokens(args.work / reference, args.epochs)
        run = args.work / name
        share(corpus, run)
        result = train("carve" if small else "smollm2-135m", run=str(run), epochs=args.epochs, tokens=budget[small],
                       learning_rate=3e-4 if small else RATE, threads=args.threads, **settings)
        runs.write_json(RESULTS / f"{name}_train.json", result)
    for name in wanted:
        target = RESULTS / f"{name}_test.json"
        trained = runs.read_json(RESULTS / f"{name}_train.json")["created"]
        if not target.exists() or runs.read_json(target)["student_created"] != trained:
            other = None if name == "finetune" else str(args.work / ("finetune-16" if name == "logit-kd-16" else "finetune")
                                                        / "train" / "student")
            result = evaluate(str(args.work / name / "train" / "student"), run=str(args.work / name), split="test",
                              compare=other, threads=args.threads)
            runs.write_json(target, {**result, "student_created": trained})


def tokens(run: Path, epochs: float) -> float:
    """The tokens of so many epochs of a finished training."""
    done = runs.finished(run, "train")
    if not done:
        raise SystemExit(f"train {run.name} first: its tokens are the budget")
    return round(done["result"]["tokens_per_question"] * done["result"]["questions"] * epochs)


def share(corpus: Path, run: Path) -> None:
    """The corpus's stage in the run of a method: read, never written."""
    if not (run / "teach").exists():
        run.mkdir(parents=True, exist_ok=True)
        (run / "teach").symlink_to((corpus / "teach").resolve(), target_is_directory=True)


if __name__ == "__main__":
    main()
