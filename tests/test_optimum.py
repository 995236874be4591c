"""optimum's layout: read by our own runner here, and by optimum in its own environment where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_students
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import GPT2Config, GPT2LMHeadModel

from edgedistill import cards, defaults
from edgedistill.cards import Target
from edgedistill.edge import Student
from edgedistill.edge.format import PREFIXES
from edgedistill.errors import GateError, UsageError
from edgedistill.export import export, gates, other, write
from edgedistill.runs import read_json
from edgedistill.tasks import wordmath

FAMILIES = {
    "t5-v1.0": tiny_students.t5,
    "t5-v1.1": lambda: tiny_students.t5(gated=True, tied=False),
    "llama": lambda: tiny_students.decoder(tied=False),
    "qwen2": lambda: tiny_students.decoder("qwen2"),
}
QUANTISED = [("t5-v1.0", "int8", "portable"), ("t5-v1.0", "int8", "rpi4"), ("t5-v1.1", "int4", "x86-vnni"),
             ("llama", "int8", "portable"), ("llama", "int8", "rpi4"), ("qwen2", "int4", "portable")]
QUESTIONS = ["a", *(row["input"] for row in wordmath.generate("dev", 3))]
SHARED = ("t5", "t5-shared", "decoder", "decoder-shared")
PORTABLE = cards.load(Target, "portable")
PEERS = os.environ.get("EDGEDISTILL_OPTIMUM_PYTHON")


@pytest.fixture(scope="module", autouse=True)
def few_inputs():
    """The parity gate has a test of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(defaults, "PARITY_INPUTS", 6)
        yield


@pytest.fixture(scope="module")
def students() -> dict[str, Any]:
    return {name: make() for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def folders(students, tmp_path_factory) -> dict[tuple[str, str, str], Path]:
    """A folder by (family, precision, target)."""
    root, made = tmp_path_factory.mktemp("optimum"), {}
    for case in [*((family, "fp32", "portable") for family in FAMILIES), *QUANTISED]:
        made[case] = root / "-".join(case)
        write(students[case[0]], made[case], case[1], cards.load(Target, case[2]), layout="optimum")
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """(student, its export/optimum) with and without the shared form."""
    root, made = tmp_path_factory.mktemp("exported"), {}
    for name in SHARED:
        student = tiny_students.t5() if name.startswith("t5") else tiny_students.decoder(tied=False)
        student.set_task(tiny_students.TASK, shared=name.endswith("shared"))
        student.save(root / name / "student", {}, "# card\n")
        export(str(root / name / "student"), run=str(root / name), layout="optimum", precision="fp32")
        made[name] = student, root / name / "export" / "optimum"
    return made


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A folder of an architecture that we have no graph writer for."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    tokenizer = tiny_students.bpe_tokenizer()
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=0,
                               eos_token_id=0, pad_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def peers(students, folders, exported, gpt2) -> dict[str, dict[str, Any]]:
    """What optimum makes of the folders, asked in one process of its own environment: {ask, readme, export}."""
    if not PEERS:
        pytest.skip("EDGEDISTILL_OPTIMUM_PYTHON names no Python with optimum-onnx 0.1.0")
    root = Path(__file__).parent
    sources = {family: [student.format.encode_source(student.rust, text, "label") for text in QUESTIONS]
               for family, student in students.items()}
    job = {"ask": {"-".join(case): (str(folder), sources[case[0]]) for case, folder in folders.items()},
           "readme": {name: (str(folder), QUESTIONS) for name, (_, folder) in exported.items()},
           "export": {"gpt2": (str(gpt2), str(gpt2 / "run"))}}
    done = subprocess.run([PEERS, str(root / "ask_optimum.py")], input=json.dumps(job), capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": str(root.parent), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fp32_graphs_give_torchs_tokens(family: str, students, folders) -> None:
    edge = Student.load(folders[family, "fp32", "portable"])
    texts = ["7 ?", *QUESTIONS, *(row["input"] for row in wordmath.generate("train", 20))]
    assert gates.tokens(edge, texts, "fp32") == students[family].generate(texts)


@pytest.mark.parametrize("case", QUANTISED, ids="-".join)
def test_quantised_graphs_give_the_tokens_of_the_edge_layout(case, students, folders, tmp_path: Path) -> None:
    family, precision, target = case
    write(students[family], tmp_path / "bundle", precision, cards.load(Target, target))
    found = (gates.tokens(Student.load(each), QUESTIONS, precision) for each in (folders[case], tmp_path / "bundle"))
    assert gates.agreement(*found) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_optimum_gives_torchs_greedy_and_beam_tokens(family: str, students, peers) -> None:
    student, found = students[family], peers["ask"][f"{family}-fp32-portable"]
    expected = student.generate(QUESTIONS)
    assert found["alone"] == expected[:2] and found["together"] == found["bound"] == expected
    assert found["beams"] == [tiny_students.theirs(student, text, beams=3) for text in QUESTIONS]


@pytest.mark.parametrize("case", QUANTISED, ids="-".join)
def test_optimum_gives_our_runners_quantised_tokens_whatever_the_batch(case, folders, peers) -> None:
    found, expected = peers["ask"]["-".join(case)], gates.tokens(Student.load(folders[case]), QUESTIONS, case[1])
    assert found["alone"] == expected[:2] and found["together"] == found["bound"] == expected


def test_names_and_shapes_are_those_of_hugging_faces_exporter(folders) -> None:
    def names(folder: Path, graph: str) -> tuple[set[str], set[str]]:
        opened = onnxruntime.InferenceSession(str(folder / graph))
        return {each.name for each in opened.get_inputs()}, {each.name for each in opened.get_outputs()}

    def caches(prefix: str, layers: int, *sides: str) -> set[str]:
        return {f"{prefix}.{i}{side}.{part}" for i in range(layers) for side in sides for part in ("key", "value")}

    t5, llama = folders["t5-v1.0", "fp32", "portable"], folders["llama", "fp32", "portable"]
    shared = {"bundle.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in t5.iterdir()} == shared | {
        "encoder_model.onnx", "encoder_model.onnx_data", "decoder_model.onnx", "decoder_with_past_model.onnx"}
    assert {path.name for path in llama.iterdir()} == shared | {"model.onnx", "model.onnx_data"}
    assert names(t5, "encoder_model.onnx") == ({"input_ids", "attention_mask"}, {"last_hidden_state"})
    assert names(t5, "decoder_model.onnx") == (
        {"input_ids", "encoder_attention_mask", "encoder_hidden_states"},
        {"logits"} | caches("present", 2, ".decoder", ".encoder"))
    assert names(t5, "decoder_with_past_model.onnx") == (
        {"input_ids", "encoder_attention_mask"} | caches("past_key_values", 2, ".decoder", ".encoder"),
        {"logits"} | caches("present", 2, ".decoder"))
    assert names(llama, "model.onnx") == (
        {"input_ids", "attention_mask", "position_ids"} | caches("past_key_values", 3, ""),
        {"logits"} | caches("present", 3, ""))


def test_the_graphs_share_one_weight_file_with_each_weight_once(students, folders) -> None:
    for family in FAMILIES:
        folder = folders[family, "fp32", "portable"]
        stored = sum(path.stat().st_size for path in folder.glob("*_data"))
        assert stored < 4 * students[family].parameters() + 90 * 4096
        assert sum(path.stat().st_size for path in folder.glob("*.onnx")) < 300_000


@pytest.mark.parametrize("family", ["t5-v1.0", "llama"])
def test_lengths_beyond_the_tables_of_the_edge_layout(family: str, students, folders) -> None:
    """Further than T5's most distant bucket, further than the student's own limits of input and output."""
    student, graphs = students[family], Student.load(folders[family, "fp32", "portable"]).graphs
    ids = torch.randint(3, student.model.config.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    first, second = ids.tolist()
    if family == "llama":
        expected, source, opening, rest = student.model(input_ids=ids[:1]).logits[0, -150:], first[:151], [], first[151:]
    else:
        expected = student.model(input_ids=ids[:1], decoder_input_ids=ids[1:]).logits[0]
        source, opening, rest = first, second[:1], second[1:]
    found = [graphs.start(source, opening).copy(), *(graphs.step(token).copy() for token in rest)]
    torch.testing.assert_close(torch.tensor(np.array(found)), expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family, windowed", [("mistral", (0, 1, 2)), ("qwen2", (1, 2))])
def test_a_sliding_window_is_kept_or_refused(family: str, windowed: tuple[int, ...], tmp_path: Path) -> None:
    more = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    student = tiny_students.decoder(family, tied=False, sliding_window=8, **more)
    kinds = getattr(student.model.config, "layer_types", None) or ["sliding_attention"] * 3
    assert tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention") == windowed
    write(student, tmp_path / "optimum", "fp32", PORTABLE, layout="optimum")
    assert gates.tokens(Student.load(tmp_path / "optimum"), QUESTIONS, "fp32") == student.generate(QUESTIONS)
    with pytest.raises(UsageError, match="looks back 8 tokens only.*give --layout optimum"):
        write(student, tmp_path / "edge", "fp32", PORTABLE)
    student.model.config.sliding_window = 4096
    write(student, tmp_path / "edge", "fp32", PORTABLE)


def test_samples_and_choices_work_on_the_grown_caches(students, folders) -> None:
    for family in ("t5-v1.0", "llama"):
        edge = Student.load(folders[family, "fp32", "portable"])
        before = edge.generate(QUESTIONS[1])
        edge.answer(QUESTIONS[1], vote=3)
        edge.graphs.rewind()
        assert int(edge.graphs.token[0, 0]) == (before.ids or [edge.format.eos_id])[0]
        assert edge.generate(QUESTIONS[1]) == before


# The verb


@pytest.fixture
def taught(tmp_path: Path) -> tuple[str, str]:
    """(a student folder, a run with rows)."""
    tiny_students.decoder(tied=False).save(tmp_path / "student", {}, "# card\n")
    return str(tmp_path / "student"), str(tiny_students.taught_run(tmp_path / "run"))


def test_both_layouts_stand_in_one_run(taught) -> None:
    student, run = taught
    edge, optimum = (export(student, run=run, layout=layout) for layout in ("edge", "optimum"))
    folder = Path(run) / "export" / "optimum"
    assert (edge["layout"], optimum["layout"]) == ("edge", "optimum")
    assert optimum["bytes"] == sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx_data"))
    assert abs(optimum["bytes"] - edge["bytes"]) < 100_000
    assert optimum["accuracy"] == edge["accuracy"] and optimum["accuracy_rows"] == 12
    manifest = read_json(folder / "bundle.json")
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {
        "bundle.json", "manifest.json", "result.json", ".lock"}
    assert read_json(folder / "manifest.json")["config"]["layout"] == "optimum"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert export(student, run=run, layout="optimum") == optimum  # nothing left to do
    with pytest.raises(UsageError, match='precision is "int8" there, "int4" asked'):
        export(student, run=run, layout="optimum", precision="int4")
    assert export(student, run=run, precision="fp32", overwrite=True)["precision"] == "fp32"  # of the edge layout only
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert export(student, run=run, layout="optimum", precision="int4", overwrite=True)["precision"] == "int4"
    assert Student.load(Path(run) / "export" / "bundle").manifest["precision"] == "fp32"
    assert isinstance(Student.load(folder).answer(QUESTIONS[0]).text, str)


def test_a_failed_export_beside_optimums_folder_can_be_repeated_otherwise(taught, monkeypatch) -> None:
    student, run = taught
    export(student, run=run, layout="optimum")

    def refuse(*_: object) -> None:
        raise GateError("no")

    with monkeypatch.context() as patched, pytest.raises(GateError):
        patched.setattr(gates, "identical", refuse)
        export(student, run=run, precision="int4")
    assert export(student, run=run)["precision"] == "int8"


def test_the_gate_looks_at_this_layouts_graphs(taught, monkeypatch) -> None:
    from edgedistill.export import graph

    student, run = taught
    export(student, run=run)
    monkeypatch.setattr("edgedistill.export.llama.MASKED", 0.0)  # harmless alone: no padding
    export(student, run=run, layout="optimum")
    real = graph.Rows.together
    monkeypatch.setattr(graph.Rows, "together", lambda self, x: self.g.node("Neg", [real(self, x)]))  # the fault
    with pytest.raises(GateError, match="other tokens than torch"):
        export(student, run=run, layout="optimum", overwrite=True)
    assert not (Path(run) / "export" / "optimum" / "model.onnx").exists()


@pytest.mark.parametrize("name", SHARED)
def test_the_folders_readme_says_how_it_is_asked(name: str, exported, peers) -> None:
    student, folder = exported[name]
    assert [text.strip() for text in peers["readme"][name]] == [
        student.format.decode(student.rust, ids) for ids in student.generate(QUESTIONS)]
    assert (PREFIXES["rationale"] in (folder / "README.md").read_text(encoding="utf-8")) is not student.format.shared


# Other architectures


def test_without_optimum_another_architecture_ends_in_one_line(gpt2: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum", None)
    with pytest.raises(UsageError) as caught:
        export(str(gpt2), run=str(tmp_path / "run"), layout="optimum")
    message = str(caught.value)
    assert "a gpt2 model is exported by optimum only" in message and "\n" not in message
    assert message.endswith("run: pip install 'edgedistill[optimum]'")
    with pytest.raises(UsageError, match="a gpt2 model; known families.*export --layout optimum writes them"):
        export(str(gpt2), run=str(tmp_path / "edge"))
    with pytest.raises(UsageError, match="cannot be trimmed"):
        export(str(gpt2), run=str(tmp_path / "other"), layout="optimum", vocab="100")


def test_another_architecture_goes_through_optimums_exporter(gpt2: Path, peers) -> None:
    result, folder = peers["export"]["gpt2"], gpt2 / "run" / "export" / "optimum"
    assert result["precision"] == "int8" and result["token_agreement"] > 0.9
    operators = [node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]
    assert operators.count("MatMulNBits") == 2 * 4 + 1  # qkv, o and two of the FFN in each layer, the head
    assert not list(folder.glob("*.part"))
    assert len(result["printed"]) == 1 and result["printed"][0].startswith("your text")
    assert result["bytes"] == sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx_data"))


def test_products_of_any_graph_are_quantised_and_the_rest_is_left(tmp_path: Path) -> None:
    """Matrices read both ways round, a bias, one that no block fits, one that is not constant."""
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 48), "b": 48, "t": (32, 48), "odd": (32, 7), "last": (7, 5)}
    given = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Gemm", ["h", "t"], ["i"], transB=1),
             helper.make_node("MatMul", ["i", "odd"], ["j"]), helper.make_node("MatMul", ["j", "last"], ["k"]),
             helper.make_node("Transpose", ["k"], ["l"]), helper.make_node("MatMul", ["k", "l"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 64])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 3])],
                              [numpy_helper.from_array(array.astype(np.float32), name) for name, array in given.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "in.onnx")
    x = rng.normal(size=(3, 64)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(tmp_path / "in.onnx")).run(None, {"x": x})[0]
    for bits, near in ((8, 0.03), (4, 0.4)):
        other.quantize(tmp_path / "in.onnx", tmp_path / f"{bits}.onnx", bits)
        found = onnxruntime.InferenceSession(str(tmp_path / f"{bits}.onnx")).run(None, {"x": x})[0]
        assert 0 < np.abs(found - expected).max() < near * np.abs(expected).max()
        operators = [node.op_type for node in onnx.load(tmp_path / f"{bits}.onnx").graph.node]
        assert operators == ["MatMulNBits", "Add", "MatMulNBits", "MatMulNBits", "MatMul", "Transpose", "MatMul"]


def test_what_only_a_branch_reads_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("w", "inside")}
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("MatMul", ["y", "inside"], ["z"])], "then", [], [out])
    orelse = helper.make_graph([helper.make_node("Identity", ["y"], ["z"])], "else", [], [out])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]),
             helper.make_node("If", ["which"], ["end"], then_branch=then, else_branch=orelse)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 64]),
                                           helper.make_tensor_value_info("which", TensorProto.BOOL, [])],
                              [helper.make_tensor_value_info("end", TensorProto.FLOAT, [3, 64])],
                              [numpy_helper.from_array(array, name) for name, array in given.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "in.onnx")
    other.quantize(tmp_path / "in.onnx", tmp_path / "out.onnx", 8)
    feed = {"x": rng.normal(size=(3, 64)).astype(np.float32), "which": np.array(True)}
    exact, found = (onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, feed)[0] for name in ("in", "out"))
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_what_optimums_runtime_cannot_run_is_refused(tmp_path: Path) -> None:
    student = tiny_students.decoder(head_dim=32)
    student.save(tmp_path / "student", {}, "# card\n")
    with pytest.raises(UsageError, match="give --layout edge"):
        export(str(tmp_path / "student"), run=str(tmp_path / "run"), layout="optimum")
    assert export(str(tmp_path / "student"), run=str(tmp_path / "run"))["layout"] == "edge"


@pytest.mark.parametrize("layout", ["", "onnx", "../x"])
def test_an_unknown_layout_is_refused_before_anything_is_written(layout: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known are edge, optimum"):
        export(str(tmp_path), run=str(tmp_path / "run"), layout=layout)
    assert not (tmp_path / "run").exists()
