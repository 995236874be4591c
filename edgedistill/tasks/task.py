"""A task card as an object: prompts' raw material, and how an answer is parsed, verified and valued."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from edgedistill.errors import UsageError
from edgedistill.tasks import arithmetic
from edgedistill.tasks.data import Row

KINDS = ("equation", "number", "choice", "text")

_NUMBER = re.compile(r"[-−]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_EQUATION = re.compile(r"[-+*/^×÷−()\[\]$\d.,\s]+")
_GOES_ON = re.compile(r"\s*[*/^+×÷]+\s*[\d(.]")
TIMES = re.compile(r"(?<=[\d)\s])x(?=[\s(\d])")
_SENTENCE = re.compile(r"(.*?(?:\.(?=\s|$)|\n|$))(.*)", re.DOTALL)
_LETTER = re.compile(r"^\(?([a-z])\)(?:\s|$)|^([a-z])[.:]?$")


@dataclass(frozen=True)
class Exemplar:
    """A worked example for the teacher's prompt. `steps` is its rationale in executable form, where it has one."""

    input: str
    rationale: str
    answer: str
    steps: str = ""


@dataclass(frozen=True)
class Style:
    """How a question is put to the teacher: `[prompts.NAME]` in a card; teachers/README.md explains each key."""

    shots: int = 6
    pick: str = "first"
    order: str = "rationale-first"
    executable: bool = False
    instruction: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.shots, int) or self.shots < 0:
            raise ValueError(f"shots = {self.shots!r} must be a whole number of at least 0")
        if not isinstance(self.executable, bool) or not isinstance(self.instruction, str):
            raise ValueError("executable must be true or false, instruction a text")
        for name, known in (("pick", ("first", "similar")), ("order", ("rationale-first", "answer-first"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r} is neither {' nor '.join(known)}")


# What every card has; its own [prompts.NAME] are added, or take the place of one of these.
STYLES = {"few-shot": Style(), "zero-shot": Style(shots=0), "answer-first": Style(order="answer-first"),
          "similar": Style(pick="similar")}


@dataclass(frozen=True)
class Answer:
    """A parsed answer: its text in the task's own spelling, and the value by which answers are compared."""

    text: str
    value: str


@dataclass(frozen=True)
class Task:
    """A task card (`teachers/tasks/*.toml`); teachers/README.md explains each key. Lengths are in tokens."""

    name: str
    title: str
    kind: str
    instruction: str = ""
    data: str = ""
    answer_lead: str = "The answer is"
    choices: tuple[str, ...] = ()
    max_input_tokens: int = 256
    max_label_tokens: int = 32
    max_rationale_tokens: int = 128
    max_new_tokens: int = 160
    prompt: str = "few-shot"
    prompts: dict[str, Style] = field(default_factory=dict, repr=False)
    exemplars: tuple[Exemplar, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r} is none of {', '.join(KINDS)}")
        for name in ("max_input_tokens", "max_label_tokens", "max_rationale_tokens", "max_new_tokens"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be a whole number of at least 1")
        for name in ("title", "instruction", "data", "answer_lead"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} = {getattr(self, name)!r} must be a text")
        if not self.answer_lead.strip():
            raise ValueError(f"answer_lead = {self.answer_lead!r} must not be empty")
        if not all(isinstance(choice, str) and choice.strip() for choice in self.choices):
            raise ValueError(f"choices = {list(self.choices)!r} must be a list of texts")
        self.style()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_dict`. Raises `TypeError` or `ValueError` on unknown keys and bad values."""
        if not isinstance(data.get("choices", ()), (list, tuple)):
            raise ValueError(f"choices = {data['choices']!r} must be a list of texts")
        exemplars = tuple(Exemplar(**item) for item in data.get("exemplars", ()))
        if not isinstance(data.get("prompts", {}), dict):
            raise ValueError("prompts must be tables: [prompts.NAME]")
        prompts = {name: Style(**item) for name, item in data.get("prompts", {}).items()}
        return cls(**{**data, "choices": tuple(data.get("choices", ())), "prompts": prompts, "exemplars": exemplars})

    def to_dict(self, exemplars: bool = True) -> dict[str, Any]:
        """Plain data for a manifest or a bundle (the device has no use for what only the teacher sees)."""
        data = dataclasses.asdict(self)
        if not exemplars:
            del data["exemplars"], data["prompts"], data["prompt"]
        return data

    def styles(self) -> dict[str, Style]:
        """All ways to put the question, by name."""
        return {**STYLES, **self.prompts}

    def style(self, name: str | None = None) -> Style:
        """The style called `name`, by default the card's own `prompt`. Raises `ValueError` for an unknown one."""
        name, known = name or self.prompt, self.styles()
        if name not in known:
            raise ValueError(f"there is no prompt {name!r}; this task has {', '.join(known)}")
        return known[name]

    def question(self, row: Row) -> str:
        """The row's input; choices that differ by row are listed where the text does not name them."""
        if not row.choices or self.choices or all(choice in row.input for choice in row.choices):
            return row.input
        listed = "\n".join(f"({chr(97 + i)}) {choice}" for i, choice in enumerate(row.choices))
        return f"{row.input}\nAnswer Choices:\n{listed}"

    def split(self, completion: str) -> tuple[str, str | None]:
        """A teacher's completion as (rationale, answer text); the answer is None where the lead is missing.

        The answer may come first, the rationale after it. A reasoning model's thoughts, up to </think>, are left out.
        """
        completion = completion.rpartition("</think>")[2].strip()
        if completion.startswith(self.answer_lead):
            answer, rationale = _SENTENCE.match(completion.removeprefix(self.answer_lead).lstrip(" :\n")).groups()
            return rationale.strip(), answer.strip()
        head, lead, tail = completion.rpartition(self.answer_lead)
        if not lead:
            return completion, None
        return head.strip(), tail.strip().split("\n")[0].strip(" :")

    def parse(self, text: str | None, choices: tuple[str, ...] = ()) -> Answer | None:
        """The answer that `text` states, in the task's spelling, or None where it states none."""
        if not text or not text.strip():
            return None
        if self.kind == "equation":
            return _equation(text)
        if self.kind == "number":
            return _number(text)
        if self.kind == "choice":
            return _choice(text, choices or self.choices)
        plain = " ".join(text.split()).rstrip(".")
        return Answer(plain, plain.lower())

    def label(self, row: Row) -> Answer | None:
        """The row's gold label as an answer, None for a row without one. Raises `UsageError` if it is unreadable."""
        if row.label is None:
            return None
        answer = self.parse(row.label, row.choices)
        if answer is None:
            raise UsageError(f"row {row.id}: label {row.label!r:.60} is no answer of kind {self.kind}; take a card of "
                             "another kind (--task) or mend the label")
        return answer

    def same(self, a: Answer | None, b: Answer | None) -> bool:
        """Whether two answers agree: numbers up to rounding, texts exactly (in lower case)."""
        if a is None or b is None:
            return False
        if self.kind in ("equation", "number"):
            return arithmetic.equal(Fraction(a.value), Fraction(b.value))
        return a.value == b.value


def _value(value: Fraction) -> str:
    """Exact where it can be: `42`, `2.5`, `8/3` (readable by `Fraction`)."""
    text = arithmetic.show(value)
    return text if Fraction(text) == value else f"{value.numerator}/{value.denominator}"


def _bare(run: str) -> str:
    """Arithmetic without the punctuation and the Markdown around it."""
    return run.strip(" .,\n").removeprefix("**").removesuffix("**").strip(" .,\n")


def _equation(text: str) -> Answer | None:
    # "( 3 + 4 ) = 7 apples." -> "( 3 + 4 )": the longest arithmetic run before an equals sign.
    left = TIMES.sub("*", text[: 4 * arithmetic.MAX_CHARACTERS]).split("=")[0]
    runs = [_bare(run) for run in _EQUATION.findall(left) if any(c.isdigit() for c in run)]
    for run in sorted(runs, key=len, reverse=True):
        try:
            return Answer(arithmetic.normalise(run), _value(arithmetic.evaluate(run)))
        except arithmetic.NotArithmetic:
            continue
    return None


def _number(text: str) -> Answer | None:
    # In "3 * 4 = 12 dollars" the number after the last equals sign is the answer, else the first one.
    tail = text.rpartition("=")[2]
    match = _NUMBER.search(tail)
    if not match:
        return None
    stated = match[0]
    if _GOES_ON.match(tail, match.end()):  # "1/2" is a half, "9**9**9" is nothing
        stated = _bare(_EQUATION.match(tail, match.start())[0])
    try:
        value = arithmetic.evaluate(stated)
    except arithmetic.NotArithmetic:
        return None
    return Answer(arithmetic.show(value), _value(value))


def _choice(text: str, choices: tuple[str, ...]) -> Answer | None:
    plain = " ".join(text.lower().split()).strip(" .\"'")
    letter = _LETTER.match(plain)
    if letter and ord(letter[1] or letter[2]) - 97 < len(choices):
        choice = choices[ord(letter[1] or letter[2]) - 97]
        return Answer(choice, choice.lower())
    exact = [choice for choice in choices if choice.lower() == plain]
    # Longest first and taken out of the text, so that "river bank" is not read as "bank" too. A negated one is none.
    inside = []
    for choice in sorted(choices, key=len, reverse=True):
        plain, n = re.subn(rf"(?<!\w)(?<!\bnot ){re.escape(choice.lower())}(?!\w)", "|", plain)
        inside += [choice] if n else []
    found = exact or (inside if len(inside) == 1 else [])
    return Answer(found[0], found[0].lower()) if found else None
