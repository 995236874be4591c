"""The T5 family (v1.0 ReLU tied, v1.1 and flan gated untied) as two ONNX graphs that share one weight file.

    encoder.onnx: input_ids [1, S] -> cross_{i}.{key,value} [1, heads, S, head size] of every decoder layer
    decoder.onnx: input_ids [1, 1], past_length [1], past_{i}.{key,value} [1, heads, L, head size], cross_...
                  -> logits [1, 1, V], token [1, 1], logprob [1, 1], present_{i}.{key,value}

The decoder's cache is updated in place (past and present are one buffer), from an empty one on.
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


def write(model: Any, folder: Path, many: Linear, one: Linear, weights: Weights, max_input: int,
          max_length: int) -> dict[str, Any]:
    """Writes both graphs for inputs of up to `max_input` and outputs of up to `max_length` tokens.

    `many` makes the encoder's products, `one` the decoder's and the embedding that both read.
    """
    config = model.config
    if config.dense_act_fn not in ("relu", "gelu_new"):
        raise UsageError(f"export: a T5 with {config.dense_act_fn} activation is not supported")
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    state |= reparam.matrices(model)
    heads, size = config.num_heads, config.d_kv
    _encoder(Graph("encoder", weights), folder, state, config, many, one, max_input, _bias_table(model.encoder, max_input))
    _decoder(Graph("decoder", weights), folder, state, config, one, max_length,
             _bias_table(model.decoder, max_length))
    return {"layers": config.num_decoder_layers, "kv_heads": heads, "head_size": size, "max_length": max_length,
            "max_input": max_input}


def _encoder(g: Graph, folder: Path, state: dict[str, np.ndarray], config: Any, linear: Linear, embedding: Linear,
             max_input: int, table: np.ndarray) -> None:
    ids = g.input("input_ids", np.int64, [1, "S"])
    x = embedding.embed(g, ids, "embed", state["shared.weight"])
    length = g.node("Gather", [g.node("Shape", [ids]), g.constant(1)])
    positions = g.node("Range", [g.constant(0), length, g.constant(1)])
    # distance[i, j] = j - i, moved to 0 .. 2 * max_input - 2: a row of the table for each.
    distance = g.node("Sub", [g.node("Unsqueeze", [positions, g.constant([0])]),
                              g.node("Unsqueeze", [positions, g.constant([1])])])
    index = g.node("Add", [distance, g.constant(max_input - 1)])
    bias = g.node("Unsqueeze", [g.node("Gather", [g.weight("encoder.bias", table), index], axis=1), g.constant([0])])
    out, epsilon = None, float(config.layer_norm_epsilon)
    for i in range(config.num_layers):
        block = f"encoder.block.{i}.layer"
        normed, x = g.norm(x, out, f"enc.{i}.norm1", state[f"{block}.0.layer_norm.weight"], epsilon)
        q, k, v = _qkv(g, normed, linear, state, f"{block}.0.SelfAttention", f"enc.{i}.qkv", config)
        attended = g.node("MultiHeadAttention", [q, k, v, "", "", bias], domain=DOMAIN, num_heads=config.num_heads,
                          scale=1.0)
        out = linear.matmul(g, attended, f"enc.{i}.o", state[f"{block}.0.SelfAttention.o.weight"])
        out, x = _feed_forward(g, x, out, linear, state, f"{block}.1", f"enc.{i}", config)
    final, _ = g.norm(x, out, "enc.norm", state["encoder.final_layer_norm.weight"], epsilon)
    # A product for each decoder layer: one for all is no faster (benchmarks/LOG.md).
    for i in range(config.num_decoder_layers):
        cross = f"decoder.block.{i}.layer.1.EncDecAttention"
        both = linear.matmul(g, final, f"dec.{i}.cross_kv",
                             np.concatenate([state[f"{cross}.k.weight"], state[f"{cross}.v.weight"]]))
        shaped = g.node("Reshape", [both, g.constant([1, -1, 2 * config.num_heads, config.d_kv])])
        names = [f"cross_{i}.key", f"cross_{i}.value"]
        g.node("Split", [g.node("Transpose", [shaped], perm=[0, 2, 1, 3])], names, axis=1, num_outputs=2)
        for name in names:
            g.output(name, np.float32, [1, config.num_heads, "S", config.d_kv])
    g.save(folder / "encoder.onnx")


def _decoder(g: Graph, folder: Path, state: dict[str, np.ndarray], config: Any, linear: Linear, max_length: int,
             table: np.ndarray) -> None:
    heads, size = config.num_heads, config.d_kv
    ids = g.input("input_ids", np.int64, [1, 1])
    past = g.input("past_length", np.int32, [1])
    x = linear.embed(g, ids, "embed", state["shared.weight"])
    # Keys 0 .. past are at the distances past .. 0 behind the query.
    here = g.node("Cast", [g.node("Squeeze", [past, g.constant([0])])], to=7)
    behind = g.node("Range", [here, g.constant(-1), g.constant(-1)])
    distance = g.node("Add", [g.node("Neg", [behind]), g.constant(max_length - 1)])
    bias = g.node("Unsqueeze", [g.node("Gather", [g.weight("decoder.bias", table), distance], axis=1),
                                g.constant([0, 2])])
    out, epsilon = None, float(config.layer_norm_epsilon)
    for i in range(config.num_decoder_layers):
        block = f"decoder.block.{i}.layer"
        for part in ("key", "value"):
            g.input(f"past_{i}.{part}", np.float32, [1, heads, max_length, size])
            g.output(f"present_{i}.{part}", np.float32, [1, heads, max_length, size])
            g.input(f"cross_{i}.{part}", np.float32, [1, heads, "S", size])
        normed, x = g.norm(x, out, f"dec.{i}.norm1", state[f"{block}.0.layer_norm.weight"], epsilon)
        q, k, v = _qkv(g, normed, linear, state, f"{block}.0.SelfAttention", f"dec.{i}.qkv", config)
        attended = g.node(
            "DecoderMaskedMultiHeadAttention",
            [q, k, v, "", bias, f"past_{i}.key", f"past_{i}.value", past],
            [f"attention_{i}", f"present_{i}.key", f"present_{i}.value"], DOMAIN, num_heads=heads,
            past_present_share_buffer=1, scale=1.0)[0]
        out = linear.matmul(g, attended, f"dec.{i}.o", state[f"{block}.0.SelfAttention.o.weight"])
        normed, x = g.norm(x, out, f"dec.{i}.norm2", state[f"{block}.1.layer_norm.weight"], epsilon)
        query = linear.matmul(g, normed, f"dec.{i}.cross_q", state[f"{block}.1.EncDecAttention.q.weight"])
        attended = g.node("MultiHeadAttention", [query, f"cross_{i}.key", f"cross_{i}.value"], domain=DOMAIN,
                          num_heads=heads, scale=1.0)
        out = linear.matmul(g, attended, f"dec.{i}.cross_o", state[f"{block}.1.EncDecAttention.o.weight"])
        out, x = _feed_forward(g, x, out, linear, state, f"{block}.2", f"dec.{i}", config)
    final, _ = g.norm(x, out, "dec.norm", state["decoder.final_layer_norm.weight"], epsilon)
    # transformers 5 names the scaling of v1.0 by itself; in 4.57 it goes with tied embeddings.
    if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
        final = g.node("Mul", [final, g.constant(np.float32(config.d_model ** -0.5), np.float32)])
    if config.tie_word_embeddings:
        logits = linear.head(g, final, "embed", state["shared.weight"])
    else:
        logits = linear.matmul(g, final, "head", state["lm_head.weight"])
    g.choose(logits, config.vocab_size)
    g.save(folder / "decoder.onnx")


def _qkv(g: Graph, x: str, linear: Linear, state: dict[str, np.ndarray], attention: str, name: str,
         config: Any) -> list[str]:
    packed = np.concatenate([state[f"{attention}.{part}.weight"] for part in "qkv"])
    return g.node("Split", [linear.matmul(g, x, name, packed)], 3, axis=-1, num_outputs=3)


def _feed_forward(g: Graph, x: str, out: str, linear: Linear, state: dict[str, np.ndarray], layer: str, name: str,
                  config: Any) -> tuple[str, str]:
    """(feed-forward of the norm of x + out, x + out); gated (v1.1, flan), ReLU (v1.0) or one matrix (a merged linear chain)."""
    normed, x = g.norm(x, out, f"{name}.norm_ff", state[f"{layer}.layer_norm.weight"],
                       float(config.layer_norm_epsilon))
    dense = f"{layer}.DenseReluDense"
    if dense in state:
        return linear.matmul(g, normed, f"{name}.ffn", state[dense]), x
    if config.is_gated_act:
        both = linear.matmul(g, normed, f"{name}.wi",
                             np.concatenate([state[f"{dense}.wi_0.weight"], state[f"{dense}.wi_1.weight"]]))
        gate, up = g.node("Split", [both], 2, axis=-1, num_outputs=2)
        act = g.node("FastGelu", [gate], domain=DOMAIN) if config.dense_act_fn == "gelu_new" else g.node("Relu", [gate])
        hidden = g.node("Mul", [act, up])
    else:
        inner = linear.matmul(g, normed, f"{name}.wi", state[f"{dense}.wi.weight"])
        hidden = (g.node("FastGelu", [inner], domain=DOMAIN) if config.dense_act_fn == "gelu_new"
                  else g.node("Relu", [inner]))
    positive = not config.is_gated_act and config.dense_act_fn == "relu"
    return linear.matmul(g, hidden, f"{name}.wo", state[f"{dense}.wo.weight"], positive=positive), x


def _bias_table(stack: Any, length: int) -> np.ndarray:
    """[heads, 2 * length - 1]: the bias for a key at distance -(length - 1) .. length - 1 from the query.

    The buckets are computed by the model itself. A decoder looks backwards only and reads the first `length` columns.
    """
    attention = stack.block[0].layer[0].SelfAttention
    distance = torch.arange(-(length - 1), length)
    bucket = attention._relative_position_bucket(
        distance, bidirectional=not attention.is_decoder, num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance)
    return attention.relative_attention_bias(bucket).T.detach().float().contiguous().numpy()
