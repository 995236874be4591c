"""The engine says what llama.cpp says, once for each request, with the real embedded model.

One thread: on a shared machine llama.cpp's threads wait for each other in a loop and take ten times as long.
"""

import re

import llama_cpp
import numpy as np
import pytest

from edgedistill.errors import UsageError
from edgedistill.teach import soft
from edgedistill.teach.completion import Request, Sampling
from edgedistill.teach.engine import Engine, common_prefix
from edgedistill.teach.sampling import draw

PROMPTS = ["The capital of France is", "Once upon a time there was a", "Q: What is 2 + 2?\nA:"]
# Texts whose next words are certain. Where two candidates are nearly equal, a batch of another size rounds
# in another way and they change places; here they cannot.
COUNTS = [", ".join(str(start + i) for i in range(9)) + "," for start in (10, 21, 32, 43, 54, 65, 76)]
NEXT = [f" {start + 9}, {start + 10}," for start in (10, 21, 32, 43, 54, 65, 76)]
LONG = ", ".join(map(str, range(100, 210))) + ","  # 548 tokens, more than a batch
NEW = 24


@pytest.fixture(scope="module")
def engine(teacher_path):
    made = Engine(teacher_path, threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(teacher_path):
    """Plain llama.cpp with the attention kernel that it takes by itself (llama-cpp-python turns it off)."""
    return llama_cpp.Llama(str(teacher_path), n_ctx=1024, n_batch=512, n_threads=1, n_threads_batch=1,
                           flash_attn=True, verbose=False)


def generate(engine, texts, slots=1, share=True, sampling=None, new=NEW, seeds=None, stop=None):
    """Completions by the place of their text."""
    tokens = [engine.tokenize(text, True, False) for text in texts]
    prefix = common_prefix(tokens) if share else ()
    engine.prepare(prefix, max(map(len, tokens)) - len(prefix) + new, slots)
    requests = [Request(i, t, ((seeds or [0] * len(texts))[i],)) for i, t in enumerate(tokens)]
    done = list(engine.generate(requests, sampling or Sampling(), new, stop))
    assert sorted(c.key for c in done) == list(range(len(texts)))
    return sorted(done, key=lambda c: c.key)


def plain(reference, engine, text, new=NEW):
    """llama-cpp-python's own greedy text."""
    reference.reset()
    tokens = list(engine.tokenize(text, True, False))
    made = reference.create_completion(tokens, max_tokens=new, temperature=0.0, repeat_penalty=1.0)
    return made["choices"][0]["text"]


def test_greedy_text_is_that_of_plain_llama_cpp(engine, reference):
    for done, prompt in zip(generate(engine, PROMPTS), PROMPTS, strict=True):
        assert len(done.text) > 20 and done.text == plain(reference, engine, prompt)


def test_prompt_longer_than_a_batch_is_decoded_in_order(engine, reference):
    done, = generate(engine, [LONG], share=False, new=6)
    assert done.prompt_tokens > 512
    assert done.text == plain(reference, engine, LONG, 6)
    assert done.text.startswith(" 210,")


def test_shared_prefix_is_read_by_every_sequence(engine):
    prompts = [f"The code is {word}. I repeat:\nThe code is" for word in ("4719, 4719", "4719, 4719, 4719")]
    assert [c.text for c in generate(engine, prompts, slots=2, new=5)] == [" 4719"] * 2
    assert len(engine.prefix) > 10
    prompts = [f"Counting.\n{count}" for count in COUNTS[:3]]
    assert [c.text[:8] for c in generate(engine, prompts, slots=2, new=10)] == NEXT[:3]


def test_sequences_side_by_side_do_not_mix(engine):
    texts = [c.text for c in generate(engine, COUNTS, slots=4, share=False, new=10)]
    assert [text[:8] for text in texts] == NEXT
    # Two prompts that are longer together than a batch: their parts are decoded in turns.
    mixed = generate(engine, [LONG[:399], *COUNTS[:3], LONG[5:404]], slots=3, share=False, new=6)
    assert [c.text[:4] for c in mixed] == [" 180", *(n[:4] for n in NEXT[:3]), " 181"]


def test_with_one_slot_a_text_does_not_depend_on_what_ran_before(engine):
    hot, seeds = Sampling(temp=1.0), [1, 2, 3, 4]
    prompts = [*PROMPTS, LONG[:100]]
    first = generate(engine, prompts, sampling=hot, seeds=seeds)
    second = generate(engine, prompts[::-1], sampling=hot, seeds=seeds[::-1])
    assert [c.text for c in first] == [c.text for c in second[::-1]]


def test_seed_decides_a_sampled_text(engine):
    prompts, hot = [PROMPTS[1]] * 6, Sampling(temp=1.0)
    texts = [c.text for c in generate(engine, prompts, sampling=hot, seeds=[7, 7, 8, 9, 2**32 - 1, 7])]
    assert texts[0] == texts[1] == texts[5]
    assert len(set(texts)) == 4


def test_greedy_text_does_not_look_at_the_seed(engine):
    texts = {c.text for c in generate(engine, [PROMPTS[1]] * 3, seeds=[1, 2, 3], new=8)}
    assert len(texts) == 1


def test_sampling_from_one_candidate_is_greedy(engine):
    greedy = generate(engine, PROMPTS, new=8)
    assert [c.text for c in generate(engine, PROMPTS, sampling=Sampling(temp=1.0, top_k=1), new=8)] == [
        c.text for c in greedy]


def test_stop_pattern_ends_a_text_at_its_match(engine):
    free, = generate(engine, PROMPTS[:1])
    stopped, = generate(engine, PROMPTS[:1], stop=re.compile(r"United St\w*"))
    assert stopped.finish == "stop" and free.finish == "length"
    assert stopped.text.endswith("United States") and free.text.startswith(stopped.text)
    assert stopped.generated_tokens < free.generated_tokens == NEW


def test_text_that_reaches_the_limit_says_so(engine):
    for done in generate(engine, PROMPTS[:2], new=3, slots=2):
        assert (done.finish, done.generated_tokens) == ("length", 3)


def test_end_of_text_token_ends_a_text(engine):
    prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi!"
    tokens = engine.tokenize(prompt, False, True)
    engine.prepare((), len(tokens) + 60, 1)
    done, = engine.generate([Request("a", tokens)], Sampling(), 60)
    assert done.finish == "stop" and "<|im_end|>" not in done.text and done.generated_tokens < 60


def test_more_requests_than_slots_come_back_once_each(engine):
    prompts = [f"{i} + {i} is" for i in range(11)]
    done = generate(engine, prompts, slots=3, new=4)  # it asserts the keys
    assert all(c.generated_tokens == 4 for c in done)


def test_requests_are_taken_only_when_a_slot_is_free(engine):
    taken = []

    def requests():
        for i in range(6):
            taken.append(i)
            yield Request(i, engine.tokenize(f"{i} + {i} is", True, False))

    engine.prepare((), 16, 2)
    next(engine.generate(requests(), Sampling(), 3))
    assert len(taken) <= 3


# Several texts of one prompt


def ask(engine, requests, sampling, new=8, soft_targets=0):
    """Texts by (key, seed), of a context that is prepared already."""
    done = list(engine.generate(requests, sampling, new, soft_targets=soft_targets))
    assert sorted((c.key, c.seed) for c in done) == sorted((r.key, seed) for r in requests for seed in r.seeds)
    return {(c.key, c.seed): c.text for c in done}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=1.0)], ids=["greedy", "sampled"])
def test_seeds_of_one_request_give_the_texts_of_a_request_each(engine, sampling):
    tokens = [engine.tokenize(text, True, False) for text in PROMPTS[:2]]
    prefix = common_prefix([(*tokens[0], 1), (*tokens[0], 2)])
    for shared, own in (((), tokens), (prefix, [(*prefix, *t) for t in tokens])):
        engine.prepare(shared, 24, 1)
        together = ask(engine, [Request(i, t, (7, 8, 9)) for i, t in enumerate(own)], sampling)
        apart = ask(engine, [Request(i, t, (seed,)) for i, t in enumerate(own) for seed in (7, 8, 9)], sampling)
        assert together == apart
        assert len(set(together.values())) == (2 if sampling.temp == 0 else 6)


@pytest.mark.parametrize("independent", [False, True], ids=["pool", "streams"])
def test_seeds_and_slots_need_not_be_equally_many(engine, independent):
    tokens = [engine.tokenize(text, True, False) for text in COUNTS[:2]]
    engine.prepare((), 50, 3, independent)
    for seeds in ((1, 2), (1, 2, 3, 4, 5), (6,), (5, 5, 5, 5)):  # fewer and more than slots, one, the same
        done = list(engine.generate([Request(i, t, seeds) for i, t in enumerate(tokens)], Sampling(), 6))
        assert sorted((c.key, c.seed) for c in done) == [(i, seed) for i in range(2) for seed in sorted(seeds)]
        assert {(c.key, c.text[:3]) for c in done} == {(0, NEXT[0][:3]), (1, NEXT[1][:3])}


def test_prompt_is_decoded_once_for_all_its_seeds(engine, monkeypatch):
    tokens, fed = engine.tokenize(LONG[:200], True, False), []
    engine.prepare((), len(tokens) + 4, 2)
    decode = engine.decode
    monkeypatch.setattr(engine, "decode", lambda entries: (fed.append(len(entries)), decode(entries)))
    ask(engine, [Request(0, tokens, (1, 2, 3, 4))], Sampling(), new=3)
    assert len(tokens) + 4 * 2 == sum(fed)


# A row's text and the rows beside it


def test_in_streams_a_text_is_the_same_whatever_runs_beside_it(engine, monkeypatch):
    drawn = {}

    def noting(logits, sampling, random):
        drawn.setdefault(random.bit_generator.seed_seq.entropy, []).append(hash(logits.tobytes()))
        return draw(logits, sampling, random)

    def run(requests):
        """Every bit of the logits, by seed."""
        drawn.clear()
        ask(engine, requests, Sampling(temp=1.0))
        return dict(drawn)

    monkeypatch.setattr("edgedistill.teach.engine.draw", noting)
    # Behind 246 tokens: each row crosses the border of 256, at which llama.cpp looks at more cells, at its own step.
    prompts = [f"{LONG[:246]}\n\n{text}" for text in [*PROMPTS, "Dear Ann,\n"]]
    tokens = [engine.tokenize(text, True, False) for text in prompts]
    prefix = common_prefix(tokens)
    assert 240 < len(prefix) < 256
    engine.prepare(prefix, 40, 4, independent=True)
    rows = [Request(i, t, (i, i + 50)) for i, t in enumerate(tokens)]
    wanted = run(rows)  # the second seeds begin when other rows are in the middle of theirs
    assert len({bits[-1] for bits in wanted.values()}) == 8
    assert engine.is_independent()
    for row in rows[1:3]:
        assert run([row]) == {seed: wanted[seed] for seed in row.seeds}
    assert run(rows[::-1]) == wanted
    split = [Request(r.key, r.prompt, (seed,)) for r in rows for seed in r.seeds]
    assert run([split[i] for i in (5, 0, 3, 6, 1, 7, 2, 4)]) == wanted


def test_rows_whose_logits_depend_on_their_place_are_not_independent(engine, monkeypatch):
    engine.prepare((), 20, 3, independent=True)
    logits = engine.logits
    monkeypatch.setattr(engine, "logits", lambda i: logits(i) * np.float32(1 + 1e-6 * i))
    assert not engine.is_independent()
    engine.prepare((), 20, 1)
    assert engine.is_independent()  # a row alone


# Soft targets


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=1.5, top_k=0, top_p=1.0, min_p=0.0)], ids=["greedy", "hot"])
def test_soft_targets_are_those_of_the_text_and_of_scoring_it(engine, sampling):
    tokens = engine.tokenize("<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi", False, True)
    engine.prepare(tokens[:3], 60, 2)
    done = list(engine.generate([Request(0, tokens, (1, 2))], sampling, 10, soft_targets=5))
    for made in done:
        soft.check(made.soft, made.text, engine.piece, engine.is_end)
        taken = made.soft["ids"][np.arange(len(made.soft)), made.soft["place"]]
        assert len(taken) == made.generated_tokens + (made.finish == "stop") and engine.is_end(taken[-1]) == (
            made.finish == "stop")
        assert (made.soft["place"] == 0).all() == (sampling.temp == 0)
        assert (np.diff(made.soft["logprobs"][:, :4]) <= 0).all()
        scored = engine.score(tokens, tuple(map(int, taken)), 5)
        assert (scored["place"] == made.soft["place"]).all() and (scored["ids"] == made.soft["ids"]).all()
        assert np.abs(scored["logprobs"] - made.soft["logprobs"]).max() < 0.05
        assert (engine.score(tokens, tuple(map(int, taken)), 5) == scored).all()  # it leaves no trace


def test_text_longer_than_a_batch_is_scored_token_by_token(engine, monkeypatch):
    tokens = engine.tokenize(LONG, True, False)[:160]
    engine.prepare(tokens[:2], 160, 1)
    whole = engine.score(tokens[:5], tokens[5:], 3)
    assert whole["ids"][np.arange(155), whole["place"]].tolist() == list(tokens[5:])
    assert whole["logprobs"][-60:, 0].astype(float).min() > np.log(0.5) and (whole["place"][-60:] == 0).all()  # it counts
    monkeypatch.setattr(engine, "room", 20)  # of a batch, as in a small context
    for first in (5, 100):  # text and prompt longer than a batch
        parts = engine.score(tokens[:first], tokens[first:], 3)
        assert (parts["ids"][-60:, 0] == whole["ids"][-60:, 0]).all()
        assert np.abs(parts["logprobs"][-60:, 0].astype(float) - whole["logprobs"][-60:, 0]).max() < 0.05


def test_probe_of_the_speed_leaves_no_trace(engine):
    before = generate(engine, PROMPTS, slots=2, new=8)
    tokens = [engine.tokenize(text, True, False) for text in PROMPTS]
    engine.prepare((), max(map(len, tokens)) + 8, 2)
    assert engine.step_seconds() > 0
    requests = [Request(i, t) for i, t in enumerate(tokens)]
    after = sorted(engine.generate(requests, Sampling(), 8), key=lambda c: c.key)
    assert after == before


def test_no_request_gives_no_completion(engine):
    engine.prepare((), 16, 1)
    assert list(engine.generate([], Sampling(), 4)) == []


def test_request_outside_the_shared_prefix_is_a_mistake(engine):
    tokens = engine.tokenize("one two three", True, False)
    engine.prepare(tokens, 8, 1)
    for wrong in (engine.tokenize("four five six", True, False), tokens):
        with pytest.raises(ValueError, match="begin with the shared prefix"):
            list(engine.generate([Request(0, wrong)], Sampling(), 4))


def test_context_too_small_for_its_requests_is_one_line(engine):
    tokens = engine.tokenize(LONG, True, False)
    engine.prepare((), 64, 1)  # rounded up to 256 cells
    with pytest.raises(UsageError, match=r"could not decode .*lower --parallel or raise --ctx-size"):
        list(engine.generate([Request(0, tokens)], Sampling(), 4))


def test_common_prefix_leaves_every_prompt_a_token():
    assert common_prefix([(1, 2, 3), (1, 2, 4), (1, 2, 3, 5)]) == (1, 2)
    assert common_prefix([(1, 2, 3)]) == (1, 2)
    assert common_prefix([(1, 2), (1, 2)]) == (1,)
    assert common_prefix([(1, 2), (1, 2, 3)]) == (1,)
    assert common_prefix([(1, 2), (3, 2)]) == ()
    assert common_prefix([(1,), (1, 2)]) == ()


def test_tokens_of_a_text_give_the_text_back(engine):
    for text in ("plain", "ü ß 🔑\n\ttab", "<|im_start|>", " " * 50, "x" * 3000):
        tokens = engine.tokenize(text, False, False)
        assert b"".join(map(engine.piece, tokens)).decode() == text
    control = "<|im_start|>"
    assert len(engine.tokenize(control, False, True)) == 1 < len(engine.tokenize(control, False, False))
    assert engine.special("bos") == "<|im_start|>" and engine.special("eos") == "<|im_end|>"


# Files that are no model


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is not a GGUF file (it starts with b'')"),
    (b"PK\x03\x04 a zip", "is not a GGUF file (it starts with b'PK"),
    (b"<html>Not found</html>", "is not a GGUF file"), (b"GGUF", "llama.cpp cannot load it"),
    (b"GGUF\x03\x00\x00\x00" + b"\xff" * 200, "llama.cpp cannot load it"),
    (b"GGUF\x63\x00\x00\x00" + bytes(64), "llama.cpp cannot load it"),
], ids=["empty", "zip", "html", "magic only", "damaged header", "unknown version"])
def test_file_that_is_no_gguf_is_one_line(content, message, tmp_path, capfd):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Engine(path, threads=1)
    assert str(caught.value).startswith("model.gguf") and message in str(caught.value)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_file_that_was_cut_off_is_one_line(teacher_path, tmp_path, capfd):
    path = tmp_path / "cut.gguf"
    with teacher_path.open("rb") as whole:
        path.write_bytes(whole.read(20_000_000))
    with pytest.raises(UsageError) as caught:
        Engine(path, threads=1)
    message = str(caught.value)
    assert message.startswith("cut.gguf: llama.cpp cannot load it (") and "\n" not in message
    assert "download it again" in message and "out of file bounds" in message or "not within" in message
    assert capfd.readouterr() == ("", "")


def test_reason_of_a_failure_is_not_that_of_an_earlier_one(teacher_path, tmp_path):
    cut, damaged = tmp_path / "cut.gguf", tmp_path / "damaged.gguf"
    with teacher_path.open("rb") as whole:
        cut.write_bytes(whole.read(20_000_000))
    damaged.write_bytes(b"GGUF\x63\x00\x00\x00" + bytes(64))
    reasons = []
    for path in (cut, damaged, cut):
        with pytest.raises(UsageError) as caught:
            Engine(path, threads=1)
        reasons.append(str(caught.value).partition(": ")[2])
    assert reasons[0] == reasons[2] != reasons[1]


def test_missing_file_and_folder_are_one_line(tmp_path):
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            Engine(path, threads=1)
