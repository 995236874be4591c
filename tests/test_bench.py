"""The bench: engines in turns, what is compared, the device's health, and the pack."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_students

from edgedistill import cards
from edgedistill.bench import bench, engines, probe
from edgedistill.bench.compare import compare, in_turns
from edgedistill.bench.health import Energy, Health
from edgedistill.bench.process import Inline, Process
from edgedistill.cards import Target
from edgedistill.errors import Error, UsageError
from edgedistill.export import write
from edgedistill.tasks import wordmath
from edgedistill.tasks.data import digest, read_file

KEYS = {"name", "engine", "precision", "threads", "input_tokens", "output_tokens", "n", "p50_ms", "p90_ms", "p95_ms", "p99_ms",
        "first_token_ms", "tokens_per_s", "load_ms", "load_cold_ms", "first_request_ms", "phases", "peak_rss_mb", "pss_mb",
        "bytes", "accuracy", "correct", "ci95", "joules", "floor_ms", "probe_ratio", "settings"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "student"
    tiny_students.decoder().save(folder, {}, "")
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bench")
    made = {}
    for precision in ("int8", "int4"):
        made[precision] = place / precision
        write(tiny_students.decoder(), made[precision], precision, cards.load(Target, "portable"))
    return made


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("dev", 6)))
    return path


def test_two_bundles_and_peers_take_turns_and_are_counted(bundles: dict[str, Path], student: Path, rows: Path) -> None:
    result = bench([str(bundles["int8"]), str(bundles["int4"])], run="r", threads=[1], data=str(rows), student=str(student),
                   against=["llama.cpp"])
    names = [entry["name"] for entry in result["results"]]
    assert names == ["edge int8", "edge int4", "llama.cpp Q8_0", "llama.cpp Q4_0"]
    for entry in result["results"]:
        assert set(entry) >= KEYS and entry["n"] == 6 and entry["counted"] == 6 and 0 <= entry["accuracy"] <= 1
        assert 0 < entry["p50_ms"] <= entry["p90_ms"] <= entry["p95_ms"] <= entry["p99_ms"] and entry["bytes"] > 0
    assert [c["other"] for c in result["comparisons"]] == names[1:]
    assert {(raw["name"], len(raw["ms"])) for raw in result["raw"]} == {(name, 6) for name in [*names, "probe"]}
    assert result["data"]["split"] == "dev" and result["health"]["energy"] in ("rapl", "pmic", "not measured")
    assert result["results"][0]["floor_ms"] > 0 and result["probes"][0]["read_gb_s"] > 0
    text = next(Path("r/bench").glob("*.json")).read_text()
    assert json.loads(text) == result and str(bundles["int8"].parent) not in text


def test_llama_cpp_and_torch_give_the_students_own_tokens(student: Path, tmp_path: Path) -> None:
    """The GGUF file that is written for llama.cpp computes the same model: its fp32 form would be the same but for rounding."""
    for family in ("llama", "qwen2"):
        own = tiny_students.decoder(family, tied=family == "llama")
        folder = tmp_path / family
        own.save(folder, {}, "")
        form = json.loads((folder / "edgedistill.json").read_text())
        job = {"place": str(folder), "student": str(folder), "threads": 1, "format": form,
               "first": {"text": "Ann has 3 pens.", "n": 12}}
        found = {}
        for name, precision in (("torch", "fp32"), ("llama.cpp", "F16")):
            engine = {**job, "engine": name, "precision": precision, "made": str(tmp_path / family / name)}
            (tmp_path / family / name).mkdir()
            with Process(name, {**engine, "prepare": True}) as maker:
                engine |= maker.opened
            with Process(name, engine) as opened:
                found[name] = [opened.ask({"text": text, "n": 12})["tokens"] for text in tiny_students.texts()[:8]]
        same = np.mean([a == b for a, b in zip(found["torch"], found["llama.cpp"], strict=True)])
        assert same >= 0.75, found


def test_llama_cpp_runs_here_whatever_the_peers_interpreter(bundles: dict[str, Path], student: Path) -> None:
    """The environment of the peers need not have what one of our own extras brings."""
    result = bench(str(bundles["int8"]), run="r", threads=[1], n=1, input_tokens=8, output_tokens=2, student=str(student),
                   against=["llama.cpp"], peers_python="/no/such/python")
    assert [entry["name"] for entry in result["results"]] == ["edge int8", "llama.cpp Q8_0", "llama.cpp Q4_0"]


def test_forced_lengths_are_exact(bundles: dict[str, Path]) -> None:
    result = bench(str(bundles["int8"]), run="r", threads=[1, 2], input_tokens=24, output_tokens=5, n=6)
    assert [(e["threads"], e["input_tokens"], e["output_tokens"]) for e in result["results"]] == [(1, 24, 5), (2, 24, 5)]
    assert all(entry["accuracy"] is None for entry in result["results"]) and result["data"] is None


def test_what_cannot_be_measured_is_one_line(bundles: dict[str, Path], student: Path, rows: Path, tmp_path: Path) -> None:
    one = str(bundles["int8"])
    with pytest.raises(UsageError, match="at least 1"):
        bench(one, n=0)
    with pytest.raises(UsageError, match="is no bundle"):
        bench(run=str(tmp_path))
    with pytest.raises(UsageError, match="is no student's folder; name it by --student"):
        bench(one, run="r", against=["torch"], data=str(rows))
    with pytest.raises(UsageError, match="cannot be started"):
        bench(one, run="r", against=["torch"], data=str(rows), student=str(student), peers_python=str(tmp_path / "python"))
    with pytest.raises(UsageError, match="--against nothing: known are torch, .*smollm2"):
        bench(one, run="r", against=["nothing"], data=str(rows))
    with pytest.raises(UsageError, match="needs a task's questions"):
        bench(one, run="r", against=["smollm2-135m"], input_tokens=8)
    with pytest.raises(UsageError, match="has no split 'test'"):
        bench(one, run="r", data=str(rows), split="test")
    with pytest.raises(UsageError, match="same name"):
        bench([one, one], run="r")
    with pytest.raises(UsageError, match="the lengths are forced, so there are no questions"):
        bench(one, run="r", data=str(rows), output_tokens=4)
    assert not list(Path("r").rglob("*.json"))


def test_more_output_than_there_is_room_for_is_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="edge int8: it wrote 112 of 400 tokens, for which it has no room; lower"):
        bench(str(bundles["int8"]), run="r", threads=[1], n=1, input_tokens=24, output_tokens=400)


def test_results_of_other_questions_have_files_of_their_own(bundles: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    one, two = str(bundles["int8"]), str(bundles["int4"])
    (bundles["int8"] / "notes").mkdir(exist_ok=True)  # a folder beside the bundle's files is nobody's business
    bench(one, run="r", threads=[1], data=str(rows), n=1)
    result = bench(one, run="r", threads=[1], data=str(rows), n=2, quick=True)
    bench([one, two], run="r", threads=[1], data=str(rows), n=1)
    assert sorted(path.name for path in Path("r/bench").iterdir()) == [
        "int8_dev-dev-1_t1_n1.json", "int8_dev-dev-2_t1_n2_quick.json", "int8_int4_dev-dev-1_t1_n1.json"]
    assert result["command"] == "edgedistill bench BUNDLE --data PATH/dev --split dev --threads 1 --n 2 --quick"
    assert result["data"]["rows_sha256"] == digest(read_file(rows)[:2])


def test_a_peers_interpreter_sees_our_package_and_no_other_of_ours() -> None:
    from edgedistill.bench import process

    assert [path.name for path in process._alone().iterdir()] == ["edgedistill"]


def test_an_engine_that_dies_or_lacks_a_package_is_one_line(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"engine": "edge", "place": str(bundles["int8"]), "threads": 1, "first": {"text": "x", "row": {"choices": []}}}
    with Process("edge", job) as opened:
        opened.process.kill()
        with pytest.raises(Error, match="edge: its process ended with -9"):
            opened.ask({"text": "x"})
    monkeypatch.setattr(engines.Edge, "packages", ("no_such_package",))
    with pytest.raises(Error, match="no_such_package is not installed in its interpreter; install it there, or name another"):
        Inline("edge", job)
    monkeypatch.setattr(engines.LanguageModel, "packages", ("no_such_package",))
    with pytest.raises(Error, match=r"pip install 'edgedistill\[teach\]'"):
        Inline("model", {**job, "engine": "gguf"})


def test_a_language_model_does_the_same_task(bundles: dict[str, Path], rows: Path) -> None:
    result = bench(str(bundles["int8"]), run="r", threads=[1], data=str(rows), n=1, against=["smollm2-135m"])
    model = result["results"][1]
    assert model["name"] == "smollm2-135m" and model["engine"] == "llama.cpp" and model["counted"] == 1
    # The card's worked examples, which a bundle's card has not.
    assert model["output_tokens"] > 1 and model["settings"]["shared_tokens"] > 150
    assert model["first_token_ms"] < 0.8 * model["p50_ms"]  # some 70 tokens


# Comparing


def test_a_slow_down_of_a_fifth_is_found_and_equals_are_rarely_called_different() -> None:
    random = np.random.default_rng(0)

    def pair(slower: float) -> dict:
        """Six sittings of 12 rounds: a drifting machine, and 5 % by where the memory of each opening lies."""
        found = []
        for _ in range(6):
            drift = 1 + 0.3 * np.sin(random.uniform(0, 6) + np.arange(12) / 5)
            found.append(tuple(factor * random.normal(1, 0.05) * drift * (10 + random.gamma(1, 0.5, 12))
                               for factor in (1, slower)))
        return compare(found)

    slow = [pair(1.2) for _ in range(50)]
    assert np.mean([each["different"] for each in slow]) > 0.9 and 1.1 < np.median([each["ratio"] for each in slow]) < 1.3
    assert all(each["ci95"][0] <= each["ratio"] <= each["ci95"][1] for each in slow)
    assert sum(pair(1)["different"] for _ in range(200)) <= 14  # 3 % are expected


def test_the_interval_is_that_of_the_sign_test_over_sittings() -> None:
    # 20 sittings, ratios 1.01 to 1.20: P(fewer than 6 of 20 heads) = 2.07 %, so the interval goes from the 6th to the 15th.
    found = compare([([1.0, 2.0, 4.0], [x, 2 * x, 9.0]) for x in (1 + i / 100 for i in range(1, 21))])
    assert found == {"ratio": 1.105, "ci95": [1.06, 1.15], "different": True, "sittings": 20}
    with pytest.raises(ValueError, match="5 sittings: give at least 6"):
        compare([([1.0], [1.0])] * 5)


def test_every_subject_has_its_turn_once_a_round_in_changing_order() -> None:
    order: list[tuple[str, int]] = []
    found = in_turns({name: lambda i, name=name: order.append((name, i)) or i for name in "abc"}, range(8))
    assert found == {name: list(range(8)) for name in "abc"}
    assert [sorted(order[3 * i:3 * i + 3]) for i in range(8)] == [[(n, i) for n in "abc"] for i in range(8)]
    assert len({tuple(n for n, _ in order[3 * i:3 * i + 3]) for i in range(8)}) > 1


def test_the_probes_read_all_of_a_buffer_and_multiply() -> None:
    reader = probe.Reader(4_000_000, 2)
    assert sum(part.nbytes for part in reader.parts) == 4_000_000 and all((part == 1).all() for part in reader.parts)
    few, many = (min(reader.read(passes) for _ in range(5)) for passes in (5, 100))
    assert many > 3 * few > 0
    product = probe.Product()
    assert product.multiply() > 0 and (product.out == product.a.shape[1]).all()


# The device


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A Raspberry Pi's files."""
    for name, text in {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
                       "proc/stat": "cpu 100 0 0 900 0 0 0 0 0 0\n",
                       "proc/meminfo": "SwapTotal: 1000 kB\nSwapFree: 1000 kB\n",
                       "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
                       "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
                       "sys/class/thermal/thermal_zone0/temp": "52300",
                       "sys/devices/platform/soc/soc:firmware/get_throttled": "0"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_cool_board_is_valid_and_a_throttled_one_is_not(board: Path) -> None:
    health = Health(board)
    health.start()
    health.stop()
    good = health.result()
    assert good["valid"] and good["board"] == "Raspberry Pi 5 Model B Rev 1.0" and good["throttled"] == []
    assert good["celsius"]["max"] == 52.3 and good["mhz"]["median"] == 2400 and "ondemand" in good["notes"][0]
    (board / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50005")
    (board / "proc/stat").write_text("cpu 150 0 0 1000 0 0 0 50 0 0\n")
    bad = health.result()
    assert not bad["valid"] and bad["throttled"] == ["throttled", "under-voltage"] and "under-voltage" in bad["why"][0]
    assert bad["steal_percent"] == 25.0 and any("25.0 %" in note for note in bad["notes"])


def test_clocks_and_heat_are_read_while_it_runs(board: Path) -> None:
    health = Health(board)
    health.start()
    time.sleep(0.6)
    (board / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("1500000")
    (board / "sys/class/thermal/thermal_zone0/temp").write_text("85000")
    time.sleep(0.6)
    health.stop()
    assert health.result()["mhz"]["min"] == 1500 and health.result()["celsius"]["max"] == 85.0


def test_energy_is_the_counters_sum_across_their_end_or_not_measured(tmp_path: Path) -> None:
    assert Energy(tmp_path).joules() is None and Energy(tmp_path).source == "not measured"
    zone, whole = (tmp_path / f"sys/class/powercap/intel-rapl:{i}" for i in range(2))
    for folder, name in ((zone, "package-0"), (whole, "psys")):  # the second counts the first one too
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("5000000")
    (zone / "energy_uj").write_text("9000000")
    (zone / "max_energy_range_uj").write_text("10000000")
    energy = Energy(tmp_path)
    (whole / "energy_uj").write_text("9000000")
    (zone / "energy_uj").write_text("2000000")  # it began anew after 10 J
    assert energy.source == "rapl" and energy.joules() == pytest.approx(3.0)


# The pack


@pytest.fixture(scope="module")
def pack(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pack")
    rows = place / "dev.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in wordmath.generate("dev", 6)))
    made = bench(str(bundles["int8"]), data=str(rows), pack=str(place / "pocket.pyz"))
    assert made["file"] == "pocket.pyz" and made["bytes"] == (place / "pocket.pyz").stat().st_size
    return place / "pocket.pyz"


def carried(pack: Path, *args: str, cwd: Path, only: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a pack where only three packages (and what they need) can be imported, and no edgedistill."""
    site = cwd / "site"
    if not site.exists():
        site.mkdir()
        for name in ("numpy", "onnxruntime", "tokenizers", "google", "flatbuffers", "packaging"):
            found = next((Path(p) / name for p in sys.path if (Path(p) / name).is_dir()), None)
            if found:
                (site / name).symlink_to(found)
                for more in found.parent.glob(f"{name}*"):
                    if more.name.endswith((".libs", ".dist-info")):
                        (site / more.name).symlink_to(more)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([sys.executable, "-S", "-c",
                           "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]; "
                           "runpy.run_path(sys.argv[0], run_name='__main__')", str(site), str(pack), *args],
                          capture_output=True, text=True, cwd=cwd, env=env)


def test_a_pack_runs_where_there_are_only_its_three_packages(pack: Path, tmp_path: Path) -> None:
    done = carried(pack, "--threads", "1", "--inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "pocket-result.json").read_text())
    assert result["kind"] == "bench" and result["golden"] == {"asked": 6, "same": 6} and result["results"][0]["counted"] == 6
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line]


def test_a_pack_measures_in_processes_of_its_own(pack: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(pack), "--threads", "1", "--n", "6", "--out", "here.json"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads((tmp_path / "here.json").read_text())["results"][0]["peak_rss_mb"] < 500


@pytest.mark.parametrize("how", ["cut off", "one byte", "signed again but for one"])
def test_a_damaged_pack_is_refused_in_one_line(pack: Path, tmp_path: Path, how: str) -> None:
    data = pack.read_bytes()
    bad = tmp_path / "bad.pyz"
    if how == "cut off":
        bad.write_bytes(data[: len(data) // 2])
    elif how == "one byte":
        at = data.index(b"bundle/weights.bin") + 4000
        bad.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
    else:
        with zipfile.ZipFile(pack) as source, zipfile.ZipFile(bad, "w") as sink:
            for name in source.namelist():
                its = source.read(name)
                sink.writestr(name, its.replace(b"Mara", b"Nora") + b" " if name == "work.json" else its)
    done = subprocess.run([sys.executable, str(bad), "--n", "6"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    if how != "cut off":  # that is no zip file any more: Python itself says so, in its own words
        assert len(done.stderr.strip().splitlines()) == 1 and "copy" in done.stderr
    assert not list(tmp_path.glob("*-result.json"))


@pytest.mark.parametrize(("args", "words"), [
    (["--n", "-5"], "--n -5: give at least 1"), (["--threads", "x"], "--threads x: give counts as 1,2,4"),
    (["--threads", "0"], "--threads 0: give counts"), (["--out", "nowhere/x.json"], "--out nowhere/x.json cannot be written"),
    (["--out", "there.json"], "--out there.json exists")])
def test_a_pack_refuses_wrong_arguments_before_it_measures(pack: Path, tmp_path: Path, args: list[str], words: str) -> None:
    (tmp_path / "there.json").write_text("mine")
    done = subprocess.run([sys.executable, str(pack), *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (tmp_path / "there.json").read_text() == "mine"


def test_a_pack_that_answers_otherwise_says_so_by_its_exit_code(pack: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack) as source:
        members = {name: source.read(name) for name in source.namelist()}
    members["work.json"] = json.dumps({**json.loads(members["work.json"]), "golden": ["other"] * 6}).encode()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items() if name != "SHA256.json"}
    with zipfile.ZipFile(tmp_path / "other.pyz", "w") as sink:
        for name, data in (members | {"SHA256.json": json.dumps(hashes).encode()}).items():
            sink.writestr(name, data)
    done = subprocess.run([sys.executable, "other.pyz", "--n", "1", "--threads", "1", "--inline"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 3 and "0 of 6 answers" in done.stderr, done.stderr


def test_a_pack_is_never_overwritten(pack: Path, bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="exists"):
        bench(str(bundles["int8"]), pack=str(pack))
