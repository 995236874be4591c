"""From a task card and a row to what the teacher reads: chat turns, plain text, or tokens of a GGUF model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgedistill.errors import UsageError, need
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Exemplar, Style, Task
from edgedistill.teach.completion import Messages
from edgedistill.teach.llama import Llama
from edgedistill.teach.similar import Similar


@dataclass(frozen=True)
class Turns:
    """A prompt before it has a form: instruction, worked examples as (question, answer), the question."""

    instruction: str
    examples: tuple[tuple[str, str], ...]
    question: str

    def messages(self, fold: bool = False) -> Messages:
        """Chat turns. `fold` opens the first question with the instruction, for models without a system role."""
        turns = [turn for question, answer in self.examples
                 for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})]
        turns.append({"role": "user", "content": self.question})
        if fold and self.instruction:
            turns[0] = {"role": "user", "content": f"{self.instruction}\n\n{turns[0]['content']}"}
        elif self.instruction:
            turns.insert(0, {"role": "system", "content": self.instruction})
        return tuple(turns)

    def text(self) -> str:
        """Plain text to continue, for base models."""
        worked = [f"Q: {question}\nA: {answer}" for question, answer in self.examples]
        return "\n\n".join([self.instruction, *worked, f"Q: {self.question}\nA:"]).lstrip()


# Not the stop of "St. Louis" or "Mrs. Hall".
_FULL_STOP = r"(?<!\bSt)(?<!\bMt)(?<!\bFt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bJr)(?<!\bSr)(?<!\bvs)\."


class Prompter:
    """Puts the rows of a task in one style.

    `pool` is what a style that picks similar examples takes them from: by default the card's own.
    """

    def __init__(self, task: Task, style: Style, pool: tuple[Exemplar, ...] | None = None) -> None:
        """Raises `UsageError` when the style needs worked examples that there are not."""
        self.task, self.style = task, style
        own = task.exemplars if pool is None or style.pick == "first" else pool
        self.pool = [e for e in own if not style.executable or _executable(e)]
        if style.executable and style.shots and not self.pool:
            raise UsageError(f"the task {task.name} has no exemplar with steps, which an executable prompt shows; add "
                             "`steps` to its [[exemplars]] or give --prompt few-shot")
        self._similar = Similar([e.input for e in self.pool]) if style.pick == "similar" else None

    def turns(self, row: Row, hint: bool = False) -> Turns:
        """The prompt of a row. `hint` tells the label and asks for the reasoning alone."""
        question = self.task.question(row)
        if self._similar:  # never the row itself
            chosen = self._similar.best(question, self.style.shots, lambda i: self.pool[i].input == question)
        else:
            chosen = range(min(self.style.shots, len(self.pool)))
        examples = tuple((self.pool[i].input, self._answer(self.pool[i])) for i in chosen)
        if hint:
            question = f"{question}\n(It is known that the answer is {self.task.label(row).text}. Show why.)"
        return Turns((self.style.instruction or self.task.instruction).strip(), examples, question)

    def stop(self, form: str) -> re.Pattern[str]:
        """Where a completion is over: after the stated answer, and in plain text at the next question."""
        answered = rf"{re.escape(self.task.answer_lead)}[^\n]*?(?:{_FULL_STOP}(?=\s)|\n)"
        ends = [answered] if self.style.order == "rationale-first" else []
        if form == "completion":
            ends.append(r"\n\s*(?:Q:|\n)")
        if not ends:
            return re.compile(r"(?!)")
        # A reasoning model's thoughts state answers too: what stands between its marks ends nothing.
        return re.compile(rf"\A(?:<think>(?:(?!</think>)[\s\S])*</think>|(?!<think>)[\s\S])*?(?:{'|'.join(ends)})")

    def _answer(self, example: Exemplar) -> str:
        rationale = example.steps or example.rationale if self.style.executable else example.rationale
        stated = f"{self.task.answer_lead} {example.answer}."
        return f"{rationale} {stated}" if self.style.order == "rationale-first" else f"{stated} {rationale}"


class Template:
    """A GGUF model's way to read a prompt: its own chat template, or plain text."""

    def __init__(self, model: Llama, form: str) -> None:
        """`form` is "chat" or "completion". Raises `UsageError` when the model's template cannot be rendered."""
        self.model, self.form, self._fold = model, form, False
        if form != "chat":
            return
        if not model.chat_template:
            raise UsageError("this GGUF has no chat template; use a card with format = \"completion\" or give "
                             "--format completion")
        try:
            self._template = _sandbox().from_string(model.chat_template)
        except Exception as error:
            raise _broken(error) from error
        # Some templates refuse a system message (Gemma's) or leave it out: the instruction then opens the first question.
        probe = Turns("7319", (("4821", "5932"),), "6043")
        try:
            self._fold = probe.instruction not in self.text(probe)
        except UsageError:
            self._fold = True
        read = self.text(probe)
        places = [read.find(part) for part in (*probe.examples[0], probe.question)]
        if -1 in places or places != sorted(places):
            raise UsageError("the model's chat template leaves out what it is told, as another model's may; give --format "
                             "completion, or a GGUF file with its own template")

    @property
    def doubt(self) -> str | None:
        """Why the template may be another model's: it writes control tokens that this one reads as plain text."""
        if self.form != "chat":
            return None
        text = self.text(Turns("", (), "?"))
        marks = set(re.findall(r"<[|｜][^<>]{1,30}[|｜]>|<(?:start|end)_of_turn>", text))
        unknown = [mark for mark in sorted(marks) if len(self.model.tokenize(mark, False, True)) > 1]
        return (f"the chat template's {unknown[0]} is no token of this model; compare with --format completion"
                if unknown else None)

    def text(self, turns: Turns) -> str:
        """The prompt up to where the teacher's rationale begins."""
        if self.form != "chat":
            return turns.text()
        try:
            return self._template.render(
                messages=[dict(turn) for turn in turns.messages(self._fold)], add_generation_prompt=True, tools=None,
                bos_token=self.model.special("bos"), eos_token=self.model.special("eos"))
        except Exception as error:  # a stranger's program: it may raise anything, 1 / 0 too
            raise _broken(error) from error

    def tokens(self, turns: Turns) -> tuple[int, ...]:
        """The prompt as token ids. A rendered chat template holds its own control tokens, plain text gets BOS."""
        text = self.text(turns)
        if self.form == "chat":
            bos = self.model.special("bos")
            # The template wrote the BOS already, or the model wants none: never two.
            return self.model.tokenize(text, add_special=not (bos and text.startswith(bos)), parse_special=True)
        return self.model.tokenize(text, add_special=True, parse_special=False)


def _executable(example: Exemplar) -> bool:
    return bool(example.steps) or "=" in example.rationale


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
