"""The Llama family (SmolLM2, Llama, Mistral, Qwen2 shapes) as one ONNX graph for prompt and decoding.

    input_ids [1, S], past_{i}.{key,value} [1, kv heads, P, head size], seqlens_k [1], total_length []
    -> of the last token logits [1, 1, V], token [1, 1], logprob [1, 1]; present_{i}.{key,value}

The cache is updated in place when past and present are bound to the same buffer (GroupQueryAttention does so).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgedistill.errors import UsageError
from edgedistill.export.graph import DOMAIN, Graph, Weights
from edgedistill.export.linear import Linear
from edgedistill.train import reparam


def write(model: Any, folder: Path, linear: Linear, weights: Weights, max_length: int) -> dict[str, Any]:
    """Writes `model.onnx` for sequences of up to `max_length` tokens; returns what the engine must know of it."""
    config = model.config
    if getattr(config, "hidden_act", "silu") != "silu":
        raise UsageError(f"export: a {config.model_type} model with {config.hidden_act} activation is not supported")
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    state |= reparam.matrices(model)
    epsilon = float(config.rms_norm_eps)

    g = Graph("llama", weights)
    g.input("input_ids", np.int64, [1, "S"])
    g.input("seqlens_k", np.int32, [1])
    g.input("total_length", np.int32, [])
    cos, sin = (g.weight(name, table) for name, table in zip(("cos", "sin"), _rotary(model, max_length), strict=True))
    x = linear.embed(g, "input_ids", "embed", state["model.embed_tokens.weight"])
    normed, residual = g.norm(x, None, "layers.0.norm1", state["model.layers.0.input_layernorm.weight"], epsilon)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        qkv = np.concatenate([state[f"{layer}.self_attn.{p}_proj.weight"] for p in "qkv"])
        biases = [state.get(f"{layer}.self_attn.{p}_proj.bias") for p in "qkv"]
        packed = linear.matmul(g, normed, f"layers.{i}.qkv", qkv,
                               np.concatenate(biases) if biases[0] is not None else None)
        for part in ("key", "value"):
            g.input(f"past_{i}.{part}", np.float32, [1, kv, "P", size])
            g.output(f"present_{i}.{part}", np.float32, [1, kv, "T", size])
        attended = g.node(
            "GroupQueryAttention",
            [packed, "", "", f"past_{i}.key", f"past_{i}.value", "seqlens_k", "total_length", cos, sin],
            [f"attention_{i}", f"present_{i}.key", f"present_{i}.value"], DOMAIN, num_heads=heads, kv_num_heads=kv,
            do_rotary=1, rotary_interleaved=0, scale=size ** -0.5)[0]
        out = linear.matmul(g, attended, f"layers.{i}.o", state[f"{layer}.self_attn.o_proj.weight"],
                            state.get(f"{layer}.self_attn.o_proj.bias"))
        normed, residual = g.norm(out, residual, f"layers.{i}.norm2",
                                  state[f"{layer}.post_attention_layernorm.weight"], epsilon)
        if f"{layer}.mlp" in state:  # a merged linear chain
            out = linear.matmul(g, normed, f"layers.{i}.ffn", state[f"{layer}.mlp"])
        else:
            both = np.concatenate([state[f"{layer}.mlp.{p}_proj.weight"] for p in ("gate", "up")])
            gate, up = g.node("Split", [linear.matmul(g, normed, f"layers.{i}.gate_up", both)], 2, axis=-1, num_outputs=2)
            hidden = g.node("Mul", [g.node("Mul", [gate, g.node("Sigmoid", [gate])]), up])
            out = linear.matmul(g, hidden, f"layers.{i}.down", state[f"{layer}.mlp.down_proj.weight"])
        last = i + 1 == config.num_hidden_layers
        following = "model.norm.weight" if last else f"model.layers.{i + 1}.input_layernorm.weight"
        normed, residual = g.norm(out, residual, "norm" if last else f"layers.{i + 1}.norm1", state[following], epsilon)
    # Only the last token's logits are wanted: slice before the head, the largest matrix.
    final = g.node("Slice", [normed, g.constant([-1]), g.constant([2**31 - 1]), g.constant([1])])
    g.shared.clear()  # made for as many tokens as the prompt has
    if config.tie_word_embeddings:
        logits = linear.head(g, final, "embed", state["model.embed_tokens.weight"])
    else:
        logits = linear.matmul(g, final, "head", state["lm_head.weight"])
    g.choose(logits, config.vocab_size)
    g.save(folder / "model.onnx")
    return {"layers": config.num_hidden_layers, "kv_heads": kv, "head_size": size, "max_length": max_length}


def _rotary(model: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) [length, head size / 2] from the model's own frequencies, so that any scaling is theirs."""
    rotary = model.model.rotary_emb
    angles = torch.outer(torch.arange(length, dtype=torch.float32), rotary.inv_freq.float())
    scale = getattr(rotary, "attention_scaling", 1.0)
    return (angles.cos() * scale).numpy(), (angles.sin() * scale).numpy()
