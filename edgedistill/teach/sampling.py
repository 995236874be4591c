"""The next token from one row of logits, and the teacher's best candidates with their probabilities.

numpy on the engine's own logits: llama.cpp's samplers make a list of the whole vocabulary for every token, here the best of
152,000 pieces are found in less than 0.1 ms (benchmarks/LOG.md).
"""

from __future__ import annotations

import numpy as np

from edgedistill.errors import Error
from edgedistill.teach.completion import Sampling

_ROWS = 64  # the k best of all lie in the k columns with the largest maxima; maxima over rows run at memory speed


def best(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the `k` largest of `logits` [vocabulary], the largest first, the lower id among equals."""
    size = logits.shape[0]
    columns = size // _ROWS
    if k >= columns:
        return np.lexsort((np.arange(size), -logits))[:k]
    maxima = logits[: columns * _ROWS].reshape(_ROWS, columns).max(axis=0)
    chosen = np.flatnonzero(_among_best(maxima, k))
    ids = np.concatenate([(chosen + columns * np.arange(_ROWS)[:, None]).ravel(), np.arange(columns * _ROWS, size)])
    ids = ids[_among_best(logits[ids], k)]
    return ids[np.lexsort((ids, -logits[ids]))[:k]]


def draw(logits: np.ndarray, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token's id. Temperature comes last, as in llama.cpp: top-k, top-p and min-p see the plain softmax.

    Raises `Error` when the model computes no numbers.
    """
    token = _largest(logits)
    if sampling.temp <= 0:
        return token
    ids = best(logits, sampling.top_k if sampling.top_k > 0 else logits.shape[0])
    x = logits[ids].astype(np.float64)
    p = np.exp(x - x[0])
    p /= p.sum()
    n = int(np.searchsorted(np.cumsum(p), sampling.top_p)) + 1 if sampling.top_p < 1 else len(p)
    n = min(n, max(1, int((p >= sampling.min_p * p[0]).sum())))
    p = np.exp((x[:n] - x[0]) / sampling.temp)
    total = np.cumsum(p)
    return int(ids[min(np.searchsorted(total, random.random() * total[-1], side="right"), n - 1)])


def log_normaliser(logits: np.ndarray) -> float:
    """log of the sum of exp(logits): a logit minus it is the token's log-probability at temperature 1.

    Raises `Error` as `draw` does.
    """
    largest = logits[_largest(logits)]
    return float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _largest(logits: np.ndarray) -> int:
    token = int(logits.argmax())  # a NaN is its own maximum
    if not np.isfinite(logits[token]):
        raise Error("the teacher computes no numbers (NaN logits); try another GGUF file or --gpu-layers 0")
    return token


def _among_best(values: np.ndarray, k: int) -> np.ndarray:
    """Which of `values` are not below the `k`-th largest: with its equals, of which the lower ids are wanted."""
    return values >= np.partition(values, len(values) - k)[len(values) - k]
