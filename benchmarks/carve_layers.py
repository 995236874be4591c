"""Which layers to keep when a student is carved: next-token loss of the untrained student on task texts.

    python benchmarks/carve_layers.py > benchmarks/results/carve_layers.json

One forward pass a choice over 32 built-in problems (train split). Lower is a better start for training.
"""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from edgedistill import cards, machine
from edgedistill.tasks import wordmath
from edgedistill.teach.source import locate

LAYERS = 16


def choices(total: int, keep: int) -> dict[str, list[int]]:
    """Candidate lists of `keep` layers out of `total`."""
    found = {"evenly spaced": [round(i * (total - 1) / (keep - 1)) for i in range(keep)],
             "first": list(range(keep))}
    for last in (2, 4, 6, 8, 9, 10, 11, 12):
        found[f"first {keep - last} and last {last}"] = [*range(keep - last), *range(total - last, total)]
    # The deep end thinned by half, the shallow end kept: 2 * keep - total layers whole, then every second one.
    whole = 2 * keep - total + 1
    found["shallow whole, rest thinned"] = [*range(whole), *range(whole + 1, total, 2)][:keep - 1] + [total - 1]
    return found


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = locate(cards.load(cards.Teacher, "smollm2-135m"))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    texts = [row["input"] for row in wordmath.generate("train", 32)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    whole = model.model.layers

    @torch.no_grad()
    def loss(kept: list[int]) -> float:
        model.model.layers = torch.nn.ModuleList(whole[i] for i in kept)
        model.config.num_hidden_layers = len(kept)
        return round(model(**batch, labels=labels, use_cache=False).loss.item(), 4)

    @torch.no_grad()
    def similar(keep: int) -> list[int]:
        """Drops the layers whose output is nearest in direction to their input (one pass over the whole model)."""
        model.model.layers, model.config.num_hidden_layers = whole, total
        states = model(**batch, use_cache=False, output_hidden_states=True).hidden_states
        real = batch.attention_mask.bool()
        near = [torch.cosine_similarity(a[real], b[real], dim=-1).mean().item()
                for a, b in zip(states, states[1:], strict=False)]
        return sorted(sorted(range(total), key=lambda i: near[i])[:keep])

    total = len(whole)
    result = {**machine.origin("carve_layers"), "texts": len(texts), "layers": LAYERS,
              "loss": {"all": loss(list(range(total)))}}
    for name, kept in choices(total, LAYERS).items():
        result["loss"][name] = loss(kept)
    kept = similar(LAYERS)
    result["loss"][f"least similar {kept}"] = loss(kept)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
