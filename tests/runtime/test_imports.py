"""What an app pays for: numpy and onnxruntime, nothing else."""

import subprocess
import sys

import tfm.runtime


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names():
    assert tfm.runtime.__all__ == [
        "CancelToken",
        "Decoder",
        "Encoder",
        "EncoderDecoder",
        "Figures",
        "GoldenReport",
        "Model",
        "Module",
        "Session",
        "check_golden",
        "load",
    ]
    assert all(getattr(tfm.runtime, name).__doc__ for name in tfm.runtime.__all__)


HEAVY = "{'torch', 'onnx', 'onnxscript', 'onnx_ir', 'tokenizers', 'transformers', 'click', 'rich'}"


def test_importing_it_loads_nothing_heavy():
    assert run_python(f"import sys, tfm.runtime; print(sorted({HEAVY} & set(sys.modules)))") == "[]\n"
    loaded = run_python("import sys, tfm.runtime; print([m for m in sys.modules if m.startswith('tfm.')])")
    assert all(name in ("tfm.runtime", "tfm.errors") or name.startswith("tfm.runtime.") for name in eval(loaded))


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
