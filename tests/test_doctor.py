from __future__ import annotations

import importlib.util

import pytest

from edgedistill.doctor import doctor


def test_doctor_finds_this_environment_ready(capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor()
    checks = {check["what"]: check["ok"] for check in found["checks"]}
    assert checks["teach"] and checks["train"] and checks["export"] and checks["default teacher"]
    assert "ready" in capsys.readouterr().out


def test_doctor_names_the_pip_line_of_a_missing_extra(monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llama_cpp" else real(name, *a))
    monkeypatch.setattr("shutil.which", lambda tool: None)
    found = doctor()
    text = {check["what"]: check["text"] for check in found["checks"]}
    assert text["teach"] == "missing llama_cpp; run: pip install 'edgedistill[teach]'"
    assert "C++ compiler and cmake" in text["compiler"]
