"""What the ops are called that are verified: attentions, softmaxes, activations, and the layers around them.

The linear layers, norms and embeddings are named and compared too, so that a fault is found where it is and not at the
next attention.
"""

import dataclasses
from typing import Literal

Kind = Literal["attention", "softmax", "activation", "linear", "norm", "embedding"]
ATTENTION: Kind = "attention"
SOFTMAX: Kind = "softmax"
ACTIVATION: Kind = "activation"
LINEAR: Kind = "linear"
NORM: Kind = "norm"
EMBEDDING: Kind = "embedding"

LAYERS = (LINEAR, NORM, EMBEDDING)
"""The kinds that have weights, and stand between the ops that are promised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpId:
    """One call of one attention, softmax, activation or layer.

    Attributes:
        kind: "attention" (a scaled dot-product attention), "softmax" (in an attention written by hand, where no other
            function shows it), "activation", or one of `LAYERS`.
        path: The module it is called in, as `named_modules` names it.
        call: How many calls of this kind that module made before it in one forward pass.
    """

    kind: Kind
    path: str
    call: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" {self.call}" if self.call else "")

    @classmethod
    def parse(cls, text: str) -> "OpId":
        """Read what `str` wrote."""
        # Not split(): a function called in no module has an empty path, which must stay a word.
        kind, path, *call = text.split(" ")
        return cls(kind=kind, path=path, call=int(call[0]) if call else 0)  # type: ignore[arg-type]
