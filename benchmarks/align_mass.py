"""The share of the teacher's probability that reaches a student with other pieces: the published alignment against spans.

    EDGEDISTILL_MODELS=... python benchmarks/align_mass.py --run runs/svamp-methods/corpus [--rows 200]

On a taught run with soft targets (benchmarks/studies/svamp-methods.toml says how one is made: qwen2.5-coder on PaLM's SVAMP
rationales), for the tokenizers of SmolLM2 (byte-level BPE, single digits) and of a T5's kind (unigram, `▁`, trained on these
texts). `mass` is the mean over target tokens, `soft` the share of tokens that are not one-hot for want of an alignment. Writes
benchmarks/results/align-mass.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill import cards, defaults, machine, runs
from edgedistill.tasks.task import Task
from edgedistill.teach import read_corpus, soft
from edgedistill.teach.source import resolve
from edgedistill.train import align

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True, help="a run whose teach stage has soft targets")
    parser.add_argument("--rows", type=int, default=200, help="samples, from the first on")
    args = parser.parse_args()
    folder = Path(args.run) / "teach"
    lead = cards.load(Task, "svamp").answer_lead
    texts = {(e["id"], e["sample"]): f"{e['rationale']} {lead} {e['answer']}" for e in read_corpus(args.run)
             if e["rationale"] and e["answer"]}
    vocabulary = soft.vocabulary(folder / "soft")
    samples = [(texts[i, s], records) for i, s, records in soft.read(folder / "soft") if (i, s) in texts][: args.rows]
    found = {name: measure(align.Pieces(tokenizer.backend_tokenizer, tokenizer.eos_token_id), samples, vocabulary)
             for name, tokenizer in tokenizers([text for text, _ in samples]).items()}
    manifest = runs.finished(args.run, "teach")
    runs.write_json(HERE / "results" / "align-mass.json", {
        **machine.origin("align-mass"), "teacher": manifest["result"]["teacher"], "samples": len(samples), "students": found})
    print(found)


def tokenizers(texts: list[str]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    sys.path.insert(0, str(HERE.parent / "tests"))
    import tiny_students

    path = resolve(defaults.TEACHER).path
    return {"smollm2": AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
            "t5's kind": tiny_students.t5_tokenizer()}


def measure(pieces: align.Pieces, samples: list[Any], vocabulary: dict[int, bytes]) -> dict[str, Any]:
    found = {}
    for name, way in (("recurrence", align.by_recurrence), ("spans", align.by_spans)):
        start = time.monotonic()
        mass = np.concatenate([way(pieces, text, records, vocabulary).mass for text, records in samples])
        found[name] = {"mass": round(float(mass.mean()), 4), "soft": round(float((mass > 0).mean()), 4),
                       "tokens": len(mass), "seconds": round(time.monotonic() - start, 2)}
    return found


if __name__ == "__main__":
    main()
