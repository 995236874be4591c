"""Matrix products in the precisions that a bundle can have.

| form | weight | product | meant for |
|---|---|---|---|
| fp32 | [K, N] float | MatMul | the reference |
| nbits, 8 bits | u8 blocks of a row with a scale each | MatMulNBits, accuracy_level 4: int8 activations per block | one token |
| nbits, 4 bits | the same in 4 bits | the same | one token, half the bytes |
| integer | s8 [K, N], a scale for each column | MatMulInteger of u8 activations, a scale for each token | many tokens |

All but fp32 scale each token by itself, so that a text's result does not depend on its neighbours. A product that is kept
high has 8 bits instead of 4, or int8 weights in the file but fp32 activations: onnxruntime unfolds the matrix when it loads.
"""

from __future__ import annotations

import numpy as np

from edgedistill.export.feedback import Feedback
from edgedistill.export.graph import DOMAIN, Graph

BLOCKS = {8: (256, 128, 64, 32, 16), 4: (64, 32, 16)}  # inputs that share a scale: the first that divides the matrix
# Scales tried for a 4-bit block, as shares of the one that reaches its largest number: rounding the rest better can be worth
# more than reaching it.
SHARES = np.linspace(0.7, 1.05, 15)


class Linear:
    """Adds products with weight matrices to graphs, in one form."""

    def __init__(self, form: str, bits: int = 8, keep_high: tuple[str, ...] = (), feedback: Feedback | None = None) -> None:
        """`form` is "fp32", "nbits" or "integer"; `bits` those of "nbits"; names that end with one of `keep_high` are kept
        high. `feedback` rounds 4-bit products by what the student's inputs are."""
        self.form, self.bits, self.keep_high, self.feedback = form, bits, keep_high, feedback

    def matmul(self, g: Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None,
               positive: bool = False) -> str:
        """x [..., K] times `weight` [N, K] (torch's layout) transposed, plus `bias` [N]. `positive`: no x < 0."""
        weight = weight.astype(np.float32)
        if self._kept(name) and not (self.form == "nbits" and self.bits == 4):
            y = self._unfolded(g, x, name, weight)
        elif self.form == "nbits":
            y = self._nbits(g, x, name, weight, self._bits(name))
        elif self.form == "integer":
            values, scale = _per_row(weight)
            y = self._product(g, x, g.weight(name, values.T), g.weight(f"{name}.scale", scale), positive)
        else:
            y = g.node("MatMul", [x, g.weight(name, weight.T)])
        return g.node("Add", [y, g.weight(f"{name}.bias", bias.astype(np.float32))]) if bias is not None else y

    def _kept(self, name: str) -> bool:
        return self.form != "fp32" and name.endswith(self.keep_high or ("\0",))

    def _bits(self, name: str) -> int:
        return 8 if self._kept(name) else self.bits

    def embed(self, g: Graph, ids: str, name: str, weight: np.ndarray) -> str:
        """Rows of `weight` [V, K] for ids [...]."""
        weight = weight.astype(np.float32)
        if self.form == "fp32":
            return g.node("Gather", [g.weight(name, weight), ids])
        if self.form == "integer":
            values, scale = _per_row(weight)
            rows = g.node("Cast", [g.node("Gather", [g.weight(name, values), ids])], to=1)
            return g.node("Mul", [rows, g.node("Gather", [g.weight(f"{name}.scale", scale[:, None]), ids])])
        # MatMulNBits' bytes [V, blocks, bytes] serve the lookup too, as [V, all bytes of a row]: stored once.
        bits = self._bits(name)
        values, scales, block = in_blocks(weight, bits)
        rows = g.weight(f"{name}.rows", values.reshape(len(values), -1), bytes_of=name)
        return g.node("GatherBlockQuantized", [rows, ids, g.weight(f"{name}.scale", scales)], domain=DOMAIN, gather_axis=0,
                      quantize_axis=1, block_size=block, bits=bits)

    def head(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        """Logits x [..., K] -> [..., V] with an embedding's own weight: the same bytes as `embed` stored."""
        weight = weight.astype(np.float32)
        if self.form == "nbits":
            return self._nbits(g, x, name, weight, self._bits(name))
        if self.form == "fp32":
            return g.node("MatMul", [x, g.node("Transpose", [g.weight(name, weight)], perm=[1, 0])])
        values, scale = _per_row(weight)
        transposed = g.node("Transpose", [g.weight(name, values)], perm=[1, 0])
        column = g.node("Reshape", [g.weight(f"{name}.scale", scale[:, None]), g.constant([-1])])
        return self._product(g, x, transposed, column)

    def _nbits(self, g: Graph, x: str, name: str, weight: np.ndarray, bits: int) -> str:
        n, k = weight.shape
        values, scales, block = in_blocks(weight, bits, self.feedback, name)
        return g.node("MatMulNBits", [x, g.weight(name, values), g.weight(f"{name}.scale", scales)], domain=DOMAIN,
                      K=k, N=n, bits=bits, block_size=block, accuracy_level=4)

    def _unfolded(self, g: Graph, x: str, name: str, weight: np.ndarray) -> str:
        n, k = weight.shape
        if self.form == "integer":
            values, scale = _per_row(weight)
            matrix = g.node("Cast", [g.weight(name, values.T)], to=1)
            return g.node("MatMul", [x, g.node("Mul", [matrix, g.weight(f"{name}.scale", scale)])])
        values, scales, _ = in_blocks(weight, 8)
        centred = g.node("Sub", [g.node("Cast", [g.weight(name, values)], to=1), g.constant(128.0, np.float32)])
        matrix = g.node("Mul", [centred, g.node("Unsqueeze", [g.weight(f"{name}.scale", scales), g.constant([-1])])])
        return g.node("MatMul", [x, g.node("Transpose", [g.node("Reshape", [matrix, g.constant([n, k])])], perm=[1, 0])])

    def _product(self, g: Graph, x: str, weight: str, column: str, positive: bool = False) -> str:
        """u8 x s8 with a scale for each token: x is about (q - zero point) * row, the zero point 128 (`positive`: 0)."""
        zero, steps = (0, 255) if positive else (128, 127)
        if f"{x} quantised" not in g.shared:  # the cross keys and values of all layers read the same input
            size = x if positive else g.node("Abs", [x])
            largest = g.node("Max", [g.node("ReduceMax", [size, g.constant([-1])], keepdims=1), g.constant(1e-8, np.float32)])
            row = g.node("Mul", [largest, g.constant(np.float32(1 / steps), np.float32)])
            scale = g.node("Reshape", [row, g.constant([-1])])
            if f"zeros {zero}" not in g.shared:
                g.shared[f"zeros {zero}"] = g.node("Expand", [g.constant([zero], np.uint8), g.node("Shape", [scale])])
            g.shared[f"{x} quantised"] = (g.node("QuantizeLinear", [x, scale, g.shared[f"zeros {zero}"]], axis=1), row)
        quantised, row = g.shared[f"{x} quantised"]
        product = g.node("MatMulIntegerToFloat", [quantised, weight, g.constant(1.0, np.float32), column,
                                                  g.constant(zero, np.uint8)], domain=DOMAIN)
        return g.node("Mul", [product, row])


def _per_row(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(s8 [N, K] in -127..127, scale [N]); a row of zeros stays zero."""
    scale = (np.abs(weight).max(1) / 127).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)
    return np.round(weight / safe[:, None]).astype(np.int8), scale


def block_size(inputs: int, bits: int) -> int:
    """How many of a matrix's inputs share a scale; 0 where they cannot."""
    return next((size for size in BLOCKS[bits] if inputs % size == 0), 0)


def in_blocks(weight: np.ndarray, bits: int, feedback: Feedback | None = None, name: str = ""
            ) -> tuple[np.ndarray, np.ndarray, int]:
    """(values [N, K / block, bytes], scales [N, K / block], block), the zero point in the middle of the range.

    Of 4-bit values the first of a pair is in the low half of a byte.
    """
    n, k = weight.shape
    block = block_size(k, bits)
    if not block:
        raise ValueError(f"a matrix with {k} inputs: {bits}-bit blocks need a multiple of 16")
    blocks = weight.reshape(n, k // block, block)
    if bits == 8:
        scale = (np.abs(blocks).max(2) / 127).astype(np.float32)
        safe = np.where(scale > 0, scale, 1)
        return (np.round(blocks / safe[:, :, None]) + 128).astype(np.uint8), scale, block
    values, scale = (feedback and feedback.blocks(name, weight, block, _four_bit_scale)) or _four_bits(blocks)
    values = (values + 8).astype(np.uint8)
    return values[:, :, 0::2] | values[:, :, 1::2] << 4, scale, block


def _four_bits(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values -8..7 [N, blocks, block], scales [N, blocks])."""
    scales = _four_bit_scale(blocks)
    safe = np.where(scales == 0, 1, scales)[..., None]
    return np.clip(np.round(blocks / safe), -8, 7), scales


def _four_bit_scale(blocks: np.ndarray) -> np.ndarray:
    """The scale [...] of each of `blocks` [..., block], of the least squared error among SHARES.

    -8 has no counterpart, so the scale has the sign that puts a block's largest number there.
    """
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    base = largest / -8
    best = np.full(base.shape, np.inf, np.float32)
    scales = base.astype(np.float32)
    for share in SHARES:
        scale = (base * share).astype(np.float32)
        safe = np.where(scale == 0, 1, scale)[..., None]
        error = np.square(np.clip(np.round(blocks / safe), -8, 7) * safe - blocks).sum(-1)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
    return scales
