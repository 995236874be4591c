"""`train`: a student learns from the run's corpus by one of the methods."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.errors import UsageError, need
from edgedistill.progress import say
from edgedistill.tasks import data as rows_
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Task


def train(
    student: str | None = None, *, run: str = defaults.RUN, tiny: bool = False, method: str = defaults.METHOD,
    task: str | None = None, data: str | None = None, column: dict[str, str] | None = None,
    epochs: float = defaults.EPOCHS, tokens: float | None = None, batch_size: int = defaults.BATCH_SIZE,
    learning_rate: float | None = None, alpha: float = defaults.ALPHA, weighting: str = defaults.WEIGHTING,
    average: bool = False, two_pass: bool = False, mutual_information: float = 0.0, match: str | None = None,
    formats: dict[str, float] | None = None,
    resample: float | None = None, rationales: bool = True, reworded: str | None = None, rounds: int = defaults.ROUNDS,
    mentor: str | list[str] | None = None, mentor_share: float | None = None, inherit: str | None = None, states: float = 0.0,
    temperature: float = defaults.TEMPERATURE,
    ood: str | None = None, general: str | None = None, optimizer: str | None = None, layers: int | None = None,
    vocabulary: int | None = None, carve_from: str = defaults.TEACHER, factors: int = defaults.FACTORS,
    precision: str | None = None, batch_tokens: int | None = None,
    gradient_checkpointing: bool | None = None, vram: float | None = None, dry_run: bool = False, resume: bool = False,
    max_hours: float | None = None, report_to: list[str] | None = None, seed: int = defaults.SEED,
    threads: int | None = None, overwrite: bool = False,
) -> dict[str, Any]:
    """Trains a student into `train/student/` and returns the result object (DESIGN section 2).

    The rows are those that `teach` taught in this run, or `data`, whose own rationales are then the corpus (`column`
    maps `rationale` and `stated`, the answer that each of them came to). The checkpoint with the best dev accuracy is
    kept. Interrupted and called again, it goes on from the last checkpoint, with optimizer, schedule and random state;
    `resume` insists on one. Under torchrun or accelerate `batch_size` is that of all processes together.

    - `vocabulary` trims the student's to about so many pieces, all that the task uses among them.
    - `tokens`: so many tokens (sources and targets) go through the model, instead of `epochs`: the same budget for
      methods whose questions differ in length.
    - `average`: the mean of the weights along the training is watched, kept and saved in the place of the last ones
      (train/average.py).
    - `weighting`: a part's loss is the mean over its "token"s or its "sequence"s. `two_pass` is the published form of
      step-by-step, each target with an encoding of its own. `mutual_information` is the weight of Chen et al.'s term.
    - `match`: "distribution" takes the run's soft targets in the place of the teacher's tokens, "sample" does not
      (default: distribution for specialize, where there are any). `formats` are specialize's shares.
    - For hybrid: `resample` is the share of draws with fresh numbers, of tasks of kind equation; `rationales` may be left
      out; `reworded` is a run whose teacher put the rows in other words (train/reworded.py); `rounds` of self-training begin
      anew with the student's own answers to rows without a label, the `tokens` shared.
    - `mentor`: for logit-kd and hybrid, a student folder with the same tokenizer; at `temperature` its share of the loss is
      1 - `alpha`, for hybrid `mentor_share`. With fresh numbers it is asked in every step. Of several the mean of their
      distributions counts.
    - For hybrid with a mentor of the same width (the first of several): `inherit` begins with its layers ("spread" evenly
      over its depth, or its two "ends"), `states` is the weight of being like it after each of them, at every token
      (train/depth.py).
    - `factors`: reparam throws the student's FFNs away, trains a random linear chain of so many matrices in the place of
      each and saves it merged to one. It pays only where an FFN is to go (train/reparam.py).
    - `ood`: a data set whose dev rows are watched too; the best checkpoint on them goes to `train/student-ood/`.
      `general`: a text file whose perplexity is watched.
    - `precision` of the products, "fp32" or "bf16" (default: bf16 where the device has it); weights and their update are fp32.
    - `batch_tokens`, `gradient_checkpointing` and `optimizer` are picked to fit `vram` (GB) where it is given. `dry_run`
      prints the plan, checks its memory by one real step and trains nothing.
    - `max_hours`: after so many it ends with a checkpoint and raises `Stopped`.

    Raises `UsageError` and `Error`.
    """
    began = time.monotonic()
    need("torch", "train"), need("transformers", "train"), need("accelerate", "train")
    from edgedistill.teach.source import resolve
    from edgedistill.train.batches import WEIGHTINGS
    from edgedistill.train.depth import WAYS
    from edgedistill.train.fit import Job, fit
    from edgedistill.train.methods import CHAINS, MENTORED, TWO_TASKS, questions
    from edgedistill.train.reworded import read
    from edgedistill.train.selftrain import fit_rounds

    mentors = [mentor] if isinstance(mentor, str) else mentor or []
    numbers = {"--epochs": epochs, "--tokens": tokens, "--learning-rate": learning_rate, "--temperature": temperature,
               "--max-hours": max_hours}
    for flag, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{flag} {value:g}: give a number above 0")
    if batch_size < 1 or not 0 <= alpha <= 1:
        raise UsageError(f"--batch-size {batch_size}, --alpha {alpha:g}: the batch must be at least 1, alpha between 0 and 1")
    if weighting not in WEIGHTINGS:
        raise UsageError(f"--weighting {weighting}: give {' or '.join(WEIGHTINGS)}")
    if match not in (None, "sample", "distribution"):
        raise UsageError(f"--match {match}: give sample or distribution")
    if precision not in (None, "fp32", "bf16"):
        raise UsageError(f"--precision {precision}: give fp32 or bf16")
    if method == "logit-kd" and not mentors:
        raise UsageError("--method logit-kd needs --mentor FOLDER, a larger trained student")
    if mentors and method not in MENTORED:
        raise UsageError(f"--mentor is for --method {' and '.join(MENTORED)}, not for {method}")
    if mentor_share is not None and (method != "hybrid" or not mentors or not 0 <= mentor_share <= 1):
        raise UsageError(f"--mentor-share {mentor_share:g} is for --method hybrid with a --mentor, between 0 and 1")
    if (inherit or states) and (method != "hybrid" or not mentors):
        raise UsageError("--inherit and --states are for --method hybrid with a --mentor; leave them out or give both")
    if inherit not in (None, *WAYS):
        raise UsageError(f"--inherit {inherit}: give {' or '.join(WAYS)}")
    if not 0 <= states < math.inf:
        raise UsageError(f"--states {states:g}: give a weight not below 0")
    if mutual_information and (method not in TWO_TASKS or two_pass or not rationales):
        raise UsageError("--mutual-information couples a label with its rationale: it needs --method step-by-step or hybrid in "
                         "the shared form, without --two-pass and --no-rationales")
    if method != "hybrid" and (resample is not None or rounds or reworded or not rationales):
        raise UsageError("--resample, --no-rationales, --reworded and --rounds are parts of --method hybrid; leave them out or "
                         "take it")
    if not 0 <= (resample or 0) <= 1 or not 0 <= rounds <= 10:
        raise UsageError(f"--resample {resample or 0:g}, --rounds {rounds}: a share is between 0 and 1, rounds are 0 to 10")
    if rounds and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--rounds trains in one process; leave torchrun or --rounds out")
    if factors not in (1, 2, 3):
        raise UsageError(f"--factors {factors}: a linear chain has 1, 2 or 3")
    if ood and method == "reparam":
        raise UsageError("--ood keeps a second checkpoint, which --method reparam does not merge; leave one of them out")
    if not 0 <= mutual_information < math.inf:
        raise UsageError(f"--mutual-information {mutual_information:g}: give a number not below 0")
    if formats and (method != "specialize" or set(formats) - set(defaults.FORMATS)
                    or not all(0 <= share < math.inf for share in formats.values()) or sum(formats.values()) <= 0):
        raise UsageError(f"--formats is for --method specialize: NAME=SHARE of {', '.join(defaults.FORMATS)}")
    card, splits, corpus, inputs = _material(run, task, data, column, seed)
    if resample and card.kind != "equation":
        raise UsageError(f"--resample {resample:g}: only equations can have other numbers, and labels of {card.name} are of "
                         f"kind {card.kind}; leave it out")
    soft = Path(run) / "teach" / "soft" if not data and (Path(run) / "teach" / "soft").is_dir() else None
    if match == "distribution" and not soft:
        raise UsageError("--match distribution needs soft targets: run edgedistill teach with --soft-targets K")
    distribution = bool(soft) and (match or ("distribution" if method == "specialize" else "sample")) == "distribution"
    chosen, why = _choose(student, tiny)
    place = cards.STUDENTS.get(chosen, chosen)
    cut = resolve(carve_from) if place.startswith("carve:") else None
    if cut:
        inputs["from"] = cut.sha256
    for each in mentors:
        if not (Path(each) / "model.safetensors").is_file():
            raise UsageError(f"--mentor {each}: there is no model.safetensors in it; give the train/student/ folder of a "
                             "finished run")
    for name, folder in (("student", place), *((f"mentor{n or ''}", each) for n, each in enumerate(mentors))):
        if (Path(folder) / "model.safetensors").is_file() and folder:
            inputs[name] = runs.sha256(Path(folder) / "model.safetensors")

    other_words = read(reworded) if reworded else None
    if reworded:
        inputs["reworded"] = runs.sha256(Path(reworded) / "teach" / "corpus.jsonl")

    def ask(rows: list[Row]) -> list[Any]:
        return questions(method, card, rows, corpus, formats, rationales, other_words)

    rows = splits["train"]
    asked = ask(rows)
    if reworded and {question.id for question in asked} <= {row.id for row in rows}:
        raise UsageError(f"--reworded {reworded}: no text of it can be used for these {len(rows)} rows; was it taught the same "
                         "rows (same --data)?")
    dev, dev_name = _dev_rows(splits, asked, card)
    if dev_name != "dev":
        held = {row.id for row in dev}
        rows = [row for row in rows if row.id not in held]
        asked = ask(rows)
    other = _watched(ood, seed)
    if other:
        inputs["ood"] = rows_.digest(other)
    if general and Path(general).is_file():
        inputs["general"] = runs.sha256(Path(general))
    name = runs.subject_name(place) if Path(place).is_dir() else chosen  # manifests hold names, no paths
    config = {"method": method, "student": name, "task": card.name, "questions": len(asked), "epochs": epochs,
              "batch_size": batch_size, "learning_rate": learning_rate, "alpha": alpha, "optimizer": optimizer,
              "seed": seed, "weighting": weighting, **({"tokens": tokens} if tokens else {}),
              **({"average": True} if average else {}), **({"precision": precision} if precision else {})}
    if cut:
        config |= {"layers": layers or int(place.removeprefix("carve:")), "vocabulary": vocabulary or defaults.VOCABULARY,
                   "from": cut.name}
    elif vocabulary:
        config |= {"vocabulary": vocabulary}
    if method in TWO_TASKS:
        config |= {"shared": not two_pass, "mutual_information": mutual_information}
    if method == "hybrid":
        share = (defaults.RESAMPLE if resample is None else resample) if card.kind == "equation" else 0.0
        config |= {"resample": share, "rationales": rationales, "rounds": rounds}
    if method == "specialize":
        config |= {"formats": formats or defaults.FORMATS}
    if corpus and method not in ("finetune", "logit-kd"):
        config |= {"match": "distribution" if distribution else "sample"}
    if method == "reparam":
        config |= {"factors": factors}
    if mentors:
        names = [runs.subject_name(each) for each in mentors]
        config |= {"mentor": names if names[1:] else names[0], "temperature": temperature}
    if mentors and method == "hybrid":
        config |= {"mentor_share": defaults.MENTOR_SHARE if mentor_share is None else mentor_share,
                   **({"inherit": inherit} if inherit else {}), **({"states": states} if states else {})}
    job = Job(
        card=card, questions=asked, dev=dev, dev_name=dev_name, place=place, cut=cut, why=why, mentors=mentors,
        format={"shared": method in TWO_TASKS and not two_pass, "chain": method in CHAINS},
        soft=soft if distribution else None, ood=other, general=general, learning_rate=learning_rate,
        batch_tokens=batch_tokens, checkpointing=gradient_checkpointing, vram=vram, report_to=report_to or [],
        resume=resume, tokens=tokens,
        threads=threads or max(1, machine.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        deadline=began + 3600 * (max_hours or math.inf))
    if dry_run:
        return fit(SimpleNamespace(path=None, config=config, inputs=inputs, resumed=False), job)
    stage = _stage(run, config, inputs, overwrite)
    try:
        if stage.finished:
            say(f"train: {stage.path} is finished with this configuration; nothing to do")
            return stage.finished
        return fit_rounds(stage, job, rows, rounds, ask) if rounds else fit(stage, job)
    finally:
        stage.close()


def _stage(run: str, config: dict[str, Any], inputs: dict[str, str], overwrite: bool) -> Any:
    """The stage's folder; under torchrun the first process opens it, and the others look on."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return runs.Stage(run, "train", config, inputs, overwrite)
    import torch
    from accelerate import PartialState

    everyone = PartialState(cpu=not torch.cuda.is_available())
    stage: Any = SimpleNamespace(path=Path(run) / "train", config=config, inputs=inputs, close=lambda: None)
    if everyone.is_main_process:
        stage = runs.Stage(run, "train", config, inputs, overwrite)
    everyone.wait_for_everyone()
    if not everyone.is_main_process:
        done = runs.finished(run, "train")
        stage.finished = done["result"] if done else None
        stage.resumed = (stage.path / "checkpoints").is_dir()
    return stage


def _material(run: str, task: str | None, data: str | None, column: dict[str, str] | None, seed: int,
              ) -> tuple[Task, dict[str, list[Row]], list[dict[str, Any]], dict[str, str]]:
    """(task, rows by split, corpus, hashes) from the run's teach stage or from `data`."""
    from edgedistill.train.methods import given

    taught = runs.finished(run, "teach")
    if data:
        card = cards.load(Task, task or defaults.TASK)
        splits = rows_.load(data, column, seed, defaults.DEV_SHARE).splits
        return card, splits, given(card, splits["train"]), {"rows": rows_.digest(splits["train"])}
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


def _watched(ood: str | None, seed: int) -> list[Row]:
    """Labelled dev rows of another data set."""
    if not ood:
        return []
    rows = [row for row in rows_.load(ood, None, seed, defaults.DEV_SHARE).splits["dev"] if row.label is not None]
    if not rows:
        raise UsageError(f"--ood {ood}: no dev row has a label")
    return rows[: defaults.OOD_ROWS]


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


def _dev_rows(splits: dict[str, list[Row]], asked: list[Any], card: Task) -> tuple[list[Row], str]:
    """Labelled dev rows; where no row has a label, a tenth of the questions with the teacher's answers."""
    import random

    labelled = [row for row in splits.get("dev", []) if row.label is not None]
    if labelled:
        return labelled, "dev"
    by_id = {row.id: row for row in splits["train"]}
    asked = [question for question in asked if question.id in by_id]  # their own words alone
    if len(asked) < 2:
        raise UsageError("one question cannot be split into training and dev; teach at least two rows")
    n = max(1, round(defaults.DEV_SHARE * len(asked)))
    chosen = sorted(random.Random("dev-0").sample(range(len(asked)), n))
    return ([Row(asked[i].id, by_id[asked[i].id].input, asked[i].label, None, by_id[asked[i].id].choices)
             for i in chosen], "held-out questions, against the teacher's answers")
