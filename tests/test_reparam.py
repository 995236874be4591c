from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_students
import torch

from edgedistill.errors import UsageError
from edgedistill.runs import read_json
from edgedistill.tasks.data import Row
from edgedistill.train import reparam, train
from edgedistill.train.methods import questions
from edgedistill.train.students import Student, load

FAMILIES = {
    "t5-relu": tiny_students.t5,
    "t5-gated": lambda: tiny_students.t5(gated=True, tied=False),
    "llama": tiny_students.decoder,
    "llama-untied": lambda: tiny_students.decoder(tied=False),
    "qwen2": lambda: tiny_students.decoder("qwen2"),
}
TEXTS = tiny_students.texts(12)[::2]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_length = pytest.mark.parametrize("factors", [1, 2, 3])


def logits(student: Student) -> torch.Tensor:
    """[N, V] of all target tokens of a padded batch."""
    batch, _ = student.tensors([student.encode(text, "( 3 + 4 )", "label") for text in TEXTS])
    with torch.no_grad():
        return student.hidden(batch) @ student.head.T


def chains(student: Student) -> list[reparam.Chain]:
    return [module for module in student.model.modules() if isinstance(module, reparam.Chain)]


@every_length
@every_family
def test_every_ffn_becomes_a_chain_of_the_thesis_shapes(family: str, factors: int) -> None:
    student = FAMILIES[family]()
    before = {name for name, _ in student.model.named_parameters()}
    reparam.replace(student.model, factors)
    d, inner = (64, 96) if family.startswith("t5") else (96, 128)
    shapes = {1: [(d, d)], 2: [(inner, d), (d, inner)], 3: [(inner, d), (inner, inner), (d, inner)]}[factors]
    assert len(chains(student)) == (5 if family.startswith("t5") else 3)
    assert all([tuple(f.weight.shape) for f in chain.factors] == shapes for chain in chains(student))
    # Nothing of the FFNs is left, and nothing else is gone.
    after = {name for name, _ in student.model.named_parameters()}
    assert {name for name in before if name not in after} == {
        name for name in before if ".mlp." in name or ".DenseReluDense." in name}


@every_length
@every_family
def test_merging_changes_no_output(family: str, factors: int) -> None:
    student = FAMILIES[family]()
    with_ffn = logits(student)
    reparam.replace(student.model, factors)
    before = logits(student)
    assert (before - with_ffn).abs().max() > 1e-2
    reparam.merge(student.model)
    # An untied head's logits are spread by 10: 1e-5 is then below what fp32 can tell apart, hence relative to it.
    assert (logits(student) - before).abs().max() < 1e-5 * max(1, before.std())
    assert all(len(chain.factors) == 1 for chain in chains(student))
    assert student.model.config.edgedistill_ffn == {"factors": 1, "inner": None}


@every_length
def test_the_product_starts_with_the_variance_of_its_family(factors: int) -> None:
    for family, std in (("t5-relu", 64 ** -0.5), ("llama", 0.02)):
        student = FAMILIES[family]()
        reparam.replace(student.model, factors)
        products = torch.stack([chain.product() for chain in chains(student)])
        assert 0.9 * std < products.std() < 1.1 * std


@pytest.mark.parametrize("merged", [False, True])
@every_family
def test_a_saved_folder_loads_back_bitwise(family: str, merged: bool, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    reparam.replace(student.model, 3)
    if merged:
        reparam.merge(student.model)
    student.save(tmp_path / "student", {}, "# card\n")
    assert {p.suffix for p in (tmp_path / "student").iterdir()} <= {".json", ".safetensors", ".md", ".jinja", ".model"}
    loaded = load(tmp_path / "student")
    ours, theirs = student.model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not loaded.model.training and loaded.parameters() == student.parameters()
    before, answers = logits(student), student.answers(TEXTS)
    student.model = loaded.model  # by the same tokenizer: AutoTokenizer makes another one of this Qwen2's
    assert torch.equal(logits(student), before) and student.answers(TEXTS) == answers
    loaded.save(tmp_path / "again", {}, "# card\n")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "student" / name).read_bytes()


@pytest.mark.parametrize("mark", [{"factors": 2, "inner": 96}, {"factors": 3, "inner": 95}, {"factors": 4, "inner": 96},
                                  {"factors": 3}, {"factors": 3, "inner": "96"}, [3]])
def test_weights_that_do_not_fit_the_mark_are_a_one_line_error(mark, tmp_path: Path) -> None:
    student = tiny_students.t5()
    reparam.replace(student.model, 3)
    student.save(tmp_path, {}, "# card\n")
    config = read_json(tmp_path / "config.json")
    assert config["edgedistill_ffn"] == {"factors": 3, "inner": 96}
    (tmp_path / "config.json").write_text(json.dumps(config | {"edgedistill_ffn": mark}))
    with pytest.raises(UsageError, match="cannot be loaded") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_weight_file_is_a_one_line_error(tmp_path: Path) -> None:
    student = tiny_students.decoder()
    reparam.replace(student.model, 2)
    student.save(tmp_path, {}, "# card\n")
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-5])
    with pytest.raises(UsageError, match="does not fit"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(tmp_path)


# The method


TASK = tiny_students.TASK
ROWS = [Row("1", "a", "( 1 + 2 )"), Row("2", "b", "( 4 - 1 )"), Row("3", "c")]
CORPUS = [{"id": id, "answer": "( 5 + 1 )", "rationale": "r", "verdict": "unlabelled"} for id in "123"]


def test_its_targets_are_gold_labels_and_the_teachers_answer_where_there_is_none() -> None:
    made = questions("reparam", TASK, ROWS, CORPUS)
    assert [(q.label, len(q.slots)) for q in made] == [("( 1 + 2 )", 1), ("( 4 - 1 )", 1), ("( 5 + 1 )", 1)]


def test_without_a_teacher_it_trains_on_the_labelled_rows() -> None:
    assert [q.id for q in questions("reparam", TASK, ROWS, [])] == ["1", "2"]
    with pytest.raises(UsageError, match="the rows have no labels"):
        questions("reparam", TASK, ROWS[2:], [])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_students.t5().save(tmp_path / "tiny-t5", {}, "# card\n")
    return str(tmp_path / "tiny-t5")


SETTINGS = {"method": "reparam", "factors": 3, "epochs": 2, "batch_size": 8, "learning_rate": 0.003, "threads": 1}


def test_training_leaves_a_merged_folder_that_answers_as_the_chains_did(folder: str, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    unmerged = []
    real = reparam.merge

    def merge(model) -> None:
        unmerged.append(copy.deepcopy(model))
        real(model)

    monkeypatch.setattr(reparam, "merge", merge)
    run = tiny_students.taught_run(tmp_path / "run")
    result = train(folder, run=str(run), **SETTINGS)
    student = load(run / "train" / "student")
    assert student.model.config.edgedistill_ffn == {"factors": 1, "inner": None}
    assert result["method"] == "reparam" and result["factors"] == 3 and result["steps"] == 12
    assert result["with_rationale"] == 0
    assert result["parameters"] == student.parameters()
    assert result["trained_parameters"] - result["parameters"] == 5 * (2 * 64 * 96 + 96 * 96 - 64 * 64)
    assert "from_pretrained" in (run / "train" / "student" / "README.md").read_text()
    merged_answers, merged_logits = student.answers(TEXTS), logits(student)
    student.model = unmerged[0].eval()
    assert student.answers(TEXTS) == merged_answers
    assert (logits(student) - merged_logits).abs().max() < 1e-4
    assert read_json(run / "train" / "manifest.json")["config"]["factors"] == 3
    assert train(folder, run=str(run), **SETTINGS) == result
    with pytest.raises(UsageError, match="factors is 3 there, 2 asked"):
        train(folder, run=str(run), **SETTINGS | {"factors": 2})


def test_an_interrupted_training_resumes_to_the_same_weights(folder: str, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    from edgedistill.train.trainer import DistillTrainer

    straight, stopped = (tiny_students.taught_run(tmp_path / name) for name in ("straight", "stopped"))
    train(folder, run=str(straight), **SETTINGS)
    real = DistillTrainer.evaluate

    def evaluate(self, *args, **kwargs):
        if self.state.epoch >= 2:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            train(folder, run=str(stopped), **SETTINGS)
    train(folder, run=str(stopped), **SETTINGS)
    assert "resumed from checkpoint-6" in capsys.readouterr().err
    assert ((stopped / "train" / "student" / "model.safetensors").read_bytes()
            == (straight / "train" / "student" / "model.safetensors").read_bytes())


def test_factors_are_part_of_no_other_methods_configuration(folder: str, tmp_path: Path) -> None:
    run = tiny_students.taught_run(tmp_path / "run")
    result = train(folder, run=str(run), method="finetune", factors=2, epochs=0.5, batch_size=8)
    assert "factors" not in result and "trained_parameters" not in result
    assert "factors" not in read_json(run / "train" / "manifest.json")["config"]
    assert not hasattr(load(run / "train" / "student").model.config, "edgedistill_ffn")


@pytest.mark.parametrize("factors", [0, 4, -1])
def test_bad_factors_are_refused_before_anything_is_written(factors: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--factors {factors}: a linear chain has 1, 2 or 3") as caught:
        train("carve", run=str(tmp_path / "run"), method="reparam", factors=factors)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_command_line_takes_factors(cli) -> None:
    done = cli("train", "--method", "reparam", "--factors", 4)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --factors 4: a linear chain has 1, 2 or 3"


def test_matrices_are_the_products_by_module_name() -> None:
    student = tiny_students.decoder()
    assert reparam.matrices(student.model) == {}
    reparam.replace(student.model, 2)
    found = reparam.matrices(student.model)
    assert set(found) == {f"model.layers.{i}.mlp" for i in range(3)}
    first, second = (factor.weight.detach().numpy() for factor in student.model.model.layers[1].mlp.factors)
    assert found["model.layers.1.mlp"].dtype == np.float32
    np.testing.assert_allclose(found["model.layers.1.mlp"], second @ first, atol=1e-6)
