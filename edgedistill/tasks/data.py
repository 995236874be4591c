"""Reading rows: JSONL(.gz), CSV, Parquet, a folder of splits, `hf:NAME`, `builtin:NAME`.

A broken row is an error that names its line; nothing is skipped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgedistill.errors import UsageError

SPLITS = ("train", "dev", "test")
_SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}
_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_COLUMNS = ("id", "input", "label", "rationale", "stated", "choices")
_BUILTIN_ROWS = {"train": 1000, "dev": 100, "test": 200}


@dataclass(frozen=True)
class Row:
    """One question. `choices` is empty where the task has none or fixes them; `stated` is the answer that its
    author drew from the rationale, where that need not be the label."""

    id: str
    input: str
    label: str | None = None
    rationale: str | None = None
    choices: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    stated: str | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """Reads what `to_dict` made."""
        return cls(**{**data, "choices": tuple(data["choices"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain data; without `stated` where there is none."""
        return {name: value for name, value in asdict(self).items() if name != "stated" or value is not None}


@dataclass(frozen=True)
class Dataset:
    """Rows by split. `name` has no path in it, so that it may stand in results."""

    name: str
    splits: dict[str, list[Row]]


def load(source: str, columns: dict[str, str] | None = None, seed: int = 0, dev_share: float = 0.1) -> Dataset:
    """Reads `source` and gives it a dev split where it has none (`dev_share` of the training rows).

    `columns` maps our names to the file's, dots descend: {"rationale": "meta.llm_rationale"}.
    Raises `UsageError` naming file, line and remedy.
    """
    columns = columns or {}
    unknown = sorted(set(columns) - set(_COLUMNS))
    if unknown:
        raise UsageError(f"--column {unknown[0]}=...: there is no such column; known: {', '.join(_COLUMNS)}")
    if source.startswith("builtin:"):
        name, splits = source, _builtin(source.removeprefix("builtin:"))
    elif source.startswith("hf:"):
        name, splits = source, _hub(source.removeprefix("hf:"), columns)
    else:
        name, splits = _local(Path(source), columns)
    if "train" in splits and "dev" not in splits:
        splits["train"], splits["dev"] = hold_out(splits["train"], dev_share, seed)
    return Dataset(name, {split: splits[split] for split in SPLITS if split in splits})


def digest(rows: Iterable[Row]) -> str:
    """sha256 over the rows' contents and order."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row.to_dict(), sort_keys=True, ensure_ascii=False).encode())
    return sha.hexdigest()


def write(rows: Iterable[Row], path: Path) -> None:
    """Rows as JSONL, in the format that `load` reads."""
    with path.open("w", encoding="utf-8", newline="\n") as sink:
        for row in rows:
            sink.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")


def _builtin(name: str) -> dict[str, list[Row]]:
    if name != "wordmath":
        raise UsageError(f"builtin:{name} does not exist; the built-in data set is builtin:wordmath")
    from edgedistill.tasks import wordmath

    return {split: [to_row(r, {}, f"{name}/{split}", i) for i, r in enumerate(wordmath.generate(split, n))]
            for split, n in _BUILTIN_ROWS.items()}


def _hub(name: str, columns: dict[str, str]) -> dict[str, list[Row]]:
    from edgedistill.errors import need

    datasets = need("datasets", "train")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises a dozen kinds; all mean that the set cannot be had
        raise UsageError(f"hf:{name} cannot be loaded ({_one_line(error)}); without a network give a file: "
                         "--data FILE.jsonl") from error
    splits = {}
    for split, names in _SPLIT_NAMES.items():
        for candidate in names:
            if candidate in loaded:
                splits[split] = _rows(enumerate(map(dict, loaded[candidate]), 1), columns, f"hf:{name}/{candidate}")
    return splits


def _local(path: Path, columns: dict[str, str]) -> tuple[str, dict[str, list[Row]]]:
    if path.is_dir():
        splits = {}
        for split, names in _SPLIT_NAMES.items():
            files = [f for f in sorted(path.iterdir()) if f.name.endswith(_SUFFIXES) and _stem(f) in names]
            if len(files) > 1:
                raise UsageError(f"{path.name} has several files for {split}: {', '.join(f.name for f in files)}; "
                                 "leave one or give a single file")
            if files:
                splits[split] = _rows(records(files[0]), columns, files[0].name)
        if "train" not in splits:
            raise UsageError(f"{path} has no train file ({'/'.join(_SUFFIXES)}); name one train.jsonl or give a file")
        return path.resolve().name, splits  # "." has no name
    if not path.is_file():
        raise UsageError(f"--data {path}: no such file or folder")
    return _stem(path), {"train": _rows(records(path), columns, path.name)}


def read_file(path: Path, columns: dict[str, str] | None = None) -> list[Row]:
    """The rows of one file, as they stand."""
    return _rows(records(path), columns or {}, path.name)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of a file; Parquet counts records."""
    if path.name.endswith(".parquet"):
        from edgedistill.errors import need

        parquet = need("pyarrow.parquet", "train")
        try:
            records = parquet.ParquetFile(path).read().to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise UsageError(f"{path.name}: cannot be read ({_one_line(error)})") from error
        yield from enumerate(records, 1)
    elif path.name.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise UsageError(f"{path.name}:{reader.line_num}: has not the {len(reader.fieldnames or [])} fields "
                                     "of the header; mend or remove the line")
                yield reader.line_num, {key: value or None for key, value in record.items()}
        except csv.Error as error:
            raise UsageError(f"{path.name}:{reader.line_num + 1}: not valid CSV ({error}); mend the line") from error
    elif path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".ndjson")):
        for number, line in enumerate(_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if "\\ud" in line.lower():  # half a character, which no file can hold again
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path.name}:{number}: not valid JSON ({_one_line(error)}); mend or remove the line"
                                 ) from error
            if not isinstance(record, dict):
                raise UsageError(f"{path.name}:{number}: a JSON object is needed, found {type(record).__name__}")
            yield number, record
    else:
        raise UsageError(f"{path.name}: unknown kind of file; use {', '.join(_SUFFIXES)}")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path.name}: cannot be read ({_one_line(error)})") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raw = error.object  # without the byte order mark
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{path.name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; convert the file, e.g. "
                         f"iconv -f latin1 -t utf-8 {path.name}") from error


def _rows(records: Iterable[tuple[int, dict[str, Any]]], columns: dict[str, str], where: str) -> list[Row]:
    rows = [to_row(record, columns, where, number) for number, record in records]
    if not rows:
        raise UsageError(f"{where}: no rows")
    seen: Counter[str] = Counter()
    for i, row in enumerate(rows):
        seen[row.id] += 1
        if seen[row.id] > 1:
            if not row.meta.pop("_made_id", False):
                raise UsageError(f"{where}: the id {row.id!r} stands twice; ids must be unique")
            rows[i] = replace(row, id=f"{row.id}-{seen[row.id]}")
        row.meta.pop("_made_id", None)
    return rows


def to_row(record: dict[str, Any], columns: dict[str, str], where: str, number: int) -> Row:
    found = {name: lookup(record, columns.get(name, name)) for name in _COLUMNS}
    if not isinstance(found["input"], str) or not found["input"].strip():
        wanted = columns.get("input", "input")
        if lookup(record, wanted) is None and wanted not in record:
            raise UsageError(f"{where}:{number}: no column {wanted!r}; it has {', '.join(map(str, record))}. "
                             "Map it: --column input=NAME")
        raise UsageError(f"{where}:{number}: the column {wanted!r} is empty or no text; fill or remove the line")
    for name in columns:
        if name != "input" and columns[name] not in record and columns[name].split(".")[0] not in record:
            raise UsageError(f"{where}:{number}: no column {columns[name]!r} for --column {name}=...; "
                             f"it has {', '.join(map(str, record))}")
    choices = found["choices"] or ()
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise UsageError(f"{where}:{number}: choices must be a list of texts, found {choices!r:.60}")
    meta = dict(record["meta"]) if isinstance(record.get("meta"), dict) else {}
    identity = found["id"]
    if identity is None:
        content = json.dumps([found["input"], list(choices), found["label"]], ensure_ascii=False, default=str)
        identity, meta["_made_id"] = hashlib.sha256(content.encode()).hexdigest()[:16], True
    return Row(str(identity), found["input"].strip(), _optional(found["label"]), _optional(found["rationale"]),
               tuple(choices), meta, _optional(found["stated"]))


def lookup(record: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _optional(value: Any) -> str | None:
    return None if value is None or str(value).strip() == "" else str(value).strip()


def hold_out(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, dev): `share` of the rows, at least one, drawn by `seed`; both keep the file's order."""
    if len(rows) < 2:
        raise UsageError("one row cannot be split into training and dev rows; give at least two")
    chosen = set(random.Random(f"dev-{seed}").sample(range(len(rows)), max(1, round(share * len(rows)))))
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
