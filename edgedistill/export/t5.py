"""The T5 family (v1.0 ReLU tied, v1.1 and flan gated untied) as two ONNX graphs that share one weight file.

    encoder.onnx: input_ids [1, S] -> cross_{i}.{key,value} [1, heads, S, head size] of every decoder layer
    decoder.onnx: input_ids [1, 1], past_length [1], past_{i}.{key,value} [1, heads, L, head size], cross_...
                  -> logits [1, 1, V], token [1, 1], logprob [1, 1], present_{i}.{key,value}

The decoder's cache is updated in place (past and present are one buffer), from an empty one on. optimum's layout has three
graphs, for any batch (padded on the right) and length, the decoder once without a past and once with it:

    encoder_model.onnx: input_ids, attention_mask [B, S] -> last_hidden_state [B, S, d]
    decoder_model.onnx: input_ids [B, T], encoder_attention_mask [B, S], encoder_hidden_states [B, S, d]
                        -> logits [B, T, V], present.{i}.{decoder,encoder}.{key,value}
    decoder_with_past_model.onnx: past_key_values.{i}.{decoder,encoder}.{key,value} in place of the hidden states
                        -> logits, present.{i}.decoder.{key,value}
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


def write(model: Any, folder: Path, many: Linear, one: Linear, weights: Weights, max_input: int,
          max_length: int) -> dict[str, Any]:
    """Writes both graphs for inputs of up to `max_input` and outputs of up to `max_length` tokens.

    `many` makes the encoder's products, `one` the decoder's and the embedding that both read.
    """
    config, state = model.config, _state(model)
    _encoder(Graph("encoder", weights), folder, state, config, many, one, max_input, _bias_table(model.encoder, max_input))
    _decoder(Graph("decoder", weights), folder, state, config, one, max_length,
             _bias_table(model.decoder, max_length))
    return {"layers": config.num_decoder_layers, "kv_heads": config.num_heads, "head_size": config.d_kv,
            "max_length": max_length, "max_input": max_input}


def write_optimum(model: Any, folder: Path, many: Linear, one: Linear, weights: Weights) -> None:
    """Writes the three graphs of optimum's layout; `many` and `one` as in `write`."""
    config, state = model.config, _state(model)
    reach = config.relative_attention_max_distance  # further away all distances have one bias
    table = _bias_table(model.decoder, reach + 1)
    table[:, reach + 1:] = MASKED  # what comes later
    _optimum_encoder(Graph("encoder", weights), folder, state, config, many, one, _bias_table(model.encoder, reach + 1))
    for past in (False, True):
        _optimum_decoder(Graph("decoder", weights), folder, state, config, many, one, table, past)


def _state(model: Any) -> dict[str, np.ndarray]:
    if model.config.dense_act_fn not in ("relu", "gelu_new"):
        raise UsageError(f"export: a T5 with {model.config.dense_act_fn} activation is not supported")
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    return state | reparam.matrices(model)


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

    def attend(packed: str) -> str:
        return g.node("MultiHeadAttention", [*_three(g, packed), "", "", bias], domain=DOMAIN, num_heads=config.num_heads,
                      scale=1.0)

    final = _encoded(g, x, state, config, linear, attend)
    # A product for each decoder layer: one for all is no faster (benchmarks/LOG.md).
    for i in range(config.num_decoder_layers):
        names = _cross(g, final, f"cross_{i}", g.constant([1, -1, 2 * config.num_heads, config.d_kv]), i, state, linear)
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

    def attend(i: int, packed: str) -> str:
        for part in ("key", "value"):
            g.input(f"past_{i}.{part}", np.float32, [1, heads, max_length, size])
            g.output(f"present_{i}.{part}", np.float32, [1, heads, max_length, size])
            g.input(f"cross_{i}.{part}", np.float32, [1, heads, "S", size])
        return g.node(
            "DecoderMaskedMultiHeadAttention",
            [*_three(g, packed), "", bias, f"past_{i}.key", f"past_{i}.value", past],
            [f"attention_{i}", f"present_{i}.key", f"present_{i}.value"], DOMAIN, num_heads=heads,
            past_present_share_buffer=1, scale=1.0)[0]

    def look(i: int, query: str) -> str:
        return g.node("MultiHeadAttention", [query, f"cross_{i}.key", f"cross_{i}.value"], domain=DOMAIN, num_heads=heads,
                      scale=1.0)

    g.choose(_decoded(g, x, state, config, linear, attend, look), config.vocab_size)
    g.save(folder / "decoder.onnx")


def _optimum_encoder(g: Graph, folder: Path, state: dict[str, np.ndarray], config: Any, linear: Linear, embedding: Linear,
                     table: np.ndarray) -> None:
    ids = g.input("input_ids", np.int64, ["batch_size", "encoder_sequence_length"])
    mask = g.input("attention_mask", np.int64, ["batch_size", "encoder_sequence_length"])
    texts = Rows(g, ids)
    padding = g.node("Cast", [mask], to=6)
    bias = _bias(g, "encoder.bias", table, g.constant([0]), texts.length)

    def attend(packed: str) -> str:
        return texts.together(g.node(
            "MultiHeadAttention", [*_three(g, texts.apart(packed)), "", padding, bias], domain=DOMAIN,
            num_heads=config.num_heads, scale=1.0, mask_filter_value=MASKED))

    x = embedding.embed(g, texts.tokens(ids), "embed", state["shared.weight"])
    g.node("Identity", [texts.apart(_encoded(g, x, state, config, linear, attend))], ["last_hidden_state"])
    g.output("last_hidden_state", np.float32, ["batch_size", "encoder_sequence_length", config.d_model])
    g.save(folder / "encoder_model.onnx")


def _optimum_decoder(g: Graph, folder: Path, state: dict[str, np.ndarray], config: Any, many: Linear, one: Linear,
                     table: np.ndarray, past: bool) -> None:
    heads, size = config.num_heads, config.d_kv
    ids = g.input("input_ids", np.int64, ["batch_size", "decoder_sequence_length"])
    mask = g.input("encoder_attention_mask", np.int64, ["batch_size", "encoder_sequence_length"])
    g.output("logits", np.float32, ["batch_size", "decoder_sequence_length", config.vocab_size])
    texts, sources = Rows(g, ids), Rows(g, mask)
    padding = g.node("Cast", [mask], to=6)
    cached = "past_decoder_sequence_length + decoder_sequence_length" if past else "decoder_sequence_length"
    if past:
        for i in range(config.num_decoder_layers):
            for side in ("decoder", "encoder"):
                for part in ("key", "value"):
                    length = "past_decoder_sequence_length" if side == "decoder" else "encoder_sequence_length"
                    g.input(f"past_key_values.{i}.{side}.{part}", np.float32, ["batch_size", heads, length, size])
        before = g.node("Gather", [g.node("Shape", ["past_key_values.0.decoder.key"]), g.constant([2])])
    else:
        states = sources.together(g.input("encoder_hidden_states", np.float32,
                                          ["batch_size", "encoder_sequence_length", config.d_model]))
        shape = g.node("Concat", [sources.batch, sources.length, g.constant([2 * heads, size])], axis=0)
        for i in range(config.num_decoder_layers):
            for name in _cross(g, states, f"present.{i}.encoder", shape, i, state, many):
                g.output(name, np.float32, ["batch_size", heads, "encoder_sequence_length", size])
        g.shared.clear()  # made for as many tokens as the source has
        before = g.constant([0])
    bias = _bias(g, "decoder.bias", table, before, texts.length)

    def attend(i: int, packed: str) -> str:
        names = [f"present.{i}.decoder.{part}" for part in ("key", "value")]
        for name in names:
            g.output(name, np.float32, ["batch_size", heads, cached, size])
        given = [f"past_key_values.{i}.decoder.{part}" for part in ("key", "value")] if past else []
        return texts.together(g.node("MultiHeadAttention", [*_three(g, texts.apart(packed)), "", "", bias, *given],
                                     [f"attention_{i}", *names], DOMAIN, num_heads=heads, scale=1.0)[0])

    def look(i: int, query: str) -> str:
        names = [f"{'past_key_values' if past else 'present'}.{i}.encoder.{part}" for part in ("key", "value")]
        return texts.together(g.node("MultiHeadAttention", [texts.apart(query), *names, "", padding], domain=DOMAIN,
                                     num_heads=heads, scale=1.0, mask_filter_value=MASKED))

    x = one.embed(g, texts.tokens(ids), "embed", state["shared.weight"])
    g.node("Identity", [texts.apart(_decoded(g, x, state, config, one, attend, look))], ["logits"])
    g.save(folder / f"decoder_{'with_past_' if past else ''}model.onnx")


def _encoded(g: Graph, x: str, state: dict[str, np.ndarray], config: Any, linear: Linear,
             attend: Callable[[str], str]) -> str:
    """[1, tokens, d] after the encoder's last norm; `attend` makes [1, tokens, inner] of packed queries, keys and values."""
    out = None
    for i in range(config.num_layers):
        block = f"encoder.block.{i}.layer"
        normed, x = _norm(g, x, out, f"enc.{i}.norm1", state[f"{block}.0.layer_norm.weight"], config)
        packed = linear.matmul(g, normed, f"enc.{i}.qkv", _packed(state, f"{block}.0.SelfAttention"))
        out = linear.matmul(g, attend(packed), f"enc.{i}.o", state[f"{block}.0.SelfAttention.o.weight"])
        out, x = _feed_forward(g, x, out, linear, state, f"{block}.1", f"enc.{i}", config)
    return _norm(g, x, out, "enc.norm", state["encoder.final_layer_norm.weight"], config)[0]


def _decoded(g: Graph, x: str, state: dict[str, np.ndarray], config: Any, linear: Linear,
             attend: Callable[[int, str], str], look: Callable[[int, str], str]) -> str:
    """Logits [1, tokens, V]; `attend` as in `_encoded` for layer i, `look` makes the same of a query on the source."""
    out = None
    for i in range(config.num_decoder_layers):
        block = f"decoder.block.{i}.layer"
        normed, x = _norm(g, x, out, f"dec.{i}.norm1", state[f"{block}.0.layer_norm.weight"], config)
        packed = linear.matmul(g, normed, f"dec.{i}.qkv", _packed(state, f"{block}.0.SelfAttention"))
        out = linear.matmul(g, attend(i, packed), f"dec.{i}.o", state[f"{block}.0.SelfAttention.o.weight"])
        normed, x = _norm(g, x, out, f"dec.{i}.norm2", state[f"{block}.1.layer_norm.weight"], config)
        query = linear.matmul(g, normed, f"dec.{i}.cross_q", state[f"{block}.1.EncDecAttention.q.weight"])
        out = linear.matmul(g, look(i, query), f"dec.{i}.cross_o", state[f"{block}.1.EncDecAttention.o.weight"])
        out, x = _feed_forward(g, x, out, linear, state, f"{block}.2", f"dec.{i}", config)
    final, _ = _norm(g, x, out, "dec.norm", state["decoder.final_layer_norm.weight"], config)
    # transformers 5 names the scaling of v1.0 by itself; in 4.57 it goes with tied embeddings.
    if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
        final = g.node("Mul", [final, g.constant(np.float32(config.d_model ** -0.5), np.float32)])
    if config.tie_word_embeddings:
        return linear.head(g, final, "embed", state["shared.weight"])
    return linear.matmul(g, final, "head", state["lm_head.weight"])


def _norm(g: Graph, x: str, added: str | None, name: str, gain: np.ndarray, config: Any) -> tuple[str, str]:
    return g.norm(x, added, name, gain, float(config.layer_norm_epsilon))


def _packed(state: dict[str, np.ndarray], attention: str) -> np.ndarray:
    return np.concatenate([state[f"{attention}.{part}.weight"] for part in "qkv"])


def _three(g: Graph, packed: str) -> list[str]:
    return g.node("Split", [packed], 3, axis=-1, num_outputs=3)


def _cross(g: Graph, states: str, prefix: str, shape: str, i: int, state: dict[str, np.ndarray], linear: Linear) -> list[str]:
    """[`prefix`.key, `prefix`.value], [B, heads, S, head size], of the encoder's states for decoder layer i; `shape` is that
    of both before their axes are turned: [B, S, 2 * heads, head size]."""
    cross = f"decoder.block.{i}.layer.1.EncDecAttention"
    both = linear.matmul(g, states, f"dec.{i}.cross_kv",
                         np.concatenate([state[f"{cross}.k.weight"], state[f"{cross}.v.weight"]]))
    turned = g.node("Transpose", [g.node("Reshape", [both, shape])], perm=[0, 2, 1, 3])
    return g.node("Split", [turned], [f"{prefix}.key", f"{prefix}.value"], axis=1, num_outputs=2)


def _feed_forward(g: Graph, x: str, out: str, linear: Linear, state: dict[str, np.ndarray], layer: str, name: str,
                  config: Any) -> tuple[str, str]:
    """(feed-forward of the norm of x + out, x + out); gated (v1.1, flan), ReLU (v1.0) or one matrix (a merged linear chain)."""
    normed, x = _norm(g, x, out, f"{name}.norm_ff", state[f"{layer}.layer_norm.weight"], config)
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


def _bias(g: Graph, name: str, table: np.ndarray, before: str, length: str) -> str:
    """[1, heads, S, before + S]: the bias of `length` S queries that follow `before` keys, from a table [heads, 2 * reach + 1]
    whose ends stand for all that is further away."""
    reach = table.shape[1] // 2
    index = g.node("Add", [g.node("Clip", [g.distances(before, length), g.constant(-reach), g.constant(reach)]),
                           g.constant(reach)])
    return g.node("Unsqueeze", [g.node("Gather", [g.weight(name, table), index], axis=1), g.constant([0])])


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
