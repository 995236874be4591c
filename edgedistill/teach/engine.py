"""The teaching engine: many texts of one GGUF model side by side. It knows nothing of tasks.

A slot is a sequence of the cache. A request's prompt is decoded once for all of its seeds: the slot drops what follows
the prompt and begins the next seed with the prompt's own logits. A slot that is free is refilled at once.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgedistill.teach import soft
from edgedistill.teach.completion import Completion, Request, Sampling
from edgedistill.teach.llama import Llama
from edgedistill.teach.sampling import draw

_SCORED = 32   # tokens decoded with logits at a time when a given text is scored: bounds them to 32 x vocabulary


@dataclass
class _Prompt:
    """A request under way: its seeds still to begin and, once its prompt is decoded, the logits after it."""

    request: Request
    seeds: deque[int]
    logits: np.ndarray | None = None


@dataclass
class _Slot:
    prompt: _Prompt
    seed: int
    random: np.random.Generator
    position: int                  # tokens of this sequence in the cache
    pending: list[int]             # tokens to decode next
    data: bytearray = field(default_factory=bytearray)
    generated: int = 0
    soft: list[np.ndarray] = field(default_factory=list)

    @property
    def reads(self) -> bool:
        """Whether it is still in its prompt."""
        return self.position < len(self.prompt.request.prompt)


class Engine(Llama):
    """Continues prompts, or scores given texts. Not for use by two threads at once."""

    def generate(self, requests: Iterable[Request], sampling: Sampling, max_new: int,
                 stop: re.Pattern[str] | None = None, soft_targets: int = 0) -> Iterator[Completion]:
        """Continues each request once for each of its seeds, yields completions as they end (not in order).

        A text ends at an end-of-text token, where `stop` matches (the match's end is kept), or after `max_new` tokens.
        A request is taken from `requests` only when a slot is free for it.
        """
        waiting = iter(requests)
        running: dict[int, _Slot] = {}

        def advance(sequence: int, logits: np.ndarray) -> Iterator[Completion]:
            """Draws a slot's next token; a text that ends with it makes room for the request's next seed at once."""
            while True:
                slot = running[sequence]
                if slot.prompt.logits is None and slot.prompt.seeds:
                    slot.prompt.logits = logits.copy()
                done = self._take(slot, logits, sampling, max_new, stop, soft_targets)
                if done is None:
                    return
                yield done
                if not slot.prompt.seeds:
                    self.rewind(sequence, len(self.prefix))
                    del running[sequence]
                    return
                running[sequence] = self._begin(sequence, slot.prompt)
                if running[sequence].pending:
                    return
                logits = slot.prompt.logits

        while True:
            for sequence in range(1, self.slots + 1):
                while sequence not in running:
                    slot = self._next(sequence, waiting, running)
                    if slot is None:
                        break
                    running[sequence] = slot
                    if not slot.pending:
                        yield from advance(sequence, slot.prompt.logits)
            if not running:
                return
            for sequence, logits in self._step(running):
                yield from advance(sequence, logits)

    def score(self, prompt: tuple[int, ...], text: tuple[int, ...], soft_targets: int) -> np.ndarray:
        """Soft targets of a given text (teacher forcing): a record for each of its tokens, [len(text)]."""
        own = (*prompt[len(self.prefix):], *text[:-1])
        first = len(prompt) - len(self.prefix) - 1  # the place whose logits foretell the text's first token
        records: list[np.ndarray] = []
        at = 0
        while at < len(own):
            # What needs no logits in large parts, the rest in parts whose logits stay small.
            end = min(first, at + self.room) if at < first else min(len(own), at + min(_SCORED, self.room))
            self.decode([(own[i], len(self.prefix) + i, 1, i >= first) for i in range(at, end)])
            records += [soft.capture(self.logits(i), text[len(records) + i], soft_targets)
                        for i in range(end - max(at, first))] if end > first else []
            at = end
        self.rewind(1, len(self.prefix))
        return np.stack(records)

    def _next(self, sequence: int, waiting: Iterator[Request], running: dict[int, _Slot]) -> _Slot | None:
        """Work for a free slot: a new request, or at the end a seed that waits behind another slot's text."""
        request = next(waiting, None)
        if request is not None:
            own = len(self.prefix)
            if request.prompt[:own] != self.prefix or len(request.prompt) == own:
                raise ValueError("a request must begin with the shared prefix and go on after it")
            return self._begin(sequence, _Prompt(request, deque(request.seeds)))
        holder = max(running, key=lambda s: len(running[s].prompt.seeds) if running[s].prompt.logits is not None else 0,
                     default=None)
        if holder is None or running[holder].prompt.logits is None or not running[holder].prompt.seeds:
            return None
        self.restart(sequence, holder)
        return self._begin(sequence, running[holder].prompt)

    def _begin(self, sequence: int, prompt: _Prompt) -> _Slot:
        """The request's next seed, in a slot that holds its prompt or else the shared prefix."""
        tokens = prompt.request.prompt
        kept = self.rewind(sequence, len(self.prefix) if prompt.logits is None else len(tokens))
        seed = prompt.seeds.popleft()
        return _Slot(prompt, seed, np.random.Generator(np.random.PCG64(seed)), kept, list(tokens[kept:]))

    def _take(self, slot: _Slot, logits: np.ndarray, sampling: Sampling, max_new: int, stop: re.Pattern[str] | None,
              soft_targets: int) -> Completion | None:
        """Draws the slot's next token; the completion if that was its last."""
        token = draw(logits, sampling, slot.random)
        end = self.is_end(token)
        if soft_targets:
            slot.soft.append(soft.capture(logits, token, soft_targets))
        if not end:
            slot.data += self.piece(token)
            slot.generated += 1
            slot.pending = [token]
        # Bytes of a character that is not complete yet are left out of the match.
        text = slot.data.decode(errors="ignore")
        match = stop.search(text) if stop and not end else None
        if not (end or match or slot.generated >= max_new):
            return None
        request = slot.prompt.request
        return Completion(request.key, slot.seed, text[: match.end()] if match else text,
                          "stop" if end or match else "length", len(request.prompt), slot.generated,
                          np.stack(slot.soft) if soft_targets else None)

    def _step(self, running: dict[int, _Slot]) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes what is pending; (sequence, logits) of the slots that wait for a new token.

        The logits are llama.cpp's own memory: valid until the next are asked for.
        """
        if not self.independent:
            yield from self._step_mixed(running)
            return
        for sequence, slot in list(running.items()):
            if slot.reads:
                self.feed(sequence, slot.position, slot.pending, last=True)
                slot.position += len(slot.pending)
                slot.pending = []
                yield sequence, self.logits(0)
        texts = {s: slot for s, slot in running.items() if slot.pending and not slot.reads}
        if not texts:
            return
        # The other slots take part with a token that is dropped again: every step has the same shape.
        at = {s: running[s].position if s in running else len(self.prefix) for s in range(1, self.slots + 1)}
        self.decode([(texts[s].pending[0] if s in texts else 0, n, s, True) for s, n in at.items()])
        for s, n in at.items():
            if s not in texts:
                self.rewind(s, n)
        for s, slot in texts.items():
            slot.position += 1
            slot.pending = []
            yield s, self.logits(s - 1)

    def _step_mixed(self, running: dict[int, _Slot]) -> Iterator[tuple[int, np.ndarray]]:
        entries: list[tuple[int, int, int, bool]] = []
        ready: list[int] = []
        # Slots in the middle of their text first, then prompts, as many tokens as the batch holds.
        for sequence, slot in sorted(running.items(), key=lambda item: len(item[1].pending)):
            part = slot.pending[: self.room - len(entries)]
            if not part:
                break
            last = len(part) == len(slot.pending)
            entries += [(token, slot.position + i, sequence, last and i == len(part) - 1) for i, token in enumerate(part)]
            slot.position += len(part)
            slot.pending = slot.pending[len(part):]
            if last:
                ready.append(sequence)
        self.decode(entries)
        for i, sequence in enumerate(ready):
            yield sequence, self.logits(i)


def common_prefix(prompts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all prompts begin with; one token of each is always left over."""
    prefix: tuple[int, ...] | None = None
    for prompt in prompts:
        prefix = prompt[:-1] if prefix is None else prefix[: min(len(prefix), len(prompt) - 1)]
        if prompt[: len(prefix)] != prefix:
            prefix = prefix[: next(i for i, (a, b) in enumerate(zip(prefix, prompt, strict=False)) if a != b)]
    return prefix or ()
