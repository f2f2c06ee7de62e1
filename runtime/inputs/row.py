"""One input of a task as a graph takes it: its token ids, and which text of a pair each of them is of."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """The ids of one input.

    Attributes:
        ids: Special ones included.
        types: Which text of a pair each id is of, by the tokenizer's own template; None: all are of the first.
        cut: Whether the text had more tokens than are read.
        place: Number of the caller's input that it is of, where several rows are; None: that of the row.
        encoding: The `tokenizers.Encoding` of it, which knows where in the text each token is; None: nobody asked.
    """

    ids: list[int]
    types: list[int] | None = None
    cut: bool = False
    place: int | None = None
    encoding: Any = None

    def __len__(self) -> int:
        return len(self.ids)


def row_of(encoding: Any, *, keep: bool = False) -> Row:
    """Make the row of a `tokenizers.Encoding`, which it has if that is kept."""
    types = encoding.type_ids
    return Row(
        ids=encoding.ids,
        types=types if any(types) else None,
        cut=bool(encoding.overflowing),
        encoding=encoding if keep else None,
    )


def is_pair(item: Any) -> bool:
    """Whether an input is two texts that are read together."""
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item)
