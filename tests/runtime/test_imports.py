"""What an app pays for: numpy and onnxruntime, nothing else."""

import subprocess
import sys

import pytest

import tfm.runtime


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names():
    public = [
        "CancelToken",
        "Decoder",
        "Encoder",
        "EncoderDecoder",
        "Entity",
        "ErrorStats",
        "Fill",
        "GoldenReport",
        "Label",
        "Model",
        "Module",
        "Session",
        "check_golden",
        "load",
    ]
    assert set(public) <= set(tfm.runtime.__all__)
    assert all(getattr(tfm.runtime, name).__doc__ for name in public)


HEAVY = "{'torch', 'onnx', 'onnxscript', 'onnx_ir', 'tokenizers', 'transformers', 'click', 'rich'}"


def test_importing_it_loads_nothing_heavy():
    assert run_python(f"import sys, tfm.runtime; print(sorted({HEAVY} & set(sys.modules)))") == "[]\n"
    loaded = run_python("import sys, tfm.runtime; print([m for m in sys.modules if m.startswith('tfm.')])")
    assert eval(loaded) == ["tfm.lazy", "tfm.runtime"]


def test_names_are_imported_when_they_are_asked_for():
    assert set(tfm.runtime.__all__) <= set(dir(tfm.runtime))
    assert all(getattr(tfm.runtime, name) is not None for name in tfm.runtime.__all__)
    loaded = "sorted(m for m in sys.modules if m.startswith('tfm.runtime.'))"
    assert run_python(f"import sys, tfm.runtime; print({loaded})") == "[]\n"
    loaded = run_python(f"import sys, tfm.runtime; tfm.runtime.load; tfm.runtime.Encoder; print({loaded})")
    assert "tfm.runtime.encoder" in loaded
    assert "generation" not in loaded
    with pytest.raises(AttributeError, match=r"module 'tfm.runtime' has no attribute 'embed'"):
        _ = tfm.runtime.embed


def test_a_bundle_is_opened_without_numpys_masked_arrays(make_bundle):
    """They take 30 ms to import, which would be a fifth of what opening a bundle takes."""
    bundle = make_bundle("encoder")
    code = f"import sys, tfm.runtime; m = tfm.runtime.load({str(bundle)!r}, provider='cpu'); m.embed([[4, 5]])"
    assert run_python(f"{code}; print('numpy.ma' in sys.modules)") == "False\n"


def test_it_works_where_nothing_heavy_is_installed(make_bundle):
    bundle = make_bundle("encoder")
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"blocked {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
import tfm.runtime, tfm.errors
model = tfm.runtime.load({str(bundle)!r}, provider="cpu", threads=1)
ones = [[1, 1]]
print(model.run(input_ids=[[4, 5]], attention_mask=ones, token_type_ids=[[0, 0]])["sentence_embedding"].shape)
try:
    model.embed("a")
except tfm.errors.BundleError as error:
    print(error)
"""
    shape, message = run_python(code).splitlines()
    assert shape == "(1, 4)"
    assert message == (
        "texts need the package tokenizers, which is not installed: pip install 'tfm-export[text]'; "
        "run() takes token ids without it"
    )


def test_nothing_is_printed(make_bundle):
    done = subprocess.run(
        [sys.executable, "-c", f"import tfm.runtime as r; r.load({str(make_bundle('encoder'))!r}).embed(['a', 'b'])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
