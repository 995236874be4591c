"""The hybrid method: fresh numbers while training, rationales in turn, labels of the student's own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_students
import torch

from edgedistill import defaults, runs
from edgedistill.errors import Stopped, UsageError
from edgedistill.runs import read_json
from edgedistill.tasks.data import Row
from edgedistill.train import depth, packed, selftrain, train, trainer
from edgedistill.train.batches import Batcher
from edgedistill.train.methods import Question, questions
from edgedistill.train.students import load
from edgedistill.train.trainer import Loss, model_inputs

ROWS = [Row("a", "Tom has 13 apples and buys 42 more. How many has he?", "( 13 + 42 )"),
        Row("b", "5 of 9 birds fly away. How many stay?", "( 9 - 5 )"),
        Row("c", "Two boys share 8 pears. How many has each?", "( 8 / 2 )")]
CORPUS = [{"id": "a", "sample": n, "answer": "( 13 + 42 )", "rationale": text, "verdict": "verified"} for n, text in enumerate((
    "13 and 42 more are 13 + 42 = 55.", "He has 55 of them.", "Thirteen and 42 are 55."))]


def asked(method: str = "hybrid", rationales: bool = True) -> list[Question]:
    return questions(method, tiny_students.TASK, ROWS, CORPUS, rationales=rationales)


def texts(batcher: Batcher, i: int, epoch: int) -> tuple[str, list[str]]:
    """(question, targets) that are drawn of the question."""
    batcher.epoch = epoch
    student = batcher.student
    row = batcher.draw([i])[0]
    return (student.rust.decode(row.source).strip(), [student.rust.decode(b.target) for b in row.branches])


def batcher_of(resample: float, method: str = "hybrid", seed: int = 0, made: list[Question] | None = None) -> Batcher:
    student = tiny_students.decoder()  # its pieces spell any text
    student.set_task(tiny_students.TASK, shared=True)
    return Batcher(student, made or asked(method), batch_tokens=10_000, seed=seed, resample=resample)


def test_with_all_parts_off_it_is_step_by_step() -> None:
    ours, theirs = batcher_of(0.0), batcher_of(0.0, "step-by-step")
    for epoch in range(4):
        ours.epoch = theirs.epoch = epoch
        (mine,), (other,) = ours([0, 1, 2])["micro"], theirs([0, 1, 2])["micro"]
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine if isinstance(mine[name], torch.Tensor))
    assert [q.slots for q in asked(rationales=False)] == [q.slots for q in questions("finetune", tiny_students.TASK, ROWS, [])]


def test_each_epoch_has_other_numbers_and_the_same_ones_again_on_a_resume() -> None:
    batcher = batcher_of(1.0)
    found = [texts(batcher, 0, epoch) for epoch in range(12)]
    assert found == [texts(batcher_of(1.0), 0, epoch) for epoch in range(12)]  # whatever was drawn before
    assert len({question for question, _ in found}) == 12
    assert [question for question, _ in found] != [texts(batcher_of(1.0, seed=1), 0, epoch)[0] for epoch in range(12)]
    for question, (label, rationale) in found:
        a, b = (part for part in question.replace("?", "").split() if part.isdigit())
        assert label == f"( {a} + {b} )" and str(int(a) + int(b)) in rationale and "Thirteen" not in rationale
    left = [texts(batcher, 2, epoch) for epoch in range(9)]  # where "two" may be the number
    assert left == 9 * [texts(batcher_of(0.0), 2, 0)]


def test_its_share_of_the_draws_is_fresh() -> None:
    batcher, before = batcher_of(0.25), texts(batcher_of(0.0), 1, 0)
    fresh = sum(texts(batcher, 1, epoch) != before for epoch in range(400)) / 400
    assert 0.25 - 0.07 < fresh < 0.25 + 0.07  # three standard deviations, and a twelfth of the draws is what it was


def test_rationales_are_drawn_in_turn() -> None:
    batcher = batcher_of(0.0)
    told = [texts(batcher, 0, epoch)[1][1] for epoch in range(6)]
    assert told[:3] == told[3:] and set(told) == {entry["rationale"] for entry in CORPUS}
    fresh = [texts(batcher_of(1.0), 0, epoch)[1][1].startswith("He has") for epoch in range(6)]
    assert fresh in ([True, False] * 3, [False, True] * 3)  # of the two that can have other numbers
    alone = questions("hybrid", tiny_students.TASK, ROWS, CORPUS[2:])
    assert [len(texts(batcher_of(share, made=alone), 0, 0)[1]) for share in (0.0, 1.0)] == [2, 1]  # fresh: the label only


def entry(text: str, answer: str | None = "( 13 + 42 )", row: str = "a") -> dict:
    return {"id": row, "sample": 0, "rationale": text, "answer": answer, "verdict": "verified"}


def test_other_words_count_where_numbers_and_the_teachers_own_answer_are_the_rows() -> None:
    told = [entry("A shop sells 13 pens at noon and 42 at night. What does it sell in all?"),
            entry("Tom has 13 apples and buys 42 more. How many has he now?"),                   # hardly other words
            entry("A shop sells 13 pens at noon and 42 at night. What does it sell in all then?"),
            entry("A shop has 42 pens and sells 13. What is left?", "( 42 - 13 )"),              # another problem
            entry("A shop sells 13 pens at noon, 42 at night and 7 later. How many?"),           # another number
            entry("A hall holds thirteen chairs, and 42 are brought. How many are there?"),      # one in words
            entry("A bus with 42 people takes on 13 others. How many are in it?", "42 + 13"),
            entry("A yard has 42 hens and 13 new ones, but seven leave. How many are there?"),   # a number besides, in words
            entry("A bag holds 13 nuts and another one 42 of them. How many is that?", None), entry("", None)]
    given = {"a": told, "b": [entry("9 men came and 5 went. How many remain there?", "9 - 5", "b")], "z": told}
    unlabelled = [Row(row.id, row.input, None if row.id == "b" else row.label) for row in ROWS]
    made = questions("hybrid", tiny_students.TASK, unlabelled, CORPUS, rationales=False, other_words=given)
    assert [q.id for q in made] == ["a", "a-reworded-1", "a-reworded-2", "c"]  # no label, no other words
    assert [q.text for q in made[1:3]] == [told[0]["rationale"], told[6]["rationale"]]
    assert {q.label for q in made[:3]} == {"( 13 + 42 )"}
    batcher = batcher_of(1.0, made=made)
    a, b = (word for word in texts(batcher, 1, 0)[0].split() if word.isdigit())
    assert texts(batcher, 1, 0)[1] == [f"( {a} + {b} )"] and (a, b) != ("13", "42")


def test_a_student_learns_from_the_other_words_of_its_training_rows_alone(folder: str, tmp_path: Path, capsys) -> None:
    run, other = tiny_students.taught_run(tmp_path / "run"), tiny_students.taught_run(tmp_path / "other")
    rows = [json.loads(line) for line in (run / "teach" / "data" / "train.jsonl").read_text().splitlines()]
    told = [entry(f"It is {row['input']}, then, as they say?", row["label"], row["id"]) for row in rows]
    strange = entry("What no row is about?", row="no-row")
    hinted = [{**each, "hint": True, "rationale": f"Told the answer, {each['rationale']}"} for each in told]
    (other / "teach" / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*hinted, *told, strange]))
    (run / "teach" / "data" / "dev.jsonl").unlink(missing_ok=True)  # dev rows are held out of the training's
    settings = dict(run=str(run), method="hybrid", rationales=False, epochs=1, batch_size=8)
    result = train(folder, reworded=str(other), **settings)
    manifest = runs.finished(run, "train")
    held = len(rows) - manifest["config"]["questions"] // 2
    assert held >= 1 and manifest["config"]["questions"] == result["questions"] == 2 * (len(rows) - held)
    assert manifest["inputs"]["reworded"] == runs.sha256(other / "teach" / "corpus.jsonl")
    with pytest.raises(UsageError, match="another configuration: questions is .*reworded"):
        train(folder, **settings)
    (other / "teach" / "corpus.jsonl").write_text(json.dumps(strange) + "\n")
    with pytest.raises(UsageError, match="no text of it can be used for these .* was it taught the same rows"):
        train(folder, reworded=str(other), **settings)
    with pytest.raises(UsageError, match="--reworded .*nowhere: no finished teach stage; make it: edgedistill teach --task"):
        train(folder, reworded=str(tmp_path / "nowhere"), **settings)


def test_a_mentor_is_asked_for_fresh_numbers_too() -> None:
    student, mentor = tiny_students.decoder(), tiny_students.decoder()
    for each in (student, mentor):
        each.set_task(tiny_students.TASK, shared=True)
    for parameter in mentor.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batcher = Batcher(student, asked(), batch_tokens=10_000, resample=1.0, mentors=[mentor])
    seen = set()
    for batcher.epoch in range(3):
        (micro,) = batcher([0, 1, 2])["micro"]
        with torch.no_grad():  # of the same shape, pieces and format: it reads what the student does
            again = mentor.hidden(model_inputs(micro))
        assert torch.allclose(micro["mentor"].float(), again, atol=0.05)
        seen.add(tuple(micro["targets"].tolist()))
    assert len(seen) == 3
    assert Batcher(student, asked(), batch_tokens=10_000, mentors=[mentor]).asking == []  # nothing is asked later


def shallow(layers: int, **more):
    """A student of the mentors' width."""
    student = tiny_students.decoder(num_hidden_layers=layers, **more)
    student.set_task(tiny_students.TASK, shared=False)
    return student


def test_which_of_a_mentors_layers_a_students_are() -> None:
    assert depth.stands_for(16, 30) == [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27, 29]
    assert depth.stands_for(16, 30, "ends") == [*range(7), *range(21, 30)]
    assert depth.stands_for(4, 4) == depth.stands_for(4, 4, "ends") == [0, 1, 2, 3]


@pytest.mark.parametrize("way", depth.WAYS)
def test_a_student_begins_with_a_mentors_layers_and_is_told_its_states(way: str) -> None:
    student, mentor = shallow(3), shallow(6)
    depth.check(student, [mentor], "--states")
    depth.inherit(student, mentor, way)
    of = depth.stands_for(3, 6, way)
    for layer, number in zip(student.model.model.layers, of, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), mentor.model.model.layers[number].parameters(),
                                                     strict=True))
    assert torch.equal(student.head, mentor.head)
    micro = Batcher(student, asked(), batch_tokens=10_000)(list(range(len(asked()))))["micro"][0]
    read = model_inputs(micro)
    guide = depth.Guide(student, [mentor], way, 1.0, packed.Weights())
    last, theirs = guide(read)
    # Row by row, by transformers' own forward: its states are [0] the embedding's, [n] layer n's, the last one after the norm.
    for group in read["rows"]:
        for row in group["q"]["index"].tolist():
            row = list(dict.fromkeys(row))  # padding repeats the first token
            whole = mentor.model(input_ids=read["ids"][row][None], output_hidden_states=True).hidden_states
            for tap, state in zip(guide.mentor_taps, theirs, strict=True):
                if tap < 5:
                    torch.testing.assert_close(state[row], whole[tap + 1][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, mentor.hidden(read))
    hidden, ours = student.hidden(read, taps=guide.taps)
    assert torch.equal(hidden, student.hidden(read)) and [state.shape for state in ours] == [state.shape for state in theirs]
    loss = depth.unlikeness(ours, theirs)
    loss.backward()
    assert 0 < loss < 3 and student.model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert depth.unlikeness(theirs, [7 * each for each in theirs]) < 1e-5
    assert mentor.model.model.layers[0].self_attn.q_proj.weight.grad is None
    with torch.no_grad():  # of a second one what it says counts, and its states do not
        other = shallow(4)
        both, same = depth.Guide(student, [mentor, other], way, 1.0, packed.Weights())(read)
        torch.testing.assert_close(both, torch.cat([last, other.hidden(read)], 1))
    assert all(map(torch.equal, same, theirs))


def test_a_mentor_of_another_shape_or_form_is_told() -> None:
    with pytest.raises(UsageError, match="--states needs a --mentor"):
        depth.check(shallow(2), [], "--states")
    with pytest.raises(UsageError, match="--inherit: the mentor's layers must .* .widths 48 and 96, layers 4 and 2"):
        depth.check(shallow(2), [shallow(4, hidden_size=48, intermediate_size=64, head_dim=8)], "--inherit")
    with pytest.raises(UsageError, match="be no fewer .*layers 2 and 4"):
        depth.check(shallow(4), [shallow(2)], "--inherit")
    with pytest.raises(UsageError, match="must have the shapes"):  # a chain in the place of each FFN
        depth.check(tiny_students.chained(shallow(2)), [shallow(4)], "--inherit")
    with pytest.raises(UsageError, match="leave it out for a T5"):
        depth.check(tiny_students.t5(), [tiny_students.t5()], "--states")
    shared = shallow(4)
    shared.set_task(tiny_students.TASK, shared=True)
    with pytest.raises(UsageError, match="its prefix behind the question; leave out --two-pass"):
        depth.check(shallow(2), [shared], "--states")
    with pytest.raises(UsageError, match="its prefix before the question; add --two-pass"):
        depth.check(shared, [shallow(4)], "--states")


def test_a_student_that_inherits_and_watches_states_is_trained(tmp_path: Path) -> None:
    large, run = (str(tiny_students.taught_run(tmp_path / name)) for name in ("large", "small"))
    settings = {"batch_size": 8, "learning_rate": 0.003}
    small = str(tmp_path / "shallow")
    shallow(2).save(Path(small), {}, "")
    shallow(4).save(tmp_path / "deep", {}, "")
    train(str(tmp_path / "deep"), run=large, method="finetune", epochs=2, **settings)
    for states, inherit in ((0.0, "ends"), (2.0, "spread"), (2.0, None)):
        made = train(small, run=run, method="hybrid", mentor=str(Path(large) / "train" / "student"), rationales=False,
                     two_pass=True, resample=0.5, epochs=1, states=states, inherit=inherit, overwrite=True, **settings)
        config = read_json(Path(run) / "train" / "manifest.json")["config"]
        assert (config.get("states", 0.0), config.get("inherit")) == (states, inherit) and made["losses"][-1]["loss"] > 0


def test_a_student_learns_from_a_mentor_with_fresh_numbers(folder: str, tmp_path: Path, monkeypatch) -> None:
    large = tiny_students.taught_run(tmp_path / "large")
    train(folder, run=str(large), method="finetune", epochs=1, batch_size=8)
    run, settings = str(tiny_students.taught_run(tmp_path / "small")), dict(method="hybrid", epochs=1, batch_size=8)
    mentor = str(large / "train" / "student")
    with pytest.raises(UsageError, match="large-student: it was trained by finetune .* take one trained by step-by-step or hy"):
        train(folder, run=run, mentor=mentor, **settings)
    bare = tiny_students.taught_run(tmp_path / "bare")
    train(folder, run=str(bare), rationales=False, **settings)
    with pytest.raises(UsageError, match="bare-student: it was trained by hybrid and does not know"):
        train(folder, run=run, mentor=str(bare / "train" / "student"), **settings)
    made = []
    monkeypatch.setattr(trainer, "Loss", lambda **given: made.append(given) or Loss(**given))
    train(folder, run=run, mentor=mentor, mentor_share=0.9, resample=0.5, rationales=False, **settings)
    config = runs.finished(run, "train")["config"]
    assert (config["mentor"], config["mentor_share"], made[-1]["mentor_share"]) == ("large-student", 0.9, 0.9)
    with pytest.raises(UsageError, match=f"mentor_share is 0.9 there, {defaults.MENTOR_SHARE} asked"):
        train(folder, run=run, mentor=mentor, resample=0.5, rationales=False, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_students.t5().save(tmp_path / "tiny-t5", {}, "# card\n")
    return str(tmp_path / "tiny-t5")


def half_labelled(run: Path, n: int = 36) -> Path:
    """A taught run in which every second training row has no label, and none of those a teacher's answer."""
    tiny_students.taught_run(run, n)
    rows = [json.loads(line) for line in (run / "teach" / "data" / "train.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["label"] = row["label"] if i % 2 else None
    (run / "teach" / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    without = {row["id"] for row in rows if row["label"] is None}
    corpus = (run / "teach" / "corpus.jsonl").read_text().splitlines()
    (run / "teach" / "corpus.jsonl").write_text("".join(x + "\n" for x in corpus if json.loads(x)["id"] not in without))
    return run


def without_label(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "teach" / "data" / "train.jsonl").read_text().splitlines()]
    return [row for row in rows if row["label"] is None]


def agree(monkeypatch) -> None:
    """Makes the tiny student, which knows nothing, answer the questions: most with one voice, the last ones without."""
    def generate(self, asked_, part="label", batch_size=32, max_new_tokens=None, samples=1, temperature=0.0):
        if samples == 1:
            return real(self, asked_, part, batch_size, max_new_tokens)
        assert temperature == defaults.VOTE_TEMP
        seen.extend(asked_)
        said = ["( 2 + 1 )", "( 1 + 2 )", "( 1 + 2 )", "3", "nothing", "( 5 + 5 )", "( 3 + 0 )", "( 3 + 0 ) + 0"]
        unsure = ["( 9 - 1 )"] * 5 + ["nothing"] * 3
        return [self.format.encode_target(self.rust, text, "label")[:-1] for n, _ in enumerate(asked_)
                for text in (said if n % 3 else unsure)]

    from edgedistill.train.students import T5Student

    seen: list[str] = []
    real = T5Student.generate
    monkeypatch.setattr(T5Student, "generate", generate)
    monkeypatch.setattr(selftrain, "CHUNK", 6)
    agree.seen = seen


def test_only_training_rows_without_a_label_are_asked_and_a_clear_majority_trains(folder: str, tmp_path: Path,
                                                                                 monkeypatch, capsys) -> None:
    run = half_labelled(tmp_path / "run")
    agree(monkeypatch)
    result = train(folder, run=str(run), method="hybrid", rounds=1, epochs=1, batch_size=8)
    asked_ = without_label(run)
    assert sorted(agree.seen) == sorted(row["input"] for row in asked_) and len(asked_) == 18
    held = {json.loads(line)["input"] for name in ("dev",) for line in
            (run / "teach" / "data" / f"{name}.jsonl").read_text().splitlines()}
    assert not held & set(agree.seen)
    entries = [json.loads(line) for line in (run / "train" / "rounds" / "1" / "pseudo.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == [row["id"] for row in asked_]
    sure, unsure = entries[1], entries[0]
    assert (sure["answer"], sure["value"], sure["votes"], sure["share"], sure["taken"]) == (
        "( 1 + 2 )", "3", {"3": 6, "10": 1}, 0.75, True)
    assert (unsure["value"], unsure["share"], unsure["taken"]) == ("8", 0.625, False)
    assert {"round", "student", "seed", "temperature", "samples", "input"} <= set(sure)
    (told,) = result["rounds"]
    assert (told["asked"], told["taken"], told["questions"]) == (18, 12, 18) and result["questions"] == 18 + 12
    assert not (run / "train" / "rounds" / "1" / "student").exists()
    assert "12 of 18 questions have a label by 75% of 8 answers" in capsys.readouterr().err


def test_the_last_round_begins_again_from_the_untrained_student(folder: str, tmp_path: Path) -> None:
    # Without one agreed answer the last training is that of no rounds, to the bit.
    for name, settings in (("none", {}), ("one", {"rounds": 1})):
        train(folder, run=str(half_labelled(tmp_path / name)), method="hybrid", epochs=1, batch_size=8, threads=1, **settings)
    weights = [(tmp_path / name / "train" / "student" / "model.safetensors").read_bytes() for name in ("none", "one")]
    assert runs.read_json(tmp_path / "one" / "train" / "result.json")["rounds"][0]["taken"] == 0
    assert weights[0] == weights[1]


def test_rounds_share_the_tokens(folder: str, tmp_path: Path, monkeypatch) -> None:
    agree(monkeypatch)
    result = train(folder, run=str(half_labelled(tmp_path / "run")), method="hybrid", rounds=1, tokens=4000, batch_size=8)
    spent = [made["tokens_per_question"] * made["questions"] * made["epochs"] for made in (result, *result["rounds"])]
    assert spent == pytest.approx([2000, 2000], rel=0.01)


def test_rows_that_all_have_labels_make_no_rounds(folder: str, tmp_path: Path, capsys) -> None:
    result = train(folder, run=str(tiny_students.taught_run(tmp_path / "run", 24)), method="hybrid", rounds=2, epochs=1)
    assert "rounds" not in result and "nothing to train itself on" in capsys.readouterr().err
    assert result["resampled"]["questions"] > 12 and result["method"] == "hybrid"


def test_a_round_that_is_stopped_goes_on_with_the_votes_that_were_counted(folder: str, tmp_path: Path, monkeypatch) -> None:
    run = half_labelled(tmp_path / "run")
    agree(monkeypatch)
    settings = dict(run=str(run), method="hybrid", rounds=1, epochs=1, batch_size=8)
    real, calls = selftrain.votes, []

    def once(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Stopped("the time is over")
        return real(*args)

    monkeypatch.setattr(selftrain, "votes", once)
    with pytest.raises(Stopped):
        train(folder, **settings)
    journal = run / "train" / "rounds" / "1" / "pseudo.jsonl"
    kept = journal.read_bytes()
    assert kept.count(b"\n") == 6 and runs.finished(run / "train" / "rounds", "1")
    journal.write_bytes(kept + b'{"id": "half')
    train(folder, **settings)
    assert len(calls) == 1 + 1 + 2 and journal.read_bytes().startswith(kept) and journal.read_bytes().count(b"\n") == 18


def test_samples_differ_and_are_the_same_again() -> None:
    student = tiny_students.t5()
    question = [row.input for row in ROWS[:2]]

    def sampled() -> list[list[int]]:
        torch.manual_seed(3)
        return student.generate(question, samples=4, temperature=1.0, max_new_tokens=6)

    found = sampled()
    assert len(found) == 8 and len({tuple(ids) for ids in found}) > 4 and found == sampled()
    greedy = student.generate(question, max_new_tokens=6)
    torch.manual_seed(0)
    assert student.generate(question, samples=2, temperature=1e-4, max_new_tokens=6) == [greedy[0]] * 2 + [greedy[1]] * 2


def test_a_killed_hybrid_resumes_to_the_same_weights(folder: str, tmp_path: Path, monkeypatch, capsys) -> None:
    straight, killed = (half_labelled(tmp_path / name, 48) for name in ("straight", "killed"))
    settings = dict(method="hybrid", rounds=1, resample=0.7, mutual_information=0.1, epochs=4, batch_size=8,
                    learning_rate=0.003, threads=1)
    code = (f"import edgedistill.defaults as d; d.CHECKPOINT_MINUTES = 0\nfrom edgedistill.train import train\n"
            f"train({folder!r}, run={str(killed)!r}, **{settings!r})")
    for stage in ("train/rounds/1", "train"):  # killed in the middle of an epoch, of the round and then of the last training
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        folders = (killed / stage / "checkpoints").glob
        while not any(int(p.parent.name.split("-")[1]) > 3 for p in folders("checkpoint-*/sums.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()  # SIGKILL
        process.wait()
    train(folder, run=str(killed), **settings)
    assert "resumed from checkpoint-" in capsys.readouterr().err
    monkeypatch.setattr(defaults, "CHECKPOINT_MINUTES", 0)
    train(folder, run=str(straight), **settings)
    for file in ("train/student/model.safetensors", "train/rounds/1/pseudo.jsonl"):
        assert (killed / file).read_bytes() == (straight / file).read_bytes(), file


def test_the_plan_tells_how_many_questions_can_have_fresh_numbers(folder: str, tmp_path: Path, capsys) -> None:
    train(folder, run=str(tiny_students.taught_run(tmp_path / "run")), method="hybrid", dry_run=True, batch_size=8)
    told = capsys.readouterr().err
    assert "numbers   fresh ones for 50% of the draws of " in told and " of them with a rationale: '" in told


def test_it_learns_without_a_teacher_and_without_rationales(folder: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input": q.text, "label": q.label}) + "\n" for q in tiny_students.problems(24)))
    result = train(folder, run=str(tmp_path / "run"), data=str(rows), method="hybrid", rationales=False, resample=1.0, epochs=2,
                   batch_size=8)
    assert result["with_rationale"] == 0 and "rationale_loss" not in result["losses"][-1]
    assert load(tmp_path / "run" / "train" / "student").format.shared


def test_bad_settings_are_one_line_errors(tmp_path: Path) -> None:
    run = str(tiny_students.taught_run(tmp_path / "run"))
    choices = tmp_path / "rows.jsonl"
    choices.write_text("".join(json.dumps({"input": f"Is {i} more than 3?", "label": "yes"}) + "\n" for i in range(12)))
    for settings, message in [
        ({"resample": 1.5}, "--resample 1.5, .*between 0 and 1"), ({"rounds": -1}, "rounds are 0 to 10"),
        ({"method": "step-by-step", "resample": 0.5}, "are parts of --method hybrid"),
        ({"states": 1.0}, "--inherit and --states are for --method hybrid with a --mentor"),
        ({"mentor": "x", "inherit": "middle"}, "--inherit middle: give spread or ends"),
        ({"mentor": "x", "states": -1.0}, "--states -1: give a weight not below 0"),
        ({"mentor": ["x"]}, "--mentor x: there is no model.safetensors in it; give the train/student/ folder"),
        ({"mentor_share": 0.5}, "--mentor-share 0.5 is for --method hybrid with a --mentor"),
        ({"method": "finetune", "reworded": run}, "are parts of --method hybrid"),
        ({"method": "finetune", "rounds": 1}, "are parts of --method hybrid"),
        ({"method": "step-by-step", "rationales": False}, "are parts of --method hybrid"),
        ({"mutual_information": 0.1, "rationales": False}, "without --two-pass and --no-rationales"),
        ({"resample": 0.5, "data": str(choices), "task": "strategyqa", "run": str(tmp_path / "other")},
         "only equations can have other numbers"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            train(**{"run": run, "method": "hybrid", **settings})
        assert "\n" not in str(caught.value)
