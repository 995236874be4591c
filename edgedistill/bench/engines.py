"""The engines that `bench` measures, each in a process of its own: bundles, peers, language models, and the machine itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from edgedistill.bench.engine import Engine, exactly
from edgedistill.bench.peers import CTranslate2, LlamaCpp, Optimum, Torch
from edgedistill.edge import bundle


class Edge(Engine):
    """A bundle in our own engine."""

    packages = ("onnxruntime", "tokenizers")

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        from edgedistill.edge import Student

        self.kind = Student

    def open(self) -> None:
        place = Path(self.job["place"])
        self.student = self.kind.load(place, self.job["threads"])
        manifest = self.student.manifest
        self.precision = manifest["precision"]
        self.bytes = sum(entry["bytes"] for name, entry in manifest["files"].items() if name.endswith(bundle.ONNX))
        self.read_by_a_token = manifest.get("read_by_a_token")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        student, n = self.student, request.get("n")
        more: dict[str, Any] = {}
        if n or request.get("ids") or request.get("limit"):
            found = student.generate(request.get("ids") or request["text"], n or request.get("limit"), n or 0)
            text, more["tokens"] = found.text, exactly(n, found.ids)
        else:
            text = student.answer(request["text"], choices=tuple(request["row"]["choices"])).text
        phases = student.phases
        return {"text": text, "tokenize_ms": phases.tokenize_ms, "read_ms": phases.read_ms, "tokens_in": phases.tokens_in,
                "tokens_out": phases.tokens_out, **more}


class LanguageModel(Engine):
    """A small GGUF language model that does the task by itself, asked as `teach` asks: the card's prompt, its examples decoded
    once for all questions."""

    packages = ("llama_cpp", "jinja2")
    extra = "teach"
    precision = "gguf"

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import llama_cpp  # noqa: F401

        from edgedistill.tasks.data import Row
        from edgedistill.tasks.task import Task

        self.card = Task.from_dict(job["task"])
        self.rows = {row["id"]: Row.from_dict(row) for row in job["rows"]}

    def open(self) -> None:
        from edgedistill.teach import prompter_of
        from edgedistill.teach.asker import Local
        from edgedistill.teach.engine import Engine as Teaching
        from edgedistill.teach.source import resolve

        source = resolve(self.job["place"])
        self.asker = Local(Teaching(source.path, threads=self.job["threads"]), source, prompter_of(self.card, None, None),
                           list(self.rows.values()), parallel=1)
        self.settings = {"prompt": self.card.prompt, "shared_tokens": len(self.asker.prefix)}
        self.bytes = source.path.stat().st_size

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        from edgedistill.teach.completion import Request, Sampling
        from edgedistill.teach.verify import judge

        row, asker = self.rows[request["row"]["id"]], self.asker
        if (row.id, False) in asker.too_long:
            return {"text": "", "tokens_in": 0, "tokens_out": 0}
        done = next(asker.engine.generate([Request(row, asker.tokens(row), (0,))], Sampling(),
                                          request.get("limit") or self.card.max_new_tokens, asker.prompter.stop(asker.form)))
        judged = judge(self.card, row, done.text, done.finish)
        return {"text": judged["answer"] if judged["value"] is not None else "", "tokens_in": done.prompt_tokens,
                "tokens_out": done.generated_tokens}


class Probe(Engine):
    """What the machine gives at the moment: as much reading as decoding a few tokens takes, and a few matrix products."""

    packages = ("numpy",)
    precision = "none"
    reads, products = 8, 8

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        from edgedistill.bench import probe

        self.module = probe

    def open(self) -> None:
        self.bytes = self.job["read_by_a_token"]
        self.reader, self.product = self.module.Reader(self.bytes, self.job["threads"]), self.module.Product()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"read_s": self.reader.read(self.reads) / self.reads,
                "product_s": self.product.multiply(self.products) / self.products}


ENGINES: dict[str, type[Engine]] = {
    "edge": Edge, "torch": Torch, "optimum": Optimum, "ctranslate2": CTranslate2, "llama.cpp": LlamaCpp,
    "gguf": LanguageModel, "probe": Probe}
PEERS = ("torch", "optimum", "ctranslate2", "llama.cpp")


def missing(engine: str) -> str | None:
    """The first package that this interpreter lacks for an engine, and what brings it, in words."""
    kind = ENGINES[engine]
    remedy = (f"run: pip install 'edgedistill[{kind.extra}]'" if kind.extra else
              "install it there, or name another by --peers-python")
    for name in kind.packages:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{name} is not installed in its interpreter; {remedy}"
    return None
