"""Bundles under emulated Raspberry Pis (qemu user mode), where export/pi/emulate.py has been prepared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_students

from edgedistill import cards
from edgedistill.cards import Target
from edgedistill.export import write

SCRIPT = Path(__file__).parent.parent / "export" / "pi" / "emulate.py"
STUDENTS = {"t5": tiny_students.t5, "llama": tiny_students.decoder}


@pytest.fixture
def emulate(tmp_path: Path):
    """emulate(bundle, *cpus) -> (exit code, result, last lines)."""
    if not (Path.home() / ".cache" / "edgedistill" / "arm64" / "ready").is_file():
        pytest.skip("no emulated Arm here: python export/pi/emulate.py --prepare fetches it once (120 MB)")

    def call(bundle: Path, *cpus: str):
        done = subprocess.run([sys.executable, str(SCRIPT), str(bundle), "--json", str(tmp_path / "result.json"),
                               *(word for cpu in cpus for word in ("--cpu", cpu))], capture_output=True, text=True, timeout=300)
        return done.returncode, json.loads((tmp_path / "result.json").read_text()), done.stdout + done.stderr

    return call


@pytest.mark.parametrize("family", STUDENTS)
def test_the_shipped_targets_give_the_same_tokens_on_their_boards(family: str, emulate, tmp_path: Path) -> None:
    for target, cpus in (("rpi4", ("cortex-a72", "cortex-a76")), ("rpi5", ("cortex-a76",))):
        write(STUDENTS[family](), tmp_path / target, "int8", cards.load(Target, target))
        code, result, printed = emulate(tmp_path / target, *cpus)
        assert code == 0, printed
        assert all(result[cpu]["tokens"] == result["here"]["tokens"] and not result[cpu]["fallbacks"] for cpu in cpus)
        assert any(result["here"]["tokens"])


def test_a_bundle_for_the_wrong_board_is_caught(emulate, tmp_path: Path) -> None:
    """8-bit MatMulNBits has no kernel without dot-product instructions: onnxruntime unpacks the matrix on every call."""
    write(STUDENTS["llama"](), tmp_path / "rpi5", "int8", cards.load(Target, "rpi5"))
    code, result, printed = emulate(tmp_path / "rpi5", "cortex-a72")
    assert code == 3 and result["cortex-a72"]["fallbacks"] > 0, printed
