"""What a way to quantize is: a frozen dataclass in a file of its own, which `METHODS` of this room lists."""

import abc
import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

if TYPE_CHECKING:
    from ..calibration.observe import Observed
    from .hessian import Hessian
    from .ops import Op


@dataclasses.dataclass(frozen=True, kw_only=True)
class Situation:
    """What a search asks for methods for.

    Attributes:
        precision: "int8" or "int4".
        kind: The bundle's, such as "encoder" or "decoder".
        objective: What is to be least, "size" or the time ("speed").
        quick: Whether only forms that were often chosen are to be tried, since each takes time.
    """

    precision: str
    kind: str
    objective: str
    quick: bool = False


class Method(abc.ABC):
    """A way to quantize one weight and the nodes that read it; its fields are what a recipe tells of it.

    Attributes:
        form: What recipes call it.
    """

    form: ClassVar[str]

    @abc.abstractmethod
    def write(self, graph: ir.Graph, op: "Op", observed: Mapping[str, "Observed"], hessian: "Hessian | None") -> str:
        """Quantize an op in place; what nothing reads any more stays for `RemoveUnusedNodesPass`.

        Args:
            graph: The graph of the op.
            op: The op.
            observed: What goes into products, by the name of the value; empty where no data was seen.
            hessian: Second moments of those.

        Returns:
            What became of it, in words.

        Raises:
            QuantizeError: It cannot be quantized so.
        """

    @classmethod
    def proposals(cls, op: "Op", situation: Situation) -> Sequence["Method"]:
        """The settings of this method that a search tries for an op; none unless a method says so."""
        return ()

    @classmethod
    def fixed(cls, op: "Op", situation: Situation) -> "Method | None":
        """The setting of this method that is taken for an op where nothing is searched; None: not this method."""
        return None

    @property
    def needs_moments(self) -> bool:
        """Whether `write` reads second moments, which take a pass over the data."""
        return False

    @property
    def speed_class(self) -> str:
        """What methods that take the same time have in common."""
        return str(self)

    @classmethod
    def fits(cls, name: str, value: Any) -> bool:
        """Whether a field may have a value, which a recipe gives."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float32(Method):
    """Left as it is."""

    form: ClassVar = "float32"

    def __str__(self) -> str:
        return "float32"

    def write(self, graph: ir.Graph, op: "Op", observed: Mapping[str, "Observed"], hessian: "Hessian | None") -> str:
        """Leave it."""
        return str(self)


def method_to_json(method: Method) -> dict[str, Any]:
    """Give a method as JSON values: its form and every field."""
    return {"form": method.form, **dataclasses.asdict(method)}  # type: ignore[call-overload]


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    # `type`: to isinstance, true and false are integers.
    return type(value) in (int, float) and 0 <= value <= 1


def shown(value: object) -> str:
    """Give a value of a recipe as a message shows it: never more than a line."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 120, 120
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__}"
