"""The README's figures, made from the result files. `python benchmarks/tables.py` writes them into README.md.

A test holds the README to what this script makes, so that no figure there is typed by hand.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from edgedistill.report.board import board as table_of
from edgedistill.study.summary import elsewhere
from edgedistill.tasks.metrics import paired

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def demo() -> str:
    """What the demo took and gave, from `results/demo.json`; and on a slower machine, from `demo-without-avx512.json`."""
    r, slow = _read("demo.json"), _read("demo-without-avx512.json")
    best, its = (min(found["latency"], key=lambda entry: entry["p50_ms"]) for found in (r, slow))
    machine = r["machine"]
    return (
        f"takes {r['seconds'] / 60:.1f} minutes on {machine['cores']} cores of an {machine['cpu']} after the install. "
        f"SmolLM2-135M teaches {r['rows']} built-in word problems ({r['teacher_verified']} of its answers are right); a "
        f"student of {r['parameters'] / 1e6:.0f} M parameters learns their labels and its verified rationales. "
        f"On {r['test_rows']} problems of templates that neither saw: "
        f"**teacher {_share(r['teacher_accuracy'], r['teacher_ci95'])}, student "
        f"{_share(r['student_accuracy'], r['student_ci95'])}**; {r['bytes'] / 1e6:.0f} MB int8, {best['p50_ms']:.0f} ms a "
        f"question (p50, {best['threads']} threads). [benchmarks/results/demo.json](benchmarks/results/demo.json). On "
        f"{slow['machine']['cores']} cores without AVX-512 and bf16: {slow['seconds'] / 60:.0f} minutes beside other work, "
        f"student {_share(slow['student_accuracy'], slow['student_ci95'])}, {its['p50_ms']:.0f} ms "
        "([result](benchmarks/results/demo-without-avx512.json))")


def svamp() -> str:
    """SVAMP, 200 rows taught by qwen2.5-coder-1.5b, from `results/svamp-chain/`."""
    teach = _read("svamp-chain/teach.json")
    bundles = {m: _json(next((RESULTS / "svamp-chain").glob(f"{m}_eval_*bundle*.json"))) for m in ("finetune", "step-by-step")}
    right = {m: [p["correct"] for p in r["predictions"]] for m, r in bundles.items()}
    test = paired(right["step-by-step"], right["finetune"])
    lines = [
        f"SVAMP, {teach['teacher']} teaching {teach['rows']} training rows ({teach['verified']} verified, "
        f"{100 * teach['accuracy']:.1f} % right, {_minutes(teach['seconds'])} with other work on the machine), SmolLM2-135M "
        "with a trimmed vocabulary learning the same rows by two methods, one seed; accuracy on all 200 test rows with "
        f"95 % intervals. `step-by-step` minus `finetune`, int8: {100 * test['difference']:+.1f} points "
        f"({100 * test['ci95'][0]:+.1f} to {100 * test['ci95'][1]:+.1f}, McNemar p = {test['p']:.2f}) "
        "([script](benchmarks/svamp_chain.py), [result files](benchmarks/results/svamp-chain)):", "",
        "| method | int8 | torch fp32 | int8 minus fp32 | token agreement (dev) | MB | p50, 1 / 2 threads | train | export |",
        "|---|---|---|---|---|---|---|---|---|"]
    for method in ("finetune", "step-by-step"):
        train, export = (_read(f"svamp-chain/{method}_{stage}.json") for stage in ("train", "export"))
        evals = [_json(path) for path in sorted((RESULTS / "svamp-chain").glob(f"{method}_eval_*.json"))]
        int8 = next(e for e in evals if e["compare"])
        fp32 = next(e for e in evals if not e["compare"])
        bench = _json(next((RESULTS / "svamp-chain").glob(f"{method}_bench_*.json")))["results"]
        drop = int8["compare"]
        lines.append(
            f"| `{method}` | {_share(int8['accuracy'], int8['ci95'])} | {_share(fp32['accuracy'], fp32['ci95'])} | "
            f"{100 * drop['difference']:+.1f} points | {100 * export['token_agreement']:.1f} % | {export['bytes'] / 1e6:.1f} | "
            f"{' / '.join(str(round(e['p50_ms'])) for e in bench)} ms | "
            f"{_minutes(train['seconds'])} | {_minutes(export['seconds'])} |")
    return "\n".join(lines)


def teach() -> str:
    """What the teaching engine is worth, from `results/teach-speed/`, `teach-soft.json` and `teacher/`."""
    speed = {path.stem: _json(path) for path in sorted((RESULTS / "teach-speed").glob("*.json"), reverse=True)}
    soft = _read("teach-soft.json")
    lines = ["Rows a second against a loop over llama-cpp-python's `Llama.create_completion` and distilabel's llama.cpp path: "
             "same SVAMP prompts, sampling and threads, medians of three interleaved blocks "
             "([script](benchmarks/teach_speed.py), [result files](benchmarks/results/teach-speed))", "",
             "| teacher | samples a row | over the loop | over distilabel |", "|---|---|---|---|"]
    for model, result in speed.items():
        for samples in (1, 4):
            cells = [result["ratios"].get(f"over {other}, {samples} a row") for other in ("loop", "distilabel")]
            lines.append(f"| {model} | {samples} | " + " | ".join(
                f"{c['median']:.2f}x ({c['min']:.2f} to {c['max']:.2f})" if c else "not measured" for c in cells) + " |")
    rows = next(iter(speed.values()))["rows_of_a_block"]
    lines[0] += f" of {rows} rows:"
    rates = ", ".join(f"{100 * rate['median_ratio']:.0f} % ({model})" for model, rate in soft["rates"].items())
    lines += ["", (
        f"With `--soft-targets {soft['k']}` the rate is {rates} of that without, a token takes "
        f"{soft['sizes'][1]['bytes_a_token']:.0f} bytes, and peak memory with 1,000 rows is "
        f"{100 * (soft['peak_of_1000_over_100'] - 1):+.1f} % of that with 100 "
        "([script](benchmarks/teach_soft.py), [result](benchmarks/results/teach-soft.json))."), "",
              "What qwen2.5-coder-1.5b itself answers, the ceiling of what it can teach alone; SVAMP's prompt chosen on its "
              "dev rows ([script](benchmarks/teacher_accuracy.py), [result files](benchmarks/results/teacher)):", "",
              "| rows | prompt | right |", "|---|---|---|"]
    for path in sorted((RESULTS / "teacher").glob("*.json")):
        result = _json(path)
        if result["kind"] == "eval":
            vote = f", majority of {result['vote']} samples" if result["vote"] > 1 else ""
            lines.append(f"| {result['n']} of {path.stem.split('_')[0]}, {result['split']} | {result['prompt']}{vote} | "
                         f"{_share(result['accuracy'], result['ci95'])} |")
    return "\n".join(lines)


def train() -> str:
    """What the trainer is worth, from `results/train-speed/`, `train-memory-cpu.json` and `t5-wordmath.json`."""
    speed = {path.stem: _json(path) for path in sorted((RESULTS / "train-speed").glob("*.json"), reverse=True)}
    lines = ["`step-by-step` against the published recipe (two passes a question, padded to the longest, all logits, AdamW, "
             "through transformers' Trainer) on the same rows, student, batch and precision "
             "([script](benchmarks/train_speed.py), [result files](benchmarks/results/train-speed)):", "",
             "| student | examples a second | published | ratio | peak memory |", "|---|---|---|---|---|"]
    for name, r in speed.items():
        rate, ratio = r["examples_per_s"], r["speed_ratio"]
        lines.append(f"| {name}, {r['details']['edgedistill']['parameters'] / 1e6:.0f} M | {rate['edgedistill']:.1f} | "
                     f"{rate['published']:.1f} | {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) | "
                     f"{100 * r['memory_ratio']:.0f} % |")
    if (RESULTS / "train-memory-cpu.json").is_file():
        memory = _read("train-memory-cpu.json")
        errors = sorted(abs(100 * entry["error"]) for entry in memory["configurations"])
        near = [error for error in errors if error <= 15]
        lines += ["", f"The peak memory that `train --dry-run` predicts is within {near[-1]:.0f} % of the measured one in "
                  f"{len(near)} of {len(errors)} configurations"
                  + (f", {errors[-1]:.0f} % off in the worst" if len(near) < len(errors) else "")
                  + " ([script](benchmarks/train_memory.py), [result](benchmarks/results/train-memory-cpu.json))."]
    if (RESULTS / "train-memory-cuda.json").is_file():
        memory = _read("train-memory-cuda.json")
        gpu, measured = memory["machine"]["gpu"], len(memory["configurations"])
        lines[-1] += (f" On an {gpu} {measured} of {memory['planned']} were measured, all within "
                      f"{100 * memory['largest_error']:.0f} % ([result](benchmarks/results/train-memory-cuda.json)).")
    if (RESULTS / "answers-speed.json").is_file():
        made = _read("answers-speed.json")
        lines += ["", f"Its dev rows are answered {made['together']} side by side, who has ended making room: "
                  f"{made['questions']} of GSM8K's questions, {made['tokens']:,} tokens by {made['parameters'] / 1e6:.0f} M "
                  f"parameters, take {statistics.median(made['seconds']['own']):.0f} s on {made['machine']['cores']} cores, "
                  f"**{made['times_as_fast']:.1f} times as fast** as transformers' padded batches, the same tokens "
                  "([script](benchmarks/answers_speed.py), [result](benchmarks/results/answers-speed.json))."]
    if (RESULTS / "align-mass.json").is_file():
        aligned = _read("align-mass.json")
        lines += ["", f"How much of {aligned['teacher']}'s probability on {aligned['samples']} rationales reaches a student "
                  "with other pieces: " + "; ".join(
                      f"{name} {100 * ways['recurrence']['mass']:.1f} % by the published recurrence, "
                      f"{100 * ways['spans']['mass']:.1f} % by spans" for name, ways in aligned["students"].items())
                  + " ([script](benchmarks/align_mass.py), [result](benchmarks/results/align-mass.json))."]
    if (RESULTS / "t5-wordmath.json").is_file():
        t5 = _read("t5-wordmath.json")
        lines += ["", f"A T5 of {t5['parameters'] / 1e6:.0f} M parameters learns the built-in problems from nothing in "
                  f"{_minutes(t5['seconds']['total'])} on {t5['machine']['cores']} cores: "
                  f"{_share(t5['known']['accuracy'], t5['known']['ci95'])} with new numbers and names, "
                  f"{_share(t5['unseen']['accuracy'], t5['unseen']['ci95_templates'])} of templates that it never saw "
                  "([script](benchmarks/t5_wordmath.py), [result](benchmarks/results/t5-wordmath.json))."]
    if (RESULTS / "wordmath-pretrained.json").is_file():
        known = _read("wordmath-pretrained.json")
        lines[-1] += (f" A pretrained student of {known['parameters'] / 1e6:.0f} M has "
                      f"{_share(known['known']['accuracy'], known['known']['ci95'])} and "
                      f"{_share(known['unseen']['accuracy'], known['unseen']['ci95_templates'])} after {known['rows']:,} such "
                      f"rows instead of {t5['rows']:,} ([result](benchmarks/results/wordmath-pretrained.json)).")
    return "\n".join(lines)


def methods() -> str:
    """The methods at equal trained tokens on SVAMP, from `results/svamp-methods/`."""
    folder = RESULTS / "svamp-methods"
    tests = {path.stem.removesuffix("_test"): _json(path) for path in folder.glob("*_test.json")}
    if not tests:
        return ""
    trained = {name: _json(folder / f"{name}_train.json") for name in tests}
    lines = ["SVAMP's 720 training rows with PaLM's rationales, SmolLM2-135M (and 16 of its 30 layers), one seed, the tokens "
             "of five epochs of `finetune` for every method; checkpoint by the 80 dev rows, the 200 test rows read once "
             "([study](benchmarks/studies/svamp-methods.toml), [result files](benchmarks/results/svamp-methods)):", "",
             "| student | method | test | minus `finetune` | p | best dev | epochs |",
             "|---|---|---|---|---|---|---|"]
    for name in sorted(tests, key=lambda name: (name.endswith("-16"), -tests[name]["accuracy"])):
        test, made = tests[name], trained[name]
        other = None if name.startswith("finetune") else test["compare"]
        low, high = (100 * x for x in other["ci95"]) if other else (0, 0)
        lines.append(
            f"| {made['parameters'] / 1e6:.0f} M | `{name.removesuffix('-16')}` | {_share(test['accuracy'], test['ci95'])} | "
            + (f"{100 * other['difference']:+.1f} ({low:+.1f} to {high:+.1f}) | {other['p']:.2g}" if other else "|")
            + f" | {100 * made['best_dev_accuracy']:.1f} % | {made['epochs']:.1f} |")
    return "\n".join(lines)


def studies() -> str:
    """What the studies that were run say so far, from `results/studies/`."""
    lines = []
    for path in sorted((RESULTS / "studies").glob("*/study.json")):
        found, name = _json(path), path.parent.name
        baseline = ", ".join(dict.fromkeys(f"`{e['against']['baseline']}`" for e in found["entries"] if e["against"]))
        share = f"{found['done']} of " if found["done"] < found["planned"] else ""
        lines += [f"{found['title']}: {share}{found['planned']} cells{' so far' if share else ''} "
                  f"([study](benchmarks/studies/{name}.toml), [result files](benchmarks/results/studies/{name})):", "",
                  f"| data | student | method | labels | tokens | dev | right | minus {baseline or 'baseline'} | p (Holm) |",
                  "|---|---|---|---|---|---|---|---|---|"]
        for e in sorted(found["entries"], key=lambda e: (e["data"], e["student"], -e["labels"], -e["dev_accuracy"])):
            other = e["against"]
            low, high = (100 * x for x in other["ci95"]) if other else (0, 0)
            lines.append(
                f"| {e['data']}{', on ' + e['test'] if e['test'] != e['data'] else ''} | "
                f"{e['student']}, {e['parameters'] / 1e6:.0f} M | `{e['method']}` | {100 * e['labels']:g} % | "
                f"{e['tokens'] / 1e6:.1f} M | "
                f"{100 * e['dev_accuracy']:.1f} % | {_share(e['accuracy'], e['ci95'])} of {e['n']} | "
                + (f"{100 * other['difference']:+.1f} ({low:+.1f} to {high:+.1f}) | {other['p']:.2g} ({other['p_holm']:.2g})"
                   if other else "|") + " |")
        if found.get("elsewhere"):
            lines += ["", "What it gained by epoch, and what that cost elsewhere; each rule chooses the checkpoint that is "
                      "best on its dev rows (the tests of the second are those `-ood`):", "",
                      *elsewhere(found)]
        lines.append("")
    if (path := RESULTS / "equal-tokens.json").is_file():
        lines += ["The hybrid that is best by its dev rows against each other method on as many trained tokens, a mentor's "
                  "own training not counted; p by Holm's correction for all of them ([script](benchmarks/equal_tokens.py), "
                  "[result](benchmarks/results/equal-tokens.json)):", "",
                  "| student | tokens | hybrid | right | other | right | difference | p (Holm) |",
                  "|---|---|---|---|---|---|---|---|"]
        for e in _json(path)["entries"]:
            other = e["hybrid_minus_it"]
            low, high = (100 * x for x in other["ci95"])
            lines.append(f"| {e['student']} | {e['tokens'] / 1e6:.1f} M | `{e['hybrid']}` | "
                         f"{100 * e['accuracy_of_hybrid']:.1f} % | `{e['method']}` | {100 * e['accuracy']:.1f} % | "
                         f"{100 * other['difference']:+.1f} ({low:+.1f} to {high:+.1f}) | {e['p_holm']:.2g} |")
        lines.append("")
    if (path := RESULTS / "quarter-labels.json").is_file():
        found = {(e["method"], e["labels"]): e for e in _json(path)["entries"]}
        bases = {"finetune": "on a GPU in bf16", "finetune-fp32": "in fp32", "finetune-again": "on a CPU in fp32"}
        its = {name: found[name, 1.0] for name in bases if (name, 1.0) in found}
        lines += ["With a quarter of the labels and a local teacher's answers to the other questions, against `finetune` on "
                  "all labels, on the rows that both have answered ([script](benchmarks/quarter_labels.py), "
                  "[result](benchmarks/results/quarter-labels.json)):", "", "| method | right | " + " | ".join(
                      f"minus `finetune` {where} ({100 * its[name]['accuracy']:.1f} %, {its[name]['cells']} cells)"
                      for name, where in bases.items() if name in its) + " |", "|---" * (2 + len(its)) + "|"]
        for (name, labels), entry in found.items():
            if labels < 1:
                told = [f"{100 * other['difference']:+.1f} ({100 * other['ci95'][0]:+.1f} to {100 * other['ci95'][1]:+.1f})"
                        for other in (entry["minus"][base] for base in its)]
                lines.append(f"| `{name}` | {_share(entry['accuracy'], entry['ci95'])} | {' | '.join(told)} |")
        lines.append("")
    if (path := RESULTS / "chain-int4.json").is_file():
        found = _json(path)
        its, megabytes = found["int4"], [size / 1e6 for size in found["bytes"]]
        same = found["fp32"][f"{found['student']} {found['method']}"]
        large = found["fp32"]["smollm2-135m hybrid-numbers-long"]
        lost = same["int4_minus_it"]
        lines += [f"`{found['method']}`'s students of 16 layers as int4 bundles of {min(megabytes):.1f} to "
                  f"{max(megabytes):.1f} MB: {_share(its['accuracy'], its['ci95'])} of {its['n']}, "
                  f"{100 * lost['difference']:+.1f} points ({100 * lost['ci95'][0]:+.1f} to {100 * lost['ci95'][1]:+.1f}, "
                  f"p = {lost['p']:.2g}) beside themselves in fp32, **{100 * large['kept']:.0f} %** of the "
                  f"{100 * large['accuracy']:.1f} % that the best students of 30 layers have in fp32 "
                  "([script](benchmarks/chain_int4.py), [result](benchmarks/results/chain-int4.json)).", ""]
    if (path := RESULTS / "svamp-plus.json").is_file():
        found = _json(path)
        rows, test, alone, more = found["rows"], found["test"], found["finetune"], found["minus_finetune"]
        lines += [f"With {rows['asdiv']:,} problems of ASDiv and {rows['multiarith']} of MultiArith beside SVAMP's "
                  f"{rows['svamp']}, `hybrid` without rationales brings {found['train']['parameters'] / 1e6:.0f} M parameters "
                  f"to {_share(test['accuracy'], test['ci95'])} of SVAMP's {test['n']} test rows, with "
                  f"{found['tokens']:,.0f} tokens in {found['train']['seconds'] / 60:.0f} min on {found['machine']['cores']} "
                  f"cores: {100 * more['difference']:+.1f} points ({100 * more['ci95'][0]:+.1f} to {100 * more['ci95'][1]:+.1f}"
                  f", p = {more['p']:.2g}) beside `finetune` on SVAMP's alone with five epochs, "
                  f"{_share(alone['accuracy'], alone['ci95'])}; what part of it is the rows', the tokens' or the fresh "
                  "numbers' was not taken apart ([script](benchmarks/svamp_plus.py), "
                  "[result](benchmarks/results/svamp-plus.json)).", ""]
    if (path := RESULTS / "study-faults.json").is_file():
        found = _json(path)
        faults = found["faults"]
        lines += [f"A study of {found['cells']} tiny cells, killed {faults['killed']} times, with a full disk {faults['full']} "
                  f"times and {faults['cut'] + faults['changed']} of its result files damaged, ends with the answers of an "
                  "undisturbed one, each row counted once ([script](benchmarks/study_faults.py), "
                  "[result](benchmarks/results/study-faults.json)).", ""]
    return "\n".join(lines).rstrip()


def edge() -> str:
    """The engine beside its peers, from `results/edge-speed/`, `edge-exact/` and `bundle-fuzz.json`."""
    lines = []
    for path in sorted(RESULTS.glob("edge-speed*/*.json"), key=lambda p: (p.stem, -len(p.parent.name)), reverse=True):
        r = _json(path)
        if r["threads"] != 2:
            continue
        outputs = list(r["results"][0]["ms"])
        lines += [f"{r['student']}, {r['input_tokens']} input tokens, {r['threads']} thread{'s' if r['threads'] > 1 else ''}, "
                  f"target `{r['target']}`, medians of {r['rounds']} requests taken in turns "
                  f"([script](benchmarks/edge_speed.py), "
                  f"[result](benchmarks/results/{path.relative_to(RESULTS).as_posix()})):", "",
                  f"| engine | vocabulary | {' | '.join(f'ms for {n}' for n in outputs)} | ms a token (floor) | MB | "
                  "serving MB | load ms |", "|---|---|" + "---|" * (len(outputs) + 4)]
        for e in r["results"]:
            times = " | ".join(f"{e['ms'][n]:.1f}" for n in outputs)
            lines.append(f"| {e['engine']} | {e['vocabulary']} | {times} | "
                         f"{e['token_ms']:.2f}" + (f" ({e['floor_ms']:.2f})" if "floor_ms" in e else "")
                         + f" | {e['bytes'] / 1e6:.1f} | {e['serving_mb']:.0f} | {e['load_ms']:.0f} |")
        lines.append("")
    lines += ["`ms for 4`: a request with 4 tokens of output. The floor: the bytes of a token's weights, read by as many "
              "threads in the same rounds. Each engine at the best of its own settings.", ""]
    for path in sorted((RESULTS / "edge-exact").glob("*.json")):
        r = _json(path)
        lines += [f"What quantising costs the `{r['run']}` student on SVAMP's {r['rows']} test rows, target `{r['target']}` "
                  f"([script](benchmarks/edge_exact.py), [result](benchmarks/results/edge-exact/{path.name})):", "",
                  "| precision | right | minus torch | token agreement | MB |", "|---|---|---|---|---|"]
        for e in r["results"]:
            if "agreement" in e:
                lines.append(f"| {e['precision']} | {_share(e['accuracy'], e['ci95'])} | "
                             f"{100 * e['minus_torch']['difference']:+.1f} points | {100 * e['agreement']:.1f} % | "
                             f"{e['bytes'] / 1e6:.1f} |")
            elif "refused" in e:
                lines.append(f"| {e['precision']} | refused by the gate | | | |")
            else:
                lines.append(f"| {e['precision']} | {_share(e['accuracy'], e['ci95'])} | | | |")
        lines.append("")
    if (RESULTS / "bundle-fuzz.json").is_file():
        r = _read("bundle-fuzz.json")
        lines.append(f"Of {r['cases']:,} damaged or forged bundles, each opened and asked in a process of its own, "
                     f"{len(r['failures'])} crashed, hung, raised or changed another file "
                     "([script](benchmarks/bundle_fuzz.py), [result](benchmarks/results/bundle-fuzz.json)).")
    return "\n".join(lines).strip()


def trust() -> str:
    """Whether the bench agrees with itself, from `results/bench-trust.json`."""
    r = _read("bench-trust.json")
    slowed, equal = r["slowed"], r["equal"]
    return (f"{len(r['benches'])} benches of one bundle agree within {100 * r['ratio_spread']:.1f} % in the ratio of their "
            f"median to the probe's ({100 * r['p50_spread']:.1f} % in the median itself); {100 * slowed['by']:.0f} % more time "
            f"is found in {slowed['found']} of {slowed['pairs']} pairs, {equal['different']} of {equal['pairs']} pairs of a "
            "bundle with itself are called different ([script](benchmarks/bench_trust.py), "
            "[result](benchmarks/results/bench-trust.json)).")


def board() -> str:
    """The bench results of all machines, from `results/bench/`."""
    return "\n".join([
        "Benches by machine: latency, accuracy in the same run, size and memory ([result files](benchmarks/results/bench), "
        "[how to add yours](benchmarks/results/bench/README.md)):", "", table_of(RESULTS / "bench")])


def write(text: str) -> str:
    """The README's text with the figures of today's result files between its markers."""
    for name, make in (("demo", demo), ("svamp", svamp), ("teach", teach), ("train", train), ("methods", methods),
                       ("studies", studies),
                       ("edge", edge), ("trust", trust), ("board", board)):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)",
                      lambda m, make=make: f"{m[1]}{make()}".rstrip() + f"\n{m[2]}", text, flags=re.DOTALL)
    return text


def _read(name: str) -> dict[str, Any]:
    return _json(RESULTS / name)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _share(accuracy: float, ci95: list[float]) -> str:
    return f"{100 * accuracy:.1f} % ({100 * ci95[0]:.0f} to {100 * ci95[1]:.0f})"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(write(readme.read_text(encoding="utf-8")), encoding="utf-8")
