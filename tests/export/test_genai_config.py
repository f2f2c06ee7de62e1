"""genai_config.json: names, shapes and ids as the bundle has them; none where onnxruntime-genai could not run it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.bundle import GENAI_CONFIG
from tfm.export.genai_config import write_genai_config
from tfm.export.graphs import graphs_of
from tfm.model import Transformer

MakeModel = Callable[..., Transformer]

IDS = {"kind": "decoder", "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}


def write(folder: Path, model: Transformer, family: str = "llama", *precisions: str) -> dict[str, Any] | None:
    files = {name: {"model": folder / "onnx" / f"model_{name}.onnx"} for name in precisions or ("fp32",)}
    written = write_genai_config(folder, model.config, family, graphs_of(model), files)
    assert written == (folder / GENAI_CONFIG).exists()
    return json.loads((folder / GENAI_CONFIG).read_text()) if written else None


def test_what_it_says(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(**IDS, positions="rotary", nhead=2, num_kv_heads=1, num_decoder_layers=3)
    found = write(tmp_path, model)
    assert found is not None
    assert found["search"] == {"max_length": 16, "past_present_share_buffer": True, "do_sample": False}
    assert {key: found["model"][key] for key in ("type", "bos_token_id", "eos_token_id", "pad_token_id")} == {
        "type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    assert (found["model"]["context_length"], found["model"]["vocab_size"]) == (16, 19)
    decoder = found["model"]["decoder"]
    assert decoder["filename"] == "onnx/model_fp32.onnx"
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 1, 8)
    assert (decoder["num_hidden_layers"], decoder["hidden_size"]) == (3, 16)
    # Every name is one of the graph's, and no input that must be given is left out.
    (graph,) = graphs_of(model)
    inputs = {text.replace("%d", str(layer)) for text in decoder["inputs"].values() for layer in range(3)}
    assert inputs == {value.name for value in graph.inputs if value.default is None}
    outputs = {text.replace("%d", str(layer)) for text in decoder["outputs"].values() for layer in range(3)}
    assert outputs == {value.name for value in graph.outputs}


def test_the_graph_is_that_which_the_runtime_takes(make_model: MakeModel, tmp_path: Path) -> None:
    found = write(tmp_path, make_model(**IDS), "gpt2", "fp32", "int8", "fp16")
    assert found is not None
    assert found["model"]["decoder"]["filename"] == "onnx/model_int8.onnx"
    assert found["model"]["type"] == "llama"


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "encoder"},
        {"kind": "encoder-decoder"},
        {"d_model": 8},  # heads of 4, whose cache has no room
        {"eos_token_id": None},
    ],
    ids=str,
)
def test_none_where_it_could_not_be_run(make_model: MakeModel, tmp_path: Path, options: dict[str, Any]) -> None:
    assert write(tmp_path, make_model(**IDS | options)) is None
