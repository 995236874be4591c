"""The shell lines that reproduce a run's results, made from what its manifests hold.

A manifest holds names, no paths: where a flag wants a file of the user's, the line says `PATH/name`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from edgedistill import cards, runs

# The flag of each key of a stage's configuration. Keys that follow from others (questions, linear, ...) have none.
_FLAGS = {
    "teach": {"task": "--task", "data": "--data", "rows": "--limit", "prompt": "--prompt", "samples": "--samples",
              "enough": "--enough", "hint": "--hint", "soft_targets": "--soft-targets", "score": "--score", "temp": "--temp",
              "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p", "seed": "--seed", "ctx_size": "--ctx-size",
              "form": "--format", "deterministic": "--deterministic", "parallel": "--parallel", "threads": "--threads",
              "gpu_layers": "--gpu-layers"},
    "train": {"student": "--student", "method": "--method", "epochs": "--epochs", "tokens": "--tokens",
              "batch_size": "--batch-size", "learning_rate": "--learning-rate", "alpha": "--alpha", "weighting": "--weighting",
              "average": "--average", "two_pass": "--two-pass", "mutual_information": "--mutual-information",
              "match": "--match", "formats": "--formats", "mentor": "--mentor", "mentor_share": "--mentor-share",
              "inherit": "--inherit", "states": "--states", "temperature": "--temperature", "factors": "--factors",
              "resample": "--resample", "no_rationales": "--no-rationales", "reworded": "--reworded", "rounds": "--rounds",
              "ood": "--ood", "general": "--general", "optimizer": "--optimizer", "layers": "--layers",
              "vocabulary": "--vocabulary", "from": "--from", "precision": "--precision", "seed": "--seed"},
    "export": {"layout": "--layout", "target": "--target", "vocab": "--vocab", "max_drop": "--max-drop"},
}


def stage(run: Path, name: str, manifest: dict[str, Any], taught: bool) -> str:
    """The line of a teach, train or export stage. `taught`: whether the run has a teach stage that gives the rows."""
    config = dict(manifest["config"])
    words: list[str] = []
    if name == "teach":
        words += _teacher(config.get("teacher"), manifest["inputs"])
        config["data"] = _place(config.get("data"))
        config["form"] = None if config.get("form") == "auto" else config.get("form")
        if "exemplars" in manifest["inputs"]:
            words += ["--exemplars", "PATH/exemplars.jsonl"]
    if name == "train":
        if not taught:
            words += ["--data", "PATH/rows", "--task", str(config.get("task"))]
        config["student"] = _student(config.get("student"))
        mentors = config.get("mentor") or []
        config["mentor"] = [f"PATH/{name}" for name in ([mentors] if isinstance(mentors, str) else mentors)]
        config["from"] = config.get("from") and _gguf(config["from"])
        config["two_pass"], config["no_rationales"] = (config.get(key) is False for key in ("shared", "rationales"))
        config |= {key: f"PATH/{key}" for key in ("ood", "general", "reworded") if key in manifest["inputs"]}
        config["formats"] = [f"{key}={_value(value)}" for key, value in (config.get("formats") or {}).items()]
    if name == "export":
        words.append(f"--{config['precision']}")
    for key, flag in _FLAGS[name].items():
        value = config.get(key)
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            for item in value if isinstance(value, list) else [value]:
                words += [flag, _value(item)]
    return _line(name, *words, "--run", _run(run))


def evaluation(run: Path, result: dict[str, Any], own_data: str | None) -> str:
    """The line of an eval result. `own_data`: what the run was taught from, which needs no flag."""
    words = [_subject(run, result["subject"], result["precision"])]
    if result["data"] != own_data:
        words += ["--data", str(_place(result["data"]))]
    if result["split"] != "all":
        words += ["--split", result["split"]]
    words += ["--limit", str(result["n"])]
    if result.get("compare"):
        words += ["--compare", _subject(run, result["compare"]["other"], "")]
    if result["precision"] == "gguf":
        words += ["--prompt", result["prompt"]] if result.get("prompt") else []
        words += ["--vote", str(result["vote"])] if result.get("vote", 1) > 1 else []
    return _line("eval", *words, "--run", _run(run))


def measurement(run: Path, result: dict[str, Any]) -> str:
    """The line of a bench result: its own, or one made from what an older result holds."""
    if result.get("command"):
        return result["command"]
    counts = sorted({entry["threads"] for entry in result["results"]})
    return _line("bench", _subject(run, result["subject"], ""), "--threads", ",".join(map(str, counts)), "--n",
                 str(result["results"][0]["n"]), "--run", _run(run))


def _line(*words: str) -> str:
    return " ".join(["edgedistill", *(shlex.quote(word) for word in words)])


def _run(run: Path) -> str:
    """The run as it was given, where that says nothing about the machine."""
    return f"runs/{run.resolve().name}" if run.is_absolute() or ".." in run.parts else run.as_posix()


def _value(value: Any) -> str:
    """A flag's value; whole numbers without a point, all digits of the others."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _subject(run: Path, name: str, precision: str) -> str:
    for folder in map("/".join, runs.PLACES):
        if name == runs.subject_name(run / folder):
            return f"{_run(run)}/{folder}"
    return _gguf(name) if precision == "gguf" or name in cards.names(cards.Teacher) else f"PATH/{name}"


def _teacher(name: Any, inputs: dict[str, Any]) -> list[str]:
    return ["--gguf", _gguf(name)] if inputs.get("teacher") else ["--url", "http://HOST:PORT", "--model", str(name)]


def _gguf(name: Any) -> str:
    return str(name) if name in cards.names(cards.Teacher) else f"PATH/{name}.gguf"


def _student(name: Any) -> str:
    return str(name) if name in cards.STUDENTS or "/" in str(name) else f"PATH/{name}"


def _place(name: Any) -> str | None:
    return name if name is None or str(name).startswith(("hf:", "builtin:")) else f"PATH/{name}"
