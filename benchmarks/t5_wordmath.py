"""A T5 of 8 million parameters learns the built-in word problems from nothing, on 2 cores in less than 20 minutes.

    python benchmarks/t5_wordmath.py [--work runs/t5-wordmath] [--rows 92000] [--epochs 1]

Everything is made here: rows by `wordmath.generate`, a tokenizer trained on the training rows, a T5 with random weights; the
verb trains it (`--method finetune`). Two sets are measured after the training, greedy, an answer being right by its value:

- `known`: the built-in templates of training, with names and numbers drawn anew (no equation that its template had there);
- `unseen`: the 26 templates of the test split, none of which is in the training or dev rows.

`--templates FILE` adds training templates in the form of tasks/wordmath.py. Those of benchmarks/wordmath_more.txt (6,683)
were written by a language model that was shown the skeletons with two training templates each and
no other file: whoever writes more must not have read those of dev or test. Those that by chance share more than ALIKE of
their words with one of dev or test are left out all the same.

How much of the unseen is what a student knew before is shown by a pretrained one on fewer of the same rows:

    python benchmarks/t5_wordmath.py --student smollm2-135m --rows 4000 --word-dropout 0 --learning-rate 2e-4 \\
        --optimizer adamw --out benchmarks/results/wordmath-pretrained.json

The checkpoint is chosen on dev rows: half from the 9 templates of the dev split, half new draws of training templates.
Result: benchmarks/results/t5-wordmath.json. `ci95` takes rows for independent draws, `ci95_templates` draws whole templates.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import string
import time
from collections import Counter, defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, logging

from edgedistill import cards, machine, runs
from edgedistill.errors import Error
from edgedistill.progress import say
from edgedistill.tasks import data, wordmath
from edgedistill.tasks.data import Row
from edgedistill.tasks.metrics import interval
from edgedistill.tasks.task import Task
from edgedistill.train import train
from edgedistill.train.students import load

RESULT = Path(__file__).parent / "results" / "t5-wordmath.json"
TEMPLATES = Path(__file__).parent / "wordmath_more.txt"
SEEDS = {"train": 0, "known": 1, "dev": 2}  # of the draws from training templates
KNOWN, UNSEEN, DEV = 592, 520, 198          # rows: about 8 a training template, 20 a test template; of DEV 11 a dev template
WORDS, PIECES, NUMBERS = 2500, 500, 1000    # of the vocabulary: words, parts of words, and 0 to 999
ALIKE = 0.6  # of the words of both
SPECIAL = ["<pad>", "</s>", "<unk>"]
SHAPE = {"d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 640, "num_layers": 4, "num_decoder_layers": 4,
         "feed_forward_proj": "gated-gelu", "tie_word_embeddings": True, "dropout_rate": 0.0}
_WORD = re.compile("[A-Za-z]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", default="runs/t5-wordmath", type=Path)
    parser.add_argument("--out", default=RESULT, type=Path)
    parser.add_argument("--student", help="another student on such rows, a pretrained one for instance")
    parser.add_argument("--rows", default=92_000, type=int, help="training rows")
    parser.add_argument("--epochs", default=1, type=float)
    parser.add_argument("--batch-size", default=32, type=int)
    parser.add_argument("--learning-rate", default=1e-2, type=float)
    parser.add_argument("--optimizer", default="adafactor")
    parser.add_argument("--word-dropout", default=1.0, type=float, help="0 leaves the training rows as they are")
    parser.add_argument("--templates", default=TEMPLATES, type=Path, help="a file of further training templates")
    parser.add_argument("--average", action="store_true", help="keep the mean of the weights along the training")
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.monotonic()
    more = read_templates(args.templates)
    rows, known, unseen = split(args.rows, more)
    training = rows["train"] if args.word_dropout == 0 else with_made_up_words(rows["train"], args.word_dropout, args.seed)
    folder = args.work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    data.write(training, folder / "train.jsonl")
    data.write(rows["dev"], folder / "dev.jsonl")
    student = args.student or str(make_student(
        args.work / "t5", [text for row in training for text in (row.input, row.label)], args.seed))
    prepared = time.monotonic() - start
    trained = train(student, run=str(args.work), method="finetune", task="wordmath", data=str(folder), epochs=args.epochs,
                    batch_size=args.batch_size, learning_rate=args.learning_rate, optimizer=args.optimizer,
                    average=args.average, seed=args.seed)
    start = time.monotonic()
    trained_student, card = load(args.work / "train" / "student"), cards.load(Task, "wordmath")
    measured = {name: accuracy(trained_student, card, its) for name, its in (("known", known), ("unseen", unseen))}
    seconds = {"prepare": round(prepared, 1), "train": trained["seconds"], "measure": round(time.monotonic() - start, 1)}
    keys = ("steps", "epochs", "batch_size", "learning_rate", "optimizer", "dtype", "examples_per_s", "tokens_per_s",
            "peak_memory_mb", "dev", "best_dev_accuracy")
    result = {
        **machine.origin("t5-wordmath"), "student": args.student or "from nothing",
        "parameters": trained_student.parameters(), "pieces": len(trained_student.tokenizer),
        "shape": None if args.student else SHAPE, "rows": len(training),
        "templates": {**wordmath.template_counts(), "more": len(more)},
        "word_dropout": args.word_dropout, "average": args.average, "seed": args.seed,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)}, **measured,
        "train": {key: trained[key] for key in keys}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(args.out, result)
    for name, its in measured.items():
        say(f"t5-wordmath: {name} {100 * its['accuracy']:.1f} % of {its['n']} ({100 * its['ci95'][0]:.1f} to "
            f"{100 * its['ci95'][1]:.1f}; by templates {100 * its['ci95_templates'][0]:.1f} to "
            f"{100 * its['ci95_templates'][1]:.1f})")
    print(json.dumps(result))


def read_templates(path: Path) -> list[wordmath.Template]:
    """Blocks of a skeleton and its templates, as in tasks/wordmath.py; none that is like one of dev or test."""
    blocks = (block.split("\n- ") for block in re.split(r"\n(?=\()", path.read_text(encoding="utf-8").strip()))
    found = [wordmath.Template(f"more {skeleton.replace(' ', '')}#{place}", skeleton, " ".join(text.split()), "train")
             for skeleton, *texts in blocks for place, text in enumerate(texts)]
    held_out = [words(template.text) for template in wordmath.TEMPLATES if template.split != "train"]

    def alike(its: set[str]) -> bool:
        return any(len(its & other) > ALIKE * len(its | other) for other in held_out)

    return [template for template in found if not alike(words(template.text))]


def words(text: str) -> set[str]:
    """A template's words, without those that are drawn."""
    return set(_WORD.findall(re.sub(r"\{[^}]*\}", "", text.lower())))


def split(n: int, more: list[wordmath.Template]) -> tuple[dict[str, list[Row]], list[Row], list[Row]]:
    """({"train": n rows, "dev": DEV rows}, known, unseen): no template and equation together stand in two of them.

    The built-in templates have an eighth of the training rows, as many each; of the others each skeleton has as many.
    """
    rng = random.Random("more")
    kinds = [cycle([template for template in more if template.skeleton == kind])
             for kind in sorted({template.skeleton for template in more})]
    extra = [next(kinds[i % len(kinds)]) for i in range(n - n // 8)] if more else []
    filled = [(template, *wordmath._fill(template, rng)) for template in extra]
    training = drawn("train", n - len(extra), SEEDS["train"]) + [
        Row(f"more-{i}", text, label, meta={"template": template.id}) for i, (template, text, label, _) in enumerate(filled)]
    taken = {key(row) for row in training}
    dev = drawn("dev", DEV // 2) + fresh(DEV - DEV // 2, SEEDS["dev"], taken)
    taken |= {key(row) for row in dev}
    return {"train": training, "dev": dev}, fresh(KNOWN, SEEDS["known"], taken), drawn("test", UNSEEN)


def drawn(name: str, n: int, seed: int = 0) -> list[Row]:
    """Rows of a split of the built-in task."""
    return [Row(row["id"], row["input"], row["label"], meta=row["meta"]) for row in wordmath.generate(name, n, seed)]


def fresh(n: int, seed: int, taken: set[tuple[str, str]]) -> list[Row]:
    """`n` rows of training templates whose equations are not taken."""
    free = [row for row in drawn("train", 4 * n, seed) if key(row) not in taken]
    if len(free) < n:
        raise SystemExit(f"only {len(free)} of {4 * n} draws are new, {n} are needed: give fewer --rows")
    return free[:n]


def key(row: Row) -> tuple[str, str]:
    """What may not stand in two sets: a template with its numbers."""
    return row.meta["template"], row.label


def with_made_up_words(rows: list[Row], strength: float, seed: int) -> list[Row]:
    """Every second row with some of its words replaced by made-up ones, each the same throughout its row.

    Word dropout, after Kiperwasser and Goldberg (2016): a word that k training templates use goes with probability
    strength / (strength + k). A student that reads few templates learns each by a word that only it has ("tulips");
    here it must read what several share, and it meets words it cannot know, as in an unseen template.
    """
    rng = random.Random(f"made-up {seed}")
    homes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for word in _WORD.findall(row.input.lower()):
            homes[word].add(row.meta["template"])
    done = []
    for i, row in enumerate(rows):
        swap = {}
        for word in sorted(set(_WORD.findall(row.input))) if i % 2 else ():
            if rng.random() < strength / (strength + len(homes[word.lower()])):
                swap[word] = "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
        done.append(Row(row.id, _WORD.sub(lambda m, swap=swap: swap.get(m[0], m[0]), row.input), row.label, meta=row.meta))
    return done


def make_student(folder: Path, texts: list[str], seed: int) -> Path:
    """A folder with a T5 of SHAPE, random weights, and its tokenizer.

    Tied and gated as T5 v1.1 is not and is: an untied head of variance 1 starts far from a uniform distribution.
    """
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=len(tokenizer), decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **SHAPE))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """T5's kind, in lower case. A number below 1,000 is a piece, as most are of T5's own: copied at once. Of longer ones and
    decimals each digit is, so that none is unknown; so is each sign. `▁` belongs to a number's first digit.

    The most frequent words are pieces, which halves the inputs: tokenizers' own trainer keeps only what several words share,
    and cuts even "how" in two. What it finds is for words that are still to come.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(),
        pre_tokenizers.Split(Regex(r"▁[0-9]{1,3}(?!\d)|▁?[0-9]|▁?[^\w\s▁]"), "isolated")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False,
        initial_alphabet=list(string.ascii_lowercase + string.digits + string.punctuation)))
    words = Counter(word for text in texts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
        tokenizer.normalizer.normalize_str(text)))
    numbers = {f"▁{number}": words.pop(f"▁{number}", 1) for number in range(NUMBERS)}
    known = dict(words.most_common(WORDS)) | numbers
    total = sum(known.values())
    parts = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"][len(SPECIAL):]]
    tokenizer.model = models.Unigram(
        [(piece, 0.0) for piece in SPECIAL] + [(word, math.log(n / total)) for word, n in known.items()]
        + [(piece, score - 10) for piece, score in parts if piece not in known],  # less likely than any word
        unk_id=SPECIAL.index("<unk>"), byte_fallback=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def accuracy(student: Any, card: Task, rows: list[Row]) -> dict[str, Any]:
    """Right answers with intervals, and the accuracy of each template."""
    torch.set_num_threads(machine.cores())
    answers = student.answers([card.question(row) for row in rows])
    by_template: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        by_template[row.meta["template"]].append(card.same(card.parse(answer), card.label(row)))
    right = np.array([sum(its) for its in by_template.values()])
    sizes = np.array([len(its) for its in by_template.values()])
    chosen = np.random.default_rng(0).integers(0, len(sizes), (10_000, len(sizes)))
    low, high = np.quantile(right[chosen].sum(1) / sizes[chosen].sum(1), [0.025, 0.975])
    correct, n = int(right.sum()), int(sizes.sum())
    return {"n": n, "correct": correct, "accuracy": round(correct / n, 4), "ci95": interval(correct, n),
            "ci95_templates": [round(float(low), 4), round(float(high), 4)],
            "by_template": {name: round(sum(its) / len(its), 3) for name, its in sorted(by_template.items())}}


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        raise SystemExit(f"t5_wordmath: {error}") from None
