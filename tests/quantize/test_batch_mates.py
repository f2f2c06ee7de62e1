"""Nobody's result may depend on who else is in the batch: an outlier sentence beside a normal one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfm.quantize.existing as existing
from tests.support import toys
from tests.support.small_graphs import Array, parsed
from tfm.bundle.manifest import read_manifest
from tfm.latency import Latency
from tfm.quantize import BUDGETS, Recipe, quantize_bundle
from tfm.quantize.methods.method import Float32, Method
from tfm.quantize.methods.registry import Dynamic, Static
from tfm.runtime import load

pytestmark = pytest.mark.usefixtures("steady")
D, LIMIT = 64, 8
NORMAL, OUTLIER = "a b c", "h h"
BUDGET = BUDGETS["cosine", "int8"]
BODY = """h = Gather(t, input_ids)  p = MatMul(h, w)  last_hidden_state = Add(p, b)
    m = Cast<to=1>(attention_mask)  u = Unsqueeze(m, last)  r = Mul(last_hidden_state, u)
    s = ReduceSum<keepdims=0>(r, middle)  n = ReduceSum<keepdims=0>(u, middle)  sentence_embedding = Div(s, n)"""


@pytest.fixture
def sentences(tmp_path: Path, module_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sentence encoder of letters; that of the outlier has states 50 times as large as the others."""
    rng = np.random.default_rng(0)
    table, weight = (rng.standard_normal((size, D)).astype(np.float32) for size in (12, D))
    table[11] *= 50  # "h"
    constants = {"t": table, "w": weight, "b": rng.standard_normal(D).astype(np.float32)}
    outputs = f"float[B, S, {D}] last_hidden_state, float[B, {D}] sentence_embedding"
    model = parsed(
        "int64[B, S] input_ids, int64[B, S] attention_mask",
        outputs,
        BODY,
        **constants,
        last=np.array([-1]),
        middle=np.array([1]),
    )
    folder: Path = module_bundle(model, kind="encoder").folder
    toys.tokenizer(by_character=False).save(str(folder / "tokenizer.json"))
    values = json.loads((folder / "manifest.json").read_text())
    values["signature"]["model"]["max_length"] = {"sequence": LIMIT}
    for spec, below in zip(values["signature"]["model"]["inputs"], (12, 2), strict=True):
        spec["below"] = below
    toys.write_manifest(folder, values)

    def time_engines(jobs: Any, workloads: Any) -> list[Latency]:
        return [Latency(work=w.name, rounds={n: [2.0 if n == "fp32" else 1.0] * 9 for n in jobs}) for w in workloads]

    monkeypatch.setattr(existing, "time_engines", time_engines)
    return folder


def letters(folder: Path) -> Path:
    """Texts to calibrate with, one in eight of them with the outlier."""
    rng, path = np.random.default_rng(1), folder.parent / "letters.txt"
    texts = {" ".join(rng.choice(list("abcdefg"), size=size)) for size in rng.integers(2, 6, size=150)}
    path.write_text("".join(f"{text}{' h' if i % 8 == 0 else ''}\n" for i, text in enumerate(sorted(texts))))
    return path


def moved(folder: Path, batch_tokens: int | None) -> float:
    """1 - cosine of the normal sentence alone and beside the outlier."""
    model = load(folder, precision="int8", provider="cpu")
    (alone,) = model.embed([NORMAL]).astype(float)
    beside = model.embed([NORMAL, OUTLIER], batch_tokens=batch_tokens)[0].astype(float)
    return (
        float(1 - alone @ beside / np.linalg.norm(alone) / np.linalg.norm(beside)) if (alone != beside).any() else 0.0
    )


def drop_alone(folder: Path) -> float:
    rows: list[Array] = []
    for precision in ("fp32", "int8"):
        (row,) = load(folder, precision=precision, provider="cpu").embed([NORMAL]).astype(float)
        rows.append(row / np.linalg.norm(row))
    return float(1 - rows[0] @ rows[1])


def quantized(folder: Path, method: Method) -> Path:
    recipe = Recipe(precision="int8", methods={"model": {"t": Float32(), "w": method}})
    assert quantize_bundle(folder, recipe=recipe, calib=letters(folder), force=True).shipped
    return folder


@pytest.mark.parametrize("method", [Dynamic(), Dynamic(by_row=True), Static()], ids=str)
def test_as_embed_batches_it_does_not_move_at_all(sentences: Path, method: Method) -> None:
    assert moved(quantized(sentences, method), None) == 0


@pytest.mark.parametrize("method", [Dynamic(by_row=True), Static()], ids=str)
def test_forms_that_no_batch_mate_sways(sentences: Path, method: Method) -> None:
    assert moved(quantized(sentences, method), 16) <= BUDGET


def test_one_scale_for_the_tensor_is_what_sways(sentences: Path) -> None:
    """Why quantized graphs embed texts one by one unless told otherwise."""
    assert moved(quantized(sentences, Dynamic()), 16) > BUDGET


def test_the_mix_that_is_searched_for(sentences: Path, tmp_path: Path) -> None:
    shutil.copytree(sentences, tmp_path / "searched.tfm")
    assert quantize_bundle(tmp_path / "searched.tfm", calib=letters(sentences)).passed
    assert read_manifest(tmp_path / "searched.tfm").graphs["int8"]
    assert moved(tmp_path / "searched.tfm", None) == 0
    assert drop_alone(tmp_path / "searched.tfm") <= BUDGET
