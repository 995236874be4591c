"""The state of the device around and during a measurement, and whether that measurement counts.

Linux's own files and, on a Raspberry Pi, its firmware's word on throttling. What cannot be read is null, never guessed.
"""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

# Bits of the Raspberry Pi's firmware, now and (16 further) since it was started (its documentation of get_throttled).
_THROTTLED = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_PI_FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
_STEAL_PERCENT = 2.0  # of all CPU time taken by other guests: above, a note
_SLOW = 0.9           # of the highest clock seen: a median below is noted


class Health:
    """Reads clocks and temperatures twice a second from `start` to `stop`; then `result` tells what was seen.

    `root` is the file system's, another one in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.clocks: list[float] = []
        self.heat: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self.flags, self.times, self.trips = self._firmware(), self._cpu_times(), self._trips()
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._done.set()
        self._thread.join()
        self._sample()

    def result(self) -> dict[str, Any]:
        """{valid, why, notes, board, governor, mhz, celsius, throttled, loadavg, steal_percent, swap_mb, ...}."""
        why, notes = [], []
        flags = self._firmware()
        throttled = None
        if flags is not None:
            now = [name for bit, name in enumerate(_THROTTLED) if (flags | (self.flags or 0)) >> bit & 1]
            past = [name for bit, name in enumerate(_THROTTLED) if flags >> (16 + bit) & 1]
            throttled = sorted({*now, *past})
            if throttled:  # a bit that was set before the run says that the board cannot hold its clock: see edge.md 6.2
                why.append(f"the firmware reports {', '.join(throttled)}: give it a better supply or cooling, restart it")
        tripped = self._trips() - self.trips
        if tripped:
            why.append(f"the CPU was throttled by its temperature {tripped} times: let it cool down, run it again")
        steal = self._steal()
        if steal is not None and steal > _STEAL_PERCENT:
            notes.append(f"other guests of this machine took {steal:.1f} % of the CPU")
        governor = self._read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        if governor and governor != "performance":
            notes.append(f"the governor is {governor}, not performance: clocks follow the load")
        mhz = _span(self.clocks)
        if mhz and mhz["median"] < _SLOW * mhz["max"]:
            notes.append(f"the clock stood at {mhz['median']:.0f} MHz in the middle, at {mhz['max']:.0f} at best")
        swap = self._swap_mb()
        if swap:
            notes.append(f"{swap:.0f} MB are swapped out")
        load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
        return {"valid": not why, "why": why, "notes": notes, "board": self._read("proc/device-tree/model"),
                "kernel": platform.release().split("-")[0], "page_bytes": mmap.PAGESIZE, "governor": governor, "mhz": mhz,
                "celsius": _span(self.heat), "throttled": throttled, "loadavg": load, "steal_percent": steal, "swap_mb": swap}

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._sample()

    def _sample(self) -> None:
        clocks = [int(text) / 1000 for path in self._paths("sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
                  if (text := _number(path))]
        if clocks:
            self.clocks.append(max(clocks))
        heat = [int(text) / 1000 for path in self._paths("sys/class/thermal", "thermal_zone*/temp") if (text := _number(path))]
        if heat:
            self.heat.append(max(heat))

    def _paths(self, folder: str, pattern: str) -> list[Path]:
        return sorted((self.root / folder).glob(pattern))

    def _read(self, name: str) -> str | None:
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace").strip(" \n\0") or None
        except OSError:
            return None

    def _firmware(self) -> int | None:
        """The Raspberry Pi's throttle word; None on other machines."""
        text = self._read(_PI_FLAGS)
        if text is None and self.root == Path("/") and shutil.which("vcgencmd"):
            text = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True).stdout.strip()
        match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-f]+)", text or "")
        return int(match[1], 16) if match else None

    def _trips(self) -> int:
        """How often x86 cores reached their temperature's limit since the start of the machine."""
        counts = (_number(path) for path in self._paths("sys/devices/system/cpu",
                                                        "cpu[0-9]*/thermal_throttle/core_throttle_count"))
        return sum(int(count) for count in counts if count)

    def _cpu_times(self) -> list[int]:
        return [int(each) for each in (self._read("proc/stat") or "cpu").split("\n")[0].split()[1:]]

    def _steal(self) -> float | None:
        """Percent of all CPU time since `start` that the hypervisor gave to others."""
        spent = [now - then for now, then in zip(self._cpu_times(), self.times, strict=False)]
        return round(100 * spent[7] / max(1, sum(spent[:8])), 2) if len(spent) > 7 else None

    def _swap_mb(self) -> float | None:
        found = dict(re.findall(r"^(Swap\w+):\s+(\d+) kB", self._read("proc/meminfo") or "", re.MULTILINE))
        return round((int(found["SwapTotal"]) - int(found["SwapFree"])) / 1000, 1) if "SwapFree" in found else None


class Energy:
    """Joules that the package or board took since it was made, where the machine can tell; `source` says by what."""

    def __init__(self, root: Path = Path("/")) -> None:
        # A zone "psys" is the whole machine and would count the packages twice.
        self.counters = [path for path in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
                         if _text(path.with_name("name")).startswith("package") and _number(path)]
        self.pmic = root == Path("/") and not self.counters and bool(shutil.which("vcgencmd")) and _pmic_watts() is not None
        self.source = "rapl" if self.counters else "pmic" if self.pmic else "not measured"
        self._last = {path: int(_number(path)) for path in self.counters}
        self._total = 0.0
        if self.pmic:
            threading.Thread(target=self._integrate, daemon=True).start()

    def _integrate(self) -> None:
        """A Pi's chip tells the power of the moment: read while a request runs, some times a second."""
        at = time.monotonic()
        while True:
            time.sleep(0.1)
            watts, now = _pmic_watts() or 0.0, time.monotonic()
            self._total += watts * (now - at)
            at = now

    def joules(self) -> float | None:
        """The sum so far; None where nothing measures it."""
        for path in self.counters:
            now = int(_number(path) or self._last[path])
            limit = int(_number(path.with_name("max_energy_range_uj")) or 0)  # where the counter begins anew
            self._total += (now - self._last[path] if now >= self._last[path] else now + limit - self._last[path]) / 1e6
            self._last[path] = now
        return self._total if self.source != "not measured" else None


def _pmic_watts() -> float | None:
    """The sum over a Raspberry Pi 5's rails, without what its 5 V peripherals take."""
    done = subprocess.run(["vcgencmd", "pmic_read_adc"], capture_output=True, text=True)
    found: dict[str, dict[str, float]] = {}
    for rail, kind, value in re.findall(r"(\w+)_([AV]) \w+\(\d+\)=([\d.]+)[AV]", done.stdout):
        found.setdefault(rail, {})[kind] = float(value)
    return sum(each["A"] * each["V"] for each in found.values() if len(each) == 2) if found else None


def _number(path: Path) -> str:
    """A file's number as text, empty where it cannot be read or is none."""
    text = _text(path)
    return text if text.isdecimal() else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _span(values: list[float]) -> dict[str, float] | None:
    """{before, min, median, max, after}."""
    if not values:
        return None
    return {"before": round(values[0], 1), "min": round(min(values), 1), "median": round(sorted(values)[len(values) // 2], 1),
            "max": round(max(values), 1), "after": round(values[-1], 1)}
