"""Soft targets: what is kept of a step's logits, and that no kill and no full disk changes the files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edgedistill.errors import Error, UsageError
from edgedistill.teach import soft

K, VOCABULARY = 4, 500
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=VOCABULARY).astype(np.float32) * 3
LENGTHS = [5, 0, 3, 9, 1, 7, 4]


def records(n):
    random = np.random.default_rng(n)
    taken = random.integers(0, VOCABULARY, n)
    return np.array([soft.capture(random.normal(size=VOCABULARY).astype(np.float32), int(token), K) for token in taken],
                    soft.record(K))


def write(folder, lengths=LENGTHS, entries=()):
    """A writer with a sample of each length, and the samples' journal entries."""
    writer, entries = soft.Writer(folder, K, entries), list(entries)
    writer.name(lambda: [b"\xff" + bytes([i % 256]) for i in range(VOCABULARY)])
    for i, n in enumerate(lengths[len(entries):], len(entries)):
        entries.append({"id": f"q{i // 2}ü", "sample": i % 2, "soft": writer.add(records(n))})
    return writer, entries


def finish(folder, lengths=LENGTHS):
    writer, entries = write(folder, lengths)
    files = writer.finish([entry for entry in entries if entry["soft"][1]])
    writer.discard()
    return files


# One token


def test_a_token_takes_123_bytes_at_20():
    assert soft.record(20).itemsize == 123 and soft.record(1).itemsize == 9
    assert soft.record(soft.MAX_K)["place"] == np.uint8  # a place always fits


@pytest.mark.parametrize("token", [0, 77, int(LOGITS.argmax()), int(LOGITS.argmin())])
def test_record_holds_the_best_with_their_probabilities_and_the_rest(token):
    got = soft.capture(LOGITS, token, K)
    exact = LOGITS.astype(np.float64) - LOGITS.max()
    exact -= np.log(np.exp(exact).sum())
    assert got["ids"][got["place"]] == token
    assert np.allclose(got["logprobs"], exact[got["ids"]], rtol=2**-10)
    assert got["rest"] == pytest.approx(1 - np.exp(exact[got["ids"]]).sum(), rel=2**-10)
    best = np.argsort(-exact)[:K].tolist()
    assert got["ids"].tolist() == (best if token in best else [*best[:-1], token])


def test_token_outside_the_best_takes_the_last_place():
    outside, third = np.argsort(-LOGITS)[[100, 2]]
    assert soft.capture(LOGITS, int(outside), K)["place"] == K - 1
    assert soft.capture(LOGITS, int(third), K)["place"] == 2
    assert soft.capture(LOGITS, int(third), 1)["ids"].tolist() == [third]


def test_certain_token_leaves_no_rest_below_zero():
    sure = np.full(VOCABULARY, -40, np.float32)
    sure[3] = 40
    got = soft.capture(sure, 3, K)
    assert got["rest"] == 0 and got["logprobs"][0] == 0 and np.isfinite(got["logprobs"]).all()


def test_model_that_computes_no_numbers_leaves_no_record():
    with pytest.raises(Error, match="computes no numbers"):
        soft.capture(np.full(VOCABULARY, np.nan, np.float32), 3, K)


# Files


@pytest.mark.parametrize(("shard", "files"), [(65_536, 1), (12, 3), (9, 4), (1, 6)])
def test_what_was_written_is_read_in_the_corpus_order(tmp_path, monkeypatch, shard, files):
    monkeypatch.setattr(soft, "_SHARD", shard)
    writer, entries = write(tmp_path / "soft")
    corpus = [entry for entry in reversed(entries) if entry["soft"][1]]  # not the order in which they came
    made = writer.finish(corpus)
    writer.discard()
    assert [path.name for path in made] == [*(f"{i:05d}.safetensors" for i in range(files)), "vocabulary.json"]
    assert sorted(tmp_path.glob("soft/*")) == made
    read = list(soft.read(tmp_path / "soft"))
    assert [(identity, sample) for identity, sample, _ in read] == [(e["id"], e["sample"]) for e in corpus]
    for (_, _, got), entry in zip(read, corpus, strict=True):
        assert got.dtype == soft.record(K) and (got == records(entry["soft"][1])).all()


def test_shards_are_plain_safetensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = numpy.load_file(finish(tmp_path / "soft")[0])
    assert {name: (t.shape, str(t.dtype)) for name, t in tensors.items()} == {
        "ids": ((29, K), "int32"), "logprobs": ((29, K), "float16"), "rest": ((29,), "float16"), "place": ((29,), "uint8")}


def test_vocabulary_has_the_bytes_of_every_token_that_occurs(tmp_path):
    finish(tmp_path / "soft")
    used = {int(i) for _, _, part in soft.read(tmp_path / "soft") for i in part["ids"].ravel()}
    assert soft.vocabulary(tmp_path / "soft") == {i: b"\xff" + bytes([i % 256]) for i in used}


def test_same_samples_give_the_same_bytes(tmp_path):
    first, second = finish(tmp_path / "a"), finish(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_stage_without_any_token_has_no_targets_and_says_so(tmp_path):
    assert [path.name for path in finish(tmp_path / "soft", [0, 0])] == ["vocabulary.json"]
    for folder in ("soft", "absent"):
        with pytest.raises(UsageError, match=f"{folder} holds no soft targets; run edgedistill teach with --soft-targets K"):
            list(soft.read(tmp_path / folder))


# Kills and full disks


@pytest.mark.parametrize("more", [b"", b"half a record", records(6).tobytes()], ids=["nothing", "a part", "a sample"])
def test_records_that_the_journal_does_not_name_are_cut_off(tmp_path, more):
    whole = [path.read_bytes() for path in finish(tmp_path / "whole")]
    writer, entries = write(tmp_path / "soft", LENGTHS[:4])
    writer.close()
    with (tmp_path / "soft/journal.bin").open("ab") as file:
        file.write(more)  # killed before the journal's entry was written
    entries = json.loads(json.dumps(entries))
    writer, entries = write(tmp_path / "soft", entries=entries)
    made = writer.finish([entry for entry in entries if entry["soft"][1]])
    assert [path.read_bytes() for path in made] == whole


def test_kill_after_the_shards_are_made_costs_nothing(tmp_path):
    writer, entries = write(tmp_path / "soft")
    corpus = [entry for entry in entries if entry["soft"][1]]
    first = [path.read_bytes() for path in writer.finish(corpus)]
    writer.close()
    again = soft.Writer(tmp_path / "soft", K, entries)
    assert [path.read_bytes() for path in again.finish(corpus)] == first
    again.discard()


def test_records_that_are_missing_are_an_error_and_nothing_is_cut(tmp_path):
    writer, entries = write(tmp_path / "soft")
    writer.close()
    raw = tmp_path / "soft/journal.bin"
    raw.write_bytes(raw.read_bytes()[:-1])
    before = raw.read_bytes()
    with pytest.raises(Error, match=r"journal\.bin is shorter than the journal says; give --overwrite to begin anew"):
        soft.Writer(tmp_path / "soft", K, entries)
    assert raw.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE to fake a full disk with")
def test_full_disk_is_one_line_and_leaves_whole_samples(tmp_path):
    code = ("import resource, numpy, sys; from edgedistill.errors import Error; from edgedistill.teach import soft\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "writer = soft.Writer(__import__('pathlib').Path('soft'), 4, [])\n"
            "try:\n    while True: print(*writer.add(numpy.zeros(7, soft.record(4))))\n"
            "except Error as error: sys.exit(str(error))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no space left for soft/journal.bin" in done.stderr
    places = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert places == [[7 * i, 7] for i in range(1000 // (7 * 27))]
    assert (tmp_path / "soft/journal.bin").stat().st_size == 7 * 27 * len(places)


# A guard


WORDS = [b" one", b" two", b" three", " ü".encode()[:2], " ü".encode()[2:], b""]
TEXT = " one two ü three"


def taken(tokens, logits=None):
    logits = np.zeros(6, np.float32) if logits is None else logits
    return np.array([soft.capture(logits, token, 3) for token in tokens], soft.record(3))


def check(given, text):
    soft.check(given, text, WORDS.__getitem__, lambda token: token == 5)


def test_targets_that_spell_their_text_pass():
    check(taken([0, 1, 3, 4, 2, 5]), TEXT)
    check(taken([0, 1, 3, 4, 2]), TEXT)
    check(taken([0, 1, 3]), " one two ")       # the text ended within a character
    check(taken([0, 1, 2]), " one two th")      # or at a stop pattern within a token
    check(taken([5]), "")


@pytest.mark.parametrize("tokens", [[1, 3, 4, 2, 5], [1, 0, 3, 4, 2, 5], [0, 1, 3, 4, 5], [0, 0, 1, 3, 4, 2, 5], [5], []], ids=[
    "shifted by one", "exchanged", "one missing", "one too many", "the end alone", "none"])
def test_targets_of_another_text_are_found(tokens):
    with pytest.raises(Error, match=r"soft targets do not belong to their text .*please report this"):
        check(taken(tokens), TEXT)


@pytest.mark.parametrize("name", ["logprobs", "rest"])
def test_probabilities_that_do_not_add_up_are_found(name):
    given = taken([0, 1, 3, 4, 2, 5])
    given[name][3] += 0.1
    with pytest.raises(Error, match="soft targets do not belong"):
        check(given, TEXT)
