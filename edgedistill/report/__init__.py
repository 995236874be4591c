"""`report`: one self-contained HTML page, made only from the JSON files that other verbs wrote. Needs the base install only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.errors import UsageError
from edgedistill.progress import say
from edgedistill.report import device, schema, story
from edgedistill.report.compare import compare
from edgedistill.report.page import Section, document, e, number, p, percent, plural, tiles

_STAGES = ("teach", "train", "export", "export/optimum")


def report(run_folders: list[str], *, out: str | None = None) -> str:
    """Writes the page and returns its path (default `report/index.html` in the first run).

    Of several runs each is compared with the first. Raises `UsageError` when a folder holds no result of any verb, or for
    the first file that is none.
    """
    found = [collect(Path(run)) for run in run_folders]
    for run, its in zip(run_folders, found, strict=True):
        if not its:
            raise UsageError(f"{run} holds no results yet; run edgedistill teach, train, export, eval or bench first")
    names = _names(run_folders)
    title = " against ".join(names)
    body = f"<h1>{e(title)}</h1>"
    for name, its in zip(names[1:], found[1:], strict=True):
        body += compare((names[0], name), found[0], its).html(2)
    for run, name, its in zip(run_folders, names, found, strict=True):
        alone = len(found) == 1
        story_ = _head(its) + "".join(section.html(2 if alone else 3) for section in _story(Path(run), its))
        body += story_ if alone else f"<article><h2>{e(name)}</h2>{story_}</article>"
    page = Path(out) if out else Path(run_folders[0]) / "report" / "index.html"
    foot = p(f"Made {machine.now()} from the JSON files in the run folder. This page loads nothing.", "soft")
    with runs.disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(page, document(f"edgedistill: {title}", f"<main>{body}</main>{foot}"))
    say(f"report: {page}")
    return str(page)


def collect(run: Path) -> dict[str, Any]:
    """The results of a run, what there is of them: {stage: manifest, eval, bench: results, oldest first}.

    Raises `UsageError` or `Error` for a file that is no result.
    """
    found: dict[str, Any] = {}
    for stage in _STAGES:
        manifest = runs.finished(run, stage)
        if manifest:
            kind, where = stage.partition("/")[0], str(run / stage / "manifest.json")
            schema.checked(manifest, schema.CONFIGS[kind], "manifest", where)
            schema.checked(manifest.get("result"), schema.KINDS[kind], kind, where)
            found[stage] = manifest
    for kind in ("eval", "bench"):
        results = [schema.read(path, schema.KINDS[kind], kind) for path in sorted((run / kind).glob("*.json"))]
        if results:
            found[kind] = sorted(results, key=lambda result: result["created"])
    return found


def _names(folders: list[str]) -> list[str]:
    """The runs' names; those that share one also say which they are."""
    names = [Path(folder).resolve().name for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _story(run: Path, found: dict[str, Any]) -> list[Section]:
    taught = found.get("teach")
    sections = device.picks(found.get("bench", []), found.get("eval", []))
    if taught:
        sections.append(story.teach(run, taught))
    if "train" in found:
        sections.append(story.train(run, found["train"], bool(taught)))
    if "eval" in found:
        sections.append(story.evaluate(run, found["eval"], taught["result"] if taught else None))
    sections += [story.export(run, found[stage]) for stage in _STAGES if stage.startswith("export") and stage in found]
    if "bench" in found:
        sections += device.sections(run, found["bench"])
    return [*sections, _origin(found)]


def _head(found: dict[str, Any]) -> str:
    """What the run is, and its numbers in short."""
    teach, train, export, optimum = (found[stage]["result"] if stage in found else None for stage in _STAGES)
    task = next((its["task"] for its in (train, teach) if its and its.get("task")), None)
    facts = [f"task {task}" if task else "", f"data {teach['data']}" if teach else "",
             f"teacher {teach['teacher']}" if teach else "",
             f"student {train['student']} by {train['method']}" if train else ""]
    shown = []
    if teach and teach.get("accuracy") is not None:
        shown.append((percent(teach["accuracy"]), f"right: the teacher, {teach['rows']} taught rows"))
    shown += [(percent(r["accuracy"]), f"right: {r['subject']}, {r['n']} rows of {r['split']}")
              for r in found.get("eval", [])[-4:]]
    shown += [(f"{its['bytes'] / 1e6:.1f} MB", f"{its['precision']} ONNX{words}")
              for its, words in ((export, ""), (optimum, ", optimum's layout")) if its]
    benches = found.get("bench", [])
    own = [(entry, device.asked_of(entry, result)) for result in benches if device.valid(result)
           for entry in result["results"] if entry["engine"] == "edge"]
    if own:
        best, asked = min(own, key=lambda each: (each[0].get("accuracy") is None, each[0]["p50_ms"]))  # questions, if any
        shown.append((f"{number(best['p50_ms'])} ms",
                      f"a question, p50: {device.name_of(best)}, {plural(best['threads'], 'thread')}, {asked}"))
    return p(", ".join(filter(None, facts)), "soft") + device.banner(benches) + tiles(shown)


def _origin(found: dict[str, Any]) -> Section:
    """The machines, commits and versions of all results."""
    results = [*(found[stage]["result"] for stage in _STAGES if stage in found), *found.get("eval", []),
               *found.get("bench", [])]
    lines: dict[str, list[str]] = {}
    for r in results:
        versions = ", ".join(f"{name} {version}" for name, version in r["versions"].items())
        text = f"{device.whole(r['machine'])}; commit {r.get('commit') or 'unknown'}; {versions}"
        lines.setdefault(text, []).append(r["kind"])
    return Section("Where these numbers come from",
                   "".join(p(f"{', '.join(dict.fromkeys(kinds))}: {text}.", "soft") for text, kinds in lines.items()))
