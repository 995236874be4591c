"""A bundle as a student that answers: tokenise, decode or score, parse."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgedistill import defaults
from edgedistill.edge import bundle, decide, pages
from edgedistill.edge.format import Format
from edgedistill.edge.graphs import open_graphs
from edgedistill.errors import Error, UsageError
from edgedistill.tasks.metrics import majority
from edgedistill.tasks.task import Task


@dataclass(frozen=True)
class Answer:
    """`value` is None where the text states no answer, or less confidently than asked for.

    `confidence` is the share of right answers to expect where the bundle was calibrated on dev rows, else the probability
    that the model gave to the text, or to the choice among the choices. `votes` is the share of samples for the value, and
    then the confidence.
    """

    text: str
    value: str | None
    confidence: float
    rationale: str | None = None
    votes: float | None = None


@dataclass(frozen=True)
class Generated:
    """Greedy output: token ids without EOS, their text, and the log-probability of each id and of the end."""

    ids: list[int]
    text: str
    logprobs: list[float]


@dataclass
class Phases:
    """Where the time of the last question went: to tokenise it and to read it (encoder or prompt, with the first scores),
    the rest being decoding; its tokens, and how many were written (none where choices were scored)."""

    tokenize_ms: float = 0.0
    read_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


class Student:
    """A loaded bundle. One request at a time; make one a thread. `phases` tells where the last one's time went."""

    def __init__(self, manifest: dict[str, Any], tokenizer: Tokenizer, graphs: Any) -> None:
        self.manifest, self.tokenizer, self.graphs = manifest, tokenizer, graphs
        self.format = Format.from_dict(manifest["format"])
        self.task = Task.from_dict(self.format.task) if self.format.task else None
        self._arithmetic: decide.Arithmetic | None = None
        self.phases = Phases()

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> Student:
        """Opens a bundle after checking its hashes; `threads` defaults to the target's. Raises `UsageError`."""
        folder = Path(folder)
        manifest = bundle.read(folder)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            made = cls(manifest, tokenizer, open_graphs(folder, manifest["graph"], threads or manifest["threads"]))
            pages.gather()
            return made
        except UsageError:
            raise
        except Exception as error:  # onnxruntime and tokenizers raise kinds of their own
            reason = " ".join(str(error).split())[:160]
            raise UsageError(f"{folder}: cannot be opened ({reason}); export the bundle again") from error

    def answer(self, text: str, explain: bool = False, choices: tuple[str, ...] = (), vote: int = 1, abstain: float = 0.0,
               seed: int = 0) -> Answer:
        """The answer to one question; with `explain` its rationale too, decoded by the rationale prefix.

        Choices are scored in one pass, equations hold nothing but arithmetic. `vote` samples are drawn and the most frequent
        value wins. Below the confidence `abstain` there is no value.
        """
        with _broken():
            if vote > 1:
                found = self._vote(text, choices, vote, seed)
            else:
                options = self._options(choices)
                found = self._scored(text, options) if options else self._written(text, choices)
        rationale = found.rationale
        if explain and rationale is None:
            rationale = self.generate(text, part="rationale").text
        with _broken():  # a forged manifest may say anything here; it is of greedy answers: votes are taken as they are
            confidence = found.votes or decide.calibrated(found.confidence, self.manifest.get("calibration"))
        return replace(found, confidence=confidence, rationale=rationale if explain else None,
                       value=found.value if confidence >= abstain else None)

    def _options(self, choices: tuple[str, ...]) -> dict[str, list[int]]:
        """The choices that a label may be, with their tokens; none where the task has none, or they cannot be scored."""
        if not self.task or self.task.kind != "choice" or self.format.chain:
            return {}
        options = {each: self.format.encode_target(self.tokenizer, each, "label") for each in choices or self.task.choices}
        # Two that are cut to the same tokens cannot be told apart.
        return options if len(set(map(tuple, options.values()))) == len(options) else {}

    def _scored(self, text: str, options: dict[str, list[int]]) -> Answer:
        self._start(text, "label")
        which, probability = decide.choose(self.graphs, list(options.values()))
        chosen = list(options)[which]
        return Answer(chosen, self.task.parse(chosen, tuple(options)).value, probability)

    def _written(self, text: str, choices: tuple[str, ...]) -> Answer:
        out = self.generate(text, grammar=self._grammar())
        return self._parsed(out.text, math.exp(sum(out.logprobs)), choices)

    def _parsed(self, text: str, confidence: float, choices: tuple[str, ...]) -> Answer:
        rationale, stated = self.format.split(text)
        parsed = self.task.parse(stated, choices) if self.task else None
        return Answer(parsed.text if parsed else text, parsed.value if parsed else None, confidence, rationale)

    def _grammar(self) -> decide.Arithmetic | None:
        """For plain equations whose signs the tokenizer has: none of them is escaped."""
        if not self.task or self.task.kind != "equation" or self.format.chain or set(self.format.escapes) & set("+-*/()., "):
            return None
        if self._arithmetic is None:
            pieces = ((i, piece) for piece, i in self.tokenizer.get_vocab().items())
            self._arithmetic = decide.Arithmetic(pieces, self.format.eos_id)
        self._arithmetic.begin()
        return self._arithmetic

    def _vote(self, text: str, choices: tuple[str, ...], samples: int, seed: int) -> Answer:
        random = np.random.default_rng(seed)
        limit = self._start(text, "label")
        found = []
        for _ in range(samples):
            self.graphs.state.rewind()
            out = self._decode(limit, grammar=self._grammar(), random=random)
            found.append(self._parsed(out.text, math.exp(sum(out.logprobs)), choices))
        winner = majority([each.value for each in found])
        its = [each for each in found if each.value == winner]
        return replace(max(its, key=lambda each: each.confidence), votes=len(its) / samples)

    def generate(self, text: str | list[int], max_new_tokens: int | None = None, min_new_tokens: int = 0,
                 part: str = "label", grammar: decide.Arithmetic | None = None) -> Generated:
        """Greedy decoding of `part` ("label" or "rationale"), of what `grammar` allows; `text` may be an input's token ids."""
        with _broken():
            return self._decode(self._start(text, part, max_new_tokens), min_new_tokens, grammar)

    def _start(self, text: str | list[int], part: str, limit: int | None = None) -> int:
        """Reads the question; returns how many tokens the output may have."""
        if not (text.strip() if isinstance(text, str) else text):
            raise UsageError("the text is empty; give a question")
        begin = time.perf_counter()
        source = self.format.encode_source(self.tokenizer, text, part) if isinstance(text, str) else text
        opening = self.format.opening(self.tokenizer, part)
        encoded = time.perf_counter()
        self.graphs.start(source, opening)
        self.phases = Phases(1e3 * (encoded - begin), 1e3 * (time.perf_counter() - encoded),
                             len(source) + len(opening))
        return min(limit or self.format.max_new_tokens(part), self.graphs.room(len(source), len(opening)))

    def _decode(self, limit: int, min_new_tokens: int = 0, grammar: decide.Arithmetic | None = None,
                random: np.random.Generator | None = None) -> Generated:
        logits, state, end = self.graphs.logits, self.graphs.state, self.format.eos_id
        ids: list[int] = []
        logprobs: list[float] = []
        while True:
            best = token = int(state.token[0, 0])
            if random is not None:
                allowed = None if grammar is None else grammar.ids[[grammar.allows(int(i)) for i in grammar.ids]]
                token = decide.sample(logits, defaults.VOTE_TEMP, random, allowed if allowed is None or len(allowed) else None)
            elif grammar is not None and not grammar.allows(token):
                token = grammar.pick(logits)
            elif token == end and len(ids) < min_new_tokens:
                token = int(np.where(np.arange(len(logits)) == end, -np.inf, logits).argmax())  # the next best one
            logprobs.append(float(state.logprob[0, 0] + logits[token] - logits[best]))
            if token == end:
                break
            ids.append(token)
            if len(ids) >= limit:
                break
            if grammar is not None:
                grammar.take(token)
            self.graphs.step(token)
        self.phases.tokens_out = len(ids)
        return Generated(ids, self.format.decode(self.tokenizer, ids), logprobs)


@contextmanager
def _broken() -> Iterator[None]:
    """What a graph or a tokenizer fails with while it runs, as an error of ours: they raise kinds of their own."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise Error(f"the bundle fails while it runs ({type(error).__name__}: {reason}); export it again") from error
