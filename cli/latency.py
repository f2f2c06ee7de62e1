"""`tfm latency`: how fast a bundle is on this machine, and beside the checkpoint that it came from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError, InputError

from .outputs import check_file, written
from .streams import say_json

# Importing it loads onnxruntime, which --help must not wait for.
if TYPE_CHECKING:
    from tfm.latency import Job


def _counts(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    """Read integers of at least 1, by commas: each once, in their order."""
    try:
        counts = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"{value!r} is no list of integers of at least 1, such as 1,8")
    return counts


_COUNTS: dict[str, Any] = {"callback": _counts, "metavar": "N,N,…", "show_default": True}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--ckpt", type=click.Path(path_type=Path), help="Time eager PyTorch and torch.compile too, of this one.")
@click.option("--batch-size", default="1,8", help="Numbers of rows.", **_COUNTS)
@click.option("--seq", default="16,128", help="Tokens of a row, prompt or source.", **_COUNTS)
@click.option("--threads", default="1", help="Threads, pinned to as many cores.", **_COUNTS)
@click.option("--precision", help="What to time, by commas [default: all that the bundle has].")
@click.option("--new-tokens", type=click.IntRange(min=2), default=16, show_default=True, help="Tokens to generate.")
@click.option("--text", type=click.Path(path_type=Path), help="A text per line to measure throughput on.")
@click.option("--no-corpus", is_flag=True, help="Leave the throughput on many texts out.")
@click.option("--rounds", type=int, default=15, show_default=True, help="Turns of every engine, at least 6.")
@click.option("--seconds", type=float, default=0.2, show_default=True, help="Length of a turn.")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Runs before the first turn.")
@click.option("--starts", type=click.IntRange(min=0), default=5, show_default=True, help="Fresh processes per engine.")
@click.option("--no-compile", is_flag=True, help="With --ckpt: leave torch.compile out, which takes minutes.")
@click.option("--model", metavar="MODULE:FUNCTION", help="As in tfm-export; in place of --ckpt, or with it.")
@click.option("--config", type=click.Path(path_type=Path), help="With --ckpt: as in tfm-export.")
@click.option("--nhead", type=click.IntRange(min=1), help="With --ckpt: as in tfm-export.")
@click.option("--html", type=click.Path(path_type=Path), help="Draw the figures into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
def latency(
    bundle: Path,
    ckpt: Path | None,
    batch_size: tuple[int, ...],
    seq: tuple[int, ...],
    threads: tuple[int, ...],
    precision: str | None,
    new_tokens: int,
    text: Path | None,
    no_corpus: bool,
    rounds: int,
    seconds: float,
    warmup: int,
    starts: int,
    html: Path | None,
    as_json: bool,
    **eager: Any,
) -> None:
    """Time every precision of BUNDLE, run as an app runs it: each in a process of its own, taking turns.

    That needs neither torch nor the checkpoint; with --ckpt all are compared with eager PyTorch, else with fp32. What
    the figures do not show is not claimed. What everything means: docs/latency.md.
    """
    if text is not None and no_corpus:
        raise click.UsageError("--text and --no-corpus exclude each other")
    # Refused now, not after minutes of measuring.
    if html is not None:
        _check_drawing(html)
    # Before the import below: wrong usage is told at once.
    engines, left_out = _engines(ckpt, **eager)
    from tfm.latency import LatencyOptions, measure_latency

    options = LatencyOptions(
        precisions=None if precision is None else [name.strip() for name in precision.split(",") if name.strip()],
        batch_sizes=batch_size,
        lengths=seq,
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        warmup=warmup,
        new_tokens=new_tokens,
        texts=None if text is None else _lines_of(text),
        corpus=not no_corpus,
        starts=starts,
    )
    report = measure_latency(bundle, options, engines=engines, left_out=left_out, progress=True)
    if html is not None:
        from tfm.latency import write_latency

        with written(html):
            write_latency(html, report.to_dict())
    if as_json:
        say_json(report.to_dict())
        return
    from .latency_tables import print_latency

    print_latency(report)


def _engines(
    ckpt: Path | None, *, no_compile: bool, model: str | None, config: Path | None, nhead: int | None
) -> "tuple[dict[str, Job], dict[str, str]]":
    """Make eager's engines, where they are asked for; and what is left out, and why."""
    if ckpt is None and model is None:
        # An option without effect is refused, as the figures would not be what was asked for.
        given = {"--config": config is not None, "--nhead": nhead is not None, "--no-compile": no_compile}
        for name, is_given in given.items():
            if is_given:
                raise click.UsageError(f"{name} is for comparing with a checkpoint: give --ckpt too")
        return {}, {}
    try:
        from tfm.export import eager_engines
    except ModuleNotFoundError as error:
        raise ExportError(f"--ckpt needs the package {error.name}: pip install 'tfm-export[export]'") from error
    return eager_engines(ckpt, model=model, config=config, nhead=nhead, compiled=not no_compile)


def _lines_of(file: Path) -> list[str]:
    try:
        # With or without the mark that editors of Windows write.
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text: {error}; give a text file in UTF-8") from error
    return [line for line in lines if line.strip()]


def _check_drawing(html: Path) -> None:
    """Refuse now what would fail after all the measuring."""
    try:
        from tfm.latency import write_latency  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError(f"--html needs the package {error.name}: pip install 'tfm-export[quantize]'") from error
    check_file("--html", html)
