"""The mean of the weights along a training: what is evaluated, kept and saved in the place of the last ones.

A small set of rows leaves the weights of single epochs far apart, and few dev rows cannot tell which are good. Measured on
SVAMP: 0.5 to 8 points of the test over the epoch that dev chose, beyond chance in one of three trainings (benchmarks/LOG.md).
The weights after step t count with about t to the power of `defaults.AVERAGE_POWER` (polynomial-decay averaging, Shamir and
Zhang 2013): no length has to be guessed, and what the first steps brought is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from edgedistill import defaults

FILE = "average.safetensors"  # in a checkpoint, beside the weights that training goes on with


class Average(TrainerCallback):
    """The mean of a model's parameters over the steps of a training; as much memory as the parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.mean: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.mean:  # else they came from a checkpoint
            self.mean = {name: p.detach().clone() for name, p in self.parameters.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        power = defaults.AVERAGE_POWER
        torch._foreach_lerp_([self.mean[name] for name in self.parameters], [p.detach() for p in self.parameters.values()],
                             (power + 1) / (state.global_step + power))

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Inside, the model has the mean weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Gives the model the mean weights, and what it had to the mean."""
        for name, kept in self.mean.items():
            self.mean[name], self.parameters[name].data = self.parameters[name].data, kept

    def save(self, folder: Path) -> None:
        """Writes the mean into a checkpoint."""
        save_file(self.mean, folder / FILE)

    def load(self, folder: Path) -> None:
        """Reads the mean from a checkpoint."""
        self.mean = {name: each.to(self.parameters[name].device) for name, each in load_file(folder / FILE).items()}
