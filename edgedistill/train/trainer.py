"""The training loop: transformers' Trainer with our loss, our dev accuracy and our progress line."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from edgedistill import defaults
from edgedistill.errors import Error, UsageError, need
from edgedistill.progress import Progress
from edgedistill.train.methods import Question
from edgedistill.train.students import Student

OPTIMIZERS = ("adamw8bit", "adamw", "adafactor")
PARTS = ("label", "rationale")


class Batcher:
    """Questions to padded tensors. Tokenised once, before training; `part` [B] tells labels (0) from rationales (1)."""

    def __init__(self, student: Student, questions: list[Question]) -> None:
        self.student = student
        self.items = [
            (student.example(q.text, q.label, "label"),
             [student.example(q.text, rationale, "rationale") for rationale in q.rationales]) for q in questions]

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        """One batch: the label examples of the questions, then one rationale of each that has any."""
        labels = [self.items[i][0] for i in indices]
        # torch's generator, whose state the Trainer saves: a resumed run draws the same rationales.
        rationales = [choices[int(torch.randint(len(choices), ()))]
                      for choices in (self.items[i][1] for i in indices) if choices]
        batch = self.student.batch(labels + rationales)
        batch["part"] = torch.tensor([0] * len(labels) + [1] * len(rationales))
        return batch

    def tokens(self) -> int:
        """Mean trained tokens (source and target) a question."""
        total = sum(len(s) + len(t) for s, t in (item[0] for item in self.items))
        total += sum(len(item[1][0][0]) + len(item[1][0][1]) for item in self.items if item[1])
        return total // max(1, len(self.items))


def step_by_step_loss(logits: Tensor, targets: Tensor, part: Tensor, alpha: float) -> tuple[Tensor, dict[str, Tensor]]:
    """alpha * CE(label) + (1 - alpha) * CE(rationale), each a mean over its tokens (Hsieh et al. 2023, the code's form).

    logits [N, V] and targets [N] of all target tokens, part [N] 0 for a label's token, 1 for a rationale's.
    A batch without rationales is weighted 1 on the label. Returns the loss and its terms.
    """
    token_loss = cross_entropy(logits.float(), targets, reduction="none")
    terms = {name: token_loss[part == i].mean() for i, name in enumerate(PARTS) if bool((part == i).any())}
    if "rationale" not in terms:
        return terms["label"], terms
    return alpha * terms["label"] + (1 - alpha) * terms["rationale"], terms


class DistillTrainer(Trainer):
    """Trainer over question indices; evaluates by greedy answers on the dev rows."""

    def __init__(self, student: Student, batcher: Batcher, args: TrainingArguments, *, alpha: float, bf16: bool,
                 dev_accuracy: Callable[[], float], optimizer: torch.optim.Optimizer) -> None:
        self.student, self.alpha, self.bf16 = student, alpha, bf16
        self._dev_accuracy = dev_accuracy
        self._sums: dict[str, list[float]] = defaultdict(list)
        self.seen_tokens = 0
        super().__init__(model=student.model, args=args, train_dataset=list(range(len(batcher.items))),
                         eval_dataset=[0],  # required to be there; evaluate() below has the dev rows
                         data_collator=batcher, optimizers=(optimizer, None))
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # our loss is a mean already; the Trainer divides by the accumulation

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        part = inputs.pop("part")
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self.bf16):
            logits, targets, row = self.student.target_logits(inputs, model)
        loss, terms = step_by_step_loss(logits, targets, part[row], self.alpha)
        if not torch.isfinite(loss):
            shown = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
            raise Error(f"the loss is not finite at step {self.state.global_step} ({shown}); lower --learning-rate. "
                        "The last checkpoint is kept")
        for name, value in terms.items():
            self._sums[name].append(value.item())
        self.seen_tokens += int(inputs["attention_mask"].sum())
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each loss term since the last line."""
        if "loss" in logs:
            logs.update({f"{name}_loss": round(math.fsum(v) / len(v), 5) for name, v in self._sums.items() if v})
            self._sums.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Dev accuracy of greedy answers."""
        metrics = {"eval_accuracy": self._dev_accuracy()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Lines(TrainerCallback):
    """The user's view: a progress line with loss, and the dev accuracy of each epoch."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is None:
            self.progress = Progress("train", state.max_steps - state.global_step + 1, "steps")
        self.progress.advance(note=self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        if self.progress:
            self.progress.close(f"{self.note}, epoch {state.epoch:.0f}, dev accuracy "
                                f"{100 * metrics['eval_accuracy']:.1f} %")


def arguments(folder: Path, *, epochs: float, batch_size: int, learning_rate: float, seed: int, cuda: bool,
              steps: int) -> TrainingArguments:
    """The Trainer's settings that are ours."""
    return TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=batch_size,
        learning_rate=learning_rate, warmup_steps=round(defaults.WARMUP_SHARE * steps), lr_scheduler_type="linear",
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=2, load_best_model_at_end=True,
        metric_for_best_model="accuracy", greater_is_better=True, logging_steps=max(1, min(10, steps // 10)),
        seed=seed, use_cpu=not cuda, disable_tqdm=True, report_to=[], remove_unused_columns=False,
        dataloader_pin_memory=cuda, max_grad_norm=1.0)


def optimizer(model: torch.nn.Module, name: str, learning_rate: float) -> torch.optim.Optimizer:
    """`name` is one of OPTIMIZERS. The 8-bit one keeps 32-bit state for embeddings (T5's are sensitive:
    bitsandbytes issue 11) and, by bitsandbytes' own minimum of 4,096 elements, for norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(parameters, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False)
    if name != "adamw8bit":
        raise UsageError(f"--optimizer {name}: known are {', '.join(OPTIMIZERS)}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it complains about 4-bit kernels that are not used
    bnb = need("bitsandbytes", "train")
    manager = bnb.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return bnb.optim.AdamW8bit(parameters, lr=learning_rate, weight_decay=0.0)
