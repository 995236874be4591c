"""From a task card and a row to the teacher's prompt: the model's own chat template, or plain completion text."""

from __future__ import annotations

import re
from typing import Any

from edgedistill.errors import UsageError, need
from edgedistill.tasks.task import Task
from edgedistill.teach.engine import Engine


class Prompter:
    """Renders prompts for one model and one task."""

    def __init__(self, engine: Engine, task: Task, form: str) -> None:
        """`form` is "chat" or "completion". Raises `UsageError` when the model's template cannot be rendered."""
        self.engine, self.task, self.form = engine, task, form
        if form == "chat":
            template = engine.chat_template
            if not template:
                raise UsageError("this GGUF has no chat template; use a card with format = \"completion\" or give "
                                 "--format completion")
            sandbox, self._fold = _sandbox(), False
            try:
                self.template = sandbox.from_string(template)
            except Exception as error:
                raise _broken(error) from error
            # Some templates refuse a system message (Gemma's) or leave it out: the instruction then opens the first
            # question.
            try:
                self._fold = task.instruction.strip() not in self.text("?")
            except UsageError:
                self._fold = True
                self.text("?")

    def text(self, question: str) -> str:
        """The prompt for one question, up to where the teacher's rationale begins."""
        return self._chat(question) if self.form == "chat" else self._completion(question)

    def tokens(self, question: str) -> tuple[int, ...]:
        """The prompt as token ids. A rendered chat template holds its own control tokens, plain text gets BOS."""
        text = self.text(question)
        if self.form == "chat":
            bos = self.engine.special("bos")
            # The template wrote the BOS already, or the model wants none: never two.
            return self.engine.tokenize(text, add_special=not (bos and text.startswith(bos)), parse_special=True)
        return self.engine.tokenize(text, add_special=True, parse_special=False)

    @property
    def stop(self) -> re.Pattern[str]:
        """Where a completion is over: after the stated answer, and in plain text at the next question."""
        answered = rf"{re.escape(self.task.answer_lead)}[^\n]*?(?:\.(?=\s)|\n)"
        return re.compile(answered if self.form == "chat" else rf"{answered}|\n\s*(?:Q:|\n)")

    def _answer(self, rationale: str, answer: str) -> str:
        return f"{rationale} {self.task.answer_lead} {answer}."

    def _chat(self, question: str) -> str:
        messages = []
        instruction = self.task.instruction.strip()
        if not self._fold and instruction:
            messages.append({"role": "system", "content": instruction})
        for example in self.task.exemplars:
            messages += [{"role": "user", "content": example.input},
                         {"role": "assistant", "content": self._answer(example.rationale, example.answer)}]
        messages.append({"role": "user", "content": question})
        if self._fold and instruction:
            messages[0] = {"role": "user", "content": f"{instruction}\n\n{messages[0]['content']}"}
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, tools=None,
                                        bos_token=self.engine.special("bos"), eos_token=self.engine.special("eos"))
        except Exception as error:  # a stranger's program: it may raise anything, 1 / 0 too
            raise _broken(error) from error

    def _completion(self, question: str) -> str:
        worked = [f"Q: {e.input}\nA: {self._answer(e.rationale, e.answer)}" for e in self.task.exemplars]
        return "\n\n".join([self.task.instruction.strip(), *worked, f"Q: {question}\nA:"]).lstrip()


def _broken(error: Exception) -> UsageError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return UsageError(f"the model's chat template cannot be rendered ({reason}); give --format completion")


def _sandbox() -> Any:
    """Jinja without access to anything: a template comes from a file that a stranger made."""
    need("jinja2", "teach")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    # A fixed date keeps prompts the same from day to day.
    env.globals.update(raise_exception=refuse, strftime_now=lambda form: "2026-01-01")
    return env
