"""How fast a student answers many questions in PyTorch: its own `generate` and transformers', the same questions in turns.

    python benchmarks/answers_speed.py --student RUN/train/student --rows RUN/teach/data/dev.jsonl [--limit 96]

Transformers' gets the questions padded on the left, as many at a time as the student's own (defaults.ANSWERED_TOGETHER) or
fewer (--beside), in the order of their length, so that a batch has little padding. Both are greedy, in fp32, and must say the
same tokens. For a decoder. Writes benchmarks/results/answers-speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from edgedistill import defaults, machine, runs
from edgedistill.errors import Error
from edgedistill.tasks import data as rows_
from edgedistill.tasks.task import Task
from edgedistill.train.students import DecoderStudent, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True, help="a trained student's folder")
    parser.add_argument("--rows", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=96)
    parser.add_argument("--beside", type=int, nargs="+", default=[64, 32], help="sizes of transformers' batches")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(machine.cores())
    student = load(args.student)
    if not isinstance(student, DecoderStudent):
        raise SystemExit(f"{args.student} is no decoder: a T5's answers are transformers' own")
    task = Task.from_dict(student.format.task)
    texts = [task.question(row) for row in rows_.read_file(args.rows)][: args.limit]
    ways = {"own": lambda: student.generate(texts),
            **{f"transformers, {n} at a time": lambda n=n: theirs(student, texts, n) for n in args.beside}}
    seconds, said = {name: [] for name in ways}, {}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.monotonic()
            said[name] = way()
            seconds[name].append(round(time.monotonic() - start, 1))
            print(name, seconds[name], flush=True)
    lengths = [len(ids) for ids in said["own"]]
    best = min(statistics.median(seconds[name]) for name in ways if name != "own")
    result = {"questions": len(texts), "tokens": sum(lengths), "longest": max(lengths),
              "together": defaults.ANSWERED_TOGETHER["cpu"], "seconds": seconds,
              "times_as_fast": round(best / statistics.median(seconds["own"]), 2),
              "same": {name: sum(a == b for a, b in zip(its, said["own"], strict=True)) for name, its in said.items()}}
    print(json.dumps(result))
    runs.write_json(Path(__file__).parent / "results" / "answers-speed.json", {
        **machine.origin("answers-speed"), "student": Path(args.student).name, "parameters": student.parameters(), **result})


@torch.no_grad()
def theirs(student: DecoderStudent, texts: list[str], together: int) -> list[list[int]]:
    """Greedy continuations by transformers' generate."""
    eos, opening = student.format.eos_id, student.format.opening(student.rust, "label")
    rows = [student.format.encode_source(student.rust, text, "label") + opening for text in texts]
    order, out = sorted(range(len(rows)), key=lambda i: len(rows[i])), {}
    for at in range(0, len(order), together):
        its = order[at:at + together]
        width = max(len(rows[i]) for i in its)
        ids = torch.tensor([[eos] * (width - len(rows[i])) + rows[i] for i in its])
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in its])
        made = student.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, eos_token_id=eos,
                                      max_new_tokens=student.format.max_new_tokens("label"), pad_token_id=eos)
        for i, tokens in zip(its, made[:, width:].tolist(), strict=True):
            out[i] = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return [out[i] for i in range(len(rows))]


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        raise SystemExit(f"answers_speed: {error}") from None
