from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_students
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, log_softmax

from edgedistill import defaults, machine
from edgedistill.errors import Error, UsageError
from edgedistill.runs import read_json, sha256, write_json
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.train import objectives, packed, students, train
from edgedistill.train.batches import Batcher
from edgedistill.train.methods import Question, Target, given, questions, vote
from edgedistill.train.students import Branch, Encoded
from edgedistill.train.trainer import Loss, last_checkpoint, model_inputs, optimizer

FAMILIES = {"t5": tiny_students.t5, "flan": lambda: tiny_students.t5(gated=True, tied=False), "llama": tiny_students.decoder,
            "qwen2": lambda: tiny_students.decoder("qwen2"), "chain": lambda: tiny_students.chained(tiny_students.decoder())}
RATIONALES = {"a": ("3 and 4 more are 3 + 4.",), "c": ("There are 6 boxes with 7 pens, so 6 * 7.",)}


def asked(rationales: dict[str, tuple[str, ...]] = RATIONALES) -> list[Question]:
    texts = {"a": ("Tom has 3 apples and buys 4 more. How many has he?", "( 3 + 4 )"),
             "b": ("5 of 9 birds fly away. How many stay?", "( 9 - 5 )"),
             "c": ("Each of 6 boxes holds 7 pens. How many pens are there in all of the boxes?", "( 6 * 7 )")}
    return [Question(name, text, label, ((Target("label", label),), *(
        (tuple(Target("rationale", r, i) for i, r in enumerate(rationales[name])),) if name in rationales else ())))
        for name, (text, label) in texts.items()]


def student_of(family: str, shared: bool):
    student = FAMILIES[family]()
    student.set_task(tiny_students.TASK, shared=shared)
    return student


def batcher_of(student, questions: list[Question] | None = None, **settings) -> Batcher:
    return Batcher(student, questions or asked(), **{"batch_tokens": 10_000, **settings})


def loss_of(student, batch: dict, loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's loss and its parts, as the trainer adds them up."""
    coefficients = loss.coefficients(batch["counts"])
    total, parts = 0.0, torch.zeros(2)
    for micro in batch["micro"]:
        one, part = loss(student.hidden(model_inputs(micro)), student.head, micro, coefficients)
        total, parts = total + one, parts + part
    return total, parts / batch["counts"]


def by_hand(student, question: Question, target: Target) -> torch.Tensor:
    """Token losses of one target from a forward pass of its own through the model's usual interface, without padding."""
    source = student.format.encode_source(student.rust, question.text, target.part)
    opening = student.format.opening(student.rust, target.part)
    ids = student.format.encode_target(student.rust, target.text, target.part)
    if student.family == "t5":
        logits = student.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([opening + ids[:-1]])).logits[0]
        logits = logits[len(opening) - 1:]
    else:
        logits = student.model(input_ids=torch.tensor([source + opening + ids])).logits[0][len(source + opening) - 1:-1]
    return cross_entropy(logits, torch.tensor(ids), reduction="none")


FORMS = [(family, shared) for family in FAMILIES for shared in (False, True)]


@pytest.mark.parametrize(("family", "shared"), FORMS)
@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_step_by_step_is_alpha_label_plus_the_rest_rationale(family: str, shared: bool, weighting: str) -> None:
    student = student_of(family, shared)
    batch = batcher_of(student, weighting=weighting)([0, 1, 2])
    loss, parts = loss_of(student, batch, Loss(alpha=0.3))
    losses = {part: [by_hand(student, q, t) for q in asked() for t in q.targets() if t.part == part]
              for part in ("label", "rationale")}
    label, rationale = (torch.cat(each).mean() if weighting == "token" else torch.stack([x.mean() for x in each]).mean()
                        for each in (losses["label"], losses["rationale"]))
    assert torch.allclose(parts, torch.stack([label, rationale]), atol=1e-5)
    assert torch.allclose(loss, 0.3 * label + 0.7 * rationale, atol=1e-5)


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_a_question_counts_by_its_weight_with_fresh_numbers_too(weighting: str) -> None:
    student, weights = student_of("llama", False), (1.0, 0.25, 0.6)
    made = [replace(q, slots=q.slots[:1], weight=weight) for q, weight in zip(asked(), weights, strict=True)]
    for resample in (0.0, 1.0):
        batch = batcher_of(student, made, weighting=weighting, resample=resample)([0, 1, 2])
        micro, = batch["micro"]
        units = [micro["unit"][micro["example"] == n] for n in micro["example"].unique()]
        assert sorted(float(its[0]) * (len(its) if weighting == "sequence" else 1) for its in units) == pytest.approx(
            sorted(weights)) and all(len(set(its.tolist())) == 1 for its in units)
        assert batch["counts"][0] == pytest.approx(float(micro["unit"].sum()))
    loss, _ = loss_of(student, batcher_of(student, made, weighting="sequence")([0, 1, 2]), Loss(alpha=1.0))
    each = torch.stack([by_hand(student, q, q.slots[0][0]).mean() for q in made])
    assert torch.allclose(loss, (each * torch.tensor(weights)).sum() / sum(weights), atol=1e-5)


@pytest.mark.parametrize(("family", "shared"), FORMS)
@pytest.mark.parametrize("batch_tokens", [10_000, 60, 1])
def test_gradients_are_those_of_two_passes_whatever_the_micro_batches(family: str, shared: bool, batch_tokens: int) -> None:
    student = student_of(family, shared)
    label = torch.cat([by_hand(student, q, q.slots[0][0]) for q in asked()]).mean()
    label.mul(0.3).backward()
    rationale = torch.cat([by_hand(student, q, q.slots[1][0]) for q in asked() if len(q.slots) > 1]).mean()
    rationale.mul(0.7).backward()
    wanted = {name: p.grad.clone() for name, p in student.model.named_parameters()}
    student.model.zero_grad()
    batch = batcher_of(student, batch_tokens=batch_tokens)([0, 1, 2])
    assert len(batch["micro"]) > 1 or batch_tokens > 60
    loss_of(student, batch, Loss(alpha=0.3))[0].backward()
    for name, parameter in student.model.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-5), name


@pytest.mark.parametrize(("family", "shared"), FORMS)
def test_what_is_trained_is_what_is_asked_on_the_device(family: str, shared: bool) -> None:
    # Position by position: greedy decoding from the source and the opening meets the states that were trained.
    student = student_of(family, shared)
    question = asked()[0]
    for part in ("label", "rationale"):
        ids = student.generate([question.text], part, max_new_tokens=6)[0]
        text = student.format.decode(student.rust, ids)
        row = student.encode(question.text, text, part)
        again = Encoded(row.source, (Branch(row.branches[0].opening, [*ids, student.format.eos_id]),))
        logits = student.hidden(student.tensors([again])[0]) @ student.head.T
        said = [*ids, student.format.eos_id][:6]  # where it ended by itself, the end is what it said
        assert logits.argmax(1).tolist()[: len(said)] == said


def test_a_step_is_cut_by_length_within_the_budget() -> None:
    student = tiny_students.t5()
    batcher = batcher_of(student, batch_tokens=400)
    rows = [Encoded([3] * n, (Branch([0], [3] * 10),)) for n in (190, 90, 80, 20, 500, 60, 70)]
    groups = batcher.cut(rows)
    assert [[len(row) for row in group] for group in groups] == [[30, 70, 80, 90, 100], [200], [510]]
    assert batcher.cut(rows[1:2], 5) == [rows[1:2]]


def test_dropout_by_bytes_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999, requires_grad=True)
    out = packed.dropout(x, 0.1)
    assert (out == 0).float().mean().item() == pytest.approx(26 / 256, abs=1e-3)
    assert out.mean().item() == pytest.approx(1, abs=1e-3)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert packed.dropout(x, 0.0) is x


@pytest.mark.parametrize("name", ["t5", "flan"])
def test_dropout_everywhere_has_the_gradient_of_what_it_dropped(name: str) -> None:
    # The same random numbers again: what comes back is the slope of the loss that went out.
    student = student_of(name, shared=True)
    student.model.double().train()
    batch = batcher_of(student)([0, 1, 2])
    weight, weights = student.model.decoder.block[1].layer[1].EncDecAttention.q.weight, packed.Weights(torch.float64)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        hidden = student.hidden(model_inputs(batch["micro"][0]), weights=weights)
        return (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum()

    loss().backward()
    with torch.no_grad():
        direction = torch.randn_like(weight)
        values = []
        for sign in (1, -1):
            weight += sign * 1e-6 * direction
            weights._made.clear()
            values.append(loss().item())
            weight -= sign * 1e-6 * direction
    assert (values[0] - values[1]) / 2e-6 == pytest.approx((weight.grad * direction).sum().item(), rel=1e-4)


def test_a_batch_draws_one_of_several_rationales_the_same_after_a_resume() -> None:
    student = tiny_students.t5()
    batcher = batcher_of(student, asked({"a": ("first.", "second one here.")})[:1])

    def drawn(epoch: int) -> int:
        batcher.epoch = epoch
        return int((batcher([0])["micro"][0]["part"] == 1).sum())

    lengths = [drawn(epoch) for epoch in range(20)]
    assert len(set(lengths)) == 2
    assert lengths == [drawn(epoch) for epoch in range(20)]


def test_a_step_of_labels_only_is_all_label_and_one_of_rationales_only_all_rationale() -> None:
    assert Loss(alpha=0.3).coefficients(torch.tensor([4.0, 0.0])).tolist() == [0.25, 0.0]
    assert Loss(alpha=1.0).coefficients(torch.tensor([0.0, 5.0])).tolist() == pytest.approx([0.0, 0.2])


@pytest.mark.parametrize("widths", [(5,), (5, 3)])  # of one mentor, of two
def test_the_fused_loss_is_autograds(widths: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK", 7 * 50)  # several chunks
    torch.manual_seed(0)
    n, d, v, k, t = 23, 8, 50, 4, 3.0
    hidden, head = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    targets, weights = torch.randint(v, (n,)), torch.rand(n)
    ids = torch.stack([torch.randperm(v)[:k] for _ in range(n)])
    probs = torch.rand(n, k) / k  # not all of the mass, as in the published form
    theirs, their_heads = torch.randn(n, sum(widths)), [torch.randn(v, width) for width in widths]
    loss, entropy = objectives.token_loss(
        hidden, head, targets, weights, objectives.Soft(ids, probs, 0.3), objectives.Mentor(theirs, their_heads, t, 0.4))
    loss.backward()
    mine = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    logits = hidden @ head.T
    ours = log_softmax(logits, 1)
    hard = cross_entropy(logits, targets, reduction="none")
    soft = (probs * (probs.log() - ours.gather(1, ids))).sum(1)
    p = torch.stack([(states @ their_head.T / t).softmax(1) for states, their_head in zip(
        theirs.split(widths, 1), their_heads, strict=True)]).mean(0).log()
    mentor = t * t * (p.exp() * (p - log_softmax(logits / t, 1))).sum(1)
    wanted = (weights * (0.3 * hard + 0.3 * soft + 0.4 * mentor)).sum()
    wanted.backward()
    assert torch.allclose(entropy, hard, atol=1e-5) and torch.allclose(loss, wanted, atol=1e-4)
    for own, autograd in zip(mine, (hidden.grad, head.grad), strict=True):
        assert torch.allclose(own, autograd, atol=1e-5)


def test_the_mutual_information_term_by_hand() -> None:
    torch.manual_seed(1)
    hidden, head = torch.randn(5, 4), torch.randn(6, 4)
    probs = torch.softmax(hidden @ head.T, 1)
    label, rationale = probs[:2].amax(0), probs[2:].amax(0)
    wanted = -(label / label.sum() * (rationale / rationale.sum()).log()).sum()
    got = objectives.mutual_information(hidden, head, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([[0, 1]]))
    assert torch.allclose(got, wanted, atol=1e-6)


def test_a_mentors_states_are_those_of_the_same_targets() -> None:
    student, mentor = tiny_students.decoder(), tiny_students.decoder()
    for parameter in mentor.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch = batcher_of(student, mentors=[mentor])([0, 1, 2])
    micro = batch["micro"][0]
    with torch.no_grad():  # the same model and the same rows, in other batches
        again = mentor.hidden(model_inputs(micro))
    assert torch.allclose(micro["mentor"].float(), again, atol=0.05)
    identical = objectives.Mentor(again, [mentor.head], 2.0, 1.0)
    loss, _ = objectives.token_loss(again, mentor.head, micro["targets"], micro["unit"], None, identical)
    assert abs(loss.item()) < 1e-4


def test_rows_are_answered_in_batches_of_few_tokens(monkeypatch) -> None:
    rows = [[0] * n for n in (3, 2, 5, 1, 9, 1)]
    assert [list(map(len, batch)) for batch in students._together(rows, 4, 100)] == [[3, 2, 5, 1], [9, 1]]
    assert [list(map(len, batch)) for batch in students._together(rows, 4, 8)] == [[3, 2], [5], [1], [9], [1]]
    student = tiny_students.t5()
    texts = [f"Tom has {'very ' * n}few apples" for n in range(6)]
    whole = student.generate(texts, max_new_tokens=4)
    monkeypatch.setattr(defaults, "ANSWERED_TOKENS", 40)
    assert student.generate(texts, max_new_tokens=4) == whole


def test_targets_end_with_eos_and_long_ones_are_cut() -> None:
    student = tiny_students.t5()
    row = student.encode("a", "( 1 + 2 ) " * 40, "label")
    assert row.branches[0].target[-1] == student.format.eos_id
    assert len(row.branches[0].target) == student.format.max_label_tokens


TASK = tiny_students.TASK
ROWS = [Row("1", "a", "( 1 + 2 )"), Row("2", "b", "( 4 - 1 )"), Row("3", "c", "( 2 * 2 )")]
CORPUS = [
    {"id": "1", "answer": "( 2 + 1 )", "rationale": "r1", "verdict": "verified"},
    {"id": "2", "answer": "( 4 + 1 )", "rationale": "r2", "verdict": "wrong"},
    {"id": "3", "answer": None, "rationale": "r3", "verdict": "unparsed"},
]


def shown(made: list[Question]) -> list[tuple[str, tuple[str, ...]]]:
    return [(q.label, tuple(t.text for slot in q.slots[1:] for t in slot)) for q in made]


def test_finetune_takes_gold_labels_and_no_rationale() -> None:
    made = questions("finetune", TASK, ROWS, CORPUS)
    assert shown(made) == [("( 1 + 2 )", ()), ("( 4 - 1 )", ()), ("( 2 * 2 )", ())]


def test_answers_that_have_ended_leave_their_batch(monkeypatch) -> None:
    asked = [f"Ann has {n} pens and buys {n} more." for n in range(2, 8)]
    for seed in range(40):  # the tokenizer's pieces differ from run to run, and with them what is said
        student, chance = tiny_students.t5(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in student.model.parameters():  # so that it says more than one word
                weight += torch.randn(weight.shape, generator=chance)
        said = Counter(token for ids in student.generate(asked, max_new_tokens=20) for token in set(ids))
        student.format = replace(student.format, eos_id=said.most_common(1)[0][0])  # questions end with it too
        expected = student.generate(asked, max_new_tokens=20)  # in one go
        if len({len(ids) // 3 for ids in expected}) > 2:
            break
    assert len({len(ids) // 3 for ids in expected}) > 2
    monkeypatch.setattr(defaults, "ANSWERED_FIRST", 3)
    asked_on, generate = [], student.model.generate

    def counted(**its):
        asked_on.append((*its["decoder_input_ids"].shape, its["max_new_tokens"]))
        return generate(**its)

    monkeypatch.setattr(student.model, "generate", counted)
    assert student.generate(asked, max_new_tokens=20) == expected
    opening = len(student.format.opening(student.rust, "label"))
    went = [0, 3, 6, 12]
    assert asked_on == [(n, opening + at, go) for at, go in zip(went, [3, 3, 6, 8], strict=True)
                        if (n := sum(len(ids) >= at for ids in expected))]


def test_seq_kd_takes_the_teachers_answer_right_or_wrong() -> None:
    made = questions("seq-kd", TASK, ROWS, CORPUS)
    assert [(q.id, q.label) for q in made] == [("1", "( 2 + 1 )"), ("2", "( 4 + 1 )")]


def test_step_by_step_takes_gold_labels_and_only_verified_rationales() -> None:
    made = questions("step-by-step", TASK, ROWS, CORPUS)
    assert shown(made) == [("( 1 + 2 )", ("r1",)), ("( 4 - 1 )", ()), ("( 2 * 2 )", ())]


def test_without_gold_the_vote_decides_and_only_its_rationales_are_kept() -> None:
    row = Row("1", "a")
    entries = [{"id": "1", "answer": answer, "rationale": answer, "verdict": "unlabelled"}
               for answer in ("( 1 + 1 )", "( 3 + 0 )", "( 1 + 2 )")]
    assert vote(TASK, row, entries) == ("( 3 + 0 )", 2 / 3)
    made = questions("step-by-step", TASK, [row], entries)
    assert shown(made) == [("( 3 + 0 )", ("( 3 + 0 )", "( 1 + 2 )"))]
    # Nor do samples that were told the label, or texts that the teacher only scored, have a voice.
    told = [{"id": "1", "answer": "( 9 + 9 )", "verdict": "verified", **mark} for mark in (
        {"hint": True}, {"finish_reason": "scored"}, {"hint": True, "finish_reason": "stop"})]
    assert vote(TASK, row, [*told, *entries]) == ("( 3 + 0 )", 2 / 3)


def test_the_hybrid_counts_a_voted_answer_by_the_share_of_the_samples_that_agree() -> None:
    rows = [Row("1", "a", "( 4 + 4 )"), Row("2", "b"), Row("3", "c")]
    entries = [{"id": "2", "answer": answer, "rationale": "r", "verdict": verdict} for answer, verdict in (
        ("( 1 + 1 )", "unlabelled"), ("( 0 + 2 )", "duplicate"), ("( 1 + 2 )", "unlabelled"), (None, "truncated"))]
    entries += [{"id": "1", "answer": "( 4 + 3 )", "rationale": "r", "verdict": "wrong"},
                {"id": "3", "answer": None, "rationale": None, "verdict": "unparsed"}]
    assert [(q.id, q.label, q.weight) for q in questions("hybrid", TASK, rows, entries)] == [
        ("1", "( 4 + 4 )", 1.0), ("2", "( 1 + 1 )", 0.5)]
    assert {q.weight for q in questions("step-by-step", TASK, rows, entries)} == {1.0}


def test_single_task_is_the_rationale_and_then_the_answer() -> None:
    made = questions("single-task", TASK, ROWS, CORPUS)
    assert [q.slots for q in made] == [((Target("label", "r1 The answer is ( 1 + 2 )", 0),),),
                                       ((Target("label", "The answer is ( 4 - 1 )"),),),
                                       ((Target("label", "The answer is ( 2 * 2 )"),),)]


def test_specialize_mixes_four_formats_by_their_shares() -> None:
    rows = [Row(str(i), f"question {i}", f"( {i} + 1 )") for i in range(1, 9)]
    corpus = [{"id": row.id, "sample": 0, "answer": row.label, "rationale": f"r{row.id}.", "verdict": "verified"}
              for row in rows]
    made = questions("specialize", TASK, rows, corpus, {"zero-shot": 0.5, "in-context": 0.3, "zero-shot-answer": 0.2})
    chain, context, answer = made[0].slots[0]
    assert (chain.text, chain.source, chain.share) == ("r1. The answer is ( 1 + 1 )", None, 0.5)
    assert context.text == chain.text and context.share == 0.3 and context.source.endswith("\n\npredict: question 1")
    assert context.source.count("The answer is") == 4 and "question 1\n" not in context.source
    assert (answer.text, answer.source, answer.share) == ("The answer is ( 1 + 1 )", "answer: question 1", 0.2)
    student = tiny_students.t5()
    student.set_task(TASK, chain=True)
    batcher = batcher_of(student, made[:1])
    drawn = [batcher.draw([0])[0].source for batcher.epoch in range(400)]
    share = sum(len(source) > 60 for source in drawn) / 400
    assert 0.2 < share < 0.4  # three standard deviations about 0.3


def test_given_rationales_are_judged_by_what_they_state() -> None:
    rows = [Row("1", "a", "( 1 + 2 )", "right.", stated="(2 + 1)"), Row("2", "b", "( 4 - 1 )", "wrong.", stated="5"),
            Row("3", "c", "( 2 * 2 )", "a person's."), Row("4", "d", "( 1 + 1 )", "no answer.", stated="none")]
    corpus = given(TASK, rows)
    assert [(e["verdict"], e["answer"]) for e in corpus] == [
        ("verified", "( 2 + 1 )"), ("wrong", "5"), ("verified", "( 2 * 2 )"), ("unparsed", None)]
    assert shown(questions("step-by-step", TASK, rows, corpus)) == [
        ("( 1 + 2 )", ("right.",)), ("( 4 - 1 )", ()), ("( 2 * 2 )", ("a person's.",)), ("( 1 + 1 )", ())]
    # Its author's answers are a teacher's, right or wrong; where the label was taken for it, there is none.
    assert [(q.id, q.label) for q in questions("seq-kd", TASK, rows, corpus)] == [("1", "( 2 + 1 )"), ("2", "5")]


def test_methods_without_targets_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="run edgedistill teach first"):
        questions("step-by-step", TASK, ROWS, [])
    with pytest.raises(UsageError, match="the rows have no labels"):
        questions("finetune", TASK, [Row("1", "a")], [])
    with pytest.raises(UsageError, match="known methods are finetune"):
        questions("finetun", TASK, ROWS, CORPUS)


def test_the_8_bit_optimizer_keeps_embeddings_in_32_bits() -> None:
    student = tiny_students.decoder()
    made = optimizer(student.model, "adamw8bit", 1e-3)
    student.model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    made.step()
    dtypes = {name: made.state[parameter]["state1"].dtype for name, parameter in student.model.named_parameters()}
    assert dtypes["model.embed_tokens.weight"] == torch.float32
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.uint8
    assert dtypes["model.norm.weight"] == torch.float32


def test_8_bit_adamw_ends_within_2_percent_of_32_bit_after_200_steps() -> None:
    losses = {}
    for name in ("adamw", "adamw8bit"):
        student = tiny_students.decoder()
        torch.manual_seed(0)
        made = optimizer(student.model, name, 1e-3)
        batcher, last = batcher_of(student, tiny_students.problems(24)), []
        for step in range(200):
            loss, _ = loss_of(student, batcher(random.Random(step).sample(range(24), 8)), Loss())
            loss.backward()
            made.step()
            made.zero_grad()
            last.append(loss.item())
        losses[name] = sum(last[-20:]) / 20
    assert losses["adamw"] < 0.5 * last[0]
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], rel=0.02)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_students.t5().save(tmp_path / "tiny-t5", {}, "# card\n")
    return str(tmp_path / "tiny-t5")


def ordinary(run: Path, folder: str, epochs: float = 4) -> list[str]:
    return [sys.executable, "-m", "edgedistill", "train", "--student", folder, "--run", str(run), "--epochs",
            str(epochs), "--batch-size", "8", "--learning-rate", "0.003", "--threads", "1"]


@pytest.mark.parametrize(("step", "flags"), [(20, ["--average"]), (20, []), (6, ["--optimizer", "adamw8bit"])])
def test_a_killed_training_resumes_to_the_same_weights(step: int, flags: list[str], folder: str, tmp_path: Path) -> None:
    # 48 questions in steps of 8: checkpoint 6 is at an epoch's end, 20 of 40 in the middle of one.
    straight, killed = (tiny_students.taught_run(tmp_path / name) for name in ("straight", "killed"))
    often = ("import edgedistill.defaults as d; d.CHECKPOINT_MINUTES = 0 if __import__('sys').argv[-1] == '20' else 15\n"
             "import sys; sys.argv.pop()\nfrom edgedistill.cli import main; main()")

    def command(run: Path) -> list[str]:
        return [sys.executable, "-c", often, *ordinary(run, folder, 40 / 6)[3:], *flags, str(step)]

    on_cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # a GPU adds in another order each time
    subprocess.run(command(straight), check=True, capture_output=True, env=on_cpu)
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=on_cpu)
    deadline = time.monotonic() + 120
    folders = (killed / "train" / "checkpoints").glob
    while not any(int(p.parent.name.split("-")[1]) >= step for p in folders("checkpoint-*/sums.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # SIGKILL
    process.wait()
    assert read_json(killed / "train" / "manifest.json")["state"] == "running"
    done = subprocess.run(command(killed), check=True, capture_output=True, text=True, env=on_cpu)
    assert "resumed from checkpoint-" in done.stderr
    # Bitwise: same threads, same order of rows, same random state.
    assert ((killed / "train" / "student" / "model.safetensors").read_bytes()
            == (straight / "train" / "student" / "model.safetensors").read_bytes())


def test_average_keeps_the_mean_of_the_weights_along_the_training(folder: str, tmp_path: Path, monkeypatch) -> None:
    from edgedistill.train import trainer

    seen, measured = [], []

    class Watched(trainer.Average):
        def on_step_end(self, args, state, control, **more) -> None:
            seen.append({name: p.detach().clone() for name, p in self.parameters.items()})
            super().on_step_end(args, state, control, **more)

        @contextlib.contextmanager
        def instead(self):
            with super().instead():
                measured.append({name: p.detach().clone() for name, p in self.parameters.items()})
                yield

    monkeypatch.setattr(trainer, "Average", Watched)
    result = train(folder, run=str(tiny_students.taught_run(tmp_path / "run")), method="finetune", epochs=2, batch_size=8,
                   learning_rate=0.003, average=True)
    assert len(seen) == 12 and len(measured) == 2
    # Polynomial decay of power 2: after step t the new weights have 3 / (t + 2) of the mean.
    mean = {name: torch.zeros_like(each) for name, each in seen[0].items()}
    means = []
    for t, weights in enumerate(seen, 1):
        mean = {name: each + 3 / (t + 2) * (weights[name] - each) for name, each in mean.items()}
        means += [mean] if t % 6 == 0 else []
    best = max(range(2), key=lambda i: (result["dev"][i]["accuracy"], i))
    kept = load_file(tmp_path / "run" / "train" / "student" / "model.safetensors")
    assert "mean of the weights along the way" in (tmp_path / "run" / "train" / "student" / "README.md").read_text()
    for i, name in itertools.product(range(2), mean):
        torch.testing.assert_close(measured[i][name], means[i][name])
    for name, each in kept.items():
        torch.testing.assert_close(each, means[best][name])
        assert not torch.equal(each, seen[6 * best + 5][name])


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path: Path, capsys) -> None:
    for step in (6, 12):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "model.safetensors").write_bytes(bytes(range(step)))
        write_json(path / "sums.json", {"model.safetensors": sha256(path / "model.safetensors")})
    (tmp_path / "checkpoint-18").mkdir()  # killed before it was whole
    assert last_checkpoint(tmp_path).name == "checkpoint-12"
    (tmp_path / "checkpoint-12" / "model.safetensors").write_bytes(b"\0" * 12)
    assert last_checkpoint(tmp_path).name == "checkpoint-6"
    assert "checkpoint-12 is damaged (model.safetensors) and passed over" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="no file-size limit on Windows")
def test_a_full_disk_while_saving_keeps_the_checkpoint_before(folder: str, tmp_path: Path) -> None:
    run = tiny_students.taught_run(tmp_path / "run")
    # The weights fit, the optimizer's states do not: as on a disk that fills up in the middle of a checkpoint.
    limit = (Path(folder) / "model.safetensors").stat().st_size * 3 // 2
    code = (f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"import edgedistill.train.trainer as t\n"
            f"real = t.DistillTrainer._save_checkpoint\n"
            f"def save(self, *a, **k):\n"
            f"    if self.state.global_step > 6: resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            f"    return real(self, *a, **k)\n"
            f"t.DistillTrainer._save_checkpoint = save\n"
            f"from edgedistill.cli import main; main()")
    full = subprocess.run([sys.executable, "-c", code, *ordinary(run, folder)[3:]], capture_output=True, text=True)
    assert full.returncode == 1 and "no space left" in full.stderr and "Traceback" not in full.stderr, full.stderr
    assert last_checkpoint(run / "train" / "checkpoints").name == "checkpoint-6"
    again = subprocess.run(ordinary(run, folder), capture_output=True, text=True)
    assert again.returncode == 0 and "resumed from checkpoint-6" in again.stderr


def test_out_of_memory_halves_the_micro_batches_and_goes_on(folder: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from torch._subclasses.fake_tensor import FakeTensor  # the plan's own trace

    from edgedistill.train import students

    real, limit = students.T5Student.hidden, 300

    def hidden(self, batch, model=None, weights=None):
        if batch["source_ids"].numel() > limit and not isinstance(batch["source_ids"], FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, model, weights)

    monkeypatch.setattr(students.T5Student, "hidden", hidden)
    result = train(folder, run=str(tiny_students.taught_run(tmp_path / "run")), epochs=1, batch_size=16, batch_tokens=2000)
    assert "out of memory; going on with micro-batches of 1000 tokens" in capsys.readouterr().err
    assert result["steps"] == 3
    limit = 0
    with pytest.raises(Error, match="out of memory with micro-batches of .*adafactor or a smaller student"):
        train(folder, run=str(tiny_students.taught_run(tmp_path / "none")), epochs=1)


# `--` keeps torchrun from reading our --run as an abbreviation of its own flags.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def test_two_processes_lose_as_one_does_with_the_same_global_batch(folder: str, tmp_path: Path) -> None:
    config = json.loads((Path(folder) / "config.json").read_text())
    (Path(folder) / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.0}))
    one = train(folder, run=str(tiny_students.taught_run(tmp_path / "one")), epochs=2, batch_size=8, threads=1)
    two = tiny_students.taught_run(tmp_path / "two")
    done = subprocess.run(
        [*TORCHRUN, "2", "-m", "--", "edgedistill", "train", "--student", folder, "--run", str(two), "--epochs", "2",
         "--batch-size", "8", "--threads", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("train plan") == 1
    result = read_json(two / "train" / "result.json")
    assert result["processes"] == 2 and result["steps"] == one["steps"]
    for mine, theirs in zip(one["losses"], result["losses"], strict=True):
        for name in ("loss", "label_loss", "rationale_loss"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), (mine, theirs)


def test_logit_kd_learns_from_a_mentor_of_the_same_pieces(folder: str, tmp_path: Path) -> None:
    run = tiny_students.taught_run(tmp_path / "run")
    train(folder, run=str(run), method="finetune", epochs=1, batch_size=8)
    student = tiny_students.taught_run(tmp_path / "student")
    mentor = str(run / "train" / "student")
    result = train(folder, run=str(student), method="logit-kd", mentor=mentor, alpha=0.1, epochs=2, batch_size=8)
    assert result["method"] == "logit-kd" and result["losses"][-1]["label_loss"] < result["losses"][0]["label_loss"]
    tiny_students.decoder().save(tmp_path / "other", {}, "# card\n")
    with pytest.raises(UsageError, match="its tokenizer is not the student's"):
        train(folder, run=str(tiny_students.taught_run(tmp_path / "no")), method="logit-kd", mentor=str(tmp_path / "other"))
    # The mean of two that are the same is the same; one that has learned otherwise changes it.
    losses = {}
    other = str(student / "train" / "student")
    for name, mentors in (("one", [mentor]), ("twice", [mentor, mentor]), ("two", [mentor, other])):
        made = train(folder, run=str(tiny_students.taught_run(tmp_path / name)), method="logit-kd", mentor=mentors, epochs=1,
                     batch_size=8)
        losses[name] = [each["loss"] for each in made["losses"]]
    assert losses["twice"] == pytest.approx(losses["one"], rel=1e-4) and losses["two"] != pytest.approx(losses["one"], rel=1e-4)
    made = read_json(tmp_path / "two" / "train" / "manifest.json")
    assert made["config"]["mentor"] == ["run-student", "student-student"] and {"mentor", "mentor1"} <= set(made["inputs"])
    with pytest.raises(UsageError, match="needs --mentor"):
        train(folder, run=str(student), method="logit-kd")


def test_every_process_takes_part_in_an_uneven_last_step(tmp_path: Path) -> None:
    # 49 questions in steps of 12 leave one for three processes; an untied head is used outside of DDP's own forward pass.
    made = tiny_students.t5(tied=False)
    made.model.config.dropout_rate = 0.0
    made.save(tmp_path / "t5", {}, "")
    results = []
    for name, launcher in (("one", [sys.executable]), ("three", [*TORCHRUN, "3"])):
        run = tiny_students.taught_run(tmp_path / name, n=49)
        done = subprocess.run(
            [*launcher, "-m", *(["--"] if name == "three" else []), "edgedistill", "train", "--student", str(tmp_path / "t5"),
             "--run", str(run), "--epochs", "2", "--batch-size", "12", "--threads", "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(read_json(run / "train" / "result.json"))
    assert results[0]["steps"] == results[1]["steps"] == 10
    for n, (mine, theirs) in enumerate(zip(*(result["losses"] for result in results), strict=True)):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=5e-3 if n else 1e-4)  # bf16; later steps drift apart


@pytest.mark.parametrize("method", ["single-task", "specialize"])
def test_chains_are_answered_with_their_reasons(method: str, folder: str, tmp_path: Path) -> None:
    from edgedistill.train.students import load

    run = tiny_students.taught_run(tmp_path / "run")
    result = train(folder, run=str(run), method=method, epochs=1, batch_size=8)
    assert result["with_rationale"] == 32
    form = load(run / "train" / "student").format
    assert form.chain and form.max_new_tokens("label") == 16 + 40
    assert form.split("It asks. The answer is ( 1 + 2 )") == ("It asks.", "( 1 + 2 )")


def test_other_tasks_and_general_text_are_watched(folder: str, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("The quick brown fox jumps over the lazy dog near the river bank.\n" * 20)
    result = train(folder, run=str(tiny_students.taught_run(tmp_path / "run")), epochs=2, batch_size=8, ood="builtin:wordmath",
                   general=str(text))
    assert {"accuracy", "ood_accuracy", "general_perplexity"} <= set(result["before"])
    assert all(entry["general_perplexity"] > 1 and "ood_accuracy" in entry for entry in result["dev"])
    assert (tmp_path / "run" / "train" / "student-ood" / "model.safetensors").is_file()


def test_of_equal_dev_accuracies_the_later_is_kept(folder: str, tmp_path: Path, monkeypatch) -> None:
    from edgedistill.train import fit, trainer

    own, other = iter([0.0, 0.5, 0.75, 0.75, 0.25]), iter([0.0, 0.5, 0.25, 0.5, 0.0])  # before the first epoch, after each
    monkeypatch.setattr(fit, "evaluations", lambda *_: lambda: {"accuracy": next(own), "ood_accuracy": next(other)})
    seen = {}

    def note(self, args, state, control, **_) -> None:
        seen[state.global_step] = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}

    monkeypatch.setattr(trainer._Epoch, "on_evaluate", note, raising=False)
    result = train(folder, run=str(tiny_students.taught_run(tmp_path / "run")), epochs=4, batch_size=8, ood="builtin:wordmath")
    assert [entry["accuracy"] for entry in result["dev"]] == [0.5, 0.75, 0.75, 0.25]
    assert (result["best_dev_accuracy"], result["best_ood_accuracy"]) == (0.75, 0.5)
    for name in ("student", "student-ood"):
        kept = tmp_path / "run" / "train" / name
        assert read_json(kept / "edgedistill.json")["provenance"]["step"] == 18
        assert all(torch.equal(each, seen[18][key]) for key, each in load_file(kept / "model.safetensors").items())


def test_two_dev_sets_may_use_the_same_ids() -> None:
    from edgedistill.train.watch import evaluations

    class Says:  # a student that always answers 3
        model = torch.nn.Linear(1, 1)
        model.device = torch.device("cpu")

        def answers(self, texts):
            return ["( 1 + 2 )"] * len(texts)

    found = evaluations(TASK, Says(), [Row("1", "a", "( 2 + 2 )")], [Row("1", "b", "( 2 + 1 )")], None, False)()
    assert found == {"accuracy": 0.0, "ood_accuracy": 1.0}


def test_a_dry_run_tells_the_memory_and_trains_nothing(folder: str, tmp_path: Path, capsys) -> None:
    run = tiny_students.taught_run(tmp_path / "run")
    plan = train(folder, run=str(run), dry_run=True, batch_size=8)
    assert plan["kind"] == "train-plan" and not (run / "train").exists()
    memory = plan["memory"]
    assert memory["parameters"] == memory["states"] / 2 > 0 and memory["step"] > memory["parameters"]
    assert "in one real step of the longest questions" in capsys.readouterr().err


def test_the_plan_fits_the_memory_it_is_given(tmp_path: Path) -> None:
    from edgedistill.train import memory

    student = tiny_students.decoder()
    rows = batcher_of(student).draw([0, 1, 2])
    size = 4 * student.parameters()
    fits, recomputed, later = (memory.step(student, rows, False, *how) - size
                               for how in ((False, False), (True, False), (False, True)))
    assert 0 < recomputed < 0.7 * fits and later > fits  # beside the gradients
    assert memory.states(student.model, "adafactor") < 0.1 * memory.states(student.model, "adamw")

    def predicted(tokens: int, optimizer: str, checkpointing: bool) -> memory.Memory:
        return memory.Memory(0, 0, tokens * (1 if checkpointing else 10), 0)

    made = memory.plan([("adamw", False), ("adamw", True)], 1000, 100, 1100.0, predicted)
    assert (made.batch_tokens, made.checkpointing) == (100, False)
    made = memory.plan([("adamw", False), ("adamw", True)], 1000, 200, 1100.0, predicted)
    assert (made.batch_tokens, made.checkpointing) == (1000, True)
    with pytest.raises(UsageError, match="the smallest plan"):
        memory.plan([("adamw", True)], 1000, 200, 100.0, predicted)


def test_train_writes_a_student_folder_and_the_results_keys(folder: str, tmp_path: Path) -> None:
    run = tiny_students.taught_run(tmp_path / "run")
    result = train(folder, run=str(run), epochs=2, batch_size=8)
    assert {"method", "student", "parameters", "steps", "examples_per_s", "tokens_per_s", "peak_memory_mb",
            "predicted_memory_mb", "dev", "losses"} <= set(result)
    assert result["method"] == "step-by-step" and result["with_rationale"] == 32 and result["steps"] == 12
    assert {"label_loss", "rationale_loss"} <= set(result["losses"][0])
    student = run / "train" / "student"
    assert {"config.json", "model.safetensors", "tokenizer.json", "edgedistill.json", "README.md"} <= {
        p.name for p in student.iterdir()}
    assert not (run / "train" / "checkpoints").exists()
    assert json.loads((student / "edgedistill.json").read_text())["task"]["name"] == "wordmath"
    assert train(folder, run=str(run), epochs=2, batch_size=8) == result
    with pytest.raises(UsageError, match="epochs is 2.* there, 3.* asked"):
        train(folder, run=str(run), epochs=3, batch_size=8)


def test_half_an_epoch_is_evaluated_too(folder: str, tmp_path: Path) -> None:
    result = train(folder, run=str(tiny_students.taught_run(tmp_path / "run")), epochs=0.5, batch_size=8)
    assert result["steps"] == 3 and len(result["dev"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at what a CPU's flags decide")
def test_precision_is_the_devices_unless_it_is_asked_for(folder: str, tmp_path: Path, monkeypatch) -> None:
    def made(flags: set[str], precision: str | None) -> tuple[str, dict]:
        monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
        run = tiny_students.taught_run(tmp_path / f"{len(flags)}-{precision}", n=8)
        dtype = train(folder, run=str(run), epochs=1, batch_size=8, precision=precision)["dtype"]
        return dtype, read_json(run / "train" / "manifest.json")["config"]

    assert [made({"avx512_bf16"}, precision)[0] for precision in (None, "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    dtype, config = made(set(), None)
    assert dtype == "fp32" and "precision" not in config
    assert made(set(), "fp32")[1]["precision"] == "fp32"
    with pytest.raises(UsageError, match="--precision bf16: this device has no such products"):
        made(set(), "bf16")


def test_rows_without_labels_are_trained_on_the_teachers_answers(folder: str, tmp_path: Path) -> None:
    run = tiny_students.taught_run(tmp_path / "run", labelled=False)
    result = train(folder, run=str(run), epochs=1, batch_size=8)
    assert result["questions"] == 43 and result["with_rationale"] == 43  # 48 less a tenth held out


def test_a_loss_that_is_not_finite_stops_in_one_line(folder: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(Path(folder) / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][:] = float("inf")
    save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
    run = tiny_students.taught_run(tmp_path / "run")
    with pytest.raises(Error, match=r"the loss is not finite at step 0 .*lower --learning-rate") as caught:
        train(folder, run=str(run), epochs=1, batch_size=8)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_training_learns_ten_problems_by_heart(folder: str, tmp_path: Path) -> None:
    from edgedistill.train.students import load

    run = tiny_students.taught_run(tmp_path / "run", n=10)
    train(folder, run=str(run), method="finetune", epochs=8, batch_size=2, learning_rate=1e-2, optimizer="adamw")
    losses = read_json(run / "train" / "result.json")["losses"]
    assert losses[-1]["label_loss"] < 0.4 * losses[0]["label_loss"]
    assert load(run / "train" / "student").format.task["name"] == "wordmath"


def test_bad_settings_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished teach stage"):
        train("carve", run=str(tmp_path / "none"))
    run = str(tiny_students.taught_run(tmp_path / "run"))
    for settings, message in [
        ({"student": "t5-smal"}, "did you mean 't5-small'"), ({"student": "carve", "tiny": True}, "exclude each other"),
        ({"student": "carve", "layers": 4}, "fewer than 8 layers"), ({"epochs": 0}, "--epochs 0: give a number above 0"),
        ({"student": str(tmp_path)}, "no config.json"), ({"method": "dss"}, "known methods"),
        ({"method": "reparam", "ood": "builtin:wordmath"}, "does not merge"),
        ({"weighting": "mean"}, "token or sequence"), ({"match": "distribution"}, "needs soft targets"),
        ({"match": "kl"}, "sample or distribution"), ({"temperature": 0}, "--temperature 0: give"),
        ({"mutual_information": 0.1, "two_pass": True}, "without --two-pass"), ({"formats": {"few": 1}}, "NAME=SHARE"),
        ({"mentor": "x"}, "is for --method logit-kd and hybrid, not for step-by-step"),
        ({"learning_rate": 0}, "--learning-rate 0: give"), ({"precision": "fp16"}, "--precision fp16: give fp32 or bf16"),
        ({"tokens": float("nan")}, "--tokens nan: give"),
    ]:
        with pytest.raises(UsageError, match=message):
            train(**settings, run=run)


@pytest.mark.parametrize("make", [tiny_students.t5, lambda: tiny_students.t5(tied=False), tiny_students.decoder,
                                  lambda: tiny_students.decoder(tied=False)])
def test_a_trimmed_student_says_what_it_said(make) -> None:
    from edgedistill.train.vocabulary import trim_student

    whole = make()
    student = copy.deepcopy(whole)
    texts = tiny_students.texts(12)
    before, size = whole.model.config.vocab_size, len(trim_student(student, texts, 150))
    assert size < 0.9 * before and size == student.head.shape[0] == len(student.tokenizer)
    student.set_task(tiny_students.TASK)
    for text in texts:
        assert student.rust.encode(text).tokens == whole.rust.encode(text).tokens
    for text in ("Zurich: 7 kiwis?", "xylophone"):  # other texts can be encoded as before too, in smaller pieces
        assert student.rust.decode(student.rust.encode(text).ids) == whole.rust.decode(whole.rust.encode(text).ids)
    rows = [s.encode(texts[0], texts[1], "label") for s in (student, whole)]
    kept = [whole.rust.token_to_id(student.rust.id_to_token(i)) for i in range(size)]
    mine, theirs = (s.hidden(s.tensors([row])[0]) @ s.head.T for s, row in zip((student, whole), rows, strict=True))
    assert torch.allclose(mine, theirs[:, kept], atol=1e-5)


def test_rows_of_one_class_are_trained_and_said(folder: str, tmp_path: Path, capsys) -> None:
    rows = [{"id": str(i), "input": f"Is {i} more than {i - 1}?", "label": "yes"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train(folder, data=str(tmp_path / "rows.jsonl"), run=str(tmp_path / "run"), task="strategyqa", method="finetune",
                   epochs=1, batch_size=8)
    assert result["steps"] > 0 and result["losses"][-1]["label_loss"] > 0
    assert "labels    all are 'yes'" in capsys.readouterr().err


def test_two_tasks_without_any_rationale_name_the_column(folder: str, tmp_path: Path) -> None:
    rows = [{"id": str(i), "input": f"What is {i} and 1?", "label": f"( {i} + 1 )", "why": "add"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="needs rationales: .*--column rationale=NAME"):
        train(folder, data=str(tmp_path / "rows.jsonl"), run=str(tmp_path / "run"), task="svamp", method="step-by-step")


def test_without_hub_and_cache_tiny_takes_the_carved_student() -> None:
    from edgedistill.train import _choose

    assert _choose(None, True) == ("carve", "carve (--tiny, and neither hub nor cache has t5-small; "
                                            "--student FOLDER forces a T5 of yours)")


# One real carving of the embedded teacher, looked at from several sides.


@pytest.fixture(scope="module")
def carved():
    from edgedistill import cards
    from edgedistill.teach.source import locate
    from edgedistill.train.carve import carve

    student = carve(locate(cards.load(cards.Teacher, "smollm2-135m")), tiny_students.texts(), layers=8,
                    vocabulary=1500)
    student.set_task(TASK)
    return student


@pytest.fixture(scope="module")
def whole():
    from transformers import AutoTokenizer

    from edgedistill import cards
    from edgedistill.teach.source import locate

    path = locate(cards.load(cards.Teacher, "smollm2-135m"))
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_layers_and_vocabulary_have_the_size_asked_for(carved) -> None:
    assert carved.model.config.num_hidden_layers == len(carved.model.model.layers) == 8
    assert 1400 < len(carved.tokenizer) < 1700
    assert carved.model.get_input_embeddings().weight.shape[0] == len(carved.tokenizer)
    assert carved.parameters() == 8 * 3_540_096 + 576 * (len(carved.tokenizer) + 1)


def test_the_tasks_texts_are_cut_as_before(carved, whole) -> None:
    for text in tiny_students.texts(40):
        old = whole.backend_tokenizer.encode(text, add_special_tokens=False).tokens
        assert carved.rust.encode(text, add_special_tokens=False).tokens == old


def test_any_text_is_still_encodable(carved) -> None:
    for text in ("Zürich – 東京 – 🙂", "\x00\t\r\n  two  spaces", "supercalifragilistic"):
        assert carved.rust.decode(carved.rust.encode(text, add_special_tokens=False).ids) == text


def test_it_answers_and_its_end_of_text_is_the_models(carved, whole) -> None:
    assert carved.tokenizer.eos_token == whole.eos_token
    assert len(carved.generate(["two apples"], max_new_tokens=5)[0]) <= 5


def test_task_is_kept_as_data() -> None:
    assert Task.from_dict(TASK.to_dict()) == TASK
