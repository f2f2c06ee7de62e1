"""`tfm run`: put texts into a bundle and print what comes out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # importing it loads onnxruntime, which --help must not wait for
    import numpy as np
    from numpy.typing import NDArray

MOST_COMPARED = 12


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="At most so many new tokens [default: the bundle's]."
)
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True, help="fp32, int8, …: one that the bundle has.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within an operator [default: all usable cores].")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for machines.")
def run(
    bundle: Path,
    texts: tuple[str, ...],
    max_new_tokens: int | None,
    provider: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on each TEXT, or on the lines of standard input.

    A bundle that generates prints what it makes of each text; one that embeds, the embeddings and how similar they are.
    """
    from tfm.runtime import Encoder, Module, load

    lines = list(texts) or _lines_of_stdin()
    if not any(line.strip() for line in lines):
        raise click.UsageError(
            "every TEXT is blank" if texts else "there is no text: give TEXT after BUNDLE, or lines on standard input"
        )
    model = load(bundle, provider=provider, precision=precision, threads=threads)
    if isinstance(model, Module):
        raise click.UsageError("this bundle takes arrays, not texts: open it with tfm.runtime.load and call run()")
    threads_text = "1 thread" if model.threads == 1 else f"{model.threads} threads"
    click.secho(f"{model.provider} · {model.precision} · {threads_text}", dim=True, err=True)
    results: list[dict[str, Any]]
    if isinstance(model, Encoder):
        if max_new_tokens is not None:
            raise click.UsageError("--max-new-tokens is for bundles that generate; this one embeds")
        embeddings_BD = model.embed(lines)
        results = [{"text": t, "embedding": row.tolist()} for t, row in zip(lines, embeddings_BD, strict=True)]
    else:
        generation = model.manifest.generation
        if generation is not None and generation.split_on_whitespace:
            lines = [word for line in lines for word in line.split()]
        outputs = model.generate(lines, max_new_tokens)
        results = [{"text": text, "output": output} for text, output in zip(lines, outputs, strict=True)]

    if as_json:
        click.echo(json.dumps({"provider": model.provider, "precision": model.precision, "results": results}))
    elif isinstance(model, Encoder):
        _print_embeddings(lines, embeddings_BD)
    else:
        width = max(len(text) for text in lines)
        for text, output in zip(lines, outputs, strict=True):
            click.echo(f"{text:<{width}}  {output}")


def _lines_of_stdin() -> list[str]:
    return [] if sys.stdin.isatty() else [line for line in sys.stdin.read().splitlines() if line.strip()]


def _print_embeddings(lines: list[str], embeddings_BD: "NDArray[np.float32]") -> None:
    """Print each embedding's beginning, and the cosine similarity of each two of a few."""
    width = max(len(text) for text in lines)
    for number, (text, row) in enumerate(zip(lines, embeddings_BD.tolist(), strict=True), 1):
        beginning = " ".join(f"{value:+.4f}" for value in row[:4]) + (" …" if len(row) > 4 else "")
        click.echo(f"{number:>3}  {text:<{width}}  [{len(row)}]  {beginning}")
    if not 1 < len(lines) <= MOST_COMPARED:
        return
    norms_B = (embeddings_BD**2).sum(-1) ** 0.5
    unit_BD = embeddings_BD / norms_B.clip(min=1e-12)[:, None]
    click.echo("\ncosine similarity")
    click.echo("   " + "".join(f"{number:>8}" for number in range(1, len(lines) + 1)))
    for number, similarities in enumerate((unit_BD @ unit_BD.T).tolist(), 1):
        click.echo(f"{number:>3}" + "".join(f"{value:>8.3f}" for value in similarities))
