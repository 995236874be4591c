"""How a question becomes a student's input and its output an answer: shared by training and the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from edgedistill.tasks.task import Task

PREFIXES = {"label": "predict: ", "rationale": "explain: "}  # as in the published code of Distilling Step-by-Step


@dataclass(frozen=True)
class Format:
    """What a student folder's `edgedistill.json` and a bundle's `bundle.json` say about inputs and outputs.

    `family` is "t5" (encoder-decoder) or "decoder". `start_id` opens a T5 target, `separator` ends a decoder's input.
    Lengths are in tokens of the student.
    """

    family: str
    eos_id: int
    pad_id: int
    start_id: int
    separator: str
    max_input_tokens: int
    max_label_tokens: int
    max_rationale_tokens: int
    task: dict[str, Any] | None = None

    @classmethod
    def for_task(cls, task: Task | None, *, family: str, eos_id: int, pad_id: int, start_id: int = -1) -> Format:
        """The format of a student of `family` for a task card (or for none: plain text to text)."""
        lengths = task or Task("text", "text", "text")
        return cls(family, eos_id, pad_id, start_id, "" if family == "t5" else "\n", lengths.max_input_tokens,
                   lengths.max_label_tokens, lengths.max_rationale_tokens,
                   task.to_dict(exemplars=False) if task else None)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Format:
        """Reads what `to_dict` wrote; keys of later versions are ignored. Raises `KeyError` or `TypeError`."""
        return cls(**{f.name: data[f.name] for f in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def source(self, text: str, part: str) -> str:
        """The text that the student reads for `part` ("label" or "rationale")."""
        return f"{PREFIXES[part] if self.task else ''}{text}{self.separator}"

    def max_new_tokens(self, part: str) -> int:
        """The longest output of `part`, in tokens."""
        return self.max_label_tokens if part == "label" else self.max_rationale_tokens

    def encode_source(self, tokenizer: Any, text: str, part: str) -> list[int]:
        """Token ids of the input (a `tokenizers.Tokenizer`), cut to `max_input_tokens`; T5 inputs end with EOS.

        The beginning of a too long text is kept, and what ends the input is never cut.
        """
        body = tokenizer.encode(self.source(text, part).removesuffix(self.separator), add_special_tokens=False).ids
        if self.family == "t5":
            return body[: self.max_input_tokens - 1] + [self.eos_id]
        end = tokenizer.encode(self.separator, add_special_tokens=False).ids
        return body[: self.max_input_tokens - len(end)] + end

    def encode_target(self, tokenizer: Any, text: str, part: str) -> list[int]:
        """Token ids of a target with its EOS, cut to the part's length."""
        return tokenizer.encode(text, add_special_tokens=False).ids[: self.max_new_tokens(part) - 1] + [self.eos_id]
