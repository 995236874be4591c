"""Architectures that our graph writers do not know, by optimum's own exporter, in its layout.

fp32 is as optimum writes it. int8 and int4 have MatMulNBits for each product with a weight matrix, rounded as in linear.py;
everything else, embeddings too, stays fp32. There is no task, so the gates are tokens only.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from edgedistill import machine, runs
from edgedistill.edge import bundle
from edgedistill.errors import Error, UsageError, need
from edgedistill.export import gates, linear, optimum, place
from edgedistill.export.graph import DOMAIN, Weights
from edgedistill.progress import Progress, clock, say
from edgedistill.tasks.task import Task
from edgedistill.train import stacks
from edgedistill.train.students import DECODERS, T5S

BITS = {"int8": 8, "int4": 4}


def known(folder: Path) -> bool:
    """Whether our graph writers know the model of a folder; what cannot be read is theirs to refuse."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):
        return True
    return config.model_type in T5S + DECODERS and stacks.supported(config)


def export(stage: runs.Stage, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Writes the stage's folder from a Hugging Face folder and returns the result object; `texts` are the gates' inputs.

    Raises `UsageError` where optimum is missing, `Error` where it cannot export the model, `GateError` where its fp32 graphs
    give other tokens than torch.
    """
    config, precision = _opened(AutoConfig, folder), stage.config["precision"]
    if "vocab" in stage.config:
        raise UsageError(f"--vocab {stage.config['vocab']}: the vocabulary of a {config.model_type} model cannot be trimmed")
    try:
        exporters = need("optimum.exporters.onnx", "optimum")
    except UsageError as error:
        raise UsageError(f"a {config.model_type} model is exported by optimum only: {error}") from error
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
    from optimum.utils import logging

    logging.set_verbosity_error()
    seq2seq = config.is_encoder_decoder
    model = _opened(AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM, folder)
    # As students.load: a folder's tokenizer.json says all.
    tokenizer = _opened(PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer, folder)
    parameters = sum(p.numel() for p in model.parameters())
    say("export plan")
    say(f"  model     {parameters / 1e6:.1f} M parameters, {config.model_type}: exported by optimum")
    say(f"  gates     fp32 graphs against torch on {len(texts)} inputs; {precision}: token agreement is told, without a limit "
        "(there is no task to count answers of, so --max-drop has no say)")
    reference = _tokens(model, tokenizer, texts, "torch")
    ready = fp32 = stage.path / "fp32.part"
    shutil.rmtree(fp32, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer has many, for whoever wrote the model
            exporters.main_export(str(folder), fp32, task=f"text{'2text' if seq2seq else ''}-generation-with-past",
                                  do_validation=False, no_post_process=True, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it raises whatever it meets
        raise Error(f"optimum cannot export a {config.model_type} model ({' '.join(str(error).split())[:200]})") from error
    tokenizer.save_pretrained(fp32)
    runner = ORTModelForSeq2SeqLM if seq2seq else ORTModelForCausalLM
    exact = _tokens(_opened(runner, fp32), tokenizer, texts, "fp32")
    gates.identical(exact, reference, texts)
    agreement = 1.0
    if precision in BITS:
        ready = stage.path / f"{precision}.part"
        with runs.disk_errors(ready):
            shutil.rmtree(ready, ignore_errors=True)
            shutil.copytree(fp32, ready, ignore=shutil.ignore_patterns("*.onnx*"))
            for graph in sorted(fp32.glob("*.onnx")):
                quantize(graph, ready / graph.name, BITS[precision])
        agreement = gates.agreement(exact, _tokens(_opened(runner, ready), tokenizer, texts, precision))
    runs.write_text(ready / "README.md", "\n".join([
        f"# {config.model_type}, {precision}, by optimum's exporter", "", *optimum.loading(runner.__name__),
        "    inputs = tokenizer('your text', return_tensors='pt')",
        "    outputs = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)",
        "    print(tokenizer.batch_decode(outputs, skip_special_tokens=True))", "",
        f"{100 * agreement:.1f} % of the tokens on {len(texts)} texts are those of fp32.", ""]))
    size = sum(p.stat().st_size for p in ready.iterdir() if p.suffix in bundle.ONNX)
    result = {
        **machine.origin("export"), "layout": "optimum", "precision": precision, "target": stage.config["target"],
        "linear": "nbits", "parameters": parameters, "bytes": size, "tokenizer_bytes": None, "fp32_accuracy": None,
        "accuracy": None, "vocabulary": None, "accuracy_rows": 0, "token_agreement": agreement, "parity_inputs": len(texts),
        "kept_high": [], "seconds": stage.seconds()}
    stage.done(result, place(ready, stage.path))
    say(f"export: {size / 1e6:.1f} MB in {clock(result['seconds'])}, token agreement {100 * agreement:.1f} %; "
        f"model in {stage.path}")
    return result


def quantize(graph: Path, out: Path, bits: int) -> None:
    """Writes `graph` with MatMulNBits of 8 or 4 `bits` for its MatMul and Gemm of fp32 matrices that divide into blocks."""
    model = onnx.load(graph)
    weights = {each.name: each for each in model.graph.initializer}
    nodes: list[Any] = []
    made: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        matrix = weights.get(node.input[1]) if _multiplies(node) else None
        if matrix is None or len(matrix.dims) != 2 or matrix.data_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        turned = any(each.name == "transB" and each.i for each in node.attribute)
        n, k = matrix.dims if turned else matrix.dims[::-1]
        block = linear.block_size(k, bits)
        if not block:
            nodes.append(node)
            continue
        values, scales = (f"{matrix.name}.{kind}{'.turned' if turned else ''}" for kind in ("values", "scales"))
        if values not in made:
            weight = numpy_helper.to_array(matrix)
            made[values], made[scales], _ = linear.in_blocks(weight if turned else weight.T, bits)
        product, biased = node.output[0], len(node.input) > 2
        nodes.append(helper.make_node(
            "MatMulNBits", [node.input[0], values, scales], [f"{product}.unbiased" if biased else product], node.name,
            domain=DOMAIN, K=k, N=n, bits=bits, block_size=block, accuracy_level=4))
        if biased:
            nodes.append(helper.make_node("Add", [f"{product}.unbiased", node.input[2]], [product]))
    read = {*_read(nodes), *(each.name for each in model.graph.output)}
    kept = {name: numpy_helper.to_array(each) for name, each in weights.items() if name in read}
    small = {name for name, array in kept.items() if array.nbytes <= 4096}  # shapes and the like are for the graph's own file
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights[name] for name in kept if name in small)
    with closing(Weights(out.with_name(f"{out.name}_data"))) as file:
        model.graph.initializer.extend(file.tensor(*each) for each in {**kept, **made}.items() if each[0] not in small)
    if all(each.domain != DOMAIN for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    out.write_bytes(model.SerializeToString())


def _read(nodes: Iterable[Any]) -> Iterator[str]:
    """The names that nodes read, those in the graphs of their branches and loops too."""
    for node in nodes:
        yield from node.input
        for each in node.attribute:
            for graph in [each.g, *each.graphs]:
                yield from _read(graph.node)
                yield from (value.name for value in graph.output)


def _multiplies(node: Any) -> bool:
    """Whether a node is x times its second input, either way round, plus a third one where there is one."""
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return node.op_type in ("MatMul", "Gemm") and not given.get("transA") and given.get("alpha", 1) == given.get("beta", 1) == 1


def _opened(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder.name}: cannot be loaded ({' '.join(str(error).split())[:140]})") from error


@torch.no_grad()
def _tokens(model: Any, tokenizer: Any, texts: list[str], name: str) -> list[list[int]]:
    """The new greedy tokens of each text."""
    progress = Progress(f"gate {name}", len(texts), "inputs")
    lengths = Task("text", "text", "text")
    out = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=lengths.max_input_tokens).input_ids
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                               max_new_tokens=lengths.max_label_tokens)[0]
        out.append(found[1 if model.config.is_encoder_decoder else ids.shape[1]:].tolist())
        progress.advance()
    return out
