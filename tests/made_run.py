"""A run folder with a result of every kind. Every number in it is MADE UP, and the bench's machine says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.tasks.metrics import interval

# name: (engine, precision, threads, p50 ms, right of 100, MB, tokenise/read/decode ms or None for a peer)
ENGINES = {
    "edge int8": ("edge", "int8", 2, 116.6, 55, 114.8, (0.3, 46.2, 68.9)),
    "edge int8 1": ("edge", "int8", 1, 173.3, 55, 114.8, (0.3, 78.1, 93.8)),
    "edge int4": ("edge", "int4", 2, 97.5, 54, 71.3, (0.3, 52.8, 43.1)),
    "edge int4 1": ("edge", "int4", 1, 139.9, 54, 71.3, (0.3, 84.7, 53.5)),
    "torch fp32": ("torch", "fp32", 2, 612.4, 56, 434.5, None),
    "optimum int8": ("optimum", "int8", 2, 318.2, 54, 166.0, None),
    "llama.cpp Q8_0": ("llama.cpp", "Q8_0", 2, 131.0, 55, 116.2, None),
    "llama.cpp Q4_0": ("llama.cpp", "Q4_0", 2, 104.9, 49, 91.7, None),
    "qwen2.5-coder-0.5b": ("llama.cpp", "Q4_K_M", 2, 2874.0, 68, 491.4, None),
}


def write(folder: Path, right: int = 22, valid: bool = True) -> Path:
    """Writes the run and returns it. Of the 40 evaluated rows r0 to r39 the first `right` are right."""
    for stage, (config, inputs) in {
        "teach": ({"task": "svamp", "data": "svamp", "rows": 40, "samples": 1, "seed": 0, "temp": 0.0, "form": "auto",
                   "prompt": "few-shot", "deterministic": False, "teacher": "qwen2.5-coder-0.5b", "hint": True},
                  {"teacher": "0f"}),
        "train": ({"method": "step-by-step", "student": "smollm2-135m", "task": "svamp", "questions": 40, "epochs": 5,
                   "batch_size": 16, "learning_rate": 2e-4, "alpha": 0.5, "optimizer": None, "seed": 0, "weighting": "token",
                   "shared": True, "mutual_information": 0.1, "from": "smollm2-135m"}, {}),
        "export": ({"precision": "int8", "target": "portable", "linear": "nbits", "encoder": "integer", "max_drop": 1.5}, {}),
    }.items():
        runs.Stage(folder, stage, config, inputs).done({**machine.origin(stage), **_RESULTS[stage]}, [])
    for kind, name, result in (
        ("eval", "bundle", evaluated(f"{folder.name}-bundle", right)), ("eval", "teacher", evaluated("qwen2.5-coder-0.5b", 30)),
        ("bench", "made-up", bench(f"{folder.name}-bundle", valid)),
    ):
        (folder / kind).mkdir(exist_ok=True)
        runs.write_json(folder / kind / f"{name}.json", result)
    return folder


def evaluated(subject: str, right: int, n: int = 40, first: int = 0) -> dict[str, Any]:
    """An eval result on the rows r`first` and following."""
    gguf = subject.startswith("qwen")
    return {**machine.origin("eval"), "subject": subject, "precision": "gguf" if gguf else "int8", "task": "svamp",
            "data": "svamp", "split": "test", "n": n, "correct": right, "accuracy": right / n, "ci95": interval(right, n),
            "metric": "value", **({"prompt": "few-shot", "vote": 1} if gguf else {}),
            "compare": None if gguf else {"other": "qwen2.5-coder-0.5b", "difference": -0.2, "ci95": [-0.3, -0.1], "p": 0.01},
            "predictions": [{"id": f"r{first + i}", "text": "", "value": None, "correct": i < right} for i in range(n)]}


def bench(subject: str = "made-up-bundle", valid: bool = True) -> dict[str, Any]:
    """The result object."""
    entries, raw = [], []
    for label, (engine, precision, threads, p50, right, mb, phases) in ENGINES.items():
        name = label.removesuffix(" 1")
        entries.append({
            "name": name, "engine": engine, "precision": precision, "threads": threads, "input_tokens": 48,
            "output_tokens": 10.1, "n": 5, "p50_ms": p50, "p90_ms": round(1.3 * p50, 1), "p95_ms": round(1.4 * p50, 1),
            "p99_ms": round(1.5 * p50, 1), "first_token_ms": round(0.45 * p50, 1), "tokens_per_s": round(5500 / p50, 1),
            "load_ms": 404.0, "load_cold_ms": 911.0, "first_request_ms": round(1.9 * p50, 1),
            "phases": dict(zip(("tokenize_ms", "read_ms", "decode_ms", "token_ms"), (*phases, phases[2] / 10.1), strict=True))
            if phases else {"tokenize_ms": None, "read_ms": None, "decode_ms": 0.55 * p50, "token_ms": 0.054 * p50},
            "peak_rss_mb": round(1.3 * mb, 1), "pss_mb": None if engine == "torch" else mb, "bytes": round(1e6 * mb),
            "accuracy": right / 100, "correct": right, "counted": 100, "ci95": interval(right, 100), "joules": None,
            "floor_ms": 3.62 if engine == "edge" else None, "probe_ratio": round(p50 / 21, 2),
            "settings": {"threads": threads}})
        raw.append({"name": name, "threads": threads, "ms": [p50, 0.9 * p50, p50, 1.1 * p50, 1.3 * p50]})
    return {
        **machine.origin("bench"), "machine": {"cpu": "Made-up CPU", "cores": 2, "memory_gb": 25.3, "os": "Linux 6 x86_64"},
        "commit": None, "subject": subject, "task": "svamp", "data": {"name": "svamp", "split": "test", "n": 200},
        "command": "edgedistill bench --against torch,optimum,llama.cpp,qwen2.5-coder-0.5b --threads 1,2 --run runs/made-up",
        "results": entries, "comparisons": [
            {"name": "edge int8", "other": "torch fp32", "threads": 2, "ratio": 5.25, "ci95": [5.1, 5.4], "different": True},
            {"name": "edge int8", "other": "edge int4", "threads": 2, "ratio": 0.84, "ci95": [0.82, 0.86], "different": True},
            {"name": "edge int8", "other": "llama.cpp Q8_0", "threads": 2, "ratio": 1.02, "ci95": [0.97, 1.08],
             "different": False}],
        "probes": [{"threads": 1, "read_gb_s": 17.4, "gemm_gflops": 61.0, "ms": 34.1},
                   {"threads": 2, "read_gb_s": 29.8, "gemm_gflops": 118.0, "ms": 21.0}],
        "health": {"valid": valid, "why": [] if valid else ["under-voltage has occurred", "the clock fell to 600 MHz"],
                   "governor": "performance", "mhz": {"before": 2400, "min": 2390, "median": 2398, "max": 2400, "after": 2400},
                   "celsius": {"before": 41.0, "min": 41.0, "median": 60.0, "max": 63.5, "after": 58.0},
                   "throttled": [] if valid else ["under-voltage", "frequency capped"], "loadavg": [0.4, 0.5, 0.6],
                   "steal_percent": 0.2, "energy": "not measured", "notes": ["1 MB are swapped out"]},
        "raw": raw}


_RESULTS: dict[str, dict[str, Any]] = {
    "teach": {"teacher": "qwen2.5-coder-0.5b", "licence": "Apache-2.0, distilling allowed", "task": "svamp", "data": "svamp",
              "rows": 40, "samples": 44, "verified": 25, "accuracy": 0.625, "ci95": [0.47, 0.7578], "seconds": 61.0, "hints": 4,
              "prompt_tokens": 900, "generated_tokens": 800, "rejected": {"wrong": 10, "unparsed": 5},
              "ledger": {"rows": 40, "rows_usable": 29, "rationales": 29, "api_dollars": None,
                         "dropped": {"another answer than the label": 10, "the answer cannot be read": 5}}},
    "train": {"method": "step-by-step", "student": "smollm2-135m", "task": "svamp", "parameters": 108_562_752,
              "questions": 40, "with_rationale": 25, "steps": 20, "seconds": 30.0, "optimizer": "adamw", "dtype": "bf16",
              "learning_rate": 2e-4, "best_dev_accuracy": 0.4,
              "dev": [{"step": 10, "accuracy": 0.2}, {"step": 20, "accuracy": 0.4}],
              "losses": [{"step": 5, "label_loss": 2.0, "rationale_loss": 3.0}, {"step": 10, "label_loss": 1.0},
                         {"step": 20, "label_loss": 0.4, "rationale_loss": 1.1}]},
    "export": {"precision": "int8", "target": "portable", "parameters": 108_562_752, "bytes": 114_756_313,
               "fp32_accuracy": 0.4, "accuracy": 0.39, "accuracy_rows": 100, "token_agreement": 0.99, "parity_inputs": 100,
               "kept_high": ["qkv"]},
}
