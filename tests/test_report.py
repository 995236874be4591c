from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest
import tiny_students

from edgedistill import cards, machine, runs
from edgedistill.cards import Target
from edgedistill.errors import UsageError
from edgedistill.evaluate import evaluate
from edgedistill.export import write
from edgedistill.report import report
from edgedistill.tasks import wordmath


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a result of each kind; the numbers of the stages are made up, the eval's are real."""
    folder = tmp_path / "runs" / "<first>"
    origin = machine.origin
    for stage, result in {
        "teach": {**origin("teach"), "teacher": "t", "licence": "Apache-2.0", "task": "wordmath", "data": "d",
                  "rows": 40, "samples": 40, "verified": 25, "accuracy": 0.625, "ci95": [0.47, 0.76], "seconds": 61.0,
                  "prompt_tokens": 900, "generated_tokens": 800, "rejected": {"wrong": 10, "unparsed": 5}},
        "train": {**origin("train"), "method": "step-by-step", "student": "carve", "task": "wordmath",
                  "parameters": 59_000_000, "questions": 40, "with_rationale": 25, "steps": 20, "seconds": 30.0,
                  "optimizer": "adamw", "dtype": "bf16", "learning_rate": 3e-4, "best_dev_accuracy": 0.4,
                  "dev": [{"step": 10, "accuracy": 0.2}, {"step": 20, "accuracy": 0.4}],
                  "losses": [{"step": 10, "label_loss": 2.0, "rationale_loss": 3.0}, {"step": 20, "label_loss": 1.0}]},
        "export": {**origin("export"), "precision": "int8", "target": "portable", "parameters": 59_000_000,
                   "bytes": 60_000_000, "fp32_accuracy": 0.4, "accuracy": 0.39, "accuracy_rows": 100,
                   "token_agreement": 0.99, "parity_inputs": 100, "kept_high": []},
    }.items():
        runs.Stage(folder, stage, {"seed": 0}, {}).done(result, [])
    bundle = folder / "export" / "bundle"
    write(tiny_students.decoder(), bundle, "int8", cards.load(Target, "portable"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("test", 4)))
    evaluate(str(bundle), data=str(rows), run=str(folder))
    (folder / "bench").mkdir()
    entry = {"engine": "edge", "precision": "int8", "threads": 2, "input_tokens": 40, "output_tokens": 9.5, "n": 30,
             "p50_ms": 81.2, "p90_ms": 90.0, "p99_ms": 99.9, "first_token_ms": 30.0, "tokens_per_s": 120.0,
             "load_ms": 300.0, "peak_rss_mb": 150.0, "bytes": 60_000_000}
    runs.write_json(folder / "bench" / "b.json", {**origin("bench"), "subject": "first-bundle", "results": [entry]})
    return folder


class Page(html.parser.HTMLParser):
    """Collects references and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.references += [values[k] for k in ("src", "href", "xlink:href") if values.get(k)]
        if tag == "svg":
            self.labels.append(values.get("aria-label", ""))
        if tag not in ("meta", "br", "img", "path", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_the_page_shows_every_stage_and_asks_nothing_of_the_network(run: Path) -> None:
    text = Path(report([str(run)])).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] or page.open == ["!doctype"]
    assert all(reference.startswith("#") for reference in page.references)
    assert "<script" not in text and not re.search(r"url\((?!#)", text)
    for words in ("62.5 %", "25 verified", "10 wrong", "81", "60.0 MB", "What quantising cost", "step-by-step"):
        assert words in text
    assert len(page.labels) == 4 and all(len(label) > 20 for label in page.labels)


def test_names_are_escaped_and_plots_take_the_pages_colour(run: Path) -> None:
    text = Path(report([str(run)])).read_text(encoding="utf-8")
    assert "<first>" not in text and "&lt;first&gt;" in text
    assert "#010203" not in text and "currentColor" in text


def test_a_run_with_one_stage_and_several_runs_make_a_page_too(run: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    teach = runs.finished(run, "teach")["result"]
    runs.Stage(small, "teach", {}, {}).done({**teach, "accuracy": None, "ci95": None, "verified": 0}, [])
    assert "What the teacher wrote" in Path(report([str(small)])).read_text()
    both = Path(report([str(small), str(run)], out=str(tmp_path / "both.html"))).read_text()
    assert both.count("<h1>") == 2


def test_an_empty_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results yet"):
        report([str(tmp_path)])
