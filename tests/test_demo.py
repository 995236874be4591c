from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill import demo as module
from edgedistill.runs import read_json


def test_the_demo_runs_the_whole_chain_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 8)
    monkeypatch.setattr(module, "STUDENT", "carve")
    monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(module, "TEST_ROWS", 4)
    # One epoch on 8 rows learns nothing: int8 may differ by a row, and that is not what this test is about.
    monkeypatch.setattr(module, "MAX_DROP", 100.0)
    result = module.demo(run="runs/demo")
    assert result["rows"] == 8 and result["test_rows"] == 4 and result["parameters"] > 50e6
    assert {"teacher_accuracy", "student_accuracy", "bytes", "token_agreement", "latency", "stages"} <= set(result)
    run = tmp_path / "runs" / "demo"
    assert read_json(run / "demo.json") == result
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert {p.name for p in run.iterdir()} == {"teach", "train", "export", "eval", "bench", "report", "demo.json"}
