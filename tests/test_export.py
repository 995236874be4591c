from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_students

from edgedistill import cards, machine
from edgedistill.cards import Target
from edgedistill.edge import Student
from edgedistill.errors import GateError, UsageError
from edgedistill.export import export, gates, linear, write
from edgedistill.export import feedback as feedback_
from edgedistill.export.feedback import Feedback
from edgedistill.runs import read_json
from edgedistill.tasks import wordmath
from edgedistill.train import reparam

FAMILIES = {
    "t5-v1.0": tiny_students.t5,
    "t5-v1.1": lambda: tiny_students.t5(gated=True, tied=False),
    "llama-tied": tiny_students.decoder,
    "llama-untied": lambda: tiny_students.decoder(tied=False),
    "qwen2": lambda: tiny_students.decoder("qwen2"),
    "t5-chains": lambda: tiny_students.chained(tiny_students.t5()),
    "llama-chains": lambda: tiny_students.chained(tiny_students.decoder()),
}
PORTABLE = cards.load(Target, "portable")


def questions(n: int) -> list[str]:
    return [row["input"] for row in wordmath.generate("dev", n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fp32_graph_gives_torchs_greedy_tokens_on_60_inputs(family: str, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    write(student, tmp_path / "bundle", "fp32", PORTABLE)
    edge = Student.load(tmp_path / "bundle")
    texts = ["a", "7 ?", *questions(58)]
    assert [edge.generate(text).ids for text in texts] == student.generate(texts)


@pytest.mark.parametrize("target", ["portable", "rpi4", "x86-vnni"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_logits_stay_near_fp32_in_both_forms(family: str, target: str, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    card = cards.load(Target, target)
    if machine.saturates() and "integer" in (card.linear, card.encoder):
        pytest.skip("this CPU has no VNNI: its integer products saturate")
    for precision in ("fp32", "int8"):
        write(student, tmp_path / precision, precision, card)
    exact, quantised = (Student.load(tmp_path / precision) for precision in ("fp32", "int8"))
    source = exact.format.encode_source(exact.tokenizer, questions(1)[0], "label")
    a, b = (edge.graphs.start(source, [edge.format.start_id]).copy() for edge in (exact, quantised))
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.08 * np.abs(a - a.mean()).max()


@pytest.mark.parametrize("target", ["portable", "x86-vnni"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int4_logits_stay_near_fp32_in_fewer_bytes(family: str, target: str, tmp_path: Path) -> None:
    student, card = FAMILIES[family](), cards.load(Target, target)
    for precision in ("fp32", "int4"):
        write(student, tmp_path / precision, precision, card)
    edges = {name: Student.load(tmp_path / name) for name in ("fp32", "int4")}
    source = edges["fp32"].format.encode_source(edges["fp32"].tokenizer, questions(1)[0], "label")
    logits = {name: edge.graphs.start(source, edge.format.opening(edge.tokenizer, "label")).copy()
              for name, edge in edges.items()}
    assert 0 < np.square(logits["int4"] - logits["fp32"]).mean() / logits["fp32"].var() < 0.15
    sizes = {name: (tmp_path / name / "weights.bin").stat().st_size for name in edges}
    assert sizes["int4"] < 0.6 * sizes["fp32"]  # gaps between pages are much of a tiny one


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_give_the_weight_back_and_the_scales_tried_pay(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    weight[3] = 0

    def error(shares: list[float]) -> float:
        monkeypatch.setattr(linear, "SHARES", shares)
        values, scales, block = linear.in_blocks(weight, bits)
        if bits == 4:
            values = np.stack([values & 15, values >> 4], -1).reshape(48, 96 // block, block)
        restored = ((values.astype(np.float32) - (128 if bits == 8 else 8)) * scales[:, :, None]).reshape(48, 96)
        assert not restored[3].any() and np.abs(restored - weight).max() < np.abs(weight).max() / (100 if bits == 8 else 6)
        return float(np.square(restored - weight).mean())

    searched, plain = error(linear.SHARES), error([1.0])
    assert searched < 0.98 * plain if bits == 4 else searched == plain


@pytest.mark.parametrize("family", ["t5-v1.0", "llama-tied"])
def test_an_int8_result_does_not_depend_on_neighbouring_tokens(family: str, tmp_path: Path) -> None:
    # Per-tensor activation scales would let the outlier in the second text change the first tokens' states.
    student = FAMILIES[family]()
    embedding = student.model.get_input_embeddings().weight.data
    embedding[student.rust.token_to_id("?") or -1] *= 1000
    write(student, tmp_path / "bundle", "int8", cards.load(Target, "rpi4"))
    model = onnx.load(tmp_path / "bundle" / ("encoder.onnx" if family.startswith("t5") else "model.onnx"),
                      load_external_data=False)
    scales = [node for node in model.graph.node if node.op_type == "ReduceMax"]
    assert scales and all(onnx.helper.get_node_attr_value(node, "keepdims") == 1 for node in scales)
    axes = {init.name: list(init.int64_data) for init in model.graph.initializer}
    assert all(axes[node.input[1]] == [-1] for node in scales)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_weight_is_stored_once(family: str, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    write(student, tmp_path / "bundle", "fp32", PORTABLE)
    stored = (tmp_path / "bundle" / "weights.bin").stat().st_size
    graphs = sum(p.stat().st_size for p in (tmp_path / "bundle").glob("*.onnx"))
    # Beside the parameters: rotary or bias tables, the gap to the next page for each of some 60 arrays.
    assert stored < 4 * student.parameters() + 90 * 4096
    assert graphs < 200_000


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("family", ["t5-chains", "llama-chains"])
def test_chains_are_written_as_their_merged_matrices(family: str, precision: str, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    write(student, tmp_path / "chains", precision, PORTABLE)
    reparam.merge(student.model)
    write(student, tmp_path / "merged", precision, PORTABLE)
    for path in (tmp_path / "merged").iterdir():
        assert path.read_bytes() == (tmp_path / "chains" / path.name).read_bytes()
    graphs = [onnx.load(path, load_external_data=False).graph for path in (tmp_path / "merged").glob("*.onnx")]
    stored = {init.name for graph in graphs for init in graph.initializer}
    assert len([name for name in stored if name.endswith(".ffn")]) == (5 if family.startswith("t5") else 3)
    assert not [name for name in stored if name.endswith((".wi", ".wo", ".gate_up", ".down"))]


@pytest.mark.parametrize("family", ["t5-chains", "llama-chains"])
def test_a_merged_folder_passes_the_gates_and_answers_in_int8(family: str, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    reparam.merge(student.model)
    student.save(tmp_path / "student", {}, "# card\n")
    result = export(str(tmp_path / "student"), run=str(tmp_path / "run"))
    assert result["precision"] == "int8" and result["parameters"] == student.parameters()
    assert isinstance(Student.load(tmp_path / "run" / "export" / "bundle").answer(questions(1)[0]).text, str)


def test_min_new_tokens_and_max_new_tokens_force_a_length(tmp_path: Path) -> None:
    student = tiny_students.t5()
    write(student, tmp_path / "bundle", "fp32", PORTABLE)
    edge = Student.load(tmp_path / "bundle")
    assert len(edge.generate("two apples", max_new_tokens=11, min_new_tokens=11).ids) == 11


def test_too_long_inputs_are_cut_the_same_way_in_training_and_on_the_device(tmp_path: Path) -> None:
    for student in (tiny_students.t5(), tiny_students.decoder()):
        write(student, tmp_path / student.family, "fp32", PORTABLE)
        edge = Student.load(tmp_path / student.family)
        text = "many apples and 12 pears " * 60
        source = edge.format.encode_source(edge.tokenizer, text, "label")
        assert len(source) == edge.format.max_input_tokens
        assert [edge.generate(text).ids] == student.generate([text])


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A student folder as `train` leaves it."""
    folder = tmp_path / "student"
    tiny_students.decoder().save(folder, {}, "# card\n")
    return folder


def test_export_writes_a_bundle_whose_manifest_names_every_file(run_folder: Path, tmp_path: Path) -> None:
    result = export(str(run_folder), run=str(tmp_path / "run"))
    bundle = tmp_path / "run" / "export" / "bundle"
    manifest = read_json(bundle / "bundle.json")
    assert set(manifest["files"]) == {p.name for p in bundle.iterdir()} - {"bundle.json"}
    assert result["bytes"] == sum((bundle / name).stat().st_size for name in ("model.onnx", "weights.bin"))
    assert {"precision", "target", "bytes", "fp32_accuracy", "accuracy", "token_agreement", "kept_high"} <= set(result)
    assert export(str(run_folder), run=str(tmp_path / "run")) == result  # nothing left to do


def test_a_drop_over_the_limit_is_refused_and_leaves_no_bundle(run_folder: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    from edgedistill.tasks.data import Row

    rows = [Row(str(i), text, "( 1 + 1 )") for i, text in enumerate(questions(50))]
    monkeypatch.setattr(gates, "rows", lambda run, student: (rows, [row.input for row in rows]))
    answered = iter(gates.Answered([0.5] * 50, [n < right for n in range(50)]) for right in (30, 29, 29))
    monkeypatch.setattr(gates, "answered", lambda edge, dev: next(answered))
    with pytest.raises(GateError, match=r"int8 loses 2\.0 points.*--max-drop allows 1\.5"):
        export(str(run_folder), run=str(tmp_path / "run"))
    assert GateError.exit_code == 3
    assert not (tmp_path / "run" / "export" / "bundle").exists()


@pytest.mark.parametrize("target", ["portable", "rpi4"])
def test_a_product_kept_high_is_nearer_to_fp32_and_no_larger_on_disk(target: str, tmp_path: Path) -> None:
    student = tiny_students.decoder()
    for layer in student.model.model.layers:  # one channel far larger than the rest, as trained models have
        layer.input_layernorm.weight.data[3] = 60.0
        layer.self_attn.q_proj.weight.data[:, 3] /= 60.0
    card = cards.load(Target, target)
    everything = ("qkv", "o", "down", "gate_up")
    for name, precision, kept in (("fp32", "fp32", ()), ("int8", "int8", ()), ("kept", "int8", everything)):
        write(student, tmp_path / name, precision, card, kept)
    edges = {name: Student.load(tmp_path / name) for name in ("fp32", "int8", "kept")}
    source = edges["fp32"].format.encode_source(edges["fp32"].tokenizer, questions(1)[0], "label")
    logits = {name: edge.graphs.start(source, []).copy() for name, edge in edges.items()}
    error = {name: np.abs(logits[name] - logits["fp32"]).mean() for name in ("int8", "kept")}
    assert error["kept"] < error["int8"]
    sizes = {name: (tmp_path / name / "weights.bin").stat().st_size for name in ("int8", "kept")}
    assert sizes["kept"] <= 1.02 * sizes["int8"]


def test_a_graph_that_differs_from_torch_is_refused(run_folder: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    import edgedistill.export as module

    real = module.write

    def wrong(student, *args):  # the fault: one norm gain is exported doubled
        student.model.model.norm.weight.data[: 40] *= -3
        real(student, *args)
        student.model.model.norm.weight.data[: 40] /= -3

    monkeypatch.setattr(module, "write", wrong)
    with pytest.raises(GateError, match="other tokens than torch"):
        export(str(run_folder), run=str(tmp_path / "run"))


@pytest.mark.parametrize("family", ["t5-v1.0", "t5-v1.1", "llama-tied"])
def test_a_vocabulary_is_trimmed_to_the_run_and_every_text_stays_encodable(family: str, tmp_path: Path) -> None:
    student = FAMILIES[family]()
    student.save(tmp_path / "student", {}, "# card\n")
    run = tiny_students.taught_run(tmp_path / "run", n=8)
    result = export(str(tmp_path / "student"), run=str(run), precision="fp32", vocab="200")
    edge, manifest = (read(run / "export" / "bundle") for read in (Student.load, lambda b: read_json(b / "bundle.json")))
    kept = manifest["vocabulary"]
    assert kept["full"] == student.model.config.vocab_size > kept["kept"] == len(kept["map"]) == len(edge.graphs.logits)
    assert result["vocabulary"]["kept"] == kept["kept"] and 0 < kept["coverage"] <= 1
    pieces = {i: piece for piece, i in edge.tokenizer.get_vocab().items()}
    assert all(student.rust.id_to_token(old) == pieces[new] for new, old in enumerate(kept["map"]) if new in pieces)
    text = wordmath.generate("train", 1)[0]["input"]  # of the run's own rows: the same tokens, so the same answer among them
    assert [student.rust.id_to_token(i) for i in student.format.encode_source(student.rust, text, "label")] == [
        pieces[i] for i in edge.format.encode_source(edge.tokenizer, text, "label")]
    assert edge.tokenizer.decode(edge.tokenizer.encode("Zyx: 7 quokkas?").ids) == student.rust.decode(
        student.rust.encode("Zyx: 7 quokkas?").ids)
    with pytest.raises(UsageError, match="has none: teach there first"):
        export(str(tmp_path / "student"), run=str(tmp_path / "empty"), vocab="task")
    with pytest.raises(UsageError, match="give full, task or a number"):
        export(str(tmp_path / "student"), run=str(tmp_path / "empty"), vocab="some")


def test_folders_that_are_no_students_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model.safetensors"):
        export(str(tmp_path), run=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="no finished train stage"):
        export(run=str(tmp_path / "run"))


def test_a_plain_hugging_face_folder_is_exported_without_a_task(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "edgedistill.json").unlink()
    result = export(str(run_folder), run=str(tmp_path / "run"))
    assert result["accuracy"] is None and 0 < result["token_agreement"] <= 1
    assert Student.load(tmp_path / "run" / "export" / "bundle").answer("two apples").value is None


@pytest.mark.parametrize("fault, message", [
    (lambda b: (b / "weights.bin").write_bytes((b / "weights.bin").read_bytes()[:-1]), "differs from the one"),
    (lambda b: (b / "tokenizer.json").unlink(), "missing"),
    (lambda b: (b / "bundle.json").write_text("{"), "not a bundle's manifest"),
    (lambda b: (b / "bundle.json").write_text(
        (b / "bundle.json").read_text().replace('"model.onnx"', '"../model.onnx"')), "not a plain name"),
])
def test_a_changed_bundle_is_refused(fault, message: str, run_folder: Path, tmp_path: Path) -> None:
    write(tiny_students.decoder(), tmp_path / "bundle", "int8", PORTABLE)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "bundle", copy)
    fault(copy)
    with pytest.raises(UsageError, match=message):
        Student.load(copy)


def test_feedback_rounds_for_the_inputs_there_are() -> None:
    """GPTQ: over inputs that go together the products change less than with each weight rounded by itself, and none is lost."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 128)).astype(np.float32)
    x = (rng.normal(size=(600, 24)) @ rng.normal(size=(24, 128)) + 0.1 * rng.normal(size=(600, 128))).astype(np.float32)
    x[:, 7] = 0  # an input that never occurs
    feedback = Feedback({"layers.0.o": x.T @ x})
    errors = {}
    for name in ("layers.0.o", "layers.0.down"):  # the second was not measured
        values, scales, block = linear.in_blocks(weight, 4, feedback, name)
        numbers = np.stack([values & 15, values >> 4], -1).reshape(40, 128 // block, block).astype(np.float32) - 8
        errors[name] = np.square(x @ ((numbers * scales[:, :, None]).reshape(40, 128) - weight).T).mean()
    assert errors["layers.0.o"] < 0.5 * errors["layers.0.down"]


@pytest.mark.parametrize("family", [name for name in FAMILIES if "chain" not in name])
def test_feedback_measures_every_product_of_a_student(family: str) -> None:
    student = FAMILIES[family]()
    texts = questions(6)
    found = feedback_.measured(student, texts, student.generate(texts)).moments
    state = {name: each for name, each in student.model.state_dict().items() if each.dim() == 2}
    config = student.model.config
    assert len(found) == (config.num_hidden_layers * 4 if student.family == "decoder"
                          else config.num_layers * 4 + config.num_decoder_layers * 7)
    assert all(np.linalg.eigvalsh(moment.astype(np.float64)).min() > -1e-2 * moment.max() for moment in found.values())
    assert {len(moment) for moment in found.values()} <= {each.shape[1] for each in state.values()}
