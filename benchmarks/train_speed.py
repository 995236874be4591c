"""Examples per second and peak memory of step-by-step, against the published recipe on the same rows.

    EDGEDISTILL_MODELS=... python benchmarks/train_speed.py --data PATH/svamp [--students t5-small,smollm2-135m]

The published recipe (facts in Hsieh et al.'s repository): two forward passes a question whose graphs are held together, one
for the label and one for the rationale, each padded to its longest text, logits for every position, AdamW, through
transformers' Seq2SeqTrainer or Trainer. Ours: `train`'s own trainer with its defaults on this machine. Both in bf16 autocast
where the CPU has it, batch 16, the SVAMP training rows whose PaLM rationale is verified, the same student folder:
t5-small's shape (random weights, 32,128 pieces, dropout as in its configuration) or SmolLM2-135M with 4,096 pieces.

Each recipe is a process of its own that trains through its Trainer; blocks of `--steps` steps alternate between them, after
two steps to warm up. Memory is the peak resident size of the steps less what the imports take. Writes
benchmarks/results/train-speed/STUDENT.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.tasks import data as rows_
from edgedistill.tasks.task import Task

HERE = Path(__file__).parent
RECIPES = ("published", "edgedistill")
BATCH, WARM, RATE = 16, 2, 1e-4
PIECES = 4096  # of the T5's tokenizer, trained on these texts: they are then about as long as with T5's own
COLUMNS = {"stated": "meta.llm_label"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder with SVAMP's train")
    parser.add_argument("--students", default="t5-small,smollm2-135m")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="steps of a block")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--ours", default="{}", help="settings of our recipe, as JSON: batch_tokens, optimizer, checkpointing")
    parser.add_argument("--work", help="(a worker's settings, as JSON)")
    args = parser.parse_args()
    if args.work:
        return worker(json.loads(args.work))
    for student in args.students.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make(student, folder, args.data)
            measure(student, folder, args)


def measure(student: str, folder: str, args: argparse.Namespace) -> None:
    result = {**machine.origin("train-speed"), "student": student, "batch_size": BATCH, "threads": args.threads,
              "steps_of_a_block": args.steps, "ours": json.loads(args.ours)}
    processes = {recipe: subprocess.Popen(
        [sys.executable, __file__, "--data", args.data, "--work", json.dumps(
            {"recipe": recipe, "student": folder, "data": args.data, "steps": args.steps, "blocks": args.blocks,
             "threads": args.threads, **json.loads(args.ours)})],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for recipe in RECIPES}
    seconds: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    answers = {}
    for recipe, process in processes.items():  # warmed up one after the other
        answers[recipe] = json.loads(process.stdout.readline())
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
    for block in range(args.blocks):
        for recipe in RECIPES[block % 2:] + RECIPES[: block % 2]:
            process = processes[recipe]
            process.stdin.write("\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            seconds[recipe].append(answer["seconds"])
            answers[recipe] |= answer
            print(student, recipe, answer, flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    ratios = [theirs / ours for theirs, ours in zip(*(seconds[recipe] for recipe in RECIPES), strict=True)]
    result |= {
        "seconds": seconds, "details": answers,
        "examples_per_s": {r: round(BATCH * args.steps / statistics.median(seconds[r]), 3) for r in RECIPES},
        "speed_ratio": {name: round(f(ratios), 3) for name, f in (("median", statistics.median), ("min", min), ("max", max))},
        "memory_ratio": round(answers["edgedistill"]["peak_mb"] / answers["published"]["peak_mb"], 3)}
    (HERE / "results" / "train-speed").mkdir(parents=True, exist_ok=True)
    runs.write_json(HERE / "results" / "train-speed" / f"{student}.json", result)
    print(student, result["examples_per_s"], result["speed_ratio"], result["memory_ratio"], flush=True)


def material(data: str) -> tuple[Task, list[Any]]:
    """(task, SVAMP's training questions that have a verified rationale)."""
    from edgedistill.train.methods import given, questions

    task = cards.load(Task, "svamp")
    rows = rows_.load(data, COLUMNS).splits["train"]
    return task, [q for q in questions("step-by-step", task, rows, given(task, rows)) if len(q.slots) == 2]


def make(student: str, folder: str, data: str) -> None:
    """Writes the student's folder."""
    task, asked = material(data)
    texts = [text for q in asked for text in (q.text, *(t.text for t in q.targets()))]
    if student == "t5-small":
        sys.path.insert(0, str(HERE.parent / "tests"))
        import tiny_students

        tiny_students.t5_shaped(student, Path(folder), tiny_students.t5_like_tokenizer(corpus=texts, pieces=PIECES))
    else:
        from edgedistill.teach.source import resolve
        from edgedistill.train.carve import carve

        made = carve(resolve(defaults.TEACHER).path, texts, 30)
        made.set_task(task)
        made.save(Path(folder), {}, "")


def worker(job: dict[str, Any]) -> None:
    """One recipe's process: a line on stdin lets it go on, each block is answered by a line on stdout."""
    import torch
    import transformers

    from edgedistill.train import students

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    imports = machine.rss_mb()
    task, asked = material(job["data"])
    student = students.load(job["student"])
    bf16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & machine.cpu_flags())
    transformers.set_seed(0)
    made = {"published": published, "edgedistill": ours}[job["recipe"]](student, task, asked, bf16, job)

    class Blocks(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.start = 0.0

        def wait(self) -> None:
            if not sys.stdin.readline():
                sys.exit(0)
            self.start = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            print(json.dumps({"bf16": bf16, "parameters": student.parameters(), "questions": len(asked)}), flush=True)
            machine.reset_peak()
            self.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM or (state.global_step > WARM and (state.global_step - WARM) % job["steps"] == 0):
                print(json.dumps({"seconds": round(time.monotonic() - self.start, 3), "step": state.global_step,
                                  "loss": state.log_history[-1].get("loss") if state.log_history else None,
                                  "peak_mb": round(machine.peak_rss_mb() - imports, 1)}), flush=True)
                self.wait()

    made.add_callback(Blocks())
    made.remove_callback(transformers.PrinterCallback)
    made.train()


def arguments(job: dict[str, Any], cls: Any, **more: Any) -> Any:
    return cls(output_dir=tempfile.mkdtemp(), max_steps=WARM + job["steps"] * job["blocks"], per_device_train_batch_size=BATCH,
               learning_rate=RATE, lr_scheduler_type="linear", save_strategy="no", logging_steps=1, seed=0, use_cpu=True,
               disable_tqdm=True, report_to=[], remove_unused_columns=False, dataloader_pin_memory=False, **more)


def ours(student: Any, task: Task, asked: list[Any], bf16: bool, job: dict[str, Any]) -> Any:
    """The verb's own trainer, with its defaults."""
    from transformers import TrainingArguments

    from edgedistill.train import trainer
    from edgedistill.train.batches import Batcher

    student.set_task(task, shared=True)
    batcher = Batcher(student, asked, batch_tokens=job.get("batch_tokens", defaults.BATCH_TOKENS["cpu"]))
    if job.get("checkpointing"):
        student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return trainer.DistillTrainer(
        student, batcher, arguments(job, TrainingArguments), loss=trainer.Loss(), bf16=bf16, evaluations=lambda: {},
        optimizer=trainer.optimizer(student.model, job.get("optimizer", defaults.OPTIMIZER["cpu"]), RATE))


def published(student: Any, task: Task, asked: list[Any], bf16: bool, job: dict[str, Any]) -> Any:
    """Two passes, each padded to its longest, every logit, AdamW."""
    import torch
    import transformers

    seq2seq = student.family == "t5"
    student.set_task(task)
    items = [[student.encode(q.text, slot[0].text, slot[0].part) for slot in q.slots] for q in asked]
    pad = student.format.pad_id

    def padded(rows: list[list[int]], value: int) -> Any:
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    def collate(indices: list[int]) -> dict[str, Any]:
        batch = {}
        for part in (0, 1):
            rows = [items[i][part] for i in indices]
            sources, targets = [r.source for r in rows], [r.branches[0].target for r in rows]
            if seq2seq:
                texts, labels = sources, targets
            else:
                texts = [s + t for s, t in zip(sources, targets, strict=True)]
                labels = [[-100] * len(s) + t for s, t in zip(sources, targets, strict=True)]
            batch[PARTS[part]] = {"input_ids": padded(texts, pad), "attention_mask": padded([[1] * len(t) for t in texts], 0),
                                  "labels": padded(labels, -100)}
        return batch

    base = transformers.Seq2SeqTrainer if seq2seq else transformers.Trainer

    class TaskPrefixTrainer(base):
        def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
            label, rationale = (model(**inputs[part]) for part in PARTS)
            return defaults.ALPHA * label.loss + (1 - defaults.ALPHA) * rationale.loss

    kind = transformers.Seq2SeqTrainingArguments if seq2seq else transformers.TrainingArguments
    made = TaskPrefixTrainer(model=student.model, args=arguments(job, kind, bf16=bf16, optim="adamw_torch"),
                             train_dataset=list(range(len(items))), data_collator=collate)
    made.model_accepts_loss_kwargs = False
    return made


PARTS = ("pred", "expl")

if __name__ == "__main__":
    main()
