"""Bundles behind a port: OpenAI's API and its kin, batched as requests come. The extra "serve"."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .app import create_app
    from .serve_options import LOOPBACK, ServeOptions
    from .server import serve

__all__ = ["LOOPBACK", "ServeOptions", "create_app", "serve"]

__getattr__, __dir__ = lazily(
    __name__, {"app": "create_app", "serve_options": "LOOPBACK ServeOptions", "server": "serve"}
)
