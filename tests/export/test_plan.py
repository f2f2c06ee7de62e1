"""What would be made of a checkpoint is told without making it; and all that can be made is listed."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.export.test_fallback import save
from tfm.errors import CheckpointError, ExportError, NotNativeError
from tfm.export import Plan, catalog, graphs_of, plan_export
from tfm.export.generic import huggingface
from tfm.model import FAMILIES, load_checkpoint, save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers


def test_a_native_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, "BertForTokenClassification", num_labels=4)
    plan = plan_export(folder, precisions=["int8", "int4"])
    model = load_checkpoint(folder)
    assert (plan.way, plan.because, plan.family) == ("native", "", "bert")
    assert (plan.architecture, plan.kind) == ("BertForTokenClassification", "encoder")
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plan.sizes == {"fp32": 4 * plan.parameters, "int8": plan.parameters, "int4": round(plan.parameters * 9 / 16)}
    (graph,) = graphs_of(model)
    sides = {"inputs": [value.name for value in graph.inputs], "outputs": [value.name for value in graph.outputs]}
    assert plan.graphs == {"model.onnx": sides}
    assert plan.tasks == ("classify_tokens", "run")
    assert plan.notes == ("there is no tokenizer.json beside it: texts cannot be given, ids can",)
    assert json.loads(json.dumps(plan.to_dict()))["sizes"] == plan.sizes


@pytest.mark.parametrize(
    ("options", "tasks", "files"),
    [
        ({"kind": "encoder"}, ("run",), ["model.onnx"]),
        ({"kind": "encoder", "pooling": "mean", "head": "masked-lm"}, ("embed", "fill_mask", "run"), ["model.onnx"]),
        ({"kind": "encoder", "head": "sequence", "labels": ("a", "b")}, ("classify", "run"), ["model.onnx"]),
        ({"kind": "decoder"}, ("generate", "run"), ["model.onnx"]),
        ({"kind": "decoder", "vocab_size": 0, "positions": "none"}, ("run",), ["model.onnx"]),
        ({"kind": "encoder-decoder"}, ("generate", "run"), ["encoder_model.onnx", "decoder.onnx"]),
    ],
    ids=str,
)
def test_tasks_and_graphs_of_each_kind(
    make_model: Any, tmp_path: Path, options: dict[str, Any], tasks: tuple[str, ...], files: list[str]
) -> None:
    save_checkpoint(make_model(**options), tmp_path / "m.pt")
    plan = plan_export(tmp_path / "m.pt")
    assert (plan.family, plan.architecture, plan.tasks) == ("transformer", None, tasks)
    assert list(plan.graphs) == files


def test_nothing_is_run_of_what_transformers_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "from_huggingface", lambda folder: pytest.fail("it was read"))
    plan = plan_export(save(tmp_path / "a", "MegatronBertModel"))
    assert (plan.way, plan.because) == ("transformers", "megatron-bert is not a native family")
    assert plan.architecture == "MegatronBertModel"
    plan = plan_export(save(tmp_path / "b", "BertForNextSentencePrediction"))
    assert plan.way == "transformers"
    assert "architectures ['BertForNextSentencePrediction'] is not supported" in plan.because
    assert (plan.tasks, plan.parameters, plan.sizes) == (("run",), None, {})


def test_a_factory_is_not_called() -> None:
    plan = plan_export(None, model="no_such_module:make")
    assert (plan.way, plan.because, plan.checkpoint) == ("factory", "no_such_module:make makes it", None)


def test_what_cannot_be_exported_is_refused_now(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown precision 'int2'"):
        plan_export(tmp_path, precisions=["int2"])
    with pytest.raises(CheckpointError):
        plan_export(tmp_path / "missing")
    folder = save(tmp_path / "m", "BertForNextSentencePrediction")
    with pytest.raises(NotNativeError):
        plan_export(folder, config=folder / "config.json")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "x", "auto_map": {"AutoModel": "x.Y"}}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ExportError, match="auto_map asks for code"):
        plan_export(folder)


def test_a_decoder_without_a_head_says_so(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=23, hidden_size=12, num_attention_heads=3, num_key_value_heads=1, head_dim=4, num_hidden_layers=1
    )
    transformers.Qwen3Model(config).save_pretrained(tmp_path)
    plan = plan_export(tmp_path)
    assert plan.notes[-1] == "it has no output projection: its last state is given, and nothing is generated"


def test_the_catalog_has_every_family_and_task() -> None:
    found = catalog()
    assert list(found["families"]) == sorted(FAMILIES)
    assert all(entry["way"] == "native" and entry["reads"] for entry in found["families"].values())
    assert found["families"]["llama"]["reads"] == "a LlamaForCausalLM, which SmolLM2 and many others are too"
    assert set(found["tasks"]) >= {"embed", "classify", "classify_tokens", "fill_mask", "generate", "run"}
    assert isinstance(Plan(checkpoint=None, way="factory", family="module").to_dict(), dict)
