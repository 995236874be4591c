"""The predicted peak memory of a training step beside the measured one, and what each saver saves.

    EDGEDISTILL_MODELS=... python benchmarks/train_memory.py --data PATH/svamp

`train --dry-run` on SVAMP's rows with PaLM's rationales, each configuration in a process of its own: the plan, then a real
step of the longest questions. Random weights in the T5 shapes; memory does not depend on them. On a CPU the measure is the
peak resident size, the libraries' own size included in both figures; on a CUDA GPU it is the peak of the allocator. Writes
benchmarks/results/train-memory-DEVICE.json anew after each configuration (on the GPU its time was over after five of seven).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgedistill import machine, runs

HERE = Path(__file__).parent
# (student, flags): the savers one by one on t5-small, then others' shapes, and a plan for 6 GB.
CONFIGURATIONS = [
    ("t5-small", ["--optimizer", "adamw", "--no-gradient-checkpointing"]),
    ("t5-small", ["--optimizer", "adamw", "--gradient-checkpointing"]),
    ("t5-small", ["--optimizer", "adamw8bit", "--no-gradient-checkpointing"]),
    ("t5-small", ["--optimizer", "adafactor", "--gradient-checkpointing", "--batch-tokens", "512"]),
    ("smollm2-135m", ["--optimizer", "adamw", "--no-gradient-checkpointing"]),
    ("carve", ["--optimizer", "adamw", "--no-gradient-checkpointing", "--batch-tokens", "2048"]),
    ("t5-base", ["--vram", "6"]),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder with SVAMP's train")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, str] = {}
        for student, flags in CONFIGURATIONS:
            if student.startswith("t5") and student not in made:
                made[student] = build(student, Path(folder) / student)
            found.append(measure(made.get(student, student), student, flags, args.data))
            print(json.dumps(found[-1]), flush=True)
            write(found)


def write(found: list[dict[str, Any]]) -> None:
    """What there is so far; `planned` says how many there are to be."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs.write_json(HERE / "results" / f"train-memory-{device}.json", {
        **machine.origin("train-memory"), "device": device, "planned": len(CONFIGURATIONS), "configurations": found,
        "largest_error": max(abs(entry["error"]) for entry in found)})


def build(student: str, folder: Path) -> str:
    """A T5 of that shape with random weights."""
    import tiny_students

    return str(tiny_students.t5_shaped(student, folder))


def measure(place: str, student: str, flags: list[str], data: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edgedistill", "train", "--student", place, "--data", data, "--task", "svamp", "--column",
         "stated=meta.llm_label", "--dry-run", "--json", *flags], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{student} {flags}: {done.stderr}")
    plan = json.loads(done.stdout.splitlines()[-1])
    own = plan["peak_memory_mb"] - (plan["imports_mb"] if plan["predicted_memory_mb"] > plan["memory"]["peak"] else 0)
    keys = ("parameters", "optimizer", "gradient_checkpointing", "batch_tokens", "memory", "predicted_memory_mb",
            "peak_memory_mb", "imports_mb", "seconds_per_step")
    return {"student": student, "flags": flags, **{key: plan[key] for key in keys},
            "measured_mb": round(own, 1), "error": round(plan["memory"]["peak"] / own - 1, 4)}


if __name__ == "__main__":
    main()
