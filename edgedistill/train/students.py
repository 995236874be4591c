"""Students behind one interface: the T5 family (encoder-decoder) and decoder-only models."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from edgedistill.edge.format import Format
from edgedistill.errors import UsageError
from edgedistill.tasks.task import Task

IGNORE = -100  # positions that carry no loss, torch's convention
DECODERS = ("llama", "qwen2", "mistral")


class Student(ABC):
    """A model, its tokenizer and the format of its inputs. `rust` is the tokenizer that the device runs too."""

    family: str

    def __init__(self, model: Any, tokenizer: Any, format: Format | None = None) -> None:
        self.model, self.tokenizer, self.format = model, tokenizer, format
        self.rust = tokenizer.backend_tokenizer
        self.rust.no_padding()
        self.rust.no_truncation()

    def set_task(self, task: Task | None) -> None:
        """Fixes the format for `task`. Raises `UsageError` for a tokenizer without an end-of-text token."""
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        if eos is None:
            raise UsageError("the student's tokenizer has no eos_token; add one to its tokenizer_config.json")
        start = getattr(self.model.config, "decoder_start_token_id", None)
        self.format = Format.for_task(task, family=self.family, eos_id=eos, pad_id=eos if pad is None else pad,
                                      start_id=-1 if start is None else start)

    def parameters(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    def example(self, text: str, target: str, part: str) -> tuple[list[int], list[int]]:
        """(source ids, target ids) of one training example."""
        return (self.format.encode_source(self.rust, text, part), self.format.encode_target(self.rust, target, part))

    @abstractmethod
    def batch(self, examples: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        """Padded tensors of several examples; `labels` [B, T] holds IGNORE outside the targets."""

    @abstractmethod
    def target_logits(self, batch: dict[str, Tensor], model: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [N, V], targets [N], row [N]) over the N target tokens of the batch; `row` is each one's example.

        `model` is the student's own or a wrapper around it (data-parallel training).
        """

    @torch.no_grad()
    def generate(self, texts: list[str], part: str = "label", batch_size: int = 32,
                 max_new_tokens: int | None = None) -> list[list[int]]:
        """Greedy continuations as token ids without EOS and padding, one list a text."""
        training = self.model.training
        self.model.eval()
        out: list[list[int]] = []
        for at in range(0, len(texts), batch_size):
            sources = [self.format.encode_source(self.rust, text, part) for text in texts[at:at + batch_size]]
            out += self._greedy(sources, max_new_tokens or self.format.max_new_tokens(part))
        self.model.train(training)
        return out

    def decode(self, ids: list[int]) -> str:
        """Token ids as text."""
        return self.rust.decode(ids).strip()

    def answers(self, texts: list[str], part: str = "label", batch_size: int = 32) -> list[str]:
        """Greedy continuations as texts."""
        return [self.decode(ids) for ids in self.generate(texts, part, batch_size)]

    def save(self, folder: Path, provenance: dict[str, Any], card: str) -> None:
        """An ordinary Hugging Face folder plus `edgedistill.json`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (folder / "edgedistill.json").write_text(
            json.dumps({"schema": 1, **self.format.to_dict(), "provenance": provenance}, indent=1) + "\n",
            encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _greedy(self, sources: list[list[int]], limit: int) -> list[list[int]]:
        eos, pad = self.format.eos_id, self.format.pad_id
        left = self.family == "decoder"  # a decoder's continuation must follow its source directly
        ids = _pad(sources, pad, left)
        mask = _pad([[1] * len(source) for source in sources], 0, left)
        device = self.model.device
        out = self.model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=limit,
                                  do_sample=False, num_beams=1, use_cache=True, eos_token_id=eos, pad_token_id=pad)
        texts = []
        for row in out[:, ids.shape[1] if left else 1:].tolist():
            texts.append(row[: row.index(eos)] if eos in row else row)
        return texts


class T5Student(Student):
    """Encoder-decoder: the source goes through the encoder, the target opens with the start token."""

    family = "t5"

    def batch(self, examples: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        sources, targets = [e[0] for e in examples], [e[1] for e in examples]
        ids = _pad(sources, self.format.pad_id)
        return {"input_ids": ids, "attention_mask": _pad([[1] * len(s) for s in sources], 0),
                "labels": _pad(targets, IGNORE)}

    def target_logits(self, batch: dict[str, Tensor], model: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        logits = (model or self.model)(**batch, use_cache=False).logits
        wanted = batch["labels"] != IGNORE
        return logits[wanted], batch["labels"][wanted], wanted.nonzero()[:, 0]


class DecoderStudent(Student):
    """Decoder-only: source and target are one sequence, only the target carries loss."""

    family = "decoder"

    def batch(self, examples: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        # Padded on the left, so that all targets end in the last column: the head then meets the last T positions
        # only, and the source's logits, most of the work at a large vocabulary, are never made.
        joined = [source + target for source, target in examples]
        return {"input_ids": _pad(joined, self.format.pad_id, left=True),
                "attention_mask": _pad([[1] * len(j) for j in joined], 0, left=True),
                "labels": _pad([target for _, target in examples], IGNORE, left=True)}

    def target_logits(self, batch: dict[str, Tensor], model: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        labels = batch["labels"]
        logits = (model or self.model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                                       logits_to_keep=labels.shape[1] + 1, use_cache=False).logits
        wanted = labels != IGNORE
        return logits[:, :-1][wanted], labels[wanted], wanted.nonzero()[:, 0]


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
        model = auto.from_pretrained(place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
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
