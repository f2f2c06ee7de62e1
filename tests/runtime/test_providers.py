import importlib.util
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest

from tfm.errors import BundleError, InputError, ProviderError
from tfm.runtime.sessions import providers

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def graph(make_bundle):
    return make_bundle("encoder") / "onnx/model.onnx"


def pretend(monkeypatch, available, runs_on=None, why=None):
    """Stand in for an onnxruntime with other providers than this machine's."""
    made = []

    def session(path, options, providers, enable_fallback):
        made.append(SimpleNamespace(providers=providers, options=options, enable_fallback=enable_fallback))
        if why is not None:
            raise why
        return SimpleNamespace(get_providers=lambda: runs_on)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return made


def test_candidates(monkeypatch):
    assert providers.candidates("cpu") == ("cpu",)
    assert providers.candidates("cuda") == ("cuda",)
    pretend(monkeypatch, ["CPUExecutionProvider"])
    assert providers.candidates("auto") == ("cpu",)
    pretend(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert providers.candidates("auto") == ("cuda", "cpu")


def test_candidates_in_order(monkeypatch):
    pretend(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert providers.candidates(["cpu", "cuda"]) == ("cpu", "cuda")
    assert providers.candidates(["cuda", "cuda", "cpu"]) == ("cuda", "cpu")
    assert providers.candidates(("cpu", "auto")) == ("cpu", "cuda")
    assert providers.candidates("cuda", fallback=True) == ("cuda", "cpu")
    assert providers.candidates("cpu", fallback=True) == ("cpu",)


@pytest.mark.parametrize("name", ["gpu", "", None])
def test_unknown_provider(name):
    with pytest.raises(
        ProviderError, match=rf"unknown provider {name!r}; the nearest is .* \(known: auto, cpu, cuda\)"
    ):
        providers.candidates(name)


def test_threads(monkeypatch):
    assert providers.count_threads(3) == 3
    for default, threads in [(7, 7), (10**6, providers.MOST_THREADS)]:
        monkeypatch.setattr(providers, "default_threads", lambda default=default: default)
        assert providers.count_threads(None) == threads


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_wrong_threads(threads):
    with pytest.raises(InputError, match=rf"threads must be an integer of at least 1, but is {threads!r}"):
        providers.count_threads(threads)


def test_session_options(graph):
    session = providers.open_session(graph, "cpu", 2)
    assert session.get_providers() == ["CPUExecutionProvider"]
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.log_severity_level == 4


def test_not_built_in(graph, monkeypatch):
    pretend(monkeypatch, ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"was built without CUDAExecutionProvider; pip install onnxruntime-gpu in"):
        providers.open_session(graph, "cuda", 1)


def test_falling_back_is_an_error(graph, monkeypatch):
    """As onnxruntime-gpu 1.31.1 behaves without CUDA's libraries: a warning, and a session on the CPU."""
    made = pretend(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"])
    message = "CUDAExecutionProvider did not start, and onnxruntime fell back to CPUExecutionProvider: .*; repair"
    with pytest.raises(ProviderError, match=message):
        providers.open_session(graph, "cuda", 1)
    cuda = {"device_id": "0", "use_tf32": "0"}  # with TF32, float32 is not the float32 that was verified
    assert made[0].providers == [("CUDAExecutionProvider", cuda), ("CPUExecutionProvider", {})]
    assert made[0].enable_fallback == 0


def test_the_reason_is_the_library_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"not a library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    assert "libonnxruntime_providers_cuda.so" in providers._why_cuda_failed()


def test_failing_provider(graph, monkeypatch):
    pretend(monkeypatch, ["CUDAExecutionProvider"], why=RuntimeError("CUDA failure 100"))
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider could not open .*model.onnx: CUDA failure 100"):
        providers.open_session(graph, "cuda", 1)


def test_not_a_graph(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"onnxruntime \S+ could not load .*model.onnx: .*Protobuf parsing failed"):
        providers.open_session(tmp_path / "model.onnx", "cpu", 1)


def test_cuda_as_this_machine_has_it(graph):
    """Runs everywhere: where CUDA is not built in, the error says so; where it is, it runs or says why not."""
    if not HAS_CUDA:
        with pytest.raises(ProviderError, match="was built without CUDAExecutionProvider"):
            providers.open_session(graph, "cuda", 1)
        return
    try:
        assert providers.open_session(graph, "cuda", 1).get_providers()[0] == "CUDAExecutionProvider"
    except ProviderError as error:
        print(error)


# ------------------------------------------------ assignment


def test_assignment(graph):
    given = providers.assignment(providers.open_session(graph, "cpu", 1))
    assert list(given) == ["cpu"]
    written = sorted(node.op_type for node in onnx.load(graph).graph.node)
    assert sorted(node.split()[0] for node in given["cpu"]) == written


def test_assignment_to_several():
    """As a session on CUDA gives it, with a node that only the CPU has."""

    def part(provider, *nodes):
        named = [SimpleNamespace(op_type=op_type, name=name) for op_type, name in nodes]
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: named)

    parts = [
        part("CUDAExecutionProvider", ("Gemm", "linear1"), ("Gelu", "")),
        part("CPUExecutionProvider", ("Shape", "length")),
        part("CUDAExecutionProvider", ("Gemm", "linear2")),
        part("DmlExecutionProvider", ("Tanh", "tanh")),
    ]
    assert providers.assignment(SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)) == {
        "cuda": ("Gemm linear1", "Gelu", "Gemm linear2"),
        "cpu": ("Shape length",),
        "DmlExecutionProvider": ("Tanh tanh",),
    }


@pytest.mark.parametrize("old", [True, False])
def test_nothing_was_recorded(graph, old):
    session = SimpleNamespace() if old else onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"recorded no provider of any node; it takes 1.24.1 or later"):
        providers.assignment(session)


# ------------------------------------------------ CUDA's libraries


@pytest.mark.parametrize("installed", [True, False])
def test_libraries_that_pip_installed_are_loaded(monkeypatch, capsys, installed):
    providers._load_cuda_packages.cache_clear()
    calls = []

    def preload():
        calls.append(1)
        print("Failed to load libcublas")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    providers._load_cuda_packages()
    providers._load_cuda_packages()
    providers._load_cuda_packages.cache_clear()
    assert calls == [1] * installed
    assert capsys.readouterr() == ("", "Failed to load libcublas\n" * installed)
