import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from tfm import runtime
from tfm.bundle.manifest import Signature, TensorSpec
from tfm.errors import BundleError, InputError, ProviderError
from tfm.runtime import Session, load
from tfm.runtime.open_bundle import least_inputs
from tfm.runtime.sessions.graph_files import GraphFiles


@pytest.mark.parametrize(
    ("kind", "made"), [("encoder", "Encoder"), ("copier", "EncoderDecoder"), ("counter", "Decoder")]
)
def test_kinds(make_bundle, kind, made):
    model = load(make_bundle(kind), provider="cpu", threads=1)
    assert type(model) is getattr(runtime, made)
    assert isinstance(model, runtime.Model)
    assert (model.provider, model.threads) == ("cpu", 1)
    assert model.manifest.family == "toy"


def test_precision(make_bundle):
    bundle = make_bundle("encoder")
    assert load(bundle, provider="cpu").precision == "int8"
    assert load(str(bundle), provider="cpu", precision="fp32").precision == "fp32"
    with pytest.raises(BundleError, match=r"encoder has no 'int4' graph; it has: fp32, int8"):
        load(bundle, precision="int4")


def test_precision_where_there_is_no_int8(make_bundle, edit_manifest):
    assert load(make_bundle("counter"), provider="cpu").precision == "fp32"
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m.update(graphs={"fp16": m["graphs"]["int8"]}))
    assert load(bundle, provider="cpu").precision == "fp16"


def test_auto_is_fp16_on_cuda_where_there_is_one(make_bundle, edit_manifest, monkeypatch):
    opened = GraphFiles.open
    monkeypatch.setattr(GraphFiles, "open", lambda files, provider, *others: opened(files, "cpu", *others))
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    bundle = make_bundle("encoder")
    assert load(bundle).precision == "fp32"
    edit_manifest(bundle, lambda m: m["graphs"].update(fp16=m["graphs"]["int8"]))
    model = load(bundle)
    assert (model.provider, model.precision, model.device) == ("cuda", "fp16", "cuda:0")
    assert load(bundle, provider="cpu").precision == "int8"
    edit_manifest(bundle, lambda m: m["graphs"].pop("int8"))
    assert load(bundle, provider="cpu").precision == "fp32"


def test_auto_falls_back_to_the_cpu(make_bundle, monkeypatch):
    """CUDA is built in but does not start: the CPU runs, in the CPU's precision."""
    tried = []

    opened = GraphFiles.open

    def open_on_the_cpu(files, provider, *others):
        tried.append((files.path.name, provider))
        if provider == "cuda":
            raise ProviderError("no CUDA here")
        return opened(files, provider, *others)

    monkeypatch.setattr(GraphFiles, "open", open_on_the_cpu)
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    bundle = make_bundle("encoder")
    model = load(bundle)
    assert (model.provider, model.precision, model.device) == ("cpu", "int8", "cpu")
    assert model.skipped == {"cuda": "no CUDA here"}
    assert tried == [("model.onnx", "cuda"), ("model_int8.onnx", "cpu")]
    with pytest.raises(ProviderError, match=r"^no CUDA here$"):
        load(bundle, provider="cuda")
    for options in ({"provider": "cuda", "fallback": True}, {"provider": ["cuda", "cpu"]}, {"provider": ["auto"]}):
        model = load(bundle, **options)
        assert (model.provider, model.skipped) == ("cpu", {"cuda": "no CUDA here"})
    assert load(bundle, provider=["cpu", "cuda"]).skipped == {}


@pytest.fixture
def _runs_only_on_the_cpu(monkeypatch):
    """CUDA is built in and opens a graph, and fails when it is run."""
    opened, run = GraphFiles.open, Session.run

    def run_on_the_cpu(session, arrays):
        if session.provider == "cuda":
            raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : CUDNN failure 5003")
        return run(session, arrays)

    monkeypatch.setattr(GraphFiles, "open", lambda files, provider, *others: opened(files, "cpu", *others))
    monkeypatch.setattr(Session, "run", run_on_the_cpu)
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


@pytest.mark.usefixtures("_runs_only_on_the_cpu")
def test_a_provider_that_opens_and_does_not_run(make_bundle):
    bundle = make_bundle("copier")
    model = load(bundle)
    assert (model.provider, model.device) == ("cpu", "cpu")
    why = r"cuda opened .*encoder_model.onnx, but could not run it: .*CUDNN failure 5003; use 'cpu'"
    assert re.fullmatch(why, model.skipped.pop("cuda"))
    assert model.skipped == {}
    with pytest.raises(ProviderError, match=why):
        load(bundle, provider="cuda")


def test_a_graph_that_runs_nowhere(make_bundle, monkeypatch):
    def run(self, arrays):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(runtime.Session, "run", run)
    with pytest.raises(BundleError, match=r"onnxruntime opened .*model_int8.onnx, but could not run it: no kernel"):
        load(make_bundle("encoder"), provider="cpu")


@pytest.mark.parametrize("kind", ["encoder", "copier", "counter", "encoder without segments"])
def test_every_graph_runs_once(make_bundle, monkeypatch, kind):
    """On inputs that its checks take, and of which its outputs are finite numbers."""
    ran = []
    real = runtime.Session.run

    def run(self, arrays):
        outputs = real(self, arrays)
        ran.append((self, all(np.isfinite(value).all() for value in outputs.values())))
        return outputs

    monkeypatch.setattr(runtime.Session, "run", run)
    model = load(make_bundle(kind), provider="cpu")
    assert ran == [(session, True) for session in model._sessions.values()]


def test_least_inputs():
    specs = (
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=9),
        TensorSpec(name="attention_mask", dtype="bool", shape=("batch", "past_sequence + sequence")),
        TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, 4, 4)),
        TensorSpec(name="past_key_values.0.key", dtype="float16", shape=("batch", 2, "past_sequence", 8)),
        TensorSpec(name="position_ids", dtype="int64", shape=("batch", "sequence")),
    )
    arrays = least_inputs(Signature(inputs=specs, outputs=(), max_length={}))
    shapes = {"input_ids": (1, 1), "attention_mask": (1, 1), "pixel_values": (1, 3, 4, 4)}
    shapes |= {"past_key_values.0.key": (1, 2, 0, 8), "position_ids": (1, 1)}
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert {name: array.dtype.name for name, array in arrays.items()} == {spec.name: spec.dtype for spec in specs}
    assert arrays["attention_mask"].all()
    assert not arrays["input_ids"].any()


def make_module(make_bundle, edit_manifest, shape):
    """A bundle of a module that takes two rows, as its Split says: the least inputs are not for it."""
    bundle = make_bundle("encoder")
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["first", "rest"], axis=0),
        helper.make_node("ReduceSum", ["rest"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info("x", 1, shape)], [helper.make_tensor_value_info("y", 1, [])],
        [helper.make_tensor("sizes", 7, [2], [1, 1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), bundle / "m.onnx")
    spec = {"name": "x", "dtype": "float32", "shape": shape}
    signature = {"inputs": [spec], "outputs": [{"name": "y", "dtype": "float32", "shape": []}], "max_length": {}}

    def change(m):
        m.update(kind="module", graphs={"fp32": {"model": "m.onnx"}}, signature={"model": signature})

    edit_manifest(bundle, change)
    return bundle


def test_a_module_is_run_on_what_it_was_verified_with(make_bundle, edit_manifest, remake_digests):
    bundle = make_module(make_bundle, edit_manifest, ["rows", 3])
    remake_digests(bundle)
    assert isinstance(load(bundle, provider="cpu"), runtime.Module)  # nobody knows what it takes
    for rows, error in ((2, None), (1, BundleError)):
        np.savez(bundle / "golden.npz", **{"model/0/inputs/x": np.zeros((rows, 3), np.float32)})
        remake_digests(bundle)
        if error is None:
            load(bundle, provider="cpu")
            continue
        with pytest.raises(error, match="could not run it"):
            load(bundle, provider="cpu")
    flip_last_byte(bundle / "golden.npz")
    with pytest.raises(BundleError, match=r"golden.npz was altered: its SHA-256 is not the manifest's"):
        load(bundle, provider="cpu")
    (bundle / "golden.npz").write_bytes(b"junk")
    remake_digests(bundle)
    with pytest.raises(BundleError, match=r"golden.npz cannot be read"):
        load(bundle, provider="cpu")


def test_a_module_of_fixed_sizes_is_run(make_bundle, edit_manifest, remake_digests):
    bundle = make_module(make_bundle, edit_manifest, [1, 3])
    remake_digests(bundle)
    with pytest.raises(BundleError, match=r"could not (run|load)"):
        load(bundle, provider="cpu")


def test_no_provider_of_several_runs(make_bundle, monkeypatch):
    def refuse(files, provider, *others):
        raise ProviderError(f"no {provider} here")

    monkeypatch.setattr(GraphFiles, "open", refuse)
    message = r"^no provider runs here: cuda: no cuda here; cpu: no cpu here$"
    with pytest.raises(ProviderError, match=message):
        load(make_bundle("encoder"), provider=["cuda", "cpu"])


def test_cuda_that_is_not_built_in(make_bundle, monkeypatch):
    """Without any stand-in for a session: what onnxruntime itself says of its providers decides."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    bundle = make_bundle("encoder")
    assert load(bundle).skipped == {}  # auto does not try what is not there
    message = "was built without CUDAExecutionProvider; pip install onnxruntime-gpu"
    with pytest.raises(ProviderError, match=message):
        load(bundle, provider="cuda")
    model = load(bundle, provider="cuda", fallback=True)
    assert model.provider == "cpu"
    assert message in model.skipped["cuda"]


def test_cuda_whose_library_is_missing(make_bundle, monkeypatch, tmp_path):
    """onnxruntime-gpu without CUDA's libraries: a session on the CPU, and a provider's library that does not load."""
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    library.write_bytes(b"not a library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession

    def session(path, options, providers, enable_fallback=1):
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    bundle = make_bundle("encoder")
    message = r"CUDAExecutionProvider did not start, and .* fell back to CPUExecutionProvider: .*providers_cuda.so: "
    with pytest.raises(ProviderError, match=message):
        load(bundle, provider="cuda")
    assert re.match(message, load(bundle).skipped["cuda"])


def test_wrong_options(make_bundle):
    bundle = make_bundle("encoder")
    with pytest.raises(ProviderError, match="unknown provider 'tpu'"):
        load(bundle, provider="tpu")
    with pytest.raises(ProviderError, match="unknown provider 'tpu'"):
        load(bundle, provider=["cpu", "tpu"])
    with pytest.raises(ProviderError, match="provider is an empty list; name one of: auto, cpu, cuda"):
        load(bundle, provider=[])
    with pytest.raises(InputError, match="threads must be an integer of at least 1, but is 0"):
        load(bundle, threads=0)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["onnx/model_int8.onnx", "tokenizer.json"])
def test_altered(make_bundle, name):
    bundle = make_bundle("encoder")
    flip_last_byte(bundle / name)
    with pytest.raises(BundleError, match=rf"{name} was altered: its SHA-256 is not the manifest's"):
        load(bundle, provider="cpu")


def test_what_is_not_opened_is_not_read(make_bundle):
    bundle = make_bundle("encoder")
    flip_last_byte(bundle / "onnx/model_int8.onnx")
    assert load(bundle, provider="cpu", precision="fp32").precision == "fp32"


def test_a_bundle_is_needed(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)
