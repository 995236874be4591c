"""A decoder-only student's folder as a GGUF file of fp32 weights, for llama.cpp. Without a tokenizer: it gets token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.errors import UsageError, need

_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
          "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
          "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}


def write(student: Path, path: Path) -> None:
    """Writes `path` from a Llama- or Qwen2-family folder. Raises `UsageError` for another family."""
    library = need("gguf", "train")
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    kind = config["model_type"]
    if kind not in ("llama", "qwen2"):
        raise UsageError(f"{student.name} is a {kind} model: llama.cpp is compared on the llama and qwen2 families")
    out = library.GGUFWriter(path, kind)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_rope_dimension_count(width)
    out.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")
    tied = config.get("tie_word_embeddings")
    for name, tensor in _tensors(student):
        if name == "lm_head.weight" and tied:
            continue
        if kind == "llama" and name.endswith((".q_proj.weight", ".k_proj.weight")):
            tensor = _interleaved(tensor, heads if ".q_proj." in name else kv_heads)
        out.add_tensor(_named(name), np.ascontiguousarray(tensor, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _tensors(student: Path) -> Any:
    safetensors = need("safetensors", "train")
    for path in sorted(student.glob("*.safetensors")):
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def _named(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    _, _, layer, rest = name.split(".", 3)  # model.layers.N.
    part, ending = rest.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[part]}.{ending}"


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * d, :] of a rotary projection, d's halves side by side (Hugging Face) put in turns (GGUF's llama)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
