from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_students
import torch
from torch.nn.functional import cross_entropy

from edgedistill.errors import Error, UsageError
from edgedistill.runs import read_json
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.train import train
from edgedistill.train.methods import Question, questions, vote
from edgedistill.train.trainer import Batcher, optimizer, step_by_step_loss

FAMILIES = {"t5": tiny_students.t5, "llama": tiny_students.decoder}
ASKED = [
    Question("a", "Tom has 3 apples and buys 4 more. How many has he?", "( 3 + 4 )", ("3 and 4 more are 3 + 4.",)),
    Question("b", "5 of 9 birds fly away. How many stay?", "( 9 - 5 )"),
    Question("c", "Each of 6 boxes holds 7 pens. How many pens are there in all of the boxes?", "( 6 * 7 )",
             ("There are 6 boxes with 7 pens, so 6 * 7.",)),
]


def by_hand(student, question: Question, part: str) -> torch.Tensor:
    """Token losses of one target from a forward pass of its own, without padding."""
    source, target = student.example(question.text, question.label if part == "label" else question.rationales[0], part)
    if student.family == "t5":
        logits = student.model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0]
    else:
        logits = student.model(input_ids=torch.tensor([source + target])).logits[0][len(source) - 1:-1]
    return cross_entropy(logits, torch.tensor(target), reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_is_alpha_label_plus_the_rest_rationale(family: str) -> None:
    student = FAMILIES[family]()
    batch = Batcher(student, ASKED)([0, 1, 2])
    part = batch.pop("part")
    logits, targets, row = student.target_logits(batch)
    loss, terms = step_by_step_loss(logits, targets, part[row], 0.3)
    label = torch.cat([by_hand(student, q, "label") for q in ASKED]).mean()
    rationale = torch.cat([by_hand(student, q, "rationale") for q in (ASKED[0], ASKED[2])]).mean()
    assert torch.allclose(terms["label"], label, atol=1e-5)
    assert torch.allclose(terms["rationale"], rationale, atol=1e-5)
    assert torch.allclose(loss, 0.3 * label + 0.7 * rationale, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_end_with_eos_and_padding_carries_no_loss(family: str) -> None:
    student = FAMILIES[family]()
    batch = Batcher(student, ASKED)([0, 1, 2])
    del batch["part"]
    _, targets, row = student.target_logits(batch)
    for i in range(int(row.max()) + 1):
        assert targets[row == i][-1] == student.format.eos_id
    assert len(targets) == int((batch["labels"] != -100).sum())


def test_a_batch_draws_one_of_several_rationales() -> None:
    student = tiny_students.t5()
    asked = [Question("a", "one", "( 1 + 1 )", ("first.", "second one here."))]
    batcher = Batcher(student, asked)
    torch.manual_seed(0)
    lengths = {int((batcher([0])["labels"][1] != -100).sum()) for _ in range(20)}
    assert len(lengths) == 2


TASK = tiny_students.TASK
ROWS = [Row("1", "a", "( 1 + 2 )"), Row("2", "b", "( 4 - 1 )"), Row("3", "c", "( 2 * 2 )")]
CORPUS = [
    {"id": "1", "answer": "( 2 + 1 )", "rationale": "r1", "verdict": "verified"},
    {"id": "2", "answer": "( 4 + 1 )", "rationale": "r2", "verdict": "wrong"},
    {"id": "3", "answer": None, "rationale": "r3", "verdict": "unparsed"},
]


def test_finetune_takes_gold_labels_and_no_rationale() -> None:
    made = questions("finetune", TASK, ROWS, CORPUS)
    assert [(q.label, q.rationales) for q in made] == [("( 1 + 2 )", ()), ("( 4 - 1 )", ()), ("( 2 * 2 )", ())]


def test_seq_kd_takes_the_teachers_answer_right_or_wrong() -> None:
    made = questions("seq-kd", TASK, ROWS, CORPUS)
    assert [(q.id, q.label) for q in made] == [("1", "( 2 + 1 )"), ("2", "( 4 + 1 )")]


def test_step_by_step_takes_gold_labels_and_only_verified_rationales() -> None:
    made = questions("step-by-step", TASK, ROWS, CORPUS)
    assert [(q.label, q.rationales) for q in made] == [("( 1 + 2 )", ("r1",)), ("( 4 - 1 )", ()), ("( 2 * 2 )", ())]


def test_without_gold_the_vote_decides_and_only_its_rationales_are_kept() -> None:
    row = Row("1", "a")
    entries = [{"id": "1", "answer": answer, "rationale": answer, "verdict": "unlabelled"}
               for answer in ("( 1 + 1 )", "( 3 + 0 )", "( 1 + 2 )")]
    assert vote(TASK, row, entries) == "( 3 + 0 )"
    made = questions("step-by-step", TASK, [row], entries)
    assert made[0].label == "( 3 + 0 )" and made[0].rationales == ("( 3 + 0 )", "( 1 + 2 )")
    # Nor do samples that were told the label, or texts that the teacher only scored, have a voice.
    told = [{"id": "1", "answer": "( 9 + 9 )", "verdict": "verified", **mark} for mark in (
        {"hint": True}, {"finish_reason": "scored"}, {"hint": True, "finish_reason": "stop"})]
    assert vote(TASK, row, [*told, *entries]) == "( 3 + 0 )"


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


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_students.t5().save(tmp_path / "tiny-t5", {}, "# card\n")
    return str(tmp_path / "tiny-t5")


def command(run: Path, folder: str, epochs: int = 4) -> list[str]:
    return [sys.executable, "-m", "edgedistill", "train", "--student", folder, "--run", str(run), "--epochs",
            str(epochs), "--batch-size", "8", "--learning-rate", "0.003", "--threads", "1"]


def test_a_killed_training_resumes_to_the_same_weights(folder: str, tmp_path: Path) -> None:
    straight = tiny_students.taught_run(tmp_path / "straight")
    killed = tiny_students.taught_run(tmp_path / "killed")
    subprocess.run(command(straight, folder), check=True, capture_output=True)
    process = subprocess.Popen(command(killed, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((killed / "train" / "checkpoints").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # SIGKILL
    process.wait()
    assert read_json(killed / "train" / "manifest.json")["state"] == "running"
    done = subprocess.run(command(killed, folder), check=True, capture_output=True, text=True)
    assert "resumed from checkpoint-" in done.stderr
    # Bitwise: same threads, same order of rows, same random state.
    assert ((killed / "train" / "student" / "model.safetensors").read_bytes()
            == (straight / "train" / "student" / "model.safetensors").read_bytes())


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
        ({"student": "carve", "layers": 4}, "fewer than 8 layers"), ({"epochs": 0}, "epochs must be above 0"),
        ({"student": str(tmp_path)}, "no config.json"), ({"method": "dss"}, "known methods"),
    ]:
        with pytest.raises(UsageError, match=message):
            train(**settings, run=run)


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
