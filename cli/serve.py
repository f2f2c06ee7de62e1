"""`tfm serve`: bundles behind a port."""

import os
from pathlib import Path
from typing import Any

import click

from tfm.errors import InputError

from .streams import say, styled

_AT_LEAST_1 = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--api-key", multiple=True, help="Ask for this key, or any of several [default: $TFM_API_KEY, if set].")
@click.option("--allow-host", multiple=True, help="Answer to this name too [default: on loopback, its names alone].")
@click.option("--allow-origin", multiple=True, help="Let web pages of this origin ask; * is all [default: none].")
@click.option("--precision", default="auto", show_default=True, help="fp32, int8, …: one that the bundles have.")
@click.option("--threads", type=_AT_LEAST_1, help="Threads of a model [default: usable cores, over the workers].")
@click.option("--workers", type=_AT_LEAST_1, default=1, show_default=True, help="Processes, which share the weights.")
@click.option("--batch-tokens", type=_AT_LEAST_1, default=8192, show_default=True, help="Most in one call, roughly.")
@click.option("--max-rows", type=_AT_LEAST_1, default=16, show_default=True, help="Texts generated side by side.")
@click.option("--max-new-tokens", type=_AT_LEAST_1, default=4096, show_default=True, help="Most of one request.")
@click.option("--max-waiting", type=_AT_LEAST_1, default=200_000, show_default=True, help="Tokens that may wait.")
@click.option("--timeout", type=_POSITIVE, default=300.0, show_default=True, help="Seconds of a request.")
def serve(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    api_key: tuple[str, ...],
    workers: int,
    threads: int | None,
    **more: Any,
) -> None:
    """Serve BUNDLEs by OpenAI's API: embeddings, reranking, labels, completions and chats. The paths are at /docs.

    Requests are put together as they come, and what one decoder generates goes on side by side. It listens on this
    machine alone, unless --host says otherwise; then ask for a key.
    """
    try:
        from tfm.runtime import usable_cores
        from tfm.serve import LOOPBACK, ServeOptions
        from tfm.serve import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tfm"):
            raise
        raise InputError(f"tfm serve needs the package {error.name}: pip install 'tfm-export[serve]'") from error
    keys = api_key or tuple(filter(None, [os.environ.get("TFM_API_KEY")]))
    local = host in LOOPBACK
    options = ServeOptions(
        bundles=bundles,
        precision=more["precision"],
        threads=threads or max(1, usable_cores() // workers),
        api_keys=keys,
        hosts=(*LOOPBACK, *more["allow_host"]) if local else more["allow_host"],
        allow_origins=more["allow_origin"],
        batch_tokens=more["batch_tokens"],
        most_rows=more["max_rows"],
        most_new_tokens=more["max_new_tokens"],
        most_waiting=more["max_waiting"],
        timeout=more["timeout"],
    )
    if not local and not keys:
        say(styled(f"{host} can be reached from elsewhere, and no key is asked for: --api-key", fg="yellow"), err=True)
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{port}  Ctrl-C ends it", err=True)
    run(options, host=host, port=port, workers=workers)
