"""The search on real graphs: it rescues what plain int8 breaks, goes on after interruptions, and can be replayed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.small_graphs import KINDS, TABLES, feeds_of, graph_of, parsed, run
from tfm.bundle.manifest import Manifest
from tfm.errors import QuantizeError
from tfm.quantize import QuantizeOptions, Recipe, read_calibration, tune
from tfm.quantize.methods.method import Float32, Method
from tfm.quantize.methods.ops import find_ops
from tfm.quantize.methods.registry import Blocks, Dynamic, Static
from tfm.quantize.search import cost
from tfm.quantize.search.candidates import candidates
from tfm.quantize.search.evaluator import Evaluator
from tfm.quantize.search.tune import BUDGETS, Tuned
from tfm.quantize.workloads import bundle_workloads

pytestmark = pytest.mark.usefixtures("steady")
OUTLIER = "encoder.layers.0.feed_forward.linear2"  # as tests/quantize/conftest.py plants it
ANOTHER_SESSION = 1e-4
"""Relative: with other branches beside them, sums end in other last bits (measured: 2e-7 of a drop)."""
RNG = np.random.default_rng(0)


def tuned(manifest: Manifest, *, count: int = 40, **options: Any) -> Tuned:
    samples, judged = read_calibration(None, manifest, count=count).divided(16)
    workloads = bundle_workloads(manifest, samples if manifest.kind == "module" else None)
    others = {name: options.pop(name) for name in ("precision", "journal", "progress") if name in options}
    return tune(manifest, samples, [judged], workloads, options=QuantizeOptions(**options), **others)


def content(found: Tuned) -> dict[str, bytes]:
    return {role: ir.to_proto(model).SerializeToString(deterministic=True) for role, model in found.models.items()}


def methods_of(found: Tuned) -> dict[str, str]:
    return {op["weight"]: op["method"] for op in found.report["ops"]}


def recipe_of(names: list[str], method: Method, *quantized: str) -> Recipe:
    """All ops, or those alone, in one form."""
    return Recipe(
        precision="int8",
        methods={"model": {name: method if not quantized or name in quantized else Float32() for name in names}},
    )


# ------------------------------------------------ the planted failure


def test_a_model_with_an_outlier_layer_is_rescued_and_the_layer_is_named(planted: Manifest) -> None:
    found = tuned(planted)
    assert found.report["drop"] <= found.report["max_drop"] == BUDGETS["cosine", "int8"] == 0.003
    methods = methods_of(found)
    assert methods[OUTLIER] == "dynamic, smooth 0.8"  # no rotation spreads what is so much larger thin enough
    assert "float32" not in methods.values()
    assert {name for name, method in methods.items() if "smooth" in method} == {OUTLIER}
    (fastest, *_) = found.report["front"]
    assert fastest["drop"] > 2 * 0.003  # measured: 0.019

    names = list(methods)
    plain = tuned(planted, recipe=recipe_of(names, Dynamic()))
    assert plain.report["searched"] is False
    assert plain.report["drop"] > 0.003  # measured: 0.0054
    alone = {name: tuned(planted, recipe=recipe_of(names, Dynamic(), name)).report["drop"] for name in names}
    assert max(alone, key=alone.__getitem__) == OUTLIER
    assert alone[OUTLIER] > 0.003
    assert sum(alone.values()) - alone[OUTLIER] < 0.003  # it alone is why


def test_what_is_said_of_every_op_is_so(planted: Manifest) -> None:
    found = tuned(planted)
    assert [op["weight"] for op in found.report["ops"]] == list(found.recipe.methods["model"])
    names = list(methods_of(found))
    for op in found.report["ops"]:
        method = found.recipe.methods["model"][op["weight"]]
        assert op["method"] == str(method)
        alone = tuned(planted, recipe=recipe_of(names, method, op["weight"]))
        assert alone.report["drop"] == pytest.approx(op["alone"], rel=ANOTHER_SESSION)
        rest = dict(found.recipe.methods["model"]) | {op["weight"]: Float32()}
        without = tuned(planted, recipe=Recipe(precision="int8", methods={"model": rest}))
        assert without.report["drop"] == pytest.approx(op["all_but"], rel=ANOTHER_SESSION)
        assert op["own_snr_db"] > 20
        assert 0 < op["time"] < op["time_float32"] < 1
    saved = sum(op["time_float32"] - op["time"] for op in found.report["ops"])
    assert found.report["relative_time"] == pytest.approx(1 - saved)
    chosen = [point for point in found.report["front"] if point["chosen"]]
    assert [(point["drop"], point["measured"]) for point in chosen] == [(found.report["drop"], True)]
    times = [point["relative_time"] for point in found.report["front"]]
    assert times == sorted(times)


def test_the_drop_is_that_of_the_graph_that_is_written(planted: Manifest, tmp_path: Path) -> None:
    """The search runs all forms in one graph; here the written graph is run, and compared by the formula."""
    found = tuned(planted)
    _, judged = read_calibration(None, planted, count=40).divided(16)
    exact = ir.load(planted.folder / planted.graphs["fp32"]["model"])
    gaps = []
    for feeds in judged.batches("model", 1):
        e, q = (run(model, feeds)["last_hidden_state"][0].astype(float) for model in (exact, found.models["model"]))
        gaps += list(1 - (e * q).sum(-1) / np.linalg.norm(e, axis=-1) / np.linalg.norm(q, axis=-1))
    assert np.mean(gaps) == pytest.approx(found.report["drop"], rel=ANOTHER_SESSION)
    assert set(found.products["model"].values()) == set(methods_of(found))
    names = {node.name for node in found.models["model"].graph}
    assert set(found.products["model"]) <= names


def test_a_budget_that_nothing_keeps_leaves_all_in_float32(planted: Manifest) -> None:
    found = tuned(planted, max_drop=1e-15)
    assert set(methods_of(found).values()) == {"float32"}
    assert found.report["drop"] == 0
    assert found.report["relative_time"] == 1
    assert [op["alone"] for op in found.report["ops"]] == [None] * len(found.report["ops"])
    exact = ir.load(planted.folder / planted.graphs["fp32"]["model"])
    feeds = next(read_calibration(None, planted, count=1).batches("model", 1))
    expected, same = (run(model, feeds) for model in (exact, found.models["model"]))
    np.testing.assert_array_equal(same["last_hidden_state"], expected["last_hidden_state"])


# ------------------------------------------------ again


def interrupted(manifest: Manifest, journal: Path, step: int, **options: Any) -> bool:
    """Whether it was still running at that step, where it is interrupted."""
    seen = 0

    def progress(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > step:
            raise KeyboardInterrupt

    try:
        tuned(manifest, journal=journal, progress=progress, **options)
    except KeyboardInterrupt:
        return True
    return False


def test_interrupted_anywhere_it_goes_on_to_the_same_end(
    planted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    real = Evaluator.drop
    monkeypatch.setattr(Evaluator, "drop", lambda self, runs: measured.append(0) or real(self, runs))
    whole, count = tuned(planted), len(measured)
    assert content(tuned(planted)) == content(whole)
    steps: list[Any] = []
    tuned(planted, progress=lambda *step: steps.append(step))
    for step in (5, 13, 19, 24, len(steps) - 8, len(steps) - 1):
        measured.clear()
        assert interrupted(planted, tmp_path / "journal", step)
        assert (tmp_path / "journal").is_file() or step < 12  # while the forms are written there is nothing to keep
        again = tuned(planted, journal=tmp_path / "journal")
        assert (again.recipe, again.report, content(again)) == (whole.recipe, whole.report, content(whole))
        assert len(measured) == count  # nothing is measured twice
        (tmp_path / "journal").unlink()  # whoever puts the graphs in place drops it


def test_times_are_kept_too(planted: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides between mixes is the clock, which never shows the same twice."""
    assert interrupted(planted, tmp_path / "journal", 30)
    whole = tuned(planted)
    for name in ("time_subgraphs", "interleaved"):
        monkeypatch.setattr(cost, name, lambda *_: pytest.fail("timed again"))
    assert tuned(planted, journal=tmp_path / "journal").report == whole.report


def test_a_replayed_recipe_gives_the_same_graphs(planted: Manifest, tmp_path: Path) -> None:
    whole = tuned(planted)
    assert interrupted(planted, tmp_path / "journal", 30)  # figures of the search say nothing of a replay
    again = tuned(planted, recipe=whole.recipe, journal=tmp_path / "journal")
    assert content(again) == content(whole)
    assert again.recipe == whole.recipe
    assert again.report["drop"] == whole.report["drop"]
    snr = [[op["own_snr_db"] for op in found.report["ops"]] for found in (whole, again)]
    assert snr[0] == snr[1]
    assert (again.report["searched"], again.report["front"]) == (False, [])
    assert {op["alone"] for op in again.report["ops"]} == {None}


def test_recipes_of_others_are_refused(planted: Manifest) -> None:
    names = list(methods_of(tuned(planted, max_drop=1e-15)))
    good = recipe_of(names, Dynamic())
    with pytest.raises(QuantizeError, match="the recipe is for int8, not for int4; ask for int8 with --precision"):
        tuned(planted, recipe=good, precision="int4")
    with pytest.raises(QuantizeError, match="another model: the model has no op 'x'; the nearest is"):
        tuned(planted, recipe=recipe_of([*names, "x"], Dynamic()))
    with pytest.raises(
        QuantizeError, match=f"another model: it does not say how to quantize '{names[-1]}' of the model"
    ):
        tuned(planted, recipe=recipe_of(names[:-1], Dynamic()))
    with pytest.raises(QuantizeError, match="another model: the bundle has no graph 'decoder'; the nearest is 'model'"):
        tuned(planted, recipe=Recipe(precision="int8", methods={**good.methods, "decoder": {}}))
    with pytest.raises(
        QuantizeError, match=r"'model\.encoder\.embedding\.token.*' is a table .* it cannot be 'static, minmax'"
    ):
        tuned(planted, recipe=recipe_of(names, Static()))
    with pytest.raises(QuantizeError, match="unknown precision 'int3'; known: int8, int4"):
        tuned(planted, precision="int3")


# ------------------------------------------------ every kind of graph


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_use_of_a_weight(kind: str, precision: str, module_bundle: Any) -> None:
    model = graph_of(kind)
    found = tuned(module_bundle(model), precision=precision, max_drop=0.05)
    (op,) = found.report["ops"]
    assert op["method"] != "float32"
    assert found.report["drop"] == op["alone"]
    assert op["all_but"] == 0
    feeds = feeds_of(model)
    exact, quantized = run(model, feeds), run(found.models["model"], feeds)
    for name, array in exact.items():
        assert np.abs(quantized[name] - array).max() < 0.1 * np.abs(array).max() * (4 if precision == "int4" else 1)
    if kind in TABLES:  # read by rows alone, or as rows and columns: once
        stored = [value.const_value for value in found.models["model"].graph.initializers.values()]
        codes = [tensor.nbytes for tensor in stored if tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)]
        assert max(codes) <= op["shape"][0] * 64  # blocks of 64 are filled up
        assert sum(codes) < max(codes) * 1.5


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_models_that_predict(exported_bundle: Callable[..., Manifest], kind: str, precision: str) -> None:
    manifest = exported_bundle(kind=kind, **({"d_model": 64, "dim_feedforward": 64} if kind == "decoder" else {}))
    found = tuned(manifest, count=12, precision=precision, max_drop=2.0)
    assert set(found.models) == set(manifest.graphs["fp32"])
    assert found.report["measure"] == "kl"
    assert 0 < found.report["drop"] <= 2.0
    assert 0 <= found.report["top_1"] <= 1
    assert {op["role"] for op in found.report["ops"]} == set(found.models)
    assert all(op["flips_alone"] is not None for op in found.report["ops"] if op["method"] != "float32")
    if kind == "decoder" or precision == "int4":
        methods = [method for ops in found.recipe.methods.values() for method in ops.values()]
        assert {type(method) for method in methods} <= {Blocks, Float32}
    again = tuned(manifest, count=12, precision=precision, recipe=found.recipe)
    assert content(again) == content(found)


def test_a_decoder_may_multiply_in_integers_where_speed_is_favoured(
    exported_bundle: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is the noise of a busy machine here: what decides is made up."""
    manifest = exported_bundle(kind="decoder", d_model=64, dim_feedforward=64)

    def shares(candidates: list[Any], *_: Any) -> list[list[float]]:
        return [[0.01 if getattr(method, "by_row", False) else 0.5 for method in one.methods] for one in candidates]

    monkeypatch.setattr(sys.modules["tfm.quantize.search.tune"], "time_shares", shares)
    methods = {}
    for objective in ("size", "speed"):
        found = tuned(manifest, count=12, max_drop=2.0, objective=objective)
        methods[objective] = {type(method) for ops in found.recipe.methods.values() for method in ops.values()}
    assert methods["size"] <= {Blocks, Float32}
    assert Dynamic in methods["speed"]
    with pytest.raises(QuantizeError, match="objective must be one of size, speed, but is 'time'"):
        tuned(manifest, count=12, objective="time")


def test_ids_that_are_constants_or_of_32_bits(module_bundle: Any) -> None:
    """As tables of positions are read where lengths are fixed."""
    table, places = RNG.standard_normal((40, 32)).astype(np.float32), np.arange(5, dtype=np.int32)
    body = "h = Gather(t, i)  y = Add(x, h)"
    model = parsed("float[B, 5, 32] x", "float[B, 5, 32] y", body, t=table, i=places)
    assert methods_of(tuned(module_bundle(model))) == {"t": "dynamic"}
    model = parsed("int32[B, S] i", "float[B, S, 32] y", "y = Gather(t, i)", t=table)
    assert methods_of(tuned(module_bundle(model))) == {"t": "dynamic"}


# ------------------------------------------------ refusals


def test_a_graph_that_is_quantized_already_is_refused_by_name(module_bundle: Any) -> None:
    quantized = tuned(module_bundle(graph_of("bias"))).models["model"]
    with pytest.raises(QuantizeError, match=r"the graph 'g' is quantized already: '.+' is a .+ of integers"):
        tuned(module_bundle(quantized))


def test_nothing_to_quantize_is_refused(module_bundle: Any) -> None:
    model = parsed("float[B, S, 32] x", "float[B, S, 32] y", "y = Tanh(x)")
    with pytest.raises(QuantizeError, match=r"m\.tfm has no MatMul or Gather by a constant to quantize"):
        tuned(module_bundle(model))


def test_a_weight_that_is_not_finite_is_refused(module_bundle: Any) -> None:
    weight = RNG.standard_normal((32, 24)).astype(np.float32)
    weight[3, 4] = np.nan
    with pytest.raises(QuantizeError, match="the weight 'w' holds NaN or infinity"):
        tuned(module_bundle(graph_of("no bias", w=weight)))


# ------------------------------------------------ less than a whole search


def test_a_quick_search_keeps_the_budget_with_fewer_forms(planted: Manifest) -> None:
    tried: dict[str, set[str]] = {}
    for search in ("full", "quick"):
        steps: list[Any] = []
        found = tuned(planted, search=search, progress=lambda *step, told=steps: told.append(step[2]))
        tried[search] = {step for step in steps if step.startswith("write ")}
        assert found.report["drop"] <= found.report["max_drop"]
        assert (found.report["searched"], found.report["search"]) == (True, search)
        assert all((op["all_but"] is None) == (search == "quick") for op in found.report["ops"])
    forms = {search: sum(int(step.split()[-2]) for step in steps) for search, steps in tried.items()}
    assert forms["quick"] < forms["full"]


def test_without_a_search_each_kind_of_op_has_its_form(planted: Manifest) -> None:
    found = tuned(planted, search="none")
    assert (found.report["searched"], found.report["search"], found.report["front"]) == (False, "none", [])
    methods = methods_of(found)
    tables = {name for name in methods if "embedding" in name}
    assert {methods[name] for name in tables} == {"dynamic"}
    assert {method for name, method in methods.items() if name not in tables} == {"dynamic, rotated by 32"}
    # It may be over the budget: the gate says so, and nothing else.
    assert found.report["drop"] > 0


def test_graphs_of_all_forms_are_open_only_when_ops_have_been_timed(
    planted: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model each of these sessions holds its weights twice."""
    module = sys.modules["tfm.quantize.search.tune"]
    seen: list[str] = []
    for name in ("time_shares", "Switched"):
        real = getattr(module, name)

        def told(*given: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            seen.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, told)
    tuned(planted, search="none")
    assert seen == ["time_shares", *["Switched"] * (len(seen) - 1)]
    assert len(seen) > 1


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_decoder_without_a_search(precision: str, exported_bundle: Callable[..., Manifest]) -> None:
    decoder = exported_bundle(kind="decoder", activation="relu", d_model=64, nhead=4, dim_feedforward=128)
    found = tuned(decoder, search="none", precision=precision)
    products = {op["method"] for op in found.report["ops"] if op["uses"] == ["matmul"]}
    words = f"{precision[-1]} bits in blocks of 32"
    assert products == {f"{words}, fitted" if precision == "int4" else f"{words}, 0.062 of the inputs apart"}


def test_a_decoder_takes_inputs_apart_everywhere_but_where_time_counts_most(
    exported_bundle: Callable[..., Manifest],
) -> None:
    decoder = exported_bundle(kind="decoder", activation="relu", d_model=64, nhead=4, dim_feedforward=128)
    ops = find_ops(ir.load(decoder.folder / decoder.graphs["fp32"]["model"]).graph)
    assert any("matmul" in op.kinds for op in ops)
    apart = Blocks(bits=8, block=32, calibrated=False, apart=1 / 16)
    plain = Blocks(bits=8, block=32, calibrated=False, outliers=False)
    for op in ops:
        for objective, expected in (("size", [apart]), ("speed", [plain, apart])):
            for search in ("full", "quick"):
                methods = candidates(op, "int8", "decoder", objective=objective, search=search)
                assert [method for method in methods if isinstance(method, Blocks)] == expected
