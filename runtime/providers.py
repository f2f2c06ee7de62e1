"""Execution providers: an onnxruntime session that runs where it was asked to, or an error that says why not."""

import ctypes
import os
from pathlib import Path
from typing import Any

import onnxruntime

from tfm.errors import BundleError, InputError, ProviderError

from .checks import nearest
from .saturation import saturates

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_SILENT = 4  # fatal only: every failure is raised, none needs printing


def candidates(provider: str) -> tuple[str, ...]:
    """List the providers to try in turn, the best first.

    Args:
        provider: "auto", "cpu" or "cuda".

    Raises:
        ProviderError: The name is unknown.
    """
    if provider == "auto":
        available = onnxruntime.get_available_providers()
        return ("cuda", "cpu") if PROVIDERS["cuda"] in available else ("cpu",)
    if provider not in PROVIDERS:
        raise ProviderError(f"unknown provider {provider!r}; {nearest(str(provider), ['auto', *PROVIDERS])}")
    return (provider,)


MOST_THREADS = 1024
"""More than any machine has cores; starting far more can take minutes, or fail."""


def count_threads(threads: int | None) -> int:
    """Check a number of threads; None is as many as this process may use cores.

    Raises:
        InputError: It is no integer of at least 1.
    """
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads must be an integer of at least 1, but is {threads!r}")
    if threads > MOST_THREADS:
        raise InputError(f"threads must be at most {MOST_THREADS}, but is {threads}")
    return threads


def open_session(path: Path, provider: str, threads: int) -> Any:
    """Open a graph on one provider.

    Args:
        path: The ONNX file.
        provider: "cpu" or "cuda".
        threads: Number of threads within an operator, at least 1.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        ProviderError: The provider does not run here.
        BundleError: onnxruntime cannot load the graph.
    """
    wanted = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        hint = "; pip install onnxruntime-gpu in place of onnxruntime" if provider == "cuda" else ""
        raise ProviderError(
            f"this onnxruntime {onnxruntime.__version__} was built without {wanted}{hint}, or use 'cpu'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _SILENT
    if provider == "cpu" and saturates():  # exact kernels; where they are not needed, they are half as fast again
        options.add_session_config_entry("session.x64quantprecision", "1")
    listed = list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=listed, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        if provider != "cpu":
            raise ProviderError(f"{wanted} could not open {path}: {error}") from error
        raise BundleError(f"onnxruntime {onnxruntime.__version__} could not load {path}: {error}") from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"{wanted} did not start, and onnxruntime fell back to {session.get_providers()[0]}: "
            f"{_why_cuda_failed()}; repair that, or use 'cpu'"
        )
    return session


def _why_cuda_failed() -> str:
    """Load the provider's library by itself: onnxruntime only logs why that fails."""
    for library in (Path(onnxruntime.__file__).parent / "capi").glob("*onnxruntime_providers_cuda.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return "no usable device, or a CUDA or cuDNN that this onnxruntime was not built for"
