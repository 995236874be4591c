"""What is asked of a teacher and what comes back: the same for a GGUF file in this process and for a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Messages = tuple[dict[str, str], ...]   # chat turns: {"role": ..., "content": ...}


@dataclass(frozen=True)
class Sampling:
    """llama.cpp's meaning of each; temp 0 is greedy."""

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05


@dataclass(frozen=True)
class Request:
    """One prompt to continue, once for each seed. `key` comes back with every completion.

    `prompt` is a tuple of token ids for the engine; chat turns or plain text for a server.
    """

    key: Any
    prompt: tuple[int, ...] | Messages | str
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Completion:
    """What came of one seed of a request. `finish` is "stop" (end of text or stop pattern) or "length".

    `generated_tokens` counts without the end-of-text token; `soft` is a structured array of
    `edgedistill.teach.soft.record(k)`, one record a token and one for the end-of-text token.
    """

    key: Any
    seed: int
    text: str
    finish: str
    prompt_tokens: int
    generated_tokens: int
    soft: np.ndarray | None = None
