"""Execution providers: an onnxruntime session that runs where it was asked to, or an error that says why not."""

import contextlib
import ctypes
import functools
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from tfm.bundle import brief
from tfm.errors import BundleError, InputError, ProviderError

from ..inputs.batches import check_count
from ..inputs.checks import nearest
from .cpu import default_threads
from .options import DEFAULTS, Tuning, session_options
from .requires import newer_needed

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = {"cpu": "cpu", "cuda": "cuda:0"}

# TF32 rounds the factors of float32 products to 10 bits: not what was verified
_OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"device_id": "0", "use_tf32": "0"}}
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def candidates(provider: str | Sequence[str], fallback: bool = False) -> tuple[str, ...]:
    """List the providers to try in turn, the best first, at last the CPU where that is a fallback."""
    names = list(provider) if isinstance(provider, (list, tuple)) else [provider]
    if not names:
        raise ProviderError(f"provider is an empty list; name one of: auto, {', '.join(PROVIDERS)}")
    chosen = [one for name in names for one in _meant_by(name)]
    return tuple(dict.fromkeys([*chosen, "cpu"] if fallback else chosen))


def _meant_by(name: Any) -> Sequence[str]:
    if name == "auto":
        # CUDA counts where onnxruntime was built with it; whether it starts, opening a graph shows.
        return ["cuda", "cpu"] if is_built_in("cuda") else ["cpu"]
    if isinstance(name, str) and name in PROVIDERS:
        return [name]
    hint = next((f"write {short!r}" for short, long in PROVIDERS.items() if name == long), None)
    raise ProviderError(f"unknown provider {brief(name)}; {hint or nearest(name, ['auto', *PROVIDERS])}")


def is_built_in(provider: str) -> bool:
    """Tell whether this onnxruntime was built with "cpu" or "cuda"; not whether that runs here."""
    return PROVIDERS[provider] in onnxruntime.get_available_providers()


MOST_THREADS = 1024
"""More than any machine has cores; starting far more can take minutes, or fail."""


def count_threads(threads: int | None) -> int:
    """Check a number of threads; None is as many as the process may use cores, or fewer where its quota is less.

    Raises:
        InputError: It is no integer of at least 1.
    """
    if threads is None:
        return min(default_threads(), MOST_THREADS)
    count = check_count("threads", threads)
    if count > MOST_THREADS:
        raise InputError(f"threads must be at most {MOST_THREADS}, but is {brief(count)}")
    return count


def open_session(
    graph: Path | bytes,
    provider: str,
    threads: int,
    tuning: Tuning = DEFAULTS,
    *,
    source: Path | None = None,
    weights: Path | Mapping[str, bytes] | None = None,
) -> Any:
    """Open a graph on one provider.

    Args:
        graph: The ONNX file, or the content of one. Weights that lie beside it are mapped into memory where the CPU
            runs them, not read: sessions, and processes, that open the same file have one copy of them between them.
            What kernels repack for themselves, as most products do, each session has for itself.
        provider: "cpu" or "cuda".
        threads: Number of threads within an operator, at least 1.
        tuning: How else.
        source: Where a content was read from, for messages.
        weights: The folder that a content's further weights lie in, or they themselves, by location; None: it has none.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        ProviderError: The provider does not run here.
        BundleError: onnxruntime cannot load the graph.
    """
    _require(provider)
    what = source or ("a graph in memory" if isinstance(graph, bytes) else graph)
    # Beside CUDA stands the CPU, which gets the nodes that CUDA has no kernel for.
    listed = [(PROVIDERS[name], _OPTIONS[name]) for name in dict.fromkeys([provider, "cpu"])]
    options = session_options(provider, threads, tuning)
    # A graph from memory has no folder that its weights could lie beside: this names one.
    if isinstance(weights, Path):
        options.add_session_config_entry(_DATA_FOLDER, str(weights))
    elif weights:
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(content) for content in weights.values()]
        )
    wanted = PROVIDERS[provider]
    try:
        # Unless told otherwise, onnxruntime's wrapper prints to stdout and tries other providers.
        session = onnxruntime.InferenceSession(graph, options, providers=listed, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        reason = f"{newer_needed(error)}{error}"
        if provider != "cpu":
            raise ProviderError(f"{wanted} could not open {what}: {reason}") from error
        raise BundleError(f"onnxruntime {onnxruntime.__version__} could not load {what}: {reason}") from error
    # A CUDA that does not load leaves a session that runs on the CPU, with only a warning.
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"{wanted} did not start, and onnxruntime fell back to {session.get_providers()[0]}: "
            f"{_why_cuda_failed()}; repair that, or use 'cpu'"
        )
    return session


def _require(provider: str) -> None:
    """Refuse a provider that this onnxruntime was built without; load what CUDA needs."""
    if not is_built_in(provider):
        hint = "; pip install onnxruntime-gpu in place of onnxruntime" if provider == "cuda" else ""
        raise ProviderError(
            f"this onnxruntime {onnxruntime.__version__} was built without {PROVIDERS[provider]}{hint}, or use 'cpu'"
        )
    if provider == "cuda":
        _load_cuda_packages()


def assignment(session: Any) -> dict[str, tuple[str, ...]]:
    """Tell which provider each node of a graph was given to when it was opened.

    Args:
        session: The `onnxruntime.InferenceSession`, as `open_session` opened it.

    Returns:
        Provider, "cpu", "cuda" or onnxruntime's name of it → its nodes, each as "Gemm encoder.linear1": the op, and its
        name where it has one. Nodes are those of the graph before it is optimized for the provider.

    Raises:
        ProviderError: onnxruntime recorded nothing: it is older than 1.24.1, or the session was opened otherwise.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception as error:  # AttributeError before 1.24.1; onnxruntime's errors have no common class
        raise ProviderError(
            f"onnxruntime {onnxruntime.__version__} recorded no provider of any node; it takes 1.24.1 or later, and a "
            "session that open_session opened"
        ) from error
    short = {name: provider for provider, name in PROVIDERS.items()}
    nodes: dict[str, list[str]] = {}
    for part in parts:
        given = nodes.setdefault(short.get(part.ep_name, part.ep_name), [])
        given += [f"{node.op_type} {node.name}".rstrip() for node in part.get_nodes()]
    return {provider: tuple(names) for provider, names in nodes.items()}


@functools.cache
def _load_cuda_packages() -> None:
    """Load CUDA's libraries where pip installed them, which is nowhere that the system looks."""
    if importlib.util.find_spec("nvidia") is not None and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses, and standard output is the app's
            onnxruntime.preload_dlls()


def _why_cuda_failed() -> str:
    """Load the provider's library by itself: onnxruntime only logs why that fails."""
    for library in (Path(onnxruntime.__file__).parent / "capi").glob("*onnxruntime_providers_cuda.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return "no usable device, or a CUDA or cuDNN that this onnxruntime was not built for"
