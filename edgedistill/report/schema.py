"""What a result file must hold: checked before a page or a table is made from it, and named in one line where it does not.

A specification is plain data: a dict of keys (`"key?"` may be missing or null, `"*"` stands for every other key), a list with
the specification of its items (and a `1` where one must be there), or one of the words of `_WORDS`. Keys that it does not name
are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgedistill import runs
from edgedistill.errors import UsageError

_WORDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", lambda v: isinstance(v, str)),
    "flag": ("true or false", lambda v: isinstance(v, bool)),
    "number": ("a finite number", lambda v: _number(v)),
    "amount": ("a number from 0 up", lambda v: _number(v) and v >= 0),
    "positive": ("a number above 0", lambda v: _number(v) and v > 0),
    "count": ("a whole number from 0 up", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
    "share": ("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1),
    "range": ("[low, high]", lambda v: isinstance(v, list) and len(v) == 2 and all(map(_number, v)) and v[0] <= v[1]),
    "loss": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),  # a training may diverge
    "any": ("anything", lambda v: True),
}

ORIGIN = {"schema": "count", "kind": "text", "created": "text", "commit?": "text", "versions": {"*": "text"},
          "machine": {"cpu": "text", "cores": "count", "memory_gb?": "amount", "os": "text", "gpu?": "text"}}

# What the page reads of each kind; results of before a key existed are read too.
KINDS: dict[str, Any] = {
    "teach": ORIGIN | {
        "teacher": "text", "licence": "text", "task": "text", "data": "text", "rows": "count", "samples": "count",
        "verified": "count", "accuracy?": "share", "ci95?": "range", "prompt_tokens": "count", "generated_tokens": "count",
        "seconds": "amount", "rejected": {"*": "count"}, "hints?": "count",
        "ledger?": {"rows": "count", "rows_usable": "count", "rationales": "count", "dropped": {"*": "count"},
                    "api_dollars?": "amount"}},
    "train": ORIGIN | {
        "method": "text", "student": "text", "task?": "text", "parameters": "count", "questions": "count",
        "with_rationale": "count", "steps": "count", "seconds": "amount", "optimizer": "text", "dtype": "text",
        "learning_rate": "amount", "best_dev_accuracy?": "share", "dev": [{"step": "count", "accuracy": "share"}],
        "losses": [{"step": "count", "label_loss?": "loss", "rationale_loss?": "loss", "loss?": "loss"}]},
    "export": ORIGIN | {
        "precision": "text", "target": "text", "parameters": "count", "bytes": "count", "fp32_accuracy?": "share",
        "accuracy?": "share", "accuracy_rows": "count", "token_agreement": "share", "parity_inputs": "count",
        "kept_high": ["text"]},
    "eval": ORIGIN | {
        "subject": "text", "precision": "text", "data": "text", "split": "text", "n": "count", "correct": "count",
        "accuracy": "share", "ci95": "range", "rows_sha256?": "text", "prompt?": "text", "vote?": "count",
        "compare?": {"other": "text", "difference": "number", "ci95": "range", "p": "share"},
        "predictions?": [{"id": "text", "correct": "flag"}]},
}
# What the commands read of a stage's manifest.
_MANIFEST = {"schema": "count", "kind": "text", "inputs": {"*": "text"}}
CONFIGS: dict[str, Any] = {
    "teach": _MANIFEST | {"config": {"task?": "text", "data?": "text", "teacher?": "text", "form?": "text"}},
    "train": _MANIFEST | {"config": {"task?": "text", "student?": "text", "method?": "text", "formats?": {"*": "amount"}}},
    "export": _MANIFEST | {"config": {"precision": "text", "max_drop?": "amount"}},
}
_ENTRY = {
    "name?": "text", "engine": "text", "precision": "text", "threads": "count", "input_tokens?": "amount",
    "output_tokens?": "amount", "n": "count", "p50_ms": "positive", "p90_ms": "amount", "p95_ms?": "amount", "p99_ms": "amount",
    "first_token_ms?": "amount", "tokens_per_s?": "amount", "load_ms?": "amount", "load_cold_ms?": "amount",
    "first_request_ms?": "amount", "peak_rss_mb?": "amount", "pss_mb?": "amount", "bytes": "count", "accuracy?": "share",
    "correct?": "count", "counted?": "count", "ci95?": "range", "joules?": "amount", "floor_ms?": "amount",
    "probe_ratio?": "amount",
    "phases?": {"tokenize_ms?": "amount", "read_ms?": "amount", "decode_ms?": "amount", "token_ms?": "amount"},
    "settings?": {"*": "any"}}
_HEALTH = {
    "valid?": "flag", "why?": ["text"], "notes?": ["text"], "board?": "text", "governor?": "text", "mhz?": {"*": "amount"},
    "celsius?": {"*": "number"}, "throttled?": ["text"],
    "loadavg?": ["amount"], "steal_percent?": "amount", "energy?": "text"}
KINDS["bench"] = ORIGIN | {
    "subject": "text", "task?": "text", "data?": {"name": "text", "split": "text", "n": "count"}, "command?": "text",
    "results": [_ENTRY, 1], "health?": _HEALTH,
    "comparisons?": [{"name": "text", "other": "text", "threads": "count", "ratio": "amount", "ci95": "range",
                      "different": "flag"}],
    "probes?": [{"threads": "count", "read_gb_s?": "amount", "gemm_gflops?": "amount", "ms?": "amount"}]}
# What a file must hold besides to stand on the board: who measured what can be seen, and the samples are there.
BOARD = KINDS["bench"] | {
    "command": "text", "results": [_ENTRY | {"name": "text", "peak_rss_mb": "amount"}, 1],
    "health": _HEALTH | {"valid": "flag", "why": ["text"]},
    "raw": [{"name": "text", "threads": "count", "ms": ["amount"]}]}


def read(path: Path, spec: Any, kind: str) -> dict[str, Any]:
    """The result in `path`. Raises `UsageError` that names the file, the key and what is expected; `Error` for no JSON."""
    return checked(runs.read_json(path), spec, kind, str(path))


def checked(result: Any, spec: Any, kind: str, where: str) -> dict[str, Any]:
    """`result` itself when it is a `kind` that fits `spec`. Raises `UsageError`; `where` names its file."""
    problem = next(problems(result, spec), None)
    if problem is None and result["kind"] != kind:
        problem = f"kind is {_short(result['kind'])}, expected {kind}"
    if problem is None and result["schema"] != 1:
        problem = f"schema is {result['schema']}, expected 1"
    if problem:
        raise UsageError(f"{where}: {problem}")
    return result


def problems(value: Any, spec: Any, key: str = "") -> Iterator[str]:
    """What of `value` does not fit, as `results[0].p50_ms is "fast", expected a number from 0 up`."""
    if isinstance(spec, str):
        words, fits = _WORDS[spec]
        if not fits(value):
            yield f"{key} is {_short(value)}, expected {words}"
    elif isinstance(spec, list):
        if not isinstance(value, list):
            yield f"{key} is {_short(value)}, expected a list"
            return
        if len(value) < sum(spec[1:]):
            yield f"{key} is empty, expected at least one item"
        for i, item in enumerate(value):
            yield from problems(item, spec[0], f"{key}[{i}]")
    elif not isinstance(value, dict):
        yield f"{key or 'the file'} is {_short(value)}, expected an object"
    else:
        named = {name.removesuffix("?") for name in spec}
        for name, of in spec.items():
            bare = name.removesuffix("?")
            there = [*(other for other in value if other not in named)] if name == "*" else [bare]
            for part in there:
                path = f"{key}.{part}" if key else part
                if part in value and (value[part] is not None or bare == name):
                    yield from problems(value[part], of, path)
                elif bare == name:
                    yield f"{path} is missing, expected {_expected(of)}"


def _expected(spec: Any) -> str:
    return _WORDS[spec][0] if isinstance(spec, str) else "a list" if isinstance(spec, list) else "an object"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = "null" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:36] + "..." + ('"' if isinstance(value, str) else "")
