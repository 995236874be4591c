"""Rows per second of the teaching engine against a loop over llama-cpp-python's own class, and against distilabel.

    EDGEDISTILL_MODELS=... python benchmarks/teach_speed.py --data PATH/svamp [--distilabel PYTHON] [--samples 1,4]

Three blocks of 32 SVAMP training rows; in each block every engine answers the same rows with the same prompt tokens,
sampling and threads, in an order that rotates. All begin a block with the shared prefix in
their cache, as they have it in a long run (`prefix_s` is what it took, once). The loop gets flash attention on or off,
whichever was faster on 8 rows; distilabel's LlamaCppLLM runs in its own environment (benchmarks/peers/
distilabel_worker.py) with the same chats, one sample a row: it decodes one text after another through the same class.
`steps` is the time of one decode by the number of sequences in it: where it grows as fast as they do, arithmetic is the
limit and not memory. Writes benchmarks/results/teach-speed/MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgedistill import cards, machine, runs
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.teach.asker import Ask, Local
from edgedistill.teach.completion import Sampling
from edgedistill.teach.engine import Engine
from edgedistill.teach.prompts import Prompter
from edgedistill.teach.source import resolve

HERE = Path(__file__).parent
BLOCKS, ROWS, WARM, TRIAL = 3, 32, 4, 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder with SVAMP's train")
    parser.add_argument("--models", default="qwen2.5-coder-1.5b,qwen2.5-coder-0.5b")
    parser.add_argument("--samples", default="1,4")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a block")
    parser.add_argument("--distilabel", help="the python of an environment with distilabel[llama-cpp]")
    parser.add_argument("--threads", type=int, default=machine.cores())
    args = parser.parse_args()
    task = cards.load(Task, "svamp")
    rows = rows_.load(args.data).splits["train"][: WARM + BLOCKS * args.rows]
    for model in args.models.split(","):
        result = {**machine.origin("teach-speed"), "teacher": model, "threads": args.threads, "task": task.name,
                  "prompt": task.prompt, "rows_of_a_block": args.rows, **measure(model, task, rows, args)}
        folder = HERE / "results" / "teach-speed"
        folder.mkdir(parents=True, exist_ok=True)
        runs.write_json(folder / f"{model}.json", result)


def measure(model: str, task: Task, rows: list[Row], args: argparse.Namespace) -> dict[str, Any]:
    source, prompter = resolve(model), Prompter(task, task.style())
    engine = Engine(source.path, threads=args.threads)
    asker = Local(engine, source, prompter, rows)
    steps = {width: round(engine.step_seconds(width), 4) for width in (1, 2, 4, 8, 16, 32) if width <= asker.slots}
    found = {"parallel": asker.slots, "prefix_tokens": len(asker.prefix), "own_tokens": round(asker.own, 1),
             "prefix_s": round(asker.prefix_seconds, 2),
             "prompt_tokens_per_s": round(len(asker.prefix) / asker.prefix_seconds, 1),
             "weights_bytes": source.path.stat().st_size, "steps": steps, "runs": []}
    loop, flash = best_loop(source.path, asker, rows[:TRIAL], args.threads)
    found["loop_flash_attention"] = flash
    peer = Distilabel(args.distilabel, source.path, args.threads, flash) if args.distilabel else None
    for samples in map(int, args.samples.split(",")):
        sampling = Sampling(0.7 if samples > 1 else 0.0)
        engines: dict[str, Callable[[list[Row]], int | None]] = {
            "edgedistill": lambda its, s=sampling, n=samples: ours(asker, its, s, n),
            "loop": lambda its, s=sampling, n=samples: looped(loop, asker, its, s, n)}
        if peer and samples == 1:
            engines["distilabel"] = lambda its, s=sampling, n=samples: peer(prompter, its, s, n, task.max_new_tokens)
        for block in range(BLOCKS):
            its = rows[WARM + block * args.rows: WARM + (block + 1) * args.rows]
            names = list(engines)
            for name in names[block % len(names):] + names[: block % len(names)]:
                engines[name](rows[:1])  # the prefix is in its cache again
                start = time.monotonic()
                tokens = engines[name](its)
                seconds = time.monotonic() - start
                found["runs"].append({"engine": name, "samples": samples, "block": block, "seconds": round(seconds, 2),
                                      "samples_per_s": round(samples * len(its) / seconds, 4), "generated_tokens": tokens})
                print(model, found["runs"][-1], flush=True)
    if peer:
        found["distilabel"] = peer.version
        peer.close()
    engine.close()
    found["ratios"] = ratios(found["runs"])
    print(model, json.dumps(found["ratios"], indent=1), flush=True)
    return found


def ratios(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ours over the other, block by block: the median, the smallest, the largest."""
    rate = {(e["engine"], e["samples"], e["block"]): e["samples_per_s"] for e in entries}
    found = {}
    for other, samples in sorted({(e["engine"], e["samples"]) for e in entries if e["engine"] != "edgedistill"}):
        values = [rate["edgedistill", samples, b] / rate[other, samples, b] for b in range(BLOCKS)]
        found[f"over {other}, {samples} a row"] = {"median": round(statistics.median(values), 3), "min": round(min(values), 3),
                                                   "max": round(max(values), 3)}
    return found


def ours(asker: Local, rows: list[Row], sampling: Sampling, samples: int) -> int:
    return sum(done.generated_tokens for done in asker.ask((Ask(row.id, row, tuple(range(samples))) for row in rows), sampling))


def best_loop(path: Path, asker: Local, rows: list[Row], threads: int) -> tuple[Any, bool]:
    """The peer at its better setting."""
    import llama_cpp

    tried = {}
    for flash in (False, True):
        llama = llama_cpp.Llama(str(path), n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads,
                                flash_attn=flash, verbose=False)
        looped(llama, asker, rows[:1], Sampling(), 1)
        start = time.monotonic()
        looped(llama, asker, rows[1:], Sampling(), 1)
        tried[flash] = (time.monotonic() - start, llama)
    best = min(tried, key=lambda flash: tried[flash][0])
    tried[not best][1].close()
    return tried[best][1], best


def looped(llama: Any, asker: Local, rows: list[Row], sampling: Sampling, samples: int) -> int:
    tokens = 0
    for row in rows:
        for seed in range(samples):
            made = llama.create_completion(list(asker.tokens(row)), max_tokens=asker.task.max_new_tokens,
                                           temperature=sampling.temp, top_k=sampling.top_k, top_p=sampling.top_p,
                                           min_p=sampling.min_p, repeat_penalty=1.0, seed=seed)
            tokens += made["usage"]["completion_tokens"]
    return tokens


class Distilabel:
    """The worker process of benchmarks/peers/distilabel_worker.py."""

    def __init__(self, python: str, path: Path, threads: int, flash: bool) -> None:
        self._process = subprocess.Popen([python, HERE / "peers" / "distilabel_worker.py"], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.version = ""
        self._send({"gguf": str(path), "threads": threads, "n_ctx": 2048, "extra": {"flash_attn": flash}})

    def __call__(self, prompter: Prompter, rows: list[Row], sampling: Sampling, samples: int, new: int) -> int | None:
        answer = self._send({"chats": [list(prompter.turns(row).messages()) for row in rows], "samples": samples,
                             "max_new_tokens": new, "temperature": sampling.temp, "top_k": sampling.top_k,
                             "top_p": sampling.top_p, "min_p": sampling.min_p, "seed": 0})
        self.version = answer["version"]
        return answer["generated_tokens"]

    def _send(self, message: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    main()
