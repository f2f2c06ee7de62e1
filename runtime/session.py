"""One graph of a bundle, ready to run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tfm.errors import BundleError, InputError

from .checks import Array, InputChecks, nearest
from .manifest import Signature
from .providers import open_session

_ONNX_NAMES = {"float32": "float", "float64": "double"}


class Session:
    """An onnxruntime session whose inputs are checked. Safe to run from many threads at once.

    Attributes:
        provider: "cpu" or "cuda": where it runs.
        threads: Number of threads within an operator.
        signature: What the graph takes and gives.
    """

    def __init__(self, path: Path, signature: Signature, provider: str, threads: int) -> None:
        """Open the graph at `path`.

        Raises:
            ProviderError: The provider does not run here.
            BundleError: onnxruntime cannot load the graph, or it is not the one that the signature describes.
        """
        self.provider, self.threads, self.signature = provider, threads, signature
        self._session = open_session(path, provider, threads)
        self.check = InputChecks(signature)
        self._outputs = [spec.name for spec in signature.outputs]
        for what, nodes, specs in (
            ("takes", self._session.get_inputs(), signature.inputs),
            ("gives", self._session.get_outputs(), signature.outputs),
        ):
            found = sorted(f"{node.name} {node.type}" for node in nodes)
            said = sorted(f"{spec.name} tensor({_ONNX_NAMES.get(spec.dtype, spec.dtype)})" for spec in specs)
            if found != said:
                raise BundleError(
                    f"{path} {what} {', '.join(found)}, but the manifest says {', '.join(said)}; export it again"
                )

    def run(self, *, outputs: Sequence[str] | None = None, **arrays: Any) -> dict[str, Array]:
        """Run the graph.

        Args:
            outputs: Names of the outputs to compute; None: all.
            **arrays: Every input by name, of the signature's dtypes and shapes; lists where they convert without loss.

        Returns:
            The outputs by name.

        Raises:
            InputError: An input that the graph must not see, or an output that it does not have.
        """
        names = self._outputs if outputs is None else list(outputs)
        for name in names:
            if name not in self._outputs:
                raise InputError(f"there is no output {name!r}; {nearest(str(name), self._outputs)}")
        feeds = self.check(arrays)
        return dict(zip(names, self._session.run(names, feeds) if names else [], strict=True))

    def run_bound(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], into: Mapping[str, Any] = MappingProxyType({})
    ) -> list[Any]:
        """Run the graph on checked inputs, caches staying where the graph runs.

        Args:
            feeds: Every input by name, as a numpy array or an OrtValue.
            outputs: Names of the outputs to compute; those named present.… stay on the device.
            into: OrtValues that outputs are written into, by name: an input's own, where the graph writes in place.

        Returns:
            The outputs, as OrtValues, in that order.
        """
        binding = self._session.io_binding()
        for name, value in feeds.items():
            bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
            bind(name, value)
        for name in outputs:
            if name in into:
                binding.bind_ortvalue_output(name, into[name])
            else:
                binding.bind_output(name, self.provider if name.startswith("present.") else "cpu")
        self._session.run_with_iobinding(binding)
        result: list[Any] = binding.get_outputs()
        return result
