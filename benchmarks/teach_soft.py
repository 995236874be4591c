"""What `--soft-targets 20` costs: rate, bytes a token, and memory by the number of rows.

    EDGEDISTILL_MODELS=... python benchmarks/teach_soft.py --data PATH/svamp

Rate: three pairs of blocks of 32 SVAMP training rows, with and without, in turns, for each model; with includes the check
and the writing of every sample's records, as the stage does it. Bytes and memory: the
verb itself on 100 and on 1,000 built-in rows with the embedded teacher and at most 8 new tokens, each in a process of its
own; peak memory is what the stage's manifest records (the process's largest resident size). Writes
benchmarks/results/teach-soft.json; a part that is there is not repeated.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgedistill import cards, kit, machine, runs
from edgedistill.tasks import data as rows_
from edgedistill.tasks.task import Task
from edgedistill.teach.asker import Ask, Local
from edgedistill.teach.completion import Sampling
from edgedistill.teach.engine import Engine
from edgedistill.teach.prompts import Prompter
from edgedistill.teach.soft import Writer, check, read
from edgedistill.teach.source import resolve

K, BLOCKS, ROWS = 20, 3, 32
RESULT = Path(__file__).parent / "results" / "teach-soft.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder with SVAMP's train")
    # The smaller the model, the more a token's records weigh.
    parser.add_argument("--models", default="qwen2.5-coder-0.5b")
    args = parser.parse_args()
    if not RESULT.exists():
        rates = {model: rate(model, args.data) for model in args.models.split(",")}
        runs.write_json(RESULT, {**machine.origin("teach-soft"), "k": K, "rates": rates})
    result = runs.read_json(RESULT)
    if "sizes" not in result:
        sizes = [size(rows) for rows in (100, 1000)]
        runs.write_json(RESULT, {**result, "sizes": sizes, "peak_of_1000_over_100": round(
            sizes[1]["peak_memory_mb"] / sizes[0]["peak_memory_mb"], 4)})


def rate(model: str, data: str) -> dict[str, Any]:
    """Tokens a second with soft targets over those without, block by block."""
    task, source = cards.load(Task, "svamp"), resolve(model)
    rows = rows_.load(data).splits["train"][: BLOCKS * ROWS]
    engine = Engine(source.path, threads=machine.cores())
    asker = Local(engine, source, Prompter(task, task.style()), rows)
    entries = []
    for block in range(BLOCKS):
        for k in ((0, K) if block % 2 else (K, 0)):
            start = time.monotonic()
            asks = (Ask(row.id, row, (0,)) for row in rows[block * ROWS: (block + 1) * ROWS])
            tokens = 0
            with tempfile.TemporaryDirectory() as folder:
                writer = Writer(Path(folder), k, []) if k else None
                for done in asker.ask(asks, Sampling(), k):
                    tokens += done.generated_tokens
                    if writer:
                        check(done.soft, done.text, engine.piece, engine.is_end)
                        writer.add(done.soft)
                if writer:
                    writer.close()
            seconds = time.monotonic() - start
            entries.append({"block": block, "soft_targets": k, "seconds": round(seconds, 2), "generated_tokens": tokens,
                            "rows_per_s": round(ROWS / seconds, 4)})
            print(model, entries[-1], flush=True)
    engine.close()
    found = {(e["block"], e["soft_targets"]): e["rows_per_s"] for e in entries}
    return {"median_ratio": round(statistics.median(found[b, K] / found[b, 0] for b in range(BLOCKS)), 4), "runs": entries}


def size(rows: int) -> dict[str, Any]:
    """The verb on so many rows: bytes of the soft targets a token, peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "short.toml"
        own = (kit.folder("teachers") / "tasks" / "wordmath.toml").read_text(encoding="utf-8")
        card.write_text(re.sub(r"(?m)^max_new_tokens = .*", "max_new_tokens = 8", own), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "edgedistill", "teach", "--task", str(card), "--limit", str(rows),
                        "--soft-targets", str(K), "--threads", "1", "--run", folder], check=True)
        manifest = runs.finished(folder, "teach")
        soft = Path(folder) / "teach" / "soft"
        tokens = sum(len(records) for _, _, records in read(soft))
        shards = sum(path.stat().st_size for path in soft.glob("*.safetensors"))
        return {"rows": rows, "tokens": tokens, "shard_bytes": shards, "bytes_a_token": round(shards / tokens, 2),
                "vocabulary_bytes": (soft / "vocabulary.json").stat().st_size, "peak_memory_mb": manifest["peak_memory_mb"],
                "seconds": manifest["seconds"]}


if __name__ == "__main__":
    main()
