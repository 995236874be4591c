"""How much memory a training step takes, told before it is taken.

Parameters, gradients and optimizer states are counted. What the forward pass keeps for the backward pass is traced: the
step runs on tensors that have shapes but no memory, and every tensor that autograd saves is counted once. So the number
follows the architecture, the precision and the savers without a formula for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgedistill.errors import UsageError
from edgedistill.train.objectives import token_loss
from edgedistill.train.packed import Weights, mapped
from edgedistill.train.students import Encoded, Student

# A CUDA context and its libraries (not measured here: no GPU), and what an allocator does not use of its blocks.
CUDA_CONTEXT = 600e6
SLACK = 1.05


@dataclass(frozen=True)
class Memory:
    """Bytes. `kept` is what the forward pass of the largest micro-batch keeps, `work` the largest thing beside it."""

    parameters: float
    gradients: float
    states: float
    kept: float
    work: float
    several: bool  # gradients are there already when a later micro-batch runs

    @property
    def peak(self) -> float:
        """The largest of: the end of a forward pass, the end of a backward pass, the optimizer's step."""
        fixed = self.parameters + self.states
        forward = fixed + self.kept + (self.gradients if self.several else 0)
        return SLACK * max(forward, fixed + self.gradients) + self.work

    def to_dict(self) -> dict[str, float]:
        """In MB, for a result."""
        return {**{name: round(value / 1e6, 1) for name, value in asdict(self).items() if name != "several"},
                "peak": round(self.peak / 1e6, 1)}


@dataclass(frozen=True)
class Plan:
    """How a step is run: padded tokens of a micro-batch, the optimizer, recomputed activations; and what it takes."""

    batch_tokens: int
    optimizer: str
    checkpointing: bool
    memory: Memory


def predict(student: Student, kept: tuple[float, float], optimizer: str, several: bool, extra: float = 0.0) -> Memory:
    """The memory of steps whose largest micro-batch keeps `kept` (see there); `several` of them make a step."""
    size = 4.0 * student.parameters()
    return Memory(size, size, states(student.model, optimizer), kept[0], kept[1] + extra, several)


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


def kept(student: Student, micro: list[Encoded], bf16: bool, checkpointing: bool) -> tuple[float, float]:
    """(bytes that autograd keeps of a micro-batch, bytes of the largest layer that is recomputed): traced, see above."""
    whole = _traced(student, micro, bf16, False)
    if not checkpointing:
        return whole, 0.0
    config = student.model.config
    layers = config.num_hidden_layers + (getattr(config, "num_decoder_layers", 0) or 0)
    return _traced(student, micro, bf16, True), whole / layers


def _traced(student: Student, micro: list[Encoded], bf16: bool, checkpointing: bool) -> float:
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch, order = student.tensors(micro)
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    real = student.model
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        student.model = _twin(real, mode)
        try:
            if checkpointing:
                student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            student.model.train()
            own = {p.untyped_storage()._cdata for p in student.model.parameters()}
            weights = Weights(torch.bfloat16 if bf16 else torch.float32)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hidden = student.hidden(mapped(batch, mode.from_tensor), weights=weights)
                targets = torch.zeros(sum(len(b.target) for b in order), dtype=torch.long)
                loss, _ = token_loss(hidden, weights(student.head), targets, torch.ones(len(targets)))
            assert loss.requires_grad
        finally:
            student.model = real
    return float(sum(storage.nbytes() for storage in saved.values()))


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
