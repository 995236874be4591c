"""`train`: a student learns from the run's corpus by one of the methods."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.errors import UsageError, need
from edgedistill.progress import clock, say
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task


def train(
    student: str | None = None, *, run: str = defaults.RUN, tiny: bool = False, method: str = defaults.METHOD,
    task: str | None = None, data: str | None = None, column: dict[str, str] | None = None,
    epochs: float = defaults.EPOCHS, batch_size: int = defaults.BATCH_SIZE, learning_rate: float | None = None,
    alpha: float = defaults.ALPHA, optimizer: str | None = None, layers: int | None = None,
    vocabulary: int = defaults.VOCABULARY, carve_from: str = defaults.TEACHER,
    gradient_checkpointing: bool | None = None, seed: int = defaults.SEED, threads: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains a student into `train/student/` and returns the result object (DESIGN section 2).

    The rows are those that `teach` taught in this run, or `data` when the run has no teacher (then `method` is
    "finetune"). The checkpoint with the best dev accuracy is kept. Interrupted and called again, it goes on from the
    last checkpoint, with optimizer, schedule and random state. Raises `UsageError` and `Error`.
    """
    need("torch", "train"), need("transformers", "train"), need("accelerate", "train")
    if epochs <= 0 or batch_size < 1 or not 0 <= alpha <= 1:
        raise UsageError(f"--epochs {epochs:g}, --batch-size {batch_size}, --alpha {alpha:g}: epochs must be above 0, "
                         "the batch at least 1, alpha between 0 and 1")
    from edgedistill.teach.source import resolve
    from edgedistill.train.methods import questions

    card, splits, corpus, inputs = _material(run, task, data, column, seed)
    chosen, why = _choose(student, tiny)
    place = cards.STUDENTS.get(chosen, chosen)
    cut = resolve(carve_from) if place.startswith("carve:") else None
    if cut:
        inputs["from"] = cut.sha256
    elif (Path(place) / "model.safetensors").is_file():
        inputs["student"] = runs.sha256(Path(place) / "model.safetensors")
    asked = questions(method, card, splits["train"], corpus)
    dev, dev_name = _dev_rows(splits, asked, card)
    if dev_name != "dev":
        held = {row.id for row in dev}
        asked = [q for q in asked if q.id not in held]
    name = runs.subject_name(place) if Path(place).is_dir() else chosen  # manifests hold names, no paths
    config = {"method": method, "student": name, "task": card.name, "questions": len(asked), "epochs": epochs,
              "batch_size": batch_size, "learning_rate": learning_rate, "alpha": alpha, "optimizer": optimizer,
              "seed": seed}
    if cut:
        config |= {"layers": layers or int(place.removeprefix("carve:")), "vocabulary": vocabulary, "from": cut.name}
    stage = runs.Stage(run, "train", config, inputs, overwrite)
    try:
        if stage.finished:
            say(f"train: {stage.path} is finished with this configuration; nothing to do")
            return stage.finished
        return _train(stage, card, asked, dev, dev_name, place, cut, why, learning_rate, gradient_checkpointing,
                      threads or machine.cores())
    finally:
        stage.close()


def _train(stage: runs.Stage, card: Task, asked: list[Any], dev: list[Row], dev_name: str, place: str, cut: Any, why: str,
           learning_rate: float | None, checkpointing: bool | None, threads: int) -> dict[str, Any]:
    import torch
    import transformers

    from edgedistill.train import trainer as trainer_

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    config = stage.config
    texts = [text for q in asked for text in (q.text, q.label, *q.rationales)] + [card.question(row) for row in dev]
    student = _student(place, cut, texts, config)
    student.set_task(card)
    transformers.set_seed(config["seed"])
    batcher = trainer_.Batcher(student, asked)
    cuda = torch.cuda.is_available()
    bf16 = torch.cuda.is_bf16_supported() if cuda else bool({"avx512_bf16", "amx_bf16", "bf16"} & machine.cpu_flags())
    # Recomputing activations costs a third of the time: worth it where memory is short, which is on a GPU.
    checkpointing = cuda if checkpointing is None else checkpointing
    optimizer = config["optimizer"] or defaults.OPTIMIZER["cuda" if cuda else "cpu"]
    rate = learning_rate or defaults.LEARNING_RATE[student.family]
    steps = max(1, round(-(-len(asked) // config["batch_size"]) * config["epochs"]))
    args = trainer_.arguments(stage.path / "checkpoints", epochs=config["epochs"], batch_size=config["batch_size"],
                              learning_rate=rate, seed=config["seed"], cuda=cuda, steps=steps)
    if checkpointing:
        student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gold = [card.label(row) for row in dev]
    dev_texts = [card.question(row) for row in dev]

    def dev_accuracy() -> float:
        # In the training's own precision: four times as fast here, and a checkpoint's rank hardly depends on it.
        with torch.autocast(student.model.device.type, torch.bfloat16, enabled=bf16):
            answers = student.answers(dev_texts, batch_size=64)
        right = sum(card.same(card.parse(a, row.choices), g) for a, row, g in zip(answers, dev, gold, strict=True))
        return right / len(dev)

    trainer = trainer_.DistillTrainer(
        student, batcher, args, alpha=config["alpha"], bf16=bf16, dev_accuracy=dev_accuracy,
        optimizer=trainer_.optimizer(student.model, optimizer, rate))
    lines = trainer_.Lines()
    trainer.add_callback(lines)
    with_rationale = sum(bool(q.rationales) for q in asked)
    say("train plan")
    say(f"  student   {why}: {student.parameters() / 1e6:.1f} M parameters, {len(student.tokenizer)} pieces")
    say(f"  method    {config['method']} on {len(asked)} questions, {with_rationale} with a rationale; "
        f"dev: {len(dev)} rows ({dev_name})")
    say(f"  steps     {steps} of {config['batch_size']} questions ({config['epochs']:g} epochs), "
        f"learning rate {rate:g}, {optimizer}, {'bf16' if bf16 else 'fp32'}"
        f"{', gradient checkpointing' if checkpointing else ''}, {'GPU' if cuda else f'{threads} threads'}")
    last = _last_checkpoint(Path(args.output_dir)) if stage.resumed else None
    say(f"  time      about {clock(_estimate(trainer, batcher, steps))} (from one step on this machine)"
        + (f"; resumed from {last.name}" if last else ""))
    start = time.monotonic()
    with runs.disk_errors(stage.path):
        outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds = time.monotonic() - start
    if not any("eval_accuracy" in entry for entry in trainer.state.log_history):
        trainer.evaluate()  # less than one epoch was asked for
    history = trainer.state.log_history
    evaluations = [{"step": e["step"], "accuracy": round(e["eval_accuracy"], 4)} for e in history if "eval_accuracy" in e]
    losses = [{"step": e["step"], **{k: e[k] for k in ("loss", "label_loss", "rationale_loss") if k in e}}
              for e in history if "loss" in e]
    best = max(e["accuracy"] for e in evaluations)
    folder = stage.path / "student"
    provenance = {"method": config["method"], "student": config["student"], "questions": len(asked), "seed": config["seed"],
                  "inputs": stage.inputs, "dev_accuracy": best, "versions": machine.versions()}
    result = {
        **machine.origin("train"), "method": config["method"], "student": config["student"], "task": card.name,
        "parameters": student.parameters(), "questions": len(asked), "with_rationale": with_rationale,
        "steps": trainer.state.global_step, "epochs": config["epochs"], "batch_size": config["batch_size"],
        "learning_rate": rate, "optimizer": optimizer, "dtype": "bf16" if bf16 else "fp32",
        "examples_per_s": round(outcome.metrics.get("train_samples_per_second", 0.0), 2),
        "tokens_per_s": round(trainer.seen_tokens / max(seconds, 1e-9)), "peak_memory_mb": machine.peak_rss_mb(),
        "predicted_memory_mb": None, "dev": evaluations, "best_dev_accuracy": best, "losses": losses,
        "seconds": stage.seconds()}
    with runs.disk_errors(folder):
        student.save(folder, provenance, _model_card(result, stage))
    shutil.rmtree(args.output_dir, ignore_errors=True)  # gigabytes that a finished stage has no use for
    stage.done(result, sorted(folder.iterdir()))
    say(f"train: {trainer.state.global_step} steps in {clock(result['seconds'])}, best dev accuracy {100 * best:.1f} %; "
        f"student in {folder}")
    return result


def _material(run: str, task: str | None, data: str | None, column: dict[str, str] | None, seed: int,
              ) -> tuple[Task, dict[str, list[Row]], list[dict[str, Any]], dict[str, str]]:
    """(task, rows by split, corpus, hashes) from the run's teach stage or from `data`."""
    taught = runs.finished(run, "teach")
    if data:
        card = cards.load(Task, task or defaults.TASK)
        splits = rows_.load(data, column, seed, defaults.DEV_SHARE).splits
        return card, splits, [], {"rows": rows_.digest(splits["train"])}
    if not taught:
        raise UsageError(f"{run} has no finished teach stage: run edgedistill teach --gguf model.gguf first, or give "
                         "--data for training without a teacher")
    if task and cards.load(Task, task).name != taught["task"]["name"]:
        raise UsageError(f"--task {task}: this run was taught {taught['task']['name']}; give another --run")
    from edgedistill.teach import read_corpus

    folder = Path(run) / "teach"
    splits = {path.stem: rows_.read_file(path) for path in (folder / "data").glob("*.jsonl")}
    return (Task.from_dict(taught["task"]), splits, read_corpus(run),
            {"corpus": taught["outputs"]["corpus.jsonl"], "rows": taught["inputs"]["rows"]})


def _choose(student: str | None, tiny: bool) -> tuple[str, str]:
    """(what is trained, how the plan says it)."""
    if student and tiny:
        raise UsageError("--student and --tiny exclude each other; give one")
    if student:
        if student not in cards.STUDENTS and "/" not in student and not Path(student).is_dir():
            raise UsageError(cards.unknown("student", student, sorted(cards.STUDENTS)) + "; or a folder, or a hub id")
        place = cards.STUDENTS.get(student, student)
        return (student if place.startswith("carve") else place), student
    if not tiny:
        return "carve", "carve (the default; --student NAME takes another)"
    hub_id = cards.STUDENTS[defaults.TINY]
    if _on_hub(hub_id):
        return hub_id, f"{defaults.TINY} (--tiny; --student carve forces the carved one)"
    return "carve", (f"carve (--tiny, and neither hub nor cache has {defaults.TINY}; "
                     f"--student FOLDER forces a T5 of yours)")


def _on_hub(name: str) -> bool:
    """Whether the hub or its cache has a model, asked with little patience."""
    import huggingface_hub

    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return True
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        huggingface_hub.HfApi().model_info(name, timeout=5)
    except Exception:  # no network, no such model, a proxy's page: in each case it cannot be had
        return False
    return True


def _student(place: str, cut: Any, texts: list[str], config: dict[str, Any]) -> Any:
    if not cut:
        from edgedistill.train.students import load

        return load(place)
    from edgedistill.train.carve import carve

    return carve(cut.path, texts, config["layers"], config["vocabulary"])


def _dev_rows(splits: dict[str, list[Row]], asked: list[Any], card: Task) -> tuple[list[Row], str]:
    """Labelled dev rows; where no row has a label, a tenth of the questions with the teacher's answers."""
    import random

    labelled = [row for row in splits.get("dev", []) if row.label is not None]
    if labelled:
        return labelled, "dev"
    if len(asked) < 2:
        raise UsageError("one question cannot be split into training and dev; teach at least two rows")
    n = max(1, round(defaults.DEV_SHARE * len(asked)))
    chosen = sorted(random.Random("dev-0").sample(range(len(asked)), n))
    by_id = {row.id: row for row in splits["train"]}
    return ([Row(asked[i].id, by_id[asked[i].id].input, asked[i].label, None, by_id[asked[i].id].choices)
             for i in chosen], "held-out questions, against the teacher's answers")


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (trainer_state.json is written last)."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def _estimate(trainer: Any, batcher: Any, steps: int) -> float:
    """Seconds of the whole training from one step's forward and backward, without touching its randomness."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = trainer.args.per_device_train_batch_size
        batch = trainer._prepare_inputs(batcher(torch.randperm(len(batcher.items))[:size].tolist()))
        trainer.model.to(trainer.args.device)
        for _ in range(2):  # the first one also sets the kernels up
            start = time.monotonic()
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            took = time.monotonic() - start
    trainer.model.zero_grad()
    trainer._sums.clear()
    trainer.seen_tokens = 0
    return 1.4 * took * steps  # the optimizer, the dev rows and the checkpoints take about two fifths more


def _model_card(result: dict[str, Any], stage: runs.Stage) -> str:
    taught = runs.finished(stage.path.parent, "teach")
    teacher = taught["result"] if taught and "corpus" in stage.inputs else None
    lines = [
        "---", "library_name: edgedistill", "tags: [distillation, edge]", "---", "",
        f"# A student of {result['parameters'] / 1e6:.1f} M parameters for the task {result['task']}", "",
        f"- Trained by `{result['method']}` from `{result['student']}` on {result['questions']} questions "
        f"({result['with_rationale']} with a verified rationale), {result['steps']} steps, seed {stage.config['seed']}.",
        f"- Dev accuracy {100 * result['best_dev_accuracy']:.1f} % (checkpoint chosen on these rows).",
    ]
    if teacher:
        share = f", {100 * teacher['accuracy']:.1f} % of its answers right" if teacher["accuracy"] is not None else ""
        lines.append(f"- Teacher: {teacher['teacher']} ({teacher['licence']}), data {teacher['data']}{share}.")
    lines += ["", "`edgedistill export --int8` makes the bundle that a device runs; `edgedistill.json` holds the task, "
              "the prefixes and the hashes of what went in.", ""]
    return "\n".join(lines)
