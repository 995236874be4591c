"""The fp32 graphs' greedy tokens against transformers' `generate`, for inputs of 1 to 512 tokens.

    python benchmarks/edge_parity.py STUDENT [STUDENT ...]

STUDENT is a trained student's folder. 200 inputs each, of random pieces, every length between 1 and the student's longest input
as often; 16 tokens out. The graphs take one input after the other, transformers too: no padding in either. `int8` does the same
in the default precision, of which tokens may differ. Writes benchmarks/results/edge-parity.json.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgedistill import cards, defaults, machine, runs
from edgedistill.cards import Target
from edgedistill.edge import Student
from edgedistill.export import write
from edgedistill.export.gates import agreement
from edgedistill.train.students import load

RESULT = Path(__file__).parent / "results" / "edge-parity.json"
INPUTS, OUTPUT, LONGEST = 200, 16, 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("students", nargs="+", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(machine.cores())
    entries = []
    for folder in args.students:
        student = load(folder)
        student.model.eval()
        entries.append({"student": runs.subject_name(folder), "family": student.family, "parameters": student.parameters(),
                        "model": runs.sha256(folder / "model.safetensors"), **compared(student)})
        print(entries[-1], flush=True)
    runs.write_json(RESULT, {**machine.origin("edge-parity"), "inputs": INPUTS, "output_tokens": OUTPUT, "results": entries})


def compared(student: Any) -> dict[str, Any]:
    student.format = form = replace(student.format, max_input_tokens=LONGEST)
    rng, pieces = random.Random(0), student.model.config.vocab_size
    lengths = [1 + i * (LONGEST - 1) // (INPUTS - 1) for i in range(INPUTS)]
    end = [form.eos_id] if student.family == "t5" else []
    sources = [[rng.randrange(3, pieces) for _ in range(length - len(end))] + end for length in lengths]
    opening = form.opening(student.rust, "label") if student.family == "t5" else []
    expected = []
    for source in sources:
        with torch.no_grad():
            out = student.model.generate(input_ids=torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=int),
                                         max_new_tokens=OUTPUT, min_new_tokens=OUTPUT, do_sample=False, num_beams=1,
                                         pad_token_id=0)[0].tolist()
        expected.append(out[1:] if student.family == "t5" else out[len(source):])
    found = {"lengths": [lengths[0], lengths[-1]]}
    for precision in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as place:
            write(student, Path(place) / "b", precision, cards.load(Target, defaults.TARGET))
            graphs = Student.load(Path(place) / "b", machine.cores()).graphs
            tokens = [greedy(graphs, source, opening, form.eos_id) for source in sources]
        found[precision] = {"same": sum(a == b for a, b in zip(expected, tokens, strict=True)),
                            "agreement": agreement(expected, tokens)}
    return found


def greedy(graphs: Any, source: list[int], opening: list[int], end: int) -> list[int]:
    """OUTPUT tokens, the end not among them."""
    logits, out = graphs.start(source, opening), []
    while True:
        logits[end] = -torch.inf
        out.append(int(logits.argmax()))
        if len(out) == OUTPUT:
            return out
        logits = graphs.step(out[-1])


if __name__ == "__main__":
    main()
