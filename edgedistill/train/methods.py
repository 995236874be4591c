"""What each method trains on. Every method sees the same questions; they differ in the targets.

| method | label target | rationale target |
|---|---|---|
| finetune | the gold label | - |
| seq-kd | the teacher's answer, right or wrong | - |
| step-by-step | the gold label, or the teacher's answer where there is none | the teacher's, where verified |
| single-task | the rationale where verified, then the answer, as one text (the ablation of Hsieh et al., eq. 5) | - |
| specialize | as single-task or the answer alone, with worked examples before the question or without (Fu et al.) | - |
| logit-kd | as step-by-step's, with the mentor's distribution beside it | - |
| reparam | as step-by-step's (what differs is the model) | - |
| hybrid | as step-by-step's, with fresh numbers (resample.py) or of the student's own (selftrain.py) | as step-by-step's |

hybrid may have the questions in other words too (reworded.py), with labels alone. Where there is no label, what is made of the
teacher's answer counts in it as much as the teacher is of one mind: the share of its samples that come to that answer.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from edgedistill import defaults
from edgedistill.edge.format import PREFIXES
from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import majority
from edgedistill.tasks.task import Task
from edgedistill.train import reworded

METHODS = ("finetune", "seq-kd", "step-by-step", "single-task", "specialize", "logit-kd", "reparam", "hybrid")
TWO_TASKS = ("step-by-step", "hybrid")  # label and rationale by a prefix each
MENTORED = ("logit-kd", "hybrid")       # may learn from a larger student's distribution
CHAINS = ("single-task", "specialize")  # the student writes its reasons before its answer
GOLD_ONLY = ("finetune", "logit-kd", "reparam")  # no corpus is needed where the rows have labels
FORMATS = ("zero-shot", "zero-shot-answer", "in-context", "in-context-answer")
_ANSWER_ONLY = "answer: "               # the prefix of questions whose answer is wanted without reasons


@dataclass(frozen=True)
class Target:
    """A text to be learned. `part` says which loss it belongs to, `sample` which of the teacher's texts it is made of,
    `source` what is read instead of the question with its prefix, `share` how often it is drawn among its slot's."""

    part: str
    text: str
    sample: int | None = None
    source: str | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Question:
    """One question. Of each slot a step draws one target; `label` is the answer that the question is to have, and `weight` how
    often its tokens count."""

    id: str
    text: str
    label: str
    slots: tuple[tuple[Target, ...], ...]
    weight: float = 1.0

    def targets(self) -> list[Target]:
        return [target for slot in self.slots for target in slot]


def questions(method: str, task: Task, rows: list[Row], corpus: list[dict[str, Any]],
              shares: dict[str, float] | None = None, rationales: bool = True,
              other_words: dict[str, list[dict[str, Any]]] | None = None) -> list[Question]:
    """The training questions of `method`, in the rows' order; `shares` of FORMATS are for specialize, hybrid may go without
    `rationales` and have `other_words` (reworded.read), each text a question of its own behind its row's.

    Raises `UsageError` when none has a target.
    """
    if method not in METHODS:
        raise UsageError(f"--method {method}: known methods are {', '.join(METHODS)}")
    if method not in (*GOLD_ONLY, "hybrid") and not corpus:
        raise UsageError(f"--method {method} needs rationales: run edgedistill teach first, name the column of --data that "
                         "holds them (--column rationale=NAME), or train with --method finetune")
    taught: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in corpus:
        taught[entry["id"]].append(entry)
    made = []
    for row in rows:
        gold = task.label(row)
        if gold and method != "seq-kd":
            label, sure = gold.text, 1.0
        elif method == "finetune" or not (voted := vote(task, row, taught[row.id])):
            continue
        else:
            label, sure = voted
        trusted = _trusted(task, row, taught[row.id], label) if method not in (*GOLD_ONLY, "seq-kd") else []
        slots: tuple[tuple[Target, ...], ...] = ((Target("label", label),),)
        if method in TWO_TASKS and trusted and rationales:
            slots += (tuple(Target("rationale", text, sample) for sample, text in trusted),)
        elif method in CHAINS:
            answer = f"{task.answer_lead} {label}"
            slots = (tuple(Target("label", f"{text} {answer}", sample) for sample, text in trusted)
                     or (Target("label", answer),),)
        weight = sure if method == "hybrid" else 1.0
        made.append(Question(row.id, task.question(row), label, slots, weight))
        made += [Question(f"{row.id}-reworded-{n}", text, label, ((Target("label", label),),), weight)
                 for n, text in enumerate(reworded.texts(task, row, label, (other_words or {}).get(row.id, ())), 1)]
    if not made:
        raise UsageError(f"--method {method}: no question has a target; "
                         + ("the rows have no labels" if method == "finetune" or not corpus else "the teacher answered none"))
    return _formats(made, task, shares or defaults.FORMATS) if method == "specialize" else made


def given(task: Task, rows: list[Row]) -> list[dict[str, Any]]:
    """A corpus of the rationales that the rows bring: wrong where what they state is not the label."""
    made = []
    for row in rows:
        if row.rationale:
            gold, stated = task.label(row), task.parse(row.stated, row.choices)
            answer = stated or (gold if row.stated is None else None)
            verdict = ("unparsed" if answer is None else "unlabelled" if gold is None
                       else "verified" if task.same(answer, gold) else "wrong")
            made.append({"id": row.id, "sample": 0, "input": row.input, "label": row.label, "rationale": row.rationale,
                         "answer": answer.text if answer else None, "verdict": verdict, "finish_reason": "given"})
    return made


def _trusted(task: Task, row: Row, entries: list[dict[str, Any]], label: str) -> list[tuple[int, str]]:
    """(sample, rationale) of the verified ones; without a gold label those of the answer that won the vote."""
    winner = task.parse(label, row.choices)
    return [(entry.get("sample", 0), entry["rationale"]) for entry in entries if entry["rationale"] and (
        entry["verdict"] == "verified" or (entry["verdict"] == "unlabelled"
                                           and task.same(task.parse(entry["answer"], row.choices), winner)))]


def _formats(made: list[Question], task: Task, shares: dict[str, float]) -> list[Question]:
    """Each question in the four formats (Fu et al. 2023): reasons or the answer alone, worked examples before it or not.

    The examples are other training questions with reasons, drawn once for a question.
    """
    worked = [q for q in made if q.slots[0][0].sample is not None]
    found = []
    for q in made:
        rng = random.Random(f"examples-{q.id}")
        before = [other for other in rng.sample(worked, min(len(worked), defaults.SHOTS + 1)) if other.id != q.id]
        answer = f"{task.answer_lead} {q.label}"
        targets = []
        for name, share in shares.items():
            chain = not name.endswith("answer")
            # Where no text of the teacher's is right, only the answer can be learned.
            texts = q.slots[0] if chain and q.slots[0][0].sample is not None else (Target("label", answer),)
            prefix = None if chain and texts[0].sample is not None else _ANSWER_ONLY
            shown = before[: defaults.SHOTS] if name.startswith("in-context") else []
            source = _source(q, prefix, shown, task) if prefix or shown else None
            targets += [Target("label", t.text, t.sample, source, share / len(texts)) for t in texts]
        found.append(Question(q.id, q.text, q.label, (tuple(t for t in targets if t.share > 0),)))
    return found


def _source(question: Question, prefix: str | None, shown: list[Question], task: Task) -> str:
    lead = prefix or PREFIXES["label"]
    told = [f"{lead}{q.text}\n{q.slots[0][0].text if prefix is None else f'{task.answer_lead} {q.label}'}\n\n" for q in shown]
    return "".join(told) + lead + question.text


def vote(task: Task, row: Row, entries: list[dict[str, Any]]) -> tuple[str, float] | None:
    """(the teacher's answer to a row, the share of its samples that come to it): the most frequent value, the earliest among
    equals. A sample without an answer agrees with none.

    Samples that were told the label are left out, given rationales that state no answer of their own among them.
    """
    told = () if row.stated else ("scored", "given")
    answers = [entry["answer"] and task.parse(entry["answer"], row.choices) for entry in entries if not entry.get("hint")
               and entry.get("finish_reason") not in told]
    best = majority([answer.value for answer in answers if answer])
    agreed = [answer.text for answer in answers if answer and answer.value == best]
    return (agreed[0], len(agreed) / len(answers)) if agreed else None
