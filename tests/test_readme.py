"""What the README says must be so: its commands parse, its files exist, its numbers stand in result files."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from edgedistill.cli import app

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "teachers" / "README.md", ROOT / "export" / "README.md"]
COMMANDS = sorted({(path.name, line.strip().split(" && ")[-1].split("  #")[0])
                   for path in READMES for line in path.read_text(encoding="utf-8").splitlines()
                   if re.match(r"^(    |\S.*&& |)edgedistill \w", line) or " && edgedistill " in line})


def test_the_readmes_have_commands() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", [command for _, command in COMMANDS])
def test_each_command_parses(command: str) -> None:
    verb, *args = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    subcommand = group.commands[verb]
    subcommand.make_context(verb, args, resilient_parsing=False)


def test_each_file_that_the_readme_names_exists() -> None:
    text = READMES[0].read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", text)) | set(re.findall(r"`((?:benchmarks|teachers|export)/[\w./-]+)`", text))
    assert len(named) > 4
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readmes_figures_are_those_of_the_result_files() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = READMES[0].read_text(encoding="utf-8")
    assert "<!-- demo -->" in text and "<!-- svamp -->" in text
    assert tables.write(text) == text


def test_no_result_file_names_a_path_of_the_machine() -> None:
    files = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
    assert len(files) > 5
    for path in files:
        data = json.loads(path.read_text(encoding="utf-8"))
        assert {"schema", "kind", "created", "commit", "machine", "versions"} <= set(data), path.name
        assert not re.search(r"\"/(work|home|root|tmp)/", path.read_text(encoding="utf-8")), path.name
