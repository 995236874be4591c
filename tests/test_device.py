"""The device's verbs on a small bundle: run, bench and eval, in processes where torch cannot be imported."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import tiny_students

from edgedistill import cards
from edgedistill.cards import Target
from edgedistill.edge import Student, pages
from edgedistill.errors import UsageError
from edgedistill.evaluate import evaluate
from edgedistill.export import write
from edgedistill.tasks import wordmath

# A meta-path hook that refuses the packages a Raspberry Pi does not have.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "llama_cpp", "matplotlib", "datasets"):
            raise ImportError(name + " is not on the device")
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "pocket"
    write(tiny_students.decoder(), folder, "int8", cards.load(Target, "portable"))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("test", 6)))
    return path


def without_torch(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = BLOCK + f"sys.argv = ['edgedistill', *{list(args)!r}]\nfrom edgedistill.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_run_eval_and_bench_work_where_torch_cannot_be_imported(bundle: Path, rows: Path, tmp_path: Path) -> None:
    for args in (["run", str(bundle), "Tom has 3 apples and buys 4 more. How many has he?"],
                 ["eval", str(bundle), "--data", str(rows), "--run", "r"],
                 ["bench", str(bundle), "--n", "2", "--run", "r"]):
        done = without_torch(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_run_answers_a_file_row_by_row_as_json(bundle: Path, rows: Path, tmp_path: Path) -> None:
    done = without_torch("run", str(bundle), "--file", str(rows), "--json", "--explain", cwd=tmp_path)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["id"] for a in answers] == [row["id"] for row in wordmath.generate("test", 6)]
    assert all({"text", "value", "confidence", "rationale"} <= set(a) and 0 <= a["confidence"] <= 1 for a in answers)


def test_run_refuses_what_it_cannot_answer(bundle: Path, tmp_path: Path) -> None:
    for args, message in ((["run", str(bundle), "  "], "the text is empty"), (["run", str(bundle)], "give either"),
                          (["run", str(tmp_path), "x"], "is no bundle")):
        done = without_torch(*args, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_answers_are_the_same_each_time_and_whatever_came_before(bundle: Path) -> None:
    student = Student.load(bundle)
    texts = [row["input"] for row in wordmath.generate("test", 5)]
    first = [student.generate(text).ids for text in texts]
    assert [student.generate(text).ids for text in reversed(texts)] == first[::-1]


def test_weights_are_moved_to_huge_pages_where_there_are_some(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.is_file() or "[never]" in mode.read_text():
        pytest.skip("this system has no transparent huge pages")
    code = ("import numpy, re; from pathlib import Path; from edgedistill.edge import pages\n"
            "def huge(): return int(re.search(r'AnonHugePages:\\s+(\\d+)', Path('/proc/self/smaps_rollup').read_text())[1])\n"
            "weights = numpy.arange(8 << 20, dtype=numpy.int32); before = huge(); pages.gather()\n"
            "print(huge() - before, bool((weights == numpy.arange(8 << 20)).all()))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"})  # else numpy has asked for them already
    moved, same = done.stdout.split()
    kernel = tuple(int(part) for part in platform.release().split(".")[:2])
    assert same == "True" and (int(moved) >= 16_000 or kernel < (6, 1))  # kB of 32 MB
    monkeypatch.setattr(pages, "_COLLAPSE", 9999)  # what such a kernel does with it: refuse
    assert Student.load(bundle).generate("Ann has 3 pens.").ids == Student.load(bundle).generate("Ann has 3 pens.").ids


def test_a_t5_is_refused_by_an_onnxruntime_that_computes_it_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tiny_students.t5(), tmp_path / "t5", "int8", cards.load(Target, "portable"))
    assert Student.load(tmp_path / "t5").generate("Ann has 3 pens.").ids is not None
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.0")
    with pytest.raises(UsageError, match=r"onnxruntime 1.30.0 computes T5 bundles wrongly; run: pip install 'onnxruntime>=1.3"):
        Student.load(tmp_path / "t5")


def test_eval_counts_like_the_task_and_compares_pairwise(bundle: Path, rows: Path, tmp_path: Path) -> None:
    result = evaluate(str(bundle), data=str(rows), run="r", compare=str(bundle))
    assert {"subject", "task", "data", "split", "n", "correct", "accuracy", "ci95", "metric", "compare"} <= set(result)
    assert result["n"] == 6 and result["compare"] == {"other": "pocket", "difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert result["correct"] == sum(p["correct"] for p in result["predictions"])
    assert json.loads(next((tmp_path / "r" / "eval").glob("*.json")).read_text()) == result


def test_reading_a_test_split_is_noted(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "public"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in wordmath.generate(split, 4)))
    evaluate(str(bundle), data=str(folder), run="r")
    noted = [json.loads(line) for line in Path(os.environ["EDGEDISTILL_READINGS"]).read_text().splitlines()]
    assert [entry["what"] for entry in noted] == ["pocket on public"]


def test_a_teacher_is_counted_on_the_same_rows(rows: Path) -> None:
    result = evaluate("smollm2-135m", task="wordmath", data=str(rows), run="r", limit=2)
    assert result["subject"] == "smollm2-135m" and result["n"] == 2 and result["precision"] == "gguf"


def test_eval_says_what_is_missing(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(UsageError, match="neither a bundle nor a student"):
        evaluate(run=str(tmp_path))
    with pytest.raises(UsageError, match="no such file"):
        evaluate(str(tmp_path / "nothing.gguf"), data=str(rows))
