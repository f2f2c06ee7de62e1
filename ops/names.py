"""What the ops are called that are verified."""

import dataclasses

from .kinds import is_layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpId:
    """One call of one attention, softmax, activation or layer.

    Attributes:
        kind: One of `KINDS`.
        path: The module it is called in, as `named_modules` names it.
        call: How many calls of this kind that module made before it in one forward pass.
    """

    kind: str
    path: str
    call: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" {self.call}" if self.call else "")

    @classmethod
    def parse(cls, text: str) -> "OpId":
        """Read what `str` wrote."""
        # Not split(): a function called in no module has an empty path, which must stay a word.
        kind, path, *call = text.split(" ")
        return cls(kind=kind, path=path, call=int(call[0]) if call else 0)

    @property
    def is_layer(self) -> bool:
        """Whether it is one of the layers around the promised ops."""
        return is_layer(self.kind)
