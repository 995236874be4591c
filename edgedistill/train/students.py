"""Students behind one interface: the T5 family (encoder-decoder) and decoder-only models."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from edgedistill.edge.format import PREFIXES, Format
from edgedistill.errors import UsageError
from edgedistill.tasks.task import Task
from edgedistill.train import reparam

DECODERS = ("llama", "qwen2", "mistral")


@dataclass(frozen=True)
class Branch:
    """One target of a source: `opening` stands before it and carries no loss, `target` ends with EOS.

    `part` is an index into PREFIXES. `soft` is the teacher's distribution for each target token: ids [T, K], probs [T, K].
    """

    opening: list[int]
    target: list[int]
    part: int = 0
    soft: tuple[Any, Any] | None = None

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
    overhead: int  # padded tokens that a micro-batch costs by itself: casts of gradients, zeroed embeddings

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

    def encode(self, text: str, target: str, part: str, source: str | None = None) -> Encoded:
        """One training example as token ids; `source` is read instead of `text` with its prefix."""
        branch = Branch(self.format.opening(self.rust, part), self.format.encode_target(self.rust, target, part),
                        list(PREFIXES).index(part))
        return Encoded(self.format.encode_source(self.rust, text, part, source), (branch,))

    @abstractmethod
    def shape(self, row: Encoded) -> list[int]:
        """The lengths that are padded each by itself when `row` stands among others."""

    @abstractmethod
    def tensors(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], list[Branch]]:
        """(padded tensors for `hidden`, the branches in the order of its output)."""

    @abstractmethod
    def hidden(self, batch: dict[str, Tensor], model: Any = None) -> Tensor:
        """[N, d]: the state before the head at each position that predicts a target token, branch by branch.

        `model` is the student's own or a wrapper around it (data-parallel training).
        """

    @contextmanager
    def headless(self) -> Iterator[None]:
        """Inside, the model's logits are its states before the head: logits are made for target tokens only."""
        head = self.model.lm_head
        self.model.lm_head = torch.nn.Identity()
        try:
            yield
        finally:
            self.model.lm_head = head

    @torch.no_grad()
    def generate(self, texts: list[str], part: str = "label", batch_size: int = 32,
                 max_new_tokens: int | None = None) -> list[list[int]]:
        """Greedy continuations as token ids without EOS and padding, one list a text."""
        training = self.model.training
        self.model.eval()
        opening = self.format.opening(self.rust, part)
        out: list[list[int]] = []
        for at in range(0, len(texts), batch_size):
            sources = [self.format.encode_source(self.rust, text, part) for text in texts[at:at + batch_size]]
            out += self._greedy(sources, opening, max_new_tokens or self.format.max_new_tokens(part))
        self.model.train(training)
        return out

    def answer(self, ids: list[int]) -> str:
        """The answer's text in the token ids of a label output."""
        return self.format.split(self.format.decode(self.rust, ids))[1]

    def answers(self, texts: list[str], batch_size: int = 32) -> list[str]:
        """Greedy answers as texts."""
        return [self.answer(ids) for ids in self.generate(texts, batch_size=batch_size)]

    def save(self, folder: Path, provenance: dict[str, Any], card: str) -> None:
        """An ordinary Hugging Face folder plus `edgedistill.json`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (folder / "edgedistill.json").write_text(
            json.dumps({"schema": 1, **self.format.to_dict(), "provenance": provenance}, indent=1) + "\n",
            encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _greedy(self, sources: list[list[int]], opening: list[int], limit: int) -> list[list[int]]:
        eos, pad, device = self.format.eos_id, self.format.pad_id, self.model.device
        left = self.family == "decoder"  # a decoder's continuation must follow its source directly
        if left:
            sources = [source + opening for source in sources]
        ids = _pad(sources, pad, left).to(device)
        mask = _pad([[1] * len(source) for source in sources], 0, left).to(device)
        begun = {} if left else {"decoder_input_ids": torch.tensor([opening] * len(sources), device=device)}
        out = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, num_beams=1,
                                  use_cache=True, eos_token_id=eos, pad_token_id=pad, **begun)
        texts = []
        for row in out[:, ids.shape[1] if left else len(opening):].tolist():
            texts.append(row[: row.index(eos)] if eos in row else row)
        return texts


class T5Student(Student):
    """Encoder-decoder: the source goes through the encoder once, each of its targets through the decoder."""

    family = "t5"
    overhead = 150  # measured for t5-small's shape on 2 CPU threads

    def shape(self, row: Encoded) -> list[int]:
        return [len(row.source), *map(len, row.branches)]

    def tensors(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], list[Branch]]:
        batch = {"input_ids": _pad([row.source for row in rows], self.format.pad_id),
                 "attention_mask": _pad([[1] * len(row.source) for row in rows], 0)}
        order = []
        # First targets in one call of the decoder, second ones in another: labels are not padded to rationales.
        for slot in range(max(len(row.branches) for row in rows)):
            its = [(i, row.branches[slot]) for i, row in enumerate(rows) if slot < len(row.branches)]
            inputs = _pad([(b.opening + b.target)[:-1] for _, b in its], self.format.pad_id)
            batch[f"decoder_{slot}"] = inputs
            batch[f"row_{slot}"] = torch.tensor([i for i, _ in its])
            batch[f"at_{slot}"] = torch.tensor([at * inputs.shape[1] + len(b.opening) - 1 + t
                                                for at, (_, b) in enumerate(its) for t in range(len(b.target))])
            order += [b for _, b in its]
        return batch, order

    def hidden(self, batch: dict[str, Tensor], model: Any = None) -> Tensor:
        slots = range(sum(name.startswith("at_") for name in batch))
        ids = [batch["input_ids"], *(batch[f"decoder_{slot}"] for slot in slots)]
        # One lookup for all: each would make a gradient of the whole embedding's size.
        embedded = self.model.get_input_embeddings()(torch.cat([each.flatten() for each in ids]))
        source, *targets = (each.view(*shape.shape, -1) for each, shape in zip(
            embedded.split([each.numel() for each in ids]), ids, strict=True))
        mask, states, found = batch["attention_mask"], None, []
        with self.headless():
            for slot in slots:
                rows = batch[f"row_{slot}"]
                given = {"inputs_embeds": source} if states is None else {"encoder_outputs": (states[rows],)}
                out = (model or self.model)(**given, attention_mask=mask[rows], decoder_inputs_embeds=targets[slot],
                                            use_cache=False)
                states = out.encoder_last_hidden_state if states is None else states
                found.append(out.logits.flatten(0, 1)[batch[f"at_{slot}"]])
        return torch.cat(found)


class DecoderStudent(Student):
    """Decoder-only: a source and its targets are one sequence, in which each target sees the source and itself only."""

    family = "decoder"
    overhead = 40  # measured for SmolLM2-135M on 2 CPU threads

    def __init__(self, model: Any, tokenizer: Any, format: Format | None = None) -> None:
        super().__init__(model, tokenizer, format)
        model.set_attn_implementation("sdpa")  # the others add a mask of truth values to the scores

    def shape(self, row: Encoded) -> list[int]:
        return [len(row)]

    def tensors(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], list[Branch]]:
        ids = _pad([row.source + [t for b in row.branches for t in (b.opening + b.target)[:-1]] for row in rows],
                   self.format.pad_id)
        width, at = ids.shape[1], []
        for i, row in enumerate(rows):
            begin = len(row.source)
            for b in row.branches:
                first = begin + len(b.opening) - 1  # without an opening the source's last token predicts
                at += range(i * width + first, i * width + first + len(b.target))
                begin += len(b)
        batch = {"input_ids": ids, "at": torch.tensor(at)}
        if any(len(row.branches) > 1 for row in rows):
            # Whose token it is: 0 the source's, then the branches', at the end the padding's.
            owner = _pad([[0] * len(row.source) + [n for n, b in enumerate(row.branches, 1) for _ in range(len(b))]
                          for row in rows], 1 + max(len(row.branches) for row in rows))
            sees = (owner[:, :, None] == owner[:, None]) | (owner[:, None] == 0)
            batch["attention_mask"] = (sees & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
            batch["position_ids"] = _pad([[*range(len(row.source)), *(len(row.source) + t for b in row.branches
                                                                     for t in range(len(b)))] for row in rows], 0)
        return batch, [b for row in rows for b in row.branches]

    def hidden(self, batch: dict[str, Tensor], model: Any = None) -> Tensor:
        # One branch a row is padded on the right: causal attention never sees the padding, so no mask is needed.
        inputs = {name: value for name, value in batch.items() if name != "at"}
        with self.headless():
            return (model or self.model)(**inputs, use_cache=False).logits.flatten(0, 1)[batch["at"]]


@contextmanager
def arithmetic(kind: str, bf16: bool) -> Iterator[None]:
    """How a training step computes on a device: bf16 autocast where it can; on a CPU attention by plain products.

    Its flash attention takes a fifth of SmolLM2's step there, mostly backwards: these sequences are short.
    """
    with torch.autocast(kind, torch.bfloat16, enabled=bf16), \
            sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext():
        yield


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
        if config.model_type in ("t5", "mt5"):
            kind, auto = T5Student, AutoModelForSeq2SeqLM
        elif config.model_type in DECODERS:
            kind, auto = DecoderStudent, AutoModelForCausalLM
        else:
            raise UsageError(f"{place}: a {config.model_type} model; known families: t5, mt5, {', '.join(DECODERS)}")
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


def _pad(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """[B, T] int64 from lists of different lengths, padded to the longest on the right or the left."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([f + row if left else row + f for f, row in zip(fill, rows, strict=True)])
