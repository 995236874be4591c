"""The llama.cpp engine: many sequences decoded together behind one shared prefix. It knows nothing of tasks.

The tokens that all prompts begin with are decoded once, into sequence 0; each slot copies them (a copy of cell
references, not of data) and decodes only its own rest. A slot that ends is refilled at once.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgedistill.errors import UsageError, need

_BATCH = 512  # tokens decoded in one call; llama.cpp's own default for a physical batch


@dataclass(frozen=True)
class Sampling:
    """llama.cpp's meaning of each; temp 0 is greedy."""

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05


@dataclass(frozen=True)
class Request:
    """One text to continue. `key` comes back with the completion."""

    key: Any
    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Completion:
    """What came of a request. `finish` is "stop" (end of text or stop pattern) or "length"."""

    key: Any
    text: str
    finish: str
    prompt_tokens: int
    generated_tokens: int


@dataclass
class _Slot:
    request: Request
    sampler: Any
    position: int                  # tokens of this sequence in the cache
    pending: list[int]             # tokens to decode next
    data: bytearray = field(default_factory=bytearray)
    generated: int = 0


class Engine:
    """A loaded GGUF model. Not for use by two threads at once."""

    def __init__(self, path: Path, *, threads: int, gpu_layers: int = 0) -> None:
        """Loads `path`. Raises `UsageError` in one line for what is no complete GGUF file."""
        self._check(path)
        self.lib = need("llama_cpp", "teach")
        self._log = _capture_log(self.lib)
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise UsageError(f"{path.name}: llama.cpp cannot load it ({_last_error(self._log)}); if it was cut off, "
                             "download it again")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.vocab)
        self.trained_context = self.lib.llama_model_n_ctx_train(self.model)
        self.threads = threads
        self.context: Any = None
        self.prefix: tuple[int, ...] = ()
        self.slots = 0

    @staticmethod
    def _check(path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"--gguf {path}: no such file")
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise UsageError(f"{path.name} is not a GGUF file (it starts with {magic!r}); give a .gguf model")

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template, None where the file has none."""
        template = self.lib.llama_model_chat_template(self.model, None)
        return template.decode() if template else None

    def special(self, name: str) -> str:
        """The text of the "bos" or "eos" token, "" where there is none."""
        token = getattr(self.lib, f"llama_vocab_{name}")(self.vocab)
        return "" if token < 0 else self._piece(token, special=True).decode(errors="replace")

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        """Token ids of `text`. `parse_special` reads control tokens written out in it."""
        raw = text.encode()
        size = len(raw) + 8
        buffer = (self.lib.llama_token * size)()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, size, add_special, parse_special)
        if n < 0:
            raise UsageError(f"llama.cpp cannot tokenise a text of {len(raw)} bytes ({n})")
        return tuple(buffer[:n])

    def prepare(self, prefix: tuple[int, ...], longest: int, slots: int) -> float:
        """Makes a context for `slots` sequences of `prefix` plus at most `longest` tokens each, decodes the prefix.

        Returns the seconds that took.
        """
        self.close_context()
        # One pool of cells for all sequences: the prefix occupies it once.
        cells = len(prefix) + slots * longest
        params = self.lib.llama_context_default_params()
        params.n_ctx = -(-cells // 256) * 256
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = slots + 1
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self.threads
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise UsageError(f"llama.cpp cannot make a context of {params.n_ctx} tokens ({_last_error(self._log)}); "
                             "lower --parallel or --ctx-size")
        self.room = self.lib.llama_n_batch(self.context)  # less than asked in a small context; more would abort
        self.memory = self.lib.llama_get_memory(self.context)
        self.batch = self.lib.llama_batch_init(_BATCH, 0, 1)
        self.prefix, self.slots = prefix, slots
        start = time.monotonic()
        for at in range(0, len(prefix), self.room):
            part = prefix[at:at + self.room]
            self._decode([(token, at + i, 0, False) for i, token in enumerate(part)])
        return time.monotonic() - start

    def step_seconds(self, steps: int = 3) -> float:
        """Seconds of one decode with a token in every slot, the fastest of a few (for estimates)."""
        times = []
        for sequence in range(1, self.slots + 1):
            self._open(sequence)
        for i in range(steps):
            start = time.monotonic()
            self._decode([(self.prefix[-1] if self.prefix else 0, len(self.prefix) + i, sequence, True)
                          for sequence in range(1, self.slots + 1)])
            self.lib.llama_synchronize(self.context)
            times.append(time.monotonic() - start)
        for sequence in range(1, self.slots + 1):
            self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return min(times)

    def generate(self, requests: Iterable[Request], sampling: Sampling, max_new: int,
                 stop: re.Pattern[str] | None = None) -> Iterator[Completion]:
        """Continues each request, yields completions as they end (not in order).

        A text ends at an end-of-text token, where `stop` matches (the match's end is kept), or after `max_new` tokens.
        With one slot a row's text does not depend on the rows before it: its cells, batches and seed are the same.
        """
        waiting = iter(requests)
        running: dict[int, _Slot] = {}
        free = list(range(self.slots, 0, -1))
        exhausted = False
        while True:
            while free and not exhausted:
                request = next(waiting, None)
                if request is None:
                    exhausted = True
                    break
                sequence = free.pop()
                running[sequence] = self._start(request, sequence, sampling)
            if not running:
                return
            for sequence, token in self._step(running):
                slot = running[sequence]
                end = self.lib.llama_vocab_is_eog(self.vocab, token)
                if not end:
                    slot.data += self._piece(token)
                    slot.generated += 1
                    slot.pending = [token]
                # Bytes of a character that is not complete yet are left out of the match.
                text = slot.data.decode(errors="ignore")
                match = stop.search(text) if stop and not end else None
                if not (end or match or slot.generated >= max_new):
                    continue
                self.lib.llama_sampler_free(slot.sampler)
                del running[sequence]
                free.append(sequence)
                yield Completion(slot.request.key, text[: match.end()] if match else text,
                                 "stop" if end or match else "length", len(slot.request.tokens), slot.generated)

    def _start(self, request: Request, sequence: int, sampling: Sampling) -> _Slot:
        own = len(self.prefix)
        if request.tokens[:own] != self.prefix or len(request.tokens) == own:
            raise ValueError("a request must begin with the shared prefix and go on after it")
        self._open(sequence)
        return _Slot(request, self._sampler(sampling, request.seed), own, list(request.tokens[own:]))

    def _open(self, sequence: int) -> None:
        """Empties a sequence and gives it the shared prefix."""
        self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        if self.prefix:
            self.lib.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def _sampler(self, sampling: Sampling, seed: int) -> Any:
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling.temp <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return chain
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(sampling.top_k))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(sampling.min_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temp))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed & 0xFFFFFFFF))
        return chain

    def _step(self, running: dict[int, _Slot]) -> list[tuple[int, int]]:
        """One decode over all slots; (sequence, new token) of those whose pending tokens are all in."""
        entries: list[tuple[int, int, int, bool]] = []
        ready: list[tuple[int, int]] = []
        # Slots in the middle of their text first, then prompts, as many tokens as the batch holds.
        for sequence, slot in sorted(running.items(), key=lambda item: len(item[1].pending)):
            part = slot.pending[: self.room - len(entries)]
            if not part:
                break
            last = len(part) == len(slot.pending)
            for i, token in enumerate(part):
                entries.append((token, slot.position + i, sequence, last and i == len(part) - 1))
            slot.position += len(part)
            slot.pending = slot.pending[len(part):]
            if last:
                ready.append((sequence, len(entries) - 1))
        self._decode(entries)
        return [(sequence, self.lib.llama_sampler_sample(running[sequence].sampler, self.context, index))
                for sequence, index in ready]

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Decodes (token, position, sequence, wants logits) entries, at most `room`."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        code = self.lib.llama_decode(self.context, batch)
        if code:
            raise UsageError(f"llama.cpp could not decode {len(entries)} tokens (code {code}, "
                             f"{_last_error(self._log)}); lower --parallel or raise --ctx-size")

    def _piece(self, token: int, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        n = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n] if n > 0 else b""

    def close_context(self) -> None:
        """Frees the context, keeps the model."""
        if self.context:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
            self.context = None

    def close(self) -> None:
        """Frees all memory of the model."""
        self.close_context()
        if self.model:
            self.lib.llama_model_free(self.model)
            self.model = None


def common_prefix(prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all prompts begin with; one token of each is always left over."""
    shortest, first, last = min(map(len, prompts)), min(prompts), max(prompts)
    n = next((i for i in range(shortest) if first[i] != last[i]), shortest)
    return first[: min(n, shortest - 1)]


_LINES: list[str] = []


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _keep_line(level: int, text: bytes, _: Any) -> None:
    if level in (3, 4) and text:  # warnings and errors of ggml
        _LINES.append(text.decode(errors="replace").strip())
        del _LINES[:-20]


def _capture_log(lib: Any) -> list[str]:
    """llama.cpp prints pages on stderr; its last warnings and errors are kept for our own messages instead."""
    _LINES.clear()  # another model's
    lib.llama_log_set(_keep_line, None)
    return _LINES


def _last_error(lines: list[str]) -> str:
    wanted = [line for line in lines if "error" in line.lower() or "failed" in line.lower()] or lines
    return wanted[0][:160] if wanted else "no reason given"
