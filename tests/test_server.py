"""The client of a server: against llama-cpp-python's own with the real embedded model, and against one that misbehaves."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edgedistill.errors import Error, UsageError
from edgedistill.teach import server as module
from edgedistill.teach.completion import Completion, Request, Sampling
from edgedistill.teach.server import Server

GREEDY, SAMPLED = Sampling(), Sampling(temp=0.8)


def chat(text):
    return ({"role": "user", "content": text},)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# llama-cpp-python's server

EXTRAS = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
# The first shares no prefix with anything: where both were asked the same since then, both hold the same in their cache.
PROMPTS = ["# Notes", "The capital of France is", "Once upon a time", "one two three one two three one two",
           chat("What is 2 + 3?"), chat("Name a colour."), chat("Say hello, hello, hello.")]


@pytest.fixture(scope="module")
def real(tmp_path_factory, teacher_path):
    """The address of a server of the real model."""
    absent = [name for name in EXTRAS if not importlib.util.find_spec(name)]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed; pip install 'llama-cpp-python[server]'")
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(teacher_path), "--n_ctx", "1024", "--host",
               "127.0.0.1", "--port", url.rpartition(":")[2], "--n_threads", "1", "--n_threads_batch", "1"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            for _ in range(300):
                with suppress(UsageError):
                    Server(url)
                    break
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.1)
            yield url
        finally:
            process.kill()


def test_greedy_text_is_that_of_the_library_itself(real, teacher_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(teacher_path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    server = Server(real, parallel=1)
    asked = [Request(prompt, prompt) for prompt in PROMPTS]
    for request, got in zip(asked, server.generate(asked, GREEDY, 24), strict=True):
        if isinstance(request.prompt, str):
            wanted = model(request.prompt, max_tokens=24, temperature=0)
            text = wanted["choices"][0]["text"]
        else:
            wanted = model.create_chat_completion(list(request.prompt), max_tokens=24, temperature=0)
            text = wanted["choices"][0]["message"]["content"]
        assert got == Completion(request.key, 0, text, wanted["choices"][0]["finish_reason"],
                                 wanted["usage"]["prompt_tokens"], wanted["usage"]["completion_tokens"])
    model.close()


def test_model_called_by_its_path_gets_a_name_without_one(real, teacher_path):
    assert Server(real).name == teacher_path.stem == Server(real + "/v1/", model=teacher_path.name).name
    with pytest.raises(UsageError, match=f"has no model 'other'; it has {re.escape(teacher_path.stem)}$"):
        Server(real, model="other")


def test_every_seed_gives_a_completion_of_its_own_and_the_same_one_again(real):
    server = Server(real, parallel=3)
    asked = [Request(i, prompt, (1, 2, 3)) for i, prompt in enumerate(PROMPTS[1:3])]
    first, again = ({(c.key, c.seed): c.text for c in server.generate(asked, SAMPLED, 12)} for _ in range(2))
    assert first == again and sorted(first) == [(key, seed) for key in (0, 1) for seed in (1, 2, 3)]
    assert len(set(first.values())) > 2


def test_text_is_cut_after_the_stop_pattern_or_before_a_stop_string(real):
    server, asked = Server(real), [Request(0, PROMPTS[2])]
    list(server.generate(asked, GREEDY, 12))  # from now on its prompt is in the server's cache
    (whole,) = server.generate(asked, GREEDY, 12)
    word = whole.text.split()[3]
    (cut,) = server.generate(asked, GREEDY, 12, re.compile(re.escape(word)))
    (before,) = server.generate(asked, GREEDY, 12, None, (word,))
    assert whole.finish == "length" and whole.generated_tokens == 12
    assert (cut.text, cut.finish) == (whole.text[: whole.text.index(word) + len(word)], "stop")
    assert (before.text, before.finish) == (whole.text[: whole.text.index(word)], "stop")


def test_prompt_beyond_the_servers_context_says_so_and_the_others_go_on(real):
    done = list(Server(real, parallel=1).generate([Request(0, "word " * 1200), Request(1, "One, two,")], GREEDY, 4))
    assert [(c.key, c.finish) for c in done] == [(0, "prompt_too_long"), (1, "length")]
    assert done[0].text == "" and done[1].text


# A server that misbehaves


class Stub(ThreadingHTTPServer):
    """Answers POST number n with `behave(handler, body, n)`, counts what is under way and what arrived."""

    daemon_threads, block_on_close, request_queue_size = True, False, 64
    listing = {"data": [{"id": "/home/me/models/Tiny-7B.Q4.GGUF"}, {"id": "org/other"}]}

    def __init__(self, behave):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.lock, self.leave = behave, threading.Lock(), threading.Event()
        self.asked, self.headers, self.running, self.most = [], [], 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # a client that hung up


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.headers.append(dict(self.headers))
        send(self, 200 if self.path == "/v1/models" else 404, self.server.listing)

    def do_POST(self):
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            n = len(stub.asked)
            stub.asked.append((self.path, body))
            stub.headers.append(dict(self.headers))
            stub.running += 1
            stub.most = max(stub.most, stub.running)
        try:
            stub.behave(self, body, n)
        finally:
            with stub.lock:
                stub.running -= 1

    def log_message(self, *_):
        pass


def send(handler, status, payload, **headers):
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": len(data), **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(data)


def good(text="yes", finish="stop"):
    return {"choices": [{"text": text, "message": {"content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def fine(handler, body, n):
    send(handler, 200, good())


@pytest.fixture
def stub(monkeypatch):
    """Starts servers: stub(behave). Tries follow each other at once."""
    monkeypatch.setattr(module, "_WAITS", (0.001, 0.002))
    started = []

    def start(behave=fine):
        started.append(Stub(behave))
        threading.Thread(target=started[-1].serve_forever, args=(0.01,), daemon=True).start()
        return started[-1]

    yield start
    for server in started:
        server.leave.set()
        server.shutdown()
        server.server_close()


def ask(url, n=1, prompt="?", sampling=GREEDY, stop=None, **options):
    return list(Server(url, **options).generate([Request(i, prompt) for i in range(n)], sampling, 8, stop))


def cut_off(handler, body, n):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


FAULTS = {
    "500": lambda h, b, n: send(h, 500, {"error": {"message": "out of\nmemory"}}),
    "502": lambda h, b, n: send(h, 502, b"<html>bad gateway</html>"),
    "503": lambda h, b, n: send(h, 503, {"error": {"message": "Loading model"}}),
    "504": lambda h, b, n: send(h, 504, b""),
    "429": lambda h, b, n: send(h, 429, {"detail": "slow down"}, Retry_After="soon"),
    "dropped": lambda h, b, n: h.connection.shutdown(socket.SHUT_RDWR),
    "cut off": cut_off,
    "no HTTP": lambda h, b, n: h.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "no JSON": lambda h, b, n: send(h, 200, b"hello"),
    "no UTF-8": lambda h, b, n: send(h, 200, b"\xff\xfe\x00"),
    "deep JSON": lambda h, b, n: send(h, 200, b"[" * 100_000),
    "no object": lambda h, b, n: send(h, 200, [1, 2]),
    "no choices": lambda h, b, n: send(h, 200, {"error": {"message": "overloaded"}}),
    "empty choices": lambda h, b, n: send(h, 200, {"choices": []}),
    "no text": lambda h, b, n: send(h, 200, {"choices": [{"index": 0}]}),
    "list as text": lambda h, b, n: send(h, 200, {"choices": [{"text": [1]}]}),
    "endless count": lambda h, b, n: send(h, 200, {**good(), "usage": {"prompt_tokens": float("inf")}}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_that_passes_is_tried_again(stub, fault):
    server = stub(lambda h, b, n: (FAULTS[fault] if n < 2 else fine)(h, b, n))
    assert ask(server.url) == [Completion(0, 0, "yes", "stop", 5, 2)]
    assert len(server.asked) == 3 and server.asked[0] == server.asked[2]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_that_stays_is_one_line_with_its_reason(stub, fault):
    server = stub(FAULTS[fault])
    with pytest.raises(Error, match="a request failed 3 times, at last with: .+; see to the server") as caught:
        ask(server.url, retries=2)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value) and len(str(caught.value)) < 330
    assert len(server.asked) == 3
    said = {"500": "500: out of memory", "503": "503: Loading model", "429": "429: slow down", "no choices": "overloaded"}
    assert said.get(fault, "") in str(caught.value)


def test_tries_wait_longer_each_time_up_to_the_longest(stub, monkeypatch):
    class Clock(threading.Event):
        waits = []

        def wait(self, seconds=None):
            self.waits.append(seconds)

    monkeypatch.setattr(module, "_WAITS", (0.5, 30.0))
    with pytest.raises(Error):
        Server(stub(FAULTS["500"]).url, retries=9)._complete(Request(0, "?"), 0, {}, {}, None, Clock())
    for seconds, most in zip(Clock.waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert most / 2 <= seconds <= most
    assert len(set(Clock.waits)) == 9


@pytest.mark.parametrize(("after", "timeout", "least"), [(1, 60, 1.0), (9, 0.4, 0.4)])
def test_server_that_asks_to_wait_is_obeyed_up_to_the_timeout(stub, after, timeout, least):
    server = stub(lambda h, b, n: send(h, 429, b"", Retry_After=after) if n == 0 else fine(h, b, n))
    start = time.monotonic()
    assert ask(server.url, timeout=timeout)[0].text == "yes"
    assert least <= time.monotonic() - start < least + 3


def hang(handler, body, n):
    handler.server.leave.wait(30)


def drip(before):
    def behave(handler, body, n):
        handler.wfile.write(before)
        while not handler.server.leave.wait(0.02):
            handler.wfile.write(b" ")
    return behave


@pytest.mark.parametrize("behave", [
    hang, drip(b"HTTP/1.1 200 OK\r\nX: "), drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
    drip(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(good()).encode())])
def test_server_that_hangs_or_drips_is_left_when_the_time_is_over(stub, behave):
    start = time.monotonic()
    with pytest.raises(Error, match="failed 2 times, at last with: no answer within 0.4 s"):
        ask(stub(behave).url, timeout=0.4, retries=1)
    assert 0.8 <= time.monotonic() - start < 4


@pytest.mark.parametrize(("status", "remedy"), [
    (400, "change the request"), (422, "change the request"), (401, "set EDGEDISTILL_API_KEY"),
    (403, "set EDGEDISTILL_API_KEY"), (404, "check the address"), (302, "redirect, which is not followed")])
def test_refusal_is_not_repeated_and_does_not_tell_the_key(stub, monkeypatch, status, remedy):
    monkeypatch.setenv("EDGEDISTILL_API_KEY", "sk-secret")
    told = {"error": {"message": "wrong key sk-secret \x1b[31m\n" + 300 * "x"}}
    server = stub(lambda h, b, n: send(h, status, told, Location="http://example.com/"))
    with pytest.raises(UsageError, match=remedy) as caught:
        ask(server.url)
    assert len(server.asked) == (2 if status in (400, 422) else 1)
    text = str(caught.value)
    assert "sk-secret" not in text and text.isprintable() and 100 * "x" in text or status == 302
    assert len(text) < 320


@pytest.mark.parametrize("status", [400, 422])
def test_strict_server_is_asked_without_the_keys_it_does_not_know(stub, capfd, status):
    known = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop"}

    def strict(handler, body, n):
        unknown = sorted(set(body) - known)
        send(handler, status if unknown else 200, {"error": f"unknown: {unknown}"} if unknown else good())

    server = stub(strict)
    assert len(ask(server.url, 6, sampling=SAMPLED, parallel=2)) == 6
    assert 7 <= len(server.asked) <= 8  # the first ones only
    said = capfd.readouterr().err.splitlines()
    assert said == [f"{server.url} refuses repeat_penalty, repetition_penalty, cache_prompt, top_k, min_p; "
                    "it is asked without them"]


def test_refusal_after_the_keys_were_taken_has_another_cause(stub, capfd):
    server = stub(lambda h, b, n: send(h, 400, {"error": "too long"}) if n else fine(h, b, n))
    with pytest.raises(UsageError, match="400: too long"):
        ask(server.url, 2, parallel=1)
    assert len(server.asked) == 2 and "repeat_penalty" in server.asked[1][1] and not capfd.readouterr().err


def test_huge_answer_is_refused_at_once(stub, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 1 << 20)
    server = stub(lambda h, b, n: send(h, 200, b"x" * (1 << 20) + b"y"))
    with pytest.raises(Error, match="more than 1 MB"):
        ask(server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("choice", "text", "finish"), [
    ({"message": {"content": None, "reasoning_content": "Hm."}, "finish_reason": "length"}, "", "length"),
    ({"message": {"role": "assistant"}, "finish_reason": None}, "", "stop"),
    ({"message": {"content": "5", "reasoning_content": "Hm."}, "finish_reason": "eos"}, "5", "stop"),
    ({"message": {"content": "half \ud83d"}, "finish_reason": "length"}, "half ?", "length"),
    ({"message": {"content": "a. b. c"}, "finish_reason": "length"}, "a. b.", "stop"),
])
def test_what_an_answer_may_leave_out(stub, choice, text, finish):
    server = stub(lambda h, b, n: send(h, 200, {"choices": [choice], "usage": None}))
    assert ask(server.url, prompt=chat("?"), stop=re.compile(r"b\.")) == [Completion(0, 0, text, finish, 0, 0)]


def test_what_a_request_says(stub, monkeypatch):
    monkeypatch.setenv("EDGEDISTILL_API_KEY", " sk-secret\n")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody listens there
    server = stub()
    client = Server(server.url, parallel=1, cache=False)
    list(client.generate([Request("a", "once", (7,))], GREEDY, 9))
    list(client.generate([Request("b", chat("hi"), (8, 9))], SAMPLED, 9, None, ("\n", "Q:")))
    common = {"model": "/home/me/models/Tiny-7B.Q4.GGUF", "max_tokens": 9, "top_p": 0.95, "repeat_penalty": 1.0,
              "repetition_penalty": 1.0, "cache_prompt": False}
    sampled = {**common, "messages": [{"role": "user", "content": "hi"}], "temperature": 0.8, "top_k": 40,
               "min_p": 0.05, "stop": ["\n", "Q:"]}
    # Without the cache another prompt comes between, for servers that reuse the last one's prefix all the same.
    between = ("/v1/completions", {"model": common["model"], "prompt": "x", "max_tokens": 1})
    assert server.asked == [between, ("/v1/completions", {**common, "prompt": "once", "temperature": 0, "seed": 7}),
                            between, ("/v1/chat/completions", {**sampled, "seed": 8}),
                            between, ("/v1/chat/completions", {**sampled, "seed": 9})]
    assert len(server.headers) == 7 and all(h["Authorization"] == "Bearer sk-secret" for h in server.headers)
    with pytest.raises(ValueError):
        list(client.generate([], GREEDY, 9, None, tuple("abcde")))


def test_no_key_is_sent_without_one_and_a_broken_one_is_not_shown(stub, monkeypatch):
    monkeypatch.delenv("EDGEDISTILL_API_KEY", raising=False)
    server = stub()
    ask(server.url)
    assert not any("Authorization" in headers for headers in server.headers)
    monkeypatch.setenv("EDGEDISTILL_API_KEY", "sk-sec\nret")
    with pytest.raises(UsageError, match="EDGEDISTILL_API_KEY holds") as caught:
        Server(server.url)
    assert "ret" not in str(caught.value)


# Concurrency


def test_as_many_requests_as_asked_are_under_way_and_never_more(stub):
    together = threading.Barrier(4, timeout=10)

    def behave(handler, body, n):
        together.wait()  # passes only when four are there
        fine(handler, body, n)

    server = stub(behave)
    asked = [Request(i, "?", (1, 2)) for i in range(8)]
    got = list(Server(server.url, parallel=4).generate(asked, GREEDY, 8))
    assert sorted((c.key, c.seed) for c in got) == [(i, seed) for i in range(8) for seed in (1, 2)]
    assert server.most == 4


def test_requests_are_pulled_as_places_get_free(stub):
    pulled = []

    def requests():
        for i in range(50):
            pulled.append(i)
            yield Request(i, "?")

    for done, _ in enumerate(Server(stub().url, parallel=3).generate(requests(), GREEDY, 8), 1):
        assert len(pulled) <= done + 3
    assert len(pulled) == 50


def test_completions_come_as_they_end(stub):
    server = stub(lambda h, b, n: (h.server.leave.wait(0.3 * (b["prompt"] == "slow")), fine(h, b, n)))
    asked = [Request(0, "slow"), Request(1, "fast"), Request(2, "fast")]
    assert [c.key for c in Server(server.url, parallel=2).generate(asked, GREEDY, 8)] == [1, 2, 0]


def under_way():
    return [t for t in threading.enumerate() if getattr(t, "_target", None) and t._target.__name__ == "work"]


def settle():
    """Whether all threads of the client end soon."""
    end = time.monotonic() + 3
    while under_way() and time.monotonic() < end:
        time.sleep(0.01)
    return not under_way()


@pytest.mark.parametrize("others", [hang, FAULTS["500"], drip(b"HTTP/1.1 200 OK\r\n\r\n")])
def test_consumer_that_stops_early_waits_for_nobody(stub, monkeypatch, others):
    monkeypatch.setattr(module, "_WAITS", (30.0, 30.0))
    server = stub(lambda h, b, n: (fine if b["seed"] == 0 else others)(h, b, n))
    client = Server(server.url, parallel=4)
    completions = client.generate((Request(i, "?", (int(i > 0),)) for i in range(99)), GREEDY, 8)
    assert next(completions).key == 0
    start = time.monotonic()
    completions.close()
    assert time.monotonic() - start < 1 and settle()
    assert len(server.asked) <= 5
    assert [c.text for c in client.generate([Request(0, "?")], GREEDY, 8)] == ["yes"]  # and it can be used again


def test_refusal_ends_what_hangs_beside_it(stub):
    server = stub(lambda h, b, n: send(h, 401, b"") if b["seed"] == 2 else hang(h, b, n))
    start = time.monotonic()
    with pytest.raises(UsageError, match="401"):
        list(Server(server.url).generate([Request(0, "?", (1, 2, 3))], GREEDY, 8))
    assert time.monotonic() - start < 2 and settle()


def test_error_of_the_requests_own_iterator_ends_the_rest(stub):
    def requests():
        yield Request(0, "?")
        raise OSError("no more rows")

    with pytest.raises(OSError, match="no more rows"):
        list(Server(stub(hang).url).generate(requests(), GREEDY, 8))
    assert settle()


def test_closed_client_ends_the_wait_of_another_thread(stub):
    client = Server(stub(hang).url)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(Error, match="failed 1 times"):
        list(client.generate([Request(0, "?")], GREEDY, 8))
    assert settle()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send a signal to one thread")
def test_ctrl_c_ends_the_wait(stub):
    client = Server(stub(hang).url)
    # A shell's background jobs ignore it, and Python leaves that as it is.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(client.generate([Request(0, "?")], GREEDY, 8))
        assert time.monotonic() - start < 2 and settle()
    finally:
        signal.signal(signal.SIGINT, before)


# Addresses and models


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://localhost", "http://", "http://a b", "http://h:99999",
                                 "http://h:port", "http://h/api/v1", "http://h/v1?x=1", "http://me:pass@h:80", "http://h\n",
                                 "model.gguf"])
def test_what_is_no_address_is_one_line(url):
    with pytest.raises(UsageError, match="is no server's address; give http://HOST:PORT") as caught:
        Server(url)
    assert "pass" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("url", "reason"), [
    ("http://127.0.0.1:{}", "Connection refused"), ("https://127.0.0.1:{}/v1", "Connection refused"),
    ("http://a..b", "label")])
def test_nobody_there_is_one_line(url, reason):
    with pytest.raises(UsageError, match=f"cannot be used .*({reason}).*start the server or correct the address") as caught:
        Server(url.format(free_port()))
    assert "\n" not in str(caught.value)


def test_http_server_asked_by_https_is_one_line(stub):
    with pytest.raises(UsageError, match="cannot be used .*SSL"):
        Server(stub().url.replace("http", "https"))


@pytest.mark.parametrize("listing", [{}, [], 5, b"<html></html>", {"data": 3}, {"data": [{"name": "m"}]},
                                     {"data": []}, {"data": None}])
def test_what_lists_no_model_is_one_line(stub, listing):
    server = stub()
    server.listing = listing
    with pytest.raises(UsageError, match="/v1/models lists no models; give the address of an OpenAI-compatible"):
        Server(server.url)


def test_server_without_a_list_is_asked_for_what_the_user_says(stub):
    server = stub()
    server.listing = {"object": "list", "data": None}
    assert Server(server.url, model="llama3:8b").name == "llama3:8b"
    ask(server.url, model="llama3:8b")
    assert server.asked[0][1]["model"] == "llama3:8b"


@pytest.mark.parametrize(("model", "full", "name"), [
    (None, "/home/me/models/Tiny-7B.Q4.GGUF", "Tiny-7B.Q4"), ("Tiny-7B.Q4", "/home/me/models/Tiny-7B.Q4.GGUF", "Tiny-7B.Q4"),
    ("org/other", "org/other", "other"), ("other", "org/other", "other")])
@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_model_is_asked_for_by_its_full_name_and_known_by_the_last_part(stub, model, full, name, tail):
    server = stub()
    client = Server(server.url + tail, model=model)
    list(client.generate([Request(0, "?")], GREEDY, 8))
    assert (client.name, server.asked[0][1]["model"]) == (name, full)


def test_model_that_is_not_there_is_refused_with_those_that_are(stub):
    with pytest.raises(UsageError, match="has no model 'more'; it has Tiny-7B.Q4, other$"):
        Server(stub().url, model="more")
