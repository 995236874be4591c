"""How good the teacher is: SVAMP's test rows with the prompt chosen on dev, the vote of 5, four other tasks.

    EDGEDISTILL_MODELS=... python benchmarks/teacher_accuracy.py --data PATH [--work runs/teacher]

`--data` is the folder of the public sets. First `teach --compare-prompts` on SVAMP's 80 dev rows says which prompt is best;
only then are the 200 test rows read, with that prompt: greedy, and the majority of 5 samples. Then 200 rows each (`--rows`) of
multiarith, cqa (train), esnli (rows outside its training pool) and strategyqa (dev), with their cards' own prompts. Each is
the verb's own result, copied unchanged to benchmarks/results/teacher/. Finished parts are not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path

from edgedistill.evaluate import evaluate
from edgedistill.teach.compare import compare_prompts

TEACHER, ROWS, VOTE = "qwen2.5-coder-1.5b", 200, 5
RESULTS = Path(__file__).parent / "results" / "teacher"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument("--work", default="runs/teacher", type=Path)
    parser.add_argument("--prompts", default="few-shot,twelve,steps", help="the prompts compared on dev")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each of the four other tasks")
    parser.add_argument("--vote-rows", type=int, default=ROWS, help="test rows of the vote, the first ones")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    args = parser.parse_args()
    svamp = str(args.data / "svamp")
    RESULTS.mkdir(parents=True, exist_ok=True)
    best = compare_prompts(TEACHER, run=str(args.work), task="svamp", data=svamp,
                           prompts=tuple(args.prompts.split(",")), threads=args.threads)["best"]
    shutil.copyfile(args.work / "prompts" / "result.json", RESULTS / "svamp_prompts_dev.json")
    count("svamp_test", args.work, task="svamp", data=svamp, split="test", prompt=best, threads=args.threads)
    pool = args.work / "dev.jsonl"
    with gzip.open(args.data / "esnli" / "valid.jsonl.gz", "rt", encoding="utf-8") as lines:
        pool.write_text("".join(line for line in lines if json.loads(line)["meta"]["pool"] != "train"), encoding="utf-8")
    for name, task, data, split in (("multiarith", "gsm8k", args.data / "multiarith", "train"),
                                    ("cqa", "cqa", args.data / "cqa", "train"), ("esnli", "esnli", pool, "dev"),
                                    ("strategyqa", "strategyqa", args.data / "strategyqa", "dev")):
        count(name, args.work, task=task, data=str(data), split=split, limit=args.rows, threads=args.threads)
    count(f"svamp_test_vote{VOTE}", args.work, task="svamp", data=svamp, split="test", prompt=best, vote=VOTE,
          limit=args.vote_rows, threads=args.threads)


def count(name: str, work: Path, **options: object) -> None:
    """One reading, kept as the verb wrote it; a finished one is not repeated."""
    target = RESULTS / f"{name}.json"
    if not target.exists():
        run = work / name
        evaluate(TEACHER, run=str(run), **options)
        shutil.copyfile(next((run / "eval").glob("*.json")), target)


if __name__ == "__main__":
    main()
