"""Tables of rows, read from a file in order and a part at a time: Parquet, Arrow, CSV and JSON lines."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from tfm.errors import InputError

from .json_rows import JsonRows

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""How the names of files end → what is in them."""

REASON = "\0reason"
"""A column of a source's own, which says why a row could not be read; null where it could."""

_BLOCK = 16 << 20
"""Bytes of CSV that are read at once; no row is longer."""


@dataclass(frozen=True)
class RowSource:
    """A file of rows.

    Attributes:
        path: The file.
        schema: Its columns.
        rows: How many.
        batches: Reads them from the first one on; what a format cannot say of a row stands in a column `REASON`.
    """

    path: Path
    schema: pa.Schema
    rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]

    def chunks(self, size: int) -> Iterator[pa.Table]:
        """Read tables of so many rows each, the last of fewer.

        Raises:
            InputError: The file cannot be read.
        """
        held: list[pa.RecordBatch] = []
        count = 0
        with reading(self.path):
            for batch in map(_plain, self.batches()):
                while count + batch.num_rows >= size:
                    rest = size - count
                    yield pa.Table.from_batches([*held, batch.slice(0, rest)]).combine_chunks()
                    held, count, batch = [], 0, batch.slice(rest)
                # An empty rest would keep the whole batch that it is a slice of.
                if batch.num_rows:
                    held.append(batch)
                    count += batch.num_rows
            if held:
                yield pa.Table.from_batches(held).combine_chunks()


def format_of(path: Path) -> str:
    """Tell a file's format by its name.

    Raises:
        InputError: It has no such ending.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: nobody knows the format by this name; it must end in {', '.join(FORMATS)}")
    return kind


def open_source(path: Path, texts: Sequence[str], size: int) -> RowSource:
    """Look through a file of rows.

    Args:
        path: The file.
        texts: Names of the columns that are to be texts: of JSON lines each row is asked for itself.
        size: How many rows are wanted at a time.

    Raises:
        InputError: It is not there, or is no such file.
    """
    kind = format_of(path)
    if not path.is_file():
        raise InputError(f"{path} is no file")
    with reading(path):
        if kind == "jsonl":
            rows = JsonRows(path, texts, REASON)
            source = RowSource(path, rows.schema, rows.count, lambda: rows.batches(size))
        else:
            source = {"parquet": _parquet, "arrow": _arrow, "csv": _csv}[kind](path, size)
    names = source.schema.names
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}; rename one")
    return source


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """While a file is read: an error of pyarrow's or the system's is one of ours.

    Raises:
        InputError: It could not be read.
    """
    try:
        yield
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _parquet(path: Path, size: int) -> RowSource:
    with pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows

    def batches() -> Iterator[pa.RecordBatch]:
        # Without a buffer of the whole file: memory is that of a few row groups.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(batch_size=size)

    return RowSource(path, _plain_schema(schema), rows, batches)


def _arrow(path: Path, size: int) -> RowSource:
    del size  # a file's batches are as they were written

    def batches() -> Iterator[pa.RecordBatch]:
        # Read and not mapped, so that what was used is let go of.
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        schema = reader.schema
    return RowSource(path, _plain_schema(schema), sum(batch.num_rows for batch in batches()), batches)


def _csv(path: Path, size: int) -> RowSource:
    del size  # blocks of bytes are read
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    # In one thread: several hold as many blocks.
    read = pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False)
    with pa.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        names = reader.schema.names
    # CSV has no types: each column stays as it is written, "007" and all. Nothing is null, and "" is a text without
    # letters.
    convert = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )

    def batches() -> Iterator[pa.RecordBatch]:
        with pa.csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as reader:
            yield from reader

    schema = pa.schema([(name, pa.string()) for name in names])
    return RowSource(path, schema, sum(batch.num_rows for batch in batches()), batches)


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    kinds = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema]
    fields = [field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)]
    return pa.schema(fields, metadata=schema.metadata)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Write out the values of columns that are numbers of a dictionary, of which each part would have another."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_plain_schema(batch.schema))
