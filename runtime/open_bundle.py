"""A bundle that is open: its sessions, and all that a model may need of its files later."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfm.bundle import Companions, Manifest, Signature, golden_inputs
from tfm.errors import BundleError, ProviderError

from .inputs.checks import MAY_BE_EMPTY, SUM, Array
from .sessions.graph_files import GraphFiles
from .sessions.options import Tuning
from .sessions.requires import check_onnxruntime
from .sessions.session import Session, reason_of
from .sessions.shared import OpenGraph, share
from .tasks.which import tasks_of

_MOST_BYTES = 1 << 30
"""Of the least inputs that a graph takes; more is no transformer's, but a manifest's mistake."""


class OpenBundle:
    """The graphs of one precision of a bundle on one provider, proved, open, and each run once.

    Attributes:
        manifest: The bundle's.
        precision: Of the graphs.
        provider: "cpu" or "cuda".
        threads: Number of threads within an operator.
        sessions: By role.
        companions: The small files beside the graphs.
    """

    def __init__(self, manifest: Manifest, precision: str, provider: str, threads: int, tuning: Tuning) -> None:
        """Open the graphs."""
        # First of all: one that is too old fails to open the graph in words that do not say what to do.
        check_onnxruntime(manifest, precision)
        self.manifest, self.precision, self.provider, self.threads = manifest, precision, provider, threads
        self._tuning = tuning
        self._files = {role: GraphFiles(manifest, path) for role, path in manifest.graphs[precision].items()}
        self.sessions = {role: self._open(role, threads) for role in self._files}
        self.companions = Companions(manifest)
        for role in self._files:
            self._try(role)
        # Only what takes many texts ever opens a graph again, for one thread; what else would keep the files is waste.
        if not tasks_of(manifest) or threads == 1 or provider != "cpu":
            self._files = {}

    def open_again(self, role: str, threads: int) -> Session:
        """Open a graph for another number of threads: of the files that were opened first, whatever is there now."""
        session = self._open(role, threads)
        # It is opened once more at most, so the files need not be held any longer.
        del self._files[role]
        return session

    def close(self) -> None:
        """Let go of the graphs and of their files."""
        for session in self.sessions.values():
            session.close()
        self._files = {}

    def _open(self, role: str, threads: int) -> Session:
        files = self._files[role]
        # All that a session depends on. The path is not in it: two copies of a bundle are one graph.
        key = files.key, self.provider, threads, self._tuning
        here: list[OpenGraph] = []

        def open_here() -> OpenGraph:
            here.append(files.open(self.provider, threads, self._tuning))
            return here[0]

        graph = share(key, open_here)
        if not here:  # what another model has open is proved; whether these files are the same is to be seen
            files.prove()
        return Session(files.path, self.manifest.signature[role], self.provider, threads, graph)

    def _try(self, role: str) -> None:
        """Run a graph once, so that a provider that opens it and cannot run it is found out."""
        arrays = self._first_inputs(role)
        if arrays is None:
            return
        try:
            self.sessions[role].run(arrays)
        except Exception as error:  # onnxruntime's errors have no common class below Exception
            failed = f"opened {self._files[role].path}, but could not run it: {reason_of(error)}"
            if self.provider != "cpu":
                raise ProviderError(f"{self.provider} {failed}; use 'cpu'") from error
            raise BundleError(f"onnxruntime {failed}; export the bundle again") from error

    def _first_inputs(self, role: str) -> Mapping[str, Array] | None:
        """Make inputs that a graph must take; None: nobody knows of any."""
        signature = self.manifest.signature[role]
        # A transformer takes one row of one token; fixed sizes leave no choice.
        if self.manifest.kind != "module" or all(isinstance(d, int) for spec in signature.inputs for d in spec.shape):
            self._check_sizes(signature)
            return least_inputs(signature)
        # A module may need more than one of anything, and says nowhere else how many.
        return next(iter(golden_inputs(self.manifest, role)), None)

    def _check_sizes(self, signature: Signature) -> None:
        """Refuse sizes that no memory holds before arrays of them are made."""
        for spec in signature.inputs:
            size = np.dtype(spec.dtype).itemsize
            for dim in _least_shape(spec.shape, signature):
                size *= dim
            if size > _MOST_BYTES:
                raise BundleError(
                    f"{self.manifest.folder}/manifest.json: the least {spec.name} would have {size} bytes; "
                    "export the bundle again"
                )


def least_inputs(signature: Signature) -> dict[str, Array]:
    """Make the least inputs that a transformer's graph takes: one row of one token, and nothing before it.

    Returns:
        By input name: every named dimension is 1, but that of past tokens 0; ids and floats are 0, masks 1.
    """
    return {
        spec.name: np.full(_least_shape(spec.shape, signature), 1 if "mask" in spec.name else 0, spec.dtype)
        for spec in signature.inputs
    }


def _least_shape(shape: tuple[Any, ...], signature: Signature) -> list[int]:
    least = signature.min_length
    return [dim if isinstance(dim, int) else least.get(dim, _least_size(dim)) for dim in shape]


def _least_size(dim: str) -> int:
    # Of "past_sequence + sequence" it is 0 + 1.
    return sum(part != MAY_BE_EMPTY for part in dim.split(SUM))
