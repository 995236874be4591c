"""Rows continued side by side say what each says alone, by transformers' own generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_students
import torch

from edgedistill import defaults
from edgedistill.train import decode, stacks
from edgedistill.train.students import Student

ASKED = [f"Ann has {n} pens and buys {'many ' * (n % 5)}more." for n in range(2, 13)]
LIMIT = 20


def talkative(family: str = "llama", **more) -> Student:
    """A student that says more than one word, and of whose answers some end early by the end-of-text token it is given."""
    for seed in range(20):  # the tokenizer's pieces differ from run to run, and with them what is said
        student, chance = tiny_students.decoder(family, **more), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in student.model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=chance)
        endless = theirs(student)
        lengths = {token: {ids.index(token) if token in ids else LIMIT for ids in endless}
                   for token in {token for ids in endless for token in ids}}
        token = max(lengths, key=lambda token: (LIMIT in lengths[token], len(lengths[token])))
        if LIMIT in lengths[token] and len(lengths[token]) > 3:
            break
    student.format = replace(student.format, eos_id=token)
    return student


def theirs(student: Student) -> list[list[int]]:
    """What transformers' generate says to each question alone."""
    return [tiny_students.theirs(student, text, LIMIT) for text in ASKED]


@pytest.mark.parametrize(("family", "more"), [
    ("llama", {}), ("llama", {"tied": False}), ("qwen2", {}), ("mistral", {}), ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8})])
@pytest.mark.parametrize("most", [1, 3, 4, 64])
def test_the_same_tokens_as_transformers_whoever_goes_beside(family: str, more: dict, most: int, monkeypatch) -> None:
    student = talkative(family, **more)
    monkeypatch.setattr(decode, "ROOM", 8)  # so that the places grow
    assert student.generate(ASKED, max_new_tokens=LIMIT, batch_size=most) == theirs(student)


def test_linear_chains_are_continued_too() -> None:
    student = tiny_students.chained(tiny_students.decoder())
    alone = [student.generate([text], max_new_tokens=LIMIT)[0] for text in ASKED]
    assert student.generate(ASKED, max_new_tokens=LIMIT, batch_size=4) == alone


def test_who_has_ended_makes_room_for_the_next(monkeypatch) -> None:
    student = talkative()
    passes, llama = [], stacks.llama

    def counted(model, batch, *args, **more):
        passes.append(len(batch["at"]))
        return llama(model, batch, *args, **more)

    monkeypatch.setattr(stacks, "llama", counted)
    lengths = [len(ids) for ids in student.generate(ASKED, max_new_tokens=LIMIT, batch_size=4)]
    together = sum(max(lengths[at:at + 4]) for at in range(0, len(lengths), 4))
    assert max(passes) == 4 and len(passes) < together + 3, (passes, lengths)
    assert passes[-1] < 4  # at the end nobody's place is computed but for those that go on


def test_places_and_questions_read_at_once_are_bounded(monkeypatch) -> None:
    student = talkative()
    whole = student.generate(ASKED, max_new_tokens=LIMIT)
    passes, llama = [], stacks.llama

    def counted(model, batch, *args, **more):
        passes.append((len(batch["ids"]), len(batch["at"])))
        return llama(model, batch, *args, **more)

    monkeypatch.setattr(stacks, "llama", counted)
    longest = max(len(student.format.encode_source(student.rust, text, "label")) for text in ASKED)
    monkeypatch.setattr(defaults, "ANSWERED_PLACES", 3 * (longest + LIMIT) + 1)
    monkeypatch.setattr(defaults, "ANSWERED_TOKENS", 2 * longest)
    assert student.generate(ASKED, max_new_tokens=LIMIT) == whole
    assert max(rows for _, rows in passes) == 3 and max(tokens for tokens, _ in passes) <= 2 * longest


def test_nothing_asked_and_one_token() -> None:
    student = talkative()
    assert student.generate([]) == []
    assert student.generate(ASKED, max_new_tokens=1) == [ids[:1] for ids in student.generate(ASKED, max_new_tokens=LIMIT)]


def test_samples_differ_and_are_the_same_again() -> None:
    student = talkative()

    def sampled(temperature: float) -> list[list[int]]:
        torch.manual_seed(3)
        return student.generate(ASKED[:2], samples=4, temperature=temperature, max_new_tokens=LIMIT)

    found = sampled(1.0)
    assert len(found) == 8 and len({tuple(ids) for ids in found}) > 4 and found == sampled(1.0)
    first, second = student.generate(ASKED[:2], max_new_tokens=LIMIT)
    assert sampled(1e-4) == [first] * 4 + [second] * 4


def test_under_autocast_products_and_places_are_bf16(monkeypatch) -> None:
    student, kinds, llama = talkative(), set(), stacks.llama

    def seen(model, batch, weights, **more):
        kinds.add(weights.dtype)
        return llama(model, batch, weights, **more)

    monkeypatch.setattr(stacks, "llama", seen)
    exact = student.generate(ASKED, max_new_tokens=LIMIT)
    with torch.autocast("cpu", torch.bfloat16):
        found = student.generate(ASKED, max_new_tokens=LIMIT)
    assert kinds == {torch.float32, torch.bfloat16}
    assert sum(a[:1] == b[:1] for a, b in zip(exact, found, strict=True)) > len(ASKED) / 2
