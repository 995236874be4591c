"""`carve`: a student cut out of a GGUF of the Llama or Qwen2 family. Needs no hub.

The file is dequantised, layers are dropped, and the vocabulary is trimmed to the task's own pieces plus the most
common ones. Any text stays encodable: the 256 byte pieces are always kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgedistill import defaults
from edgedistill.errors import UsageError
from edgedistill.train.depth import stands_for
from edgedistill.train.students import DecoderStudent
from edgedistill.train.vocabulary import trim, trim_embeddings


def carve(gguf: Path, texts: Iterable[str], layers: int = defaults.CARVE_LAYERS,
          vocabulary: int = defaults.VOCABULARY) -> DecoderStudent:
    """A student of `layers` layers whose tokenizer has about `vocabulary` pieces, all that `texts` use among them.

    Raises `UsageError` for fewer than 8 layers, or a GGUF of another family.
    """
    if layers < defaults.CARVE_MIN_LAYERS:
        raise UsageError(f"--layers {layers}: a student carved to fewer than {defaults.CARVE_MIN_LAYERS} layers does "
                         "not learn; take more, or train a small T5 instead (--student FOLDER)")
    folder, name = str(gguf.parent), gguf.name
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        except (ValueError, KeyError, OSError) as error:
            raise UsageError(f"{name}: cannot be dequantised ({' '.join(str(error).split())[:120]}); carve takes GGUF "
                             "files of the Llama and Qwen2 families") from error
    if layers > len(model.model.layers):
        raise UsageError(f"--layers {layers}: {name} has only {len(model.model.layers)}")
    drop_layers(model, layers)
    trimmed, keep = trim(tokenizer, texts, vocabulary)
    trim_embeddings(model, keep, trimmed)
    # A fresh model of the same shape: the loaded one is marked as quantised, which the Trainer refuses.
    del model.config.quantization_config
    model.config._name_or_path = ""
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    return DecoderStudent(fresh, trimmed)


def drop_layers(model: Any, layers: int) -> None:
    """Keeps the first and the last layers of the stack, `layers` in all, and drops the block between them.

    Measured on SmolLM2 at 16 of 30 (benchmarks/results/carve_layers.json): the untrained student's loss is 6.3 for the
    first 7 and last 9, 12.6 for evenly spaced ones, 3.3 with all.
    """
    total = len(model.model.layers)
    kept = stands_for(layers, total, "ends")
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]


@contextlib.contextmanager
def _quiet():
    """The GGUF loader draws progress bars of its own."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
