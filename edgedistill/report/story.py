"""The sections of one run: what was taught, learned, counted and quantised. Each from one result file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgedistill.progress import clock
from edgedistill.report import commands
from edgedistill.report.page import Section, bars, command, intervals, key, p, percent, points, share_words, table
from edgedistill.report.plots import Axis, lines
from edgedistill.tasks.metrics import interval


def teach(run: Path, manifest: dict[str, Any]) -> Section:
    """What the teacher wrote, what of it can be used, and how good it is itself."""
    r = manifest["result"]
    counts = {"verified": r["verified"], **r["rejected"], "told the label": r.get("hints") or 0}
    counts["unlabelled"] = r["samples"] - sum(counts.values())
    counts = {name: n for name, n in counts.items() if n > 0}
    did = "read" if manifest["config"].get("score") else "wrote"  # --score: the data's own, for their soft targets
    body = p(f"{r['teacher']} ({r['licence']}) {did} {r['samples']} rationales for {r['rows']} rows in "
             f"{clock(r['seconds'])}: {r['prompt_tokens']} prompt tokens, {r['generated_tokens']} new ones. Rejected rows are "
             "kept with their verdict.")
    if r.get("accuracy") is not None and r.get("ci95"):
        body += p(f"{share_words(r['accuracy'], r['ci95'])} of its answers are right, with the 95 % interval: the ceiling of "
                  "what it can teach by itself.")
    if r.get("ledger"):
        found = r["ledger"]
        dropped = "; ".join(f"{count} because {reason}" for reason, count in found["dropped"].items()) or "none"
        cost = f" An API would have charged {found['api_dollars']:.2f} dollars." if found.get("api_dollars") is not None else ""
        body += p(f"The ledger: {found['rows_usable']} of {found['rows']} rows have a usable rationale "
                  f"({found['rationales']} in all). Dropped: {dropped}.{cost}")
    body += bars("Samples by verdict", [(name, str(n), [(2 if name in ("verified", "unlabelled") else 4, n)])
                                        for name, n in counts.items()])
    return Section("What the teacher wrote", body + command(commands.stage(run, "teach", manifest, True)))


def train(run: Path, manifest: dict[str, Any], taught: bool) -> Section:
    """The training's settings, its losses and the dev accuracy by step."""
    r = manifest["result"]
    body = p(f"{r['student']}, {r['parameters'] / 1e6:.1f} M parameters, {r['method']} on {r['questions']} questions "
             f"({r['with_rationale']} with a rationale), {r['steps']} steps in {clock(r['seconds'])}, {r['optimizer']}, "
             f"{r['dtype']}, learning rate {r['learning_rate']:g}. The checkpoint was chosen on dev rows.")
    steps = Axis("step", 0, max([1, r["steps"], *(entry["step"] for entry in [*r["losses"], *r["dev"]])]))
    losses = {name.replace("_", " "): found for name in ("label_loss", "rationale_loss")
              if (found := _curve(r["losses"], name))}
    if not losses and (found := _curve(r["losses"], "loss")):
        losses = {"loss": found}
    drawn = ""
    if losses:
        values = [value for found in losses.values() for _, value in found]
        words = "; ".join(f"{name} from {found[0][1]:.2f} to {found[-1][1]:.2f}" for name, found in losses.items())
        drawn += (f"<figure>{key(list(losses))}"
                  + lines(f"Training loss by step: {words}.", steps, Axis("loss", min(0, *values), 1.05 * max(0, *values) or 1),
                          list(enumerate(losses.values()))) + "</figure>")
    if r["dev"]:
        best = r.get("best_dev_accuracy") or max(entry["accuracy"] for entry in r["dev"])
        scores = [(entry["step"], 100 * entry["accuracy"]) for entry in r["dev"]]
        words = f"Dev accuracy by step: from {scores[0][1]:.1f} % to {scores[-1][1]:.1f} %, at best {percent(best)}."
        drawn += (f"<figure>{key(['dev accuracy'], [2])}"
                  + lines(words, steps, Axis("right, %", 0, 100), [(2, scores)], dots=True) + "</figure>")
    return Section("What the student learned",
                   f"{body}<div class=\"pair\">{drawn}</div>" + command(commands.stage(run, "train", manifest, taught)))


def _curve(entries: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) where there is one; a training that diverged has none from there on."""
    return [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None and math.isfinite(entry[name])]


def evaluate(run: Path, results: list[dict[str, Any]], taught: dict[str, Any] | None) -> Section:
    """Accuracy with intervals, of all that was counted; the teacher's own beside it."""
    rows = []
    if taught and taught.get("accuracy") is not None and taught.get("ci95"):
        rows.append((f"the teacher {taught['teacher']} on the {taught['rows']} taught rows", 4, taught["accuracy"],
                     taught["ci95"]))
    names = [f"{r['subject']} ({r['precision']}) on {r['n']} rows of {r['data']}, {r['split']}" for r in results]
    rows += [(name, 4 if r["precision"] == "gguf" else 0, r["accuracy"], r["ci95"])
             for name, r in zip(names, results, strict=True)]
    body = intervals("Share of right answers with its 95 % interval; grey: a teacher, the ceiling", rows)
    tested = [r for r in results if r.get("compare")]
    if tested:
        body += p("Paired tests on the same rows (McNemar's exact p, bootstrap interval):") + table("Paired tests", {
            "subject": [r["subject"] for r in tested], "minus": [r["compare"]["other"] for r in tested],
            "difference": [points(r["compare"]) for r in tested]})
    own = taught["data"] if taught else None
    return Section("How often it is right", body + command(*dict.fromkeys(commands.evaluation(run, r, own) for r in results)))


def export(run: Path, manifest: dict[str, Any]) -> Section:
    """What quantising cost, and what the gate allows."""
    r, allowed = manifest["result"], manifest["config"].get("max_drop")
    body = p(f"{r['bytes'] / 1e6:.1f} MB of ONNX for {r['parameters'] / 1e6:.1f} M parameters (target {r['target']}). The fp32 "
             f"graph gives torch's greedy tokens on all of {r['parity_inputs']} inputs; {percent(r['token_agreement'])} of the "
             f"{r['precision']} tokens agree with it. Left in higher precision: {', '.join(r['kept_high']) or 'nothing'}.")
    if r.get("accuracy") is not None and r.get("fp32_accuracy") is not None and r["accuracy_rows"]:
        n = r["accuracy_rows"]
        cost = 100 * (r["fp32_accuracy"] - r["accuracy"])
        gate = f" The gate allows {allowed:g}." if allowed is not None else ""
        lost = f"lost {cost:.1f} points" if cost > 0.05 else f"gained {-cost:.1f} points" if cost < -0.05 else "lost nothing"
        body += p(f"{r['precision']} {lost} of dev accuracy.{gate}")
        scores = dict.fromkeys([("fp32", r["fp32_accuracy"]), (r["precision"], r["accuracy"])])
        body += intervals(f"Share of right answers on {n} dev rows with its 95 % interval",
                          [(name, 0, share, interval(round(share * n), n)) for name, share in scores])
    layout = " in optimum's layout" if r.get("layout") == "optimum" else ""
    return Section(f"What quantising cost{layout}", body + command(commands.stage(run, "export", manifest, True)))
