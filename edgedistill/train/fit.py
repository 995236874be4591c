"""One training from a plan to a student folder."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from edgedistill import defaults, machine, runs
from edgedistill.errors import UsageError
from edgedistill.progress import clock, say
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task
from edgedistill.train import depth, memory, reparam
from edgedistill.train import lint as lint_
from edgedistill.train import trainer as trainer_
from edgedistill.train.batches import Batcher
from edgedistill.train.initial import open_student
from edgedistill.train.methods import TWO_TASKS, Question
from edgedistill.train.packed import Weights
from edgedistill.train.resample import Template
from edgedistill.train.students import Student
from edgedistill.train.watch import evaluations


@dataclass(frozen=True)
class Job:
    """What a training is made of; the keywords of `train` have the meanings."""

    card: Task
    questions: list[Question]
    dev: list[Row]
    dev_name: str
    place: str
    cut: Any
    why: str
    mentors: list[str]
    format: dict[str, Any]
    soft: Path | None
    ood: list[Row]
    general: str | None
    learning_rate: float | None
    batch_tokens: int | None
    checkpointing: bool | None
    vram: float | None
    report_to: list[str]
    resume: bool
    threads: int
    deadline: float
    tokens: float | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)  # of self-training, before this one


def fit(stage: Any, job: Job) -> dict[str, Any]:
    """Trains; returns the result object, or that of the plan where the stage has no path."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(job.threads)
    config, card = stage.config, job.card
    cuda = torch.cuda.is_available()
    has_bf16 = torch.cuda.is_bf16_supported() if cuda else bool({"avx512_bf16", "amx_bf16", "bf16"} & machine.cpu_flags())
    if config.get("precision") == "bf16" and not has_bf16:
        raise UsageError("--precision bf16: this device has no such products; leave it out for fp32")
    bf16 = has_bf16 and config.get("precision") != "fp32"
    imports = machine.rss_mb()
    student = _student(job, config)
    loaded = machine.rss_mb()
    texts = [card.question(row) for row in job.dev] + [t for q in job.questions for t in (q.text, *(
        each for target in q.targets() for each in (target.text, target.source) if each))]
    # Decoders have byte pieces for everything, and what they call unk is their end-of-text token.
    unk_id = student.tokenizer.unk_token_id if student.family == "t5" else None
    student.set_task(card, **job.format, escapes={} if unk_id is None else lint_.escapes(student.rust, unk_id, texts))
    lint = lint_.lint(student, [(target.text, target.part) for q in job.questions for target in q.targets()])
    mentors = [_mentor(place, student, job.questions, cuda) for place in job.mentors]
    guided, way = config.get("states", 0.0), config.get("inherit") or "spread"
    for flag, given in (("--inherit", config.get("inherit")), ("--states", guided)):
        if given:
            depth.check(student, mentors, flag)
    if config.get("inherit"):
        depth.inherit(student, mentors[0], way)
    transformers.set_seed(config["seed"])
    if config["method"] == "reparam":
        if getattr(student.model.config, "edgedistill_ffn", None):
            raise UsageError(f"--method reparam: {config['student']} has no FFNs left to replace; finetune trains it on")
        reparam.replace(student.model, config["factors"])
    soft = _soft_targets(job, student) if job.soft else None
    processes = trainer_.processes()
    if config["batch_size"] % processes:
        raise UsageError(f"--batch-size {config['batch_size']} cannot be shared by {processes} processes; take a multiple")
    batcher = Batcher(student, job.questions, batch_tokens=job.batch_tokens or defaults.BATCH_TOKENS["cuda" if cuda else "cpu"],
                      batch_size=config["batch_size"], weighting=config["weighting"], seed=config["seed"], soft=soft,
                      mentors=() if guided else mentors, bf16=bf16, resample=config.get("resample", 0.0),
                      rank=int(os.environ.get("RANK", "0")), processes=processes)
    loss = trainer_.Loss(
        alpha=config["alpha"], distribution=bool(soft), mutual_information=config.get("mutual_information", 0.0),
        mentor_share=config.get("mentor_share", 1 - config["alpha"]) if mentors else 0.0,
        temperature=config.get("temperature", 1.0))
    mentor_heads = [mentor.head.detach() for mentor in mentors]
    guide = depth.Guide(student, mentors, way, guided, Weights(torch.bfloat16 if bf16 else torch.float32)) if guided else None
    mentors = guide.mentors if guide else batcher.asking  # of the others the states are kept
    plan = _plan(job, config, student, batcher, mentors, guide, cuda, bf16, config["batch_size"] // processes)
    batcher.batch_tokens = plan.batch_tokens
    rate = config["learning_rate"]
    if rate is None:
        rate = defaults.ADAFACTOR_RATE if plan.optimizer == "adafactor" else defaults.LEARNING_RATE[student.family]
    tokens = batcher.tokens()
    epochs = job.tokens / (tokens * len(job.questions)) if job.tokens else config["epochs"]
    steps = max(1, round(batcher.steps * epochs))
    folder = (stage.path or Path(tempfile.mkdtemp())) / "checkpoints"
    args = trainer_.arguments(folder, epochs=epochs, batch_size=config["batch_size"] // processes,
                              learning_rate=rate, seed=config["seed"], cuda=cuda, steps=steps, report_to=job.report_to)
    if plan.checkpointing:
        student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = trainer_.DistillTrainer(
        student, batcher, args, loss=loss, bf16=bf16, mentor_heads=mentor_heads, guide=guide,
        evaluations=evaluations(job.card, student, job.dev, job.ood, job.general, bf16),
        optimizer=trainer_.optimizer(student.model, plan.optimizer, rate), average=config.get("average", False))
    with_rationale = sum(any(t.sample is not None for t in q.targets()) for q in job.questions)
    last = trainer_.last_checkpoint(folder) if stage.resumed else None
    if job.resume and not last:
        raise UsageError(f"--resume: {stage.path} holds no whole checkpoint; leave the flag out to begin anew")
    say("train plan")
    say(f"  student   {job.why}: {student.parameters() / 1e6:.1f} M parameters, {len(student.tokenizer)} pieces")
    say(f"  method    {config['method']} on {len(job.questions)} questions, {with_rationale} with a rationale; "
        f"dev: {len(job.dev)} rows ({job.dev_name})")
    labels = {q.label for q in job.questions}
    if len(labels) == 1 and len(job.questions) > 1:
        say(f"  labels    all are {str(next(iter(labels)))[:40]!r}: the student will learn to say that, whatever it is asked")
    if config["method"] == "reparam":
        say(f"  FFNs      thrown away; in the place of each a random linear chain of {config['factors']}, merged to one matrix "
            "after training")
    fresh = [made for made in batcher.templates if made]
    told = sum(bool(made.rationales) for made in fresh)
    if batcher.resample:
        say(f"  numbers   fresh ones for {batcher.resample:.0%} of the draws of {len(fresh)} questions, {told} of them with a "
            f"rationale{_example(fresh)}")
    split = [q.weight for q in job.questions if q.weight < 1]
    if split:
        say(f"  votes     of {len(split)} questions the teacher's samples disagree: the answer that most come to counts as "
            f"their share, {sum(split) / len(split):.0%} on average")
    for line in lint.lines():
        say(line)
    say(f"  steps     {steps} of {config['batch_size']} questions ({epochs:.3g} epochs), "
        f"learning rate {rate:g}, {plan.optimizer}, {'bf16' if bf16 else 'fp32'}"
        f"{', gradient checkpointing' if plan.checkpointing else ''}, {'GPU' if cuda else f'{job.threads} threads'}"
        + (f", {processes} processes" if processes > 1 else ""))
    imports = round(imports + machine.rss_mb() - loaded, 1)  # what the trace and the Trainer brought
    predicted = plan.memory.peak / 1e6 + (0 if cuda else imports)
    say(f"  memory    about {predicted:.0f} MB at most: parameters {plan.memory.parameters / 1e6:.0f}, optimizer "
        f"{plan.memory.states / 1e6:.0f}, gradients and activations {plan.memory.step / 1e6:.0f} (micro-batches of "
        f"{plan.batch_tokens} tokens), beside them {plan.memory.beside / 1e6:.0f}"
        + ("" if cuda else f", libraries {imports:.0f}"))
    shown = {"parameters": student.parameters(), "predicted_memory_mb": round(predicted, 1), "memory": plan.memory.to_dict(),
             "imports_mb": imports, "batch_tokens": plan.batch_tokens, "optimizer": plan.optimizer,
             "gradient_checkpointing": plan.checkpointing, "tokens_per_question": round(tokens, 1)}
    if stage.path is None:
        shutil.rmtree(folder.parent)
        return _dry_run(trainer, batcher, config, steps, shown, cuda)
    say(f"  time      about {clock(defaults.BESIDE_STEPS * _seconds(trainer, batcher) * steps)} (from one step on this machine)"
        + (f"; resumed from {last.name}" if last else ""))
    trainer.deadline = job.deadline
    lines = trainer_.Lines(trainer)
    trainer.add_callback(lines)
    best_ood = trainer_.BestOther(student, folder / "best-ood") if job.ood else None
    if best_ood:
        trainer.add_callback(best_ood)
    trainer.add_callback(trainer_.Noted(stage, trainer))
    before = _before(stage, trainer) if job.ood or job.general else None
    machine.reset_peak()
    start, done = time.monotonic(), int(last.name.split("-")[1]) if last else 0
    with runs.disk_errors(stage.path):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds = max(time.monotonic() - start, 1e-9)
    trainer.accelerator.wait_for_everyone()
    if not any("eval_accuracy" in entry for entry in trainer.state.log_history):
        trainer.evaluate()  # less than one epoch was asked for
        if trainer.average:
            trainer.average.swap()
    history = trainer.state.log_history
    measured = [{"step": e["step"], **{name.removeprefix("eval_"): round(value, 4) for name, value in e.items()
                                          if name.startswith("eval_") and isinstance(value, float)}}
                   for e in history if "eval_accuracy" in e]
    losses = [{"step": e["step"], **{k: e[k] for k in ("loss", "label_loss", "rationale_loss") if k in e}}
              for e in history if "loss" in e]
    best = _best(measured, "accuracy")
    seen = trainer.accelerator.reduce(torch.tensor(float(trainer.seen_tokens), device=args.device), "sum")
    if not trainer.is_world_process_zero():
        return {}
    result = {
        **machine.origin("train"), "method": config["method"], "student": config["student"], "task": card.name, **shown,
        "questions": len(job.questions), "with_rationale": with_rationale, "steps": trainer.state.global_step,
        "epochs": round(epochs, 4), "batch_size": config["batch_size"], "learning_rate": rate,
        "dtype": "bf16" if bf16 else "fp32", "processes": processes,
        "examples_per_s": round((trainer.state.global_step - done) * config["batch_size"] / seconds, 2),
        "tokens_per_s": round(float(seen) / seconds),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1) if cuda else machine.peak_rss_mb(),
        "dev": measured, "before": before, "best_dev_accuracy": best["accuracy"], "losses": losses,
        **({"resampled": {"share": batcher.resample, "questions": len(fresh), "with_rationale": told}} if fresh else {}),
        **({"disagreed": {"questions": len(split), "mean_share": round(sum(split) / len(split), 4)}} if split else {}),
        **({"rounds": job.rounds} if job.rounds else {}),
        "lint": lint.to_dict(), "seconds": stage.seconds()}
    if config["method"] == "reparam":
        reparam.merge(student.model)
        result |= {"trained_parameters": result["parameters"], "parameters": student.parameters()}
    if getattr(student.model.config, "edgedistill_ffn", None):
        result["factors"] = config.get("factors", 1)
    outputs = _save(student, stage, result, best, "student")
    if best_ood and (folder / "best-ood").is_dir():
        best_ood.load()
        other = _best(measured, "ood_accuracy")
        result["best_ood_accuracy"] = other["ood_accuracy"]
        outputs += _save(student, stage, result, other, "student-ood")
    stage.done(result, outputs)
    shutil.rmtree(args.output_dir, ignore_errors=True)  # gigabytes that a finished stage has no use for
    say(f"train: {trainer.state.global_step} steps in {clock(result['seconds'])}, best dev accuracy "
        f"{100 * best['accuracy']:.1f} %; student in {stage.path / 'student'}")
    return result


def _best(measured: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The evaluation with the highest value of a dev set; of equal ones the last, as the Trainer chooses."""
    return max(measured, key=lambda e: (e[name], e["step"]))


def _example(fresh: list[Template]) -> str:
    for made in fresh:
        if drawn := made.draw(random.Random(0)):
            return f": {''.join(made.question)!r} is then {drawn.question!r}, {drawn.label!r}"
    return ""


def _before(stage: Any, trainer: Any) -> dict[str, float]:
    """What the student can do before it is trained; measured once, also of a training that is interrupted."""
    path = stage.path / "before.json"
    if not path.exists():
        found = {name: round(value, 4) for name, value in trainer.measure().items()}
        if not trainer.is_world_process_zero():
            return found
        runs.write_json(path, found)
    return runs.read_json(path)


def _save(student: Student, stage: Any, result: dict[str, Any], chosen: dict[str, Any], name: str) -> list[Path]:
    """Writes a student folder; `chosen` is the evaluation that its checkpoint was taken for."""
    folder, config = stage.path / name, stage.config
    provenance = {"method": config["method"], "student": config["student"], "questions": result["questions"],
                  "with_rationale": result["with_rationale"], "seed": config["seed"], "inputs": stage.inputs,
                  "step": chosen["step"], "dev_accuracy": chosen["accuracy"], "versions": machine.versions()}
    with trainer_.saving(folder):
        student.save(folder, provenance, _model_card(result, stage, chosen))
    return sorted(folder.iterdir())


def _student(job: Job, config: dict[str, Any]) -> Student:
    texts = [text for q in job.questions for text in (q.text, *(t.text for t in q.targets()))]
    texts += [job.card.question(row) for row in [*job.dev, *job.ood]]
    return open_student(job.place, texts, job.cut.path if job.cut else None, config.get("layers"), config.get("vocabulary"))


def _mentor(place: str, student: Student, questions: list[Question], cuda: bool) -> Student:
    """The mentor's folder, opened. Raises `UsageError` where its pieces are others than the student's, or where it never
    learned what `questions` want of it."""
    from edgedistill.train.students import load

    mentor = load(place)
    if (mentor.format is None or mentor.rust.get_vocab() != student.rust.get_vocab()
            or len(mentor.head) != len(student.head)):
        raise UsageError(f"--mentor {Path(place).name}: its tokenizer is not the student's; train the mentor with the same "
                         "--from and --vocabulary on the same rows")
    made = runs.read_json(Path(place) / "edgedistill.json").get("provenance", {})
    knows = made.get("method") in TWO_TASKS and made.get("with_rationale", 1)  # students of before it was kept had some
    reasons = any(target.part == "rationale" for q in questions for target in q.targets())
    if mentor.format.chain or (reasons and not knows):
        raise UsageError(f"--mentor {runs.subject_name(place)}: it was trained by {made.get('method')} and does not know "
                         f"labels and rationales apart; take one trained by {' or '.join(TWO_TASKS)} on both"
                         + ("" if mentor.format.chain else ", or add --no-rationales"))
    if cuda:
        mentor.model.to("cuda")
    return mentor


def _soft_targets(job: Job, student: Student) -> dict[tuple[str, int], Any]:
    """The run's soft targets on the student's tokens, by (id, sample): functions of a target's text and its ids.

    None where the target's tokens are not those of its text (a tokenizer that rewrites it, escapes): then it stays hard.
    """
    from edgedistill.teach import soft
    from edgedistill.train import align

    vocabulary, pieces = soft.vocabulary(job.soft), align.Pieces(student.rust, student.format.eos_id)

    def on(records: Any, text: str, ids: list[int]) -> tuple[Any, Any] | None:
        found = align.by_spans(pieces, text, records, vocabulary, limit=len(ids))
        return (found.ids, found.probs) if len(found.ids) == len(ids) else None

    return {(identity, sample): partial(on, records) for identity, sample, records in soft.read(job.soft)}


def _plan(job: Job, config: dict[str, Any], student: Student, batcher: Batcher, mentors: list[Student],
          guide: depth.Guide | None, cuda: bool, bf16: bool, size: int) -> memory.Plan:
    rows = batcher.draw(range(len(batcher.ids)))
    longest = sorted(rows, key=len, reverse=True)
    # The worst step: the longest rows that one can hold, two for each question where targets are apart.
    worst = longest[: max(1, round(size * len(rows) / len(batcher.ids)))]
    seen: dict[tuple[int, bool], float] = {}
    # The mutual-information term holds all logits of a micro-batch and two tensors of their size.
    extra = 12.0 * batcher.batch_tokens * len(student.head) if config.get("mutual_information") else 0.0
    extra += sum(4.0 * each.numel() for each in batcher.mentor.values())
    extra += (6.0 if bf16 else 4.0) * sum(mentor.parameters() for mentor in mentors)
    extra += 4.0 * student.parameters() if config.get("average") else 0.0
    states = 16.0 * len(guide.taps) * student.model.config.hidden_size if guide else 0.0  # a token's four fp32 states a layer

    def predicted(tokens: int, optimizer: str, checkpointing: bool) -> memory.Memory:
        groups = batcher.cut(worst, tokens)
        if (tokens, checkpointing) not in seen:
            largest = max(groups, key=lambda rows: sum(map(len, rows)))
            seen[tokens, checkpointing] = (memory.step(student, largest, bf16, checkpointing, len(groups) > 1)
                                           + states * sum(map(len, largest)))
        return memory.predict(student, seen[tokens, checkpointing] + extra, optimizer, "cuda" if cuda else "cpu")

    first = config["optimizer"] or defaults.OPTIMIZER["cuda" if cuda else "cpu"]
    # Recomputing activations costs a third of the time: worth it where memory is short, which is on a GPU.
    checkpointing = cuda if job.checkpointing is None else job.checkpointing
    candidates = [(first, checkpointing)]
    if job.vram:
        candidates += [c for c in ((config["optimizer"] or "adamw8bit", False if job.checkpointing is None else checkpointing),
                                   (config["optimizer"] or "adamw8bit", job.checkpointing is not False)) if c not in candidates]
    budget = job.vram * 1e9 - (memory.CUDA_CONTEXT if cuda else 0) if job.vram else None
    return memory.plan(candidates, batcher.batch_tokens, len(longest[0]), budget, predicted)


def _seconds(trainer: Any, batcher: Batcher) -> float:
    """Seconds of one step's forward and backward, without touching its randomness or its gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = trainer.args.per_device_train_batch_size
        batch = batcher(torch.randperm(len(batcher.ids))[:size].tolist())
        trainer.model.to(trainer.args.device)
        for _ in range(2):  # the first one also sets the kernels up
            start = time.monotonic()
            trainer.training_step(trainer.model, batch)
            took = time.monotonic() - start
    trainer.forget()
    return took  # the optimizer, the dev rows and the checkpoints take about two fifths more


def _dry_run(trainer: Any, batcher: Batcher, config: dict[str, Any], steps: int, shown: dict[str, Any],
             cuda: bool) -> dict[str, Any]:
    """One real step of the longest questions: what it takes, beside what was predicted."""
    lengths = [sum(map(len, batcher.draw([i]))) for i in range(len(batcher.ids))]
    worst = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[: trainer.args.per_device_train_batch_size]
    machine.reset_peak()
    trainer.model.to(trainer.args.device)
    trainer.training_step(trainer.model, batcher(worst))  # sets the kernels up
    trainer.optimizer.step()
    trainer.model.zero_grad()
    start = time.monotonic()
    trainer.training_step(trainer.model, batcher(worst))  # now with the optimizer's states in place
    seconds = time.monotonic() - start
    peak = round(torch.cuda.max_memory_allocated() / 1e6, 1) if cuda else machine.peak_rss_mb()
    say(f"  measured  {peak:.0f} MB in one real step of the longest questions, {seconds:.1f} s")
    say(f"  time      {clock(defaults.BESIDE_STEPS * seconds * steps)} at most; nothing was trained (--dry-run)")
    return {**machine.origin("train-plan"), "method": config["method"], "student": config["student"], "steps": steps,
            "batch_size": config["batch_size"], **shown, "peak_memory_mb": peak, "seconds_per_step": round(seconds, 2),
            "longest_tokens": sum(lengths[i] for i in worst)}


def _model_card(result: dict[str, Any], stage: Any, chosen: dict[str, Any]) -> str:
    taught = runs.finished(stage.path.parent, "teach")
    teacher = taught["result"] if taught and "corpus" in stage.inputs else None
    lines = [
        "---", "library_name: edgedistill", "tags: [distillation, edge]", "---", "",
        f"# A student of {result['parameters'] / 1e6:.1f} M parameters for the task {result['task']}", "",
        f"- Trained by `{result['method']}` from `{result['student']}` on {result['questions']} questions "
        f"({result['with_rationale']} with a verified rationale), {result['steps']} steps, seed {stage.config['seed']}"
        + ("; the mean of the weights along the way." if stage.config.get("average") else "."),
        f"- Dev accuracy {100 * chosen['accuracy']:.1f} % at step {chosen['step']}"
        + (" (checkpoint chosen on these rows)." if chosen["accuracy"] == result["best_dev_accuracy"] else
           f"; chosen for the other task's dev rows, {100 * chosen['ood_accuracy']:.1f} %."),
    ]
    if teacher:
        share = f", {100 * teacher['accuracy']:.1f} % of its answers right" if teacher["accuracy"] is not None else ""
        lines.append(f"- Teacher: {teacher['teacher']} ({teacher['licence']}), data {teacher['data']}{share}.")
    if "factors" in result:
        lines.append(f"- Each FFN is one d x d matrix, merged from {result['factors']}: load it by edgedistill; "
                     "`from_pretrained` would put random FFNs there.")
    lines += ["", "`edgedistill export --int8` makes the bundle that a device runs; `edgedistill.json` holds the task, "
              "the prefixes and the hashes of what went in.", ""]
    return "\n".join(lines)
