from __future__ import annotations

import html
import inspect
import json
import re
import shlex
from pathlib import Path

import made_run
import pytest
import tiny_students
import typer.main

from edgedistill import cards, machine, runs
from edgedistill.bench import bench
from edgedistill.cards import Target
from edgedistill.cli import app
from edgedistill.errors import Error, UsageError
from edgedistill.evaluate import evaluate
from edgedistill.export import write
from edgedistill.report import board, collect, commands, device, report, schema
from edgedistill.report.compare import common
from edgedistill.report.device import Point, choose
from edgedistill.tasks import wordmath
from edgedistill.tasks.metrics import paired
from edgedistill.train import train

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_run.write(tmp_path / "runs" / "<first>")


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    seen = re.sub(r"<style>.*?</style>|<[^>]*>", " ", Path(page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(seen).split())


def test_the_page_tells_the_story_and_what_to_take(run: Path) -> None:
    text = text_of(report([str(run)]))
    for words in (
        "Recommended: edge int4 on 2 threads: 97.5 ms, 54.0 % (44.3 to 63.4) right, 71 MB. It is the fastest whose interval is "
        "not below that of the most accurate, qwen2.5-coder-0.5b: 68.0 % (58.3 to 76.3) in 2874 ms.",
        "62.5 % (47.0 to 75.8) of its answers are right", "29 of 40 rows have a usable rationale",
        "Dropped: 10 because another answer than the label; 5 because the answer cannot be read",
        "int8 lost 1.0 points of dev accuracy. The gate allows 1.5.", "Left in higher precision: qkv",
        "-20.0 points (-30.0 to -10.0), p = 0.01", "117 ms: tokenise 0.3, read 46.2, decode 68.9",
        "edge int8 llama.cpp Q8_0 2 1.02 (0.97 to 1.08) no difference found", "29.8 GB/s read, 118 GFLOP/s",
        "before 41, min 41, median 60, max 64, after 58 °C", "energy not measured",
    ):
        assert words in text, words
    assert "Invalid" not in text


def test_the_page_has_no_script_no_address_and_alternatives_for_its_plots(run: Path) -> None:
    page = Path(report([str(run)])).read_text(encoding="utf-8")
    assert "<script" not in page and "default-src &#x27;none&#x27;" in page
    assert not re.search(r"\b(src|href|xlink:href|action|data|poster)=|url\(|@import", page)
    assert "<first>" not in page and "&lt;first&gt;" in page
    labels = re.findall(r"<svg role=\"img\" aria-label=\"([^\"]*)\"", page)
    assert len(labels) == page.count("<svg") == 3
    assert "1 edge int4: 97.5 ms, 54.0 %, 71 MB" in labels[0]
    assert labels[1] == "Training loss by step: label loss from 2.00 to 0.40; rationale loss from 3.00 to 1.10."
    assert labels[2] == "Dev accuracy by step: from 20.0 % to 40.0 %, at best 40.0 %."


def test_what_the_verbs_write_and_older_results_make_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    bundle = folder / "export" / "bundle"
    export = {"precision": "int8", "target": "portable", "parameters": 59, "bytes": 60_000_000, "fp32_accuracy": None,
              "accuracy": None, "accuracy_rows": 0, "token_agreement": 0.99, "parity_inputs": 100, "kept_high": []}
    runs.Stage(folder, "export", {"precision": "int8"}, {}).done({**machine.origin("export"), **export}, [])
    write(tiny_students.decoder(), bundle, "int8", cards.load(Target, "portable"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("test", 4)))
    evaluate(str(bundle), data=str(rows), run=str(folder))
    bench(str(bundle), run=str(folder), data=str(rows), threads=[1])
    board.check(next((folder / "bench").iterdir()))
    old = RESULTS / "svamp-chain" / "finetune_bench_finetune-bundle_own-own_t1-2.json"
    (folder / "bench" / "old.json").write_bytes(old.read_bytes())
    text = text_of(report([str(folder)]))
    for words in ("old-bundle (int8) on 4 rows of rows, all",
                  "edgedistill bench BUNDLE --data PATH/rows --split all --threads 1 --n 4",
                  "edge int8, 2 threads 117 ms", "edge int8, 1 thread 173 ms",
                  "edgedistill bench PATH/finetune-bundle --threads 1,2 --n 30 --run runs/old"):
        assert words in text, words
    assert "Recommended" not in text  # of one engine there is nothing to choose


def test_a_run_with_one_stage_makes_a_page(run: Path, tmp_path: Path) -> None:
    result = runs.finished(run, "teach")["result"]
    bare = {key: value for key, value in result.items() if key not in ("ledger", "hints")}
    config = runs.finished(run, "teach")["config"]
    runs.Stage(tmp_path / "small", "teach", config, {}).done({**bare, "accuracy": None, "ci95": None, "verified": 0}, [])
    assert "What the teacher wrote" in text_of(report([str(tmp_path / "small")]))


def test_a_training_that_diverged_is_drawn_as_far_as_it_went(run: Path, tmp_path: Path) -> None:
    result = runs.finished(run, "train")["result"]
    losses = [*result["losses"], {"step": 21, "label_loss": float("nan")}]
    config = runs.finished(run, "train")["config"]
    runs.Stage(tmp_path / "b", "train", config, {}).done({**result, "losses": losses, "dev": []}, [])
    page = Path(report([str(tmp_path / "b")])).read_text()
    assert "label loss from 2.00 to 0.40" in page and "nan" not in page and page.count("<svg") == 1


def test_every_result_of_the_project_can_be_read() -> None:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.rglob("*.json"))]
    known = [result for result in found if result["kind"] in schema.KINDS]
    assert len(known) >= 30
    assert [list(schema.problems(result, schema.KINDS[result["kind"]])) for result in known] == [[]] * len(known)


@pytest.mark.parametrize(("file", "change", "message"), [
    ("eval/bundle.json", {"accuracy": 1.2}, "accuracy is 1.2, expected a number from 0 to 1"),
    ("eval/bundle.json", {"ci95": [0.5]}, r"ci95 is a list, expected \[low, high\]"),
    ("eval/bundle.json", {"kind": "bench"}, "kind is \"bench\", expected eval"),
    ("eval/bundle.json", {"machine": None}, "machine is null, expected an object"),
    ("bench/made-up.json", {"results": [{"engine": "edge"}]}, r"results\[0\].precision is missing, expected text"),
    ("bench/made-up.json", {"results": 5}, "results is 5, expected a list"),
    ("bench/made-up.json", {"results": [{**made_run.bench()["results"][0], "p50_ms": 0}]},
     r"results\[0\].p50_ms is 0, expected a number above 0"),
    ("bench/made-up.json", {"schema": 2}, "schema is 2, expected 1"),
    ("bench/made-up.json", {"results": []}, "results is empty, expected at least one item"),
    ("train/manifest.json", {"result": []}, "the file is a list, expected an object"),
    ("train/manifest.json", {"kind": None}, "kind is null, expected text"),
    ("train/manifest.json", {"config": {"formats": "both"}}, "config.formats is \"both\", expected an object"),
    ("teach/manifest.json", {"config": []}, "config is a list, expected an object"),
    ("teach/manifest.json", {"inputs": None}, "inputs is null, expected an object"),
    ("export/manifest.json", {"config": {}}, "config.precision is missing, expected text"),
])
def test_a_file_that_is_no_result_is_named_in_one_line(run: Path, file: str, change: dict, message: str) -> None:
    runs.write_json(run / file, {**json.loads((run / file).read_text()), **change})
    with pytest.raises(UsageError, match=re.escape(file) + ": " + message) as error:
        report([str(run)])
    assert "\n" not in str(error.value)


def test_damaged_json_and_an_empty_folder_are_one_line_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results yet"):
        report([str(tmp_path)])
    (run / "eval" / "bundle.json").write_text('{"schema": 1')
    with pytest.raises(Error, match="bundle.json cannot be read"):
        report([str(run)])
    assert not (run / "report").exists()


def test_an_invalid_measurement_is_marked_and_recommends_nothing(tmp_path: Path) -> None:
    text = text_of(report([str(made_run.write(tmp_path / "hot", valid=False))]))
    assert text.count("Invalid measurement.") == 2  # at the top and beside its numbers
    assert "under-voltage has occurred; the clock fell to 600 MHz" in text and "Recommended" not in text


def point(name: str, ms: float, right: float, half: float = 0.05, size: int = 1) -> Point:
    return Point(name, "s", 1, ms, right, [right - half, right + half], size)


@pytest.mark.parametrize(("points", "take", "front"), [
    ([point("a", 10, 0.50), point("b", 20, 0.55)], "a", "ab"),              # intervals meet: the faster one
    ([point("a", 10, 0.40), point("b", 20, 0.55)], "b", "ab"),              # a's interval is wholly below
    ([point("a", 10, 0.55), point("b", 20, 0.55)], "a", "a"),               # as right and slower: beaten
    ([point("a", 10, 0.30), point("b", 20, 0.60), point("c", 30, 0.62), point("d", 25, 0.10)], "b", "abc"),
    ([point("a", 10, 0.55, size=9), point("b", 10, 0.55, size=2)], "b", "b"),  # equal but for the bytes
])
def test_the_choice_is_the_fastest_not_below_the_best(points: list[Point], take: str, front: str) -> None:
    choice = choose(points)
    assert choice.points[choice.take].name == take
    assert "".join(choice.points[i].name for i in choice.front) == front
    assert choice.why().startswith(f"{take} on 1 thread: ")


def test_an_entrys_own_accuracy_and_fastest_threads_count_and_evals_fill_in() -> None:
    result = made_run.bench()
    points = device.points_of([result], [])["100 rows of svamp, test"]
    assert {p.name: (p.threads, p.ms) for p in points}["edge int8"] == (2, 116.6)
    for entry in result["results"]:
        entry["accuracy"] = entry["ci95"] = None  # of forced lengths: nothing was counted, and no eval stands for it
    evals = [made_run.evaluated("made-up-bundle", 22)]
    assert device.points_of([result], evals) == {}
    for entry in result["results"]:
        del entry["accuracy"]  # of before bench counted
    filled = device.points_of([result], evals)
    assert {rows: [p.name for p in points] for rows, points in filled.items()} == {"40 rows of svamp, test": ["edge int8"]}


def test_two_runs_are_compared_by_the_paired_test_on_their_common_rows(tmp_path: Path) -> None:
    a, b = made_run.write(tmp_path / "a", right=30), made_run.write(tmp_path / "b", right=22)
    runs.write_json(b / "eval" / "bundle.json", made_run.evaluated("b-bundle", 12, first=10))  # rows r10 to r49
    both = common(collect(a)["eval"][0], collect(b)["eval"][0])
    expected = paired([i < 30 for i in range(10, 40)], [i - 10 < 12 for i in range(10, 40)])
    assert both == {**expected, "n": 30, "first": 20 / 30, "second": 12 / 30}
    page = report([str(a), str(b)])
    text = text_of(page)
    low, high = (f"{100 * x:+.1f}" for x in expected["ci95"])
    assert f"30 of svamp, test 66.7 % 40.0 % +26.7 points ({low} to {high}), p = {expected['p']:.2g}" in text
    assert "int8, svamp, test: a minus b is +26.7 points" in text
    assert "edge int8 100 rows of svamp, test 2 117 and 117 115 and 115" in text
    assert Path(page).read_text().count("<h1>") == 1 and Path(page).read_text().count("<article>") == 2


def test_forced_lengths_stand_beside_no_other_requests(tmp_path: Path) -> None:
    """A short request is not the time of a question, and no faster than the other run's."""
    forced = {**made_run.bench(), "data": None, "created": "2030-01-01T00:00:00Z"}
    for entry in forced["results"]:
        entry |= {"accuracy": None, "ci95": None, "p50_ms": entry["p50_ms"] / 10, "input_tokens": 8, "output_tokens": 1}
    a, b = made_run.write(tmp_path / "a"), made_run.write(tmp_path / "b")
    runs.write_json(a / "bench" / "short.json", forced)
    text = text_of(report([str(a), str(b)]))
    assert "97.5 ms a question, p50: edge int4, 2 threads, 100 rows of svamp, test" in text
    assert "edge int8 100 rows of svamp, test 2 117 and 117 115 and 115" in text and "8 tokens in, 1 out 2" not in text


def test_both_layouts_of_a_run_are_shown(run: Path) -> None:
    result = {**runs.finished(run, "export")["result"], "bytes": 77_000_000, "layout": "optimum"}
    runs.Stage(run, "export/optimum", {"precision": "int8", "target": "rpi5", "layout": "optimum"}, {}).done(result, [])
    runs.write_json(run / "eval" / "other.json", made_run.evaluated(f"{run.name}-optimum", 20))
    text = text_of(report([str(run)]))
    assert "77.0 MB int8 ONNX, optimum's layout" in text
    assert f"edgedistill export --int8 --layout optimum --target rpi5 --run 'runs/{run.name}'" in text
    assert f"edgedistill eval 'runs/{run.name}/export/optimum' --split test" in text


def test_runs_that_answer_alike_are_not_told_apart(tmp_path: Path) -> None:
    a, b = made_run.write(tmp_path / "a", right=20), made_run.write(tmp_path / "b", right=20)
    text = text_of(report([str(a), str(b)]))
    assert "a minus b is +0.0 points (+0.0 to +0.0), p = 1: these 40 rows do not tell them apart." in text


def test_runs_without_common_rows_or_evals_say_so(tmp_path: Path) -> None:
    a, b = made_run.write(tmp_path / "a"), made_run.write(tmp_path / "b")
    for name, subject in (("bundle", "b-bundle"), ("teacher", "qwen")):
        runs.write_json(b / "eval" / f"{name}.json", made_run.evaluated(subject, 5, first=100))
    assert "have no evaluated rows in common" in text_of(report([str(a), str(b)]))
    for path in (b / "eval").iterdir():
        path.unlink()
    assert "have no evaluated rows in common" in text_of(report([str(a), str(b)]))


def test_each_command_on_the_page_parses(run: Path) -> None:
    page = Path(report([str(run)])).read_text(encoding="utf-8")
    lines = [html.unescape(re.sub("<[^>]*>", "", block)) for block in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    lines = [line for block in lines for line in block.split("\n") if not line.startswith("edgedistill bench")]
    assert len(lines) == 5
    for line in lines:
        parses(line)


@pytest.mark.parametrize(("name", "config", "words"), [
    ("teach", {"teacher": "mine", "data": "builtin:wordmath", "rows": 9, "soft_targets": 20, "temp": 0.7, "score": True},
     "--gguf PATH/mine.gguf --data builtin:wordmath --limit 9 --soft-targets 20 --score --temp 0.7"),
    ("train", {"method": "specialize", "student": "my-t5", "formats": {"zero-shot": 0.7, "in-context": 0.3}, "tokens": 1e5,
               "match": "distribution"}, "--student PATH/my-t5 --method specialize --tokens 100000 --match distribution "
     "--formats zero-shot=0.7 --formats in-context=0.3"),
    ("train", {"method": "step-by-step", "student": "google/flan-t5-small", "shared": False, "learning_rate": 3e-4},
     "--student google/flan-t5-small --method step-by-step --learning-rate 0.0003 --two-pass"),
    ("train", {"method": "logit-kd", "student": "carve", "from": "smollm2-135m", "mentor": "large-student", "temperature": 2.0},
     "--student carve --method logit-kd --mentor PATH/large-student --temperature 2 --from smollm2-135m"),
    ("train", {"method": "hybrid", "student": "carve", "mentor": ["a-student", "b-student"], "average": True, "states": 5.0},
     "--student carve --method hybrid --average --mentor PATH/a-student --mentor PATH/b-student --states 5"),
    ("train", {"method": "hybrid", "student": "t5-small", "tokens": 1234567.0, "learning_rate": 0.00012345678, "alpha": 0.0,
               "resample": 0.0, "rationales": False, "rounds": 0, "seed": 0},
     "--student t5-small --method hybrid --tokens 1234567 --learning-rate 0.00012345678 --alpha 0 --resample 0 "
     "--no-rationales --rounds 0 --seed 0"),
    ("export", {"precision": "int8", "target": "portable", "max_drop": 0.0}, "--int8 --target portable --max-drop 0"),
    ("export", {"precision": "int4", "target": "rpi5", "max_drop": 3.0, "vocab": "task"},
     "--int4 --target rpi5 --vocab task --max-drop 3"),
])
def test_a_stages_configuration_becomes_its_flags(name: str, config: dict, words: str) -> None:
    line = commands.stage(Path("runs/mine"), name, {"config": config, "inputs": {"teacher": "0f"}}, taught=True)
    assert line == f"edgedistill {name} {words} --run runs/mine"
    parses(line)


def test_rows_that_were_watched_have_a_place_in_the_line() -> None:
    manifest = {"config": {"method": "finetune", "student": "t5-small"}, "inputs": {"ood": "0f", "general": "0f"}}
    line = commands.stage(Path("runs/mine"), "train", manifest, taught=True)
    assert "--ood PATH/ood --general PATH/general" in line
    parses(line)


def test_what_a_training_is_made_of_can_be_said_again() -> None:
    # What says how or where, what is shown, and what makes no other student.
    apart = {"run", "tiny", "task", "data", "column", "carve_from", "rationales", "batch_tokens", "gradient_checkpointing",
             "vram", "dry_run", "resume", "max_hours", "report_to", "threads", "overwrite"}
    assert set(inspect.signature(train).parameters) - apart <= set(commands._FLAGS["train"])


def test_a_command_names_no_place_of_the_machine(run: Path) -> None:
    assert str(run.parent) not in Path(report([str(run.resolve())])).read_text(encoding="utf-8")


def parses(line: str) -> None:
    verb, *args = shlex.split(line)[1:]
    typer.main.get_command(app).commands[verb].make_context(verb, args, resilient_parsing=False)
