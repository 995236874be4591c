"""The forward passes of training, over transformers' weights: the T5 family and the Llama family, on packed rows.

Both give what the models' own forward gives (tests), at target positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from edgedistill.train.packed import (
    ACTIVATIONS,
    Batch,
    Weights,
    activated,
    add,
    apply,
    attend,
    dropout,
    norm,
    norm_linear,
    rotate,
)
from edgedistill.train.reparam import Chain


def t5(model: Any, batch: Batch, weights: Weights) -> Tensor:
    """[targets, d] before the head. The keys and values of all decoder layers are one product; a source's are made once."""
    config = model.config
    p = config.dropout_rate if model.training else 0.0
    ids = batch["source_ids"], batch["target_ids"]
    # One lookup for both: each would make a gradient of the whole embedding's size.
    embedded = embedding(torch.cat(ids), model.get_input_embeddings().weight)
    source, target = (dropout(each, p) for each in embedded.split([len(each) for each in ids]))
    source = _layers(config, model.encoder, source, [()] * len(model.encoder.block), batch["source"], weights, p)
    states = dropout(norm(source, model.encoder.final_layer_norm, weights), p)
    cross = [block.layer[1].EncDecAttention for block in model.decoder.block]
    heads = [each.view(len(states), config.num_heads, config.d_kv) for each in torch.nn.functional.linear(
        states, weights(*(part.weight for each in cross for part in (each.k, each.v)))).split(cross[0].inner_dim, 1)]
    pairs = list(zip(heads[::2], heads[1::2], strict=True))
    target = _layers(config, model.decoder, target, pairs, batch["target"], weights, p, batch["cross"])
    hidden = dropout(norm(target[batch["at"]], model.decoder.final_layer_norm, weights), p)
    # Tied T5s scale what the head reads; transformers 5 has a name of its own for it.
    return hidden * config.d_model ** -0.5 if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings) else hidden


def _layers(config: Any, stack: Any, x: Tensor, pairs: list[Any], groups: list[Batch], weights: Weights, p: float,
            cross: list[Batch] | None = None) -> Tensor:
    width = max(group["q"]["index"].shape[1] for group in groups)
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(width, width, x.device)
    for block, pair in zip(stack.block, pairs, strict=True):
        x = _run(block, partial(_block, block, config, groups, weights, p, cross), x, bias, *pair)
    return x


def _block(block: Any, config: Any, groups: list[Batch], weights: Weights, p: float, cross: list[Batch] | None, x: Tensor,
           bias: Tensor, *pair: Tensor) -> Tensor:
    def heads(flat: Tensor) -> Tensor:
        return flat.view(len(flat), -1, config.d_kv)

    own, module = block.layer[0], block.layer[0].SelfAttention
    qkv = heads(norm_linear(x, own.layer_norm, (module.q, module.k, module.v), weights))
    x = add(x, apply(attend(*qkv.split(config.num_heads, 1), groups, p=p, bias=bias), module.o, weights), p)
    if cross is not None:
        other, module = block.layer[1], block.layer[1].EncDecAttention
        q = heads(norm_linear(x, other.layer_norm, (module.q,), weights))
        x = add(x, apply(attend(q, *pair, cross, p=p), module.o, weights), p)
    ffn, module = block.layer[-1], block.layer[-1].DenseReluDense
    if isinstance(module, Chain):
        return add(x, _chain(x, ffn.layer_norm, module, weights), p)
    gated = config.is_gated_act
    inner = norm_linear(x, ffn.layer_norm, (module.wi_0, module.wi_1) if gated else (module.wi,), weights)
    return add(x, apply(activated(inner, config.dense_act_fn, gated, p), module.wo, weights), p)


def llama(model: Any, batch: Batch, weights: Weights, taps: Sequence[int] = (),
          look: Callable[..., Tensor] | None = None) -> Any:
    """[targets, d] before the head, for Llama, Qwen2 and Mistral; with `taps`, layers by number, also the states [N, d] of all
    tokens after each of them, as (before the head, states). `look` is attention where it is not that within the batch: it takes
    the layer's number, turned q [N, H, size] and k, v [N, Hk, size], the scale and the dropout."""
    inner, states = model.model, {}
    look = look or (lambda _, q, k, v, scale, p: attend(q, k, v, batch["rows"], scale, p))
    x = embedding(batch["ids"], inner.embed_tokens.weight)
    cos, sin = (each[0, :, None, : each.shape[-1] // 2].float() for each in inner.rotary_emb(x[None], batch["places"][None]))
    for i, layer in enumerate(inner.layers):
        x = _run(layer, partial(_layer, layer, model, partial(look, i), weights), x, cos, sin)
        if i in taps:
            states[i] = x
    hidden = norm(x[batch["at"]], inner.norm, weights)
    return (hidden, [states[i] for i in taps]) if taps else hidden


def _layer(layer: Any, model: Any, look: Callable[..., Tensor], weights: Weights, x: Tensor, cos: Tensor,
           sin: Tensor) -> Tensor:
    config, module = model.config, layer.self_attn
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    qkv = norm_linear(x, layer.input_layernorm, (module.q_proj, module.k_proj, module.v_proj), weights)
    q, k, v = qkv.view(len(qkv), -1, module.head_dim).split([heads, shared, shared], 1)
    context = look(rotate(q, cos, sin), rotate(k, cos, sin), v, module.scaling,
                   module.attention_dropout if model.training else 0.0)
    x = x + apply(context, module.o_proj, weights)
    ffn = layer.mlp
    if isinstance(ffn, Chain):
        return x + _chain(x, layer.post_attention_layernorm, ffn, weights)
    gate = norm_linear(x, layer.post_attention_layernorm, (ffn.gate_proj, ffn.up_proj), weights)
    return x + apply(activated(gate, config.hidden_act, True, 0.0), ffn.down_proj, weights)


def _chain(x: Tensor, scale: Any, chain: Chain, weights: Weights) -> Tensor:
    first, *others = chain.factors
    x = norm_linear(x, scale, (first,), weights)
    for each in others:
        x = apply(x, each, weights)
    return x


def _run(block: Any, forward: Callable[..., Tensor], *given: Tensor) -> Tensor:
    if block.training and block.gradient_checkpointing:
        return checkpoint(forward, *given, use_reentrant=False)
    return forward(*given)


def window(config: Any, i: int) -> int | None:
    """How many tokens layer i looks back, itself among them; None for all. Training looks back at all of them."""
    kinds = getattr(config, "layer_types", None)
    return getattr(config, "sliding_window", None) if not kinds or kinds[i] == "sliding_attention" else None


def supported(config: Any) -> bool:
    """Whether a model's activation is one that these passes know."""
    return (config.dense_act_fn if hasattr(config, "d_ff") else config.hidden_act) in ACTIVATIONS


@contextmanager
def forwarding(model: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, calling the model (or a wrapper around it, as data-parallel training has) runs `forward(model, ...)`."""
    before = vars(model).get("forward")
    model.forward = partial(forward, model)
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before
