"""The graphs of a bundle in onnxruntime: sessions, bound buffers, one call a token.

A step's inputs and outputs are arrays that stay where they are: it reads them and writes its results, and a key-value cache
as past and present, in place. So a token costs one call and no allocation of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgedistill.errors import UsageError

QUIET = 3  # onnxruntime's severity "error"
# After a product a session's threads look for more so long before they sleep: a step follows at once while a text is decoded,
# and between requests a device wants its cores back. The encoder's keep awake during its one run and stop with it, or they
# would be in the decoder's way (benchmarks/LOG.md).
_STEP_SPIN_US, _RUN_SPIN_US = "50", "1000"
# DecoderMaskedMultiHeadAttention crashes or gives other tokens in 1.23.2, 1.24.4, 1.26 and 1.28 to 1.30; not in 1.31.1, 1.32.
_T5_FROM = (1, 31)


def open_graphs(folder: Path, graph: dict[str, Any], threads: int) -> Decoder | EncoderDecoder | Optimum:
    """The runner for a manifest's `graph` entry. Raises `UsageError` where this onnxruntime would compute it wrongly."""
    if graph["kind"] == "t5" and tuple(map(int, ort.__version__.split(".")[:2])) < _T5_FROM:
        raise UsageError(f"onnxruntime {ort.__version__} computes T5 bundles wrongly; run: pip install "
                         f"'onnxruntime>={'.'.join(map(str, _T5_FROM))}'")
    kinds = {"decoder": Decoder, "t5": EncoderDecoder, "optimum": Optimum}
    if graph["kind"] not in kinds:
        raise UsageError(f"a bundle of kind {graph['kind']!r} needs a newer edgedistill; known: {', '.join(kinds)}")
    return kinds[graph["kind"]](folder, graph, threads)


def session(path: Path, threads: int, steps: bool = True) -> ort.InferenceSession:
    """A session on the CPU with `threads` threads, for many `steps` after each other or for one run a request."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    options.add_session_config_entry("session.intra_op.spin_duration_us", _STEP_SPIN_US if steps else _RUN_SPIN_US)
    options.add_session_config_entry("session.force_spinning_stop", "0" if steps else "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Step:
    """A graph that takes one more token: `token` and `logprob` [1, 1], `logits` [1, 1, V], and the caches."""

    def __init__(self, opened: ort.InferenceSession, graph: dict[str, Any], **lengths: np.ndarray) -> None:
        shapes = {each.name: each.shape for each in opened.get_outputs()}
        if "token" not in shapes:
            raise UsageError("the bundle was exported by an earlier edgedistill; export it again")
        cache = (1, graph["kv_heads"], graph["max_length"], graph["head_size"])
        self.session, self.lengths = opened, lengths
        self.token, self.logprob = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
        self.logits = np.zeros(shapes["logits"], np.float32)
        self.caches = {f"{i}.{part}": ort.OrtValue.ortvalue_from_numpy(np.zeros(cache, np.float32))
                       for i in range(graph["layers"]) for part in ("key", "value")}
        self.binding = self.bound()
        # The token chosen is the next one read: one array.
        self.binding.bind_ortvalue_input("input_ids", ort.OrtValue.ortvalue_from_numpy(self.token))

    def bound(self) -> ort.IOBinding:
        """Everything but `input_ids` at its place."""
        binding = self.session.io_binding()
        for name, array in self.lengths.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(f"present_{name}", cache)
        for name in ("token", "logprob", "logits"):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(getattr(self, name)))
        return binding

    def keep(self) -> None:
        """Remembers what was written, for `rewind`."""
        self._kept = [each.copy() for each in (self.token, self.logprob, self.logits, *self.lengths.values())]

    def rewind(self) -> None:
        """As it was at `keep`. What later steps wrote into the caches lies behind the lengths and is written again."""
        for each, kept in zip((self.token, self.logprob, self.logits, *self.lengths.values()), self._kept, strict=True):
            each[...] = kept

    def run(self) -> None:
        """Reads `token`, writes `token`, `logprob` and `logits`."""
        self.session.run_with_iobinding(self.binding)


class Decoder:
    """A decoder-only graph: the prompt in one call, then one token a call."""

    def __init__(self, folder: Path, graph: dict[str, Any], threads: int) -> None:
        self.max_length = graph["max_length"]
        self.last, self.total = np.zeros(1, np.int32), np.zeros((), np.int32)  # the last token's place, the tokens so far
        self.state = Step(session(folder / "model.onnx", threads), graph, seqlens_k=self.last, total_length=self.total)
        self.prompt = self.state.bound()
        self.logits = self.state.logits[0, 0]

    def room(self, source: int, opening: int) -> int:
        """How many tokens may follow a source and an opening of these lengths."""
        return self.max_length - source - opening

    def start(self, source: list[int], opening: list[int]) -> np.ndarray:
        """Logits [V] after the source and the opening, from an empty cache. The array is overwritten by the next step."""
        tokens = source + opening
        if len(tokens) >= self.max_length:
            raise UsageError(f"the input has {len(source)} tokens, this bundle takes at most "
                             f"{self.max_length - len(opening) - 1}")
        self._at(len(tokens))
        self.prompt.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        self.state.session.run_with_iobinding(self.prompt)
        self.state.keep()
        return self.logits

    def step(self, token: int) -> np.ndarray:
        """Logits [V] after one more token."""
        self._at(int(self.total) + 1)
        self.state.token[0, 0] = token
        self.state.run()
        return self.logits

    def _at(self, length: int) -> None:
        self.last[0], self.total[()] = length - 1, length


class EncoderDecoder:
    """A T5: the encoder once a request, then one decoder step a token."""

    def __init__(self, folder: Path, graph: dict[str, Any], threads: int) -> None:
        self.encoder = session(folder / "encoder.onnx", threads, steps=False)
        self.max_length, self.max_input = graph["max_length"], graph["max_input"]
        self.length = np.zeros(1, np.int32)
        self.state = Step(session(folder / "decoder.onnx", threads), graph, past_length=self.length)
        self.names = [f"cross_{name}" for name in self.state.caches]
        self.logits = self.state.logits[0, 0]

    def room(self, source: int, opening: int) -> int:
        return self.max_length - opening + 1  # the last token's own step is not needed

    def start(self, source: list[int], opening: list[int]) -> np.ndarray:
        if len(source) > self.max_input:
            raise UsageError(f"the input has {len(source)} tokens, this bundle takes at most {self.max_input}")
        cross = self.encoder.io_binding()
        cross.bind_cpu_input("input_ids", np.array([source], np.int64))
        for name in self.names:
            cross.bind_output(name)
        self.encoder.run_with_iobinding(cross)
        for name, value in zip(self.names, cross.get_outputs(), strict=True):
            self.state.binding.bind_ortvalue_input(name, value)
        self.length[0] = 0
        for token in opening:
            self.step(token)
        self.state.keep()
        return self.logits

    def step(self, token: int) -> np.ndarray:
        self.state.token[0, 0] = token
        self.state.run()
        self.length[0] += 1
        return self.logits


class Optimum:
    """Graphs in optimum's layout, for its gates: a `model.onnx`, or a T5's encoder and its decoder without and with a past.

    What they make of a token, caches too, goes in and out as arrays that grow: slower than the runners above.
    """

    def __init__(self, folder: Path, graph: dict[str, Any], threads: int) -> None:
        only = (folder / "model.onnx").is_file()
        self.encoder = None if only else session(folder / "encoder_model.onnx", threads, steps=False)
        self.first = session(folder / ("model.onnx" if only else "decoder_model.onnx"), threads)
        self.next = self.first if only else session(folder / "decoder_with_past_model.onnx", threads)
        vocabulary = next(each.shape[-1] for each in self.first.get_outputs() if each.name == "logits")
        self.logits = np.zeros(vocabulary, np.float32)
        self.token, self.logprob = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
        self.state = self

    def room(self, source: int, opening: int) -> int:
        return 2**31 - 1

    def start(self, source: list[int], opening: list[int]) -> np.ndarray:
        ids = np.array([source], np.int64)
        if self.encoder:
            mask = np.ones_like(ids)
            states = self.encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})[0]
            self.arrays = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            ids = np.array([opening], np.int64)
        else:
            empty = ((each.name, each.shape) for each in self.first.get_inputs() if each.name.startswith("past"))
            self.arrays = {name: np.zeros((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in empty}
            ids = np.array([source + opening], np.int64)
        self.length = 0
        self._read(self.first, ids)
        self.keep()
        return self.logits

    def step(self, token: int) -> np.ndarray:
        self._read(self.next, np.array([[token]], np.int64))
        return self.logits

    def keep(self) -> None:
        self._kept = self.logits.copy(), self.length, dict(self.arrays)

    def rewind(self) -> None:
        logits, self.length, arrays = self._kept
        self.arrays = dict(arrays)
        self._choose(logits)

    def _read(self, graph: ort.InferenceSession, ids: np.ndarray) -> None:
        places = np.arange(self.length, self.length + ids.shape[1])[None]
        self.length += ids.shape[1]
        given = {**self.arrays, "input_ids": ids, "position_ids": places, "attention_mask": np.ones((1, self.length), np.int64)}
        names = [each.name for each in graph.get_outputs()]
        found = dict(zip(names, graph.run(names, {each.name: given[each.name] for each in graph.get_inputs()}), strict=True))
        self._choose(found.pop("logits")[0, -1])
        self.arrays |= {name.replace("present", "past_key_values"): array for name, array in found.items()}

    def _choose(self, logits: np.ndarray) -> None:
        self.logits[...] = logits
        self.token[...] = best = logits.argmax()
        self.logprob[...] = -np.log(np.exp(logits - logits[best]).sum())
