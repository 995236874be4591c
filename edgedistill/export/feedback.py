"""4-bit weights whose rounding errors are fed back into the weights that are still to be rounded (GPTQ, Frantar et al. 2022).

A product's output changes least when the error of one input's column is made up for by the columns after it, by the second
moments of the inputs that the student really sees. Measured on the student's own training questions; what that gives beside
rounding each weight by itself is in benchmarks/LOG.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

DAMPING = 0.01  # share of the mean moment that is added to each, as in the paper's code: inputs that never occur have none
# The product that reads a module's input, by the end of the module's name: q, k and v are one product, so are gate and up.
PRODUCTS = {
    "self_attn.q_proj": "qkv", "self_attn.o_proj": "o", "mlp.gate_proj": "gate_up", "mlp.down_proj": "down",
    "SelfAttention.q": "qkv", "SelfAttention.o": "o", "EncDecAttention.q": "cross_q", "EncDecAttention.k": "cross_kv",
    "EncDecAttention.o": "cross_o", "DenseReluDense.wi": "wi", "DenseReluDense.wi_0": "wi", "DenseReluDense.wo": "wo"}
PLACES = {"model": "layers", "encoder": "enc", "decoder": "dec"}


class Feedback:
    """Rounds the matrices of products by the moments of their inputs; each matrix once."""

    def __init__(self, moments: dict[str, np.ndarray]) -> None:
        self.moments = moments
        self.done: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def blocks(self, name: str, weight: np.ndarray, size: int, scale: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """(values -8..7 [N, K / size, size], scales [N, K / size]) for `weight` [N, K]; None where nothing was measured.

        `scale` gives a block's scales [N] from its weights [N, size].
        """
        if name not in self.moments:
            return None
        if name not in self.done:
            self.done[name] = _rounded(weight, self.moments[name], size, scale)
        return self.done[name]


def measured(student: Any, texts: list[str], outputs: list[list[int]]) -> Feedback:
    """Second moments of every product's inputs over questions and their outputs (token ids without the end)."""
    moments: dict[str, torch.Tensor] = {}
    hooks = []
    for path, module in student.model.named_modules():
        end = next((end for end in PRODUCTS if path.endswith(f".{end}")), None)
        if end is None or not isinstance(module, torch.nn.Linear):
            continue
        stack, layer = path.split(".")[0], path.split(".")[2]  # model.layers.3. ... or encoder.block.3. ...
        hooks.append(module.register_forward_pre_hook(_adding(moments, f"{PLACES[stack]}.{layer}.{PRODUCTS[end]}")))
    form, model = student.format, student.model
    opening = form.opening(student.rust, "label")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for text, out in zip(texts, outputs, strict=True):
                source = form.encode_source(student.rust, text, "label")
                if student.family == "t5":
                    model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([opening + out]), use_cache=False)
                else:
                    model(input_ids=torch.tensor([source + opening + out]), use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Feedback({name: moment.numpy() for name, moment in moments.items()})


def _adding(moments: dict[str, torch.Tensor], name: str) -> Any:
    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).float()
        moments[name] = moments.get(name, 0) + rows.T @ rows

    return add


def _rounded(weight: np.ndarray, moment: np.ndarray, size: int, scale: Any) -> tuple[np.ndarray, np.ndarray]:
    """Column by column: an error, divided by its column's own share, goes to the columns after it by the inverse moments."""
    left = weight.astype(np.float32).copy()
    n, k = left.shape
    moment = moment.astype(np.float64)
    damped = moment + np.eye(k) * max(DAMPING * float(np.diag(moment).mean()), 1e-12)
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # U, upper: the inverse is U^T U
    values, scales = np.empty((n, k // size, size), np.float32), np.empty((n, k // size), np.float32)
    for b, at in enumerate(range(0, k, size)):
        block, errors = left[:, at:at + size], np.empty((n, size), np.float32)
        scales[:, b] = scale(block)
        safe = np.where(scales[:, b] == 0, 1, scales[:, b])
        for j in range(size):
            values[:, b, j] = np.clip(np.round(block[:, j] / safe), -8, 7)
            errors[:, j] = (block[:, j] - values[:, b, j] * safe) / inverse[at + j, at + j]
            block[:, j + 1:] -= errors[:, j:j + 1] * inverse[at + j, at + j + 1:at + size]
        left[:, at + size:] -= errors @ inverse[at:at + size, at + size:]
    return values, scales
