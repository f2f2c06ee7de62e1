"""manifest.json: the digest of every file, the signature, and how to generate."""

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from tfm.bundle.manifest import read_manifest
from tfm.errors import ConfigError
from tfm.export import graphs_of
from tfm.export.manifest import COMPANIONS, generation_settings, write_manifest
from tfm.export.text_settings import max_text_tokens
from tfm.model import TransformerConfig

SIZES = {"vocab_size": 19, "d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def config(**options: Any) -> TransformerConfig:
    return TransformerConfig(**(SIZES | {"max_positions": 16} | options))


def graph(op: str, inputs: int, about: str = "") -> bytes:
    nodes = [helper.make_node(op, [f"x{place}" for place in range(inputs)], ["y"])]
    made = helper.make_graph(nodes, "graph", [], [], doc_string=about)
    model: onnx.ModelProto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    return model.SerializeToString()


def test_every_file_is_listed_with_its_digest(make_model: Any, tmp_path: Path) -> None:
    model = make_model(**IDS)
    contents = {
        "onnx/encoder_model.onnx": graph("Identity", 1, "a" * 3_000_000),
        "onnx/decoder.onnx": graph("TensorScatter", 3),
        "config.json": b"{}",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    roles = ("encoder", "decoder")
    files = {"fp32": {role: tmp_path / name for role, name in zip(roles, contents, strict=False)}}
    gates = [{"name": "fp32 encoder", "passed": True}]
    write_manifest(tmp_path, model.config, "transformer", graphs_of(model), files, 23, gates)
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert values["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    assert values["graphs"]["fp32"]["decoder"] == "onnx/decoder.onnx"
    assert (values["schema"], values["kind"], values["family"], values["opset"]) == (
        1,
        "encoder-decoder",
        "transformer",
        23,
    )
    assert values["gates"] == gates
    assert values["requires"] == {"onnxruntime": {"fp32": {"encoder": "1.24.1", "decoder": "1.25.0"}}}
    assert TransformerConfig.from_dict(values["config"]) == model.config
    assert set(values["versions"]) == {"tfm-export", "torch", "onnx", "onnxruntime"}
    manifest = read_manifest(tmp_path)  # the runtime agrees
    assert manifest.generation is not None
    assert manifest.signature["decoder"].max_length == {"sequence": 16}
    assert manifest.max_text_tokens is None
    assert manifest.requires == values["requires"]["onnxruntime"]


NOTHING_SAID: dict[str, Any] = {"defaults": {}, "max_length": None, "not_carried": []}
"""Of how to generate."""


def test_generation_from_the_configuration(tmp_path: Path) -> None:
    assert generation_settings(tmp_path, config(**IDS)) == {
        **IDS,
        "max_new_tokens": 16,
        "split_on_whitespace": False,
        **NOTHING_SAID,
    }
    assert generation_settings(tmp_path, config(**IDS, max_positions=9999))["max_new_tokens"] == 128


def test_generation_from_the_file(tmp_path: Path) -> None:
    values = {"eos_token_id": 5, "max_new_tokens": 7, "split_on_whitespace": True, "temperature": 0.7}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert generation_settings(tmp_path, config(**IDS)) == {
        **IDS,
        "eos_token_id": 5,
        "max_new_tokens": 7,
        "split_on_whitespace": True,
        **NOTHING_SAID,
        "defaults": {"temperature": 0.7},
    }


def test_padding_falls_back_to_the_end(tmp_path: Path) -> None:
    assert generation_settings(tmp_path, config(bos_token_id=1, eos_token_id=2))["pad_token_id"] == 2


def test_no_generation_without_ids_or_a_decoder(tmp_path: Path) -> None:
    assert generation_settings(tmp_path, config()) is None
    assert generation_settings(tmp_path, config(bos_token_id=1)) is None
    assert generation_settings(tmp_path, config(kind="encoder", **IDS)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json is not JSON"),
        ("[]", "generation_config.json"),
        ('{"eos_token_id": 19}', r"eos_token_id must be in \[0, 19\), but is 19"),
        ('{"decoder_start_token_id": -1}', r"decoder_start_token_id must be in \[0, 19\), but is -1"),
        ('{"pad_token_id": "x"}', "pad_token_id must be the id of a token, an integer, or null, but is 'x'"),
        ('{"pad_token_id": true}', "pad_token_id must be the id of a token, an integer, or null, but is True"),
        ('{"eos_token_id": [2, 19]}', r"eos_token_id must be in \[0, 19\), but is 19"),
        ('{"max_new_tokens": 0}', "max_new_tokens must be an integer from 1 to 2147483647, but is 0"),
        ('{"max_new_tokens": "many"}', "max_new_tokens must be an integer from 1 to 2147483647, but is 'many'"),
        ('{"max_new_tokens": true}', "max_new_tokens must be an integer from 1 to 2147483647, but is True"),
        ('{"max_new_tokens": 9223372036854775808}', "max_new_tokens must be an integer from 1 to 2147483647, but is 9"),
        ('{"eos_token_id": []}', r"eos_token_id must be the id of a token, .*, but is \[\]"),
        ('{"eos_token_id": [[2]]}', r"eos_token_id must be the id of a token, .*, but is \[\[2\]\]"),
        ('{"split_on_whitespace": "false"}', "split_on_whitespace must be true or false, but is 'false'"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_generation_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        generation_settings(tmp_path, config(**IDS))


def test_an_id_that_is_null_in_the_file_is_the_configuration_s(tmp_path: Path) -> None:
    """Hugging Face writes null for what is not set."""
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null, "max_new_tokens": null}')
    expected = {**IDS, "max_new_tokens": 16, "split_on_whitespace": False, **NOTHING_SAID}
    assert generation_settings(tmp_path, config(**IDS)) == expected


def test_companions_are_what_the_ecosystem_reads() -> None:
    assert {"tokenizer.json", "generation_config.json", "sentence_bert_config.json"} <= set(COMPANIONS)


@pytest.mark.parametrize("value", ['"7"', "true", "0", "-1", "1e30", "[7]", "99999999999"])
def test_a_bad_length_of_sentences_is_refused(tmp_path: Path, value: str) -> None:
    """Not when the bundle is opened: a string was passed over, and a length below 1 made a bundle that is none."""
    (tmp_path / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {value}}}')
    with pytest.raises(ConfigError, match=r"sentence_bert_config\.json: max_seq_length must be an integer from 1 to"):
        max_text_tokens(tmp_path)


def test_a_length_of_sentences_may_be_left_open(tmp_path: Path) -> None:
    assert max_text_tokens(tmp_path) is None
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert max_text_tokens(tmp_path) is None
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    assert max_text_tokens(tmp_path) == 7
