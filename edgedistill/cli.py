"""The command line: one thin function a verb. A verb's module is imported only when it runs."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from edgedistill import defaults
from edgedistill.errors import Error, UsageError
from edgedistill.progress import QUIET

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="From a local GGUF teacher to a tiny int8 ONNX student, measured on the device.",
                  epilog="First: edgedistill demo. Then: teach --gguf model.gguf, train --tiny, export --int8.")

Run = Annotated[str, typer.Option("--run", help="Run folder that the stages share.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result object as the last line on stdout.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="Map a column: input=question, label=meta.answer.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace this stage of the run.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: all cores).")]
Listing = Annotated[bool, typer.Option("--list", help="List the cards and end.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


@app.command()
def teach(
    gguf: Annotated[str | None, typer.Option("--gguf", help="Teacher: a GGUF file, a card, or hf:REPO:QUANT "
                                             f"(default: {defaults.TEACHER}).")] = None,
    url: Annotated[str | None, typer.Option(help="Instead of --gguf, a running OpenAI-compatible server: "
                                            "http://HOST:PORT (its key: $EDGEDISTILL_API_KEY).")] = None,
    model: Annotated[str | None, typer.Option(help="--url: which of the server's models (default: the first).")] = None,
    run: Run = defaults.RUN,
    task: Annotated[str, typer.Option(help="Task card, or a path to one.")] = defaults.TASK,
    data: Annotated[str | None, typer.Option(help="JSONL(.gz), CSV, Parquet, a folder of splits, hf:NAME, builtin:NAME "
                                             "(default: the card's).")] = None,
    column: Columns = None,
    prompt: Annotated[str | None, typer.Option(help="How to ask: few-shot, zero-shot, answer-first, similar, or one of the "
                                               "card's own (default: the card's).")] = None,
    exemplars: Annotated[str | None, typer.Option(help="Worked rows to take examples from: a file with rationales, or an "
                                                  "earlier run's corpus.jsonl.")] = None,
    compare_prompts: Annotated[bool, typer.Option("--compare-prompts", help="Measure all ways to ask on the dev rows and "
                                                  "end.")] = False,
    samples: Annotated[int, typer.Option(help="Rationales asked for each row, at most.")] = defaults.SAMPLES,
    enough: Annotated[int | None, typer.Option(help="Stop at a row once it has so many usable, different rationales.")] = None,
    hint: Annotated[bool, typer.Option("--hint", help="Rows without a usable rationale get one more try, told the "
                                       "label.")] = False,
    soft_targets: Annotated[int, typer.Option(help="Keep the K most likely tokens of each step with their "
                                              "probabilities.")] = 0,
    score: Annotated[bool, typer.Option("--score", help="--soft-targets of the rationales that the data have; writes no "
                                        "new ones.")] = False,
    limit: Annotated[int | None, typer.Option(help="Rows taught, from the first on (default: all; "
                                              f"{defaults.LIMIT} of the built-in task).")] = None,
    parallel: Annotated[str, typer.Option(help="Sequences decoded together; auto measures what pays.")] = "auto",
    temp: Annotated[float | None, typer.Option(help="0 is greedy (default: 0 for one sample, "
                                               f"{defaults.SAMPLED_TEMP} for several).")] = None,
    top_k: int = defaults.TOP_K, top_p: float = defaults.TOP_P, min_p: float = defaults.MIN_P,
    seed: Seed = defaults.SEED,
    ctx_size: Annotated[int | None, typer.Option(help="Longest prompt plus answer, in tokens (default: the model's).")] = None,
    gpu_layers: Annotated[int, typer.Option(help="Layers on the GPU; -1 is all.")] = 0,
    threads: Threads = None,
    form: Annotated[str | None, typer.Option("--format", help="chat or completion (default: as the model is).")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="A row's text does not depend on the rows beside it; "
                                                "slower.")] = False,
    api_price: Annotated[str | None, typer.Option(help="IN,OUT: an API's dollars a million tokens, for the ledger.")] = None,
    overwrite: Overwrite = False, as_json: Json = False, list_: Listing = False,
) -> None:
    """A GGUF teacher writes rationales and answers for the training rows; each is verified against the label."""
    if list_:
        return _list_cards("teacher", "task")
    if form not in (None, "chat", "completion"):
        raise UsageError(f"--format {form}: known are chat, completion")
    if parallel != "auto" and not parallel.isdecimal():
        raise UsageError(f"--parallel {parallel}: give a number or auto")
    try:
        price = tuple(map(float, api_price.split(","))) if api_price else None
        if price and len(price) != 2:
            raise ValueError
    except ValueError as error:
        raise UsageError(f"--api-price {api_price}: write it as 2.50,10 (input, output)") from error
    width = None if parallel == "auto" else int(parallel)
    shared: dict[str, Any] = dict(run=run, task=task, data=data, column=_columns(column), exemplars=exemplars, limit=limit,
                                  parallel=width, seed=seed, ctx_size=ctx_size, gpu_layers=gpu_layers, threads=threads,
                                  form=form, overwrite=overwrite)
    if compare_prompts:
        from edgedistill.teach.compare import compare_prompts as verb

        if url:
            raise UsageError("--compare-prompts needs the model itself; give --gguf")
        ignored = {"--samples": samples > 1, "--enough": enough, "--hint": hint, "--soft-targets": soft_targets,
                   "--score": score, "--temp": temp, "--deterministic": deterministic, "--api-price": price}
        if any(ignored.values()):
            flag = next(name for name, given in ignored.items() if given)
            raise UsageError(f"--compare-prompts asks greedily, once a row: leave {flag} out")
        return _show(verb(gguf, prompts=tuple(prompt.split(",")) if prompt else (), **shared), as_json)
    from edgedistill.teach import teach as verb

    _show(verb(gguf, url=url, model=model, prompt=prompt, samples=samples, enough=enough, hint=hint, soft_targets=soft_targets,
               score=score, temp=temp, top_k=top_k, top_p=top_p, min_p=min_p, deterministic=deterministic, api_price=price,
               **shared), as_json)


@app.command()
def train(
    student: Annotated[str | None, typer.Option(help="A student's name, a folder, a hub id, or carve.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help=f"{defaults.TINY} if the hub or its cache has it, else carve.")] = False,
    run: Run = defaults.RUN,
    method: Annotated[str, typer.Option(help="finetune, seq-kd, step-by-step, single-task, specialize, "
                                        "logit-kd, reparam or hybrid.")] = defaults.METHOD,
    task: Annotated[str | None, typer.Option(help="Task card for --data.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows for training without a teacher; their own rationales are used "
                                             "(--column rationale=NAME, stated=NAME for the answers they come to).")] = None,
    column: Columns = None,
    epochs: float = defaults.EPOCHS,
    tokens: Annotated[float | None, typer.Option(help="Train for so many tokens instead of --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions a step.")] = defaults.BATCH_SIZE,
    learning_rate: Annotated[float | None, typer.Option(help="Default by family: " + ", ".join(
        f"{family} {rate:g}" for family, rate in defaults.LEARNING_RATE.items())
        + f"; adafactor {defaults.ADAFACTOR_RATE:g} of each matrix's own size, 10 times that from random weights")] = None,
    alpha: Annotated[float, typer.Option(help="step-by-step: weight of the label's loss; logit-kd: of the label itself "
                                         "against the mentor.")] = defaults.ALPHA,
    weighting: Annotated[str, typer.Option(help="A part's loss is a mean by token or by sequence.")] = defaults.WEIGHTING,
    average: Annotated[bool, typer.Option("--average", help="Keep the mean of the weights along the training.")] = False,
    two_pass: Annotated[bool, typer.Option("--two-pass", help="step-by-step, hybrid: as published: an encoding for each "
                                           "target.")] = False,
    mutual_information: Annotated[float, typer.Option(help="step-by-step, hybrid: weight of the term that ties labels and "
                                                      "rationales (0.1 in its paper).")] = 0.0,
    match: Annotated[str | None, typer.Option(help="The teacher's texts by sample or by distribution (its soft "
                                              "targets).")] = None,
    formats: Annotated[list[str] | None, typer.Option("--formats", help="specialize: NAME=SHARE, of " + ", ".join(
        defaults.FORMATS) + ".")] = None,
    resample: Annotated[float | None, typer.Option(help="hybrid: share of draws with fresh numbers, of equations (default "
                                                   f"{defaults.RESAMPLE:g}).")] = None,
    rationales: Annotated[bool, typer.Option("--rationales/--no-rationales", help="hybrid: with rationales beside the "
                                             "labels.")] = True,
    reworded: Annotated[str | None, typer.Option(help="hybrid: a run whose teacher put the rows in other words (teach "
                                                 "--task svamp-reworded).")] = None,
    rounds: Annotated[int, typer.Option(help="hybrid: rounds of self-training on rows without a label.")] = defaults.ROUNDS,
    mentor: Annotated[list[str] | None, typer.Option(help="logit-kd, hybrid: a larger student's folder, of the same tokenizer; "
                                                     "given several times: their mean.")] = None,
    mentor_share: Annotated[float | None, typer.Option(help="hybrid: the mentor's share of the loss (default "
                                                       f"{defaults.MENTOR_SHARE:g}).")] = None,
    inherit: Annotated[str | None, typer.Option(help="hybrid: begin with the mentor's layers: spread over its depth, or its "
                                                "two ends.")] = None,
    states: Annotated[float, typer.Option(help="hybrid: weight of being like the mentor after each layer.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of the mentor's distribution.")] = defaults.TEMPERATURE,
    factors: Annotated[int, typer.Option(help="reparam: matrices of the linear chain in each FFN's place, 1 to 3.")
                       ] = defaults.FACTORS,
    ood: Annotated[str | None, typer.Option(help="Another data set whose dev rows are watched; its best checkpoint is kept "
                                            "too.")] = None,
    general: Annotated[str | None, typer.Option(help="A text file whose perplexity is watched.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw8bit, adamw or adafactor (default: " + ", ".join(
        f"{name} on {device}" for device, name in defaults.OPTIMIZER.items()) + ").")] = None,
    layers: Annotated[int | None, typer.Option(help=f"carve: layers kept (default {defaults.CARVE_LAYERS}).")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="Pieces kept, the task's own always (default: all; of a "
                                                   f"carved student {defaults.VOCABULARY}).")] = None,
    carve_from: Annotated[str, typer.Option("--from", help="carve: the GGUF file or card to cut from.")] = defaults.TEACHER,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16 (default: bf16 where the device has it).")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Padded tokens of a micro-batch; a step has as many as its "
                                                     "questions need.")] = None,
    gradient_checkpointing: Annotated[bool | None, typer.Option(help="Less memory, a third more time "
                                                                "(default: on a GPU).")] = None,
    vram: Annotated[float | None, typer.Option(min=0.1, help="GB: picks micro-batches and savers that fit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, try one step, train nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on or fail (going on is the default, beginning anew where "
                                         "there is nothing).")] = False,
    max_hours: Annotated[float | None, typer.Option(help="End with a checkpoint after so many hours.")] = None,
    report_to: Annotated[list[str] | None, typer.Option(help="The Trainer's own logs: tensorboard, wandb, ...")] = None,
    seed: Seed = defaults.SEED, threads: Threads = None,
    overwrite: Overwrite = False, as_json: Json = False, list_: Listing = False,
) -> None:
    """A student learns from the run's corpus; interrupted, the same command goes on from the last checkpoint."""
    if list_:
        return _list_students()
    from edgedistill.train import train as verb

    _show(verb(student, run=run, tiny=tiny, method=method, task=task, data=data, column=_columns(column), epochs=epochs,
               tokens=tokens, batch_size=batch_size, learning_rate=learning_rate, alpha=alpha, weighting=weighting,
               average=average, two_pass=two_pass, mutual_information=mutual_information, match=match,
               formats=_shares(formats), resample=resample, rationales=rationales, reworded=reworded, rounds=rounds,
               mentor=mentor, mentor_share=mentor_share, inherit=inherit, states=states, temperature=temperature,
               factors=factors, ood=ood, general=general, optimizer=optimizer, layers=layers, vocabulary=vocabulary,
               carve_from=carve_from, precision=precision, batch_tokens=batch_tokens,
               gradient_checkpointing=gradient_checkpointing, vram=vram, dry_run=dry_run, resume=resume, max_hours=max_hours,
               report_to=report_to, seed=seed, threads=threads, overwrite=overwrite), as_json)


@app.command("eval")
def evaluate(
    subject: Annotated[str | None, typer.Argument(help="Bundle, student folder, GGUF file or teacher card "
                                                  "(default: the run's).")] = None,
    run: Run = defaults.RUN,
    task: Annotated[str | None, typer.Option(help="Task card (default: the subject's own).")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to count on (default: the run's).")] = None,
    column: Columns = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test (default: test where there is one).")] = None,
    compare: Annotated[str | None, typer.Option(help="Another subject, for a paired test.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    prompt: Annotated[str | None, typer.Option(help="GGUF: how to ask, as in teach.")] = None,
    exemplars: Annotated[str | None, typer.Option(help="GGUF: worked rows to take examples from.")] = None,
    vote: Annotated[int, typer.Option(min=1, help="GGUF: the majority of so many samples.")] = 1,
    threads: Threads = None, as_json: Json = False,
) -> None:
    """Accuracy on a split with its 95 % interval; with --compare a paired test."""
    from edgedistill.evaluate import evaluate as verb

    _show(verb(subject, run=run, task=task, data=data, column=_columns(column), split=split, compare=compare, limit=limit,
               prompt=prompt, exemplars=exemplars, vote=vote, threads=threads), as_json)


@app.command()
def export(
    student: Annotated[str | None, typer.Argument(help="Student folder (default: the run's).")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and products (the default).")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="4-bit weights where one token goes through.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="No quantisation.")] = False,
    run: Run = defaults.RUN,
    target: Annotated[str, typer.Option(help="Device card, or a path to one.")] = defaults.TARGET,
    layout: Annotated[str, typer.Option(help="edge (for edgedistill run) or optimum (for ORTModelForSeq2SeqLM and "
                                        "ORTModelForCausalLM).")] = defaults.LAYOUT,
    vocab: Annotated[str, typer.Option(help="full, task (pieces of the run's rows and common ones) or how many.")] = "full",
    max_drop: Annotated[float | None, typer.Option(help="Points of dev accuracy that quantising may cost (default: "
                                                   + ", ".join(f"{name} {points:g}" for name, points in
                                                               defaults.MAX_DROP.items()) + ").")] = None,
    overwrite: Overwrite = False, as_json: Json = False, list_: Listing = False,
) -> None:
    """The student becomes an ONNX bundle, checked against torch; exit 3 when a gate says no."""
    if list_:
        return _list_cards("target")
    from edgedistill.export import export as verb

    asked = [name for name, given in (("int8", int8), ("int4", int4), ("fp32", fp32)) if given]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} exclude each other; give one")
    _show(verb(student, run=run, precision=asked[0] if asked else defaults.PRECISION, target=target, layout=layout,
               vocab=vocab, max_drop=max_drop, overwrite=overwrite), as_json)


@app.command()
def run(
    bundle: Annotated[str, typer.Argument(help="Bundle folder.")],
    text: Annotated[str | None, typer.Argument(help="The question.")] = None,
    file: Annotated[str | None, typer.Option(help="A file of rows instead.")] = None,
    column: Columns = None,
    explain: Annotated[bool, typer.Option("--explain", help="Decode the rationale too.")] = False,
    vote: Annotated[int, typer.Option(help="Samples whose most frequent value wins.")] = 1,
    abstain: Annotated[float, typer.Option(help="The confidence below which there is no answer.")] = 0.0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """A bundle answers on the device; neither torch nor transformers is needed."""
    from edgedistill.run import run as verb

    verb(bundle, text, file=file, column=_columns(column), explain=explain, vote=vote, abstain=abstain, as_json=as_json,
         threads=threads)


@app.command()
def bench(
    bundle: Annotated[list[str] | None, typer.Argument(help="Bundle folders (default: the run's).")] = None,
    run: Run = defaults.RUN,
    threads: Annotated[str | None, typer.Option(help="Thread counts, as 1,2,4 (default: 1 and all cores).")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to ask and count (default: the run's).")] = None,
    column: Columns = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test (default: dev).")] = None,
    input_tokens: Annotated[int | None, typer.Option(help="Force the input's length instead.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Force the output's length instead.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Timed rounds a thread count (default: each question once, at most "
                                          f"{defaults.BENCH_RUNS}).")] = None,
    against: Annotated[str | None, typer.Option(help="Peers in the same rounds: torch, optimum, ctranslate2, llama.cpp, and "
                                                "GGUF files or cards that do the task themselves; with commas.")] = None,
    student: Annotated[str | None, typer.Option(help="The folder that peers are made from (default: the run's).")] = None,
    peers_python: Annotated[str | None, typer.Option(help="An interpreter that has the peers' packages (default: this "
                                                     "one).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="End within a minute, but for slow peers: fewer rounds.")] = False,
    pack: Annotated[str | None, typer.Option(help="Write one file to carry to a device: python3 FILE measures there.")] = None,
    as_json: Json = False,
) -> None:
    """Latency, first token, tokens/s, load, memory, bytes, accuracy and the device's health, beside peers, in one run."""
    from edgedistill.bench import bench as verb

    try:
        counts = [int(part) for part in threads.split(",")] if threads else None
    except ValueError as error:
        raise UsageError(f"--threads {threads}: give counts as 1,2,4") from error
    _show(verb(bundle, run=run, threads=counts, data=data, column=_columns(column), split=split, input_tokens=input_tokens,
               output_tokens=output_tokens, n=n, against=[name for name in (against or "").split(",") if name], student=student,
               peers_python=peers_python, quick=quick, pack=pack), as_json)


@app.command()
def study(
    file: Annotated[str | None, typer.Argument(help="The study: a TOML file, as those in benchmarks/studies/.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Its folder (default: runs/ and the file's name).")] = None,
    max_hours: Annotated[float | None, typer.Option(help="End after so many hours, with a checkpoint; the same command goes "
                                                    "on.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan with its hours and run nothing.")] = False,
    verify: Annotated[str | None, typer.Option(help="A finished cell's JSON: run it again and compare; exit 3 when it is "
                                               "off.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew what was begun, or made with another "
                                            "configuration.")] = False,
    jobs: Annotated[int, typer.Option(help="Cells at once, in processes of their own that share the threads and the "
                                      "GPU.")] = 1,
    threads: Threads = None, as_json: Json = False,
) -> None:
    """Methods, students, teachers, data, shares, folds and seeds side by side, resumable, then tables with tests."""
    from edgedistill.study import study as verb

    _show(verb(file, run=run, max_hours=max_hours, dry_run=dry_run, verify=verify, overwrite=overwrite,
               threads=threads, jobs=jobs), as_json)


@app.command()
def report(
    runs: Annotated[list[str] | None, typer.Argument(help=f"Run folders (default: {defaults.RUN}); each is compared with the "
                                                     "first by a paired test.")] = None,
    out: Annotated[str | None, typer.Option(help="The page (default: report/index.html in the first run).")] = None,
    board: Annotated[str | None, typer.Option(help="Instead of a page, print the Markdown table of the bench results in this "
                                              "folder and below, each of them checked.")] = None,
) -> None:
    """One self-contained HTML page from the JSON that the verbs wrote."""
    if board is not None:
        from edgedistill.report.board import board as table

        if runs or out:
            raise UsageError("--board prints a table of a folder of bench results: leave runs and --out out")
        return typer.echo(table(board))
    from edgedistill.report import report as verb

    verb(runs or [defaults.RUN], out=out)


@app.command()
def demo(run: Annotated[str, typer.Option("--run", help="Run folder.")] = "runs/demo", as_json: Json = False) -> None:
    """The whole chain on the embedded teacher and task, offline, with its expected time and numbers."""
    from edgedistill.demo import demo as verb

    _show(verb(run=run), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do, what is missing, and the exact command that mends it."""
    from edgedistill.doctor import doctor as verb

    _show(verb(), as_json)


def main() -> None:
    """Entry point: errors become one line and an exit code; --debug anywhere shows the traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app(standalone_mode=False)
    except Error as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        # typer carries its own copy of click in some versions: its errors are told by what they can do.
        if type(error).__name__ == "Abort":
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
        if debug or not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        verb = f" {error.ctx.command.name}" if getattr(error, "ctx", None) and error.ctx.parent else ""
        print(message if "\n" in message else f"error: {message.rstrip('.?')}; see edgedistill{verb} --help", file=sys.stderr)
        sys.exit(2)


def _columns(items: list[str] | None) -> dict[str, str]:
    columns = {}
    for item in items or []:
        ours, equals, theirs = item.partition("=")
        if not (ours and equals and theirs):
            raise UsageError(f"--column {item}: write it as input=question")
        columns[ours] = theirs
    return columns


def _shares(items: list[str] | None) -> dict[str, float] | None:
    shares = {}
    for item in items or []:
        name, _, share = item.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UsageError(f"--formats {item}: write it as zero-shot=0.7") from None
    return shares or None


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json and not QUIET:
        print(json.dumps(result, ensure_ascii=False))


def _list_cards(*kinds: str) -> None:
    from edgedistill import cards

    for kind in kinds:
        typer.echo(f"{kind}s")
        card = {"teacher": cards.Teacher, "task": cards.Task, "target": cards.Target}[kind]
        for name in cards.names(card):
            typer.echo(f"  {name:22} {cards.load(card, name).title}")


def _list_students() -> None:
    from edgedistill import cards

    typer.echo("students")
    for name, place in cards.STUDENTS.items():
        kind, _, layers = place.partition(":")
        typer.echo(f"  {name:22} " + (f"{layers} layers of {defaults.TEACHER}, no hub needed" if layers else place))
