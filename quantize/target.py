"""What graphs are written for: an opset, the oldest onnxruntime that is to open them, standard operators alone."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from tfm.bundle import is_older
from tfm.errors import ConfigError

from .lowest_onnxruntime import needs_of, needs_of_node, newest_opened, releases

OPSETS = range(18, 26)
"""Opsets that can be asked for: torch's exporter writes 18 and later; onnxruntime 1.32 runs up to the last."""

OPSET = 23
"""The one that is used unless another is asked for, and the one that what is lowered for older ones is written in."""

PORTABLE = 21
"""That of standard operators alone: the first with weights in blocks, which readers have had longest."""

_STANDARD = ("", "ai.onnx")
_IR_VERSIONS = {18: 8, 19: 9, 20: 9}
"""IR version that came with an opset; `_IR` with all later ones that are written."""

_IR = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What graphs are written for; `target_of` makes one that holds together.

    Attributes:
        opset: Of ONNX's own operators.
        runtime: The oldest onnxruntime that is to open them, a release; "" for the one that is here.
        portable: Whether they are of ONNX's own operators alone.
    """

    opset: int = OPSET
    runtime: str = ""
    portable: bool = False

    @property
    def ir_version(self) -> int:
        """That of the files."""
        highest = _IR_VERSIONS.get(self.opset, _IR)
        return min(highest, newest_opened("ir", self.runtime)) if self.runtime else highest

    @property
    def has_room(self) -> bool:
        """Whether attention may write into a cache that is longer than what is in it, by GroupQueryAttention."""
        return self.has("GroupQueryAttention", 11, domain="com.microsoft", softcap=1.0)

    def has(self, op_type: str, inputs: int = 1, *, domain: str = "", **attributes: int | float) -> bool:
        """Tell whether a graph may have an operator, with so many inputs and these attributes."""
        values = [ir.Value(name=f"x{place}") for place in range(inputs)]
        node = ir.node(op_type, values, attributes, domain=domain)
        return next(self._against([node], {"": self.opset, domain: self.opset if domain == "" else 1}), None) is None

    def refusal(self, model: ir.Model) -> str | None:
        """Say why a graph is not what is asked for; None where it is."""
        if self.runtime:
            found = next((need for need in needs_of(model) if is_older(self.runtime, need.version)), None)
            if found is not None:
                return f"{found.what} needs onnxruntime {found.version}"
        return next(self._against(model.graph.all_nodes(), model.opset_imports), None)

    def _against(self, nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> Iterator[str]:
        for node in nodes:
            yield from self._not_in_onnx(node)
            if self.runtime:
                needs = (need for need in needs_of_node(node, opsets) if is_older(self.runtime, need.version))
                yield from (f"{need.what} needs onnxruntime {need.version}" for need in needs)

    def _not_in_onnx(self, node: ir.Node) -> Iterator[str]:
        since = _since(node, self.opset)
        if self.portable and since is None:
            yield f"{node.domain or 'ONNX'} has no standard operator {node.op_type}"
        elif node.domain in _STANDARD and since is None and onnx.defs.has(node.op_type):
            yield f"{node.op_type} needs opset {onnx.defs.get_schema(node.op_type).since_version}"


def _since(node: ir.Node, opset: int) -> int | None:
    """Since which opset ONNX has an operator as it is in this one; None: it has none."""
    if node.domain not in _STANDARD:
        return None
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, "").since_version)
    except onnx.defs.SchemaError:
        return None


def target_of(runtime: str | None = None, *, opset: int | None = None, portable: bool = False) -> Target:
    """Find the opset that is written for an onnxruntime, and refuse what does not go together.

    Args:
        runtime: A release of onnxruntime, as "1.17" or "1.17.3"; None: the one that is here.
        opset: Of `OPSETS`; None: the newest up to `OPSET` that the onnxruntime opens; standard operators: `PORTABLE`.
        portable: Whether graphs are to be of ONNX's own operators alone.

    Raises:
        ConfigError: There is no such release or opset, or the release does not open the opset.
    """
    release = "" if runtime is None else _release(runtime)
    if opset is not None and opset not in OPSETS:
        raise ConfigError(f"opset {opset} is not supported; choose one of {OPSETS.start} to {OPSETS[-1]}")
    newest = newest_opened("opset", release) if release else OPSETS[-1]
    if opset is not None and opset > newest:
        raise ConfigError(f"onnxruntime {release} opens opsets up to {newest}, not {opset}: leave out --opset")
    # Above OPSET nothing that is written gets faster, and fewer engines open it.
    usual = min(PORTABLE if portable else OPSET, newest)
    return Target(opset=usual if opset is None else opset, runtime=release, portable=portable)


def _release(version: str) -> str:
    """Give the first release that a version names: 1.24 is 1.24.1, as there is no 1.24.0."""
    known = releases()
    found = next((one for one in known if one == version or one.startswith(f"{version}.")), None)
    if found is None:
        lowest, highest = (".".join(one.split(".")[:2]) for one in (known[0], known[-1]))
        raise ConfigError(f"no onnxruntime {version!r} is known; choose one of {lowest} to {highest}")
    return found
