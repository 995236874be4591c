"""Small real students for the tests: random weights, real tokenizers, the families' own shapes."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from edgedistill import runs
from edgedistill.tasks import data, wordmath
from edgedistill.tasks.task import Task
from edgedistill.train import reparam
from edgedistill.train.methods import Question, Target
from edgedistill.train.students import DecoderStudent, Student, T5Student

TASK = Task("wordmath", "test", "equation", max_input_tokens=96, max_label_tokens=16, max_rationale_tokens=40)


def texts(n: int = 120) -> list[str]:
    """Built-in problems, their labels beside them, for training tokenizers."""
    return [text for row in wordmath.generate("train", n) for text in (row["input"], row["label"])]


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer with T5's properties: `▁` before words, spaces collapsed, pad 0, eos 1, unk 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(texts(), trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=_in_order(tokenizer), pad_token="<pad>", eos_token="</s>",
                                   unk_token="<unk>")


def t5_like_tokenizer(extra_ids: int = 100, corpus: list[str] | None = None, pieces: int = 500) -> PreTrainedTokenizerFast:
    """What t5-small's does, small (trained on `corpus`, else the built-in problems): all whitespace is one space,
    compatibility characters are respelled, letters and signs
    of some Western languages are pieces and `{ } < \\ ~ ^` are not, the sentinels are special tokens at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    printable = set(string.ascii_letters + string.digits + string.punctuation) - set("{}<\\~^")
    tokenizer.train_from_iterator(corpus or texts(), trainers.UnigramTrainer(
        vocab_size=pieces, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False,
        initial_alphabet=sorted(printable | set("£§°€«»éàüßșțîă"))))
    tokenizer = _in_order(tokenizer)
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(extra_ids))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _in_order(tokenizer: Tokenizer) -> Tokenizer:
    """The trained pieces in one order: the trainer's scores differ a little from process to process."""
    made = json.loads(tokenizer.to_str())
    pieces = [(piece, round(score, 2)) for piece, score in made["model"]["vocab"]]
    made["model"]["vocab"] = pieces[:3] + sorted(pieces[3:], key=lambda piece: (-piece[1], piece[0]))
    return Tokenizer.from_str(json.dumps(made))


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with an end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def t5(gated: bool = False, tied: bool = True, task: Task | None = TASK,
       tokenizer: PreTrainedTokenizerFast | None = None) -> Student:
    """v1.0's form (ReLU, tied) or v1.1's and flan's (gated GELU, untied)."""
    torch.manual_seed(0)
    tokenizer = tokenizer or t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=96, num_layers=3, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=tied, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1)
    student = T5Student(T5ForConditionalGeneration(config).eval(), tokenizer)
    student.set_task(task)
    return student


T5_SHAPES = {"t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
             "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}}


def t5_shaped(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, half: bool = False,
              vocabulary: int = 32128) -> Path:
    """A folder with the shape of T5_SHAPES: random parameters (60.5M, 222.9M), more rows than the tokenizer has pieces."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=vocabulary, feed_forward_proj="relu", tie_word_embeddings=True, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1, **T5_SHAPES[name]))
    (model.half() if half else model).save_pretrained(folder)
    (tokenizer or t5_like_tokenizer()).save_pretrained(folder)
    return folder


def decoder(family: str = "llama", tied: bool = True, task: Task | None = TASK, **more: Any) -> Student:
    """SmolLM2's shape (grouped queries, tied), Qwen2's (biases on q, k, v) or Mistral's; `more` goes into the config."""
    torch.manual_seed(0)
    tokenizer = bpe_tokenizer()
    config, kind = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
                    "mistral": (MistralConfig, MistralForCausalLM)}[family]
    end = tokenizer.eos_token_id
    shape = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 6} | more
    model = kind(config(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, **shape))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at birth: a graph that forgot them would pass
            torch.nn.init.normal_(parameter, std=0.5)
    student = DecoderStudent(model.eval(), tokenizer)
    student.set_task(task)
    return student


def theirs(student: Student, text: str, limit: int | None = None, beams: int = 1) -> list[int]:
    """What transformers' own generate says, one question at a time."""
    form = student.format
    source, opening = form.encode_source(student.rust, text, "label"), form.opening(student.rust, "label")
    seq2seq = student.family == "t5"
    first = {"decoder_input_ids": torch.tensor([opening])} if seq2seq else {}
    ids = torch.tensor([source if seq2seq else source + opening])
    out = student.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=beams, do_sample=False,
                                 max_new_tokens=limit or form.max_new_tokens("label"), eos_token_id=form.eos_id,
                                 pad_token_id=form.pad_id, **first)[0, len(opening) if seq2seq else ids.shape[1]:].tolist()
    return out[: out.index(form.eos_id)] if form.eos_id in out else out


def problems(n: int) -> list[Question]:
    """Built-in problems as questions with labels only."""
    return [Question(row["id"], row["input"], row["label"], ((Target("label", row["label"]),),))
            for row in wordmath.generate("train", n)]


def chained(student: Student, factors: int = 3) -> Student:
    """`student` with untrained linear chains instead of its FFNs."""
    reparam.replace(student.model, factors)
    return student


def taught_run(run: Path, n: int = 48, labelled: bool = True) -> Path:
    """A run folder as `teach` leaves it, its corpus written by hand: every third rationale is wrong."""
    task = Task.from_dict({**TASK.to_dict(), "instruction": "Solve."})
    rows = [data.Row(row["id"], row["input"], row["label"] if labelled else None)
            for row in wordmath.generate("train", n)]
    dev = [data.Row(row["id"], row["input"], row["label"] if labelled else None)
           for row in wordmath.generate("dev", 12)]
    stage = runs.Stage(run, "teach", {"data": "builtin:wordmath"}, {"rows": data.digest(rows)})
    (stage.path / "data").mkdir()
    data.write(rows, stage.path / "data" / "train.jsonl")
    data.write(dev, stage.path / "data" / "dev.jsonl")
    corpus = []
    for i, (row, made) in enumerate(zip(rows, wordmath.generate("train", n), strict=True)):
        answer = made["label"] if i % 3 else "( 1 + 1 )"
        verdict = "unlabelled" if not labelled else "verified" if i % 3 else "wrong"
        corpus.append({"id": row.id, "sample": 0, "input": row.input, "label": row.label, "answer": answer,
                       "rationale": f"It asks for {answer}.", "verdict": verdict})
    path = stage.path / "corpus.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in corpus), encoding="utf-8")
    stage.done({"teacher": "none", "licence": "none", "data": "builtin:wordmath", "accuracy": None}, [path],
               task=task.to_dict())
    return run
