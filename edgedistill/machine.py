"""What a result must say about where it was obtained: machine, versions, commit. No path, no host name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from edgedistill import __version__, defaults, kit

_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "llama-cpp-python", "torch", "transformers", "bitsandbytes", "onnx",
             "optimum-onnx")


def origin(kind: str) -> dict[str, Any]:
    """The keys that every result shares."""
    return {"schema": 1, "kind": kind, "created": now(), "commit": commit(), "machine": machine(),
            "versions": versions()}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def commit() -> str | None:
    """The checkout's commit, with `+` where files differ from it; None outside a checkout."""
    root = kit.checkout()
    if root is None:
        return None
    try:
        def git(*args: str) -> str:
            return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True,
                                  timeout=10).stdout.strip()
        changed = git("status", "--porcelain", "-uno", "--", ".", f":!{defaults.READINGS}")  # it grows by counting
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def versions() -> dict[str, str]:
    """Versions of what takes part, of the packages that are installed."""
    found = {"edgedistill": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """{cpu, cores, memory_gb, os}, and the gpu where torch is in use and sees one; cores are those this process may use."""
    torch = sys.modules.get("torch")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch and torch.cuda.is_available() else {}
    return {**_machine(), **gpu}


@cache
def _machine() -> dict[str, Any]:
    return {"cpu": _cpu(), "cores": cores(), "memory_gb": _memory_gb(),
            "os": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}"}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> set[str]:
    """Instruction-set flags as Linux names them; empty where they cannot be read."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def saturates() -> bool:
    """Whether onnxruntime's integer products of u8 and s8 lose here what exceeds 16 bits: on x86 without VNNI instructions."""
    return platform.machine() in ("x86_64", "AMD64") and not {"avx512_vnni", "avx_vnni"} & cpu_flags()


def rss_mb() -> float:
    """The process's resident size now in MB; 0 where it cannot be read."""
    status = Path("/proc/self/status")
    match = re.search(r"^VmRSS:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE) if status.is_file() else None
    return round(int(match[1]) * 1024 / 1e6, 1) if match else 0.0


def reset_peak() -> None:
    """Begins `peak_rss_mb`, and a GPU's peak, anew, where the system can do that."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def trim() -> None:
    """Gives freed memory back to the system, where the C library can (glibc): its heap has holes of all sizes else."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_rss_mb() -> float:
    """The process's largest resident size so far in MB (10^6 bytes); 0 where it cannot be read."""
    status = Path("/proc/self/status")
    if status.is_file():
        # VmHWM, not ru_maxrss: the latter starts at the size of the process that forked this one.
        match = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
        return round(int(match[1]) * 1024 / 1e6, 1) if match else 0.0
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _cpu() -> str:
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
