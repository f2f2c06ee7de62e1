"""Tiny bundles, built by hand with onnx.helper, whose right answers are plain to see."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

V, D, LIMIT = 12, 4, 8
PAD, BOS, EOS, UNK = 0, 1, 2, 3
TABLE_VD = np.random.default_rng(0).standard_normal((V, D)).astype(np.float32)


def write_bundle(folder: Path, kind: str, **changes: Any) -> Path:
    (folder / "onnx").mkdir(parents=True)
    graphs, manifest = KINDS[kind]()
    for path, model in graphs.items():
        onnx.checker.check_model(model)
        (folder / path).write_bytes(model.SerializeToString())
    tokenizer(by_character=kind in ("copier", "counter")).save(str(folder / "tokenizer.json"))
    common = {
        "schema": 1,
        "family": "toy",
        "config": {},
        "max_text_tokens": None,
        "versions": {},
        "opset": 24,
        "gates": [],
    }
    write_manifest(folder, {**common, **manifest, **changes})
    return folder


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write manifest.json with the digests of the files as they are."""
    values["files"] = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(values))


def add_golden(folder: Path) -> Path:
    """Add what the toy encoder gives for two inputs, computed here by numpy; int8, twice fp32, has an NMSE of 1."""
    arrays: dict[str, np.ndarray] = {}
    for case, (ids_BS, mask_BS) in enumerate([([[4, 5, 6], [7, 0, 0]], [[1, 1, 1], [1, 0, 0]]), ([[11]], [[1]])]):
        inputs = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        hidden_BSD, mask_BS1 = TABLE_VD[np.array(ids_BS)], np.array(mask_BS)[..., None]
        mean_BD = (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)
        outputs = {"last_hidden_state": hidden_BSD, "sentence_embedding": mean_BD.astype(np.float32)}
        arrays |= {f"model/{case}/inputs/{name}": np.array(value) for name, value in inputs.items()}
        arrays |= {f"model/{case}/outputs/{name}": value for name, value in outputs.items()}
    np.savez_compressed(folder / "golden.npz", **arrays)
    exact = {"model": {"last_hidden_state": 0.0, "sentence_embedding": 0.0}}
    twice = {"model": {"last_hidden_state": 1.0, "sentence_embedding": 1.0}}
    limits = {
        "schema": 1,
        "cases": {"model": 2},
        "precisions": {
            "fp32": {"atol": 1e-5, "rtol": 1e-5, "nmse": exact},
            "int8": {"nmse_factor": 2.0, "nmse_floor": 1e-9, "nmse": twice},
        },
    }
    (folder / "golden.json").write_text(json.dumps(limits))
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    return folder


def tokenizer(by_character: bool) -> Tokenizer:
    """Make letters a … h ids 4 … 11, by word with ends or by character; its file asks to pad and truncate."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNK, **{c: 4 + i for i, c in enumerate("abcdefgh")}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    if by_character:
        made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    else:
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", BOS), ("</s>", EOS)])
    made.enable_padding(length=20)
    made.enable_truncation(3)
    return made


def model_of(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", [info(s) for s in inputs], [info(s) for s in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def info(spec: dict[str, Any]) -> Any:
    return helper.make_tensor_value_info(spec["name"], getattr(TensorProto, ONNX_NAMES[spec["dtype"]]), spec["shape"])


ONNX_NAMES = {"int64": "INT64", "float32": "FLOAT"}


def ids(name: str, below: int | None, *shape: str) -> dict[str, Any]:
    spec = {"name": name, "dtype": "int64", "shape": list(shape)}
    return spec if below is None else spec | {"below": below}


KEEP = {"name": "num_logits_to_keep", "dtype": "int64", "shape": [], "default": 0}
"""How many logits are wanted."""


def floats(name: str, *shape: str | int) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


def signature(inputs: list[Any], outputs: list[Any], **max_length: int) -> dict[str, Any]:
    return {"inputs": inputs, "outputs": outputs, "max_length": max_length}


def encoder_parts(segments: bool = True, pooled: bool = True) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """Embed by TABLE_VD + segment; the sentence embedding is the mean over real tokens. int8 is twice fp32."""
    names = ("input_ids", "attention_mask", "token_type_ids")[: 3 if segments else 2]
    inputs = [ids(n, b, "batch", "sequence") for n, b in zip(names, (V, 2, 2), strict=False)]
    outputs = [floats("last_hidden_state", "batch", "sequence", D), floats("sentence_embedding", "batch", D)][
        : 2 if pooled else 1
    ]
    segment_nodes = [
        helper.make_node("Cast", ["token_type_ids"], ["segments"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["segments", "last"], ["segments3"]),
        helper.make_node("Add", ["tokens", "segments3"], ["last_hidden_state"]),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens" if segments else "last_hidden_state"]),
        *(segment_nodes if segments else []),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["last_hidden_state", "mask3"], ["real"]),
        helper.make_node("ReduceSum", ["real", "axis1"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask3", "axis1"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["sentence_embedding"]),
    ]
    axes = {"last": np.array([-1]), "axis1": np.array([1])}
    graphs = {
        "onnx/model.onnx": model_of(nodes, inputs, outputs, {"table": TABLE_VD, **axes}),
        "onnx/model_int8.onnx": model_of(nodes, inputs, outputs, {"table": 2 * TABLE_VD, **axes}),
    }
    manifest = {
        "kind": "encoder",
        "graphs": {"fp32": {"model": "onnx/model.onnx"}, "int8": {"model": "onnx/model_int8.onnx"}},
        "signature": {"model": signature(inputs, outputs, sequence=LIMIT)},
        "generation": None,
    }
    return graphs, manifest


def generation() -> dict[str, Any]:
    return {
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "max_new_tokens": 6,
        "split_on_whitespace": True,
    }


def copier_parts() -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """An encoder-decoder that copies its source, then ends.

    The encoder's key holds each token's id. At place p = T - S … T - 1 the decoder looks the p-th real source token up
    through the cache and the mask, and past the last one says EOS: it is wrong without either.
    """
    e_inputs = [ids("input_ids", V, "batch", "sequence"), ids("attention_mask", 2, "batch", "sequence")]
    cache = ("batch", 1, "sequence", 1)
    e_outputs = [
        floats("last_hidden_state", "batch", "sequence", 1),
        floats("present.0.encoder.key", *cache),
        floats("present.0.encoder.value", *cache),
    ]
    e_nodes = [
        helper.make_node("Cast", ["input_ids"], ["float_ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float_ids", "last"], ["last_hidden_state"]),
        helper.make_node("Unsqueeze", ["last_hidden_state", "axis1"], ["present.0.encoder.key"]),
        helper.make_node("Neg", ["present.0.encoder.key"], ["present.0.encoder.value"]),
    ]
    axes = {"last": np.array([-1]), "axis1": np.array([1])}
    d_inputs = [
        ids("input_ids", V, "batch", "sequence"),
        ids("decoder_attention_mask", 2, "batch", "total_sequence"),
        ids("encoder_attention_mask", 2, "batch", "encoder_sequence"),
        floats("past_key_values.0.decoder.key", "batch", 1, "past_sequence", 1),
        floats("past_key_values.0.decoder.value", "batch", 1, "past_sequence", 1),
        floats("past_key_values.0.encoder.key", "batch", 1, "encoder_sequence", 1),
        floats("past_key_values.0.encoder.value", "batch", 1, "encoder_sequence", 1),
        KEEP,
    ]
    d_outputs = [
        floats("logits", "batch", "logits_length", V),
        floats("present.0.decoder.key", "batch", 1, "present_sequence", 1),
        floats("present.0.decoder.value", "batch", 1, "present_sequence", 1),
    ]
    d_nodes = [
        helper.make_node("Cast", ["input_ids"], ["new"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["new", "axes13"], ["new4"]),
        *places_of_new_tokens("decoder_attention_mask"),
        *written("past_key_values.0.decoder.key", "present.0.decoder.key"),
        *written("past_key_values.0.decoder.value", "present.0.decoder.value"),
        helper.make_node("Unsqueeze", ["places", "axis1"], ["positions3"]),
        # the place of each real source token among the real ones, as (B, 1, T)
        helper.make_node("CumSum", ["encoder_attention_mask", "one"], ["counted"]),
        helper.make_node("Sub", ["counted", "one"], ["place"]),
        helper.make_node("Unsqueeze", ["place", "axis1"], ["place3"]),
        helper.make_node("Equal", ["positions3", "place3"], ["here"]),
        helper.make_node("Cast", ["encoder_attention_mask"], ["real"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["real", "axis1"], ["real3"]),
        helper.make_node("And", ["here", "real3"], ["seen"]),
        helper.make_node("Cast", ["seen"], ["weights"], to=TensorProto.FLOAT),
        # the id found there, or 0 past the end, where it becomes EOS
        helper.make_node("Squeeze", ["past_key_values.0.encoder.key", "axes13"], ["source"]),
        helper.make_node("Unsqueeze", ["source", "axis1"], ["source3"]),
        helper.make_node("Mul", ["weights", "source3"], ["found3"]),
        helper.make_node("ReduceSum", ["found3", "last"], ["found"], keepdims=0),
        helper.make_node("Cast", ["found"], ["found_ids"], to=TensorProto.INT64),
        helper.make_node("Equal", ["found_ids", "zero"], ["ended"]),
        helper.make_node("Where", ["ended", "eos", "found_ids"], ["next"]),
        *kept("next"),
        helper.make_node("OneHot", ["wanted", "depth", "off_on"], ["logits"]),
    ]
    d_constants = {
        **axes,
        **PLACES,
        "axes13": np.array([1, 3]),
        "one": np.array(1),
        "zero": np.array(0),
        "eos": np.array(EOS),
        "depth": np.array(V),
        "off_on": np.array([0, 1], np.float32),
    }
    graphs = {
        "onnx/encoder_model.onnx": model_of(e_nodes, e_inputs, e_outputs, axes),
        "onnx/decoder_model_merged.onnx": model_of(d_nodes, d_inputs, d_outputs, d_constants),
    }
    limit = {"sequence": LIMIT}
    manifest = {
        "kind": "encoder-decoder",
        "graphs": {"fp32": {"encoder": "onnx/encoder_model.onnx", "decoder": "onnx/decoder_model_merged.onnx"}},
        "signature": {
            "encoder": signature(e_inputs, e_outputs, sequence=LIMIT),
            "decoder": signature(d_inputs, d_outputs, **limit),
        },
        "generation": generation(),
    }
    return graphs, manifest


def written(cache: str, present: str) -> list[onnx.NodeProto]:
    """The new tokens' ids, put into a cache behind what it has, at their places; what is behind them stays."""
    return [
        helper.make_node("Slice", [cache, "axis0", "past1", "axis2"], [f"{cache} before"]),
        helper.make_node("Slice", [cache, "total1", "end", "axis2"], [f"{cache} after"]),
        helper.make_node("Concat", [f"{cache} before", "new4", f"{cache} after"], [present], axis=2),
    ]


def places_of_new_tokens(mask: str) -> list[onnx.NodeProto]:
    """`places`, (S,), behind the `past1` tokens that the mask tells of beside the new ones."""
    return [
        helper.make_node("Shape", ["input_ids"], ["length1"], start=1, end=2),
        helper.make_node("Shape", [mask], ["total1"], start=1, end=2),
        helper.make_node("Sub", ["total1", "length1"], ["past1"]),
        helper.make_node("Squeeze", ["past1", "axis0"], ["past"]),
        helper.make_node("Squeeze", ["total1", "axis0"], ["total"]),
        helper.make_node("Range", ["past", "total", "one"], ["places"]),
    ]


def kept(said: str) -> list[onnx.NodeProto]:
    """`wanted`, the last of (B, S)."""
    return [
        helper.make_node("Neg", ["num_logits_to_keep"], ["start0"]),
        helper.make_node("Reshape", ["start0", "axis1"], ["start1"]),
        helper.make_node("Slice", [said, "start1", "end", "axis1"], ["wanted"]),
    ]


PLACES = {
    "axis0": np.array([0]),
    "axis1": np.array([1]),
    "axis2": np.array([2]),
    "end": np.array([2**62]),
    "num_logits_to_keep": np.array(0),
}
"""Constants of these nodes, and the default of `KEEP`."""


def counter_parts() -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """A decoder that says t + 1 after t; after the last id of the vocabulary, EOS.

    Where a row's cache does not hold a token for every position up to that of the new one, it says UNK.
    """
    inputs = [
        ids("input_ids", V, "batch", "sequence"),
        ids("attention_mask", 2, "batch", "total_sequence"),
        ids("position_ids", LIMIT, "batch", "sequence"),
        floats("past_key_values.0.key", "batch", 1, "past_sequence", 1),
        floats("past_key_values.0.value", "batch", 1, "past_sequence", 1),
        KEEP,
    ]
    outputs = [
        floats("logits", "batch", "logits_length", V),
        floats("present.0.key", "batch", 1, "present_sequence", 1),
        floats("present.0.value", "batch", 1, "present_sequence", 1),
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["new"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["new", "axes13"], ["new4"]),
        *places_of_new_tokens("attention_mask"),
        *written("past_key_values.0.key", "present.0.key"),
        *written("past_key_values.0.value", "present.0.value"),
        # of the real places up to that of each new token, (B, S, T), how many hold one
        helper.make_node("Range", ["zero", "total", "one"], ["all_places"]),
        helper.make_node("Unsqueeze", ["places", "axis1"], ["places3"]),
        helper.make_node("LessOrEqual", ["all_places", "places3"], ["before"]),
        helper.make_node("Slice", ["present.0.key", "axis0", "total1", "axis2"], ["filled"]),
        helper.make_node("Squeeze", ["filled", "axes13"], ["held"]),
        helper.make_node("Cast", ["held"], ["holds"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.BOOL),
        helper.make_node("And", ["holds", "real"], ["holds_real"]),
        helper.make_node("Unsqueeze", ["holds_real", "axis1"], ["holds3"]),
        helper.make_node("And", ["before", "holds3"], ["counted"]),
        helper.make_node("Cast", ["counted"], ["counted_ids"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["counted_ids", "last"], ["count"], keepdims=0),
        helper.make_node("Sub", ["count", "one"], ["last_place"]),
        helper.make_node("Equal", ["last_place", "position_ids"], ["right"]),
        helper.make_node("Gather", ["next", "input_ids"], ["next_ids"]),
        helper.make_node("Where", ["right", "next_ids", "unknown"], ["said"]),
        *kept("said"),
        helper.make_node("OneHot", ["wanted", "depth", "off_on"], ["logits"]),
    ]
    constants = {
        **PLACES,
        "axes13": np.array([1, 3]),
        "last": np.array([-1]),
        "one": np.array(1),
        "zero": np.array(0),
        "unknown": np.array(UNK),
        "next": np.array([*range(1, V), EOS]),
        "depth": np.array(V),
        "off_on": np.array([0, 1], np.float32),
    }
    graphs = {"onnx/model.onnx": model_of(nodes, inputs, outputs, constants)}
    limit = {"sequence": LIMIT}
    manifest = {
        "kind": "decoder",
        "graphs": {"fp32": {"model": "onnx/model.onnx"}},
        "signature": {"model": signature(inputs, outputs, **limit)},
        "generation": generation(),
    }
    return graphs, manifest


TOWER = 64


def tower_parts() -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """A graph that takes long and can be ended in many places: TOWER times tanh(x @ W), W (128, 128)."""
    inputs, outputs = [floats("x", "batch", 128)], [floats("y", "batch", 128)]
    names = ["x", *(f"x{layer}" for layer in range(1, TOWER)), "y"]
    nodes = [
        node
        for before, after in itertools.pairwise(names)
        for node in (
            helper.make_node("MatMul", [before, "w"], [f"{after}_product"]),
            helper.make_node("Tanh", [f"{after}_product"], [after]),
        )
    ]
    w = np.random.default_rng(1).standard_normal((128, 128)).astype(np.float32) / 8  # keeps values about 0.7
    manifest = {
        "kind": "module",
        "graphs": {"fp32": {"model": "onnx/model.onnx"}},
        "signature": {"model": signature(inputs, outputs)},
        "generation": None,
    }
    return {"onnx/model.onnx": model_of(nodes, inputs, outputs, {"w": w})}, manifest


CLASHING = ("outputs", "control", "cancel", "timeout", "self", "function", "arrays")


def clashing_parts() -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """A module whose inputs have the names of parameters; y is their sum."""
    inputs, outputs = [floats(name, "batch") for name in CLASHING], [floats("y", "batch")]
    manifest = {
        "kind": "module",
        "graphs": {"fp32": {"model": "onnx/model.onnx"}},
        "signature": {"model": signature(inputs, outputs)},
        "generation": None,
    }
    return {"onnx/model.onnx": model_of([helper.make_node("Sum", CLASHING, ["y"])], inputs, outputs, {})}, manifest


def fussy_parts() -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """A module that takes any batch, and fails on all but one of 2 rows."""
    inputs, outputs = [floats("x", "batch")], [floats("y", 2)]
    manifest = {
        "kind": "module",
        "graphs": {"fp32": {"model": "onnx/model.onnx"}},
        "signature": {"model": signature(inputs, outputs)},
        "generation": None,
    }
    nodes = [helper.make_node("Reshape", ["x", "two"], ["y"])]
    return {"onnx/model.onnx": model_of(nodes, inputs, outputs, {"two": np.array([2])})}, manifest


KINDS = {
    "encoder": encoder_parts,
    "fussy": fussy_parts,
    "clashing": clashing_parts,
    "encoder without segments": lambda: encoder_parts(segments=False),
    "encoder without pooling": lambda: encoder_parts(pooled=False),
    "copier": copier_parts,
    "counter": counter_parts,
    "tower": tower_parts,
}
