"""The training loop: transformers' Trainer with our loss, our dev accuracy and our progress line."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from edgedistill import defaults, machine, runs
from edgedistill.errors import Error, Stopped, UsageError, need
from edgedistill.progress import Progress, say
from edgedistill.train import depth, objectives
from edgedistill.train.average import Average
from edgedistill.train.batches import PARTS, Batcher
from edgedistill.train.packed import Batch, Weights
from edgedistill.train.students import Student

OPTIMIZERS = ("adamw8bit", "adamw", "adafactor")
_FULL = ("file too large", "no space left", "disk quota", "writing file", "inline_container")  # torch's last one says no more
SUMS = "sums.json"  # written last into a checkpoint: the sha256 of its files


@dataclass(frozen=True)
class Loss:
    """What a step minimises: alpha * label + (1 - alpha) * rationale, each a mean of its own over the whole step.

    Hsieh et al. 2023, the code's form. A step without rationales is all label. `distribution` puts the teacher's soft
    targets in the place of a token's cross-entropy where there are any (Fu et al. 2023); `mentor_share` and `temperature`
    are Lee's (1 - a) and T; `mutual_information` is the weight beta of Chen et al. 2024.
    """

    alpha: float = defaults.ALPHA
    distribution: bool = False
    mentor_share: float = 0.0
    temperature: float = 1.0
    mutual_information: float = 0.0

    def coefficients(self, counts: Tensor) -> Tensor:
        """[parts]: the weight of one unit of each part; `counts` [parts] are those of the whole step."""
        share = torch.tensor([self.alpha, 1 - self.alpha], device=counts.device) * (counts > 0)
        if share.sum() == 0:  # alpha is 0 and the step has no rationale, or 1 and no label
            share = (counts > 0).float()
        return share / share.sum() / counts.clamp_min(1e-9)

    def __call__(self, hidden: Tensor, head: Tensor, batch: Batch, coefficients: Tensor,
                 mentor_heads: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """(this micro-batch's share of the step's loss, its share of each part's mean cross-entropy [parts])."""
        weights = coefficients[batch["part"]] * batch["unit"]
        soft = (objectives.Soft(batch["soft_ids"], batch["soft_probs"], 1 - self.mentor_share)
                if self.distribution and "soft_ids" in batch else None)
        mentor = (objectives.Mentor(batch["mentor"], list(mentor_heads), self.temperature, self.mentor_share)
                  if self.mentor_share and mentor_heads else None)
        loss, entropy = objectives.token_loss(hidden, head, batch["targets"], weights, soft, mentor)
        return loss, torch.zeros_like(coefficients).index_add_(0, batch["part"], entropy * batch["unit"])


class DistillTrainer(Trainer):
    """Trainer over question indices; evaluates by greedy answers on the dev rows."""

    def __init__(self, student: Student, batcher: Batcher, args: TrainingArguments, *, loss: Loss, bf16: bool,
                 evaluations: Callable[[], dict[str, float]], optimizer: torch.optim.Optimizer,
                 mentor_heads: Sequence[Tensor] = (), guide: depth.Guide | None = None, average: bool = False) -> None:
        self.student, self.batcher, self.loss, self.bf16, self.guide = student, batcher, loss, bf16, guide
        self.average = Average(student.model) if average else None
        self._evaluations, self._mentor_heads = evaluations, mentor_heads
        self._sums: dict[str, list[float]] = defaultdict(list)
        self.seen_tokens = 0
        self.deadline, self.stopping = math.inf, False  # by time.monotonic()
        super().__init__(model=student.model, args=args, train_dataset=range(batcher.steps),
                         eval_dataset=[0],  # required to be there; evaluate() below has the dev rows
                         optimizers=(optimizer, None))
        self.remove_callback(PrinterCallback)
        self.add_callback(_Epoch(self))
        if self.average:
            self.add_callback(self.average)
        self.model_accepts_loss_kwargs = False  # our loss is a mean already; the Trainer divides by the accumulation

    def get_train_dataloader(self) -> DataLoader:
        """The steps of an epoch, in the batcher's order: nothing is left to shuffle or to share out."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=lambda items: self.batcher.step(items[0]))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One step over its micro-batches. Where memory runs out they are halved and the step is done again."""
        model.train()
        while True:
            try:
                return self._step(model, inputs)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                least = max(map(len, self.batcher.draw(inputs["indices"])))
                if self.batcher.batch_tokens <= least or self.accelerator.num_processes > 1:
                    raise Error(f"out of memory with micro-batches of {self.batcher.batch_tokens} tokens; give "
                                "--gradient-checkpointing, --optimizer adafactor or a smaller student") from error
            model.zero_grad()
            if inputs["cut"] == self.batcher.batch_tokens:  # else this step was cut before the last halving
                self.batcher.batch_tokens = max(least, self.batcher.batch_tokens // 2)
                say(f"train: out of memory; going on with micro-batches of {self.batcher.batch_tokens} tokens")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            inputs = self.batcher(inputs["indices"])

    def _step(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        micro = inputs["micro"]
        counts = self.accelerator.reduce(inputs["counts"].to(self.args.device), "sum")
        processes = self.accelerator.num_processes
        coefficients = self.loss.coefficients(counts)
        total, parts = torch.zeros((), device=self.args.device), torch.zeros_like(counts)
        weights = Weights(torch.bfloat16 if self.bf16 else torch.float32)
        head = weights(self.student.head)
        for i, batch in enumerate(micro):
            batch = self._prepare_inputs(batch)
            # Gradients are averaged over processes with the last micro-batch, hence the factor: sums are wanted.
            last = i + 1 == len(micro)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                read = model_inputs(batch)
                if self.guide:
                    batch["mentor"], theirs = self.guide(read)
                    hidden, ours = self.student.hidden(read, model, weights, taps=self.guide.taps)
                else:
                    hidden = self.student.hidden(read, model, weights)
                loss, part = self.loss(hidden, head, batch, coefficients, [weights(each) for each in self._mentor_heads])
                if self.loss.mutual_information and len(batch["pairs"]) and not inputs["idle"]:
                    term = objectives.mutual_information(hidden, head, batch["example"], batch["pairs"])
                    loss = loss + self.loss.mutual_information / len(inputs["indices"]) / processes * term
                if self.guide and not inputs["idle"]:  # each micro-batch by its share of the step's tokens
                    share = len(read["ids"]) / sum(len(each["ids"]) for each in micro) / processes
                    loss = loss + self.guide.weight * share * depth.unlikeness(ours, theirs)
                if not torch.isfinite(loss):
                    raise Error(f"the loss is not finite at step {self.state.global_step} ({loss.item():g}); lower "
                                "--learning-rate. The last checkpoint is kept")
                self.accelerator.backward(loss * processes)
            total += loss.detach()
            parts += part
            self.seen_tokens += sum(len(value) for name, value in batch.items() if name.endswith("ids") and name != "soft_ids")
        parts = self.accelerator.reduce(parts, "sum") / counts.clamp_min(1e-9)
        for name, value, count in zip(PARTS, parts.tolist(), counts.tolist(), strict=True):
            if count:
                self._sums[name].append(value)
        if self.args.device.type == "cpu" and self.state.global_step % 10 == 0:
            machine.trim()  # 60 ms for t5-small
        return total * processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each part's cross-entropy since the last line."""
        if "loss" in logs:
            logs.update({f"{name}_loss": round(math.fsum(v) / len(v), 5) for name, v in self._sums.items() if v})
            self._sums.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The dev sets' accuracies, by the Trainer's names for metrics; of the mean weights where these are kept."""
        with self.average.instead() if self.average else contextlib.nullcontext():
            metrics = {f"eval_{name}": value for name, value in self.measure().items()}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """The dev sets' accuracies."""
        return self._evaluations()

    def forget(self) -> None:
        """Drops gradients and counts of a step that was a trial."""
        self.model.zero_grad()
        self._sums.clear()
        self.seen_tokens = 0

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with saving(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if self.average:
                with saving(folder):
                    self.average.save(folder)
            # Other processes may still be writing their random states.
            files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("rng_state_")]
            runs.write_json(folder / SUMS, {p.name: runs.sha256(p) for p in files})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average:
            self.average.load(Path(resume_from_checkpoint))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equal dev accuracies the later one counts: it has been trained longer (the Trainer's own takes the first)."""
        if metrics["eval_accuracy"] == self.state.best_metric:
            self.state.best_metric = -math.inf
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average:
            self.average.load(Path(self.state.best_model_checkpoint))
            self.average.swap()


@contextlib.contextmanager
def saving(place: Path) -> Iterator[None]:
    """Turns a full disk into one line: torch, safetensors and the system report it each in its own words."""
    try:
        with runs.disk_errors(place):
            yield
    except (RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())
        if not any(sign in words.lower() for sign in _FULL):
            raise
        raise Error(f"no space left for {place} ({words[:80]}); what was finished is kept: free space, then give the same "
                    "command again") from error


def processes() -> int:
    """How many processes train together (torchrun, accelerate launch)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def model_inputs(batch: Batch) -> Batch:
    """What `Student.hidden` reads of a micro-batch."""
    ours = ("targets", "part", "unit", "example", "pairs", "soft_ids", "soft_probs", "mentor")
    return {name: value for name, value in batch.items() if name not in ours}


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; one that is damaged is passed over, and said so."""
    found = sorted((p for p in folder.glob("checkpoint-*") if (p / SUMS).is_file()),
                   key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for path in found:
        damaged = _damaged(path)
        if not damaged:
            return path
        say(f"train: {path.name} is damaged ({', '.join(damaged[:2])}) and passed over")
    return None


def _damaged(path: Path) -> list[str]:
    try:
        sums = dict(runs.read_json(path / SUMS))
    except (Error, TypeError, ValueError):
        return [SUMS]
    return [name for name, digest in sums.items() if not (path / name).is_file() or runs.sha256(path / name) != digest]


class BestOther(TrainerCallback):
    """Keeps the weights that were best on the other dev set: they are seldom those that are best on the task's own."""

    def __init__(self, student: Student, folder: Path) -> None:
        self.student, self.folder = student, folder

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        earlier = [e["eval_ood_accuracy"] for e in state.log_history[:-1] if "eval_ood_accuracy" in e]
        if state.is_world_process_zero and metrics["eval_ood_accuracy"] >= max(earlier, default=-1.0):
            with saving(self.folder):
                self.student.model.save_pretrained(self.folder, safe_serialization=True)

    def load(self) -> None:
        """Puts the kept weights back into the student."""
        from safetensors.torch import load_model

        load_model(self.student.model, self.folder / "model.safetensors")


class _Epoch(TrainerCallback):
    """Tells the batcher which epoch it is; asks for a checkpoint now and then in a long epoch, and when time is over."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer, self.saved = trainer, time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.batcher.epoch = int(state.epoch + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        due = torch.tensor([now - self.saved > 60 * defaults.CHECKPOINT_MINUTES, now > self.trainer.deadline],
                           dtype=torch.float, device=args.device)
        if processes() > 1:  # clocks differ, and all must save in the same step
            due = self.trainer.accelerator.reduce(due, "sum")
        self.trainer.stopping = bool(due[1] > 0)
        # After an epoch's last step the dev rows come first: a checkpoint before them would lose them.
        if state.global_step % self.trainer.batcher.steps and state.global_step < state.max_steps:
            control.should_save = control.should_save or bool(due.any())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = time.monotonic()


class Noted(TrainerCallback):
    """Notes the time spent in the stage's manifest with each checkpoint, so that a kill does not lose it; ends there when
    time is over."""

    def __init__(self, stage: Any, trainer: DistillTrainer) -> None:
        self.stage, self.trainer = stage, trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.stage.checkpoint()
        if self.trainer.stopping and state.global_step < state.max_steps:
            raise Stopped(f"the time is over at step {state.global_step} of {state.max_steps}, which is kept; the same command "
                          "goes on from there")


class Lines(TrainerCallback):
    """The user's view: a progress line with loss and tokens a second, and the dev accuracy of each epoch."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer, self.progress, self.note = trainer, None, ""
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is None:
            self.progress = Progress("train", state.max_steps - state.global_step + 1, "steps")
        self.progress.advance(note=self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            rate = self.trainer.seen_tokens / max(1e-9, time.monotonic() - self.started)
            self.note = f"loss {logs['loss']:.3f}, {rate:.0f} tokens/s"

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        shown = ", ".join(f"{name.removeprefix('eval_').replace('_', ' ')} "
                          + (f"{100 * value:.1f} %" if "accuracy" in name else f"{value:.2f}")
                          for name, value in metrics.items())
        if self.progress:
            self.progress.close(f"{self.note}, epoch {state.epoch:.0f}, dev {shown}")


def arguments(folder: Path, *, epochs: float, batch_size: int, learning_rate: float, seed: int, cuda: bool,
              steps: int, report_to: list[str]) -> TrainingArguments:
    """The Trainer's settings that are ours. Raises `UsageError` for a logger that is not there."""
    there = get_available_reporting_integrations()
    if unknown := [name for name in report_to if name not in there]:
        raise UsageError(f"--report-to {unknown[0]}: not installed here; known and installed: {', '.join(there) or 'none'}")
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.parent / "logs"))
    made = TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=batch_size,
        learning_rate=learning_rate, warmup_steps=round(defaults.WARMUP_SHARE * steps), lr_scheduler_type="linear",
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=2, load_best_model_at_end=True,
        metric_for_best_model="accuracy", greater_is_better=True, logging_steps=max(1, min(10, steps // 10)),
        seed=seed, use_cpu=not cuda, disable_tqdm=True, report_to=report_to, remove_unused_columns=False,
        max_grad_norm=1.0, ddp_find_unused_parameters=False)  # the head is used outside DDP's forward
    made._n_gpu = min(1, made.n_gpu)  # one GPU a process; several are torchrun's affair
    return made


def optimizer(model: torch.nn.Module, name: str, learning_rate: float) -> torch.optim.Optimizer:
    """`name` is one of OPTIMIZERS. Adafactor's rate is a share of each matrix's own size, as in T5's recipe: T5's embeddings
    start at 1 and its queries at 0.01, and no absolute rate suits both (benchmarks/LOG.md). The 8-bit one keeps 32-bit state
    for embeddings (T5's are sensitive: bitsandbytes issue 11) and, by its own minimum of 4,096 elements, for norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(parameters, lr=learning_rate, scale_parameter=True, relative_step=False, warmup_init=False)
    if name != "adamw8bit":
        raise UsageError(f"--optimizer {name}: known are {', '.join(OPTIMIZERS)}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it complains about 4-bit kernels that are not used
    bnb = need("bitsandbytes", "train")
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.initialize()  # it is one for the process: what earlier trainings noted there would be applied again
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return bnb.optim.AdamW8bit(parameters, lr=learning_rate, weight_decay=0.0)
