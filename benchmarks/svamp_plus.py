"""SVAMP with the other sets of its kind beside it: how far a 135M student gets with more labelled problems.

    python benchmarks/svamp_plus.py --data DATA --run RUN [--tokens 6e5] [--student smollm2-135m]

SVAMP's authors train on the sets that SVAMP was made from and test on SVAMP (Patel et al. 2021). Here SVAMP's own training rows
are joined by ASDiv's and MultiArith's (training and test rows: nothing is counted on them here): those whose formula is plain
arithmetic of numbers in the question's digits, gives the label, and whose body, numbers masked, occurs nowhere in SVAMP (bodies
that differ in a word do: 21 of the rows share 80 % of their words with a test row's). The student is trained by `hybrid`
without rationales, with fresh numbers in half of the draws; the checkpoint is chosen by SVAMP's dev rows, SVAMP's 200 test rows
are counted at the end. DATA holds the folders svamp, asdiv and multiarith. What is begun in RUN goes on.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from edgedistill import defaults, machine, runs
from edgedistill.evaluate import evaluate
from edgedistill.tasks import arithmetic, data, groups
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import paired
from edgedistill.train import train
from edgedistill.train.resample import numbers

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def spelled(node: ast.expr) -> str:
    """An expression as SVAMP spells it: `( ( 42 + 7 ) - 9 )`."""
    if isinstance(node, ast.BinOp):
        return f"( {spelled(node.left)} {OPERATORS[type(node.op)]} {spelled(node.right)} )"
    assert isinstance(node, ast.Constant)
    return repr(node.value).removesuffix(".0")


def equation(row: Row) -> str | None:
    """The row's formula as a label, None where it is no plain arithmetic of the question's numbers that gives the answer."""
    formula = str(row.meta.get("equation") or row.meta["formula"]).removeprefix("X=").split("=")[0]
    try:
        value, answer = arithmetic.evaluate(formula), arithmetic.evaluate(row.label or "")
        label = spelled(ast.parse(formula, mode="eval").body)
    except (arithmetic.NotArithmetic, AssertionError, SyntaxError):
        return None
    return label if value == answer and numbers(label) <= numbers(row.input) and arithmetic.results(label) else None


def mixed(folder: Path, out: Path) -> dict[str, int]:
    """Writes train, dev and test rows to `out`; returns how many rows there are of each set."""
    svamp = data.load(str(folder / "svamp"), {}, defaults.SEED, defaults.DEV_SHARE).splits
    known = {groups.mask(row.input) for rows in svamp.values() for row in rows}
    counts, more = {"svamp": len(svamp["train"])}, []
    for name, files in (("asdiv", ("all",)), ("multiarith", ("train", "test"))):
        found = {}
        for file in files:
            for row in data.read_file(folder / name / f"{file}.jsonl.gz"):
                label = equation(row)
                if label and groups.mask(row.input) not in known:
                    found[row.input] = Row(f"{name}-{row.id}", row.input, label)
        more += found.values()
        counts[name] = len(found)
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in {**svamp, "train": [*svamp["train"], *more]}.items():
        data.write(rows, out / f"{split}.jsonl")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=6e5)
    parser.add_argument("--student", default="smollm2-135m")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-hours", type=float)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "svamp-plus.json")
    args = parser.parse_args()
    rows = args.run / "rows"
    counts = mixed(args.data, rows)
    print(counts)
    made = train(args.student, run=str(args.run), task="svamp", data=str(rows), method="hybrid", rationales=False,
                 tokens=args.tokens, learning_rate=args.learning_rate, max_hours=args.max_hours)
    found = evaluate(str(args.run / "train" / "student"), data=str(rows), split="test", run=str(args.run))
    right = {each["id"]: each["correct"] for each in found["predictions"]}
    alone = Path(__file__).parent / "results" / "svamp-methods" / "finetune_test.json"
    before = runs.read_json(alone)
    test = paired([right[each["id"]] for each in before["predictions"]], [each["correct"] for each in before["predictions"]])
    runs.write_json(args.out, {
        **machine.origin("svamp-plus"), "rows": counts, "tokens": args.tokens, "train": made, "test": found,
        "minus_finetune": test, "finetune": {key: before[key] for key in ("accuracy", "ci95", "n", "created", "commit")}})
    print(f"{100 * found['accuracy']:.1f} % of {found['n']} test rows; {args.out}")


if __name__ == "__main__":
    main()
