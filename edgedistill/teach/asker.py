"""A loaded teacher that is ready to be asked the rows of a task."""

from __future__ import annotations

from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.teach.engine import Engine, common_prefix
from edgedistill.teach.prompts import Prompter
from edgedistill.teach.source import Source


class Asker:
    """A teacher's engine with the prompts of all rows, the prefix that they share decoded."""

    def __init__(self, source: Source, task: Task, rows: list[Row], *, parallel: int, threads: int, samples: int = 1,
                 gpu_layers: int = 0, form: str | None = None, ctx_size: int | None = None) -> None:
        self.task = task
        self.engine = Engine(source.path, threads=threads, gpu_layers=gpu_layers)
        self.form = form or (source.card.format if source.card else None) or (
            "chat" if self.engine.chat_template else "completion")
        prompter = Prompter(self.engine, task, self.form)
        self.stop = prompter.stop
        self.prompts = {row.id: prompter.tokens(task.question(row)) for row in rows}
        room = min(self.engine.trained_context, ctx_size or self.engine.trained_context) - task.max_new_tokens
        self.too_long = {identity for identity, tokens in self.prompts.items() if len(tokens) > room}
        fitting = [tokens for identity, tokens in self.prompts.items() if identity not in self.too_long]
        if not fitting:
            raise UsageError(f"no row fits: prompt and answer exceed the context of {room + task.max_new_tokens} "
                             "tokens; raise --ctx-size or take fewer exemplars in the task card")
        # A single row shares everything with itself; leave it a token, as common_prefix does.
        self.prefix = common_prefix(fitting)
        self.longest = max(map(len, fitting)) - len(self.prefix) + task.max_new_tokens
        self.slots = min(parallel, samples * len(fitting))
        self.prefix_seconds = self.engine.prepare(self.prefix, self.longest, self.slots)

    def estimate(self, samples: int) -> float:
        """Seconds for `samples` samples: the prefix's rate for prompts, a timed step for new tokens."""
        per_token = self.prefix_seconds / max(1, len(self.prefix))
        own = sum(len(tokens) - len(self.prefix) for tokens in self.prompts.values()) / len(self.prompts)
        lengths = [len(self.engine.tokenize(e.rationale + e.answer, False, False)) for e in self.task.exemplars]
        new = 1.25 * sum(lengths) / len(lengths) + 6 if lengths else self.task.max_new_tokens / 2
        return samples * (own * per_token + new * self.engine.step_seconds() / self.slots)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
