"""A bundle as a student that answers: tokenise, decode greedily, parse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgedistill.edge import bundle
from edgedistill.edge.format import Format
from edgedistill.edge.graphs import open_graphs
from edgedistill.errors import UsageError
from edgedistill.tasks.task import Task


@dataclass(frozen=True)
class Answer:
    """`value` is None where the text states no answer. `confidence` is the probability that the model gave to the
    text (product over its tokens), not a calibrated one."""

    text: str
    value: str | None
    confidence: float
    rationale: str | None = None


@dataclass(frozen=True)
class Generated:
    """Greedy output: token ids without EOS, their text, and the log-probability of each id and of the end."""

    ids: list[int]
    text: str
    logprobs: list[float]


class Student:
    """A loaded bundle. One request at a time; make one a thread."""

    def __init__(self, manifest: dict[str, Any], tokenizer: Tokenizer, graphs: Any) -> None:
        self.manifest, self.tokenizer, self.graphs = manifest, tokenizer, graphs
        self.format = Format.from_dict(manifest["format"])
        self.task = Task.from_dict(self.format.task) if self.format.task else None

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> Student:
        """Opens a bundle after checking its hashes; `threads` defaults to the target's. Raises `UsageError`."""
        folder = Path(folder)
        manifest = bundle.read(folder)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return cls(manifest, tokenizer, open_graphs(folder, manifest["graph"], threads or manifest["threads"]))
        except UsageError:
            raise
        except Exception as error:  # onnxruntime and tokenizers raise kinds of their own
            reason = " ".join(str(error).split())[:160]
            raise UsageError(f"{folder}: cannot be opened ({reason}); export the bundle again") from error

    def answer(self, text: str, explain: bool = False, choices: tuple[str, ...] = ()) -> Answer:
        """The answer to one question; with `explain` its rationale too, decoded by the rationale prefix."""
        out = self.generate(text)
        rationale, stated = self.format.split(out.text)
        parsed = self.task.parse(stated, choices) if self.task else None
        if explain and rationale is None:
            rationale = self.generate(text, part="rationale").text
        return Answer(parsed.text if parsed else out.text, parsed.value if parsed else None,
                      math.exp(sum(out.logprobs)), rationale if explain else None)

    def generate(self, text: str, max_new_tokens: int | None = None, min_new_tokens: int = 0,
                 part: str = "label") -> Generated:
        """Greedy decoding of `part` ("label" or "rationale")."""
        if not text.strip():
            raise UsageError("the text is empty; give a question")
        source = self.format.encode_source(self.tokenizer, text, part)
        limit = max_new_tokens or self.format.max_new_tokens(part)
        opening = self.format.opening(self.tokenizer, part)
        limit = min(limit, self.graphs.room(len(source), len(opening)))
        ids: list[int] = []
        logprobs: list[float] = []
        logits, state = self.graphs.start(source, opening), self.graphs.state
        while True:
            token, logprob = int(state.token[0, 0]), float(state.logprob[0, 0])
            if token == self.format.eos_id and len(ids) < min_new_tokens:
                end, logits[token] = float(logits[token]), -np.inf
                token = int(logits.argmax())  # the next best one
                logprob += float(logits[token]) - end
            logprobs.append(logprob)
            if token == self.format.eos_id:
                break
            ids.append(token)
            if len(ids) >= limit:
                break
            logits = self.graphs.step(token)
        return Generated(ids, self.format.decode(self.tokenizer, ids), logprobs)

