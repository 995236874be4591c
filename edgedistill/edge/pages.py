"""Weights in huge pages.

A decoder reads all of its weights for every token. In pages of 4 KB that costs a walk of the page tables each 4 KB, twice over
in a virtual machine, and where the pages happen to lie makes 10 %; in pages of 2 MB a request takes 6 % less and as long each
time it is opened (benchmarks/LOG.md). onnxruntime does not ask for them, so what it has filled is moved there.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_SIZE = 2 << 20
_COLLAPSE = 25  # madvise's MADV_COLLAPSE, of Linux 6.1 and later; earlier ones refuse it, which harms nothing


def gather() -> None:
    """Moves this process's large private memory into huge pages, where the system has them; about 1 ms a MB, once."""
    with suppress(OSError, AttributeError, TypeError, ValueError), open("/proc/self/maps", encoding="utf-8") as maps:
        madvise = ctypes.CDLL(None).madvise
        for line in maps.read().splitlines():
            where, rights, _, _, inode, *name = line.split(None, 5)
            if rights != "rw-p" or inode != "0" or (name and name[0] != "[heap]"):
                continue
            low, high = (int(end, 16) for end in where.split("-"))
            low, high = -(-low // _SIZE) * _SIZE, high // _SIZE * _SIZE
            if high > low:
                madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _COLLAPSE)
