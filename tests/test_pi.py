"""Bundles on Raspberry Pis: emulated ones (qemu user mode) where export/pi/emulate.py has been prepared, and the installer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tiny_students

from edgedistill import cards, machine
from edgedistill.bench import bench
from edgedistill.cards import Target
from edgedistill.export import write
from edgedistill.tasks import wordmath

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


@pytest.mark.skipif(machine.saturates(), reason="this CPU has no VNNI: its integer products are not a Pi's")
def test_a_pack_is_counted_and_answers_as_where_it_was_packed(emulate, tmp_path: Path) -> None:
    write(STUDENTS["llama"](), tmp_path / "rpi4", "int8", cards.load(Target, "rpi4"))
    rows = tmp_path / "dev.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("dev", 6)))
    bench(str(tmp_path / "rpi4"), data=str(rows), pack=str(tmp_path / "pocket.pyz"))
    code, result, printed = emulate(tmp_path / "pocket.pyz", "cortex-a72")
    assert code == 0 and result["cortex-a72"]["golden"] == {"asked": 6, "same": 6}, printed
    assert result["cortex-a72"]["counted"] == 6 and "6 of 6 answers as packed" in printed


@pytest.mark.parametrize(("args", "words"), [
    (["nothing"], "is no bundle"), (["nothing.pyz"], "is no bundle"), (["--texts", "nothing.txt", "x"], "--texts nothing.txt"),
    (["BROKEN"], "not a bundle's manifest")])
def test_bad_input_to_the_emulator_is_one_line(args: list[str], words: str, emulate, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{}")
    done = subprocess.run([sys.executable, str(SCRIPT), *(a.replace("BROKEN", str(tmp_path / "broken")) for a in args)],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def install(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(SCRIPT.with_name("install.sh")), *args], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "PYTHON": sys.executable, **env})


def test_one_line_installs_a_bundle_and_asks_it(tmp_path: Path) -> None:
    """pip takes the wheel alone, the three packages come from this environment: no network is used."""
    write(STUDENTS["llama"](), tmp_path / "bundle", "int8", cards.load(Target, "portable"))
    code = "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel; print(build_wheel(sys.argv[2]))"
    made = subprocess.run([sys.executable, "-c", code, str(SCRIPT.parents[2]), str(tmp_path)], capture_output=True, text=True,
                          check=True)
    wheel = tmp_path / made.stdout.strip().splitlines()[-1]
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PYTHONPATH": sysconfig.get_path("purelib")}
    done = install(str(tmp_path / "bundle"), str(tmp_path / "pi"), str(wheel), cwd=tmp_path, **offline)
    assert done.returncode == 0 and "confidence" in done.stdout and "is ready" in done.stdout, done.stderr
    (tmp_path / "bundle" / "weights.bin").write_bytes(b"other")
    again = install(str(tmp_path / "bundle"), str(tmp_path / "bad"), str(wheel), cwd=tmp_path, **offline)
    assert again.returncode == 2 and "differs from the one that was exported" in again.stderr
    assert not (tmp_path / "bad").exists()


def test_the_installer_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    for args, words in (([], "name a bundle"), (["nothing"], "is no bundle"), (["bundle", "there"], "exists"),
                        (["bundle", "new", "no-such-wheel.whl"], "pip could not install")):
        done = install(*args, cwd=tmp_path, PIP_NO_INDEX="1")
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert not (tmp_path / "new").exists()
