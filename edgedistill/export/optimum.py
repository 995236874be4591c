"""optimum's layout: what `ORTModelForSeq2SeqLM` and `ORTModelForCausalLM` load, written by our own graph writers.

Names, shapes and files are those of Hugging Face's exporter, the products those of the edge layout. The graphs share one
weight file, each weight once in it. Other architectures go through optimum's exporter (other.py).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from edgedistill import runs
from edgedistill.edge.format import Format
from edgedistill.export import llama, t5
from edgedistill.export.graph import Weights
from edgedistill.export.linear import Linear


def write(student: Any, folder: Path, many: Linear, one: Linear) -> dict[str, Any]:
    """Writes the graphs, the configuration and the tokenizer into `folder`; returns the manifest's entry for the engine.

    `many` makes the products of many tokens at once, `one` those of one. Raises `UsageError` for what optimum's runtime cannot
    run.
    """
    first = "encoder_model.onnx" if student.family == "t5" else "model.onnx"
    with closing(Weights(folder / f"{first}_data")) as weights:  # the name that optimum fetches from a hub beside the graph
        if student.family == "t5":
            t5.write_optimum(student.model, folder, many, one, weights)
        else:
            llama.write_optimum(student.model, folder, one, weights)
    student.model.config.save_pretrained(folder)
    form = student.format
    start = {"decoder_start_token_id": form.opening(student.rust, "label")[0]} if form.family == "t5" else {}
    runs.write_json(folder / "generation_config.json", {
        **start, "eos_token_id": form.eos_id, "pad_token_id": form.pad_id, "max_new_tokens": form.max_new_tokens("label")})
    _tokenizer(student, folder)
    return {"kind": "optimum"}


def _tokenizer(student: Any, folder: Path) -> None:
    """The tokenizer as transformers of any version reads it; what it adds to a text is a T5's EOS alone, as in `Format`."""
    form, rust = student.format, Tokenizer.from_str(student.rust.to_str())
    eos = rust.id_to_token(form.eos_id)
    rust.post_processor = processors.TemplateProcessing(
        single=["$A:0", f"{eos}:0"] if form.family == "t5" else ["$A:0"], special_tokens=[(eos, form.eos_id)])
    rust.save(str(folder / "tokenizer.json"))
    named = ((kind, getattr(student.tokenizer, kind)) for kind in ("bos_token", "eos_token", "unk_token"))
    runs.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",  # what transformers 5 would write is unknown to 4
        **{kind: str(token) for kind, token in named if token}, "pad_token": rust.id_to_token(form.pad_id),
        "padding_side": "right" if form.family == "t5" else "left", "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"]})


def loading(kind: str) -> list[str]:
    """Lines of Markdown that open the folder by optimum's class `kind`."""
    return ["    pip install 'optimum-onnx[onnxruntime]==0.1.0'", "",
            f"    from optimum.onnxruntime import {kind}", "    from transformers import AutoTokenizer", "",
            "    tokenizer = AutoTokenizer.from_pretrained('.')", f"    model = {kind}.from_pretrained('.')"]


def usage(form: Format, tokenizer: Tokenizer) -> list[str]:
    """Lines of Markdown that say how the folder is loaded and asked."""
    kind = "ORTModelForSeq2SeqLM" if form.family == "t5" else "ORTModelForCausalLM"
    behind = "" if form.family == "t5" else "[:, batch['input_ids'].shape[1]:]"
    lines = [
        *loading(kind), "    questions = ['your question', 'another one']",
        f"    inputs = [{_input(form, tokenizer, 'label')} for question in questions]",
        "    batch = tokenizer.pad({'input_ids': inputs}, return_tensors='pt')",
        f"    outputs = model.generate(**batch){behind}",
        "    print(tokenizer.batch_decode(outputs, skip_special_tokens=True))", ""]
    if form.task and not form.chain:
        more = f", decoder_start_token_id={form.eos_id}" if form.shared and form.family == "t5" else ""
        lines += [f"A rationale: `{_input(form, tokenizer, 'rationale')}`, "
                  f"`model.generate(**batch, max_new_tokens={form.max_new_tokens('rationale')}{more})`.", ""]
    if form.escapes:
        lines += ["Characters that the tokenizer lacks are written as others, in questions and answers: "
                  + ", ".join(f"`{character}` as `{other}`" for character, other in form.escapes.items()) + ".", ""]
    return lines


def _input(form: Format, tokenizer: Tokenizer, part: str) -> str:
    """The Python expression for the token ids of an input."""
    before = form.source("", part).removesuffix(form.separator)
    ids = f"tokenizer({f'{before!r} + ' if before else ''}question).input_ids"
    if form.family == "t5":
        return ids
    return f"{ids} + {tokenizer.encode(form.separator, add_special_tokens=False).ids + form.opening(tokenizer, part)}"
