"""Milliseconds of a request in this engine and in its peers: the same weights, the same tokens, taken in turns.

    python benchmarks/edge_speed.py --peers PYTHON [--students t5-small,t5-base] [--threads 2] [--rounds 30]

A T5 of t5-small's shape with random weights, the full vocabulary of 32,128 pieces or one of 8,000; 64 input tokens, 4 or 48
output tokens, batch 1, greedy, the end suppressed; no tokenisation in any engine. PYTHON is an interpreter with ctranslate2,
optimum-onnx and torch (benchmarks/peers/README.md): each engine is a process of its own that waits on stdin between requests.
In a round every engine answers once, in a random order. CTranslate2: int8, beam 1, its default backend. optimum: dynamic
int8 by its own AVX512-VNNI configuration. `agreement` is the share of positions where an engine gives torch's fp32 token.
Memory is the peak resident size of the process less that after its imports. Writes benchmarks/results/edge-speed/.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INPUT, OUTPUTS = 64, (4, 48)
VOCABULARIES = {"full": 32128, "8k": 8000}
ENGINES = {"edge int8": ("edge", "int8"), "edge int4": ("edge", "int4"), "ctranslate2 int8": ("ctranslate2", "int8"),
           "optimum int8": ("optimum", "int8"), "torch fp32": ("torch", "fp32")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable, help="an interpreter with ctranslate2, optimum-onnx and torch")
    parser.add_argument("--students", default="t5-small")
    parser.add_argument("--vocabularies", default="full,8k")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--target", default="x86-vnni")
    parser.add_argument("--out", default=HERE / "results" / "edge-speed", type=Path)
    parser.add_argument("--work", help="(a worker's settings, as JSON)")
    args = parser.parse_args()
    if args.work:
        return work(json.loads(args.work))
    for student in args.students.split(","):
        measure(student, args)


def measure(student: str, args: argparse.Namespace) -> None:
    """One student in every engine, taken in turns; writes its result file."""
    from edgedistill import machine, runs

    with tempfile.TemporaryDirectory() as place:
        workers, facts = {}, {}
        try:
            for vocabulary in args.vocabularies.split(","):
                folder = Path(place) / vocabulary
                make(student, folder, VOCABULARIES[vocabulary])
                for name in args.engines.split(","):
                    engine, precision = ENGINES[name]
                    made = Path(place) / f"{vocabulary}-{engine}-{precision}"
                    if engine == "edge":
                        bundle(folder, made, precision, args.target)
                    job = {"engine": engine, "precision": precision, "threads": args.threads, "student": str(folder),
                           "made": str(made)}
                    python = sys.executable if engine == "edge" else args.peers
                    key = f"{name}, {vocabulary}"
                    workers[key] = subprocess.Popen([python, __file__, "--work", json.dumps(job)], stdin=subprocess.PIPE,
                                                    stdout=subprocess.PIPE, text=True)
                    facts[key] = _read(workers[key])
                    print(key, facts[key], flush=True)
            ms: dict[str, dict[int, list[float]]] = {key: {n: [] for n in OUTPUTS} for key in workers}
            tokens: dict[str, list[int]] = {}
            order = list(workers)
            for turn in range(args.rounds + 3):
                random.Random(turn).shuffle(order)
                for n in OUTPUTS:
                    for key in order:
                        answer = ask(workers[key], n)
                        if turn >= 3:
                            ms[key][n].append(answer["ms"])
                        tokens[key] = answer["tokens"]
        finally:
            for process in workers.values():
                process.kill()
    entries = []
    for key in workers:
        name, vocabulary = key.split(", ")
        reference = tokens.get(f"torch fp32, {vocabulary}")
        entries.append({"engine": name, "vocabulary": VOCABULARIES[vocabulary], **facts[key],
                        "ms": {n: round(statistics.median(ms[key][n]), 2) for n in OUTPUTS},
                        "quartiles": {n: [round(q, 2) for q in statistics.quantiles(ms[key][n], n=4)[::2]] for n in OUTPUTS},
                        "agreement": reference and round(sum(a == b for a, b in zip(tokens[key], reference, strict=False))
                                                         / len(reference), 3), "raw_ms": ms[key]})
        print({k: v for k, v in entries[-1].items() if k != "raw_ms"}, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    runs.write_json(args.out / f"{student}_t{args.threads}.json", {
        **machine.origin("edge-speed"), "student": student, "threads": args.threads, "rounds": args.rounds,
        "target": args.target, "input_tokens": INPUT, "results": entries})


def ask(process: subprocess.Popen[str], n: int) -> dict[str, Any]:
    time.sleep(0.02)  # the threads of the one before may still be looking for work
    process.stdin.write(f"{n}\n")
    process.stdin.flush()
    return _read(process)


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"an engine's process ended: {' '.join(process.args)[-300:]}")


def make(student: str, folder: Path, vocabulary: int) -> None:
    """The student's folder, with random weights."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import tiny_students

    tiny_students.t5_shaped(student, folder, vocabulary=vocabulary)
    settings = folder / "tokenizer_config.json"  # transformers 5's name for it is unknown to the peers' 4.57
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))


def bundle(folder: Path, place: Path, precision: str, target: str) -> None:
    """The student's bundle, without gates: random weights have no accuracy."""
    from edgedistill import cards
    from edgedistill.cards import Target
    from edgedistill.export import write
    from edgedistill.train.students import load

    student = load(folder)
    student.set_task(None)
    write(student, place, precision, cards.load(Target, target))


def source(vocabulary: int) -> list[int]:
    """INPUT tokens, the last of them the end."""
    rng = random.Random(0)
    return [rng.randrange(10, min(vocabulary, 500)) for _ in range(INPUT - 1)] + [1]


def work(job: dict[str, Any]) -> None:
    """An engine's process: a number of tokens on stdin is answered by {ms, tokens}."""
    start, request = {"edge": edge, "ctranslate2": ctranslate2, "optimum": optimum, "torch": torch_}[job["engine"]](job)
    loaded = time.perf_counter()
    run, size = start()
    load = 1e3 * (time.perf_counter() - loaded)
    run(4)
    print(json.dumps({"load_ms": round(load, 1), "bytes": size}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        tokens = run(int(line))
        took = 1e3 * (time.perf_counter() - begin)
        print(json.dumps({"ms": round(took, 3), "tokens": request(tokens), "peak_mb": _peak()}), flush=True)


def _peak() -> float:
    text = Path("/proc/self/status").read_text()
    return round(int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6, 1)


def _size(folder: Path, *endings: str) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.name.endswith(endings))


def edge(job: dict[str, Any]) -> tuple[Any, Any]:
    import numpy as np

    from edgedistill.edge import Student

    def start() -> tuple[Any, int]:
        student = Student.load(job["made"], job["threads"])
        graphs, end = student.graphs, student.format.eos_id
        ids = source(graphs.state.logits.shape[-1])

        def run(n: int) -> list[int]:
            logits, found = graphs.start(ids, [0]), []
            while True:
                token = int(graphs.state.token[0, 0])
                if token == end:
                    logits[end] = -np.inf
                    token = int(logits.argmax())
                found.append(token)
                if len(found) == n:
                    return found
                logits = graphs.step(token)

        return run, _size(Path(job["made"]), ".onnx", ".bin")

    return start, list


def ctranslate2(job: dict[str, Any]) -> tuple[Any, Any]:
    import ctranslate2 as ct2
    import transformers

    place = Path(job["made"])
    transformers.logging.set_verbosity_error()
    ct2.converters.TransformersConverter(job["student"]).convert(str(place), quantization=job["precision"], force=True)
    words = json.loads((place / "shared_vocabulary.json").read_text())
    numbers = {word: i for i, word in enumerate(words)}

    def start() -> tuple[Any, int]:
        made = ct2.Translator(str(place), device="cpu", compute_type=job["precision"], intra_threads=job["threads"],
                              inter_threads=1)
        ids = [words[i] for i in source(len(words))]

        def run(n: int) -> list[str]:
            return made.translate_batch([ids], beam_size=1, min_decoding_length=n, max_decoding_length=n,
                                        return_scores=False)[0].hypotheses[0]

        return run, _size(place, ".bin")

    return start, lambda tokens: [numbers[word] for word in tokens]


def optimum(job: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForSeq2SeqLM, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    raw, place = Path(job["made"] + "-fp32"), Path(job["made"])
    ORTModelForSeq2SeqLM.from_pretrained(job["student"], export=True).save_pretrained(raw)
    shutil.copytree(raw, place, ignore=shutil.ignore_patterns("*.onnx*"), dirs_exist_ok=True)
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    for graph in raw.glob("*.onnx"):
        if "merged" not in graph.name:
            ORTQuantizer.from_pretrained(raw, file_name=graph.name).quantize(save_dir=place, quantization_config=settings)

    def start() -> tuple[Any, int]:
        options = SessionOptions()
        options.intra_op_num_threads = job["threads"]
        names = {part: f"{part}_quantized.onnx" for part in ("encoder_model", "decoder_model", "decoder_with_past_model")}
        model = ORTModelForSeq2SeqLM.from_pretrained(
            place, encoder_file_name=names["encoder_model"], decoder_file_name=names["decoder_model"],
            decoder_with_past_file_name=names["decoder_with_past_model"], use_merged=False, session_options=options)
        ids = torch.tensor([source(model.config.vocab_size)])
        return _generating(model, ids), _size(place, ".onnx", ".onnx_data")

    return start, lambda tokens: tokens


def torch_(job: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import T5ForConditionalGeneration

    torch.set_num_threads(job["threads"])

    def start() -> tuple[Any, int]:
        model = T5ForConditionalGeneration.from_pretrained(job["student"]).eval()
        return _generating(model, torch.tensor([source(model.config.vocab_size)])), _size(Path(job["student"]), ".safetensors")

    return start, lambda tokens: tokens


def _generating(model: Any, ids: Any) -> Any:
    import torch

    def run(n: int) -> list[int]:
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=1, do_sample=False,
                                  min_new_tokens=n, max_new_tokens=n)[0, 1:].tolist()

    return run


if __name__ == "__main__":
    main()
