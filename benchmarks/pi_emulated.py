"""A student's bundles and packs for the Raspberry Pi's targets, under emulated Cortex-A72 (Pi 4) and Cortex-A76 (Pi 5).

    python benchmarks/pi_emulated.py STUDENT [--rows 50]

STUDENT is a trained student's folder with a task whose built-in rows are asked (the T5 of t5_wordmath.py). For each target:
the bundle's tokens on three texts against this machine's and the products that fall back to unpacked computing, then the
pack of its first `rows` built-in test rows: answers as packed, how many are right, memory. At last an `rpi5` bundle on the A72,
which must be caught. Times under emulation mean nothing and are not read. Writes benchmarks/results/pi-emulated.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgedistill import cards, machine, runs
from edgedistill.bench import bench
from edgedistill.cards import Target
from edgedistill.export import write
from edgedistill.tasks import wordmath
from edgedistill.train.students import load

HERE = Path(__file__).parent
BOARDS = {"rpi4": ("cortex-a72", "cortex-a76"), "rpi5": ("cortex-a76",)}
PACKED = (("rpi4", "cortex-a72"), ("rpi5", "cortex-a76"))  # each board with its own target: accuracy takes minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--rows", type=int, default=50)
    args = parser.parse_args()
    student = load(args.student)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = folder / "test.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("test", args.rows)))
        for target, cpus in BOARDS.items():
            write(student, folder / target, "int8", cards.load(Target, target))
            bench(str(folder / target), data=str(rows), n=args.rows, pack=str(folder / f"{target}.pyz"))
            found[target] = {"bundle": emulate(folder / target, folder, cpus), "pack": {}}
        for target, cpu in PACKED:
            found[target]["pack"] |= emulate(folder / f"{target}.pyz", folder, (cpu,), "--rows", str(args.rows))
        found["rpi5 on a Pi 4"] = {"bundle": emulate(folder / "rpi5", folder, ("cortex-a72",))}
    here = {name: its["bundle"].pop("here") for name, its in found.items()}
    result = {**machine.origin("pi-emulated"), "student": runs.subject_name(args.student), "parameters": student.parameters(),
              "rows": args.rows, "onnxruntime": {name: its["onnxruntime"] for name, its in here.items()}, "boards": found}
    runs.write_json(HERE / "results" / "pi-emulated.json", result)


def emulate(what: Path, folder: Path, cpus: tuple[str, ...], *more: str) -> dict[str, Any]:
    """What export/pi/emulate.py found, with its exit code."""
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    script = HERE.parent / "export" / "pi" / "emulate.py"
    done = subprocess.run([sys.executable, str(script), str(what), "--json", str(out), *more,
                           *(word for cpu in cpus for word in ("--cpu", cpu))], stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    return {**json.loads(out.read_text()), "exit": done.returncode}


if __name__ == "__main__":
    main()
