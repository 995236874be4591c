"""Soft targets: for each token of a sample the teacher's k best ids, their log-probabilities and the mass outside.

While teaching they go to `soft/journal.bin`, in step with the journal, which notes where each sample's records lie; at
the end they become `soft/NNNNN.safetensors` in the corpus's order. `read` is all that a trainer needs: neither llama.cpp
nor the GGUF file. Temperature 1, before any sampling filter. 6 k + 3 bytes a token, 123 for k = 20.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgedistill import runs
from edgedistill.errors import Error, UsageError, need
from edgedistill.teach.sampling import best, log_normaliser

MAX_K = 255
_SHARD = 65_536  # tokens of a shard, 8 MB at k = 20


def record(k: int) -> np.dtype:
    """One token: `ids` [k] by falling probability, `logprobs` [k], `rest` (mass outside), `place` of the token that was
    taken. A token outside the k best takes the last place, so that it is always there."""
    return np.dtype([("ids", "<i4", (k,)), ("logprobs", "<f2", (k,)), ("rest", "<f2"), ("place", "u1")])


def capture(logits: np.ndarray, token: int, k: int) -> np.ndarray:
    """The record of `token`, drawn or given, from that step's logits [vocabulary]."""
    out, normaliser = np.zeros((), record(k)), log_normaliser(logits)
    ids = best(logits, k)
    where = np.flatnonzero(ids == token)
    place = int(where[0]) if len(where) else k - 1
    ids[place] = token
    logprobs = logits[ids].astype(np.float64) - normaliser
    out["ids"], out["logprobs"], out["place"] = ids, logprobs, place
    out["rest"] = max(0.0, 1.0 - float(np.exp(logprobs).sum()))
    return out


class Writer:
    """Keeps records in step with the journal; `finish` makes the shards, `discard` removes what they were made of."""

    def __init__(self, folder: Path, k: int, entries: Iterable[dict[str, Any]]) -> None:
        """Opens `folder/journal.bin` and cuts off what no journal entry names (a kill between the two writes).

        Raises `Error` when records that the journal names are missing.
        """
        self.path, self._pieces, self.type = folder / "journal.bin", folder / "pieces.json", record(k)
        with runs.disk_errors(folder):
            folder.mkdir(exist_ok=True)
            self._file: BinaryIO = open(self.path, "a+b", buffering=0)
        end = max((at + n for at, n in (entry["soft"] for entry in entries)), default=0) * self.type.itemsize
        if self._file.seek(0, 2) < end:
            raise Error(f"{self.path} is shorter than the journal says; give --overwrite to begin anew")
        self._file.truncate(end)

    def add(self, records: np.ndarray) -> tuple[int, int]:
        """Appends a sample's records; (first record, how many), for its journal entry. Raises `Error` on a full disk."""
        end = self._file.seek(0, 2)
        data = np.ascontiguousarray(records, self.type).tobytes()
        try:
            with runs.disk_errors(self.path):
                while data:
                    data = data[self._file.write(data):]
        except Error:
            self._file.truncate(end)
            raise
        return end // self.type.itemsize, len(records)

    def name(self, pieces: Callable[[], list[bytes]]) -> None:
        """Keeps the bytes of every token id, once: the corpus may be finished by a process that loads no model."""
        if not self._pieces.exists():
            runs.write_json(self._pieces, [piece.decode("latin-1") for piece in pieces()])

    def finish(self, entries: list[dict[str, Any]]) -> list[Path]:
        """Shards in the order of `entries` and `vocabulary.json`; returns the files. What is raw stays, see `discard`."""
        numpy = need("safetensors.numpy", "teach")
        records = np.memmap(self.path, self.type, "r") if self.path.stat().st_size else np.zeros(0, self.type)
        folder, files, used = self.path.parent, [], np.zeros(0, np.int32)
        for samples in _shards(entries):
            part = np.concatenate([records[at:at + n] for at, n in (entry["soft"] for entry in samples)])
            used = np.union1d(used, part["ids"])
            path = folder / f"{len(files):05d}.safetensors"
            meta = {"k": self.type["ids"].shape[0], "samples": [[e["id"], e["sample"], e["soft"][1]] for e in samples]}
            with runs.disk_errors(path):
                numpy.save_file({name: np.ascontiguousarray(part[name]) for name in part.dtype.names}, path,
                                {"edgedistill": json.dumps(meta, ensure_ascii=False)})
            files.append(path)
        vocabulary = folder / "vocabulary.json"
        pieces = runs.read_json(self._pieces) if len(used) else []
        runs.write_json(vocabulary, {str(i): pieces[i] for i in used})
        return [*files, vocabulary]

    def discard(self) -> None:
        """Removes what is raw, once the stage is done: until then a kill may make `finish` necessary again."""
        self.close()
        self.path.unlink()
        self._pieces.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the raw journal."""
        self._file.close()


def read(folder: str | Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """(id, sample, records) of each sample of a `teach/soft` folder, shard by shard. Raises `UsageError`."""
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UsageError(f"{folder} holds no soft targets; run edgedistill teach with --soft-targets K")
    for path in files:
        with safe_open(path, "numpy") as file:
            meta = json.loads(file.metadata()["edgedistill"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        at = 0
        for identity, sample, n in meta["samples"]:
            part = np.zeros(n, record(meta["k"]))
            for name in part.dtype.names:
                part[name] = tensors[name][at:at + n]
            at += n
            yield identity, sample, part


def vocabulary(folder: str | Path) -> dict[int, bytes]:
    """The bytes of each token id that occurs in the records: what aligning with another tokenizer needs."""
    return {int(i): text.encode("latin-1") for i, text in runs.read_json(Path(folder) / "vocabulary.json").items()}


def check(records: np.ndarray, text: str, piece: Callable[[int], bytes], end: Callable[[int], bool]) -> None:
    """The tokens that were taken spell `text`, each with a probability that fits. Raises `Error`.

    Guards against targets that belong to another row or are shifted by one (peers.md pitfall 13).
    """
    taken = records["ids"][np.arange(len(records)), records["place"]]
    spelled = b"".join(piece(int(token)) for token in taken if not end(int(token))).decode(errors="ignore")
    mass = np.exp(records["logprobs"].astype(np.float64)).sum(axis=1) + records["rest"]
    if not spelled.startswith(text) or (np.abs(mass - 1) > 0.02).any():
        raise Error(f"soft targets do not belong to their text ({spelled[:40]!r}, {text[:40]!r}); please report this")


def _shards(entries: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    samples, tokens = [], 0
    for entry in entries:
        if samples and tokens + entry["soft"][1] > _SHARD:
            yield samples
            samples, tokens = [], 0
        samples.append(entry)
        tokens += entry["soft"][1]
    if samples:
        yield samples
