"""Soft targets across tokenizers: the published recurrence by hand, and spans against brute force."""

import subprocess
import sys

import numpy as np
import pytest
from tiny_students import bpe_tokenizer, t5_tokenizer, texts
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgedistill.teach import soft
from edgedistill.train import align

END = ""
# Fu et al.'s notebook dev_align_codex_to_flan_t5_dtw prints this alignment of a Codex answer with Flan-T5's tokens:
# student token : teacher tokens, `_` a space.
PUBLISHED = r"""
▁We:W ng:eng ▁earn:_earns s:_$ ▁$12:12 ▁for:_for ▁every:_every ▁hour:_hour ▁of:_of ▁baby:_babys s:_babys i:_babys
tting:itting .:.+\n ▁She:She ▁baby:_babys s:at at:at ▁for:_for ▁50:_50 ▁minutes:_minutes .:.+\n ▁50:50 ▁minutes:_minutes
▁is:_is ▁less:_less ▁than:_than ▁an:_an ▁hour:_hour ,:, ▁so:_so ▁she:_she ▁earned:_earned ▁less:_less ▁than:_than
▁$12:_$+12 .:.+\n ▁She:She ▁earned:_earned ▁$12:_$+12 /:/ 60:60 ▁*:_* ▁50:_50 ▁=:_=+_$ ▁$10:10 .:.+\n ▁The:The
▁answer:_answer ▁is:_is ▁10:_10"""
CODEX = r"""
W eng _earns _$ 12 _for _every _hour _of _babys itting . \n She _babys at _for _50 _minutes . \n 50 _minutes _is _less _than
_an _hour , _so _she _earned _less _than _$ 12 . \n She _earned _$ 12 / 60 _* _50 _= _$ 10 . \n The _answer _is _10"""


def unfold(text):
    return text.replace("_", " ").replace("\\n", "\n")


def teach(*steps, k=4):
    """(records, vocabulary) of teacher tokens: (what was taken, {candidate: probability}), text or bytes; "" ends."""
    steps = [(_raw(taken), {_raw(piece): p for piece, p in candidates.items()}) for taken, candidates in steps]
    ids = {piece: i for i, piece in enumerate(sorted({piece for _, candidates in steps for piece in candidates}))}
    records = np.zeros(len(steps), soft.record(k))
    for n, (taken, candidates) in enumerate(steps):
        best = sorted(candidates, key=lambda piece: -candidates[piece])
        filler = range(1000, 1000 + k - len(best))  # the record has room for k; these have no probability
        records["ids"][n] = [*(ids[piece] for piece in best), *filler]
        records["logprobs"][n] = [*(np.log(candidates[piece]) for piece in best), *(-60_000 for _ in filler)]
        records["place"][n] = best.index(taken)
        records["rest"][n] = max(0, 1 - sum(candidates.values()))
    return records, {**{i: piece for piece, i in ids.items()}, **{i: b"\xff\xff" for i in range(1000, 1000 + k)}}


def _raw(piece):
    return piece if isinstance(piece, bytes) else piece.encode()


def sure(text):
    """Steps of a teacher that is certain, its tokens parted by `|`."""
    return [(piece, {piece: 1.0}) for piece in text.split("|")]


def t5_like(*tokens):
    """T5's conventions over given pieces; the fewest pieces win. Newlines become spaces, as in T5's normalizer."""
    tokenizer = Tokenizer(models.Unigram([(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
                                         + [(token, -1.0) for token in tokens], unk_id=2))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return align.Pieces(tokenizer, 1)


def byte_level(*merges):
    """Byte-level BPE with these merges, none: a token a byte."""
    vocabulary = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return align.Pieces(tokenizer, 0)


def llama_like(*merges):
    """SentencePiece BPE as in Llama 2: `▁` put before the text, no words, bytes for what has no piece."""
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdxyz", *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, list(merges), unk_token="<unk>",
                                     byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return align.Pieces(tokenizer, 1)


def shown(pieces, targets):
    """[{token: probability}] of a text's targets; a row of the fallback is {token: 1.0}."""
    return [{pieces.tokenizer.id_to_token(int(i)): float(p) for i, p in zip(ids, probs, strict=True) if p > 1e-6}
            for ids, probs in zip(targets.ids, targets.probs, strict=True)]


def near(expected):
    return pytest.approx(expected, abs=3e-3)  # log-probabilities are float16


# The published recurrence


@pytest.mark.parametrize(("a", "b", "distance"), [
    ("", "", 0), ("", "abc", 3), ("abc", "", 3), ("12", "$12", 1), ("kitten", "sitting", 3), ("ab", "ba", 2), ("é", "e", 1)])
def test_edit_distance(a, b, distance):
    assert align.levenshtein(a, b) == distance


def test_one_token_against_two_by_hand():
    # c = 1, 1, so M = [1, 2]: both digits are matched with the number.
    assert align.dtw([" 12"], ["▁1", "2"]) == [(0, 0), (0, 1)]
    # c(" $", "▁$12") = 2, c("12", "▁$12") = 1, so M = [2; 3].
    assert align.dtw([" $", "12"], ["▁$12"]) == [(0, 0), (1, 0)]


def test_recurrence_by_hand():
    #          We  ng earn  s            M
    # W         1   2    4  1      1  3  7  8
    # eng       3   1    3  3      4  2  5  8
    #  earns    5   4    1  4      9  6  3  7
    # From 7: diagonal 5, up 8, left 3 -> left; from 3: diagonal 2; from 2: diagonal 1.
    assert align.dtw(["W", "eng", " earns"], ["▁We", "ng", "▁earn", "s"]) == [(0, 0), (1, 1), (2, 2), (2, 3)]


def test_among_equals_the_previous_teacher_token_comes_before_the_previous_student_token():
    #       bbbb  a bbbb        M
    # a        4  0    4     4  4  8
    # bbbb     0  4    0     4  8  4
    # a        4  0    4     8  4  8
    # From the last 8: diagonal 8, up 4, left 4 -> up; then diagonal 4, up 8, left 8.
    assert align.dtw(["a", "bbbb", "a"], ["bbbb", "a", "bbbb"]) == [(0, 0), (0, 1), (1, 2), (2, 2)]


def test_diagonal_comes_first_among_equals():
    assert align.dtw(["a", "a"], ["▁a", "a"]) == [(0, 0), (1, 1)]  # M is 0 everywhere


def test_marks_of_spaces_cost_nothing_and_no_tokens_align_with_nothing():
    assert align.dtw([" a", "b"], ["▁a", "b"]) == [(0, 0), (1, 1)]
    assert align.dtw([], ["a"]) == align.dtw(["a"], []) == []


def test_recurrence_gives_the_alignment_that_the_paper_printed():
    expected = [entry.split(":") for entry in PUBLISHED.split()]
    teacher, student = [unfold(token) for token in CODEX.split()], [token for token, _ in expected]
    partners = [[] for _ in student]
    for i, j in align.dtw(teacher, student):
        partners[j].append(teacher[i])
    assert partners == [unfold(tokens).split("+") for _, tokens in expected]


WENG = t5_like("▁We", "ng", "▁earns", "▁$12", "▁for", "▁per", "▁an", "▁hour", ".", ",", "▁She", "▁If", "▁has", "▁",
               *"$0123456789abcdefghijklmnopqrstuvwxyz")
WENG_TEXT = "Weng earns $12 for an hour.\nShe has $12"
WENG_STEPS = [("W", {"W": .6, "She": .3}), ("eng", {"eng": .9, "ong": .1}), (" earns", {" earns": .7, " makes": .2, ",": .1}),
              (" $", {" $": .8, " a": .1}), ("12", {"12": .9, "1": .1}), (" for", {" for": .5, " per": .3, " each": .2}),
              (" an", {" an": .5, " her": .3}), (" hour", {" hour": 1.0}), (".", {".": .8, ",": .1, "\n": .1}),
              ("\n", {"\n": .9, " If": .1}), ("She", {"She": .5, "If": .25, "12": .25}), (" has", {" has": .9, END: .1}),
              (" $", {" $": .8, " for": .2}), ("12", {"12": .75, "2": .25}), (END, {END: .6, ".": .2, "\n": .2})]


def test_published_targets_of_a_text():
    records, vocabulary = teach(*WENG_STEPS)
    targets = align.by_recurrence(WENG, WENG_TEXT, records, vocabulary)
    got = list(zip([WENG.tokenizer.id_to_token(i) for i in WENG.cut(WENG_TEXT)[0]] + ["</s>"], shown(WENG, targets),
                   targets.mass, strict=True))
    one_hot = ["▁We", "ng", "▁$12", ".", "▁She", "▁$12", "</s>"]  # line starts, $12, what is matched twice, the end
    assert [token for token, _, mass in got if mass == 0] == one_hot
    assert all(row == {token: 1.0} for token, row, mass in got if mass == 0)
    soft_rows = {token: row for token, row, mass in got if mass > 0}
    assert soft_rows["▁for"] == near({"▁for": .5, "▁per": .3})  # ` each` is no piece: dropped, and not made up for
    assert soft_rows["▁has"] == near({"▁has": .9})  # an end is no piece either
    assert [mass for token, _, mass in got if token == "▁for"] == near([.8])


@pytest.mark.parametrize(("teacher", "merges", "known"), [
    # 12 against 1, 2: both digits are matched with the number, and equal it not.
    ("a| 12|.", [("Ġ", "1")], ["a", "."]),
    #       a  12   .        M
    # a     0   2   1     0  2  3
    #  1    1   1   1     1  1  2
    # 2     1   1   1     2  2  2
    # .     1   2   0     3  4  2
    # 2 -> diagonal 2, up 2 -> (2, 12); diagonal 1, up 1 -> ( 1, a); so the neighbour is matched twice and lost too.
    ("a| 1|2|.", [("Ġ", "1"), ("Ġ1", "2")], ["."])])
def test_published_targets_of_numbers_split_differently(teacher, merges, known):
    student = byte_level(*merges)
    targets = align.by_recurrence(student, "a 12.", *teach(*sure(teacher), (END, {END: 1.0})))
    tokens = [student.tokenizer.id_to_token(i) for i in student.cut("a 12.")[0]]
    assert [token for token, mass in zip(tokens, targets.mass, strict=False) if mass] == known
    assert (align.by_spans(student, "a 12.", *teach(*sure(teacher), (END, {END: 1.0}))).mass == 1).all()


# Spans


def test_spans_of_a_text_with_t5s_conventions():
    records, vocabulary = teach(*WENG_STEPS)
    targets = align.by_spans(WENG, WENG_TEXT, records, vocabulary)
    rows = dict(enumerate(shown(WENG, targets)))
    tokens = [WENG.tokenizer.id_to_token(i) for i in WENG.cut(WENG_TEXT)[0]]
    assert tokens == ["▁We", "ng", "▁earns", "▁$12", "▁for", "▁an", "▁hour", ".", "▁She", "▁has", "▁$12"]
    # W + eng -> We: .6 * .9; `Wong` begins with no piece but the bare `▁`, `She` with `▁She`.
    assert rows[0] == near({"▁We": .54 / .9, "▁": .06 / .9, "▁She": .3 / .9})
    assert rows[1] == {"ng": 1.0} and targets.mass[1] == near(1)  # of `W` + `eng`, `ong` only one has `We` before it
    assert rows[2] == near({"▁earns": .7, "▁": .2, ",": .1})  # ` makes`: `▁` + letters
    # ` $` + `12` -> `▁$12`; ` $1` is `▁` + `$`, ` a` is a piece of two: all that is known.
    assert rows[3]["▁$12"] == near(.8 * .9 / .9) and targets.mass[3] == near(.9)
    assert rows[4]["▁for"] == near(.5)
    assert rows[7] == near({".": .8 / .9, ",": .1 / .9})  # a newline opens a word that is not known
    # newline + She: .9 * .5; `\nIf` and ` If` are both `▁If`; `\n12` is `▁` + digits
    assert rows[8] == near({"▁She": .45, "▁If": .9 * .25 + .1, "▁": .9 * .25})
    assert rows[9] == near({"▁has": .9, "</s>": .1})
    assert rows[11] == near({"</s>": .75, ".": .25}) and targets.mass[11] == near(.8)


def test_a_number_that_the_student_splits():
    student = byte_level()
    steps = [("12", {"12": .5, "13": .2, "2": .2}), ("!", {"!": .6, "?": .4}), (END, {END: 1.0})]
    first, second, *_ = shown(student, targets := align.by_spans(student, "12!", *teach(*steps)))
    assert first == near({"1": .7 / .9, "2": .2 / .9}) and targets.mass[0] == near(.9)
    assert second == near({"2": .5 / .7, "3": .2 / .7}) and targets.mass[1] == near(.7 / .8)  # the .1 outside may begin with 1


def test_a_number_that_the_teacher_splits():
    student = byte_level(("Ġ", "1"), ("Ġ1", "2"), ("Ġ", "3"), ("Ġ3", "6"))
    steps = [*sure("a"), (" ", {" ": .7, ".": .3}), ("1", {"1": .6, "3": .4}), ("2", {"2": .9, "5": .1}), (END, {END: 1.0})]
    rows = shown(student, targets := align.by_spans(student, "a 12", *teach(*steps)))
    assert rows[1] == near({"Ġ12": .7 * .6 * .9, "Ġ1": .7 * .6 * .1, "Ġ3": .7 * .4, ".": .3}) and targets.mass[1] == near(1)


def test_a_candidate_that_ends_where_the_student_goes_on_tells_nothing_of_what_follows():
    rows = shown(byte_level(), targets := align.by_spans(byte_level(), "12", *teach(
        ("12", {"12": .5, "1": .25, "": .25}), (END, {END: 1.0}))))
    assert rows[0] == near({"1": .75, "<|end|>": .25})
    assert rows[1] == {"2": 1.0} and targets.mass[1] == near(.5 / .75)


def test_a_candidate_that_would_have_changed_the_earlier_pieces_is_left_out():
    # The student writes `t` alone because an `o` follows; `th` would have been one piece.
    student = byte_level(("t", "h"), ("e", "n"))
    rows = shown(student, targets := align.by_spans(student, "to", *teach(
        ("t", {"t": 1.0}), ("o", {"o": .5, "hen": .25, "a?": .25}), (END, {END: 1.0}))))
    assert rows[1] == near({"o": 2 / 3, "a": 1 / 3}) and targets.mass[1] == near(.75)


def test_the_word_so_far_decides_how_a_candidate_goes_on():
    halves = [(f"{space}abc", {f"{space}abc": .5, f"{space}abd": .5}) for space in ("", " ", "")]
    steps = [*halves[:2], *sure("\n"), halves[2]]
    student = t5_like("▁a", *"bcd", "▁bd", "▁")  # `bd` by itself would be `▁bd`
    rows = shown(student, align.by_spans(student, "abc abc\nabc", *teach(*steps)))
    assert rows[:-1] == [{"▁a": 1.0}, {"b": 1.0}, near({"c": .5, "d": .5})] * 3


def test_first_word_has_t5s_space_whether_or_not_the_teacher_wrote_one():
    student = t5_like("▁She", "▁He", "She", "He", "▁It")
    steps = [("She", {"She": .5, "He": .25, " It": .25}), (END, {END: 1.0})]
    assert shown(student, align.by_spans(student, "She", *teach(*steps)))[0] == near({"▁She": .5, "▁He": .25, "▁It": .25})
    steps[0] = (" She", {" She": .5, " He": .25, "It": .25})  # given the space, it cannot have been `It`
    assert shown(student, align.by_spans(student, "She", *teach(*steps)))[0] == near({"▁She": 2 / 3, "▁He": 1 / 3})
    apart = t5_like("▁", "x", "y")
    targets = align.by_spans(apart, "xx", *teach(("x", {"x": .5, "y": .5}), *sure("x")))
    assert shown(apart, targets)[:3] == [{"▁": 1.0}, near({"x": .5, "y": .5}), {"x": 1.0}] and (targets.mass[:3] > .99).all()
    assert (align.by_spans(apart, "xx", *teach(*sure("y|y"))).mass == 0).all()


def test_a_student_with_pieces_for_bytes():
    student = llama_like(("▁", "a"), ("a", "b"))
    assert student.lead == b" " and student.ids[b"a"] == student.tokenizer.token_to_id("a") and student.ids[b"\n"] < 258
    steps = [("ab", {"ab": .5, "a": .5}), ("\n", {"\n": .5, "\nx": .25, " ab": .25}), ("ab", {"ab": .5, "x": .25, " x": .25}),
             (b"\xe2\x82", {b"\xe2\x82": .5, b"\xe2\x80": .5}), (b"\xac", {b"\xac": 1.0}), (END, {END: 1.0})]
    rows = shown(student, align.by_spans(student, "ab\nab€", *teach(*steps)))
    assert rows[2:] == [near({"<0x0A>": .75, "▁a": .25}), near({"ab": .5, "x": .25, "▁": .25}), near({"<0xE2>": 1.0}),
                        near({"<0x82>": .5, "<0x80>": .5}), {"<0xAC>": 1.0}, {"</s>": 1.0}]


def test_a_bare_space_is_a_piece_or_nothing_and_a_newline_opens_an_unknown_word():
    steps = [*sure("a"), (" b", {" b": .5, " ": .25, "\n": .25}), (END, {END: 1.0})]
    spaced, joined = t5_like("▁a", "▁b", "▁"), t5_like("▁a", "▁b")
    assert shown(spaced, align.by_spans(spaced, "a b", *teach(*steps)))[1] == near({"▁b": 2 / 3, "▁": 1 / 3})
    assert shown(joined, align.by_spans(joined, "a b", *teach(*steps)))[1] == {"▁b": 1.0}


@pytest.mark.parametrize("text", ["naïve 5 €!", "日本 5"])
def test_characters_that_the_teacher_cuts_in_two(text):
    steps = []
    for at, character in enumerate(text):
        raw = character.encode()
        parts = [raw[:1], raw[1:]] if len(raw) > 1 else [raw]
        other = b"?" if at else b"N"
        steps += [(part, {part: .75, other: .25}) for part in parts]
    records, vocabulary = teach(*steps, (END, {END: 1.0}))
    whole = t5_like(*(f"▁{c}" for c in "naïve5€日NI?"), *"naïve!€本?", "▁")
    targets = align.by_spans(whole, text, records, vocabulary)
    assert (targets.mass[:-1] > .5).all() and np.allclose(targets.probs.sum(1), 1)
    ids = whole.cut(text)[0]
    for n, token in enumerate(ids):
        if len(whole.bytes[token].strip()) > 1:  # p of the character is that of its two parts; `?` after one leaves no text
            assert dict(zip(targets.ids[n], targets.probs[n] * targets.mass[n], strict=True))[token] <= .75**2 + 3e-3
    single = byte_level()  # the student may cut characters too
    targets = align.by_spans(single, text, records, vocabulary)
    assert len(targets.mass) == len(text.encode()) + 1 and (targets.mass > .7).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_same_tokenizer_gives_the_teachers_candidates_themselves(seed):
    random, tokenizer, k = np.random.default_rng(seed), bpe_tokenizer().backend_tokenizer, 6
    pieces = align.Pieces(tokenizer, tokenizer.token_to_id("<|end|>"))
    text = texts(12)[seed]
    vocabulary = {**pieces.bytes, pieces.eos_id: b""}
    records = np.array([soft.capture(random.normal(size=len(vocabulary)).astype(np.float32) * 3, token, k)
                        for token in [*tokenizer.encode(text).ids, pieces.eos_id]], soft.record(k))
    targets = align.by_spans(pieces, text, records, vocabulary)
    exact = np.exp(records["logprobs"].astype(np.float64))
    share = exact.sum(1)
    for n in range(len(records)):
        assert dict(zip(targets.ids[n].tolist(), targets.probs[n].tolist(), strict=True)) == pytest.approx(
            dict(zip(records["ids"][n].tolist(), (exact[n] / share[n]).tolist(), strict=True)), rel=1e-5)
    assert targets.mass == pytest.approx(share / (share + records["rest"]), rel=1e-5)


# Against brute force: a joint distribution over texts, its conditional over the student's next token


def draw(random, candidates):
    p = random.dirichlet(np.ones(len(candidates)))
    return dict(zip(candidates, np.maximum(p, .02) / np.maximum(p, .02).sum(), strict=True))


def everything(table, said=()):
    """(teacher's tokens, probability) of every text; `table(tokens)` gives the next one's probabilities."""
    for piece, p in table(said).items():
        if piece == END:
            yield said, p
        else:
            for tokens, q in everything(table, (*said, piece)):
                yield tokens, p * q


def marginal(pieces, texts_, before):
    """The next token's probabilities given the student's ids `before`; `texts_` are (ids with EOS, probability)."""
    mass = {}
    for ids, p in texts_:
        if ids[:len(before)] == before:
            mass[ids[len(before)]] = mass.get(ids[len(before)], 0) + p
    return {token: p / sum(mass.values()) for token, p in mass.items()}


def compare(pieces, table, only=lambda tokens, n: True, lost=False):
    """Rows of every text against the marginal; how many. `lost`: of the mass, some may not be transferred."""
    texts_ = [(pieces.cut("".join(tokens))[0] + [pieces.eos_id], p) for tokens, p in everything(table)]
    rows = 0
    for tokens, _ in everything(table):
        records, vocabulary = teach(*((piece, table(tokens[:n])) for n, piece in enumerate((*tokens, END))), k=6)
        targets = align.by_spans(pieces, "".join(tokens), records, vocabulary)
        ids = pieces.cut("".join(tokens))[0] + [pieces.eos_id]
        for n in (n for n in range(len(ids)) if only(tokens, n)):
            got = {int(i): float(p) for i, p in zip(targets.ids[n], targets.probs[n], strict=True) if p > 1e-6}
            assert got == near(marginal(pieces, texts_, ids[:n])), (tokens, n)
            assert lost or targets.mass[n] == near(1)
            rows += 1
    return rows


def test_marginal_of_a_student_that_splits_what_the_teacher_says():
    random, tables = np.random.default_rng(0), {}

    def table(said):  # no token begins another: the text says which tokens were taken
        if said not in tables:
            tables[said] = {END: 1.0} if len(said) == 3 else draw(random, ["ab", "acb", "acd", "b", "da"] + [END] * bool(said))
        return tables[said]

    assert compare(byte_level(), table) > 500
    tables.clear()
    assert compare(byte_level(("c", "b")), table, lost=True) > 500  # acb -> a, cb


def test_marginal_of_a_student_that_joins_what_the_teacher_splits():
    random, tables = np.random.default_rng(1), {}

    def table(said):
        if said not in tables:
            space = " " * bool(said)
            words = sum(piece not in ("ple", "ron") for piece in said)
            if said and said[-1].strip() == "ap":
                tables[said] = draw(random, ["ple", "ron"])
            else:
                tables[said] = {END: 1.0} if words == 3 else draw(random, [f"{space}ap", f"{space}fig"] + [END] * bool(said))
        return tables[said]

    pieces = t5_like("▁apple", "▁apron", "▁fig", "▁", *"aplefigron")
    # Where ` ap` was not taken it is known no further, so that it is no word yet: an approximation.
    assert compare(pieces, table, only=lambda tokens, n: "".join(tokens).split()[n:n + 1] in (["apple"], ["apron"])) > 50


# Ends, beginnings, lengths


@pytest.mark.parametrize(("steps", "text", "row", "mass"), [
    ([*sure("ab"), (END, {END: .5, "c": .25})], "ab", {"<|end|>": 2 / 3, "c": 1 / 3}, .75),
    ([*sure("ab|\n"), (END, {END: .5, "c": .5})], "ab", {"<|end|>": .5, "Ċ": .5}, 1),  # blanks aside
    ([*sure("ab"), ("c", {"c": .5, END: .5})], "ab", {"<|end|>": 1}, 0),  # the teacher goes on
    ([*sure("ab"), (END, {END: 1.0})], "ab so", {"<|end|>": 1}, 0),  # the student's text goes on
    (sure("ab"), "ab", {"<|end|>": 1}, 0),  # cut off, or stopped at a pattern
])
def test_end_of_text(steps, text, row, mass):
    student = byte_level()
    targets = align.by_spans(student, text, *teach(*steps))
    assert shown(student, targets)[-1] == near(row) and targets.mass[-1] == near(mass)


def test_several_tokens_that_end_the_text_are_one_end():
    records, vocabulary = teach(("a", {"a": .5, "x": .25, "y": .25}), (END, {END: .5, "x": .25, "y": .25}))
    vocabulary = {i: b"" if piece == b"y" else piece for i, piece in vocabulary.items()}
    rows = shown(byte_level(), align.by_spans(byte_level(), "a", records, vocabulary))
    assert rows == [near({"a": .5, "x": .25, "<|end|>": .25}), near({"<|end|>": .75, "x": .25})]


@pytest.mark.parametrize(("teacher", "known"), [
    ("She has 3.", 10), (" She| has 3.", 10), ("\n\n|She has| 3.", 10), (" She| has 3.\n", 10),
    ("The answer is 3. She| has 3.", 10),  # the answer came first
    ("She has| 4.", 8), ("She has 3", 9), ("Let us see. Sh", 0), ("", 0)])
def test_a_target_is_found_in_the_teachers_text(teacher, known):
    for student in (byte_level(), t5_like("▁She", "▁has", "▁3", ".", "▁")):
        targets = align.by_spans(student, "She has 3.", *teach(*sure(teacher)))
        _, ends = student.cut("She has 3.")
        assert [end - len(student.lead) <= known for end in ends] == (targets.mass[:-1] > 0).tolist()
        assert np.allclose(targets.probs.sum(1), 1)


def test_a_target_longer_than_the_teachers_text_is_one_hot_beyond_it():
    student = byte_level()
    targets = align.by_spans(student, "ab. The", *teach(*sure("ab|."), (END, {END: 1.0})))
    assert (targets.mass > 0).tolist() == [True] * 3 + [False] * 5
    assert shown(student, targets)[3] == {"Ġ": 1.0}


def test_targets_have_the_shape_of_the_formats_ids():
    student = byte_level()
    records, vocabulary = teach(*sure("ab|cd"), (END, {END: 1.0}), k=5)
    for way in (align.by_spans, align.by_recurrence):
        targets = way(student, "abcd", records, vocabulary)
        assert targets.ids.shape == targets.probs.shape == (5, 5) and targets.mass.shape == (5,)
        assert (targets.ids.dtype, targets.probs.dtype, targets.mass.dtype) == (np.int64, np.float32, np.float32)
        short = way(student, "abcd", records, vocabulary, k=2, limit=3)
        assert short.ids.shape == (3, 2) and short.ids[-1].tolist() == [0, 0] and short.probs[-1].tolist() == [1, 0]
        assert way(student, "", records, vocabulary).ids.shape == (1, 5)
        assert way(student, "ab", records[:0], vocabulary).mass.tolist() == [0, 0, 0]


def test_k_keeps_the_best_and_counts_only_them():
    targets = align.by_spans(byte_level(), "a", *teach(("a", {"a": .5, "b": .3, "c": .2}), (END, {END: 1.0})), k=2)
    assert targets.probs[0] == near([.625, .375]) and targets.mass[0] == near(.8)


def test_a_token_of_no_probability_can_still_be_a_condition():
    records, vocabulary = teach(("ab", {"ab": 1.0}), (END, {END: 1.0}))
    records["logprobs"], records["rest"] = -60_000, 1
    targets = align.by_spans(byte_level(), "ab", records, vocabulary)
    assert np.isfinite(targets.probs).all() and np.allclose(targets.probs.sum(1), 1)


def test_what_the_student_has_no_piece_for():
    student = t5_like("▁a", "▁b", "▁")
    targets = align.by_spans(student, "a ü b", *teach(*sure("a"), (" ü", {" ü": .5, " b": .25, " ö": .25}), *sure(" b")))
    assert [student.tokenizer.id_to_token(i) for i in student.cut("a ü b")[0]][-1] == "▁b"
    assert np.allclose(targets.probs.sum(1), 1) and targets.mass[-2] == 1
    student = t5_like("▁a", "▁b")
    targets = align.by_spans(student, "a b", *teach(*sure("a"), (" b", {" b": .5, " ö": .5})))
    assert shown(student, targets)[1] == {"▁b": 1.0} and targets.mass[1] == near(.5)


# Both


def test_spans_transfer_more_than_the_recurrence():
    random, teacher, k = np.random.default_rng(0), bpe_tokenizer().backend_tokenizer, 8
    vocabulary = {**align.Pieces(teacher, 0).bytes, 0: b""}
    student = t5_tokenizer().backend_tokenizer
    student = align.Pieces(student, student.token_to_id("</s>"))
    shares, named = {align.by_spans: [], align.by_recurrence: []}, []
    for text in texts(30):
        logits = random.normal(size=(len(ids := [*teacher.encode(text).ids, 0]), len(vocabulary))).astype(np.float32)
        logits[:, [i for i, piece in vocabulary.items() if not piece.isascii()]] -= 20  # parts of characters
        logits[np.arange(len(ids)), ids] += 8
        records = np.array([soft.capture(row, token, k) for row, token in zip(logits, ids, strict=True)], soft.record(k))
        named += (1 - records["rest"].astype(float)).tolist()
        for way, share in shares.items():
            targets = way(student, text, records, vocabulary)
            assert targets.ids[:, 0].shape == targets.mass.shape and ((targets.mass >= 0) & (targets.mass < 1.001)).all()
            assert np.allclose(targets.probs.sum(1), np.where(targets.mass > 0, targets.mass, 1)
                               if way is align.by_recurrence else 1, atol=1e-5)
            share += targets.mass.tolist()
    spans, recurrence = np.mean(shares[align.by_spans]), np.mean(shares[align.by_recurrence])
    print(f"spans {spans:.3f}, recurrence {recurrence:.3f}, named by the records {np.mean(named):.3f}")
    assert spans > .9 * np.mean(named) > 2 * recurrence > 0


def test_aligning_needs_no_torch():
    code = "import sys, edgedistill.train.align; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
