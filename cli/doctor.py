"""`tfm doctor`: what runs on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .conclude import conclude
from .streams import say, styled

# Importing it loads onnxruntime, which --help must not wait for.
if TYPE_CHECKING:
    from tfm.runtime import BundleState, CanaryState, Diagnosis

_MARKS = {"right": "✓", "wrong": "✗", "missing": "—"}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for machines.")
@click.pass_context
def doctor(context: click.Context, bundle: Path | None, as_json: bool) -> None:
    """Print what runs on this machine, for a report of a bug; with BUNDLE, what of it would run.

    Exit code 1 where nothing runs, an op computes something else than it should, or BUNDLE does not open.
    """
    from tfm.runtime import diagnose

    diagnosis = diagnose(bundle)
    conclude(context, diagnosis, diagnosis.to_dict() if as_json else None, lambda: _print(diagnosis))


def _print(diagnosis: "Diagnosis") -> None:
    limit = "no quota" if diagnosis.quota is None else f"a quota of {diagnosis.quota:g}"
    has = [name for name, there in diagnosis.features.items() if there]
    lacks = [name for name, there in diagnosis.features.items() if not there]
    rows = [
        ("system", f"{diagnosis.system}, Python {diagnosis.python}"),
        ("onnxruntime", f"{diagnosis.onnxruntime}, with {', '.join(diagnosis.available)}"),
        ("build", diagnosis.build.removeprefix("ORT Build Info: ")),
        ("processor", diagnosis.processor),
        ("it has", " ".join(has) or "nothing that its system tells of"),
        ("it lacks", " ".join(lacks) or "—"),
        ("8-bit products", _SATURATION[diagnosis.saturates]),
        ("cores", f"{diagnosis.cores}, {diagnosis.usable} for this process, {limit}: {_threads(diagnosis.threads)}"),
    ]
    rows += [(one.name, "✓ runs" if one.runs else f"— {one.why}") for one in diagnosis.providers]
    if diagnosis.bundle is not None:
        rows += _bundle(diagnosis.bundle)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:<{width}}  {text}")
    if diagnosis.canaries:
        say()
        _print_canaries(diagnosis.canaries)
    say()
    faults = diagnosis.faults()
    if not faults:
        count = sum(canary.verdict == "right" for canary in diagnosis.canaries)
        ran = f": {count} of {len(diagnosis.canaries)} families of ops ran, and all that ran are right"
        say(styled("✓ works here", fg="green", bold=True), ran)
        return
    say(styled("✗ does not work here:", fg="red", bold=True))
    for fault in faults:
        say(styled(f"  {fault}", fg="red"))


_SATURATION = {True: "saturate, so exact kernels are asked for", False: "are exact", None: "are unknown"}


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _bundle(bundle: "BundleState") -> list[tuple[str, str]]:
    names: dict[str, list[str]] = {}
    for name, version in bundle.needs.items():
        names.setdefault(version, []).append(name)
    # Precisions that need the same version share a line.
    needs = [("it needs", f"onnxruntime >= {version} for {', '.join(those)}") for version, those in names.items()]
    if bundle.why is not None:
        return [("bundle", f"✗ {bundle.path}"), *needs]
    assert bundle.threads is not None
    runs = f"{bundle.kind}, runs {bundle.precision} on {bundle.device} with {_threads(bundle.threads)}"
    skipped = [(f"not on {name}", why) for name, why in (bundle.skipped or {}).items()]
    return [("bundle", f"✓ {bundle.path}: {runs}"), *skipped, *needs]


def _canary_row(one: "CanaryState") -> tuple[str, str, str, str, str, str]:
    off = "—" if one.max_abs is None else f"{one.max_abs:.1e}"
    # A node that CUDA has no kernel for runs on the CPU, which is right, but slow.
    elsewhere = [name for name in one.on if name != one.provider]
    note = f"its nodes are on {', '.join(elsewhere)}" if elsewhere else ""
    if one.why is not None:
        note = " ".join(one.why.split())
    return _MARKS[one.verdict], one.family, one.provider, off, f"{one.limit:.1e}", note


def _print_canaries(canaries: "tuple[CanaryState, ...]") -> None:
    rows = [("", "ops", "on", "off by", "limit", ""), *map(_canary_row, canaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for mark, family, on, off, limit, note in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip((mark, family, on), widths, strict=False)]
        say(" ".join([*cells, f"{off:>{widths[3]}}", f"{limit:>{widths[4]}}", note]).rstrip())
