"""How much memory a training step takes, told before it is taken.

The step is traced: its forward and backward pass run on tensors that have shapes but no memory, and what lives at once is
counted. So the number follows architecture, precision and savers without a formula for each. Optimizer states are counted.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgedistill.errors import UsageError
from edgedistill.train.objectives import token_loss
from edgedistill.train.packed import Weights, mapped
from edgedistill.train.students import Encoded, Student

CUDA_CONTEXT = 600e6  # a context and its libraries; not measured here (no GPU)
# What is resident beside it, as a share of the step. A GPU's allocator: not measured here. glibc's heap has holes: measured
# for t5-small (benchmarks/LOG.md); with every block mapped by itself nothing is beside it, and a step takes twice as long.
SLACK = {"cuda": 0.05, "cpu": 0.35}
KERNELS = {"cuda": 0.0, "cpu": 77e6}  # oneDNN's: 128 of 600 KB (packed.py)


@dataclass(frozen=True)
class Memory:
    """Bytes. `step` is the most that lives at once of a step's own tensors: gradients, activations, weights in bf16.
    `beside` is what else is resident."""

    parameters: float
    states: float
    step: float
    beside: float

    @property
    def peak(self) -> float:
        """All of it at once."""
        return self.parameters + self.states + self.step + self.beside

    def to_dict(self) -> dict[str, float]:
        """In MB, for a result."""
        return {**{name: round(value / 1e6, 1) for name, value in asdict(self).items()}, "peak": round(self.peak / 1e6, 1)}


@dataclass(frozen=True)
class Plan:
    """How a step is run: padded tokens of a micro-batch, the optimizer, recomputed activations; and what it takes."""

    batch_tokens: int
    optimizer: str
    checkpointing: bool
    memory: Memory


def predict(student: Student, step: float, optimizer: str, device: str) -> Memory:
    """The memory of a training on "cuda" or "cpu" whose largest step takes `step` bytes."""
    return Memory(4.0 * student.parameters(), states(student.model, optimizer), step, SLACK[device] * step + KERNELS[device])


def states(model: torch.nn.Module, optimizer: str) -> float:
    """Bytes of the optimizer's states."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    total = 0.0
    for p in model.parameters():
        if optimizer == "adafactor":
            total += 4 * (p.shape[0] + p.shape[1] if p.dim() == 2 else p.numel())
        elif optimizer == "adamw8bit" and p.numel() >= 4096 and id(p) not in embeddings:
            total += 2 * p.numel() * (1 + 4 / 256)  # two bytes a parameter, a scale for each block of 256
        else:
            total += 8 * p.numel()
    return total


def step(student: Student, micro: list[Encoded], bf16: bool, checkpointing: bool, several: bool) -> float:
    """The most bytes that live at once while a micro-batch goes forwards and backwards: traced, see above.

    `several`: the gradients of an earlier one are there already.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch, order = student.tensors(micro)
    real = student.model
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        student.model = _twin(real, mode)
        try:
            if checkpointing:
                student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            student.model.train()
            inputs = mapped(batch, mode.from_tensor)
            targets = torch.zeros(sum(len(b.target) for b in order), dtype=torch.long)
            with _Living(student.model.parameters()) as living:
                if several:
                    for parameter in student.model.parameters():
                        parameter.grad = torch.zeros_like(parameter)
                weights = Weights(torch.bfloat16 if bf16 else torch.float32)
                hidden = student.hidden(inputs, weights=weights)
                loss, _ = token_loss(hidden, weights(student.head), targets, torch.ones(len(targets)))
                loss.backward()
        finally:
            student.model = real
    return float(living.most)


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors made inside that live at once."""

    def __init__(self, others: Any) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._known = {each.untyped_storage()._cdata for each in others}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _twin(model: Any, mode: Any) -> Any:
    """The model's structure over fake parameters, tied ones tied."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        fake = mode.from_tensor(tensor.detach())
        memo[id(tensor)] = torch.nn.Parameter(fake) if isinstance(tensor, torch.nn.Parameter) else fake
    return copy.deepcopy(model, memo)


def plan(candidates: list[tuple[str, bool]], tokens: int, least: int, budget: float | None,
         predicted: Callable[[int, str, bool], Memory]) -> Plan:
    """The first plan that fits `budget` bytes: for each (optimizer, checkpointing) in turn, fewer tokens a micro-batch.

    `least` is the longest row. Without a budget it is the first candidate. Raises `UsageError` when nothing fits.
    """
    smallest = None
    for optimizer, checkpointing in candidates:
        at = tokens
        while True:
            found = Plan(at, optimizer, checkpointing, predicted(at, optimizer, checkpointing))
            if budget is None or found.memory.peak <= budget:
                return found
            smallest = min(smallest or found, found, key=lambda p: p.memory.peak)
            if at <= least:
                break
            at = max(least, at // 2)
    raise UsageError(f"--vram {budget / 1e9:.1f}: the smallest plan ({smallest.optimizer}, micro-batches of "
                     f"{smallest.batch_tokens} tokens) takes {smallest.memory.peak / 1e9:.1f} GB; take a smaller student, or "
                     "--layers or --vocabulary for a carved one")
