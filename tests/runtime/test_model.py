"""What every model has: what it says of itself, how it goes to another process, what it answers to the wrong call."""

import multiprocessing
import pickle
import shutil

import pytest

from tfm.errors import BundleError, InputError, MissingTaskError, ProviderError
from tfm.runtime import load


def test_repr(make_bundle):
    model = load(make_bundle("encoder"), provider="cpu", threads=2)
    assert repr(model) == "<Encoder 'encoder': int8 on cpu, 2 threads; embed, run>"
    model = load(make_bundle("counter"), provider="cpu", threads=1)
    assert repr(model) == "<Decoder 'counter': fp32 on cpu, 1 thread; generate, run>"
    assert repr(load(make_bundle("tower"), provider="cpu", threads=1)).endswith("1 thread; run>")


@pytest.mark.parametrize(
    ("kind", "task", "has"),
    [
        ("encoder", "generate", "embed, run"),
        ("counter", "embed", "generate, run"),
        ("counter", "classify", "generate, run"),
        ("copier", "fill_mask", "generate, translate, run"),
        ("tower", "stream", "run"),
    ],
)
def test_a_task_of_another_kind(make_bundle, kind, task, has):
    model = load(make_bundle(kind), provider="cpu", threads=1)
    with pytest.raises(MissingTaskError, match=rf"has no {task}\(\); it has {has}$"):
        getattr(model, task)("a")
    assert not hasattr(model, task)
    with pytest.raises(AttributeError, match=r"object has no attribute 'generat'"):
        model.generat  # noqa: B018


def test_pickled(make_bundle, monkeypatch):
    bundle = make_bundle("encoder")
    monkeypatch.chdir(bundle.parent)
    model = load(
        "encoder", provider="cpu", precision="fp32", threads=2, spin=False, options={"enable_mem_pattern": False}
    )
    content = pickle.dumps(model)
    monkeypatch.chdir("/")
    again = pickle.loads(content)
    assert repr(again) == repr(model)
    assert again.embed("a b").tolist() == model.embed("a b").tolist()
    assert again._sessions["model"].opened() is model._sessions["model"].opened()  # the same options


def test_pickled_with_its_tokenizer_read(make_bundle):
    model = load(make_bundle("encoder"), provider="cpu", threads=1)
    model.embed("a")
    assert pickle.loads(pickle.dumps(model)).tokenize("a") == model.tokenize("a")


def test_pickled_and_replaced(make_bundle, table, edit_manifest):
    bundle = make_bundle("encoder")
    content = pickle.dumps(load(bundle, provider="cpu", threads=1))
    edit_manifest(bundle, lambda manifest: manifest.update(family="another"))
    with pytest.raises(BundleError, match=r"is not the bundle that was pickled: it was replaced"):
        pickle.loads(content)
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match="not there"):
        pickle.loads(content)


def test_in_a_process_of_its_own(make_bundle):
    model = load(make_bundle("encoder"), provider="cpu", threads=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(model.embed, ("a b",)).get(timeout=300)
    assert found.tolist() == model.embed("a b").tolist()


def test_onnxruntimes_name_of_a_provider(make_bundle):
    bundle = make_bundle("encoder")
    with pytest.raises(ProviderError, match=r"unknown provider 'CPUExecutionProvider'; write 'cpu'$"):
        load(bundle, provider="CPUExecutionProvider")
    with pytest.raises(ProviderError, match=r"write 'cuda'$"):
        load(bundle, provider=["CUDAExecutionProvider", "cpu"])


def entry(model, name):
    return model._sessions["model"].opened().get_session_options().get_session_config_entry(name)


@pytest.mark.parametrize(("spin", "allowed", "stops"), [(None, "1", "1"), (True, "1", "0"), (False, "0", "0")])
def test_spinning(make_bundle, spin, allowed, stops):
    model = load(make_bundle("encoder"), provider="cpu", threads=2, spin=spin)
    assert entry(model, "session.intra_op.allow_spinning") == allowed
    assert entry(model, "session.force_spinning_stop") == stops


def test_options_of_onnxruntime(make_bundle):
    options = {"session.set_denormal_as_zero": True, "enable_mem_pattern": False, "mlas.use_lut_gemm": "0"}
    model = load(make_bundle("encoder"), provider="cpu", threads=1, arena=False, options=options)
    assert entry(model, "session.set_denormal_as_zero") == "1"
    assert entry(model, "mlas.use_lut_gemm") == "0"
    found = model._sessions["model"].opened().get_session_options()
    assert (found.enable_mem_pattern, found.enable_cpu_mem_arena) == (False, False)
    plain = load(make_bundle("encoder without segments"), provider="cpu", threads=1)
    assert plain._sessions["model"].opened().get_session_options().enable_cpu_mem_arena


def test_models_of_other_options_share_nothing(make_bundle):
    bundle = make_bundle("encoder")
    models = [load(bundle, provider="cpu", threads=1, arena=arena) for arena in (True, False, True)]
    first, second, third = (model._sessions["model"].opened() for model in models)
    assert first is third
    assert first is not second


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"spin": 1}, r"spin must be True, False or None, but is 1"),
        ({"arena": None}, r"arena must be True or False, but is None"),
        ({"mapped": "yes"}, r"mapped must be True or False, but is 'yes'"),
        ({"options": ["a"]}, r"options must be a mapping of onnxruntime's names to values, but is a list"),
        ({"options": {"session.set_denormal_as_zer": 1}}, r"the nearest is 'session.set_denormal_as_zero'"),
        ({"options": {7: 1}}, r"there is no option 7; the nearest is"),
        ({"options": {"session.set_denormal_as_zero": 1.5}}, r"must be a str, an int or a bool, but is 1.5"),
        ({"options": {"enable_mem_pattern": 1}}, r"'enable_mem_pattern' must be a value of bool, but is 1"),
        ({"options": {"intra_op_num_threads": 1}}, r"is set by the parameter threads of load\(\)"),
        ({"options": {"session.intra_op.allow_spinning": "0"}}, r"is set by the parameter spin of load\(\)"),
        ({"options": {"session.model_external_initializers_file_folder_path": "/"}}, r"there is no option"),
    ],
)
def test_options_that_there_are_not(make_bundle, named, message):
    with pytest.raises(InputError, match=message):
        load(make_bundle("encoder"), **named)
