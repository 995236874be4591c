"""A GGUF model in llama.cpp: its file, its vocabulary, a cache of many sequences behind one shared prefix.

The tokens that all prompts begin with are decoded once, into sequence 0, and copied to sequences 1 to `slots`, which
keep them: whoever is done with a sequence drops what follows the prefix.

Two ways to share the cache (figures in benchmarks/LOG.md):

- one pool of cells for all sequences. The prefix is there once, and tokens of many sequences are decoded in one batch.
  A text's last bits depend on which rows ran beside it: sums are ordered by the shape of the batch and the cells' places.
- `independent`: a stream of cells for each sequence, every prompt decoded by itself and every step as wide as there are
  sequences. Then a row's logits are the same whatever runs beside it. That is how llama.cpp's kernels happen to work, not
  promised by them: `is_independent` tries it on this machine with this model.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.errors import UsageError, need

_BATCH = 512   # tokens decoded in one call; llama.cpp's own default for a physical batch
_POOL, _STREAMS = {"kv_unified": True}, {"kv_unified": False, "flash_attn_type": 0}


class Llama:
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
        self.independent = False

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

    @property
    def cell_bytes(self) -> int:
        """Bytes that one token of one sequence takes in the cache (keys and values of 16 bits)."""
        lib, model = self.lib, self.model
        width = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        widths = [int(self._meta(f"{self._meta('general.architecture')}.attention.{name}_length") or width)
                  for name in ("key", "value")]
        return 2 * sum(widths) * lib.llama_model_n_head_kv(model) * lib.llama_model_n_layer(model)

    def _meta(self, key: str) -> str:
        """A value of the file's header as text, "" where there is none."""
        buffer = ctypes.create_string_buffer(256)
        n = self.lib.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if n > 0 else ""

    def special(self, name: str) -> str:
        """The text of the "bos" or "eos" token, "" where there is none."""
        token = getattr(self.lib, f"llama_vocab_{name}")(self.vocab)
        return "" if token < 0 else self.piece(token, special=True).decode(errors="replace")

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        """Token ids of `text`. `parse_special` reads control tokens written out in it."""
        raw = text.encode()
        size = len(raw) + 8
        buffer = (self.lib.llama_token * size)()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, size, add_special, parse_special)
        if n < 0:
            raise UsageError(f"llama.cpp cannot tokenise a text of {len(raw)} bytes ({n})")
        return tuple(buffer[:n])

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token stands for; none for a control token unless `special`."""
        buffer = ctypes.create_string_buffer(256)
        n = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n] if n > 0 else b""

    def pieces(self) -> list[bytes]:
        """The bytes of every token."""
        return [self.piece(token) for token in range(self.n_vocab)]

    def is_end(self, token: int) -> bool:
        """Whether the token ends a text."""
        return self.lib.llama_vocab_is_eog(self.vocab, token)

    @property
    def end_token(self) -> int:
        """The token that ends a turn, else the one that ends a text."""
        token = self.lib.llama_vocab_eot(self.vocab)
        return token if token >= 0 else self.lib.llama_vocab_eos(self.vocab)

    def prepare(self, prefix: tuple[int, ...], longest: int, slots: int, independent: bool = False) -> float:
        """Makes a context for `slots` sequences of `prefix` plus at most `longest` tokens each, decodes the prefix.

        `independent` gives each sequence a stream of its own (see above). Returns the seconds that the prefix took.
        """
        self.close_context()
        params = self.lib.llama_context_default_params()
        # In a pool the prefix occupies its cells once, in streams every sequence holds it.
        cells = (slots + 1) * _rounded(len(prefix) + longest) if independent else _rounded(len(prefix) + slots * longest)
        params.n_ctx, params.n_seq_max = cells, slots + 1
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = self.threads
        for name, value in (_STREAMS if independent else _POOL).items():
            setattr(params, name, value)
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise UsageError(f"llama.cpp cannot make a context of {params.n_ctx} tokens ({_last_error(self._log)}); "
                             "lower --parallel or --ctx-size")
        self.room = self.lib.llama_n_batch(self.context)  # less than asked in a small context; more would abort
        self.memory = self.lib.llama_get_memory(self.context)
        self.batch = self.lib.llama_batch_init(_BATCH, 0, 1)
        self.prefix, self.longest, self.slots, self.independent = prefix, longest, slots, independent
        start = time.monotonic()
        self.feed(0, 0, prefix)
        for sequence in range(1, slots + 1):
            self.restart(sequence)
        return time.monotonic() - start

    def step_seconds(self, width: int | None = None, steps: int = 2) -> float:
        """Seconds of one decode with a token in each of `width` slots (default: all), the fastest of a few."""
        times, at = [], len(self.prefix)
        width = width or self.slots
        for i in range(steps + 1):
            start = time.monotonic()
            self.decode([(0, at + i, sequence, True) for sequence in range(1, width + 1)])
            self.lib.llama_synchronize(self.context)
            times.append(time.monotonic() - start)
        for sequence in range(1, width + 1):
            self.restart(sequence)
        return min(times[1:])

    def is_independent(self) -> bool:
        """Whether a row's logits are the same, bit for bit, at another place beside other rows, in this context.

        A short text alone, then in the last slot beside a long one, over two steps. About 5 s for 1.5B parameters.
        """
        if self.slots == 1:
            return True
        own, start = (1, 2, 3, 4, 5), len(self.prefix)
        seen = []
        for sequence, beside in ((1, 0), (self.slots, 1)):
            lengths = dict.fromkeys(range(1, self.slots + 1), start)
            if beside:  # across the border of 256 cells, at which llama.cpp looks at more of them
                long = tuple(range(6, 6 + min(300, self.longest - 2)))
                self.feed(beside, start, long)
                lengths[beside] += len(long)
            self.feed(sequence, start, own, last=True)
            lengths[sequence] += len(own)
            seen.append(self.logits(0).copy())
            for i in range(2):
                self.decode([(7 if s == sequence else 100 + s * beside, n + i, s, True) for s, n in lengths.items()])
                seen.append(self.logits(sequence - 1).copy())
            if not all([self.rewind(s, start + 1) == start + 1 for s in (sequence, beside or sequence)]):
                return False  # a recurrent model: it cannot drop the end of a text
            for s in lengths:
                self.restart(s)
        return all((a == b).all() for a, b in zip(seen[:3], seen[3:], strict=True))

    def feed(self, sequence: int, position: int, tokens: Iterable[int], last: bool = False) -> None:
        """Decodes `tokens` of one sequence from `position` on; `last` asks for the logits after them."""
        tokens = tuple(tokens)
        for at in range(0, len(tokens), self.room):
            part = tokens[at:at + self.room]
            self.decode([(token, position + at + i, sequence, last and at + i == len(tokens) - 1)
                          for i, token in enumerate(part)])

    def restart(self, sequence: int, source: int = 0) -> None:
        """Makes a sequence the same as another: the shared prefix, or a text that it goes on from."""
        self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        if source or self.prefix:
            self.lib.llama_memory_seq_cp(self.memory, source, sequence, -1, -1)

    def rewind(self, sequence: int, length: int) -> int:
        """Drops what follows the first `length` tokens of a sequence; how many are left.

        Recurrent models cannot go back: their sequences begin again at the shared prefix.
        """
        if self.lib.llama_memory_seq_rm(self.memory, sequence, length, -1):
            return length
        self.restart(sequence)
        return len(self.prefix)

    def logits(self, i: int) -> np.ndarray:
        """Row `i` of the last decode's logits [vocabulary], counted over the tokens that asked for them."""
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), shape=(i + 1, self.n_vocab))[i]

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
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


def _rounded(cells: int) -> int:
    return -(-cells // 256) * 256


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
