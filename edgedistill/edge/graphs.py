"""The ONNX graphs of a bundle under onnxruntime: caches are bound once and updated in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgedistill.errors import UsageError

_QUIET = 3  # onnxruntime's severity "error"


def open_graphs(folder: Path, graph: dict[str, Any], threads: int) -> Decoder | EncoderDecoder:
    """The runner for a manifest's `graph` entry."""
    kinds = {"decoder": Decoder, "t5": EncoderDecoder}
    if graph["kind"] not in kinds:
        raise UsageError(f"a bundle of kind {graph['kind']!r} needs a newer edgedistill; known: {', '.join(kinds)}")
    return kinds[graph["kind"]](folder, graph, threads)


def session(path: Path, threads: int) -> ort.InferenceSession:
    """A session on the CPU with `threads` threads, which sleep rather than spin when they have nothing to do."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # One token after the other keeps the threads busy; between requests a device wants its cores back.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Cache:
    """Key and value buffers [1, heads, max_length, size] of every layer, bound as past and as present."""

    def __init__(self, graph: dict[str, Any]) -> None:
        shape = (1, graph["kv_heads"], graph["max_length"], graph["head_size"])
        self.names = [f"{i}.{part}" for i in range(graph["layers"]) for part in ("key", "value")]
        self.buffers = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for name in self.names}

    def bind(self, binding: ort.IOBinding) -> None:
        for name, buffer in self.buffers.items():
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            binding.bind_ortvalue_output(f"present_{name}", buffer)


class Decoder:
    """A decoder-only graph: the prompt in one call, then one token a call."""

    def __init__(self, folder: Path, graph: dict[str, Any], threads: int) -> None:
        self.session = session(folder / "model.onnx", threads)
        self.max_length = graph["max_length"]
        self.cache = _Cache(graph)
        self.binding = self.session.io_binding()
        self.cache.bind(self.binding)
        self.length = 0

    def room(self, source: int, opening: int) -> int:
        """How many tokens may follow a source and an opening of these lengths."""
        return self.max_length - source - opening

    def start(self, source: list[int], opening: list[int]) -> np.ndarray:
        """Logits [V] after the source and the opening, from an empty cache."""
        if len(source) + len(opening) >= self.max_length:
            raise UsageError(f"the input has {len(source)} tokens, this bundle takes at most "
                             f"{self.max_length - len(opening) - 1}")
        self.length = 0
        return self._run(source + opening)

    def step(self, token: int) -> np.ndarray:
        """Logits [V] after one more token."""
        return self._run([token])

    def _run(self, tokens: list[int]) -> np.ndarray:
        self.length += len(tokens)
        self.binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        self.binding.bind_cpu_input("seqlens_k", np.array([self.length - 1], np.int32))
        self.binding.bind_cpu_input("total_length", np.array(self.length, np.int32))
        self.binding.bind_output("logits")
        self.session.run_with_iobinding(self.binding)
        return self.binding.get_outputs()[-1].numpy()[0, 0]


class EncoderDecoder:
    """A T5: the encoder once a request, then one decoder step a token."""

    def __init__(self, folder: Path, graph: dict[str, Any], threads: int) -> None:
        self.encoder = session(folder / "encoder.onnx", threads)
        self.decoder = session(folder / "decoder.onnx", threads)
        self.max_length, self.max_input = graph["max_length"], graph["max_input"]
        self.cache = _Cache(graph)
        self.binding = self.decoder.io_binding()
        self.cache.bind(self.binding)
        self.length = 0

    def room(self, source: int, opening: int) -> int:
        return self.max_length - opening + 1  # the last token's own step is not needed

    def start(self, source: list[int], opening: list[int]) -> np.ndarray:
        if len(source) > self.max_input:
            raise UsageError(f"the input has {len(source)} tokens, this bundle takes at most {self.max_input}")
        cross = self.encoder.io_binding()
        cross.bind_cpu_input("input_ids", np.array([source], np.int64))
        names = [f"cross_{name}" for name in self.cache.names]
        for name in names:
            cross.bind_output(name)
        self.encoder.run_with_iobinding(cross)
        for name, value in zip(names, cross.get_outputs(), strict=True):
            self.binding.bind_ortvalue_input(name, value)
        self.length = 0
        for token in opening:
            logits = self.step(token)
        return logits

    def step(self, token: int) -> np.ndarray:
        self.binding.bind_cpu_input("input_ids", np.array([[token]], np.int64))
        self.binding.bind_cpu_input("past_length", np.array([self.length], np.int32))
        self.binding.bind_output("logits")
        self.decoder.run_with_iobinding(self.binding)
        self.length += 1
        return self.binding.get_outputs()[-1].numpy()[0, 0]
