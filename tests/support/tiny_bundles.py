"""Bundles of the tiny random models of `generation_models`, as an export makes them, with a tokenizer by character."""

import string
import warnings
from pathlib import Path

import onnx_ir as ir
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.support.generation_models import V, make
from tfm.export import graphs_of, to_onnx
from tfm.export.manifest import write_manifest
from tfm.model import load_checkpoint

PAD, BOS, EOS, UNK = 0, 1, 2, 3
CHARACTERS = string.ascii_lowercase + string.digits
BYTE_LETTERS = '{}[]":,. 0123456789-abcdefghijklmnopq'[: V - 4]
SEEDS = {"gpt2": 0, "llama": 0, "t5": 2, "marian": 1, "bart": 1}  # with others T5 and Marian say little but one token


def write_bundle(folder: Path, kind: str) -> None:
    """Export a model's graphs in fp32 as folder/bundle, in which texts begin with 1 and 2 ends them."""
    model = make(kind, SEEDS[kind])
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    model.config.eos_token_id = model.generation_config.eos_token_id = EOS
    model.config.pad_token_id = model.generation_config.pad_token_id = PAD
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(checkpoint)
    transformer = load_checkpoint(checkpoint).float()
    graphs, files = graphs_of(transformer), {}
    (bundle / "onnx").mkdir(parents=True)
    for graph in graphs:
        files[graph.role] = bundle / "onnx" / f"{graph.file}.onnx"
        ir.save(to_onnx(graph), files[graph.role])
    tokenizer().save(str(bundle / "tokenizer.json"))
    write_manifest(bundle, transformer.config, model.config.model_type, graphs, {"fp32": files}, 23, gates=[])


def read_model(folder: Path, kind: str):
    """The model of `write_bundle`, as transformers reads it from the same checkpoint."""
    return type(make(kind, SEEDS[kind])).from_pretrained(folder / "checkpoint").eval()  # not all of Marian is saved


def tokenizer() -> Tokenizer:
    """Make letters and digits ids 4 … 39, and <s> the first of every text."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *CHARACTERS]
    assert len(names) == V
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.add_special_tokens(names[:4])
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", BOS)])
    made.decoder = decoders.Fuse()
    return made


def by_byte() -> Tokenizer:
    """A tokenizer of single bytes, as those of large models are of several."""
    letters = [{" ": "\u0120"}.get(letter, letter) for letter in BYTE_LETTERS]
    names = ["<pad>", "<s>", "</s>", "<unk>", *letters]
    assert len(names) == V
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    made.add_special_tokens(names[:4])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", BOS)])
    made.decoder = decoders.ByteLevel()
    return made
