"""A bundle that rows of tables are put through, here or in the workers of Ray, Spark and Polars."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tfm.errors import BundleError, InputError, TextWarning
from tfm.runtime import Model, load

from .task_columns import TASKS, TaskColumns, task_columns

REJECTED = "rejected"
"""The column that says why a row has no result."""


@dataclass(frozen=True)
class Mapped:
    """What became of some rows.

    Attributes:
        columns: One array for each column that the task adds.
        reasons: Place of a row that was refused → why.
        warned: What the runtime had to say, as of texts that were cut.
    """

    columns: list[pa.Array]
    reasons: dict[int, str]
    warned: list[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mapper:
    """Puts rows of tables through a bundle, which is opened in each process that it comes to when it is first called.

    Called with a table of pyarrow, it gives that table with the columns of the task behind it, and last `rejected`: why
    a row has no result, null where it has one.

    Attributes:
        bundle: Its folder or .zip, on each machine the same.
        column: The one that holds the texts.
        task: "embed", "classify", "rank" or "generate"; None: the first of them that the bundle has.
        settings: What the task's method takes besides, such as `prompt`, `dtype`, `top_k`, `max_new_tokens`.
        query: Of rank: what each text is to answer.
        query_column: Of rank: the column that holds each row's own query.
        batch: Most tokens of a batch; of generate, texts; None: as the task has it.
        precision: As `tfm.load` takes it; so are `threads`.
        threads: See `precision`.
        prefix: What the names of the columns that are added begin with.
        digest: Of the bundle's manifest: another is refused; None: any.
    """

    bundle: str | Path
    column: str
    task: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    query: str | None = None
    query_column: str | None = None
    batch: int | None = None
    precision: str = "auto"
    threads: int | None = None
    prefix: str = ""
    digest: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what was asked for; the other process opens the bundle itself."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Put a table's rows through the bundle.

        Raises:
            InputError: A column is missing, holds no texts, or is there already; or a setting is off.
        """
        self.check_schema(table.schema, self.prefix + REJECTED)
        given = [texts_of(table.column(name)) for name in self.columns]
        mapped = self.map_rows(self.items(given))
        # What could not be read as a text has its reason from there.
        reasons = [mapped.reasons.get(place) for place in range(table.num_rows)]
        for added, column in zip(self.fields, mapped.columns, strict=True):
            table = table.append_column(added, column)
        for said in mapped.warned:
            warnings.warn(TextWarning(said), stacklevel=2)
        return table.append_column(self.prefix + REJECTED, pa.array(reasons, pa.string()))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read."""
        return (self.column,) if self.query_column is None else (self.query_column, self.column)

    @cached_property
    def model(self) -> Model:
        """The bundle, open.

        Raises:
            TfmError: It does not open, or is another than was meant.
        """
        model = load(self.bundle, precision=self.precision, threads=self.threads)
        if self.digest is not None and model.manifest.digest != self.digest:
            raise BundleError(f"{self.bundle} is not the bundle that this work began with; put that one in its place")
        return model

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns that are added."""
        return self._ready.fields

    @cached_property
    def chosen_task(self) -> str:
        """The task that was asked for, or the first that the bundle has.

        Raises:
            InputError: It has none, or a query is missing or of no use.
        """
        task = self.task or next((name for name in self.model.tasks if name in TASKS), None)
        if task is None:
            raise InputError(f"{self.bundle} has no task for rows; there are: {', '.join(TASKS)}")
        if (task == "rank") != ((self.query is None) != (self.query_column is None)):
            raise InputError(
                "rank needs either a query or a column of queries"
                if task == "rank"
                else f"a query is for rank; the task here is {task}"
            )
        return task

    @cached_property
    def _ready(self) -> TaskColumns:
        settings = dict(self.settings)
        if self.batch is not None:
            settings["batch_size" if self.chosen_task == "generate" else "batch_tokens"] = self.batch
        return task_columns(self.model, self.chosen_task, settings, self.prefix)

    def check_schema(self, schema: pa.Schema, *more: str) -> None:
        """Refuse a table that has no such texts, or a column in the place of one that is added, one of `more` too.

        Raises:
            InputError: It is so.
        """
        for name in self.columns:
            if name not in schema.names:
                raise InputError(f"there is no column {name!r}; there are: {', '.join(schema.names)}")
            kind = schema.field(name).type
            if not _is_text(kind):
                raise InputError(f"the column {name!r} holds {kind}, not texts")
        for name in (*(added.name for added in self.fields), *more):
            if name in schema.names:
                raise InputError(f"there is a column {name!r} already; name the new ones otherwise (prefix, --prefix)")

    def items(self, given: Sequence[Sequence[Any]]) -> list[Any]:
        """Make the task's inputs of the texts of the columns that are read."""
        if self.query_column is not None:
            return list(zip(*given, strict=True))
        return [(self.query, text) for text in given[0]] if self.query is not None else list(given[0])

    def map_rows(self, items: Sequence[Any]) -> Mapped:
        """Put inputs through the bundle.

        Args:
            items: As `items` makes them: texts, or pairs of a query and a text; what is none in them is refused.
        """
        results: list[Any] = [None] * len(items)
        reasons = {place: why for place, item in enumerate(items) if (why := _why_not(item)) is not None}
        places = [place for place in range(len(items)) if place not in reasons]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TextWarning)
            self._fill(results, reasons, items, places)
        said = [str(one.message) for one in caught if issubclass(one.category, TextWarning)]
        return Mapped(self._ready.arrays(results), reasons, said)

    def _fill(self, results: list[Any], reasons: dict[int, str], items: Sequence[Any], places: list[int]) -> None:
        """Compute the results of rows; one that is refused is found by halves, and keeps no other from its own."""
        if not places:
            return
        try:
            found = self._ready.call([items[place] for place in places])
        except InputError as error:
            if len(places) == 1:
                reasons[places[0]] = str(error).replace("inputs[0]", "the text")
                return
            # Texts are read before anything is run, so that a call that is refused costs little.
            half = len(places) // 2
            self._fill(results, reasons, items, places[:half])
            self._fill(results, reasons, items, places[half:])
            return
        for place, result in zip(places, found, strict=True):
            results[place] = result

    def describe(self) -> dict[str, Any]:
        """Say what results depend on, as values of JSON: neither where the bundle lies nor on how many threads."""
        settings = {name: _plain(value) for name, value in self.settings.items()}
        return {
            "task": self.chosen_task,
            "column": self.column,
            "query": self.query,
            "query column": self.query_column,
            "prefix": self.prefix,
            "batch": self.batch,
            "precision": self.model.precision,
            "settings": settings,
        }


@dataclass(frozen=True)
class NoText:
    """What stands where a text could not be read.

    Attributes:
        reason: Why.
    """

    reason: str


def texts_of(column: Any) -> list[Any]:
    """List the texts of a column: None where it is null, and `NoText` where it is no UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # Each text for itself only where one of them is none.
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_text(scalar) for scalar in column]
    return found


def _text(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return NoText(f"it is not UTF-8: {error.reason} at byte {error.start}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # A column of nulls alone has no type; each of its rows is refused for itself.
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)


def _why_not(item: Any) -> str | None:
    """Say why an input cannot be put through at all; None: it can."""
    for part in item if isinstance(item, tuple) else (item,):
        if part is None:
            return "it is null"
        if isinstance(part, NoText):
            return part.reason
        if not isinstance(part, str):
            return f"it is a {type(part).__name__}, not a text"
    return None


def _plain(value: Any) -> Any:
    """Stand in for a setting that JSON has no value for."""
    if not isinstance(value, np.ndarray):
        return value
    return {"shape": list(value.shape), "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}
