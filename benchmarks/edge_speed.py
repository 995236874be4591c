"""Milliseconds of a request in this engine and in its peers: the same weights, the same tokens, taken in turns.

    EDGEDISTILL_MODELS=... python benchmarks/edge_speed.py --peers PYTHON [--students t5-small,smollm2-135m] [--threads 2]

t5-small's or t5-base's shape with random weights, the full vocabulary of 32,128 pieces or one of 8,000, 64 input tokens, 4 or
48 output tokens; or SmolLM2-135M (its Q4_1 file dequantised, full vocabulary), a prompt of 64 tokens, 1 or 32 new ones. Batch
1, greedy, the end suppressed, no text in any engine but a few microseconds for that of the output. PYTHON is an interpreter
with its own versions:

    pip install optimum-onnx[onnxruntime]==0.1.0 'transformers<4.58' ctranslate2 'torch>=2.6,<2.14' sentencepiece

The engines are those of `edgedistill bench --against` (edgedistill/bench/engines.py), each a process of what another one made
beforehand, at the best of its own settings, which the result keeps. In a round every engine answers once, in a random order, 20
ms after the one before. `agreement` is the share of positions where an engine gives torch's fp32 token (random weights say
one token over and over: it proves little). `peak_rss_mb` is the peak resident size less that before the model was opened,
`serving_mb` the same since it was open. `floor_ms` is a token's: the bytes of a bundle's products, read in the same rounds by
as many threads, against `token_ms`, what a further token takes. Writes benchmarks/results/edge-speed/.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgedistill import cards, machine, runs
from edgedistill.bench.compare import in_turns
from edgedistill.bench.probe import Reader
from edgedistill.bench.process import Process
from edgedistill.cards import Target

HERE = Path(__file__).parent
INPUT = 64
VOCABULARIES = {"full": 32128, "8k": 8000}
OURS = {"edge int8": ("edge", "int8"), "edge int4": ("edge", "int4")}
OTHERS = {"optimum int8": ("optimum", "int8"), "torch fp32": ("torch", "fp32")}
# By family: engines, vocabularies, output tokens.
FAMILIES = {
    "t5": ({**OURS, "ctranslate2 int8": ("ctranslate2", "int8"), **OTHERS}, ("full", "8k"), (4, 48)),
    "smollm2": ({**OURS, "llama.cpp Q8_0": ("llama.cpp", "Q8_0"), "llama.cpp Q4_0": ("llama.cpp", "Q4_0"), **OTHERS},
                ("full",), (1, 32))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", default=sys.executable, help="an interpreter with ctranslate2, optimum-onnx and torch")
    parser.add_argument("--students", default="t5-small")
    parser.add_argument("--engines", help="some of them (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--target", default="x86-vnni")
    parser.add_argument("--out", default=HERE / "results" / "edge-speed", type=Path)
    args = parser.parse_args()
    for student in args.students.split(","):
        measure(student, args)


def measure(student: str, args: argparse.Namespace) -> None:
    """One student in every engine, taken in turns; writes its result file."""
    engines, vocabularies, outputs = FAMILIES[student.split("-")[0]]
    with tempfile.TemporaryDirectory() as place:
        processes: dict[str, Process] = {}
        floors: dict[str, Reader] = {}
        try:
            for vocabulary in vocabularies:
                folder = Path(place) / vocabulary
                make(student, folder, VOCABULARIES[vocabulary])
                for name in args.engines.split(",") if args.engines else engines:
                    key = f"{name}, {vocabulary}"
                    processes[key] = opened(key, *engines[name], folder, Path(place) / key, args)
                    print(key, processes[key].opened, flush=True)
                    if engines[name][0] == "edge":
                        floors[key] = Reader(processes[key].opened["read_by_a_token"], args.threads)
            answers: dict[str, dict[int, list[dict[str, Any]]]] = {key: {n: [] for n in outputs} for key in processes}
            floor_ms: dict[str, list[float]] = {key: [] for key in floors}

            def ask(key: str, n: int) -> Any:
                def one(turn: int) -> float:
                    time.sleep(0.02)  # the threads of the one before may still be looking for work
                    answer = processes[key].ask({"ids": source(), "n": n})
                    if turn >= 0:
                        answers[key][n].append(answer)
                    if turn >= 0 and n == outputs[-1] and key in floors:
                        time.sleep(0.02)
                        floor_ms[key].append(1e3 * floors[key].read(n) / n)
                    return answer["ms"]
                return one

            for turn in range(-3, args.rounds):
                for n in outputs:
                    in_turns({key: ask(key, n) for key in processes}, range(turn, turn + 1))
            memory = {key: process.ask({"end": True}) for key, process in processes.items()}
        finally:
            for process in processes.values():
                process.__exit__()
    entries = []
    for key, process in processes.items():
        name, vocabulary = key.split(", ")
        its = answers[key]
        torch = answers.get(f"torch fp32, {vocabulary}")
        reference = torch and torch[outputs[-1]][-1]["tokens"]
        ms = {n: [answer["ms"] for answer in its[n]] for n in outputs}
        token = [(b - a) / (outputs[-1] - outputs[0]) for a, b in zip(*ms.values(), strict=True)]
        floor = {"floor_ms": round(statistics.median(floor_ms[key]), 3)} if key in floors else {}
        same = reference and [a == b for a, b in zip(its[outputs[-1]][-1]["tokens"], reference, strict=False)]
        entries.append({
            "engine": name, "vocabulary": vocabulary, **process.opened, **memory[key],
            "token_ms": round(statistics.median(token), 3), **floor,
            "ms": {n: round(statistics.median(ms[n]), 2) for n in outputs},
            "quartiles": {n: [round(q, 2) for q in statistics.quantiles(ms[n], n=4)[::2]] for n in outputs},
            "agreement": same and round(sum(same) / len(reference), 3),
            "raw_ms": {n: [round(x, 3) for x in ms[n]] for n in outputs}})
        print({k: v for k, v in entries[-1].items() if k != "raw_ms"}, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    runs.write_json(args.out / f"{student}_t{args.threads}.json", {
        **machine.origin("edge-speed"), "student": student, "threads": args.threads, "rounds": args.rounds,
        "target": args.target, "input_tokens": INPUT, "results": entries})


def opened(name: str, engine: str, precision: str, folder: Path, made: Path, args: argparse.Namespace) -> Process:
    """The engine's process, made of the student's folder."""
    first = {"ids": source(), "n": 4}
    job: dict[str, Any] = {"engine": engine, "precision": precision, "threads": args.threads, "first": first}
    if engine == "edge":
        bundle(folder, made, precision, args.target)
        return Process(name, {**job, "place": str(made)})
    made.mkdir()
    job |= {"place": str(folder), "student": str(folder), "made": str(made), "format": form(folder)}
    python = sys.executable if engine == "llama.cpp" else args.peers
    with Process(name, {**job, "prepare": True}, python) as maker:
        job |= maker.opened
    return Process(name, job, python)


def make(student: str, folder: Path, vocabulary: int) -> None:
    """The student's folder."""
    if student.startswith("t5"):
        sys.path.insert(0, str(HERE.parent / "tests"))
        import tiny_students

        tiny_students.t5_shaped(student, folder, vocabulary=vocabulary)
    else:
        from edgedistill.teach.source import resolve
        from edgedistill.train.carve import carve

        made = carve(resolve(student).path, [], 30, 10**6)
        made.set_task(None)
        made.save(folder, {}, "")


def form(folder: Path) -> dict[str, Any]:
    """The student's format, for plain text."""
    from edgedistill.train.students import load

    student = load(folder)
    if student.format is None:
        student.set_task(None)
    return student.format.to_dict()


def bundle(folder: Path, place: Path, precision: str, target: str) -> None:
    """The student's bundle, without gates: random weights have no accuracy."""
    from edgedistill.export import write
    from edgedistill.train.students import load

    student = load(folder)
    if student.format is None:
        student.set_task(None)
    write(student, place, precision, cards.load(Target, target))


def source() -> list[int]:
    """INPUT tokens, the last of them a T5's end."""
    rng = random.Random(0)
    return [rng.randrange(10, 500) for _ in range(INPUT - 1)] + [1]


if __name__ == "__main__":
    main()
