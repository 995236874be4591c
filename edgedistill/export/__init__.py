"""`export`: a student becomes a quantized ONNX bundle, checked against torch, or is refused.

The bundle's layout is the edge engine's, or optimum's: another form of the same graphs, behind the same gates.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from edgedistill import cards, defaults, machine, runs
from edgedistill.cards import Target
from edgedistill.edge import bundle, decide
from edgedistill.edge.format import PREFIXES
from edgedistill.errors import Error, GateError, UsageError, need
from edgedistill.export import gates
from edgedistill.progress import clock, say
from edgedistill.tasks import data as rows_

PRECISIONS = ("fp32", "int8", "int4")
LAYOUTS = ("edge", "optimum")


def export(
    student: str | None = None, *, run: str = defaults.RUN, precision: str = defaults.PRECISION,
    target: str = defaults.TARGET, layout: str = defaults.LAYOUT, vocab: str = "full", max_drop: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes `export/bundle/` from the run's student (or another folder) and returns the result object.

    `layout` "optimum" writes `export/optimum/` beside it, a stage of its own, which Hugging Face's runtime loads; a folder with
    an architecture that the graph writers do not know goes through optimum's own exporter there.

    Two gates: the fp32 graph must repeat torch's greedy tokens on at least 50 inputs; the quantized one may lose at
    most `max_drop` points of dev accuracy. Where too few tokens or answers stay the same, the sensitive products keep a
    higher precision: 8 bits instead of 4, fp32 activations instead of int8.
    `vocab` "task" (or a number of pieces) trims the vocabulary to what the run's rows and corpus use and the most common
    pieces; any text stays encodable. Raises `GateError` (exit 3, no bundle) when a gate says no.
    """
    need("torch", "export"), need("transformers", "export"), need("onnx", "export")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: known are {', '.join(LAYOUTS)}")
    card = cards.load(Target, target)
    max_drop = defaults.MAX_DROP.get(precision, 0.0) if max_drop is None else max_drop
    if vocab not in ("full", "task") and not (vocab.isdecimal() and int(vocab)):
        raise UsageError(f"--vocab {vocab}: give full, task or a number of pieces")
    trained = None
    if student is None:
        trained = runs.finished(run, "train")
        if not trained:
            raise UsageError(f"{run} has no finished train stage: run edgedistill train first, or give a student folder")
    folder = Path(student) if student else Path(run) / "train" / "student"
    if not (folder / "model.safetensors").is_file():
        raise UsageError(f"{folder} is no student folder: it has no model.safetensors")
    config = {"precision": precision, "target": card.name, "linear": card.linear, "encoder": card.encoder, "max_drop": max_drop,
              **({"vocab": vocab} if vocab != "full" else {}), **({"layout": layout} if layout != defaults.LAYOUT else {})}
    inputs = {"model": runs.sha256(folder / "model.safetensors"), "config": runs.sha256(folder / "config.json")}
    stage = runs.Stage(run, "export" if layout == "edge" else f"export/{layout}", config, inputs, overwrite)
    try:
        if stage.finished:
            say(f"export: {stage.path} is finished with this configuration; nothing to do")
            return stage.finished
        return _export(stage, folder, card, trained, run)
    finally:
        stage.close()


def _export(stage: runs.Stage, folder: Path, target: Target, trained: dict[str, Any] | None,
            run: str) -> dict[str, Any]:
    import torch
    import transformers

    from edgedistill.edge import Student as Edge
    from edgedistill.export import other
    from edgedistill.train.students import load

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(machine.cores())
    precision, max_drop = stage.config["precision"], stage.config["max_drop"]
    layout = stage.config.get("layout", defaults.LAYOUT)
    if layout == "optimum" and not other.known(folder):
        return other.export(stage, folder, gates.rows(run, None)[1])
    student = load(folder)
    if student.format is None:
        student.set_task(None)
    vocabulary = _trim(student, run, stage.config["vocab"]) if "vocab" in stage.config else None
    dev, texts = gates.rows(run, gates.task(student))
    say("export plan")
    say(f"  student   {student.parameters() / 1e6:.1f} M parameters, {student.family}, {len(student.tokenizer)} pieces")
    say(f"  bundle    {precision} for {target.name} ({target.linear}), default {target.threads} threads, {layout} layout")
    say(f"  gates     fp32 graph against torch on {len(texts)} inputs; "
        + (f"{precision} at most {max_drop:g} points under fp32 on {len(dev)} dev rows" if dev else
           "token agreement only (no labelled rows)"))
    if precision != "fp32" and "integer" in (target.linear, target.encoder) and machine.saturates():
        say("  kernels   this CPU has no VNNI instructions, and integer products lose accuracy on it: the gates may find more "
            f"loss than a CPU that {target.name} is meant for has")
    say(f"  time      about {clock(len(texts) * (3 if precision == 'int8' else 2) * student.parameters() / 1e9 + 15)} "
        "(estimate from the size)")

    reference = student.generate(texts, batch_size=8)
    fp32 = stage.path / "fp32.part"
    write(student, fp32, "fp32", target, (), None, layout)
    edge = Edge.load(fp32, machine.cores())
    exact = gates.tokens(edge, texts, "fp32")
    gates.identical(exact, reference, texts)
    ready, agreement, kept = fp32, 1.0, ()
    answers = gates.answered(edge, dev)
    scores = dict.fromkeys(("fp32", precision), answers.accuracy)
    feedback = _feedback(run, student) if precision == "int4" else None
    # First everything quantized; where that changes too many tokens or answers, the sensitive products go back.
    for attempt in defaults.KEEP_HIGH.get(precision, ()):
        folder = stage.path / f"{precision}.{len(attempt)}.part"
        write(student, folder, precision, target, attempt, feedback, layout)
        edge = Edge.load(folder, machine.cores())
        agree, its = gates.agreement(exact, gates.tokens(edge, texts, precision)), gates.answered(edge, dev)
        if ready is fp32 or (its.accuracy, agree) > (scores[precision], agreement):
            ready, kept, answers = folder, attempt, its
            agreement, scores[precision] = agree, its.accuracy
        if agreement >= defaults.MIN_AGREEMENT[precision] and gates.drop(scores, precision) <= max_drop:
            break
    if dev and gates.drop(scores, precision) > max_drop:
        raise GateError(f"{precision} loses {gates.drop(scores, precision):.1f} points of dev accuracy "
                        f"({100 * scores['fp32']:.1f} to {100 * scores[precision]:.1f} %, {len(dev)} rows), "
                        f"--max-drop allows {max_drop:g}; take another --target, --fp32 or a higher --max-drop")
    onnx_bytes = sum(p.stat().st_size for p in ready.iterdir() if p.suffix in bundle.ONNX)
    result = {
        **machine.origin("export"), "layout": layout, "precision": precision, "target": target.name, "linear": target.linear,
        "parameters": student.parameters(), "bytes": onnx_bytes,
        "tokenizer_bytes": (ready / "tokenizer.json").stat().st_size,
        "fp32_accuracy": scores["fp32"] if dev else None, "accuracy": scores[precision] if dev else None,
        "vocabulary": vocabulary and {key: value for key, value in vocabulary.items() if key != "map"},
        "accuracy_rows": len(dev), "token_agreement": agreement, "parity_inputs": len(texts), "kept_high": list(kept),
        "seconds": stage.seconds()}
    _describe(ready, result, student, trained, decide.fit(answers.confidences, answers.right), vocabulary)
    final = stage.path / "bundle" if layout == "edge" else stage.path
    stage.done(result, place(ready, final))
    shown = (f", dev accuracy {100 * scores['fp32']:.1f} % fp32, {100 * scores[precision]:.1f} % {precision}"
             if dev else "")
    shown += f", {', '.join(kept)} kept high" if kept else ""
    say(f"export: {onnx_bytes / 1e6:.1f} MB in {clock(result['seconds'])}{shown}, token agreement "
        f"{100 * agreement:.1f} %; {'bundle' if layout == 'edge' else 'model'} in {final}")
    return result


def place(ready: Path, final: Path) -> list[Path]:
    """Makes a finished `.part` folder `final`, or the content of `final` if it lies in it; removes the others beside it.

    Returns the files.
    """
    if final == ready.parent:
        files = [path.replace(final / path.name) for path in sorted(ready.iterdir())]
    else:
        shutil.rmtree(final, ignore_errors=True)
        ready.rename(final)
        files = sorted(final.iterdir())
    for part in ready.parent.glob("*.part"):
        shutil.rmtree(part)
    return files


def write(student: Any, folder: Path, precision: str, target: Target, keep_high: tuple[str, ...] = (),
          feedback: Any = None, layout: str = defaults.LAYOUT) -> None:
    """Writes the graphs, the weights, the tokenizer and the manifest of a bundle into an empty `folder`.

    Products whose names end with one of `keep_high` are kept high (linear.py); `feedback` rounds those in 4 bits (feedback.py).
    """
    from edgedistill.export import optimum

    shutil.rmtree(folder, ignore_errors=True)
    with runs.disk_errors(folder):
        folder.mkdir(parents=True)
        try:
            graph = (optimum.write if layout == "optimum" else _graphs)(
                student, folder, *_linears(precision, target, keep_high, feedback))
        except ValueError as error:
            raise Error(f"export: {error}") from error
        files = {p.name: {"bytes": p.stat().st_size, "sha256": bundle.digest(p)} for p in sorted(folder.iterdir())}
        runs.write_json(folder / bundle.MANIFEST, {
            "schema": 1, "kind": "bundle", "precision": precision, "target": target.name, "threads": target.threads,
            "graph": graph, "read_by_a_token": _read_by_a_token(folder), "format": student.format.to_dict(),
            "files": files})


def _graphs(student: Any, folder: Path, many: Any, one: Any) -> dict[str, Any]:
    """Writes the edge layout's graphs and the tokenizer; returns the manifest's entry for the engine."""
    from edgedistill.export import llama, t5
    from edgedistill.export.graph import Weights

    form = student.format
    longest = max(form.max_new_tokens(part) + len(form.opening(student.rust, part)) for part in PREFIXES)
    with closing(Weights(folder / "weights.bin")) as weights:
        if student.family == "t5":
            shape = t5.write(student.model, folder, many, one, weights, form.max_input_tokens, longest)
        else:
            shape = llama.write(student.model, folder, one, weights, form.max_input_tokens + longest)
    student.rust.save(str(folder / "tokenizer.json"))
    return {"kind": student.family, **shape}


def _read_by_a_token(folder: Path) -> int:
    """Bytes of the weights and scales that the products of one more token read: the floor of its time is to read them."""
    import onnx

    names = ("decoder.onnx", "decoder_with_past_model.onnx", "model.onnx")
    graph = onnx.load(next(folder / name for name in names if (folder / name).exists()), load_external_data=False).graph
    products = ("MatMul", "MatMulNBits", "MatMulInteger", "DequantizeLinear")
    read = {name for node in graph.node if node.op_type in products for name in node.input}
    return sum(int(entry.value) for each in graph.initializer if each.name in read
               for entry in each.external_data if entry.key == "length")


def _linears(precision: str, target: Target, keep_high: tuple[str, ...], feedback: Any) -> tuple[Any, Any]:
    """(products with many tokens at once, products with one). int4 leaves an encoder of integer products as fast as it is."""
    from edgedistill.export.linear import Linear

    if precision == "fp32":
        return Linear("fp32"), Linear("fp32")
    if precision == "int8":
        return Linear(target.encoder, 8, keep_high), Linear(target.linear, 8, keep_high)
    four = Linear("nbits", 4, keep_high, feedback)
    return Linear("integer", 8) if target.encoder == "integer" else four, four


def _describe(folder: Path, result: dict[str, Any], student: Any, trained: dict[str, Any] | None,
              calibration: dict[str, float] | None, vocabulary: dict[str, Any] | None) -> None:
    """Adds the numbers to the manifest and writes the bundle's README."""
    from edgedistill.export import optimum

    manifest = runs.read_json(folder / bundle.MANIFEST)
    keys = ("fp32_accuracy", "accuracy", "accuracy_rows", "token_agreement", "kept_high", "created", "commit", "versions")
    manifest |= {**{key: result[key] for key in keys}, "calibration": calibration}
    if vocabulary:
        manifest["vocabulary"] = vocabulary
    if trained:
        manifest["student"] = {k: trained["result"][k] for k in ("method", "student", "task", "parameters", "questions")}
    task = (manifest["format"]["task"] or {}).get("name")
    lines = [f"# edgedistill bundle: {task or 'text to text'}, {result['precision']} for {result['target']}", "",
             f"{result['bytes'] / 1e6:.1f} MB, {result['parameters'] / 1e6:.1f} M parameters. On the device:", ""]
    if result["layout"] == "optimum":
        lines += optimum.usage(student.format, student.rust)
    else:
        lines += ["    pip install edgedistill", "    edgedistill run . \"your question\"", ""]
    if result["accuracy"] is not None:
        lines.append(f"Dev accuracy {100 * result['fp32_accuracy']:.1f} % in fp32, {100 * result['accuracy']:.1f} % here "
                     f"({result['accuracy_rows']} rows); token agreement {100 * result['token_agreement']:.1f} %.")
        if result["layout"] == "optimum":
            lines.append("These are `edgedistill eval`'s answers: choices are scored, equations held to arithmetic, which "
                         "`generate` does not do.")
    runs.write_text(folder / "README.md", "\n".join(lines) + "\n")
    readme = folder / "README.md"
    manifest["files"]["README.md"] = {"bytes": readme.stat().st_size, "sha256": bundle.digest(readme)}
    runs.write_json(folder / bundle.MANIFEST, manifest)


def _trim(student: Any, run: str, vocab: str) -> dict[str, Any]:
    """{"full", "kept", "coverage", "map"}: pieces before and after, the share of questions that are cut as before (the test
    split's, for which nothing was kept; else dev's), the old id of each piece."""
    from edgedistill.teach import read_corpus
    from edgedistill.train.vocabulary import trim_student

    folder = Path(run) / "teach"
    splits = {p.stem: rows_.read_file(p) for p in (folder / "data").glob("*.jsonl")} if folder.is_dir() else {}
    if "train" not in splits:
        raise UsageError(f"--vocab {vocab} keeps the pieces of the run's rows, and {run} has none: teach there first")
    task, before, tokenizer = gates.task(student), student.model.config.vocab_size, student.rust
    asked = {name: [task.question(row) if task else row.input for row in rows] for name, rows in splits.items()}
    texts = [*PREFIXES.values(), *asked["train"], *asked.get("dev", []), *(row.label or "" for row in splits["train"])]
    if (folder / "corpus.jsonl").is_file():
        texts += [record[key] for record in read_corpus(run) for key in ("rationale", "answer") if record[key]]
    keep = trim_student(student, texts, defaults.VOCABULARY if vocab == "task" else int(vocab))
    others = asked.get("test") or asked.get("dev") or asked["train"]
    same = sum(tokenizer.encode(text).tokens == student.rust.encode(text).tokens for text in others)
    say(f"export: vocabulary trimmed from {before} to {len(keep)} pieces; {100 * same / len(others):.1f} % of {len(others)} "
        f"{'other ' if 'test' in asked else ''}questions are cut as before")
    return {"full": before, "kept": len(keep), "coverage": round(same / len(others), 4), "map": keep}


def _feedback(run: str, student: Any) -> Any:
    """Measured on training questions and the student's own answers; None without training rows."""
    from edgedistill.export.feedback import measured

    file = Path(run) / "teach" / "data" / "train.jsonl"
    rows = rows_.read_file(file)[: defaults.FEEDBACK_ROWS] if file.is_file() else []
    if not rows:
        return None
    task = gates.task(student)
    texts = [task.question(row) if task else row.input for row in rows]
    return measured(student, texts, student.generate(texts))
