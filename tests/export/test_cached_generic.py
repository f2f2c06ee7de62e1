"""What is not native generates with a cache of its own, decoders and encoder-decoders: the tokens of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tfm.errors import ExportError
from tfm.export import export_checkpoint, plan_export, to_onnx, verify
from tfm.export.generic import plain_attention
from tfm.export.generic.cached import CachedConfig, CachedGraph
from tfm.export.generic.cached_pair import CachedTarget
from tfm.export.generic.huggingface import from_huggingface
from tfm.export.verify.samples import cases
from tfm.runtime import Decoder, EncoderDecoder, load

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", GROUPED | EXPERTS | {"num_experts": 4, "head_dim": 8}),
    "qwen2_moe": ("Qwen2MoeConfig", GROUPED | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}),
    "gpt_oss": ("GptOssConfig", GROUPED | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 4}),
    "deepseek_v3": ("DeepseekV3Config", SIZES | {"num_key_value_heads": 4} | EXPERTS | LATENT | ROUTED),
    "olmoe": ("OlmoeConfig", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "persimmon": ("PersimmonConfig", SIZES),
    "biogpt": ("BioGptConfig", SIZES),
}
"""Model type → configuration class and its options."""

T5: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "umt5": ("UMT5Config", T5),  # of which each layer has a bias of positions of its own
    "mvp": ("MvpConfig", BART),
    "blenderbot-small": ("BlenderbotSmallConfig", BART),
    "plbart": ("PLBartConfig", BART),
}
"""Likewise of encoder-decoders."""

IN_CI = ("mixtral", "gpt_oss", "deepseek_v3", "persimmon")
PROMPTS = [[5, 6, 7, 8, 9], [11], [21, 22, 23]]


def save(family: str, folder: Path) -> Any:
    """Save a model of random weights, large enough that its tokens differ; give it.

    T5 scales nothing within its attention: its weights stay as they are.
    """
    name, options = (FAMILIES | PAIRS)[family]
    kind = "AutoModelForSeq2SeqLM" if family in PAIRS else "AutoModelForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(getattr(transformers, name)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and options is not T5:
                parameter.mul_(3 if family in PAIRS else 4)
    model.save_pretrained(folder)
    return model


def generated(model: Any, rows: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Continue prompts by transformers, padded on the left; what follows an end is cut off."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **options)[:, longest:].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in found]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    """A checkpoint, its model and its bundle."""
    folder = tmp_path_factory.mktemp("mixtral")
    model = save("mixtral", folder / "m")
    report = export_checkpoint(folder / "m", folder / "m.tfm", precisions=["fp32"])
    assert report.faults() == []
    return folder / "m", model, folder / "m.tfm"


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in IN_CI else pytest.mark.slow) for name in FAMILIES]
)
def test_every_op_is_verified_over_the_cache(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    graph = from_huggingface(tmp_path)
    assert isinstance(graph, CachedGraph)
    ir.save(to_onnx(graph), tmp_path / "model.onnx")
    report = verify(graph, tmp_path / "model.onnx", cases(graph))
    assert report.first_fault == ""
    assert report.passed
    attentions = [op for op in report.ops if str(op.op).startswith(("attention", "softmax"))]
    assert len(attentions) >= SIZES["num_hidden_layers"]


def test_tokens_are_those_of_transformers(mixtral: tuple[Path, Any, Path]) -> None:
    _, model, output = mixtral
    bundle = load(output, provider="cpu")
    assert isinstance(bundle, Decoder)
    assert bundle.generate(PROMPTS, max_new_tokens=20) == generated(model, PROMPTS, max_new_tokens=20)
    for row in PROMPTS:
        assert bundle.generate([row], max_new_tokens=20) == generated(model, [row], max_new_tokens=20)
    beams = bundle.generate(PROMPTS[:1], max_new_tokens=8, num_beams=3)
    assert beams == generated(model, PROMPTS[:1], max_new_tokens=8, num_beams=3)


def test_a_conversation_reads_nothing_twice(mixtral: tuple[Path, Any, Path]) -> None:
    _, model, output = mixtral
    bundle = load(output, provider="cpu")
    assert isinstance(bundle, Decoder)
    talk = bundle.conversation()
    first = list(talk.reply([5, 6, 7], max_new_tokens=3))
    second = list(talk.reply([8, 9], max_new_tokens=3))
    assert [first] == generated(model, [[5, 6, 7]], max_new_tokens=3)
    assert [second] == generated(model, [[5, 6, 7, *first, 8, 9]], max_new_tokens=3)


def test_the_bundle_is_laid_out_as_a_native_decoder_s(mixtral: tuple[Path, Any, Path]) -> None:
    folder, _, output = mixtral
    manifest = load(output, provider="cpu").manifest
    assert (manifest.kind, manifest.family) == ("decoder", "transformers:mixtral")
    session = onnx.load(output / "onnx" / "model.onnx", load_external_data=False)
    defaults = {tensor.name for tensor in session.graph.initializer}
    names = [value.name for value in session.graph.input if value.name not in defaults]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [value.name for value in session.graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
    plan = plan_export(folder)
    assert (plan.kind, plan.tasks) == ("decoder", ("generate", "run"))


def test_a_planted_defect_is_caught(mixtral: tuple[Path, Any, Path], tmp_path: Path) -> None:
    folder, _, output = mixtral
    graph = from_huggingface(folder)
    inputs = cases(graph)
    for one, other in (
        ("past_key_values.0.key", "past_key_values.1.key"),
        ("past_key_values.0.key", "past_key_values.0.value"),
    ):
        model = ir.load(output / "onnx" / "model.onnx")
        values = {value.name: value for value in model.graph.inputs}
        readers = {name: list(values[name].uses()) for name in (one, other)}
        for name, instead in ((one, other), (other, one)):
            for node, index in readers[name]:
                node.replace_input_with(index, values[instead])
        ir.save(model, tmp_path / "model.onnx")
        assert not verify(graph, tmp_path / "model.onnx", inputs).passed


def test_a_state_that_is_more_than_keys_and_values_gives_one_graph_and_says_so(tmp_path: Path) -> None:
    config = transformers.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    report = export_checkpoint(tmp_path / "m", tmp_path / "m.tfm", precisions=["fp32"])
    assert report.faults() == []
    assert load(tmp_path / "m.tfm").manifest.kind == "module"
    (note,) = [note for note in report.certificate["not_judged"] if "does not generate" in note]
    assert "Lfm2ForCausalLM" in note


def test_an_attention_of_ours_that_is_another_is_not_used(
    mixtral: tuple[Path, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mixtral[0]
    assert from_huggingface(folder).model.config._attn_implementation == plain_attention.NAME
    attend = plain_attention._attend

    def off(*arguments: Any, **options: Any) -> tuple[Any, None]:
        return attend(*arguments, **options)[0] * 1.01, None

    def unable(*arguments: Any, **options: Any) -> None:
        raise ExportError("not that")

    for other in (off, unable):
        monkeypatch.setattr(plain_attention, "_attend", other)
        assert from_huggingface(folder).model.config._attn_implementation == "sdpa"


def test_logits_that_a_cache_changes_are_no_cache(mixtral: tuple[Path, Any, Path]) -> None:
    _, model, _ = mixtral
    config = CachedConfig(family="transformers:mixtral", vocab_size=61, max_positions=40)
    graph = CachedGraph(model, transformers.DynamicCache, config)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = graph.logits(ids)
    graph.check(ids, expected)
    with pytest.raises(ExportError, match="gives other logits over its cache"):
        graph.check(ids, expected + 1e-2)


def test_one_row_late_in_the_table_of_positions_is_among_the_samples(mixtral: tuple[Path, Any, Path]) -> None:
    graph = from_huggingface(mixtral[0])
    names = [value.name for value in graph.inputs]
    places = np.concatenate([sample[names.index("position_ids")].numpy().ravel() for sample in cases(graph)])
    assert (places.min(), places.max()) == (0, 39)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "umt5" else pytest.mark.slow) for name in PAIRS]
)
def test_an_encoder_decoder_writes_what_transformers_writes(family: str, tmp_path: Path) -> None:
    model = save(family, tmp_path / "m")
    report = export_checkpoint(tmp_path / "m", tmp_path / "m.tfm", precisions=["fp32"])
    assert report.faults() == []
    assert {graph.role for graph in report.graphs} == {"encoder", "decoder"}
    bundle = load(tmp_path / "m.tfm", provider="cpu")
    assert isinstance(bundle, EncoderDecoder)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in PROMPTS])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in PROMPTS])
    for settings in ({}, {"num_beams": 3}):
        with torch.no_grad():
            found = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=12, **settings
            ).tolist()
        expected = [row[1:][: row[1:].index(2)] if 2 in row[1:] else row[1:] for row in found]
        assert bundle.generate(PROMPTS, max_new_tokens=12, **settings) == expected


def test_a_source_that_is_no_projection_gives_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("mvp", tmp_path)
    assert isinstance(from_huggingface(tmp_path), CachedTarget)
    cache = transformers.DynamicCache
    update = cache.update
    monkeypatch.setattr(cache, "update", lambda self, k, v, *rest, **more: update(self, k + 1, v, *rest, **more))
    whole = from_huggingface(tmp_path)
    assert not isinstance(whole, CachedGraph)
    assert "no projection" in whole.config.notes[0]
