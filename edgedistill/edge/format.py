"""How a question becomes a student's input and its output an answer: shared by training and the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgedistill.tasks.task import Task

PREFIXES = {"label": "predict: ", "rationale": "explain: "}  # as in the published code of Distilling Step-by-Step


@dataclass(frozen=True)
class Format:
    """What a student folder's `edgedistill.json` and a bundle's `bundle.json` say about inputs and outputs.

    `family` is "t5" (encoder-decoder) or "decoder". `start_id` opens a T5 target, `separator` ends a decoder's input.
    `shared`: the prefix stands after the question instead of before it, so that both parts read one encoding of it.
    `chain`: the label part is a chain of thought that ends with the task's answer lead and the answer.
    `escapes` maps characters that the tokenizer lacks to what stands for them in its texts. Lengths are in tokens of the
    student.
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
    shared: bool = False
    chain: bool = False
    escapes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def for_task(cls, task: Task | None, *, family: str, eos_id: int, pad_id: int, start_id: int = -1,
                 **more: Any) -> Format:
        """The format of a student of `family` for a task card (or for none: plain text to text); `more` as the fields."""
        lengths = task or Task("text", "text", "text")
        return cls(family, eos_id, pad_id, start_id, "" if family == "t5" else "\n", lengths.max_input_tokens,
                   lengths.max_label_tokens, lengths.max_rationale_tokens,
                   task.to_dict(exemplars=False) if task else None, **more)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Format:
        """Reads what `to_dict` wrote; keys of later versions are ignored. Raises `KeyError` or `TypeError`."""
        later = ("shared", "chain", "escapes")  # not in what earlier versions wrote
        found = {f.name: data[f.name] for f in fields(cls) if f.name in data or f.name not in later}
        for f in fields(cls):
            kind = {"str": str, "int": int, "bool": bool}.get(f.type, (dict, type(None)))
            if f.name in found and (not isinstance(found[f.name], kind) or kind is int and not -1 <= found[f.name] < 2**31):
                raise TypeError(f"{f.name} is {str(found[f.name])[:40]!r}")
        if not all(isinstance(each, str) and each for pair in found.get("escapes", {}).items() for each in pair):
            raise TypeError("escapes are not all texts")
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def source(self, text: str, part: str) -> str:
        """The text that the student reads for `part` ("label" or "rationale")."""
        return f"{PREFIXES[part] if self.task and not self.shared else ''}{text}{self.separator}"

    def max_new_tokens(self, part: str) -> int:
        """The longest output of `part`, in tokens."""
        if part == "label" and self.chain:
            return self.max_label_tokens + self.max_rationale_tokens
        return self.max_label_tokens if part == "label" else self.max_rationale_tokens

    def encode_source(self, tokenizer: Any, text: str, part: str, given: str | None = None) -> list[int]:
        """Token ids of the input (a `tokenizers.Tokenizer`), cut to `max_input_tokens`; T5 inputs end with EOS.

        The beginning of a too long text is kept, and what ends the input is never cut. `given` (worked examples and
        the question, while training) is read as it is instead, whatever its length.
        """
        body = self._encode(tokenizer, self.source(text, part).removesuffix(self.separator) if given is None else given)
        end = [self.eos_id] if self.family == "t5" else self._encode(tokenizer, self.separator)
        return (body if given else body[: self.max_input_tokens - len(end)]) + end

    def opening(self, tokenizer: Any, part: str) -> list[int]:
        """Token ids between the input and the output: a T5's start, the prefix of the shared form. They carry no loss.

        In the shared form a T5's rationale opens with EOS in the place of the start token, which costs no step.
        """
        if self.family == "t5":
            return [self.eos_id if self.shared and part == "rationale" else self.start_id]
        return self._encode(tokenizer, PREFIXES[part].strip() + self.separator) if self.shared and self.task else []

    def encode_target(self, tokenizer: Any, text: str, part: str) -> list[int]:
        """Token ids of a target with its EOS, cut to the part's length."""
        return self._encode(tokenizer, text)[: self.max_new_tokens(part) - 1] + [self.eos_id]

    def decode(self, tokenizer: Any, ids: list[int]) -> str:
        """The text of token ids."""
        text = tokenizer.decode(ids)
        for character, stands_for in self.escapes.items():
            text = text.replace(stands_for, character)
        return text.strip()

    def split(self, output: str) -> tuple[str | None, str]:
        """(rationale, answer text) of a label output; a plain label has no rationale in it."""
        if not self.chain or not self.task:
            return None, output
        rationale, answer = Task.from_dict(self.task).split(output)
        return rationale, answer or ""

    def _encode(self, tokenizer: Any, text: str) -> list[int]:
        for character, stands_for in self.escapes.items():
            text = text.replace(character, stands_for)
        return tokenizer.encode(text, add_special_tokens=False).ids
