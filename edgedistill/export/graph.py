"""Writing an ONNX graph node by node, every weight once, in one external file that several graphs may share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

DOMAIN = "com.microsoft"  # onnxruntime's own operators
MASKED = float(np.finfo(np.float32).min)  # the score of what must not be looked at, as in transformers
_ALIGN = 4096             # bytes; so that a weight can be memory-mapped


class Weights:
    """The bundle's weight file: arrays at aligned offsets; a name stored twice is the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.places: dict[str, tuple[int, int, np.ndarray]] = {}

    def place(self, name: str, array: np.ndarray) -> tuple[int, int]:
        """(offset, length) of `array` in the file; written on the first call for `name`."""
        if name not in self.places:
            data = np.ascontiguousarray(array)
            self.file.seek(-(-self.file.seek(0, 2) // _ALIGN) * _ALIGN)
            offset = self.file.tell()
            self.file.write(data.tobytes())
            self.places[name] = (offset, data.nbytes, data)
        offset, length, stored = self.places[name]
        if stored.size != array.size or stored.dtype != array.dtype:
            raise ValueError(f"weight {name}: {array.shape} now, {stored.shape} before")
        return offset, length

    def tensor(self, name: str, array: np.ndarray, bytes_of: str = "") -> TensorProto:
        """An initializer in the file; with `bytes_of` that one's bytes in another shape."""
        offset, length = self.place(bytes_of or name, array)
        tensor = TensorProto(name=name, data_type=_type(array.dtype), dims=array.shape,
                             data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def close(self) -> None:
        self.file.close()


def _type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class Graph:
    """A graph under construction. Methods that add a node return the name of its (first) output."""

    def __init__(self, name: str, weights: Weights) -> None:
        self.name, self.weights = name, weights
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.shared: dict[str, Any] = {}  # what several nodes read, by a key of the writer

    def input(self, name: str, dtype: Any, shape: list[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, _type(dtype), shape))
        return name

    def output(self, name: str, dtype: Any, shape: list[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, _type(dtype), shape))

    def weight(self, name: str, array: np.ndarray, bytes_of: str = "") -> str:
        """An initializer in the external file; with `bytes_of` that one's bytes in another shape."""
        if name not in self.initializers:
            self.initializers[name] = self.weights.tensor(name, array, bytes_of)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small value inside the graph; the same value is the same initializer."""
        array = np.asarray(value, dtype)
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.ravel().tolist()))}"
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, _type(array.dtype), array.shape, array.ravel().tolist())
        return name

    def node(self, op: str, inputs: list[str], outputs: int | list[str] = 1, domain: str = "", **attributes: Any) -> Any:
        """Adds a node; returns its output's name, or the list of them when there are several."""
        if isinstance(outputs, int):
            outputs = [f"{op}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def distances(self, before: str, length: str) -> str:
        """[S, P + S]: the keys' places less the queries', for `length` S queries behind `before` P keys; both [1]."""
        total = self.node("Add", [before, length])
        keys = self.node("Range", [self.constant(0), self.node("Squeeze", [total]), self.constant(1)])
        queries = self.node("Range", [self.node("Squeeze", [before]), self.node("Squeeze", [total]), self.constant(1)])
        return self.node("Sub", [self.node("Unsqueeze", [keys, self.constant([0])]),
                                 self.node("Unsqueeze", [queries, self.constant([1])])])

    def norm(self, x: str, added: str | None, name: str, gain: np.ndarray, epsilon: float) -> tuple[str, str]:
        """(RMS norm of x + added, x + added), in one of onnxruntime's fused operators."""
        weight = self.weight(name, gain)
        if added is None:
            return self.node("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=epsilon, stash_type=1), x
        place = len(self.nodes)
        normed, _, _, total = self.node("SkipSimplifiedLayerNormalization", [x, added, weight],
                                        [f"normed_{place}", "", "", f"sum_{place}"], DOMAIN, epsilon=epsilon)
        return normed, total

    def choose(self, logits: str, vocabulary: int) -> None:
        """The outputs of a step: `logits` [1, 1, V], the most probable `token` [1, 1] and its log-probability `logprob`."""
        self.node("Identity", [logits], ["logits"])
        self.node("ArgMax", [logits], ["token"], axis=-1, keepdims=0)
        highest = self.node("ReduceMax", [logits, self.constant([-1])], keepdims=1)
        shares = self.node("Exp", [self.node("Sub", [logits, highest])])
        mass = self.node("ReduceSum", [shares, self.constant([-1])], keepdims=0)
        self.node("Neg", [self.node("Log", [mass])], ["logprob"])
        self.output("logits", np.float32, [1, 1, vocabulary])
        self.output("token", np.int64, [1, 1])
        self.output("logprob", np.float32, [1, 1])

    def save(self, path: Path) -> None:
        """Writes the graph; the weights are in their own file beside it."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, list(self.initializers.values()))
        model = helper.make_model(graph, producer_name="edgedistill", opset_imports=[
            helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)])
        model.ir_version = 9  # read by every onnxruntime that the package admits
        path.write_bytes(model.SerializeToString())


class Rows:
    """Texts side by side [B, S, ...], and their tokens in one row [1, B * S, ...], as norms and products read them."""

    def __init__(self, g: Graph, like: str) -> None:
        """`like` has the texts' shape [B, S]."""
        self.g = g
        shape = g.node("Shape", [like])
        self.batch, self.length = g.node("Split", [shape], 2, axis=0, num_outputs=2)  # [1] each
        self.shape = g.node("Concat", [shape, g.constant([-1])], axis=0)

    def tokens(self, ids: str) -> str:
        """[B, S] -> [1, B * S]."""
        return self.g.node("Reshape", [ids, self.g.constant([1, -1])])

    def together(self, x: str) -> str:
        """[B, S, K] -> [1, B * S, K]."""
        return self.g.node("Reshape", [x, self.g.constant([1, -1, 0])])

    def apart(self, x: str) -> str:
        """[1, B * S, K] -> [B, S, K]."""
        return self.g.node("Reshape", [x, self.shape])
