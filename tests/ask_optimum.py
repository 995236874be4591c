"""Asks folders in optimum's layout, in the environment that has optimum: a job as JSON on stdin, the answers on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from transformers import AutoTokenizer

from edgedistill import defaults
from edgedistill.export import export

logging.disable(logging.WARNING)
defaults.PARITY_INPUTS = 6


def ask(folder: str, sources: list[list[int]]) -> dict[str, list[list[int]]]:
    """Greedy tokens of two sources alone, of all in one padded batch, of the batch through bound buffers, and by 3 beams."""
    seq2seq = (Path(folder) / "encoder_model.onnx").is_file()
    model = (ORTModelForSeq2SeqLM if seq2seq else ORTModelForCausalLM).from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(its: list[list[int]], beams: int = 1) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": its}, return_tensors="pt")
        out = model.generate(**batch, num_beams=beams)[:, 1 if seq2seq else batch["input_ids"].shape[1]:]
        end = model.generation_config.eos_token_id
        return [row[: row.index(end)] if end in row else row for row in out.tolist()]

    found = {"alone": [tokens([source])[0] for source in sources[:2]], "together": tokens(sources), "beams": tokens(sources, 3)}
    model.use_io_binding = True
    return {**found, "bound": tokens(sources)}


def readme(folder: str, questions: list[str]) -> list[str]:
    """What the code in a folder's README prints for `questions`, or for its own text."""
    lines = (Path(folder) / "README.md").read_text(encoding="utf-8").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") and "pip install" not in line)
    given = next((line for line in code.splitlines() if line.startswith("questions = ")), "\0")
    printed: list[list[str]] = []
    os.chdir(folder)
    exec(code.replace(given, f"questions = {questions!r}"), {"print": printed.append})
    return printed[0]


def exported(folder: str, run: str) -> dict:
    """The result of the export, and what its README's code prints."""
    return {**export(folder, run=run, layout="optimum"), "printed": readme(f"{run}/export/optimum", [])}


VERBS = {"ask": ask, "readme": readme, "export": exported}

if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    print(json.dumps({verb: {name: VERBS[verb](*given) for name, given in job.items()} for verb, job in asked.items()}))
