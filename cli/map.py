"""`tfm map`: a file of rows through a bundle, resumable."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import InputError

from .streams import said_warnings, say, say_json, styled

# Importing it loads onnxruntime, which --help must not wait for.
if TYPE_CHECKING:
    from tfm.batch import MapReport

_AT_LEAST_1 = click.IntRange(min=1)
_INTERRUPTED = 130
_OF_MAPPER = ("task", "query", "query_column", "batch", "precision", "threads", "prefix")
_TAKES = {
    "embed": ("prompt", "dimensions", "normalize", "dtype", "ranges", "long_texts"),
    "classify": ("top_k", "long_texts"),
    "rank": ("prompt", "long_texts"),
    "generate": ("max_new_tokens", "num_beams"),
}
"""Task → settings that it takes."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--column", required=True, help="The column that holds the texts.")
@click.option("--task", type=click.Choice(list(_TAKES)), help="What to do [default: the first that the bundle has].")
@click.option("--query", help="Of rank: what each text is to answer.")
@click.option("--query-column", help="Of rank: the column that holds each row's own query.")
@click.option("--prompt", help="What goes in front of a text to embed: a name of the bundle's prompts, or words.")
@click.option("--dimensions", type=_AT_LEAST_1, help="Only the first so many dimensions of embeddings.")
@click.option("--normalize", is_flag=True, default=None, help="Embeddings of length 1.")
@click.option("--dtype", type=click.Choice(["float32", "int8", "uint8", "binary", "ubinary"]), help="Of embeddings.")
@click.option("--ranges", type=click.Path(path_type=Path), help="For int8: a .npy of embedding_ranges, (2, D).")
@click.option("--top-k", type=_AT_LEAST_1, help="So many labels of a row, as lists [default: 1, and no list].")
@click.option("--max-new-tokens", type=_AT_LEAST_1, help="At most so many new tokens [default: the bundle's].")
@click.option("--num-beams", type=_AT_LEAST_1, help="Search the likeliest text by so many beams.")
@click.option("--long-texts", type=click.Choice(["warn", "cut", "refuse"]), help="What becomes of them [warn].")
@click.option("--batch", type=_AT_LEAST_1, help="Most tokens of a batch; of generate, texts.")
@click.option("--chunk-rows", type=_AT_LEAST_1, help="Rows of a finished part [default: 2048; generate: 64].")
@click.option("--workers", type=_AT_LEAST_1, default=1, show_default=True, help="Processes, which share the weights.")
@click.option("--threads", type=_AT_LEAST_1, help="Threads of each [default: usable cores, over the workers].")
@click.option("--precision", default="auto", show_default=True, help="fp32, int8, …: one that the bundle has.")
@click.option("--prefix", default="", help="What the names of new columns begin with.")
@click.option("--on-error", type=click.Choice(["reject", "fail"]), default="reject", show_default=True)
@click.option("--restart", is_flag=True, help="Throw away what there is of OUTPUT, and begin anew.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON, for machines.")
def map_rows(bundle: Path, source: Path, target: Path, column: str, as_json: bool, **settings: Any) -> None:
    """Put each row of INPUT through BUNDLE: OUTPUT has its columns, and what became of it, in the same order.

    Both are Parquet, Arrow (.arrow, .feather), CSV or JSON lines (.jsonl), by their names. Interrupted at any moment,
    the same command goes on where it was. A row that is refused is named in OUTPUT.rejected.jsonl.
    """
    try:
        from tfm.batch import Mapper, map_file
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tfm"):
            raise
        raise InputError(f"tfm map needs the package {error.name}: pip install 'tfm-export[map]'") from error
    # Of the command, and no task's.
    of_mapper = {name: settings.pop(name) for name in _OF_MAPPER}
    of_job = {name: settings.pop(name) for name in ("chunk_rows", "workers", "on_error", "restart")}
    chosen = {name: value for name, value in settings.items() if value is not None}
    if "ranges" in chosen:
        chosen["ranges"] = _read_ranges(chosen["ranges"])
    mapper = Mapper(bundle=bundle, column=column, settings=chosen, **of_mapper)
    _check_settings(mapper.chosen_task, chosen)
    try:
        with said_warnings():
            report = map_file(mapper, source, target, **of_job, progress=True)
    except KeyboardInterrupt:
        say(f"tfm map: interrupted; finished parts are in {target}.parts, and the same command goes on", err=True)
        sys.exit(_INTERRUPTED)
    _print(report, as_json)


def _check_settings(task: str, names: Iterable[str]) -> None:
    """Refuse what the task does not take."""
    for name in names:
        if name not in _TAKES[task]:
            of = ", ".join(other for other, takes in _TAKES.items() if name in takes)
            raise click.UsageError(f"--{name.replace('_', '-')} is for {of}; the task here is {task}")


def _read_ranges(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--ranges: {path} cannot be read: {error}") from error


def _print(report: "MapReport", as_json: bool) -> None:
    if as_json:
        say_json(report.to_json())
        return
    kept = f", {report.kept:,} of them by an earlier run" if report.kept else ""
    say(f"{report.output}: {report.rows:,} rows{kept}; {report.task}, {report.precision}")
    if report.rejected:
        say(styled(f"{report.rejected:,} of them refused: {report.rejected_file}", fg="yellow"), err=True)
