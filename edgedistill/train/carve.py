"""`carve`: a student cut out of a GGUF of the Llama or Qwen2 family. Needs no hub.

The file is dequantised, layers are dropped, and the vocabulary is trimmed to the task's own pieces plus the most
common ones. Any text stays encodable: the 256 byte pieces are always kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from edgedistill import defaults
from edgedistill.errors import UsageError
from edgedistill.train.students import DecoderStudent


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
    first = (layers - 1) // 2
    kept = [*range(first), *range(total - layers + first, total)]
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]


def trim(tokenizer: Any, texts: Iterable[str], size: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """(a byte-level BPE tokenizer with about `size` pieces, the old id of each new id).

    Kept are the special tokens in use, the byte pieces, every piece that `texts` use and, in the order of their
    merges (the most frequent first), further pieces up to `size`; for each, the pieces it is merged from. So a text
    made of kept pieces is cut exactly as before.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE":
        raise UsageError(f"cannot trim a {spec['model']['type']} vocabulary; carve takes byte-level BPE models")
    vocab: dict[str, int] = spec["model"]["vocab"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in spec["model"]["merges"]]
    parts: dict[str, tuple[str, str]] = {}
    for a, b in merges:
        parts.setdefault(a + b, (a, b))

    wanted = {token for token in (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, tokenizer.unk_token)
              if token}
    wanted |= {piece for piece in vocab if len(piece) == 1}  # the byte alphabet, and single characters

    def take(piece: str) -> None:
        if piece in wanted:
            return
        wanted.add(piece)
        for part in parts.get(piece, ()):
            take(part)

    by_id = {i: piece for piece, i in vocab.items()}
    for text in texts:
        for i in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
            if i in by_id:
                take(by_id[i])
    for a, b in merges:
        if len(wanted) >= size:
            break
        take(a + b)

    keep = sorted(vocab[piece] for piece in wanted if piece in vocab)
    new = {by_id[old]: i for i, old in enumerate(keep)}
    spec["model"]["vocab"] = new
    spec["model"]["merges"] = [[a, b] for a, b in merges if a in new and b in new and a + b in new]
    spec["added_tokens"] = [{**token, "id": new[token["content"]]} for token in spec["added_tokens"]
                            if token["content"] in new]
    spec["post_processor"] = None  # it adds nothing here but would name old ids elsewhere
    special = {f"{kind}_token": getattr(tokenizer, f"{kind}_token") for kind in ("bos", "eos", "unk", "pad")}
    trimmed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
                                      **{kind: token for kind, token in special.items() if token})
    return trimmed, keep


def trim_embeddings(model: Any, keep: list[int], tokenizer: Any) -> None:
    """Keeps the rows `keep` of the embedding and the head, tied or not."""
    index = torch.tensor(keep)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    embedding.weight = torch.nn.Parameter(embedding.weight.data[index].clone())
    embedding.num_embeddings, embedding.padding_idx = len(keep), None
    head.weight = embedding.weight if tied else torch.nn.Parameter(head.weight.data[index].clone())
    head.out_features = len(keep)
    for config in (model.config, model.generation_config):
        for kind in ("bos", "eos", "pad"):
            setattr(config, f"{kind}_token_id", getattr(tokenizer, f"{kind}_token_id"))
    model.config.vocab_size = len(keep)
    if hasattr(model.config, "unk_token_id"):
        model.config.unk_token_id = tokenizer.unk_token_id


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
