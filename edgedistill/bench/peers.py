"""The peers: the student in other engines, each made by its own converter and run at the best of its own settings."""

from __future__ import annotations

import ctypes
import json
import shutil
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from edgedistill import machine
from edgedistill.bench.engine import Engine, exactly
from edgedistill.edge.format import Format
from edgedistill.errors import UsageError


class Peer(Engine):
    """An engine that goes from token ids to token ids; the student's own tokenizer and format do the rest."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        from tokenizers import Tokenizer

        self.folder = Path(job["made"]) / "hf"
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.seq2seq = config["model_type"] in ("t5", "mt5")
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.format = Format.from_dict(job["format"])

    @classmethod
    def prepare(cls, job: dict[str, Any]) -> dict[str, Any]:
        _readable(Path(job["student"]), Path(job["made"]) / "hf")
        return cls(job).make()

    def make(self) -> dict[str, Any]:
        """Makes what `open` opens of the student's folder; the best settings."""
        return {}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        ids = request.get("ids") or self.format.encode_source(self.tokenizer, request["text"], "label")
        opening = self.format.opening(self.tokenizer, "label")
        tokenize_ms = 1e3 * (time.perf_counter() - begin)
        n = request.get("n")
        out = exactly(n, self.generate(
            ids, opening, n or request.get("limit") or self.format.max_new_tokens("label"), bool(n)))
        text = self.format.split(self.format.decode(self.tokenizer, out))[1]
        return {"text": text, "tokens": out, "tokenize_ms": tokenize_ms, "tokens_in": len(ids) + len(opening),
                "tokens_out": len(out)}

    @abstractmethod
    def generate(self, ids: list[int], opening: list[int], limit: int, exact: bool) -> list[int]:
        """Greedy tokens without the end; `exact` suppresses the end until there are `limit`."""

    def best(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Of several settings the fastest on the first request, by the best of three; those that it refuses are left out."""
        times: dict[str, float] = {}
        for settings in choices if len(choices) > 1 else ():
            try:
                engine = type(self)({**self.job, "settings": settings})
                engine.open()
                engine.ask(self.job["first"])
            except (ValueError, RuntimeError):
                continue
            for _ in range(3):
                begin = time.perf_counter()
                engine.ask(self.job["first"])
                took = time.perf_counter() - begin
                times[json.dumps(settings)] = min(took, times.get(json.dumps(settings), took))
        return json.loads(min(times, key=times.__getitem__)) if times else choices[0]


class Torch(Peer):
    """transformers' own `generate`."""

    packages = ("torch", "transformers")
    precision = "fp32"

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(job["threads"])
        self.torch, self.kind = torch, getattr(
            transformers, "AutoModelForSeq2SeqLM" if self.seq2seq else "AutoModelForCausalLM")

    def open(self) -> None:
        self.model = self.kind.from_pretrained(self.folder).eval()
        self.bytes = size(self.folder, ".safetensors")

    def generate(self, ids: list[int], opening: list[int], limit: int, exact: bool) -> list[int]:
        torch, form = self.torch, self.format
        source = ids if self.seq2seq else ids + opening
        begun = {"decoder_input_ids": torch.tensor([opening])} if self.seq2seq else {}
        inputs = torch.tensor([source])
        with torch.no_grad():
            out = self.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), num_beams=1, do_sample=False,
                min_new_tokens=limit if exact else None, max_new_tokens=limit, eos_token_id=form.eos_id,
                pad_token_id=form.pad_id, **begun)
        found = out[0, len(opening) if self.seq2seq else len(source):].tolist()
        return found[: found.index(form.eos_id)] if form.eos_id in found else found


class Optimum(Torch):
    """optimum-onnx: its exporter, its dynamic int8 for this CPU, its runtime with onnxruntime."""

    packages = ("optimum.onnxruntime", "torch", "transformers")
    precision = "int8"

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import optimum.onnxruntime as runtime

        self.kind = runtime.ORTModelForSeq2SeqLM if self.seq2seq else runtime.ORTModelForCausalLM

    def make(self) -> dict[str, Any]:
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        raw = self.folder.with_name("fp32")
        self.kind.from_pretrained(self.folder, export=True).save_pretrained(raw)
        flags = machine.cpu_flags()
        kind = "arm64" if "asimd" in flags else "avx512_vnni" if "avx512_vnni" in flags else "avx2"
        choices = [{"config": kind, "per_channel": each} for each in (True, False)]
        for choice in choices:
            place = self._place(choice)
            shutil.copytree(raw, place, ignore=shutil.ignore_patterns("*.onnx*"))
            settings = getattr(AutoQuantizationConfig, kind)(is_static=False, per_channel=choice["per_channel"])
            for graph in raw.glob("*.onnx"):
                if "merged" not in graph.name:
                    ORTQuantizer.from_pretrained(raw, file_name=graph.name).quantize(
                        save_dir=place, quantization_config=settings)
        shutil.rmtree(raw)
        return self.best(choices)

    def _place(self, settings: dict[str, Any]) -> Path:
        return self.folder.with_name(f"int8-{'channels' if settings['per_channel'] else 'tensors'}")

    def open(self) -> None:
        from onnxruntime import SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = self.job["threads"]
        place = self._place(self.settings)
        names = {"encoder_file_name": "encoder_model_quantized.onnx", "decoder_file_name": "decoder_model_quantized.onnx",
                 "decoder_with_past_file_name": "decoder_with_past_model_quantized.onnx", "use_merged": False,
                 } if self.seq2seq else {"file_name": "model_quantized.onnx"}
        self.model = self.kind.from_pretrained(place, session_options=options, **names)
        self.bytes = size(place, ".onnx", ".onnx_data")


class CTranslate2(Peer):
    """CTranslate2 with int8 weights, greedy."""

    packages = ("ctranslate2", "transformers", "torch")
    precision = "int8"

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import ctranslate2

        self.lib = ctranslate2

    def make(self) -> dict[str, Any]:
        import transformers

        transformers.logging.set_verbosity_error()
        converter = self.lib.converters.TransformersConverter(str(self.folder))
        converter.convert(str(self.folder.with_name("ct2")), quantization="int8")
        kinds = sorted(kind for kind in self.lib.get_supported_compute_types("cpu") if kind.startswith("int8"))
        return self.best([{"compute_type": kind} for kind in kinds])

    def open(self) -> None:
        place = self.folder.with_name("ct2")
        kind = self.lib.Translator if self.seq2seq else self.lib.Generator
        self.model = kind(str(place), device="cpu", intra_threads=self.job["threads"], inter_threads=1, **self.settings)
        words = next(place.glob("*vocabulary.json"))
        self.words = json.loads(words.read_text(encoding="utf-8"))
        self.numbers = {word: i for i, word in enumerate(self.words)}
        self.bytes = size(place, ".bin")

    def generate(self, ids: list[int], opening: list[int], limit: int, exact: bool) -> list[int]:
        least = limit if exact else 0
        if self.seq2seq:  # its decoder opens with the model's own start token
            words = self.model.translate_batch([[self.words[i] for i in ids]], beam_size=1, min_decoding_length=least,
                                               max_decoding_length=limit, return_scores=False)[0].hypotheses[0]
            return [self.numbers[word] for word in words]
        found = self.model.generate_batch([[self.words[i] for i in ids + opening]], beam_size=1, min_length=least,
                                          max_length=limit, include_prompt_in_result=False,
                                          end_token=[self.format.eos_id])[0].sequences_ids[0]
        return [token for token in found if token != self.format.eos_id]


class LlamaCpp(Peer):
    """llama.cpp with the student as a GGUF file, in Q8_0 or Q4_0. Decoder-only students."""

    packages = ("llama_cpp", "gguf", "safetensors")
    extra = "teach,train"

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import llama_cpp

        if self.seq2seq:
            raise UsageError("llama.cpp is compared on decoder-only students; leave it out of --against for a T5")
        self.lib, self.precision = llama_cpp, job["precision"]
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must live on
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p())

    def make(self) -> dict[str, Any]:
        from edgedistill.bench.gguf import write

        lib, raw = self.lib, self.folder.with_name("f32.gguf")
        write(self.folder, raw)
        settings = lib.llama_model_quantize_default_params()
        settings.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{self.precision}")
        if lib.llama_model_quantize(str(raw).encode(), str(self.folder.with_name("model.gguf")).encode(), settings):
            raise UsageError(f"llama.cpp did not quantise {self.folder.name}; leave it out of --against")
        raw.unlink()
        return self.best([{"flash_attn": 1}, {"flash_attn": 0}])

    def open(self) -> None:
        lib, path = self.lib, self.folder.with_name("model.gguf")
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        wanted = lib.llama_context_default_params()
        form = self.format
        first = self.job["first"]
        wanted.n_ctx = 64 + max(form.max_input_tokens, len(first.get("ids") or [])) + max(
            form.max_new_tokens("label"), first.get("n") or 0)
        wanted.n_threads = wanted.n_threads_batch = self.job["threads"]
        wanted.flash_attn_type = self.settings["flash_attn"]
        self.context = lib.llama_init_from_model(model, wanted)
        self.memory = lib.llama_get_memory(self.context)
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.bytes = path.stat().st_size

    def generate(self, ids: list[int], opening: list[int], limit: int, exact: bool) -> list[int]:
        import numpy as np

        lib, end, found = self.lib, self.format.eos_id, []
        lib.llama_memory_clear(self.memory, True)
        pending = ids + opening
        while True:
            tokens = (ctypes.c_int32 * len(pending))(*pending)
            if lib.llama_decode(self.context, lib.llama_batch_get_one(tokens, len(pending))):
                raise RuntimeError("llama.cpp does not decode any more")
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, -1), (self.n_vocab,))
            token = int(logits.argmax())
            if token == end and exact:
                logits[end] = -np.inf
                token = int(logits.argmax())
            if token == end:
                return found
            found.append(token)
            if len(found) == limit:
                return found
            pending = [token]


def size(folder: Path, *endings: str) -> int:
    """Bytes of a folder's files with these endings."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.name.endswith(endings))


def _readable(folder: Path, place: Path) -> None:
    """A student's folder at `place` in the words of transformers 4.57, which some peers need; its weights are linked.

    Raises `UsageError` for a student that only edgedistill opens.
    """
    place.mkdir()
    for path in folder.iterdir():
        if path.name == "config.json":
            config = json.loads(path.read_text(encoding="utf-8"))
            if config.get("edgedistill_ffn"):
                raise UsageError(f"{folder.name}: only edgedistill opens a student of --method reparam; leave --against out")
            rope = config.get("rope_parameters") or {}
            words = {**config, **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})}
        elif path.name == "tokenizer_config.json":
            words = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
        else:
            (place / path.name).symlink_to(path.resolve())
            continue
        (place / path.name).write_text(json.dumps(words), encoding="utf-8")
