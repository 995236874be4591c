"""A worker that generates with distilabel's `LlamaCppLLM`, for a comparison with edgedistill's own teaching engine.

It runs in an environment of its own, without edgedistill and without torch, and is spoken to over its pipes:

    python3 -m venv ENV
    ENV/bin/pip install 'distilabel[llama-cpp]==1.5.3' llama-cpp-python==0.3.36 requests  # it imports requests unasked
    ENV/bin/python benchmarks/peers/distilabel_worker.py

One JSON object a line, both ways:

    in   {"gguf": PATH}                  the model; more keys: `Settings`, and any of `Call` as defaults for every call
    out  {"ready": true}                 the model is loaded; nothing has been generated
    in   {"chats": [[MESSAGE, ...]]}     a call; more keys: `Call`. As many calls as wanted, the end of input ends it
    out  {"texts": [[TEXT, ...], ...], "seconds": S, "generated_tokens": N, "version": V}

`texts` has a list for each chat with a text for each sample, `seconds` is the wall time of `LlamaCppLLM.generate` alone.
What the libraries print goes to stderr. A failure ends the process with a traceback there and no further line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from distilabel.models.llms import LlamaCppLLM

Chat = list[dict[str, str]]   # messages: {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Settings:
    """What the model is loaded with."""

    gguf: str
    threads: int = 2     # for generation and for prompts
    n_ctx: int = 2048
    seed: int = 0        # the first of a chain: each text takes the next, so the samples of a chat differ
    extra: dict[str, Any] = field(default_factory=dict)   # more arguments of llama_cpp.Llama, such as flash_attn


@dataclass(frozen=True)
class Call:
    """What one call generates."""

    chats: list[Chat] = field(default_factory=list)
    samples: int = 1
    max_new_tokens: int = 160
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    stop: str | None = None   # a plain string; the text ends before it
    seed: int | None = None   # begins the chain of seeds anew


def parse(first: dict[str, Any]) -> tuple[Settings, Call]:
    """The first line: settings of the model, and defaults for the calls (`chat` is their default for `chats`)."""
    names = {f.name for f in fields(Settings)}
    settings = Settings(**{key: value for key, value in first.items() if key in names})
    rest = {key: value for key, value in first.items() if key not in names}
    if "chat" in rest:
        rest["chats"] = rest.pop("chat")
    return settings, Call(**rest)


def load(settings: Settings) -> LlamaCppLLM:
    """The loaded model, with the chat template that its file holds."""
    from distilabel.models.llms import LlamaCppLLM  # late: it may print, and stdout is the protocol's

    llm = LlamaCppLLM(
        model_path=settings.gguf,
        chat_format=None,
        n_ctx=settings.n_ctx,
        n_batch=512,
        seed=settings.seed,
        verbose=False,
        extra_kwargs={"n_threads": settings.threads, "n_threads_batch": settings.threads, **settings.extra},
    )
    llm.load()
    print(f"chat format: {llm._model.chat_format}", file=sys.stderr)
    return llm


def answer(llm: LlamaCppLLM, call: Call) -> dict[str, Any]:
    """Runs one call. Tokens are those that distilabel counts: without the end token, with those of a stop string."""
    import distilabel

    if call.seed is not None:
        # Not among the generation's arguments: there it would be the same for every sample of a chat.
        llm._model.set_seed(call.seed)
    more: dict[str, Any] = {"top_k": call.top_k, "min_p": call.min_p, "repeat_penalty": 1.0}
    if call.stop is not None:
        more["stop"] = call.stop
    start = time.perf_counter()
    outputs = llm.generate(inputs=call.chats, num_generations=call.samples, max_new_tokens=call.max_new_tokens,
                           temperature=call.temperature, top_p=call.top_p, extra_generation_kwargs=more)
    seconds = time.perf_counter() - start
    counts = [output["statistics"].get("output_tokens") for output in outputs]
    return {"texts": [output["generations"] for output in outputs], "seconds": seconds,
            "generated_tokens": None if None in counts else sum(map(sum, counts)), "version": distilabel.__version__}


def take_stdout() -> TextIO:
    """The real stdout, for the protocol alone: from here on descriptor 1, C code's too, leads to stderr."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return protocol


def main() -> None:
    protocol = take_stdout()

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=protocol, flush=True)

    settings, defaults = parse(json.loads(sys.stdin.readline()))
    llm = load(settings)
    say({"ready": True})
    for line in sys.stdin:
        if line.strip():
            say(answer(llm, replace(defaults, **json.loads(line))))


if __name__ == "__main__":
    main()
