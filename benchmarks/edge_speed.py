"""Milliseconds of a request in this engine and in its peers: the same weights, the same tokens, taken in turns.

    EDGEDISTILL_MODELS=... python benchmarks/edge_speed.py --peers PYTHON [--students t5-small,smollm2-135m] [--threads 2]

t5-small's or t5-base's shape with random weights, the full vocabulary of 32,128 pieces or one of 8,000, 64 input tokens, 4 or
48 output tokens; or SmolLM2-135M (its Q4_1 file dequantised, full vocabulary), a prompt of 64 tokens, 1 or 32 new ones. Batch
1, greedy, the end suppressed, no tokenisation in any engine. PYTHON is an interpreter with its own versions:

    pip install optimum-onnx[onnxruntime]==0.1.0 'transformers<4.58' ctranslate2 'torch>=2.6,<2.14' sentencepiece

Each engine is a process that waits on stdin between requests; in a round every engine answers once, in a random order, 20 ms
after the one before. CTranslate2: int8, beam 1, its default backend. optimum: its own AVX512-VNNI configuration, dynamic, a
scale for each channel. llama.cpp: the GGUF file requantised to Q8_0 or Q4_0. `agreement` is the share of positions where an
engine gives torch's fp32 token (random weights say one token over and over: it proves little). `peak_mb` is the peak resident
size less that before the model was opened; CTranslate2 and optimum convert in the same process first and use that memory
again, so theirs is too small; `serving_mb` is the peak since the model was opened. `floor_ms` is a token's:
the bytes of a bundle's products, read in the same rounds by as many threads (edgedistill/probe.py), against `token_ms`, what
a further token takes. Writes benchmarks/results/edge-speed/.
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
INPUT = 64
VOCABULARIES = {"full": 32128, "8k": 8000}
OURS = {"edge int8": ("edge", "int8"), "edge int4": ("edge", "int4")}
OTHERS = {"optimum int8": ("optimum", "int8"), "torch fp32": ("torch", "fp32")}
# By family: engines, vocabularies, output tokens.
FAMILIES = {
    "t5": ({**OURS, "ctranslate2 int8": ("ctranslate2", "int8"), **OTHERS}, ("full", "8k"), (4, 48)),
    "smollm2": ({**OURS, "llama.cpp Q8_0": ("llama_cpp", "Q8_0"), "llama.cpp Q4_0": ("llama_cpp", "Q4_0"), **OTHERS},
                ("full",), (1, 32))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable, help="an interpreter with ctranslate2, optimum-onnx and torch")
    parser.add_argument("--students", default="t5-small")
    parser.add_argument("--engines", help="some of them (default: all)")
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
    from edgedistill.probe import Reader

    engines, vocabularies, outputs = FAMILIES[student.split("-")[0]]
    with tempfile.TemporaryDirectory() as place:
        workers, facts, floors = {}, {}, {}
        try:
            for vocabulary in vocabularies:
                folder = Path(place) / vocabulary
                make(student, folder, VOCABULARIES[vocabulary])
                for name in args.engines.split(",") if args.engines else engines:
                    engine, precision = engines[name]
                    made = Path(place) / f"{vocabulary}-{engine}-{precision}"
                    if engine == "edge":
                        bundle(folder, made, precision, args.target)
                    job = {"engine": engine, "precision": precision, "threads": args.threads, "student": str(folder),
                           "made": str(made)}
                    python = sys.executable if engine in ("edge", "llama_cpp") else args.peers
                    key = f"{name}, {vocabulary}"
                    workers[key] = subprocess.Popen([python, __file__, "--work", json.dumps(job)], stdin=subprocess.PIPE,
                                                    stdout=subprocess.PIPE, text=True)
                    facts[key] = _read(workers[key])
                    print(key, facts[key], flush=True)
                    if engine == "edge":
                        floors[key] = Reader(read_by_a_token(made), args.threads)
            ms: dict[str, dict[int, list[float]]] = {key: {n: [] for n in outputs} for key in workers}
            floor_ms: dict[str, list[float]] = {key: [] for key in floors}
            tokens: dict[str, list[int]] = {}
            peaks: dict[str, dict[str, float]] = {}
            order = list(workers)
            for turn in range(args.rounds + 3):
                random.Random(turn).shuffle(order)
                for n in outputs:
                    for key in order:
                        answer = ask(workers[key], n)
                        if turn >= 3:
                            ms[key][n].append(answer["ms"])
                            if n == outputs[-1] and key in floors:
                                time.sleep(0.02)
                                floor_ms[key].append(1e3 * floors[key].read(n) / n)
                        tokens[key] = answer["tokens"]
                        peaks[key] = {which: answer[which] for which in ("serving_mb", "peak_mb")}
        finally:
            for process in workers.values():
                process.kill()
    entries = []
    for key in workers:
        name, vocabulary = key.split(", ")
        reference = tokens.get(f"torch fp32, {vocabulary}")
        token = [(b - a) / (outputs[-1] - outputs[0]) for a, b in zip(*ms[key].values(), strict=True)]
        floor = {"floor_ms": round(statistics.median(floor_ms[key]), 3),
                 "read_by_a_token": sum(part.nbytes for part in floors[key].parts)} if key in floors else {}
        entries.append({"engine": name, "vocabulary": vocabulary, **facts[key], **peaks[key],
                        "token_ms": round(statistics.median(token), 3), **floor,
                        "ms": {n: round(statistics.median(ms[key][n]), 2) for n in outputs},
                        "quartiles": {n: [round(q, 2) for q in statistics.quantiles(ms[key][n], n=4)[::2]] for n in outputs},
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
    """The student's folder, readable by the peers' transformers."""
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
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rope_theta": config["rope_parameters"]["rope_theta"]}))
    settings = folder / "tokenizer_config.json"  # transformers 5's name for it is unknown to the peers' 4.57
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))


def bundle(folder: Path, place: Path, precision: str, target: str) -> None:
    """The student's bundle, without gates: random weights have no accuracy."""
    from edgedistill import cards
    from edgedistill.cards import Target
    from edgedistill.export import write
    from edgedistill.train.students import load

    student = load(folder)
    if student.format is None:
        student.set_task(None)
    write(student, place, precision, cards.load(Target, target))


def read_by_a_token(place: Path) -> int:
    """Bytes of the weights and scales that the products of one more token read."""
    import onnx

    graph = onnx.load(place / ("decoder.onnx" if (place / "decoder.onnx").exists() else "model.onnx"),
                      load_external_data=False).graph
    read = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input}
    return sum(int(entry.value) for each in graph.initializer if each.name in read
               for entry in each.external_data if entry.key == "length")


def source() -> list[int]:
    """INPUT tokens, the last of them a T5's end."""
    rng = random.Random(0)
    return [rng.randrange(10, 500) for _ in range(INPUT - 1)] + [1]


def work(job: dict[str, Any]) -> None:
    """An engine's process: a number of tokens on stdin is answered by {ms, tokens}."""
    engines = {"edge": edge, "ctranslate2": ctranslate2, "optimum": optimum, "torch": torch_, "llama_cpp": llama_cpp}
    start, request = engines[job["engine"]](job)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    loaded = time.perf_counter()
    run, size = start()
    load = 1e3 * (time.perf_counter() - loaded)
    run(4)
    opening = _memory("VmHWM")
    print(json.dumps({"load_ms": round(load, 1), "bytes": size}), flush=True)
    Path("/proc/self/clear_refs").write_text("5")
    for line in sys.stdin:
        begin = time.perf_counter()
        tokens = run(int(line))
        took = 1e3 * (time.perf_counter() - begin)
        print(json.dumps({"ms": round(took, 3), "tokens": request(tokens),
                          "serving_mb": round(_memory("VmHWM") - before, 1),
                          "peak_mb": round(max(opening, _memory("VmHWM")) - before, 1)}), flush=True)


def _memory(what: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) * 1024 / 1e6


def _size(folder: Path, *endings: str) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.name.endswith(endings))


def edge(job: dict[str, Any]) -> tuple[Any, Any]:
    import numpy as np

    from edgedistill.edge import Student

    def start() -> tuple[Any, int]:
        student = Student.load(job["made"], job["threads"])
        graphs, end = student.graphs, student.format.eos_id
        ids, opening = source(), [0] if student.manifest["graph"]["kind"] == "t5" else []

        def run(n: int) -> list[int]:
            logits, found = graphs.start(ids, opening), []
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
        ids = [words[i] for i in source()]

        def run(n: int) -> list[str]:
            return made.translate_batch([ids], beam_size=1, min_decoding_length=n, max_decoding_length=n,
                                        return_scores=False)[0].hypotheses[0]

        return run, _size(place, ".bin")

    return start, lambda tokens: [numbers[word] for word in tokens]


def optimum(job: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    raw, place = Path(job["made"] + "-fp32"), Path(job["made"])
    seq2seq = json.loads((Path(job["student"]) / "config.json").read_text())["model_type"] == "t5"
    kind = ORTModelForSeq2SeqLM if seq2seq else ORTModelForCausalLM
    kind.from_pretrained(job["student"], export=True).save_pretrained(raw)
    shutil.copytree(raw, place, ignore=shutil.ignore_patterns("*.onnx*"), dirs_exist_ok=True)
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    for graph in raw.glob("*.onnx"):
        if "merged" not in graph.name:
            ORTQuantizer.from_pretrained(raw, file_name=graph.name).quantize(save_dir=place, quantization_config=settings)
    names = ({"encoder_file_name": "encoder_model_quantized.onnx", "decoder_file_name": "decoder_model_quantized.onnx",
              "decoder_with_past_file_name": "decoder_with_past_model_quantized.onnx", "use_merged": False}
             if seq2seq else {"file_name": "model_quantized.onnx"})

    def start() -> tuple[Any, int]:
        options = SessionOptions()
        options.intra_op_num_threads = job["threads"]
        model = kind.from_pretrained(place, session_options=options, **names)
        return _generating(model, torch.tensor([source()]), seq2seq), _size(place, ".onnx", ".onnx_data")

    return start, lambda tokens: tokens


def llama_cpp(job: dict[str, Any]) -> tuple[Any, Any]:
    import ctypes

    import llama_cpp as lib
    import numpy as np

    from edgedistill.teach.source import resolve

    place = Path(job["made"] + ".gguf")
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = {"Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0}[job["precision"]]
    settings.allow_requantize = True
    job["quiet"] = lib.llama_log_callback(lambda *_: None)  # must live on
    lib.llama_log_set(job["quiet"], ctypes.c_void_p())
    if lib.llama_model_quantize(str(resolve("smollm2-135m").path).encode(), str(place).encode(), settings):
        raise SystemExit("llama.cpp did not quantise the file")

    def start() -> tuple[Any, int]:
        model = lib.llama_model_load_from_file(str(place).encode(), lib.llama_model_default_params())
        wanted = lib.llama_context_default_params()
        wanted.n_ctx, wanted.n_threads, wanted.n_threads_batch = 128, job["threads"], job["threads"]
        context = lib.llama_init_from_model(model, wanted)
        vocabulary = lib.llama_model_get_vocab(model)
        size, end = lib.llama_vocab_n_tokens(vocabulary), lib.llama_vocab_eos(vocabulary)
        prompt = (ctypes.c_int32 * INPUT)(*source())
        one = (ctypes.c_int32 * 1)()

        def run(n: int) -> list[int]:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            lib.llama_decode(context, lib.llama_batch_get_one(prompt, INPUT))
            found = []
            while True:
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,))
                token = int(logits.argmax())
                if token == end:
                    logits[end] = -np.inf
                    token = int(logits.argmax())
                found.append(token)
                if len(found) == n:
                    return found
                one[0] = token
                lib.llama_decode(context, lib.llama_batch_get_one(one, 1))

        return run, place.stat().st_size

    return start, lambda tokens: tokens


def torch_(job: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(job["threads"])
    seq2seq = AutoConfig.from_pretrained(job["student"]).model_type == "t5"

    def start() -> tuple[Any, int]:
        model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(job["student"]).eval()
        return _generating(model, torch.tensor([source()]), seq2seq), _size(Path(job["student"]), ".safetensors")

    return start, lambda tokens: tokens


def _generating(model: Any, ids: Any, seq2seq: bool) -> Any:
    import torch

    def run(n: int) -> list[int]:
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=1, do_sample=False,
                                 min_new_tokens=n, max_new_tokens=n)
        return out[0, 1 if seq2seq else INPUT:].tolist()

    return run


if __name__ == "__main__":
    main()
