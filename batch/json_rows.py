"""Rows of JSON lines, whose types nobody has declared: what a line cannot be is said of that line alone."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

_LINES = 1024
"""Read at once when types are looked for."""

_SURROGATE = b"\\ud"
"""How half a character is written, which JSON may hold and no text of Arrow's can."""


class JsonRows:
    """The rows of a file of JSON lines; blank lines are none.

    Attributes:
        schema: The columns, in the order in which they first come. One whose values are of several types is of texts:
            what is no text in it stands there as JSON.
        count: How many rows there are.
    """

    def __init__(self, path: Path, texts: Sequence[str], reason: str) -> None:
        """Look through the file once for its types.

        Args:
            path: The file.
            texts: Columns that are to be texts.
            reason: Name of the column that says why a row could not be read.
        """
        self._path, self._texts, self._reason = path, texts, reason
        self.count = 0
        types: dict[str, pa.DataType | None] = {}
        for lines in self._blocks(_LINES):
            rows = [row for line in lines if isinstance(row := _parse(line), dict)]
            self.count += len(lines)
            for name in dict.fromkeys(name for row in rows for name in row):
                found = _type_of([row.get(name) for row in rows])
                types[name] = _common(types[name], found) if name in types else found
        self._mixed = {name for name, kind in types.items() if kind is None}
        self.schema = pa.schema([(name, pa.string() if kind is None else kind) for name, kind in types.items()])

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        """Read the rows, so many at a time."""
        fields = [*self.schema, pa.field(self._reason, pa.string())]
        for lines in self._blocks(size):
            rows = [_parse(line) for line in lines]
            reasons = [self._why_not(row) for row in rows]
            known = [row if isinstance(row, dict) else {} for row in rows]
            columns = [self._column(field, known) for field in self.schema]
            yield pa.RecordBatch.from_arrays([*columns, pa.array(reasons, pa.string())], schema=pa.schema(fields))

    def _column(self, field: pa.Field, rows: list[dict[str, Any]]) -> pa.Array:
        values = [row.get(field.name) for row in rows]
        if field.name in self._mixed:
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(values, field.type)

    def _why_not(self, row: Any) -> str | None:
        if not isinstance(row, dict):
            return str(row)
        for name in self._texts:
            value = row.get(name)
            if value is not None and not isinstance(value, str):
                return f"{name} is {json.dumps(value)[:40]}, not a text"
        return None

    def _blocks(self, size: int) -> Iterator[list[bytes]]:
        with open(self._path, "rb") as file:
            lines = (line for line in file if not line.isspace())
            while block := list(itertools.islice(lines, size)):
                yield block


def _parse(line: bytes) -> dict[str, Any] | str:
    """Read a line; what is no row is a text that says why."""
    try:
        row = json.loads(line.decode("utf-8"))
        if _SURROGATE in line.lower():
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return "the line holds half a character (a lone surrogate)"
    # What is no UTF-8 is a ValueError too.
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {error}"
    return row if isinstance(row, dict) else f"the line is a {type(row).__name__} and no object of names and values"


def _type_of(values: list[Any]) -> pa.DataType | None:
    """Find the type of values; None: they have several."""
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None


def _common(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """Find the type that holds values of both; None: there is none."""
    if one is None or other is None:
        return None
    try:
        both = [pa.schema([("", kind)]) for kind in (one, other)]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
