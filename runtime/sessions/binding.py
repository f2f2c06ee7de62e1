"""Memory that a graph reads and writes again and again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..control import Control
from ..inputs.checks import Array
from .session import Session

# onnxruntime's wrapper looks this up in every run, and takes 26 µs to find out that it is not set (1.32)
_NO_CAPTURE = ("gpu_graph_id", "-1")


class Binding:
    """A graph's inputs and outputs, bound once: between runs the caller writes into the one and reads the other.

    Checks nothing: what goes in must be what the graph takes.
    """

    def __init__(self, session: Session, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Bind.

        Args:
            session: The graph's.
            inputs: Every input by name: contiguous arrays, or OrtValues where the graph runs.
            outputs: What is computed, by name, and the array or OrtValue that it is written into; one may be an input
                too, where the graph writes in place.
        """
        self._session, self._arrays = session, {k: v for k, v in inputs.items() if isinstance(v, np.ndarray)}
        self._size = sum(array.nbytes for array in self._arrays.values())
        self._binding = session.opened().io_binding()
        for name, value in inputs.items():
            if name not in self._arrays:
                self._binding.bind_ortvalue_input(name, value)
        self._bind_arrays()
        for name, value in outputs.items():
            if isinstance(value, np.ndarray):
                # By its address, so that the graph writes into this very array and nothing is copied.
                self._binding.bind_output(name, "cpu", 0, value.dtype, value.shape, _address(value))
            else:
                self._binding.bind_ortvalue_output(name, value)
        self._kept = inputs, outputs  # the memory must live as long as it is bound

    def put(self, name: str, array: Array) -> None:
        """Bind another array as an input, of another size perhaps."""
        self._arrays[name] = array
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, _address(array))

    def run(self, control: Control | None = None) -> None:
        """Run the graph; where it is ended before its time, what it was to write is undefined."""
        if self._session.provider != "cpu":  # onnxruntime copied them to the device when they were bound
            self._bind_arrays()
        session = self._session.opened()

        def call(options: Any) -> None:
            options.add_run_config_entry(*_NO_CAPTURE)
            session.run_with_iobinding(self._binding, options)

        self._session.execute(call, self._size, control)

    def _bind_arrays(self) -> None:
        for name, array in self._arrays.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, _address(array))


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
