"""What this machine gives: the rate at which it reads memory, the floor of a decoded token, and a matrix product's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_SHAPE = (128, 768, 2304)  # of the product: some 100 tokens through the widest layer of a student


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


class Product:
    """A product of two fp32 matrices by numpy's BLAS, whose threads are fixed when numpy is imported."""

    flops = 2 * _SHAPE[0] * _SHAPE[1] * _SHAPE[2]

    def __init__(self) -> None:
        m, k, n = _SHAPE
        self.a, self.b, self.out = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.empty((m, n), np.float32)

    def multiply(self, times: int = 1) -> float:
        """Seconds for so many products."""
        start = time.perf_counter()
        for _ in range(times):
            np.matmul(self.a, self.b, out=self.out)
        return time.perf_counter() - start
