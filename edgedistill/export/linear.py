"""Matrix products in the precisions that a bundle can have.

| precision | weight | product |
|---|---|---|
| fp32 | [K, N] float | MatMul |
| int8, nbits | u8 blocks of a row with a scale each | MatMulNBits 8 bits, accuracy_level 4 (int8 activations per block) |
| int8, integer | s8 [K, N], a scale for each column | MatMulInteger of u8 activations with a scale for each token |

Both int8 forms scale each token by itself, so that a text's result does not depend on its neighbours. A product that is
kept high has its int8 weights in the file but fp32 activations: onnxruntime unfolds the matrix when it loads.
"""

from __future__ import annotations

import numpy as np

from edgedistill.export.graph import DOMAIN, Graph


class Linear:
    """Adds products with weight matrices to graphs, in one precision."""

    def __init__(self, precision: str, form: str = "nbits", keep_high: tuple[str, ...] = ()) -> None:
        """`precision` is "fp32" or "int8"; `form` is a target card's `linear`; names that end with one of `keep_high`
        get fp32 activations."""
        self.kind = "fp32" if precision == "fp32" else form
        self.keep_high = keep_high

    def matmul(self, g: Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """x [..., K] times `weight` [N, K] (torch's layout) transposed, plus `bias` [N]."""
        kept = self.kind != "fp32" and name.endswith(self.keep_high or ("\0",))
        product = self._unfolded if kept else getattr(self, f"_{self.kind}")
        y = product(g, x, name, weight.astype(np.float32))
        return g.node("Add", [y, g.weight(f"{name}.bias", bias.astype(np.float32))]) if bias is not None else y

    def embed(self, g: Graph, ids: str, name: str, weight: np.ndarray) -> str:
        """Rows of `weight` [V, K] for ids [...]."""
        weight = weight.astype(np.float32)
        if self.kind == "fp32":
            return g.node("Gather", [g.weight(name, weight), ids])
        if self.kind == "integer":
            values, scale = _per_row(weight)
            rows = g.node("Cast", [g.node("Gather", [g.weight(name, values), ids])], to=1)
            return g.node("Mul", [rows, g.node("Gather", [g.weight(f"{name}.scale", scale[:, None]), ids])])
        values, scales, block = _blocks(weight)
        # MatMulNBits' layout [V, blocks, block] with zero point 128 serves the lookup too: stored once.
        rows = g.node("Cast", [g.node("Gather", [g.weight(name, values), ids])], to=1)
        centred = g.node("Sub", [rows, g.constant(128.0, np.float32)])
        scale = g.node("Unsqueeze", [g.node("Gather", [g.weight(f"{name}.scale", scales), ids]), g.constant([-1])])
        return g.node("Reshape", [g.node("Mul", [centred, scale]), g.constant([0, 0, -1])])

    def head(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        """Logits x [..., K] -> [..., V] with an embedding's own weight: the same bytes as `embed` stored."""
        if self.kind == "nbits":
            return self._nbits(g, x, name, weight.astype(np.float32))
        if self.kind == "fp32":
            return g.node("MatMul", [x, g.node("Transpose", [g.weight(name, weight.astype(np.float32))], perm=[1, 0])])
        values, scale = _per_row(weight.astype(np.float32))
        transposed = g.node("Transpose", [g.weight(name, values)], perm=[1, 0])
        column = g.node("Reshape", [g.weight(f"{name}.scale", scale[:, None]), g.constant([-1])])
        return self._product(g, x, transposed, column)

    def _fp32(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        return g.node("MatMul", [x, g.weight(name, weight.T)])

    def _nbits(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        n, k = weight.shape
        values, scales, block = _blocks(weight)
        return g.node("MatMulNBits", [x, g.weight(name, values), g.weight(f"{name}.scale", scales)], domain=DOMAIN,
                      K=k, N=n, bits=8, block_size=block, accuracy_level=4)

    def _integer(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        values, scale = _per_row(weight)
        return self._product(g, x, g.weight(name, values.T), g.weight(f"{name}.scale", scale))

    def _unfolded(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        n, k = weight.shape
        if self.kind == "integer":
            values, scale = _per_row(weight)
            matrix = g.node("Cast", [g.weight(name, values.T)], to=1)
            return g.node("MatMul", [x, g.node("Mul", [matrix, g.weight(f"{name}.scale", scale)])])
        values, scales, _ = _blocks(weight)
        centred = g.node("Sub", [g.node("Cast", [g.weight(name, values)], to=1), g.constant(128.0, np.float32)])
        matrix = g.node("Mul", [centred, g.node("Unsqueeze", [g.weight(f"{name}.scale", scales), g.constant([-1])])])
        return g.node("MatMul", [x, g.node("Transpose", [g.node("Reshape", [matrix, g.constant([n, k])])], perm=[1, 0])])

    def _product(self, g: Graph, x: str, weight: str, column: str) -> str:
        """u8 x s8 with zero point 128 and a scale for each token: x is about (q - 128) * row."""
        key = f"{x}.quantised"
        if key not in g.shared:  # q, k and v read the same input
            largest = g.node("ReduceMax", [g.node("Abs", [x]), g.constant([-1])], keepdims=1)
            row = g.node("Mul", [g.node("Max", [largest, g.constant(1e-8, np.float32)]),
                                 g.constant(np.float32(1 / 127), np.float32)])
            shifted = g.node("Add", [g.node("Round", [g.node("Div", [x, row])]), g.constant(128.0, np.float32)])
            g.shared[key] = (g.node("Cast", [shifted], to=2), row)
        quantised, row = g.shared[key]
        product = g.node("MatMulInteger", [quantised, weight, g.constant(128, np.uint8)])
        return g.node("Mul", [g.node("Mul", [g.node("Cast", [product], to=1), row]), column])


def _per_row(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(s8 [N, K] in -127..127, scale [N]); a row of zeros stays zero."""
    scale = (np.abs(weight).max(1) / 127).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)
    return np.round(weight / safe[:, None]).astype(np.int8), scale


def _blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(u8 [N, K / block, block] with zero point 128, scales [N, K / block], block): the largest block that divides K."""
    n, k = weight.shape
    block = next((b for b in (128, 64, 32, 16) if k % b == 0), 0)
    if not block:
        raise ValueError(f"a matrix with {k} inputs: 8-bit blocks need a multiple of 16")
    blocks = weight.reshape(n, k // block, block)
    scale = (np.abs(blocks).max(2) / 127).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)
    return (np.round(blocks / safe[:, :, None]) + 128).astype(np.uint8), scale, block
