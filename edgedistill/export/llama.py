"""The Llama family (SmolLM2, Llama, Mistral, Qwen2 shapes) as one ONNX graph for prompt and decoding.

    input_ids [1, S], past_{i}.{key,value} [1, kv heads, P, head size], seqlens_k [1], total_length []
    -> of the last token logits [1, 1, V], token [1, 1], logprob [1, 1]; present_{i}.{key,value}

The cache is updated in place when past and present are bound to the same buffer (GroupQueryAttention does so). optimum's
layout, for any batch (padded on the left) and length:

    input_ids, position_ids [B, S], attention_mask [B, P + S], past_key_values.{i}.{key,value} [B, kv heads, P, head size]
    -> logits [B, S, V], present.{i}.{key,value}
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgedistill.errors import UsageError
from edgedistill.export.graph import DOMAIN, MASKED, Graph, Rows, Weights
from edgedistill.export.linear import Linear
from edgedistill.train import reparam
from edgedistill.train.stacks import window


def write(model: Any, folder: Path, linear: Linear, weights: Weights, max_length: int) -> dict[str, Any]:
    """Writes `model.onnx` for sequences of up to `max_length` tokens; returns what the engine must know of it."""
    config, state = model.config, _state(model)
    heads, kv, size = _heads(config)
    windows = [width for i in range(config.num_hidden_layers) if (width := window(config, i)) and width < max_length]
    if windows:
        raise UsageError(f"export: this {config.model_type} model looks back {windows[0]} tokens only, its texts have up to "
                         f"{max_length}; give --layout optimum")
    g = Graph("llama", weights)
    g.input("input_ids", np.int64, [1, "S"])
    g.input("seqlens_k", np.int32, [1])
    g.input("total_length", np.int32, [])
    cos, sin = (g.weight(name, table) for name, table in zip(("cos", "sin"), _rotary(model, max_length), strict=True))

    def attend(i: int, packed: str) -> str:
        for part in ("key", "value"):
            g.input(f"past_{i}.{part}", np.float32, [1, kv, "P", size])
            g.output(f"present_{i}.{part}", np.float32, [1, kv, "T", size])
        return g.node(
            "GroupQueryAttention",
            [packed, "", "", f"past_{i}.key", f"past_{i}.value", "seqlens_k", "total_length", cos, sin],
            [f"attention_{i}", f"present_{i}.key", f"present_{i}.value"], DOMAIN, num_heads=heads, kv_num_heads=kv,
            do_rotary=1, rotary_interleaved=0, scale=size ** -0.5)[0]

    normed = _layers(g, config, state, linear, "input_ids", attend)
    # Only the last token's logits are wanted: slice before the head, the largest matrix.
    final = g.node("Slice", [normed, g.constant([-1]), g.constant([2**31 - 1]), g.constant([1])])
    g.shared.clear()  # made for as many tokens as the prompt has
    g.choose(_logits(g, config, state, linear, final), config.vocab_size)
    g.save(folder / "model.onnx")
    return {"layers": config.num_hidden_layers, "kv_heads": kv, "head_size": size, "max_length": max_length}


def write_optimum(model: Any, folder: Path, linear: Linear, weights: Weights) -> None:
    """Writes `model.onnx` in optimum's layout. Raises `UsageError` for head sizes that its runtime does not reckon with."""
    config, state = model.config, _state(model)
    heads, kv, size = _heads(config)
    if size * heads != config.hidden_size:  # ORTModelForCausalLM makes the empty cache of hidden_size / heads
        raise UsageError(f"export: heads of {size} times {heads} are not the model's width {config.hidden_size}, as optimum's "
                         "runtime takes them to be; give --layout edge")
    g = Graph("llama", weights)
    ids = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    mask = g.input("attention_mask", np.int64, ["batch_size", "past_sequence_length + sequence_length"])
    positions = g.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    g.output("logits", np.float32, ["batch_size", "sequence_length", config.vocab_size])
    texts = Rows(g, ids)
    # Every place of the cache counts as used; padding is hidden from each query by a bias [B, 1, S, P + S].
    hidden = g.node("Mul", [g.node("Sub", [g.constant(1, np.float32), g.node("Cast", [mask], to=1)]),
                            g.constant(MASKED, np.float32)])
    total = Rows(g, mask).length
    bias = g.node("Expand", [g.node("Unsqueeze", [hidden, g.constant([1, 2])]),
                             g.node("Concat", [g.constant([1, 1]), texts.length, total], axis=0)])
    windows = {None: bias}  # by width; GroupQueryAttention's own is another in onnxruntime 1.23.2 than in 1.32
    for width in {window(config, i) for i in range(config.num_hidden_layers)} - {None}:
        near = g.node("Greater", [g.distances(g.node("Sub", [total, texts.length]), texts.length), g.constant(-width)])
        windows[width] = g.node("Where", [near, bias, g.constant(MASKED, np.float32)])
    total = g.node("Cast", [total], to=6)
    last = g.node("Expand", [g.node("Sub", [total, g.constant([1], np.int32)]), texts.batch])
    total = g.node("Squeeze", [total])
    cos, sin, rows = _turns(g, model, positions)

    def attend(i: int, packed: str) -> str:
        for part in ("key", "value"):
            g.input(f"past_key_values.{i}.{part}", np.float32, ["batch_size", kv, "past_sequence_length", size])
            g.output(f"present.{i}.{part}", np.float32,
                     ["batch_size", kv, "past_sequence_length + sequence_length", size])
        q, k, v = g.node("Split", [texts.apart(packed), g.constant([heads * size, kv * size, kv * size])], 3, axis=-1)
        q, k = (g.node("RotaryEmbedding", [each, rows, cos, sin], domain=DOMAIN) for each in (q, k))
        return texts.together(g.node(
            "GroupQueryAttention",
            [q, k, v, f"past_key_values.{i}.key", f"past_key_values.{i}.value", last, total, "", "", "",
             windows[window(config, i)]],
            [f"attention_{i}", f"present.{i}.key", f"present.{i}.value"], DOMAIN, num_heads=heads, kv_num_heads=kv,
            scale=size ** -0.5)[0])

    normed = _layers(g, config, state, linear, texts.tokens(ids), attend)
    g.node("Identity", [texts.apart(_logits(g, config, state, linear, normed))], ["logits"])
    g.save(folder / "model.onnx")


def _state(model: Any) -> dict[str, np.ndarray]:
    config = model.config
    if getattr(config, "hidden_act", "silu") != "silu":
        raise UsageError(f"export: a {config.model_type} model with {config.hidden_act} activation is not supported")
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    return state | reparam.matrices(model)


def _heads(config: Any) -> tuple[int, int, int]:
    """(query heads, key-value heads, head size)."""
    heads = config.num_attention_heads
    return heads, config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _layers(g: Graph, config: Any, state: dict[str, np.ndarray], linear: Linear, ids: str,
            attend: Callable[[int, str], str]) -> str:
    """[1, tokens, hidden] after the last norm, from ids [1, tokens]; `attend` makes [1, tokens, heads * size] of layer i's
    packed queries, keys and values."""
    epsilon = float(config.rms_norm_eps)
    x = linear.embed(g, ids, "embed", state["model.embed_tokens.weight"])
    normed, residual = g.norm(x, None, "layers.0.norm1", state["model.layers.0.input_layernorm.weight"], epsilon)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        qkv = np.concatenate([state[f"{layer}.self_attn.{p}_proj.weight"] for p in "qkv"])
        biases = [state.get(f"{layer}.self_attn.{p}_proj.bias") for p in "qkv"]
        packed = linear.matmul(g, normed, f"layers.{i}.qkv", qkv,
                               np.concatenate(biases) if biases[0] is not None else None)
        out = linear.matmul(g, attend(i, packed), f"layers.{i}.o", state[f"{layer}.self_attn.o_proj.weight"],
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
    return normed


def _logits(g: Graph, config: Any, state: dict[str, np.ndarray], linear: Linear, final: str) -> str:
    if config.tie_word_embeddings:
        return linear.head(g, final, "embed", state["model.embed_tokens.weight"])
    return linear.matmul(g, final, "head", state["lm_head.weight"])


def _frequencies(model: Any) -> tuple[torch.Tensor, float]:
    """(the model's own rotary frequencies [head size / 2], the scale of cos and sin), so that any scaling is theirs."""
    rotary = model.model.rotary_emb
    return rotary.inv_freq.float(), getattr(rotary, "attention_scaling", 1.0)


def _rotary(model: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) [length, head size / 2]."""
    frequencies, scale = _frequencies(model)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return (angles.cos() * scale).numpy(), (angles.sin() * scale).numpy()


def _turns(g: Graph, model: Any, positions: str) -> tuple[str, str, str]:
    """(cos, sin [B * S, head size / 2] of each token, which row is whose [B, S]) for `positions` [B, S]: reckoned in the
    graph, so that no table limits them."""
    frequencies, scale = _frequencies(model)
    flat = g.node("Reshape", [positions, g.constant([-1, 1])])
    angles = g.node("Mul", [g.node("Cast", [flat], to=1), g.weight("frequencies", frequencies[None].numpy())])
    cos, sin = (g.node("Mul", [g.node(turn, [angles]), g.constant(scale, np.float32)]) for turn in ("Cos", "Sin"))
    tokens = g.node("Size", [positions])
    rows = g.node("Range", [g.constant(0), tokens, g.constant(1)])
    return cos, sin, g.node("Reshape", [rows, g.node("Shape", [positions])])
