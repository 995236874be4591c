"""A run folder tells what was done, refuses to mix, and survives kills and full disks."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgedistill import errors, machine, runs
from edgedistill.errors import Error, GateError, UsageError
from edgedistill.runs import Journal, Stage

CONFIG = {"task": "wordmath", "samples": 1, "temp": 0.0}
INPUTS = {"rows": "a" * 64, "teacher": "b" * 64}


def stage(config=CONFIG, inputs=INPUTS, overwrite=False):
    return Stage("run", "teach", config, inputs, overwrite)


def finish(result=None):
    made = stage()
    (made.path / "corpus.jsonl").write_text("{}\n")
    made.done(result or {"rows": 3}, [made.path / "corpus.jsonl"])


def python(code):
    """Runs `code` in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# Stages


def test_new_stage_is_running_and_not_finished():
    new = stage()
    assert new.finished is None and not new.resumed
    assert runs.read_json(Path("run/teach/manifest.json"))["state"] == "running"
    assert runs.finished("run", "teach") is None and runs.finished("run", "train") is None
    assert runs.finished("elsewhere", "teach") is None and not Path("elsewhere").exists()


def test_finished_stage_gives_its_result_again_and_changes_nothing():
    finish({"rows": 3, "accuracy": 0.5})
    before = contents("run")
    again = stage()
    assert again.finished == {"rows": 3, "accuracy": 0.5}
    again.close()
    assert contents("run") == before
    assert runs.read_json(Path("run/teach/result.json")) == again.finished


def test_manifest_records_what_a_reader_needs():
    finish()
    manifest = runs.finished("run", "teach")
    assert manifest["config"] == CONFIG and manifest["inputs"] == INPUTS and manifest["stage"] == "teach"
    assert manifest["outputs"]["corpus.jsonl"] == runs.sha256(Path("run/teach/corpus.jsonl"))
    assert set(manifest) >= {
        "schema", "kind", "created", "commit", "machine", "versions", "seconds", "peak_memory_mb", "result"}
    assert set(manifest["machine"]) == {"cpu", "cores", "memory_gb", "os"}
    text = json.dumps(manifest)
    assert str(Path.cwd()) not in text and os.uname().nodename not in text


def test_a_gpu_is_named_where_torch_sees_one(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "Some GPU")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert machine.machine()["gpu"] == "Some GPU"
    cuda.is_available = lambda: False
    assert "gpu" not in machine.machine()


@pytest.mark.parametrize(("kind", "flags", "lost"), [
    ("x86_64", {"avx2"}, True), ("x86_64", {"avx2", "avx_vnni"}, False), ("x86_64", {"avx512_vnni"}, False),
    ("aarch64", set(), False)])
def test_which_cpus_lose_what_exceeds_16_bits(kind, flags, lost, monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: kind)
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    assert machine.saturates() == lost


def test_interrupted_stage_goes_on_and_adds_its_time():
    first = stage()
    first.start -= 100
    first.checkpoint()
    first.close()
    second = stage()
    assert second.resumed and second.finished is None
    assert 100 <= second.seconds() < 110


@pytest.mark.parametrize(("config", "inputs", "difference"), [
    ({**CONFIG, "samples": 4}, INPUTS, "samples is 1 there, 4 asked"),
    ({"task": "wordmath", "samples": 1}, INPUTS, "temp is 0.0 there, null asked"),
    ({**CONFIG, "top_k": 5}, INPUTS, "top_k is null there, 5 asked"),
    (CONFIG, {**INPUTS, "rows": "c" * 64}, "rows (hash) is \"aaaaaaaaaaaa\" there, \"cccccccccccc\" asked"),
])
@pytest.mark.parametrize("state", ["running", "done"])
def test_other_configuration_is_refused_and_nothing_changes(config, inputs, difference, state):
    finish() if state == "done" else stage().close()
    Path("run/teach/journal.jsonl").write_text("{}\n")
    before = contents("run")
    with pytest.raises(UsageError) as caught:
        stage(config, inputs)
    assert difference in str(caught.value) and "--overwrite" in str(caught.value)
    assert contents("run") == before


def test_stage_that_failed_before_it_made_anything_takes_another_configuration():
    first = stage()
    Path("run/teach/data").mkdir()
    Path("run/teach/data/test.jsonl").write_text("{}\n")
    Path("run/teach/fp32.part").mkdir()
    Path("run/teach/fp32.part/weights.bin").write_text("half")
    Path("run/teach/journal.jsonl").touch()
    first.close()
    second = stage({**CONFIG, "samples": 4})
    assert not second.resumed and runs.read_json(second.manifest_path)["config"]["samples"] == 4
    assert {p.name for p in second.path.iterdir()} == {"manifest.json", ".lock"}  # no rows of other data stay
    second.close()
    Path("run/teach/checkpoints/checkpoint-5").mkdir(parents=True)
    Path("run/teach/checkpoints/checkpoint-5/trainer_state.json").write_text("{}")
    with pytest.raises(UsageError, match="samples is 4 there, 1 asked"):
        stage()


def test_same_configuration_in_other_types_is_the_same():
    finish()
    assert stage({"temp": 0, "samples": 1, "task": "wordmath"}).finished


def test_overwrite_replaces_the_stage_and_no_other():
    finish()
    Path("run/train").mkdir()
    Path("run/train/manifest.json").write_text("{}")
    Path("run/teach/data").mkdir()
    Path("run/teach/data/train.jsonl").write_text("{}")
    new = stage({**CONFIG, "samples": 4}, overwrite=True)
    assert new.finished is None and not new.resumed and new.seconds() < 10
    assert {p.name for p in new.path.iterdir()} == {"manifest.json", ".lock"}
    assert Path("run/train/manifest.json").read_text() == "{}"


def test_a_stage_inside_another_is_neither_its_work_nor_cleared_with_it():
    inner = runs.Stage("run", "teach/inner", {"layout": "other"}, {})
    (inner.path / "model.onnx").write_text("weights")
    inner.done({"bytes": 7}, [inner.path / "model.onnx"])
    stage().close()  # makes nothing, so it may be asked for otherwise
    stage({**CONFIG, "samples": 4}).close()
    stage(overwrite=True).close()
    assert runs.finished("run", "teach/inner")["result"] == {"bytes": 7} and (inner.path / "model.onnx").is_file()
    assert runs.Stage("run", "teach/inner", {"layout": "other"}, {}, overwrite=True).finished is None
    assert not (inner.path / "model.onnx").exists() and Path("run/teach/manifest.json").is_file()


def test_overwrite_removes_nothing_from_a_folder_that_no_stage_made():
    Path("run/teach").mkdir(parents=True)
    Path("run/teach/thesis.txt").write_text("mine")
    stage(overwrite=True)
    assert Path("run/teach/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"state": "done"}', "\x00" * 50])
def test_damaged_manifest_is_one_line_and_overwrite_mends_it(content):
    finish()
    Path("run/teach/manifest.json").write_text(content)
    for open_ in (stage, lambda: runs.finished("run", "teach")):
        with pytest.raises(Error) as caught:
            open_()
        assert "--overwrite" in str(caught.value) and "\n" not in str(caught.value)
    assert stage(overwrite=True).finished is None


def test_refused_stage_leaves_no_lock_behind():
    finish()
    with pytest.raises(UsageError) as kept:  # keeps the traceback and with it the half-made stage
        stage({**CONFIG, "samples": 4})
    assert stage().finished and kept


def test_second_process_is_locked_out_until_the_first_ends():
    code = """
        import sys
        from edgedistill.runs import Stage
        held = Stage("run", "teach", {}, {})
        print("working", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "working\n"
        before = contents("run")
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="another process works on run/teach"):
                Stage("run", "teach", {}, {}, overwrite)
        assert contents("run") == before
        assert Stage("run", "train", {}, {}).finished is None  # another stage is free
        other.kill()
        other.wait()
        assert Stage("run", "teach", {}, {}).resumed


def test_json_is_replaced_whole_or_not_at_all(monkeypatch):
    runs.write_json(Path("a.json"), {"old": True})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(Error, match="no space left for a.json"):
        patch.setattr(Path, "write_text", full)
        runs.write_json(Path("a.json"), {"old": False})
    assert json.loads(Path("a.json").read_text()) == {"old": True}


def test_run_folder_that_is_a_file_is_one_line():
    Path("run").write_text("mine")
    with pytest.raises(Error, match="run/teach cannot be written .*another --run"):
        stage()


# The journal


def test_journal_keeps_what_was_appended():
    journal = Journal(Path("j.jsonl"))
    rows = [{"id": "1", "text": "a\nb ü 🔑\u2028"}, {"id": "2", "text": None}]
    for row in rows:
        journal.append(row)
    # Before it is closed: a line that was appended is in the kernel.
    assert Journal(Path("j.jsonl")).rows == rows == journal.rows
    journal.close()
    assert Path("j.jsonl").read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("half", [b'{"id": "3", "te', b"{", b'{"id": "3"}', b"\x00\x00\x00", b"\xc3"])
def test_half_written_last_line_is_dropped_and_the_rest_kept(half):
    whole = b'{"id": "1"}\n{"id": "2"}\n'
    Path("j.jsonl").write_bytes(whole + half)
    journal = Journal(Path("j.jsonl"))
    assert journal.rows == [{"id": "1"}, {"id": "2"}]
    assert Path("j.jsonl").read_bytes() == whole
    journal.append({"id": "3"})
    journal.close()
    assert Path("j.jsonl").read_bytes() == whole + b'{"id": "3"}\n'


@pytest.mark.parametrize("line", [b'{"id": "2', b"", b"\xff\xfe", b"garbage"])
def test_damaged_line_in_the_middle_is_an_error_that_names_it(line):
    content = b'{"id": "1"}\n' + line + b'\n{"id": "3"}\n'
    Path("j.jsonl").write_bytes(content)
    with pytest.raises(Error, match="j.jsonl:2 is damaged"):
        Journal(Path("j.jsonl"))
    assert Path("j.jsonl").read_bytes() == content


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE to fake a full disk with")
def test_full_disk_is_one_line_exit_1_and_the_journal_stays_whole():
    # A limit on the size of files looks like a full disk: a write that is partial, then one that fails.
    done = python("""
        import resource, sys
        from pathlib import Path
        from edgedistill.errors import Error
        from edgedistill.runs import Journal
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        journal = Journal(Path("j.jsonl"))
        try:
            for i in range(1000):
                journal.append({"id": i, "text": "x" * 100})
        except Error as error:
            print(len(journal.rows), error)
            sys.exit(error.exit_code)
    """)
    assert done.returncode == 1 and done.stderr == "" and done.stdout.count("\n") == 1
    assert "no space left for j.jsonl" in done.stdout and "same command again" in done.stdout
    kept = int(done.stdout.split()[0])
    assert kept == 1000 // len(json.dumps({"id": 1, "text": "x" * 100}) + "\n") > 0
    journal = Journal(Path("j.jsonl"))
    assert [row["id"] for row in journal.rows] == list(range(kept))
    journal.append({"id": "next"})
    assert Path("j.jsonl").read_bytes().count(b"\n") == kept + 1


def test_journal_whose_disk_was_full_can_go_on_once_there_is_space():
    journal = Journal(Path("j.jsonl"))
    journal.append({"id": 1})
    real = journal._file

    class Full:
        """Writes half of what it is given, then nothing."""

        def write(self, data):
            if len(data) < 10:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real.write(data[: len(data) // 2])

        def __getattr__(self, name):
            return getattr(real, name)

    journal._file = Full()
    with pytest.raises(Error, match="no space left"):
        journal.append({"id": 2, "text": "x" * 50})
    journal._file = real
    journal.append({"id": 3})
    journal.close()
    assert Journal(Path("j.jsonl")).rows == [{"id": 1}, {"id": 3}] == journal.rows


# Errors


def test_exit_codes_are_the_documented_ones():
    assert [kind.exit_code for kind in (Error, UsageError, GateError)] == [1, 2, 3]
    assert issubclass(UsageError, Error) and issubclass(GateError, Error)


def test_missing_package_is_reported_with_the_pip_line():
    with pytest.raises(UsageError, match=r"no_such is not usable here .*pip install 'edgedistill\[teach\]'"):
        errors.need("no_such", "teach")
    assert errors.need("json", "teach") is json


@pytest.mark.parametrize(("place", "name"), [
    ("runs/svamp/export/bundle", "svamp-bundle"), ("runs/svamp/train/student", "svamp-student"),
    ("runs/svamp/export/bundle/", "svamp-bundle"), ("a/qwen.Q4.gguf", "qwen.Q4"), ("a/bundle", "bundle"),
    ("runs/svamp/export/optimum", "svamp-optimum")])
def test_subjects_are_named_without_a_path(place, name):
    assert runs.subject_name(place) == name


def test_overwriting_a_stage_removes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    runs.Stage(tmp_path / "run", "teach", {"a": 1}, {}).close()
    (tmp_path / "run" / "teach" / "soft").symlink_to(tmp_path / "kept", target_is_directory=True)
    runs.Stage(tmp_path / "run", "teach", {"a": 2}, {}, overwrite=True).close()
    assert not (tmp_path / "run" / "teach" / "soft").exists() and (tmp_path / "kept" / "file").read_text() == "x"
