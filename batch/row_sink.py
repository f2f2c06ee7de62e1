"""Tables of rows, written to a file one after the other: Parquet, Arrow, CSV and JSON lines."""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import date, time
from io import BufferedWriter
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from tfm.bundle import finite

_DIGITS = 9
"""By which a float32 is itself again."""

Write = Callable[[pa.Table], None]


@contextlib.contextmanager
def open_sink(file: BufferedWriter, kind: str, schema: pa.Schema) -> Iterator[Write]:
    """Write tables to a file.

    Args:
        file: Open.
        kind: Its format.
        schema: Of the tables.

    Yields:
        What to call with each table.
    """
    if kind == "parquet":
        with pq.ParquetWriter(file, schema) as parquet:
            yield lambda table: parquet.write_table(table, row_group_size=max(1, table.num_rows))
    elif kind == "arrow":
        with pa.ipc.new_file(file, schema) as arrow:
            yield arrow.write_table
    elif kind == "csv":
        with pa.csv.CSVWriter(file, flat(schema.empty_table()).schema) as csv:
            yield lambda table: csv.write_table(flat(table))
    else:
        yield lambda table: file.writelines(map(_line, rows_of(table)))


def flat(table: pa.Table) -> pa.Table:
    """Write the columns of a table that hold several values in a row as JSON: CSV has none such."""
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [None if value is None else _dump(value) for value in plain_values(table.column(place))]
            table = table.set_column(place, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
    return table


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Go through the rows of a table."""
    columns = [plain_values(column) for column in table.columns]
    for row in zip(*columns, strict=True):
        yield dict(zip(table.column_names, row, strict=True))


def plain_values(column: Any) -> list[Any]:
    """List the values of a column; of float32 vectors in the few digits that they have."""
    kind = column.type
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        # Parquet's texts may be anything; JSON's may not.
        return [value and value.decode("utf-8", "replace") for value in column.cast(pa.binary()).to_pylist()]
    if pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type):
        return [row and [x and float(f"{x:.{_DIGITS}g}") for x in row] for row in values]
    return values


def _line(row: dict[str, Any]) -> bytes:
    return _dump(row).encode("utf-8") + b"\n"


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_in_json)
    # Only where there is something infinite: to look at every number of every vector takes time.
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, default=_in_json)


def _in_json(value: Any) -> str:
    """Write what JSON has no type for: bytes in base64, dates and times by ISO 8601, all else as Python does."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if isinstance(value, date | time) else str(value)
