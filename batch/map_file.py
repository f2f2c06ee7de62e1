"""A file of rows through a bundle into another file: each row once, in order, however often it is interrupted."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import onnxruntime
import pyarrow as pa

from tfm.errors import InputError, TextWarning

from .lanes import Job, spread
from .mapper import Mapped, Mapper, NoText, texts_of
from .part_store import PartStore
from .row_sink import open_sink
from .row_source import REASON, RowSource, format_of, open_source
from .throughput import Throughput, Told

_ROWS, _ROWS_GENERATED = 2048, 64
"""Rows of a part: some seconds of work, which is what an interruption may cost."""

_SCHEMA = 1


@dataclass(frozen=True)
class MapReport:
    """What a job has done.

    Attributes:
        output: The file that was written.
        rows: How many it has.
        rejected: How many of them have no result.
        rejected_file: Which, and why; None: none was.
        kept: Rows that an earlier run had done.
        seconds: What this run took.
        task: What was done.
        precision: Of the graph that did it.
    """

    output: str
    rows: int
    rejected: int
    rejected_file: str | None
    kept: int
    seconds: float
    task: str
    precision: str

    def to_json(self) -> dict[str, Any]:
        """Give it as values of JSON."""
        new = self.rows - self.kept
        return {**asdict(self), "rows_per_second": round(new / self.seconds, 1) if self.seconds > 0 else None}


def map_file(
    mapper: Mapper,
    source: str | Path,
    target: str | Path,
    *,
    chunk_rows: int | None = None,
    workers: int = 1,
    on_error: Literal["reject", "fail"] = "reject",
    restart: bool = False,
    progress: bool | Told = False,
) -> MapReport:
    """Put the rows of a file through a bundle, into another file that has the columns of both.

    Finished parts are kept in a folder beside the output, its name and ".parts", until all of it is in place: the same
    call goes on where one was interrupted, and the output is to the byte what it would have been. A row that is refused
    has no result in it, and a line in the output's name and ".rejected.jsonl".

    Args:
        mapper: What is done with each row.
        source: Parquet (.parquet), Arrow (.arrow, .feather, .ipc), CSV (.csv) or JSON lines (.jsonl, .ndjson).
        target: Another one of these.
        chunk_rows: Rows of a part; None: 2,048, and of texts to generate 64.
        workers: Processes, which share the weights. The result does not depend on them.
        on_error: "reject": a row that is refused goes to the side file; "fail": it ends the job.
        restart: Whether to begin anew where there are parts of other work, or the output itself.
        progress: Called with how many rows are done, and of how many; True: a line on stderr.

    Returns:
        What was done.

    Raises:
        InputError: A file cannot be read, a column is missing, a setting is off, a row was refused and that is to be
            fatal; or there is the output already, or parts of other work.
        BundleError: The bundle does not open.
        ExportError: The output cannot be written.
        TfmError: A process died.
    """
    source, target = Path(source), Path(target)
    _check(source, target, workers, on_error)
    size = chunk_rows or (_ROWS_GENERATED if mapper.chosen_task == "generate" else _ROWS)
    rows = open_source(source, mapper.columns, size)
    mapper.check_schema(rows.schema)
    told: Told = Throughput() if progress is True else progress or (lambda done, total: None)
    work = _Work(mapper, rows, target, size, workers, on_error == "fail", told)
    store = PartStore(target)
    # Beside parts an output is to be replaced, as was said when they were begun.
    if target.exists() and not (restart or store.has_plan or store.is_done):
        raise complete(target)
    with store.held():
        return work.run(store, restart)


def _check(source: Path, target: Path, workers: int, on_error: str) -> None:
    if on_error not in ("reject", "fail"):
        raise InputError(f"on_error must be 'reject' or 'fail', but is {on_error!r}")
    if not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers must be an integer of at least 1, but is {workers!r}")
    format_of(source)
    format_of(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target} is the input itself; name another output")
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file")
    if not target.absolute().parent.is_dir():
        raise InputError(f"there is no folder {target.absolute().parent}")


@dataclass(frozen=True)
class _Work:
    """One job, looked through and checked."""

    mapper: Mapper
    source: RowSource
    target: Path
    size: int
    workers: int
    fails: bool
    told: Told

    def run(self, store: PartStore, restart: bool) -> MapReport:
        """Do what is left of it."""
        start = monotonic()
        if store.is_done and not restart:
            # A run was killed when it removed the parts; whether of this work its plan says.
            same = store.was(self.plan())
            store.finish()
            if not same:
                raise complete(self.target)
            return self._report(_count_lines(self.rejected_file), self.source.rows, monotonic() - start)
        # Parts without a plan are what is left of some that were being thrown away.
        if restart or not store.has_plan:
            store.throw_away()
        finished = store.begin(self.plan())
        kept = sum(self._length(number) for number in finished)
        self._map(store, finished, kept)
        rejected = self._assemble(store)
        store.finish()
        return self._report(rejected, kept, monotonic() - start)

    def plan(self) -> dict[str, Any]:
        """Say what the parts depend on."""
        found = self.source.path.stat()
        return {
            "schema": _SCHEMA,
            "bundle": self.mapper.model.manifest.digest,
            "input": {
                "format": format_of(self.source.path),
                "size": found.st_size,
                "modified": found.st_mtime_ns,
                "rows": self.source.rows,
                "columns": [f"{field.name}: {field.type}" for field in self.source.schema],
            },
            "options": {**self.mapper.describe(), "chunk rows": self.size},
            "versions": {"onnxruntime": onnxruntime.__version__, "pyarrow": pa.__version__},
        }

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return math.ceil(self.source.rows / self.size)

    @property
    def schema(self) -> pa.Schema:
        """Of the output."""
        fields = [*self.source.schema, *self.mapper.fields]
        return pa.schema(fields, metadata=self.source.schema.metadata)

    @property
    def rejected_file(self) -> Path:
        """Where the rows that were refused are named."""
        return self.target.with_name(f"{self.target.name}.rejected.jsonl")

    def _length(self, number: int) -> int:
        return min(self.size, self.source.rows - number * self.size)

    def _map(self, store: PartStore, finished: set[int], done: int) -> None:
        """Make the parts that are missing."""
        self.told(done, self.source.rows)
        if len(finished) == self.parts:
            return
        warned = False
        for job, mapped in spread(self.mapper, self._jobs(finished), self.workers):
            reasons = {job.number * self.size + place: why for place, why in sorted(mapped.reasons.items())}
            if self.fails and reasons:
                row, why = next(iter(reasons.items()))
                raise InputError(f"row {row} of {self.source.path}: {why}; finished parts are kept")
            store.write(job.number, self._joined(job, mapped), reasons)
            done += job.table.num_rows
            self.told(done, self.source.rows)
            # Of a million parts the first says enough.
            if mapped.warned and not warned:
                warned = True
                first = job.number * self.size
                place = f"of the rows {first} to {first + job.table.num_rows - 1}"
                warnings.warn(TextWarning(f"{place}, {mapped.warned[0]} (said once)"), stacklevel=4)

    def _jobs(self, finished: set[int]) -> Iterator[Job]:
        """Read what is missing, a part at a time."""
        number = -1
        for number, table in enumerate(self.source.chunks(self.size)):
            if number in finished:
                continue
            if table.num_rows != self._length(number):
                raise self._changed()
            reasons: list[str | None] = [None] * table.num_rows
            if REASON in table.column_names:
                reasons = table.column(REASON).to_pylist()
                table = table.drop_columns([REASON])
            items = self.mapper.items([texts_of(table.column(name)) for name in self.mapper.columns])
            known = [item if why is None else NoText(why) for item, why in zip(items, reasons, strict=True)]
            yield Job(number, table, known)
        if number + 1 != self.parts:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{self.source.path} was changed while it was read; --restart (restart=True) begins anew")

    def _joined(self, job: Job, mapped: Mapped) -> pa.Table:
        return pa.Table.from_arrays([*job.table.columns, *mapped.columns], schema=self.schema)

    def _assemble(self, store: PartStore) -> int:
        """Put the parts together, one in memory at a time; give how many rows were refused."""
        rejected = 0

        def put(stream: BufferedWriter) -> None:
            with open_sink(stream, format_of(self.target), self.schema) as write:
                for number in range(self.parts):
                    write(store.read(number)[0])

        def put_reasons(stream: BufferedWriter) -> None:
            nonlocal rejected
            for number in range(self.parts):
                for row, why in store.read(number)[1].items():
                    rejected += 1
                    stream.write(json.dumps({"row": row, "reason": why}).encode() + b"\n")

        # Before the output: where that is in place, all is.
        store.place(self.rejected_file, put_reasons)
        if not rejected:
            self.rejected_file.unlink()
        store.place(self.target, put)
        return rejected

    def _report(self, rejected: int, kept: int, seconds: float) -> MapReport:
        return MapReport(
            output=str(self.target),
            rows=self.source.rows,
            rejected=rejected,
            rejected_file=str(self.rejected_file) if rejected else None,
            kept=kept,
            seconds=round(seconds, 3),
            task=self.mapper.chosen_task,
            precision=self.mapper.model.precision,
        )


def complete(target: Path) -> InputError:
    """Say that nothing is left to do."""
    return InputError(f"{target} is there already, and complete; --restart (restart=True) makes it anew")


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(1 for _ in file)
