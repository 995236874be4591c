"""A teacher that is ready to be asked the rows of a task: a GGUF file in this process, or a server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgedistill import defaults
from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.teach.completion import Completion, Request, Sampling
from edgedistill.teach.engine import Engine, common_prefix
from edgedistill.teach.prompts import Prompter, Template
from edgedistill.teach.server import Server
from edgedistill.teach.source import Source

_WIDTHS = (1, 2, 4, 8, 16, 32)   # tried by `--parallel auto`: beyond, cache and short data cost more than is won
_CACHE_SHARE = 0.4               # of the memory that is free, for keys and values


@dataclass(frozen=True)
class Ask:
    """A row to be asked, once for each seed."""

    key: Any
    row: Row
    seeds: tuple[int, ...]
    hint: bool = False


class Local:
    """A GGUF file's engine with the prefix that all rows' prompts share decoded."""

    def __init__(self, engine: Engine, source: Source, prompter: Prompter, rows: list[Row], *, parallel: int | None = None,
                 samples: int = 1, form: str | None = None, ctx_size: int | None = None, deterministic: bool = False,
                 hint: bool = False) -> None:
        """`parallel` None measures what pays. Raises `UsageError` when no row fits the context."""
        self.engine, self.prompter, self.task = engine, prompter, prompter.task
        self.form = form or (source.card.format if source.card else None) or (
            "chat" if engine.chat_template else "completion")
        self.template = Template(engine, self.form)
        # Prompts are made twice, once to plan and once to ask: kept, those of many rows would fill the memory.
        self.context = min(engine.trained_context, ctx_size or engine.trained_context)
        room = self.context - self.task.max_new_tokens
        self.too_long: dict[tuple[str, bool], int] = {}  # tokens of the prompt, by (row, whether it tells the label)
        lengths: list[int] = []

        def fitting() -> Iterator[tuple[int, ...]]:
            for row in rows:
                for told in (False, True) if hint and row.label is not None else (False,):
                    tokens = self.tokens(row, told)
                    if len(tokens) > room:
                        self.too_long[row.id, told] = len(tokens)
                        continue
                    lengths.append(len(tokens))
                    yield tokens

        prefix = common_prefix(fitting())
        if not lengths:
            raise UsageError(f"no row fits: prompt and answer exceed the context of {self.context} "
                             "tokens; raise --ctx-size or take a prompt with fewer examples (--prompt zero-shot)")
        self.prefix = prefix
        self.own = sum(lengths) / len(lengths) - len(prefix)
        self.longest = max(lengths) - len(prefix) + self.task.max_new_tokens
        wanted = parallel or (defaults.PARALLEL_DETERMINISTIC if deterministic else _WIDTHS[-1])
        # Deterministic, it must be the same after a kill: no reading of what memory is free now.
        self.slots = max(1, min(wanted, samples * len(rows), wanted if deterministic else self._affordable()))
        self.deterministic = "" if not deterministic else "one row at a time"
        self.prefix_seconds = engine.prepare(prefix, self.longest, self.slots, deterministic and self.slots > 1)
        if deterministic and self.slots > 1:
            if engine.is_independent():
                self.deterministic = "a row's logits do not depend on the others (tried here)"
            else:  # these kernels round by the shape of the batch
                self.slots = 1
                engine.prepare(prefix, self.longest, 1)
        self.step_seconds = engine.step_seconds()
        if parallel is None and not deterministic:
            self._choose_width()

    def ask(self, asks: Iterable[Ask], sampling: Sampling, soft_targets: int = 0) -> Iterator[Completion]:
        """A completion for each seed of each ask, as they end."""
        requests = (Request(ask.key, self.tokens(ask.row, ask.hint), ask.seeds) for ask in asks)
        return self.engine.generate(requests, sampling, self.task.max_new_tokens, self.prompter.stop(self.form), soft_targets)

    def tokens(self, row: Row, hint: bool = False) -> tuple[int, ...]:
        """The row's prompt."""
        return self.template.tokens(self.prompter.turns(row, hint))

    def score(self, row: Row, text: str, soft_targets: int) -> tuple[int, Any]:
        """(prompt tokens, records) of a text given as the answer to a row; the last record is of the end of text.

        No records, and the tokens of both, where prompt and text exceed the context.
        """
        tokens = (*self.engine.tokenize(text if self.form == "chat" else f" {text}", False, False), self.engine.end_token)
        prompt = self.tokens(row)
        length = len(prompt) + len(tokens)
        if length > self.context:
            return length, None
        if length - len(self.prefix) > self.longest:  # the data's rationales know nothing of max_new_tokens
            self.longest = length - len(self.prefix)
            self.engine.prepare(self.prefix, self.longest, 1)
        return len(prompt), self.engine.score(prompt, tokens, soft_targets)

    def plan(self) -> list[str]:
        """What a user wants to know before it begins."""
        how = f"{self.slots} at once, {self.engine.threads} threads"
        doubt = self.template.doubt
        return [*([f"  warning   {doubt}"] if doubt else []),
                f"  format    {self.form}; {len(self.prefix)} shared tokens decoded once, {self.own:.0f} more a row",
                f"  decoding  {how}" + (f"; deterministic: {self.deterministic}" if self.deterministic else "")]

    def estimate(self, samples: int, rows: int) -> float:
        """Seconds for `samples` samples of `rows` rows: the prefix's rate for prompts, a timed step for new tokens."""
        per_token = self.prefix_seconds / max(1, len(self.prefix))
        lengths = [len(self.engine.tokenize(e.rationale + e.answer, False, False)) for e in self.task.exemplars]
        new = 1.25 * sum(lengths) / len(lengths) + 6 if lengths else self.task.max_new_tokens / 2
        return rows * self.own * per_token + samples * new * self.step_seconds / self.slots

    def _affordable(self) -> int:
        """Sequences whose keys and values fit a share of the free memory."""
        return int((_CACHE_SHARE * _free_memory() / self.engine.cell_bytes - len(self.prefix)) // self.longest)

    def _choose_width(self) -> None:
        """The fewest sequences that come within 5 % of the best measured rate: a step's time does not grow evenly."""
        times = {width: self.engine.step_seconds(width) for width in _WIDTHS if width < self.slots}
        times[self.slots] = self.step_seconds
        fastest = max(width / seconds for width, seconds in times.items())
        self.slots = self.engine.slots = min(w for w, seconds in times.items() if w / seconds >= 0.95 * fastest)
        self.step_seconds = times[self.slots]


class Remote:
    """A server that is asked over HTTP. It applies its model's own chat template."""

    too_long: dict[tuple[str, bool], int] = {}  # a server says so when it is asked

    def __init__(self, server: Server, prompter: Prompter, form: str | None = None) -> None:
        self.server, self.prompter, self.task, self.form = server, prompter, prompter.task, form or "chat"
        self.slots = server.parallel

    def ask(self, asks: Iterable[Ask], sampling: Sampling, soft_targets: int = 0) -> Iterator[Completion]:
        """A completion for each seed of each ask, as they end."""
        requests = (Request(ask.key, self._prompt(ask), ask.seeds) for ask in asks)
        strings = ("\nQ:",) if self.form == "completion" else ()
        return self.server.generate(requests, sampling, self.task.max_new_tokens, self.prompter.stop(self.form), strings)

    def plan(self) -> list[str]:
        """What a user wants to know before it begins."""
        alone = "one at a time; deterministic as far as the server computes each prompt from its beginning"
        return [f"  format    {self.form}, sent to the server",
                f"  decoding  {f'up to {self.slots} requests at once' if self.server.cache else alone}"]

    def estimate(self, samples: int, rows: int) -> float | None:
        """Not known before the server has answered."""
        return None

    def _prompt(self, ask: Ask) -> Any:
        turns = self.prompter.turns(ask.row, ask.hint)
        return turns.messages() if self.form == "chat" else turns.text()


@contextmanager
def ready(source: Source, prompter: Prompter, rows: list[Row], *, threads: int, gpu_layers: int = 0,
          form: str | None = None, parallel: int | None = None, **options: Any) -> Iterator[Local | Remote]:
    """The teacher, loaded and planned for these rows; `options` are `Local`'s."""
    if source.server:
        yield Remote(source.server, prompter, form)
        return
    engine = Engine(source.path, threads=threads, gpu_layers=gpu_layers)
    try:
        yield Local(engine, source, prompter, rows, form=form, parallel=parallel, **options)
    finally:
        engine.close()


def _free_memory() -> float:
    """Bytes that programs may still take; where it cannot be read, 4 GB."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            match = re.search(r"^MemAvailable:\s*(\d+) kB", file.read(), re.MULTILINE)
        return int(match[1]) * 1024 if match else 4e9
    except OSError:
        try:
            return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):  # Windows
            return 4e9
