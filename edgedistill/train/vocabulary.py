"""A smaller vocabulary before training: the pieces that the task uses and the most common ones, for BPE and for T5.

Any text that could be encoded still can: byte pieces and single characters are always kept. A text made of kept pieces is
cut exactly as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from edgedistill.errors import UsageError
from edgedistill.train.students import Student

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def trim_student(student: Student, texts: Iterable[str], size: int) -> list[int]:
    """Trims a student in place to about `size` pieces; returns the old id of each new one.

    Raises `UsageError` for other tokenizers.
    """
    tokenizer, keep = trim(student.tokenizer, texts, size)
    trim_embeddings(student.model, keep, tokenizer)
    form = student.format
    if form:
        new = {old: i for i, old in enumerate(keep)}
        form = replace(form, eos_id=new[form.eos_id], pad_id=new[form.pad_id], start_id=new.get(form.start_id, -1))
    student.__init__(student.model, tokenizer, form)
    return keep


def trim(tokenizer: Any, texts: Iterable[str], size: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """(a tokenizer with about `size` pieces, more where `texts` need more; the old id of each new id)."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = {"BPE": _bpe, "Unigram": _unigram}
    if spec["model"]["type"] not in kinds:
        raise UsageError(f"cannot trim a {spec['model']['type']} vocabulary; known are {' and '.join(kinds)}")
    used = {i for text in texts for i in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids}
    named = {kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "unk_token", "pad_token")}
    named = {kind: str(token) for kind, token in named.items() if token}
    keep = kinds[spec["model"]["type"]](spec, used, set(named.values()), size)
    new = {old: i for i, old in enumerate(keep)}
    spec["added_tokens"] = [{**token, "id": new[token["id"]]} for token in spec["added_tokens"] if token["id"] in new]
    extra = [token["content"] for token in spec["added_tokens"] if token["special"] and token["content"] not in named.values()]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **named,
                                   **({"additional_special_tokens": extra} if extra else {})), keep


def _bpe(spec: dict[str, Any], used: set[int], named: set[str], size: int) -> list[int]:
    """Byte-level BPE: special tokens in use, the byte pieces, what is used, then pieces in the order of their merges (the
    most frequent first); for each, the pieces it is merged from."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in spec["model"]["merges"]]
    parts: dict[str, tuple[str, str]] = {}
    for a, b in merges:
        parts.setdefault(a + b, (a, b))
    # The byte alphabet and single characters; in SentencePiece's form bytes are called <0x41>.
    wanted = named | {piece for piece in vocab if len(piece) == 1 or _BYTE.fullmatch(piece)}

    def take(piece: str) -> None:
        if piece in wanted:
            return
        wanted.add(piece)
        for part in parts.get(piece, ()):
            take(part)

    by_id = {i: piece for piece, i in vocab.items()}
    for i in sorted(used & by_id.keys()):
        take(by_id[i])
    for a, b in merges:
        if len(wanted) >= size:
            break
        take(a + b)
    # Special tokens may stand outside the model's own vocabulary (Qwen2's do).
    outside = {token["id"] for token in spec["added_tokens"] if token["content"] in named or token["id"] in used}
    keep = sorted({vocab[piece] for piece in wanted if piece in vocab} | outside)
    new = {by_id[old]: i for i, old in enumerate(keep) if old in by_id}
    spec["model"]["vocab"] = new
    spec["model"]["merges"] = [[a, b] for a, b in merges if a in new and b in new and a + b in new]
    spec["post_processor"] = None  # it adds nothing here but would name old ids elsewhere
    return keep


def _unigram(spec: dict[str, Any], used: set[int], named: set[str], size: int) -> list[int]:
    """T5's kind: special tokens, single characters (with and without the word mark), what is used, the most probable."""
    pieces = spec["model"]["vocab"]  # [piece, log-probability] by id
    special = {token["id"] for token in spec["added_tokens"]}
    keep = special | used | {i for i, (piece, _) in enumerate(pieces) if piece in named or len(piece.removeprefix("▁")) <= 1}
    ranked = sorted((i for i in range(len(pieces)) if i not in keep), key=lambda i: -pieces[i][1])
    ordered = sorted(keep | set(ranked[: max(0, size - len(keep))]))
    spec["model"]["vocab"] = [pieces[i] for i in ordered if i < len(pieces)]
    if spec["model"].get("unk_id") is not None:
        spec["model"]["unk_id"] = ordered.index(spec["model"]["unk_id"])
    template = spec.get("post_processor") or {}
    for token in template.get("special_tokens", {}).values():
        token["ids"] = [ordered.index(i) for i in token["ids"]]
    return ordered


def trim_embeddings(model: Any, keep: list[int], tokenizer: Any) -> None:
    """Keeps the rows `keep` of the embeddings and the head, tied or not."""
    index = torch.tensor(keep)
    head, shared = model.get_output_embeddings(), model.get_input_embeddings().weight
    tied = head.weight is shared
    weight = torch.nn.Parameter(shared.data[index].clone())
    for embedding in model.modules():  # a T5 has one for each stack
        if isinstance(embedding, torch.nn.Embedding) and embedding.weight is shared:
            embedding.weight, embedding.num_embeddings, embedding.padding_idx = weight, len(keep), None
    head.weight = weight if tied else torch.nn.Parameter(head.weight.data[index].clone())
    head.out_features = len(keep)
    for config in (model.config, model.generation_config):
        for kind in ("bos", "eos", "pad"):
            setattr(config, f"{kind}_token_id", getattr(tokenizer, f"{kind}_token_id"))
    model.config.vocab_size = len(keep)
    if (start := getattr(model.config, "decoder_start_token_id", None)) is not None:
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = keep.index(start)
    if hasattr(model.config, "unk_token_id"):
        model.config.unk_token_id = tokenizer.unk_token_id
