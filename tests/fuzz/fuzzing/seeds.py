"""Files to mutate, one small folder each: made when they are needed, of tiny models, the same each time.

Weights count up in eighths, so that what a corpus keeps of them is small.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {"vocab_size": 11, "d_model": 8, "nhead": 2, "dim_feedforward": 12, "max_positions": 16}

_DECODER = {
    "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
    "intermediate_size": 12, "max_position_embeddings": 16, "head_dim": 4,
}  # fmt: skip
_ENCODER = {
    "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12,
    "max_position_embeddings": 16,
}  # fmt: skip
_BOTH = {
    "vocab_size": 11, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "max_position_embeddings": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip

_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
_DISTILBERT = {"vocab_size": 11, "dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 12, "max_position_embeddings": 16}
_GPT2 = {
    "vocab_size": 11,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {
    "vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0,
}  # fmt: skip
_VIT = {
    "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("Bart", "ForConditionalGeneration", _BOTH),
    "bert": ("Bert", "ForSequenceClassification", _ENCODER),
    "distilbert": ("DistilBert", "Model", _DISTILBERT),
    "electra": ("Electra", "Model", {**_ENCODER, "embedding_size": 4}),
    "gemma2": ("Gemma2", "ForCausalLM", {**_DECODER, "query_pre_attn_scalar": 4, "sliding_window": 8}),
    "gpt2": ("GPT2", "LMHeadModel", _GPT2),
    "llama": ("Llama", "ForCausalLM", {**_DECODER, "rope_parameters": _LLAMA_3}),
    "marian": ("Marian", "MTModel", _BOTH),
    "mistral": ("Mistral", "ForCausalLM", {**_DECODER, "sliding_window": 8}),
    "qwen2": ("Qwen2", "ForCausalLM", {name: value for name, value in _DECODER.items() if name != "head_dim"}),
    "qwen3": ("Qwen3", "ForCausalLM", _DECODER),
    "roberta": ("Roberta", "ForTokenClassification", {**_ENCODER, "type_vocab_size": 1}),
    "t5": ("T5", "ForConditionalGeneration", _T5),
    "vit": ("ViT", "Model", _VIT),
    "xlm-roberta": ("XLMRoberta", "ForMaskedLM", {**_ENCODER, "type_vocab_size": 1}),
}
"""Family → its classes' name, the rest of the one that is saved, and sizes."""


_LITGPT = """\
name: tiny
hf_config:
  name: tiny
  org: x
block_size: 16
vocab_size: 11
padded_vocab_size: 12
n_layer: 1
n_head: 2
n_embd: 8
n_query_groups: 1
head_size: 4
rotary_percentage: 1.0
parallel_residual: false
bias: false
norm_class_name: RMSNorm
mlp_class_name: LLaMAMLP
intermediate_size: 12
rope_base: 10000
rope_condense_ratio: 1
rope_adjustments:
  factor: 8.0
  low_freq_factor: 1.0
  high_freq_factor: 4.0
  original_max_seq_len: 8
"""


def plain_weights(module: Any) -> Any:
    """Let weights count up in eighths, from -2 to 2."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(((torch.arange(parameter.numel()) % 33) / 8 - 2).view(parameter.shape))
    return module.eval()


def own_model(**options: Any) -> Any:
    """A tiny model of ours."""
    from tfm.model import Transformer, TransformerConfig

    values = SIZES | {"num_encoder_layers": 1, "num_decoder_layers": 1, "kind": "encoder"} | options
    return plain_weights(Transformer(TransformerConfig(**values)))


def huggingface(folder: Path, family: str, *, shard: str = "5GB") -> Any:
    """Save a tiny model of a family as transformers does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        prefix, suffix, sizes = FAMILIES[family]
        config = getattr(transformers, f"{prefix}Config")(**sizes)
        module = plain_weights(getattr(transformers, prefix + suffix)(config))
        module.save_pretrained(folder, max_shard_size=shard)
    return module


def make_pt(place: Path) -> None:
    """torch.save's archives: ours, a training checkpoint beside its configuration, and an old pickle."""
    import torch

    from tfm.model import save_checkpoint

    model = own_model()
    save_checkpoint(model, folder(place / "ours") / "model.pt")
    state, config = model.state_dict(), model.config.to_dict()
    torch.save({"state_dict": state, "step": 3}, folder(place / "training") / "model.pt")
    (place / "training" / "config.json").write_text(json.dumps(config))
    torch.save({"config": config, "state_dict": state}, folder(place / "deflated") / "model.pt")


def make_old_pickle(place: Path) -> None:
    """What torch.save wrote before 1.6."""
    import torch

    model = own_model()
    content = {"config": model.config.to_dict(), "state_dict": model.state_dict()}
    torch.save(content, folder(place / "old") / "model.pt", _use_new_zipfile_serialization=False)


def make_safetensors(place: Path) -> None:
    """Our safetensors beside config.json."""
    from tfm.model import save_checkpoint

    save_checkpoint(own_model(), folder(place / "ours") / "model.safetensors")
    save_checkpoint(own_model(kind="decoder", tie_embeddings=True), folder(place / "decoder") / "model.safetensors")


def make_index(place: Path) -> None:
    """Weights in several files, and an index of them."""
    huggingface(place / "llama", "llama", shard="1KB")


def make_config(place: Path) -> None:
    """A folder of every Hugging Face family."""
    for family in FAMILIES:
        huggingface(place / family, family)


def make_own_config(place: Path) -> None:
    """Our configurations beside weights."""
    from tfm.model import save_checkpoint

    for kind in ("encoder", "decoder", "encoder-decoder"):
        save_checkpoint(own_model(kind=kind), folder(place / kind) / "model.safetensors")
    options = {"positions": "rotary", "num_kv_heads": 1, "sliding_window": 4, "norm": "rms", "activation": "swiglu"}
    save_checkpoint(own_model(kind="decoder", **options), folder(place / "modern") / "model.safetensors")


def make_generation_config(place: Path) -> None:
    """How to generate, beside a decoder and an encoder-decoder."""
    values = {
        "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0,
        "max_new_tokens": 5, "max_length": 20, "split_on_whitespace": True, "transformers_version": "5",
    }  # fmt: skip
    for family in ("bart", "gpt2", "t5"):
        huggingface(place / family, family)
        (place / family / "generation_config.json").write_text(json.dumps(values))


def make_sentence_transformers(place: Path) -> None:
    """A BERT with sentence-transformers' files."""
    path = place / "bert"
    huggingface(path, "electra")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder(path / "1_Pooling") / "config.json").write_text(json.dumps(pooling))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))


def make_checkpoint_tokenizer(place: Path) -> None:
    """A checkpoint with a tokenizer.json beside it."""
    huggingface(place / "bert", "bert")
    for name, made in tokenizers().items():
        shutil.copytree(place / "bert", place / name)
        made.save(str(place / name / "tokenizer.json"))
    shutil.rmtree(place / "bert")


def tokenizers() -> dict[str, Any]:
    """One of each kind."""
    import tokenizers as library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    from tests.support import toys

    made = {"words": toys.tokenizer(by_character=False)}
    pieces = {
        token: number
        for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "c", "d", "e"])
    }
    made["pieces"] = library.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    made["pieces"].normalizer = normalizers.BertNormalizer()
    made["pieces"].pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made["pieces"].decoder = decoders.WordPiece()
    made["pieces"].post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    made["bytes"] = library.Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "Ġ": 4, "d": 5}, [("a", "b")]))
    split = pre_tokenizers.Split(library.Regex(r"\p{L}+| ?[^\s]+|\s+"), "isolated")
    made["bytes"].pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    made["bytes"].decoder = decoders.ByteLevel()
    made["unigram"] = library.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁b", -2.0), ("c", -1.5)], 0, True)
    )
    made["unigram"].normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(library.Regex(" {2,}"), " ")]
    )
    made["unigram"].pre_tokenizer = pre_tokenizers.Metaspace()
    made["unigram"].decoder = decoders.Metaspace()
    return made


def make_gguf(place: Path) -> None:
    """Llamas and a Qwen 2, one quantized, with a tokenizer."""
    from tests.support import gguf_files

    kinds = gguf_files.GGMLQuantizationType

    def tokenizer(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(
            [chr(97 + number) for number in range(26)]
            + [f"{number}" for number in range(10)]
            + ["Ġ", "ab", "<s>", "</s>"]
        )
        writer.add_token_merges(["a b"])
        writer.add_token_types([1] * 38 + [3, 3])

    for name, family, kind in (
        ("llama", "llama", kinds.F32),
        ("quantized", "llama", kinds.Q8_0),
        ("half", "qwen2", kinds.F16),
    ):
        gguf_files.write(folder(place / name) / "model.gguf", gguf_files.theirs(family), kind, tokenizer)


def make_params(place: Path) -> None:
    """Llama's own form, beside params.json."""
    import torch

    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 11, "multiple_of": 4}
    sizes |= {"norm_eps": 1e-5, "rope_theta": 500.0, "use_scaled_rope": True}
    shapes = {
        "tok_embeddings.weight": (11, 8), "norm.weight": (8,), "output.weight": (11, 8),
        "layers.0.attention_norm.weight": (8,), "layers.0.ffn_norm.weight": (8,),
        "layers.0.attention.wq.weight": (8, 8), "layers.0.attention.wk.weight": (4, 8),
        "layers.0.attention.wv.weight": (4, 8), "layers.0.attention.wo.weight": (8, 8),
        "layers.0.feed_forward.w1.weight": (12, 8), "layers.0.feed_forward.w2.weight": (8, 12),
        "layers.0.feed_forward.w3.weight": (12, 8),
    }  # fmt: skip
    weights = {name: torch.ones(shape) / 8 for name, shape in shapes.items()}
    torch.save(weights, folder(place / "meta") / "consolidated.00.pth")
    (place / "meta" / "params.json").write_text(json.dumps(sizes))


def make_litgpt(place: Path) -> None:
    """litgpt's, beside its YAML."""
    import torch

    shapes = {
        "lm_head.weight": (12, 8), "transformer.wte.weight": (12, 8), "transformer.ln_f.weight": (8,),
        "transformer.h.0.norm_1.weight": (8,), "transformer.h.0.norm_2.weight": (8,),
        "transformer.h.0.attn.qkv.weight": (16, 8), "transformer.h.0.attn.proj.weight": (8, 8),
        "transformer.h.0.mlp.fc_1.weight": (12, 8), "transformer.h.0.mlp.fc_2.weight": (12, 8),
        "transformer.h.0.mlp.proj.weight": (8, 12),
    }  # fmt: skip
    path = folder(place / "litgpt")
    torch.save({name: torch.ones(shape) / 8 for name, shape in shapes.items()}, path / "lit_model.pth")
    (path / "model_config.yaml").write_text(_LITGPT)


def make_nanogpt(place: Path) -> None:
    """nanoGPT's, which brings its arguments along; and torch.nn's weights with fields beside them."""
    import torch

    shapes = {
        "transformer.wte.weight": (11, 8), "transformer.wpe.weight": (16, 8), "transformer.ln_f.weight": (8,),
        "lm_head.weight": (11, 8), "transformer.h.0.ln_1.weight": (8,), "transformer.h.0.ln_2.weight": (8,),
        "transformer.h.0.attn.c_attn.weight": (24, 8), "transformer.h.0.attn.c_proj.weight": (8, 8),
        "transformer.h.0.mlp.c_fc.weight": (32, 8), "transformer.h.0.mlp.c_proj.weight": (8, 32),
    }  # fmt: skip
    arguments = {
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 8,
        "block_size": 16,
        "bias": False,
        "vocab_size": 11,
        "dropout": 0.0,
    }
    weights = {name: torch.ones(shape) / 8 for name, shape in shapes.items()}
    torch.save({"model": weights, "model_args": arguments, "iter_num": 1}, folder(place / "nanogpt") / "model.pt")


def make_torch_nn(place: Path) -> None:
    """The weights of torch.nn's encoder, with fields beside them."""
    import torch

    module = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 12), 1, enable_nested_tensor=False)
    torch.save(plain_weights(module).state_dict(), folder(place / "encoder") / "model.pt")
    (place / "encoder" / "fields.json").write_text(json.dumps({"nhead": 2, "activation": "gelu", "norm_first": False}))


def make_pt2(place: Path) -> None:
    """Exported programs."""
    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(11, 4), nn.Linear(4, 3)

        def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids)) * scale

    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = (torch.zeros((2, 3), dtype=torch.int64), torch.ones(1))
        program = torch.export.export(plain_weights(Tiny()), inputs, dynamic_shapes=({0: batch, 1: length}, None))
        torch.export.save(program, folder(place / "tiny") / "model.pt2")


def make_bundles(place: Path) -> None:
    """Toy bundles of each kind, one with its weights in a file of their own."""
    import onnx

    from tests.support import toys

    toys.add_golden(toys.write_bundle(place / "encoder", "encoder"))
    toys.write_bundle(place / "copier", "copier")
    toys.write_bundle(place / "counter", "counter")
    toys.write_bundle(place / "module", "fussy")
    path = toys.add_golden(toys.write_bundle(place / "outside", "encoder"))
    for name in ("model", "model_int8"):
        graph = onnx.load(path / "onnx" / f"{name}.onnx")
        (path / "onnx" / f"{name}.onnx").unlink()
        onnx.save(
            graph,
            path / "onnx" / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.onnx_data",
            size_threshold=100,
        )
    toys.write_manifest(path, json.loads((path / "manifest.json").read_text()))
    shutil.rmtree(place / "module")  # only two rows fit it, and so not the least inputs
    toys.write_bundle(place / "module", "clashing")
    for kind in ("encoder", "decoder"):
        _exported(place / f"exported-{kind}", kind)


def _exported(path: Path, kind: str) -> None:
    """A bundle of a real graph, with the ops that real graphs have."""
    import torch

    from tfm.export import graphs_of, to_onnx
    from tfm.export.manifest import write_manifest
    from tfm.quantize.storage import save_onnx

    torch.manual_seed(0)
    options = {"positions": "rotary"} if kind == "decoder" else {"pooling": "mean"}
    model = own_model(kind=kind, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options)
    files: dict[str, Path] = {}
    folder(path / "onnx")
    graphs = graphs_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for graph in graphs:
            files[graph.role] = path / "onnx" / f"{graph.file}.onnx"
            save_onnx(to_onnx(graph), files[graph.role])
    tokenizers()["words"].save(str(path / "tokenizer.json"))
    write_manifest(path, model.config, "transformer", graphs, {"fp32": files}, 24, [])


def make_zip(place: Path) -> None:
    """Bundles as archives."""
    from tests.support import toys

    for kind in ("encoder", "counter"):
        bundle = toys.write_bundle(place / "made" / kind, kind)
        folder(place / kind)
        shutil.make_archive(str(place / kind / "bundle"), "zip", bundle)
    shutil.rmtree(place / "made")


def make_recipe(place: Path) -> None:
    """A recipe with every form of method."""
    from tfm.quantize.methods.registry import Blocks, Dynamic, Float32, Static
    from tfm.quantize.recipe import Recipe

    methods = {
        "a": Float32(),
        "b": Dynamic(alpha=0.5),
        "c": Static(alpha=0.25),
        "d": Blocks(),
        "e": Dynamic(by_row=True),
    }
    recipe = Recipe(precision="int8", methods={"model": methods})
    (folder(place / "recipe") / "recipe_int8.json").write_text(json.dumps(recipe.to_json()))


def make_journal(place: Path) -> None:
    """What a search has found."""
    lines = [
        ["subject", "s"],
        ["noise a", [0.0, 1e-9]],
        ["drop 0 1", {"value": 0.5, "flips": None, "least": 0.25}],
        ["time x", [1e-5]],
    ]
    (folder(place / "journal") / "search").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_calibration(place: Path) -> None:
    """Data of each kind, beside the bundle that it is for."""
    import numpy as np

    from tests.support import toys

    data: dict[str, Callable[[Path], object]] = {
        "data.txt": lambda file: file.write_text("a b c\nd e\nf g h a\nb\n"),
        "data.jsonl": lambda file: file.write_text(
            '{"text": "a b"}\n{"input_ids": [4, 5, 6], "other": 1}\n{"text": "c d e"}\n'
        ),
        "data.npz": lambda file: np.savez(file, **rows),
    }
    ids = np.arange(40, dtype=np.int64).reshape(10, 4) ** 2 % 11
    for kind in ("encoder", "copier", "tower"):
        names = ("attention_mask", "token_type_ids") if kind == "encoder" else ("attention_mask",)
        rows = {"input_ids": ids} | {name: np.ones_like(ids) * (name == "attention_mask") for name in names}
        if kind == "tower":
            rows = {"x": np.arange(640, dtype=np.float32).reshape(5, 128) / 640}
        for name, write in data.items():
            if kind == "encoder" or name == "data.npz":
                toys.write_bundle(place / f"{kind}-{name[5:]}" / "bundle", kind)
                write(place / f"{kind}-{name[5:]}" / name)


def folder(path: Path) -> Path:
    """Make a folder."""
    path.mkdir(parents=True, exist_ok=True)
    return path
