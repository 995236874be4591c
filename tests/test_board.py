"""`report --board`: the table of bench results by machine, and the check of each file. All numbers here are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_run
import pytest

from edgedistill import runs
from edgedistill.errors import UsageError
from edgedistill.report.board import board, check

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "bench"


def given(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, {**made_run.bench(), **changes})
    return path


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")][2:]


def test_the_table_has_a_row_for_each_engine_by_machine_the_fastest_first(tmp_path: Path) -> None:
    pi = {"cpu": "A | Pi <b>", "cores": 4, "memory_gb": 8.0, "os": "Linux"}
    given(tmp_path / "server" / "a.json")
    given(tmp_path / "pi5" / "b.json", machine=pi)
    text = board(tmp_path)
    assert text.splitlines()[0] == "| machine | student | engine | threads | p50 ms | right | on | MB | memory MB |"
    assert ("| Made-up CPU, 2 cores | made-up-bundle | edge int8 | 2 | 117 | 55.0 % (45.2 to 64.4) | 100 rows of svamp, test | "
            "115 | 149 |") in text
    assert "| A \\| Pi &lt;b>, 4 cores | " in text  # no file can break the table or put HTML into the README
    ours = [row for row in rows(text) if row[0] == "Made-up CPU, 2 cores"]
    assert len(ours) == len(made_run.ENGINES) and [float(row[4]) for row in ours] == sorted(float(row[4]) for row in ours)


def test_a_later_result_of_the_same_thing_stands(tmp_path: Path) -> None:
    late = json.loads(json.dumps(made_run.bench()["results"]))
    late[0]["bytes"] = 99_000_000
    given(tmp_path / "a" / "z.json", created="2026-01-01T00:00:00Z")
    given(tmp_path / "a" / "a.json", created="2026-02-01T00:00:00Z", results=late)
    assert len(rows(board(tmp_path))) == len(made_run.ENGINES) and "| 99.0 |" in board(tmp_path)


def test_other_lengths_are_other_rows_of_the_table(tmp_path: Path) -> None:
    for out in (4, 48):
        result = made_run.bench()
        entries = [{**entry, "accuracy": None, "ci95": None, "input_tokens": 64, "output_tokens": out}
                   for entry in result["results"]]
        given(tmp_path / f"{out}.json", data=None, results=entries)
    assert {row[6] for row in rows(board(tmp_path))} == {"64 tokens in, 4 out", "64 tokens in, 48 out"}
    assert len(rows(board(tmp_path))) == 2 * len(made_run.ENGINES)


def test_invalid_results_are_named_and_not_shown(tmp_path: Path) -> None:
    given(tmp_path / "hot" / "a.json", health=made_run.bench(valid=False)["health"])
    assert board(tmp_path) == ("Left out as invalid: made-up-bundle on Made-up CPU, 2 cores (under-voltage has occurred; the "
                               "clock fell to 600 MHz).")


def test_no_file_is_a_sentence_and_no_folder_an_error(tmp_path: Path) -> None:
    assert board(tmp_path) == "No result was added yet."
    with pytest.raises(UsageError, match="--board nowhere is no folder"):
        board("nowhere")


def changed(place: str, value: Any) -> dict[str, Any]:
    """The made-up result with one key changed, or left out for `...`."""
    result = made_run.bench()
    *way, last = place.split(".")
    part: Any = result
    for key in way:
        part = part[int(key)] if isinstance(part, list) else part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return result


@pytest.mark.parametrize(("place", "value", "message"), [
    ("command", ..., "command is missing, expected text"),
    ("health", ..., "health is missing, expected an object"),
    ("health.valid", ..., "health.valid is missing, expected true or false"),
    ("health.valid", "yes", 'health.valid is "yes", expected true or false'),
    ("raw", ..., "raw is missing, expected a list"),
    ("raw.0.ms", [1.0, "x"], 'raw[0].ms[1] is "x", expected a number from 0 up'),
    ("raw.0.ms", [], "results[0].p50_ms is 116.6, expected the median of its samples in raw, which is not there"),
    ("results.0.name", None, "results[0].name is null, expected text"),
    ("results.1.p50_ms", float("nan"), "results[1].p50_ms is nan, expected a number above 0"),
    ("results.1.p50_ms", True, "results[1].p50_ms is True, expected a number above 0"),
    ("results.1.p50_ms", 150.0, "results[1].p50_ms is 150.0, expected the median of its samples in raw, which is 173.300"),
    ("results.2.p90_ms", 1.0, "results[2].p50_ms to p99_ms are [97.5, 1.0, 136.5, 146.2], expected rising percentiles"),
    ("results.3.accuracy", 0.99, "results[3].accuracy is 0.99, expected a ci95 around it"),
    ("results.3.ci95", None, "results[3].accuracy is 0.54, expected a ci95 around it"),
    ("results.3.bytes", -1, "results[3].bytes is -1, expected a whole number from 0 up"),
    ("machine.cores", "two", 'machine.cores is "two", expected a whole number from 0 up'),
    ("data", "svamp", 'data is "svamp", expected an object'),
    ("kind", "eval", 'kind is "eval", expected bench'),
])
def test_a_file_that_does_not_fit_is_named_with_its_key(tmp_path: Path, place: str, value: Any, message: str) -> None:
    file = tmp_path / "pi5" / "mine.json"
    file.parent.mkdir()
    runs.write_json(file, changed(place, value))
    with pytest.raises(UsageError) as error:
        board(tmp_path)
    assert str(error.value) == f"{file}: {message}"


def test_what_may_be_missing_may_be_missing(tmp_path: Path) -> None:
    for place in ("task", "data", "results.0.accuracy", "results.0.phases", "results.0.joules", "health.mhz", "comparisons"):
        runs.write_json(tmp_path / "a.json", changed(place, None))
        check(tmp_path / "a.json")


def test_the_command_line_prints_the_table_or_one_line(cli: Any, tmp_path: Path) -> None:
    file = given(tmp_path / "given" / "pi" / "a.json")
    done = cli("report", "--board", "given")
    assert done.returncode == 0 and done.stdout == board(tmp_path / "given") + "\n"
    file.write_text("{")
    done = cli("report", "--board", "given")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "a.json cannot be read" in done.stderr
    runs.write_json(file, [])
    done = cli("report", "--board", "given")
    assert (done.returncode, done.stderr) == (2, "error: given/pi/a.json: the file is a list, expected an object\n")
    done = cli("report", "runs/x", "--board", "given")
    assert done.returncode == 2 and "leave runs and --out out" in done.stderr


def test_every_bench_result_that_was_given_fits() -> None:
    for path in sorted(RESULTS.rglob("*.json")):
        assert path.parent.parent == RESULTS, f"{path.name} belongs in a folder named after its machine"
        check(path)
