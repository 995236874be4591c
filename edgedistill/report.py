"""`report`: one self-contained HTML page, made only from the JSON files that other verbs wrote."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.errors import UsageError, need
from edgedistill.progress import clock, say

_INK = "#010203"  # drawn by matplotlib, replaced by the page's own text colour
_COLOURS = ("#2f7fd6", "#e07b28", "#3a9d5d", "#b4509c", "#8a8f98")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6570; --line: #d9dee3; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #363d45; --page: #14181c; --card: #1c2126; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .8rem; }
.tile b { display: block; font-size: 1.4rem; } .tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: .8rem 0; } svg { max-width: 100%; height: auto; color: var(--ink); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; overflow-x: auto; }
"""


def report(run_folders: list[str], *, out: str | None = None) -> str:
    """Writes the page and returns its path (default `report/index.html` in the first run).

    Raises `UsageError` when a folder holds no result of any verb.
    """
    need("matplotlib", "report")
    sections = []
    for run in run_folders:
        found = collect(Path(run))
        if not found:
            raise UsageError(f"{run} holds no results yet; run edgedistill teach, train, export, eval or bench first")
        sections.append(_run(Path(run), found))
    page = Path(out) if out else Path(run_folders[0]) / "report" / "index.html"
    title = "edgedistill: " + ", ".join(Path(run).resolve().name for run in run_folders)
    text = (f"<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{_e(title)}</title>"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
            f"<style>{_STYLE}</style></head><body>{''.join(sections)}"
            f"<p class=\"soft\">Made {machine.now()} from the JSON files in the run folder. Nothing on this page is "
            "loaded from elsewhere.</p></body></html>\n")
    with runs.disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(page, text)
    say(f"report: {page}")
    return str(page)


def collect(run: Path) -> dict[str, Any]:
    """The results of a run: {teach, train, export: result, eval: [results], bench: [results]}, what there is of them."""
    found: dict[str, Any] = {}
    for stage in ("teach", "train", "export"):
        manifest = runs.finished(run, stage)
        if manifest:
            found[stage] = manifest["result"]
    for stage in ("eval", "bench"):
        results = [runs.read_json(path) for path in sorted((run / stage).glob("*.json"))]
        if results:
            found[stage] = sorted(results, key=lambda result: result["created"])
    return found


def _run(run: Path, found: dict[str, Any]) -> str:
    parts = [_head(run, found), _tiles(found)]
    if "teach" in found:
        parts.append(_teach(found["teach"]))
    if "train" in found:
        parts.append(_train(found["train"]))
    if "eval" in found:
        parts.append(_eval(found["eval"]))
    if "export" in found:
        parts.append(_export(found["export"]))
    if "bench" in found:
        parts.append(_bench(found["bench"]))
    parts.append(_origin(run, found))
    return f"<main>{''.join(parts)}</main>"


def _head(run: Path, found: dict[str, Any]) -> str:
    teach, train = found.get("teach", {}), found.get("train", {})
    facts = [f"task {train.get('task') or teach.get('task')}" if train or teach else "",
             f"data {teach['data']}" if teach else "", f"teacher {teach['teacher']}" if teach else "",
             f"student {train['student']} by {train['method']}" if train else ""]
    return f"<h1>{_e(run.resolve().name)}</h1><p class=\"soft\">{_e(', '.join(filter(None, facts)))}</p>"


def _tiles(found: dict[str, Any]) -> str:
    tiles = []
    teach = found.get("teach")
    if teach and teach["accuracy"] is not None:
        tiles.append((_percent(teach["accuracy"]), f"teacher on the {teach['rows']} taught rows"))
    for result in found.get("eval", [])[-4:]:
        tiles.append((_percent(result["accuracy"]), f"{result['subject']} on {result['n']} {result['split']} rows"))
    if "export" in found:
        tiles.append((f"{found['export']['bytes'] / 1e6:.1f} MB", f"{found['export']['precision']} ONNX"))
    if "bench" in found:
        best = min(found["bench"][-1]["results"], key=lambda r: r["p50_ms"])
        tiles.append((f"{best['p50_ms']:.0f} ms", f"a question, p50, {best['threads']} threads"))
    return "<div class=\"tiles\">" + "".join(
        f"<div class=\"tile\"><b>{_e(value)}</b><span>{_e(label)}</span></div>" for value, label in tiles) + "</div>"


def _teach(result: dict[str, Any]) -> str:
    counts = {"verified": result["verified"], **result["rejected"]}
    counts["told the label"] = result.get("hints", 0)
    counts["unlabelled"] = result["samples"] - sum(counts.values())
    counts = {name: n for name, n in counts.items() if n}

    def draw(axes: Any) -> None:
        bars = axes.barh(list(counts)[::-1], list(counts.values())[::-1], color=[
            _COLOURS[2] if name in ("verified", "unlabelled") else _COLOURS[4] for name in reversed(counts)])
        axes.bar_label(bars, padding=3, color=_INK)
        axes.set_xlabel("samples")

    words = ", ".join(f"{n} {name}" for name, n in counts.items())
    limits = (f" {_percent(result['accuracy'])} of its answers are right ({_interval(result['ci95'])}): the ceiling of "
              "what it can teach by itself.") if result["accuracy"] is not None else ""
    return ("<h2>What the teacher wrote</h2>"
            f"<p>{_e(result['teacher'])} ({_e(result['licence'])}) wrote {result['samples']} rationales for "
            f"{result['rows']} rows in {clock(result['seconds'])}: {result['prompt_tokens']} prompt tokens, "
            f"{result['generated_tokens']} new ones.{limits} Rejected rows are kept with their verdict.</p>{_ledger(result)}"
            + _figure(draw, f"Bars of the teacher's samples by verdict: {words}.", (7, 0.5 + 0.4 * len(counts))))


def _ledger(result: dict[str, Any]) -> str:
    """What can be trained on, and why the rest cannot; nothing for a result of before there were ledgers."""
    found = result.get("ledger")
    if not found:
        return ""
    dropped = "; ".join(f"{count} because {reason}" for reason, count in found["dropped"].items()) or "none"
    cost = f" An API would have charged {found['api_dollars']:.2f} dollars." if found["api_dollars"] is not None else ""
    text = (f"{found['rows_usable']} of {found['rows']} rows have a usable rationale ({found['rationales']} in all). "
            f"Dropped: {dropped}.{cost}")
    return f"<p>{_e(text)}</p>"


def _train(result: dict[str, Any]) -> str:
    losses, dev = result["losses"], result["dev"]

    def draw(axes: Any) -> None:
        for i, name in enumerate(("label_loss", "rationale_loss")):
            points = [(entry["step"], entry[name]) for entry in losses if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), color=_COLOURS[i], label=name.replace("_", " "))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        right = axes.twinx()
        _plain(right)
        right.plot([e["step"] for e in dev], [100 * e["accuracy"] for e in dev], "o-", color=_COLOURS[2],
                   label="dev accuracy, %")
        right.set_ylabel("dev accuracy, %", color=_INK)
        right.set_ylim(0, 100)
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, frameon=False, labelcolor=_INK, loc="upper center", ncols=3,
                    bbox_to_anchor=(0.5, 1.2))

    return ("<h2>What the student learned</h2>"
            f"<p>{_e(result['student'])}, {result['parameters'] / 1e6:.1f} M parameters, {_e(result['method'])} on "
            f"{result['questions']} questions ({result['with_rationale']} with a rationale), {result['steps']} steps in "
            f"{clock(result['seconds'])}, {result['optimizer']}, {result['dtype']}, learning rate "
            f"{result['learning_rate']:g}. The checkpoint was chosen on dev rows.</p>"
            + _figure(draw, f"Training loss by step and dev accuracy, which ends at {_percent(dev[-1]['accuracy'])} and "
                      f"is best at {_percent(result['best_dev_accuracy'])}.", (7, 3.2)))


def _eval(results: list[dict[str, Any]]) -> str:
    names = [f"{r['subject']}, {r['data']}/{r['split']} ({r['n']})" for r in results]

    def draw(axes: Any) -> None:
        for i, r in enumerate(reversed(results)):
            low, high = r["ci95"]
            axes.plot([100 * low, 100 * high], [i, i], color=_COLOURS[4], linewidth=3, solid_capstyle="round")
            axes.plot(100 * r["accuracy"], i, "o", color=_COLOURS[0], markersize=8)
        axes.set_yticks(range(len(results)), names[::-1])
        axes.set_ylim(-0.6, len(results) - 0.4)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, % (95 % interval)")

    rows = [[name, r["precision"], f"{r['correct']} of {r['n']}", _percent(r["accuracy"]), _interval(r["ci95"]),
             f"{100 * r['compare']['difference']:+.1f} points against {r['compare']['other']}, p = {r['compare']['p']:.3g}"
             if r["compare"] else ""] for name, r in zip(names, results, strict=True)]
    words = "; ".join(f"{name} {_percent(r['accuracy'])}" for name, r in zip(names, results, strict=True))
    return ("<h2>How often it is right</h2>" + _figure(draw, f"Accuracy with intervals: {words}.",
                                                      (7, 0.9 + 0.45 * len(results)))
            + _table(["subject", "precision", "right", "accuracy", "95 % interval", "paired test"], rows, {2, 3}))


def _export(result: dict[str, Any]) -> str:
    kept = ", ".join(result["kept_high"]) or "none"
    scored = (f"{_percent(result['fp32_accuracy'])} in fp32, {_percent(result['accuracy'])} in {result['precision']} on "
              f"{result['accuracy_rows']} dev rows; ") if result["accuracy"] is not None else ""
    return ("<h2>What quantising cost</h2>"
            f"<p>The fp32 graph gives torch's greedy tokens on all of {result['parity_inputs']} inputs. {scored}"
            f"{_percent(result['token_agreement'])} of the tokens agree. {result['bytes'] / 1e6:.1f} MB of ONNX for "
            f"{result['parameters'] / 1e6:.1f} M parameters (target {_e(result['target'])}); layers left in higher "
            f"precision: {_e(kept)}.</p>")


def _bench(results: list[dict[str, Any]]) -> str:
    entries = [(r["subject"], e) for r in results for e in r["results"]]
    names = [f"{subject}, {e['threads']} thr., {e['input_tokens']} in, {e['output_tokens']:g} out" for subject, e in entries]

    def draw(axes: Any) -> None:
        bars = axes.barh(names[::-1], [e["p50_ms"] for _, e in reversed(entries)], color=_COLOURS[0])
        axes.bar_label(bars, fmt="%.0f", padding=3, color=_INK)
        axes.set_xlabel("ms a question, p50")

    rows = [[subject, e["engine"], e["precision"], e["threads"], e["input_tokens"], e["output_tokens"], f"{e['p50_ms']:.1f}",
             f"{e['p90_ms']:.1f}", f"{e['p99_ms']:.1f}", f"{e['first_token_ms']:.1f}", e["tokens_per_s"] or "",
             f"{e['load_ms']:.0f}", f"{e['peak_rss_mb']:.0f}", f"{e['bytes'] / 1e6:.1f}"] for subject, e in entries]
    words = "; ".join(f"{name} {e['p50_ms']:.0f} ms" for name, (_, e) in zip(names, entries, strict=True))
    return ("<h2>How fast it answers</h2>" + _figure(draw, f"Median latency: {words}.", (7, 0.9 + 0.4 * len(entries)))
            + _table(["subject", "engine", "precision", "threads", "in", "out", "p50 ms", "p90", "p99", "first", "tokens/s",
                      "load ms", "memory MB", "MB"], rows, set(range(3, 14))))


def _origin(run: Path, found: dict[str, Any]) -> str:
    commands = []
    for stage, verb in (("teach", "teach"), ("train", "train"), ("export", "export")):
        if stage in found:
            config = runs.read_json(run / stage / "manifest.json")["config"]
            commands.append(f"# {verb}: " + ", ".join(f"{k}={v}" for k, v in config.items() if v is not None))
    first = next(iter(found.values()))
    first = first[0] if isinstance(first, list) else first
    where = first["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    return ("<h2>Where these numbers come from</h2>"
            f"<p>{_e(where['cpu'])}, {where['cores']} cores, {where['memory_gb']} GB, {_e(where['os'])}; commit "
            f"{_e(first['commit'] or 'unknown')}; {_e(versions)}.</p><pre>{_e(chr(10).join(commands))}</pre>")


def _table(head: list[str], rows: list[list[Any]], numbers: set[int]) -> str:
    def cells(tag: str, values: list[Any]) -> str:
        return "".join(f"<{tag}{' class=n' if i in numbers else ''}>{_e(str(v))}</{tag}>" for i, v in enumerate(values))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=\"scroll\"><table><tr>{cells('th', head)}</tr>{body}</table></div>"


def _figure(draw: Any, words: str, size: tuple[float, float]) -> str:
    """An inline SVG in the page's own text colour, with `words` for those who do not see it."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgedistill", "font.family": "sans-serif",
                         "font.size": 10}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        _plain(axes)
        draw(axes)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = sink.getvalue()
    svg = svg[svg.index("<svg"):].replace(_INK, "currentColor")
    svg = svg.replace("<svg ", f"<svg role=\"img\" aria-label=\"{_e(words)}\" ", 1)
    return f"<figure>{svg}</figure>"


def _plain(axes: Any) -> None:
    """No box, no background, everything in the page's ink."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(ci95: list[float]) -> str:
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f} %"


def _e(text: str) -> str:
    return html.escape(text, quote=True)
