"""One graph of a bundle, ready to run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tfm.bundle import Signature, TensorSpec, brief, kind_of
from tfm.errors import BundleError, ClosedError, ForkError, InputError

from .. import control as controls
from ..control import Control
from ..inputs.checks import Array, InputChecks, nearest
from .providers import open_session
from .shared import OpenGraph

# Giving memory back takes a run of 1.0 ms (MiniLM, int8, 16 tokens, one thread) 0.1 ms more, so that it is asked for
# only after a run that took far longer: one of more than eight times the input, and of more than 4 KiB.
_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
_FAR_LARGER, _SMALL = 8, 512

T = TypeVar("T")

_ONNX_NAMES = {"float32": "float", "float64": "double"}


class Session:
    """An onnxruntime session whose inputs are checked. Safe to run from many threads at once.

    Attributes:
        provider: "cpu" or "cuda": where it runs.
        threads: Number of threads within an operator.
        signature: What the graph takes and gives.
    """

    def __init__(
        self, path: Path, signature: Signature, provider: str, threads: int, graph: OpenGraph | None = None
    ) -> None:
        """Open the graph at `path`, or take one that is open.

        Args:
            path: The ONNX file.
            signature: What the manifest says of it.
            provider: "cpu" or "cuda".
            threads: Number of threads within an operator.
            graph: What was opened of the file, on that provider and with so many threads; None: it is opened here.

        Raises:
            ProviderError: The provider does not run here.
            BundleError: onnxruntime cannot load the graph, or it is not the one that the signature describes.
        """
        self.provider, self.threads, self.signature = provider, threads, signature
        self._largest = 0  # bytes of input since memory was last given back
        self._path, self._forks = path, controls.forks()
        self._graph: OpenGraph | None = graph or OpenGraph(open_session(path, provider, threads))
        # Only the CPU's arena is named in _SHRINK, and one that is not there cannot be shrunk.
        self._shrinks = provider == "cpu" and self._graph.arena
        self.check = InputChecks(signature, empty_batch=True)
        self._outputs = [spec.name for spec in signature.outputs]
        try:
            self._compare(path)
        except UnicodeDecodeError as error:  # ONNX's names are bytes to onnxruntime
            raise BundleError(f"{path} has names that are no text: {error}; export it again") from error

    def run(
        self,
        arrays: Mapping[str, Any] | None = None,
        /,
        *,
        outputs: str | Sequence[str] | None = None,
        control: Control | None = None,
        **named: Any,
    ) -> dict[str, Array]:
        """Run the graph.

        Args:
            arrays: Inputs by name, of the signature's dtypes and shapes: numpy arrays, tensors, or lists where they
                convert without loss.
            outputs: Names of the outputs to compute; None: all.
            control: What may end the run before its time.
            **named: More inputs; an input whose name is one of these parameters' must be in `arrays`.

        Returns:
            The outputs by name; of no rows for inputs of no rows.

        Raises:
            InputError: An input that the graph must not see, one that is missing or given twice, an output that it does
                not have, or a control that is none.
            RunCancelledError: The control's token was cancelled.
            RunTimeoutError: The control's time is up.
            ClosedError: The session is closed.
            ForkError: The session was opened before this process was forked.
        """
        session = self.opened()
        if control is not None and not isinstance(control, Control):
            raise InputError(f"control must be a Control or None, but is {kind_of(control)}")
        names = self._outputs if outputs is None else self._chosen(outputs)
        feeds = self.check(named if arrays is None else _joined(arrays, named))
        if not names:
            return {}
        if (empty := self.check.without_rows(feeds)) is not None:
            return {name: empty[name] for name in names}
        size = sum([array.nbytes for array in feeds.values()])
        found = self.execute(lambda options: session.run(names, feeds, options), size, control)
        return dict(zip(names, found, strict=True))

    def _compare(self, path: Path) -> None:
        """Compare what the graph takes and gives with the signature."""
        session = self.opened()
        required, optional = _by_default(self.signature.inputs)
        names = {spec.name for spec in optional}
        # Inputs with a default are no inputs to onnxruntime.
        defaults = filter(lambda node: node.name in names, session.get_overridable_initializers() if names else ())
        for what, nodes, specs in (
            ("takes", session.get_inputs(), required),
            ("may take", list(defaults), optional),
            ("gives", session.get_outputs(), self.signature.outputs),
        ):
            # Sorted: inputs are given by name, in any order.
            found, said = sorted(map(_describe_node, nodes)), sorted(map(_describe_spec, specs))
            if found != said:
                raise BundleError(
                    f"{path} {what} {', '.join(found)}, but the manifest says {', '.join(said)}; export it again"
                )
            _compare_shapes(path, nodes, specs)

    def close(self) -> None:
        """Let go of the graph: runs that have begun finish, new ones are refused, memory goes with the last of them."""
        self._graph = None

    def _chosen(self, outputs: Any) -> list[str]:
        """Check names of outputs."""
        names = [outputs] if isinstance(outputs, str) else outputs
        if isinstance(names, (bytes, bytearray, memoryview)) or not isinstance(names, Collection):
            raise InputError(f"outputs must be a list of names, but is {kind_of(outputs)}")
        for name in names:
            if not isinstance(name, str) or name not in self._outputs:
                raise InputError(f"there is no output {brief(name)}; {nearest(name, self._outputs)}")
        return list(names)

    def execute(self, call: Callable[[Any], T], size: int, control: Control | None) -> T:
        """Run with RunOptions; after an input far larger than this one's `size` bytes, its memory is given back."""
        shrink = self._shrinks and self._largest > _FAR_LARGER * max(size, _SMALL)
        if shrink:
            self._largest = 0

        def run(options: Any) -> T:
            if shrink:
                options.add_run_config_entry(*_SHRINK)
            return call(options)

        try:
            return controls.run(run, control)
        except Exception as error:
            self._explain(error)
            raise
        finally:  # not before: a smaller run beside this one can give nothing back yet
            self._largest = max(self._largest, size)

    def _explain(self, error: Exception) -> None:
        """Return where an error of a run is not onnxruntime's own.

        Raises:
            InputError: It is: what the checks cannot know, such as sizes that do not fit together within the graph.
        """
        if _is_onnxruntimes(error):
            raise InputError(
                f"{self._path} could not be run on these inputs, though they pass its checks: an operator refused what "
                "it was to compute, or memory ran out; pass fewer or shorter rows, or sizes like those at export"
            ) from error

    def opened(self) -> Any:
        """Return the `onnxruntime.InferenceSession`, which a run holds on to so that `close` cannot take it away."""
        # Read once: `close` in another thread may take it away between two looks.
        graph = self._graph
        if self._forks != controls.forks():
            raise ForkError(
                f"{self._path} was opened before this process was forked, and its threads stayed in the parent; "
                'load the model in the child, or start the process with multiprocessing.get_context("spawn")'
            )
        if graph is None:
            raise ClosedError(f"{self._path} was closed; load the model again")
        return graph.session


def _by_default(specs: Sequence[TensorSpec]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Tell inputs that must be given from those that have a default."""
    return [spec for spec in specs if spec.default is None], [spec for spec in specs if spec.default is not None]


def _describe_node(node: Any) -> str:
    return f"{node.name} {node.type}"


def _describe_spec(spec: TensorSpec) -> str:
    return f"{spec.name} tensor({_ONNX_NAMES.get(spec.dtype, spec.dtype)})"


def _compare_shapes(path: Path, nodes: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    """Compare shapes where the graph says them: ranks, fixed sizes, and which sizes are not fixed; names may differ."""
    said = {spec.name: spec.shape for spec in specs}
    for node in nodes:
        found, expected = tuple(node.shape), said[node.name]
        pairs = zip(found, expected, strict=False)
        # No sizes at all may mean a scalar, or that the graph does not say.
        if found and (len(found) != len(expected) or any(map(_differ, pairs))):
            raise BundleError(
                f"{path}: {node.name} has shape ({_shape(found)}), but the manifest says ({_shape(expected)}); "
                "export it again"
            )


def _differ(sizes: tuple[Any, Any]) -> bool:
    """Whether a graph's size, an int, a name or None, is not what the manifest says, an int or a name."""
    found, said = sizes
    if found is None:
        return False
    return found != said if isinstance(found, int) else isinstance(said, int)


def _shape(dims: Sequence[Any]) -> str:
    return ", ".join("?" if dim is None else str(dim) for dim in dims)


def _joined(arrays: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Put inputs that were given by a mapping and by keywords together."""
    if not isinstance(arrays, Mapping):
        raise InputError(
            f"inputs are given by name, as run(x=…) or run({{'x': …}}), but what was given is {kind_of(arrays)}"
        )
    if twice := arrays.keys() & named.keys():
        raise InputError(f"the input {min(twice)!r} is given twice, in the mapping and by its name; leave one out")
    return {**arrays, **named}


def reason_of(error: BaseException) -> BaseException:
    """Look up what onnxruntime itself said of a run that failed, where the error is about one."""
    cause = error.__cause__
    return cause if isinstance(error, InputError) and cause is not None and _is_onnxruntimes(cause) else error


def _is_onnxruntimes(error: BaseException) -> bool:
    """Tell onnxruntime's errors, which have no common class, from one that a signal's handler raised meanwhile."""
    if type(error) is RuntimeError:  # with IO binding
        return str(error).startswith("Error in execution: ")
    return isinstance(error, MemoryError) or type(error).__module__.startswith("onnxruntime.")
