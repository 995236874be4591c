"""A teacher behind HTTP: any running OpenAI-compatible server (llama-server, vLLM, Ollama, llama-cpp-python's).

It connects directly: no proxy of the environment is used and no redirect followed, so that neither rows nor the key
($EDGEDISTILL_API_KEY) reach another host than the one given.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from edgedistill.errors import Error, UsageError
from edgedistill.progress import say
from edgedistill.teach.completion import Completion, Request, Sampling

_LARGEST = 16 << 20           # bytes of an answer
_CONNECT = 10.0               # seconds for each address of the host
_WAITS = (0.5, 30.0)          # seconds before the second try, doubled for each further one; the longest
_JITTER = random.Random()     # its own: tries must not disturb anybody's seeded numbers
_TOO_LONG = re.compile(r"context (?:length|size|window)|exceeds? .*context", re.IGNORECASE)
_REMEDIES = {401: "set EDGEDISTILL_API_KEY to the server's key", 403: "set EDGEDISTILL_API_KEY to the server's key",
             404: "check the address and the model's name"}


class _Failed(Exception):
    """A try that failed; `status` is the answer's, 0 without one, `wait` the seconds that the server asks for."""

    def __init__(self, reason: str, status: int = 0, wait: float = 0) -> None:
        super().__init__(f"{status}: {reason}" if status else reason)
        self.status, self.wait = status, wait
        self.final = 300 <= status < 500 and status not in (408, 429)  # another try would not change it


class Server:
    """A client of one server and one of its models.

    A try takes at most `timeout` seconds from its connection to the last byte, however slowly bytes drip in; the
    connection before it 10 seconds for each address of the host (looking the host up takes what the system takes). A
    request is tried 1 + `retries` times.
    """

    def __init__(self, url: str, *, model: str | None = None, parallel: int = 8, timeout: float = 600,
                 retries: int = 5, cache: bool = True) -> None:
        """Asks which models there are; `model` None takes the first. `cache` lets llama-server reuse a prompt's prefix.

        Raises `UsageError` for what is no address, does not answer, is no such server, or has no such model.
        """
        found = re.fullmatch(r"(https?)://([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/v1)?/?", url, re.I | re.A)
        if not found or int((found[3] or ":0")[1:]) > 65535:
            raise UsageError(f"{url.rpartition('@')[2][:100]!r} is no server's address; give http://HOST:PORT")
        self.url = f"{found[1].lower()}://{found[2]}{found[3] or ''}"
        self.parallel, self.timeout, self.retries, self.cache = max(1, parallel), timeout, retries, cache
        self._key = os.environ.get("EDGEDISTILL_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UsageError("EDGEDISTILL_API_KEY holds a character that HTTP cannot carry; set it again")
        self._running: set[threading.Event] = set()                # one for each `generate`; set, it is over
        self._sockets: dict[socket.socket, threading.Event] = {}   # and what is open for it
        self._plain = self._extra_accepted = False  # whether the server takes what OpenAI's interface does not have
        self._lock = threading.Lock()
        self._model = self._choose(model)
        self.name = _base(self._model)    # without folders: a server may call a model by its path

    def _choose(self, model: str | None) -> str:
        try:
            listed = json.loads(self._exchange("/v1/models", None, min(_CONNECT, self.timeout), threading.Event()))
            known = [str(entry["id"]) for entry in listed["data"] or []]
            same = known[:1] if model is None else [name for name in known if name == model] or [
                name for name in known if _base(name) == _base(model)] or ([] if known else [model])
            if not (known or same):
                raise LookupError
        except _Failed as failed:
            remedy = _REMEDIES.get(failed.status, "start the server or correct the address")
            raise UsageError(f"{self.url} cannot be used ({failed}); {remedy}") from failed
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(f"{self.url}/v1/models lists no models; give the address of an OpenAI-compatible server "
                             "that has one loaded") from error
        if not same:
            raise UsageError(f"{self.url} has no model {model!r}; it has {', '.join(map(_base, known[:12]))}")
        return same[0]

    def generate(self, requests: Iterable[Request], sampling: Sampling, max_new: int, stop: re.Pattern[str] | None = None,
                 stop_strings: tuple[str, ...] = ()) -> Iterator[Completion]:
        """Continues each request once for each of its seeds, yields completions as they end (not in order).

        At most `parallel` are under way, requests are pulled as places get free. The server ends a text before one of
        `stop_strings` (at most 4); what it sends is cut after the first match of `stop`. Token counts are the server's.
        When it raises, or the consumer stops early, all that is under way is hung up, without waiting.

        Raises `UsageError` for a request that the server refuses, `Error` when one fails on every try.
        """
        if len(stop_strings) > 4:
            raise ValueError("OpenAI's interface takes at most 4 stop strings")
        jobs = ((request, seed) for request in requests for seed in request.seeds)
        done: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        over = threading.Event()
        self._running.add(over)
        self._extra_accepted = False  # of this sampling
        body = {"model": self._model, "max_tokens": max_new, "temperature": max(0.0, sampling.temp),
                "top_p": sampling.top_p, **({"stop": stop_strings} if stop_strings else {})}
        # Defaults differ: llama-cpp-python's server penalises repetition by 1.1, vLLM by what the model's
        # generation_config.json says.
        extra = {"repeat_penalty": 1.0, "repetition_penalty": 1.0, "cache_prompt": self.cache,
                 **({"top_k": sampling.top_k, "min_p": sampling.min_p} if sampling.temp > 0 else {})}

        def work(request: Request, seed: int) -> None:
            try:
                done.put(self._complete(request, seed, body, extra, stop, over))
            except BaseException as error:
                done.put(error)

        outcome: Completion | BaseException | None = None
        running = 0
        try:
            while True:
                for job in islice(jobs, self.parallel - running):
                    threading.Thread(target=work, args=job, daemon=True).start()
                    running += 1
                if outcome is not None:  # only now: the free place is taken while the consumer works
                    yield outcome
                if not running:
                    return
                outcome = done.get()
                running -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            self._end(over)

    def close(self) -> None:
        """Hangs up whatever is under way."""
        for over in self._running.copy():
            self._end(over)

    def _end(self, over: threading.Event) -> None:
        over.set()
        self._running.discard(over)
        for sock in [sock for sock, its in self._sockets.copy().items() if its is over]:
            _hang_up(sock)

    def _complete(self, request: Request, seed: int, body: dict[str, Any], extra: dict[str, Any],
                  stop: re.Pattern[str] | None, over: threading.Event) -> Completion:
        chat = not isinstance(request.prompt, str)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        body = {**body, "messages" if chat else "prompt": request.prompt, "seed": seed & 0x7FFFFFFF}
        plain, failures = self._plain, 0
        while True:
            try:
                if not self.cache:
                    self._forget(over)
                data = self._exchange(path, body if plain else {**body, **extra}, self.timeout, over)
                text, finish, prompt_tokens, generated = self._read(data, chat)
                break
            except _Failed as failed:
                if failed.status in (400, 422) and not plain and not self._extra_accepted:
                    plain = True
                    continue
                if failed.status == 400 and _TOO_LONG.search(str(failed)):  # the row's fault, not the request's
                    return Completion(request.key, seed, "", "prompt_too_long", 0, 0)
                if failed.final:
                    remedy = _REMEDIES.get(failed.status, "change the request or the server's settings accordingly")
                    raise UsageError(f"{self.url} refuses a request ({failed}); {remedy}") from failed
                failures += 1
                if failures == 1:
                    say(f"{self.url}: {failed}; it is tried again, up to {self.retries} times")
                wait = min(_WAITS[1], _WAITS[0] * 2 ** (failures - 1)) * _JITTER.uniform(0.5, 1)
                if failures > self.retries or over.wait(max(wait, min(failed.wait, self.timeout))):
                    raise Error(f"{self.url}: a request failed {failures} times, at last with: {failed}; see to the "
                                "server, then the same command goes on from here") from failed
        with self._lock:
            self._extra_accepted |= not plain
            if plain and not self._plain:
                self._plain = True
                say(f"{self.url} refuses {', '.join(extra)}; it is asked without them")
        match = stop.search(text) if stop else None
        return Completion(request.key, seed, text[: match.end()] if match else text, "stop" if match else finish,
                          prompt_tokens, generated)

    def _forget(self, over: threading.Event) -> None:
        """Puts another, tiny prompt between two rows.

        llama-cpp-python's server ignores `cache_prompt`: it goes on from what a prompt shares with the one before, and the
        shape of what is left to decode decides its last bits, so that a row's text would depend on its neighbours.
        """
        with suppress(_Failed):  # a server without this endpoint has no such habit
            self._exchange("/v1/completions", {"model": self._model, "prompt": "x", "max_tokens": 1}, self.timeout, over)

    def _read(self, data: bytes, chat: bool) -> tuple[str, str, int, int]:
        """(text, finish, prompt tokens, generated tokens) of an answer."""
        try:
            answer = json.loads(data)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            # Content is null where a model only reasoned. Half a surrogate pair could not be written to a file.
            text = (choice["message"].get("content") if chat else choice["text"]) or ""
            return (text.encode(errors="replace").decode(),
                    "length" if choice.get("finish_reason") == "length" else "stop",
                    int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except Exception as error:  # a stranger's JSON: of any shape and depth
            raise _Failed(f"an answer that holds no text: {self._message(data)}") from error

    def _exchange(self, path: str, body: dict[str, Any] | None, timeout: float, over: threading.Event) -> bytes:
        """One request on a connection of its own, a GET where there is no body. Returns the body of its 200."""
        kind = http.client.HTTPSConnection if self.url.startswith("https") else http.client.HTTPConnection
        connection = kind(self.url.partition("//")[2], timeout=min(_CONNECT, timeout))
        headers = {"Content-Type": "application/json", "Connection": "close",
                   **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        try:
            connection.connect()
            with self._bounded(connection.sock, timeout, over):
                connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
                with connection.getresponse() as response:
                    data = response.read(_LARGEST + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _Failed(" ".join(str(error).split())[:160] or type(error).__name__) from error
        finally:
            connection.close()
        if len(data) > _LARGEST:
            raise Error(f"{self.url} sent more than {_LARGEST >> 20} MB at once; is it a language model's server?")
        if response.status != 200:
            redirect = 300 <= response.status < 400
            after = response.headers.get("Retry-After", "")
            raise _Failed("a redirect, which is not followed" if redirect else self._message(data), response.status,
                          float(after) if re.fullmatch(r"\d{1,6}", after, re.A) else 0)
        return data

    @contextmanager
    def _bounded(self, sock: socket.socket, seconds: float, over: threading.Event) -> Iterator[None]:
        """Hangs up when the time or the `generate` is over: a socket's own timeout begins anew with each byte."""
        end = time.monotonic() + seconds
        timer = threading.Timer(seconds, _hang_up, [sock])
        timer.daemon = True
        timer.start()
        self._sockets[sock] = over
        if over.is_set():  # before it could know of this socket
            _hang_up(sock)
        try:
            yield
        finally:
            timer.cancel()
            del self._sockets[sock]
            if time.monotonic() >= end:  # what was read may look whole, or like any error
                raise TimeoutError(f"no answer within {seconds:g} s")

    def _message(self, data: bytes) -> str:
        """What an answer says went wrong: one line of at most 160 characters, without the key."""
        text = data[:4096].decode(errors="replace")
        with suppress(ValueError, RecursionError):
            found = json.loads(data)
            for name in ("error", "message", "detail"):
                found = found.get(name) or found if isinstance(found, dict) else found
            text = found if isinstance(found, str) else json.dumps(found)
        text = text.replace(self._key, "***") if self._key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text[:4096]).split())[:160] or "no message"


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not SSLSocket's own method: that one takes the connection away under the thread that reads from it.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _base(model: str) -> str:
    return re.sub(r"\.gguf$", "", re.split(r"[/\\]", model.rstrip("/\\"))[-1], flags=re.I)
