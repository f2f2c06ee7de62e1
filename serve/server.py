"""The process: uvicorn around the app, one or several that share mapped weights."""

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from tfm.errors import InputError

from .app import create_app
from .serve_options import ServeOptions

_TOLD = "TFM_SERVE"
"""Environment variable by which processes that are started are told their options: keys are in no command line."""


def serve(options: ServeOptions, *, host: str = "127.0.0.1", port: int = 8080, workers: int = 1) -> None:
    """Serve until a signal ends it; what runs then is finished.

    Args:
        options: What, and how.
        host: Address to listen on.
        port: 0: any that is free.
        workers: Processes; each opens the bundles, whose weights they share.

    Raises:
        TfmError: A bundle does not open.
        InputError: uvicorn is not installed, or there are no such workers.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise InputError("tfm serve needs uvicorn: pip install 'tfm-export[serve]'") from error
    if workers < 1:
        raise InputError(f"workers must be at least 1, but is {workers}")
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": int(options.timeout),
    }
    _log_lines()
    if workers == 1:
        uvicorn.run(create_app(options), **settings)
        return
    # Processes are started anew and not forked, as onnxruntime's threads do not survive a fork.
    os.environ[_TOLD] = json.dumps(asdict(options), default=str)
    try:
        uvicorn.run("tfm.serve.server:app_of_environment", factory=True, workers=workers, **settings)
    finally:
        os.environ.pop(_TOLD, None)


def app_of_environment() -> Starlette:
    """Make the app of a process that another has started."""
    told: Mapping[str, Any] = json.loads(os.environ[_TOLD])
    _log_lines()
    return create_app(ServeOptions(**{**told, "bundles": [Path(bundle) for bundle in told["bundles"]]}))


def _log_lines() -> None:
    """Write a line of JSON for each request, and what else there is to say, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("tfm.serve", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO if name == "tfm.serve" else logging.WARNING)
