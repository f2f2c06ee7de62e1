"""What is asked of bundles in JavaScript, under Node and in a browser alike, and what Python says of the same."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tfm
from tests.support.packs import PRECISIONS
from tfm.bundle import read_golden, read_manifest
from tfm.ops import ErrorStats

TEXTS = ["A man eats pasta.", "Ünïcode, don't — 42!", "somebody is having lunch " * 60]
PAIR = ["is it lunch", "A man eats pasta, and somebody is having lunch " * 8]
WORDS = ["onnx", "transformer", "naïve"]
PROMPTS = ["abc", "hello", "z9"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 5},
    {"repetition_penalty": 1.7, "no_repeat_ngram_size": 0, "max_new_tokens": 9},
    {"min_new_tokens": 4, "suppress_tokens": [5, 6, 7], "begin_suppress_tokens": [8], "max_new_tokens": 8},
    {"bad_words_ids": [[9], [10, 11]], "forced_eos_token_id": 12, "max_new_tokens": 6},
    {"stop": ["a", "0"], "max_new_tokens": 12},
    {"stop_token_ids": [10, 20, 21, 30], "max_new_tokens": 12},
]

Task = dict[str, Any]
KINDS = ("minilm", "g2p", "llama")


def tasks_of(root: str, kinds: Sequence[str] = KINDS) -> list[Task]:
    """Ask all that there is of packs in a folder or at an address."""
    generating = [["generate", PROMPTS, settings] for settings in SETTINGS]
    calls: dict[str, list[list[Any]]] = {
        "minilm": [["embed", TEXTS], ["similarity", TEXTS[0], TEXTS[1:]], ["embed", [PAIR]], ["tokenize", TEXTS]],
        "g2p": [["generate", WORDS], ["stream", WORDS[0]], ["translate", WORDS[1]], ["generate", "x1"]],
        "llama": [*generating, ["stream", "hello", SETTINGS[5]], ["generate", [[1, 5, 9]]], ["tokenize", PROMPTS]],
    }
    return [
        {"bundle": f"{root}/{kind}-{precision}", "calls": [["about"], ["checkGolden"], *calls[kind]]}
        for kind in kinds
        for precision in PRECISIONS
    ]


def check_packs(found: Sequence[Any], packs: Path, provider: str, kinds: Sequence[str] = KINDS) -> None:
    """Compare what JavaScript gave with what Python gives."""
    packed = [(kind, precision) for kind in kinds for precision in PRECISIONS]
    for (kind, precision), one in zip(packed, found, strict=True):
        assert "results" in one, one
        about, gates, *results = one["results"]
        assert (about["precision"], about["provider"]) == (precision, provider)
        _check_gates(gates, packs / f"{kind}-{precision}", precision)
        with tfm.load(packs / f"{kind}-{precision}", provider="cpu") as model:
            {"minilm": _check_encoder, "g2p": _check_g2p, "llama": _check_decoder}[kind](results, model, precision)


def _check_gates(gates: Any, pack: Path, precision: str) -> None:
    here = tfm.runtime.check_golden(pack, provider="cpu").gates()
    assert [gate["name"] for gate in gates] == [gate.name for gate in here]
    for gate, same in zip(gates, here, strict=True):
        assert gate["passed"], gate
        assert gate["stage"] == "golden"
        assert gate["precision"] == precision
        assert 0 <= gate["figure"] <= gate["limit"]
        assert set(gate) == set(same.to_json())


def _check_encoder(results: Any, model: Any, precision: str) -> None:
    vectors, near, pair, ids = results
    # int8 rounds ties otherwise from engine to engine.
    least = 1 - 1e-6 if precision == "fp32" else 0.995
    for given, texts in ((vectors, TEXTS), (pair, [tuple(PAIR)])):
        expected = model.embed(texts, long_texts="cut")
        assert np.shape(given) == expected.shape
        assert (np.einsum("bd,bd->b", given, expected) > least).all()  # they have length 1
    expected = model.similarity(TEXTS[0], model.embed(TEXTS[1:], long_texts="cut"))
    np.testing.assert_allclose(near, expected, atol=1e-5 if precision == "fp32" else 0.1)
    assert ids == model.tokenize(TEXTS)


def _check_g2p(results: Any, model: Any, precision: str) -> None:
    said, streamed, one, refused = results
    expected = model.generate(WORDS)
    assert said == expected
    assert said[0] == "AA1 N EH2 K S"  # it was trained to
    assert streamed == list(model.stream(WORDS[0]))
    assert len(streamed) > 3
    assert one == [expected[1]]
    assert refused["error"] == "'1' in the text 'x1' (at 1) is not in the model's vocabulary; replace it"


def _check_decoder(results: Any, model: Any, precision: str) -> None:
    *generated, streamed, rows, ids = results
    for settings, found in zip(SETTINGS, generated, strict=True):
        assert found == model.generate(PROMPTS, **settings), settings
    assert len({str(found) for found in generated}) > 4  # the settings do change what is said
    assert "".join(streamed) == model.generate("hello", **SETTINGS[5])[0]
    assert rows == model.generate([[1, 5, 9]])
    assert ids == model.tokenize(PROMPTS)


# ------------------------------------------------ transformers.js, as it is

G2P_CONFIG = {
    # By what it calls the sizes of a BART it finds those of the caches.
    "model_type": "bart",
    "is_encoder_decoder": True,
    "d_model": 160,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DTYPES = {"fp32": "fp32", "int8": "q8"}


def others_of(packs: Path) -> list[Task]:
    """The same of transformers.js: goldens of the encoder, texts embedded, and tokens of what generates."""
    tasks: list[Task] = []
    for precision, dtype in DTYPES.items():
        pack = packs / f"minilm-{precision}"
        inputs, _ = read_golden(read_manifest(pack)).cases["model"][0]
        arrays = {name: {"dims": array.shape, "data": array.ravel().tolist()} for name, array in inputs.items()}
        base = {"bundle": pack.name, "dtype": dtype}
        tasks += [base | {"kind": "run", "inputs": arrays}, base | {"kind": "embed", "texts": TEXTS[:2]}]
        [ids] = _ids(packs / f"g2p-{precision}", "onnx")
        more = {"kind": "seq2seq", "inputs": ids, "config": G2P_CONFIG, "settings": {"max_new_tokens": 20}}
        tasks.append({"bundle": f"g2p-{precision}", "dtype": dtype, **more})
        [ids] = _ids(packs / f"llama-{precision}", "hello")
        more = {"kind": "causal", "inputs": ids, "settings": {"max_new_tokens": 10, "no_repeat_ngram_size": 2}}
        tasks.append({"bundle": f"llama-{precision}", "dtype": dtype, **more})
    return tasks


def check_others(found: Sequence[Any], packs: Path) -> None:
    for start, precision in zip(range(0, len(found), 4), PRECISIONS, strict=True):
        run, vectors, phonemes, continued = [one.get("results", one) for one in found[start : start + 4]]
        _check_golden_outputs(run, packs / f"minilm-{precision}", precision)
        with tfm.load(packs / f"minilm-{precision}", provider="cpu") as model:
            nearness = np.einsum("bd,bd->b", vectors, model.embed(TEXTS[:2]))
            assert (nearness > (1 - 1e-6 if precision == "fp32" else 0.995)).all(), nearness
        [source] = _ids(packs / f"g2p-{precision}", "onnx")
        with tfm.load(packs / f"g2p-{precision}", provider="cpu") as model:
            assert phonemes == [1, *model.generate([source])[0], 2]
        [prompt] = _ids(packs / f"llama-{precision}", "hello")
        with tfm.load(packs / f"llama-{precision}", provider="cpu") as model:
            assert continued[: len(prompt)] == prompt
            assert continued[len(prompt) :] == model.generate([prompt], 10)[0]


def _check_golden_outputs(found: Any, pack: Path, precision: str) -> None:
    golden = read_golden(read_manifest(pack), [precision])
    _, outputs = golden.cases["model"][0]
    for name, expected in outputs.items():
        figures = ErrorStats()
        figures.add(np.array(found[name], np.float32).reshape(expected.shape), expected)
        limit = golden.limits[precision].limit("model", name, figures.scale)
        assert limit is not None
        assert math.isfinite(figures.max_abs)
        assert (figures.max_abs if precision == "fp32" else figures.nmse) <= limit, name


def _ids(pack: Path, text: str) -> list[list[int]]:
    with tfm.load(pack, provider="cpu") as model:
        return model.tokenize([text])
