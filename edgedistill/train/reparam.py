"""`reparam` (Lee 2023, UCB/EECS-2023-141): each FFN gives way to a linear chain that is trained long and kept short.

| factors | matrices of a block, no activation between them |
|---|---|
| 1 | d x d |
| 2 | d x inner, inner x d |
| 3 | d x inner, inner x inner, inner x d |

`inner` is the width of the FFN that was there. The product of a chain is one d x d matrix with the same outputs: that
one is saved, exported and counted. Norm and residual of the block stay.

The chain starts random and knows nothing of the FFN that it replaces. In the thesis it is trained from scratch, and wins
back part of what dropping the FFNs costs (T5-Mini on MNLI: 78.2 with FFNs, 75.5 without, 76.5 with 1 factor, 77.2 with
3): a way to do without FFNs, never better than having them.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import cached_file

FFN = ("DenseReluDense", "mlp")  # what T5's and the Llama family's blocks call theirs


class Chain(nn.Module):
    """A product of linear maps d -> inner -> .. -> d without bias and activation."""

    def __init__(self, width: int, factors: int, inner: int | None, std: float) -> None:
        """`width` is d; `inner` is not read for 1 factor; `std` is that of the product's entries at the start.

        Raises `ValueError` for other than 1 to 3 factors.
        """
        super().__init__()
        if factors not in (1, 2, 3):
            raise ValueError(f"a chain of {factors} factors; 1, 2 or 3 are known")
        self.factors = nn.ModuleList(nn.Linear(a, b, bias=False)
                                     for a, b in pairwise([width, *[inner] * (factors - 1), width]))
        # Entries of variance 1 / fan-in keep the scale of their input, so the product's entries have 1 / width however
        # many factors there are; what is missing to `std` is shared evenly, so that no factor learns faster.
        gain = (std * width ** 0.5) ** (1 / factors)
        for factor in self.factors:
            nn.init.normal_(factor.weight, std=gain * factor.in_features ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        for factor in self.factors:
            x = factor(x)
        return x

    @torch.no_grad()
    def product(self) -> Tensor:
        """The chain as one weight [d, d] in float64, torch's layout."""
        first, *others = (factor.weight.double() for factor in self.factors)
        for other in others:
            first = other @ first
        return first


def replace(model: Any, factors: int, inner: int | None = None) -> None:
    """Puts a random chain in the place of each FFN of a T5- or Llama-family model, and marks its config.

    `inner` defaults to the FFN's own width. The product starts like any other matrix of the family (T5: standard
    deviation d^-0.5 times `initializer_factor`; Llama: `initializer_range`), so that a pretrained model around it meets
    outputs of the size that its family's training began with. Raises `ValueError` for other than 1 to 3 factors.
    """
    config, like = model.config, next(model.parameters())
    t5 = hasattr(config, "d_ff")
    width = config.hidden_size
    inner = None if factors == 1 else inner or (config.d_ff if t5 else config.intermediate_size)
    std = config.initializer_factor * width ** -0.5 if t5 else config.initializer_range
    for block in list(model.modules()):
        for name in FFN:
            if hasattr(block, name):
                setattr(block, name, Chain(width, factors, inner, std).to(like.device, like.dtype))
    config.edgedistill_ffn = {"factors": factors, "inner": inner}


def merge(model: Any) -> None:
    """Makes each chain of a model that `replace` changed one matrix with the same outputs, in place."""
    for chain in _chains(model).values():
        like = chain.factors[0].weight
        merged = nn.Linear(like.shape[1], like.shape[1], bias=False)
        merged.weight = nn.Parameter(chain.product().to(like.dtype))
        chain.factors = nn.ModuleList([merged])
    model.config.edgedistill_ffn = {"factors": 1, "inner": None}


def matrices(model: Any) -> dict[str, np.ndarray]:
    """Each chain's product [d, d] in float32 by its module's name; empty for a model with FFNs."""
    return {name: chain.product().float().cpu().numpy() for name, chain in _chains(model).items()}


def restore(auto: Any, config: Any, place: str | Path) -> Any:
    """What `auto.from_pretrained(place)` is to other models, for a `config` with the mark of `replace`.

    `place` is a folder or a hub id with one `model.safetensors`. Raises `OSError` for a file that cannot be had and
    `ValueError` for weights that are not exactly those of the config.
    """
    model = auto.from_config(config, dtype=torch.float32)
    try:
        replace(model, config.edgedistill_ffn["factors"], config.edgedistill_ffn["inner"])
        load_model(model, cached_file(place, "model.safetensors"))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError("model.safetensors does not fit edgedistill_ffn of config.json") from error
    with contextlib.suppress(OSError):  # there need not be one, as in from_pretrained
        model.generation_config = GenerationConfig.from_pretrained(place)
    return model.eval()


def _chains(model: Any) -> dict[str, Chain]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Chain)}
