"""What this machine's memory gives: the floor of a decoded token, whose every weight is read once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np


class Reader:
    """Reads a buffer of `size` bytes with `threads` threads, as a decoder reads its weights: one token, one pass."""

    def __init__(self, size: int, threads: int) -> None:
        self.parts = np.array_split(np.zeros(max(threads, size // 4), np.float32) + 1, threads)
        self.pool = ThreadPoolExecutor(threads)

    def read(self, passes: int = 1) -> float:
        """Seconds for `passes` passes; each thread goes over its own part by numpy's maximum."""
        start = time.perf_counter()
        list(self.pool.map(lambda part: [part.max() for _ in range(passes)], self.parts))
        return time.perf_counter() - start
