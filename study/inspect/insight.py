"""What a look inside a bundle found: attention, units, and the residual stream, on one text.

Shapes: N heads, S queries, T keys.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from .attention import Head
from .residual import SubLayer
from .units import UnitStatistics

SCHEMA = 1
"""Version of the JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One attention on one text.

    Attributes:
        path: The module, as `named_modules` names it.
        over: Role of the stack whose tokens are the keys; another one's than its own in cross-attention.
        weights_NST: What each query gives to each key, float32 (N, S, T).
        heads: What that is, per head.
    """

    path: str
    over: str
    weights_NST: npt.NDArray[np.float32]
    heads: tuple[Head, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The hidden units of one feed-forward layer on one text, and how many there are."""

    path: str
    count: int
    units: UnitStatistics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """What one graph did.

    Attributes:
        role: "model", "encoder" or "decoder".
        ids: The tokens that it read, S.
        tokens: The same as text.
        attentions: In the order of the graph.
        feed_forwards: Likewise.
        start_S: Length of the residual stream before the first sub-layer, per token, float64; None: not found.
        sublayers: What each adds to it, in order.
    """

    role: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    start_S: npt.NDArray[np.float64] | None
    sublayers: tuple[SubLayer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Insight:
    """What a bundle did inside while it read one text.

    Attributes:
        bundle: Name of its folder.
        kind: "encoder", "decoder", "encoder-decoder" or "module".
        precision: Of the graphs that were looked into.
        activation: σ of its feed-forward layers, as its configuration names it; None: it names none.
        text: What was read.
        output: What an encoder-decoder made of it, greedily; None for others.
        stacks: One per graph.
        unseen: What could not be shown, and why.
    """

    bundle: str
    kind: str
    precision: str
    activation: str | None
    text: str
    output: str | None
    stacks: tuple[Stack, ...]
    unseen: tuple[str, ...]

    def to_json(self, *, weights: bool = False) -> dict[str, Any]:
        """Describe it for machines; per token means a list in the order of `tokens`, null what is infinite.

        {schema: 1, bundle, kind, precision, activation, text, output, unseen: [sentence, …], stacks: [{role, ids,
        tokens,
          attentions: [{op, over, heads: [{entropy (nats), relative_entropy (0 to 1, null: no query has a choice),
            strongest (a key per query), label ("": nothing stands out), share}], weights (with `weights`: N × S × T)}],
          feed_forwards: [{op, units, dead, saturated, near_zero, zero (shares of 1, as in `UnitStatistics`)}],
          residual: {start: {mean, tokens} or null, sublayers: [{op, norm: {mean, tokens}, added: {mean, tokens}}]}}]}
        """
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "kind": self.kind,
            "precision": self.precision,
            "activation": self.activation,
            "text": self.text,
            "output": self.output,
            "unseen": list(self.unseen),
            "stacks": [_stack_to_json(stack, weights) for stack in self.stacks],
        }

    @property
    def maps(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights of each attention, (N, S, T), by its path."""
        return {attention.path: attention.weights_NST for stack in self.stacks for attention in stack.attentions}


def _stack_to_json(stack: Stack, weights: bool) -> dict[str, Any]:
    return {
        "role": stack.role,
        "ids": list(stack.ids),
        "tokens": list(stack.tokens),
        "attentions": [
            {
                "op": attention.path,
                "over": attention.over,
                "heads": [_head_to_json(head) for head in attention.heads],
                **({"weights": attention.weights_NST.tolist()} if weights else {}),
            }
            for attention in stack.attentions
        ],
        "feed_forwards": [
            {"op": one.path, "units": one.count, **dataclasses.asdict(one.units)} for one in stack.feed_forwards
        ],
        "residual": {
            "start": None if stack.start_S is None else _per_token(stack.start_S),
            "sublayers": [
                {"op": one.path, "norm": _per_token(one.norm_S), "added": _per_token(one.added_S)}
                for one in stack.sublayers
            ],
        },
    }


def _head_to_json(head: Head) -> dict[str, Any]:
    values = dataclasses.asdict(head)
    return {"entropy": values.pop("entropy"), "relative_entropy": values.pop("relative"), **values}


def _per_token(values_S: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The mean and each token's, null where one is infinite: JSON has no infinity."""
    mean = float(values_S.mean())
    tokens = [value if np.isfinite(value) else None for value in values_S.tolist()]
    return {"mean": mean if np.isfinite(mean) else None, "tokens": tokens}
