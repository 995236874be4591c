"""The real T5's shape and tokenizer, built here: loading by hub id is the code that loads a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import tiny_students
import torch
from transformers.utils import hub

from edgedistill.errors import UsageError
from edgedistill.train import _choose
from edgedistill.train.students import T5Student, load

SMALL = "google-t5/t5-small"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "TRANSFORMERS_CACHE", str(folder), raising=False)  # transformers 4 reads both at import
    monkeypatch.setattr(hub, "_is_offline_mode", True, raising=False)
    return folder


def test_t5_smalls_shape_loads_from_a_folder_and_answers(tmp_path: Path) -> None:
    student = load(tiny_students.t5_shaped("t5-small", tmp_path / "t5-small", half=True))
    assert isinstance(student, T5Student) and student.parameters() == 60_506_624
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}
    assert len(student.tokenizer) < student.model.config.vocab_size == 32_128
    assert student.tokenizer.unk_token_id == 2 and student.tokenizer.eos_token_id == 1
    assert student.rust.decode(student.rust.encode("two\napples", add_special_tokens=False).ids) == "two apples"
    student.set_task(tiny_students.TASK)
    assert len(student.generate(["two apples"], max_new_tokens=3)[0]) <= 3


def test_a_hub_id_in_the_cache_loads_as_its_folder_does(cache: Path, tmp_path: Path) -> None:
    tiny_students.t5(tokenizer=tiny_students.t5_like_tokenizer()).save(tmp_path / "folder", {}, "# card\n")
    commit = "0" * 40
    snapshot = cache / f"models--{SMALL.replace('/', '--')}" / "snapshots" / commit
    shutil.copytree(tmp_path / "folder", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    by_id, by_folder = load(SMALL), load(tmp_path / "folder")
    assert type(by_id) is type(by_folder) is T5Student
    assert by_id.rust.to_str() == by_folder.rust.to_str()
    for a, b in zip(by_id.model.parameters(), by_folder.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert _choose(None, True) == (SMALL, "t5-small (--tiny; --student carve forces the carved one)")


def test_a_hub_id_that_cannot_be_had_names_the_remedy(cache: Path) -> None:
    with pytest.raises(UsageError, match=rf"{SMALL}: cannot be loaded .*without a network give a folder, or --student carve"):
        load(SMALL)
    assert _choose(None, True)[0] == "carve"
