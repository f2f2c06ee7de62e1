import pytest

from tfm import runtime
from tfm.errors import BundleError, InputError, ProviderError
from tfm.runtime import load


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
    class Session(runtime.Session):
        def __init__(self, path, signature, provider, threads):
            super().__init__(path, signature, "cpu", threads)
            self.provider = provider

    monkeypatch.setattr("tfm.runtime.bundle.Session", Session)
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    bundle = make_bundle("encoder")
    assert load(bundle).precision == "fp32"
    edit_manifest(bundle, lambda m: m["graphs"].update(fp16=m["graphs"]["int8"]))
    model = load(bundle)
    assert (model.provider, model.precision) == ("cuda", "fp16")
    assert load(bundle, provider="cpu").precision == "int8"
    edit_manifest(bundle, lambda m: m["graphs"].pop("int8"))
    assert load(bundle, provider="cpu").precision == "fp32"


def test_auto_falls_back_to_the_cpu(make_bundle, monkeypatch):
    """CUDA is built in but does not start: the CPU runs, in the CPU's precision."""
    tried = []

    class Session(runtime.Session):
        def __init__(self, path, signature, provider, threads):
            tried.append((path.name, provider))
            if provider == "cuda":
                raise ProviderError("no CUDA here")
            super().__init__(path, signature, provider, threads)

    monkeypatch.setattr("tfm.runtime.bundle.Session", Session)
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    bundle = make_bundle("encoder")
    model = load(bundle)
    assert (model.provider, model.precision) == ("cpu", "int8")
    assert tried == [("model.onnx", "cuda"), ("model_int8.onnx", "cpu")]
    with pytest.raises(ProviderError, match="no CUDA here"):
        load(bundle, provider="cuda")


def test_wrong_options(make_bundle):
    bundle = make_bundle("encoder")
    with pytest.raises(ProviderError, match="unknown provider 'tpu'"):
        load(bundle, provider="tpu")
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


def test_external_weights_are_compared(make_bundle, edit_manifest):
    bundle = make_bundle("counter")
    (bundle / "onnx/model.onnx.data").write_bytes(b"weights")
    entry = {"size": 7, "sha256": "0" * 64}
    edit_manifest(bundle, lambda m: m["files"].update({"onnx/model.onnx.data": entry}))
    with pytest.raises(BundleError, match=r"onnx/model.onnx.data was altered"):
        load(bundle, provider="cpu")


def test_a_bundle_is_needed(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)
