"""Students behind one interface: the T5 family (encoder-decoder) and decoder-only models."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from edgedistill import defaults
from edgedistill.edge.format import PREFIXES, Format
from edgedistill.errors import UsageError
from edgedistill.tasks.task import Task
from edgedistill.train import packed, reparam, stacks
from edgedistill.train.decode import continuations
from edgedistill.train.packed import Batch, Weights

T5S = ("t5", "mt5")
DECODERS = ("llama", "qwen2", "mistral")


@dataclass(frozen=True)
class Branch:
    """One target of a source: `opening` stands before it and carries no loss, `target` ends with EOS.

    `part` is an index into PREFIXES. `soft` is the teacher's distribution for each target token: ids [T, K], probs [T, K].
    Each of its tokens counts `weight` times.
    """

    opening: list[int]
    target: list[int]
    part: int = 0
    soft: tuple[Any, Any] | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.opening) + len(self.target) - 1  # the last target token is never an input


@dataclass(frozen=True)
class Encoded:
    """A source with its targets. Several branches share one encoding and do not see each other."""

    source: list[int]
    branches: tuple[Branch, ...]

    def __len__(self) -> int:
        return len(self.source) + sum(map(len, self.branches))


class Student(ABC):
    """A model, its tokenizer and the format of its inputs. `rust` is the tokenizer that the device runs too."""

    family: str
    forward: Callable[..., Tensor]  # of stacks

    def __init__(self, model: Any, tokenizer: Any, format: Format | None = None) -> None:
        self.model, self.tokenizer, self.format = model, tokenizer, format
        self.rust = tokenizer.backend_tokenizer
        self.rust.no_padding()
        self.rust.no_truncation()

    def set_task(self, task: Task | None, **more: Any) -> None:
        """Fixes the format for `task`; `more` are fields of Format. Raises `UsageError` without an end-of-text token."""
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        if eos is None:
            raise UsageError("the student's tokenizer has no eos_token; add one to its tokenizer_config.json")
        start = getattr(self.model.config, "decoder_start_token_id", None)
        self.format = Format.for_task(task, family=self.family, eos_id=eos, pad_id=eos if pad is None else pad,
                                      start_id=-1 if start is None else start, **more)

    def parameters(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def head(self) -> Tensor:
        """The weight [V, d] that makes logits of `hidden`."""
        return self.model.get_output_embeddings().weight

    def encode(self, text: str, target: str, part: str, source: str | None = None, weight: float = 1.0) -> Encoded:
        """One training example as token ids; `source` is read instead of `text` with its prefix."""
        branch = Branch(self.format.opening(self.rust, part), self.format.encode_target(self.rust, target, part),
                        list(PREFIXES).index(part), weight=weight)
        return Encoded(self.format.encode_source(self.rust, text, part, source), (branch,))

    @abstractmethod
    def tensors(self, rows: list[Encoded]) -> tuple[Batch, list[Branch]]:
        """(what `hidden` reads, rows laid end to end without padding; the branches in the order of its output)."""

    def hidden(self, batch: Batch, model: Any = None, weights: Weights | None = None, **more: Any) -> Any:
        """[N, d]: the state before the head at each position that predicts a target token, branch by branch.

        `model` is the student's own or a wrapper around it (data-parallel training); `weights` has the dtype of the
        products and of the result, else fp32; `more` is for the forward pass: with `taps` it gives states too (stacks.llama).
        """
        with stacks.forwarding(self.model, self.forward):
            return (model or self.model)(batch=batch, weights=weights or Weights(), **more)

    @torch.no_grad()
    def generate(self, texts: list[str], part: str = "label", batch_size: int | None = None,
                 max_new_tokens: int | None = None, samples: int = 1, temperature: float = 0.0) -> list[list[int]]:
        """Continuations as token ids without EOS and padding: greedy ones, one list a text; at a `temperature` above 0 drawn
        by torch's random state, `samples` of each text in a row."""
        training = self.model.training
        self.model.eval()
        opening = self.format.opening(self.rust, part)
        limit = max_new_tokens or self.format.max_new_tokens(part)
        rows = [self.format.encode_source(self.rust, text, part) for text in texts]
        most = batch_size or defaults.ANSWERED_TOGETHER[self.model.device.type]
        out = self._continued([row for row in rows for _ in range(samples)], opening, limit, most, temperature)
        self.model.train(training)
        return out

    @abstractmethod
    def _continued(self, rows: list[list[int]], opening: list[int], limit: int, most: int,
                   temperature: float) -> list[list[int]]:
        """At most `limit` tokens behind each row and the `opening`, `most` rows at a time."""

    def answer(self, ids: list[int]) -> str:
        """The answer's text in the token ids of a label output."""
        return self.format.split(self.format.decode(self.rust, ids))[1]

    def answers(self, texts: list[str]) -> list[str]:
        """Greedy answers as texts."""
        return [self.answer(ids) for ids in self.generate(texts)]

    def save(self, folder: Path, provenance: dict[str, Any], card: str) -> None:
        """An ordinary Hugging Face folder plus `edgedistill.json`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (folder / "edgedistill.json").write_text(
            json.dumps({"schema": 1, **self.format.to_dict(), "provenance": provenance}, indent=1) + "\n",
            encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


class T5Student(Student):
    """Encoder-decoder: the source goes through the encoder once, each of its targets through the decoder."""

    family = "t5"
    forward = staticmethod(stacks.t5)

    def tensors(self, rows: list[Encoded]) -> tuple[Batch, list[Branch]]:
        order = [branch for row in rows for branch in row.branches]
        sources, targets = _places([len(row.source) for row in rows]), _places([len(branch) for branch in order])
        taken = iter(targets)
        each = [[token for _ in row.branches for token in next(taken)] for row in rows]  # all target tokens of a source
        batch: Batch = {
            "source_ids": torch.tensor([token for row in rows for token in row.source]),
            "target_ids": torch.tensor([token for b in order for token in (b.opening + b.target)[:-1]]),
            "at": torch.tensor([token for b, its in zip(order, targets, strict=True) for token in its[len(b.opening) - 1:]]),
            "source": [], "target": [], "cross": []}
        for group in packed.alike([len(row.source) for row in rows]):
            keys = packed.side([sources[i] for i in group])
            mask = packed.seen([len(sources[i]) for i in group], keys["index"].shape[1])
            batch["source"].append({"q": keys, "k": keys, "mask": mask})
            batch["cross"].append({"q": packed.side([each[i] for i in group]), "k": keys, "mask": mask})
        for group in packed.alike([len(branch) for branch in order]):
            own = packed.side([targets[i] for i in group])
            batch["target"].append({"q": own, "k": own, "mask": packed.causal(own["index"].shape[1])})
        return batch, order

    def _continued(self, rows: list[list[int]], opening: list[int], limit: int, most: int,
                   temperature: float) -> list[list[int]]:
        """Those that have ended leave their batch now and then: it takes as long as its longest, and a few never end."""
        eos, pad, device = self.format.eos_id, self.format.pad_id, self.model.device
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
        out: list[list[int]] = [[] for _ in rows]
        going, went = list(range(len(rows))), 0
        while going and went < limit:
            go, left = min(limit - went, max(defaults.ANSWERED_FIRST, went)), iter(going)
            for batch in _together([rows[i] + out[i] for i in going], most, defaults.ANSWERED_TOKENS):
                its = [next(left) for _ in batch]
                said = self.model.generate(
                    input_ids=_pad([rows[i] for i in its], pad).to(device),
                    attention_mask=_pad([[1] * len(rows[i]) for i in its], pad).to(device), max_new_tokens=go, num_beams=1,
                    decoder_input_ids=torch.tensor([opening + out[i] for i in its], device=device), use_cache=True,
                    eos_token_id=eos, pad_token_id=pad, **how)[:, len(opening) + went:].tolist()
                for i, ids in zip(its, said, strict=True):
                    out[i] += ids[: ids.index(eos)] if eos in ids else ids
            went += go
            going = [i for i in going if len(out[i]) == went]
        return out


class DecoderStudent(Student):
    """Decoder-only: a source and its targets are one sequence, in which each target sees the source and itself only."""

    family = "decoder"
    forward = staticmethod(stacks.llama)

    def tensors(self, rows: list[Encoded]) -> tuple[Batch, list[Branch]]:
        tokens, at = _places([len(row) for row in rows]), []
        for row, its in zip(rows, tokens, strict=True):
            begin = len(row.source)
            for b in row.branches:
                first = begin + len(b.opening) - 1  # without an opening the source's last token predicts
                at += its[first:first + len(b.target)]
                begin += len(b)
        batch: Batch = {
            "ids": torch.tensor([token for row in rows for token in (*row.source, *(
                t for b in row.branches for t in (b.opening + b.target)[:-1]))]),
            "places": torch.tensor([place for row in rows for place in (*range(len(row.source)), *(
                len(row.source) + t for b in row.branches for t in range(len(b))))]),
            "at": torch.tensor(at), "rows": []}
        for group in packed.alike([len(row) for row in rows]):
            own = packed.side([tokens[i] for i in group])
            width = own["index"].shape[1]
            several = any(len(rows[i].branches) > 1 for i in group)
            mask = packed.apart([_owners(rows[i]) for i in group], width) if several else packed.causal(width)
            batch["rows"].append({"q": own, "k": own, "mask": mask})
        return batch, [b for row in rows for b in row.branches]

    def _continued(self, rows: list[list[int]], opening: list[int], limit: int, most: int,
                   temperature: float) -> list[list[int]]:
        def pick(logits: Tensor) -> Tensor:
            return torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0] if temperature else logits.argmax(-1)

        def read(sources: list[list[int]]) -> Batch:
            nothing = (Branch([], [self.format.eos_id]),)  # what is predicted behind a source
            return self.tensors([Encoded(source, nothing) for source in sources])[0]

        return continuations(self.model, [row + opening for row in rows], read, self.format.eos_id, limit, most, pick)


def _places(lengths: list[int]) -> list[range]:
    """The numbers of each row's tokens where all rows lie end to end."""
    ends = list(accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _owners(row: Encoded) -> list[int]:
    """Whose each token is: 0 the source's, then the branches'."""
    return [0] * len(row.source) + [n for n, b in enumerate(row.branches, 1) for _ in range(len(b))]


def load(place: str | Path) -> Student:
    """A student from a folder or a hub id; its format too, where the folder has an `edgedistill.json`.

    Raises `UsageError` for what is no T5- or Llama-family model, or cannot be had.
    """
    folder = Path(place)
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is no student folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type in T5S:
            kind, auto = T5Student, AutoModelForSeq2SeqLM
        elif config.model_type in DECODERS:
            kind, auto = DecoderStudent, AutoModelForCausalLM
        else:
            raise UsageError(f"{place}: a {config.model_type} model; known families: {', '.join(T5S + DECODERS)}; "
                             "others are not trained, but export --layout optimum writes them")
        if not stacks.supported(config):
            raise UsageError(f"{place}: its activation function is not supported; known: {', '.join(packed.ACTIVATIONS)}")
        model = (reparam.restore(auto, config, place) if getattr(config, "edgedistill_ffn", None)
                 else auto.from_pretrained(place, dtype=torch.float32))
        # A folder's tokenizer.json says all; AutoTokenizer would put a Qwen2's own splitting in its place.
        whole = local and (folder / "tokenizer.json").is_file()
        tokenizer = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(place)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:140]
        raise UsageError(f"{place if not local else folder.name}: cannot be loaded ({reason}); without a network give "
                         "a folder, or --student carve") from error
    student = kind(model, tokenizer)
    described = folder / "edgedistill.json"
    if described.is_file():
        student.format = Format.from_dict(json.loads(described.read_text(encoding="utf-8")))
    return student


def _together(rows: list[list[int]], most: int, tokens: int) -> Iterator[list[list[int]]]:
    """The rows in their order, `most` at a time, or fewer that are `tokens` with their padding; a longer row alone."""
    batch: list[list[int]] = []
    for row in rows:
        if batch and (len(batch) == most or (len(batch) + 1) * max(map(len, [*batch, row])) > tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pad(rows: list[list[int]], value: int) -> Tensor:
    """[B, T] int64 from lists of different lengths, padded to the longest on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
