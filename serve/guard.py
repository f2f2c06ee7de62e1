"""What stands in front of every route: keys, limits, deadlines, the log, and the end of what nobody waits for."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from .metrics import Metrics
from .refusals import RefusedError, error_body, unforeseen
from .serve_options import ServeOptions

Message = MutableMapping[str, Any]
Send = Callable[[Message], Any]

LOG = logging.getLogger("tfm.serve")
_OPEN = ("/", "/health", "/docs", "/openapi.json")
"""Paths that need no key: they tell nothing of anybody."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, options: ServeOptions, metrics: Metrics) -> None:
        self._app, self._options, self._metrics = app, options, metrics
        self._keys = [f"Bearer {key}".encode() for key in options.api_keys]

    async def __call__(self, scope: Message, receive: Callable[[], Any], send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, scope, receive, send, self._options, self._metrics).run(self._refusal(scope))

    def _refusal(self, scope: Message) -> RefusedError | None:
        """Look at what can be known before the body is read."""
        headers = dict(scope["headers"])
        # Without its port; an address of IPv6 stands in brackets.
        host = headers.get(b"host", b"").decode("latin-1").rsplit("]", 1)[0].lstrip("[")
        name = host if host.count(":") > 1 else host.partition(":")[0]
        if self._options.hosts and name.lower() not in self._options.hosts:
            return RefusedError(421, "this server is not asked by that name; see --allow-host", "wrong_host")
        # All are compared, each in a time that does not tell how much of it was right.
        given = headers.get(b"authorization", b"")
        known = [hmac.compare_digest(given, key) for key in self._keys]
        if self._keys and not any(known) and scope["path"] not in _OPEN:
            return RefusedError(401, "a key is missing or wrong: Authorization: Bearer …", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._options.most_body:
            return self._too_large()
        return None

    def _too_large(self) -> RefusedError:
        return too_large(self._options.most_body)


def too_large(most: int) -> RefusedError:
    """Refuse a body."""
    return RefusedError(413, f"the body is larger than {most} bytes", "too_large")


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, app: Any, scope: Message, receive: Any, send: Send, options: ServeOptions, metrics: Metrics
    ) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._options, self._metrics = options, metrics
        self._status, self._read, self._ended = 0, 0, False
        self._whole, self._gone = asyncio.Event(), asyncio.Event()

    async def run(self, refusal: RefusedError | None) -> None:
        began = time.perf_counter()
        try:
            if refusal is not None:
                await self._answer(refusal)
            else:
                await self._serve()
        finally:
            self._log(time.perf_counter() - began)

    async def _serve(self) -> None:
        work = asyncio.create_task(self._app(self._scope, self._take, self._give))
        # Two tasks, as an app that computes does not notice by itself that its client is gone.
        watch = asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait({work, watch}, timeout=self._options.timeout, return_when="FIRST_COMPLETED")
            if work not in done:
                # Whoever is gone, or has had his time, is worked for no longer.
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await work
                if watch not in done:
                    await self._answer(RefusedError(504, "the request took longer than this server allows", "timeout"))
                return
            await work
        except RefusedError as error:
            await self._answer(error)
        except TimeoutError:
            await self._answer(RefusedError(408, "the request was not sent in time", "timeout"))
        except (ClientDisconnect, OSError):  # the client is gone
            return
        except Exception:
            LOG.exception("something unforeseen went wrong")
            await self._answer(unforeseen())
        finally:
            for task in (work, watch):
                task.cancel()

    async def _watch(self) -> None:
        """Wait until the client leaves."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def _take(self) -> Message:
        """Give the next part of the body; when it is whole, wait for the client's end."""
        if self._whole.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message: Message = await asyncio.wait_for(self._receive(), self._options.timeout)
        self._read += len(message.get("body", b""))
        # Counted, as a client need not say how much it sends, nor tell the truth.
        if self._read > self._options.most_body:
            raise too_large(self._options.most_body)
        if not message.get("more_body"):
            self._whole.set()
        return message

    async def _give(self, message: Message) -> None:
        """Send a part of the answer; a client that does not read it is given up."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        try:
            await asyncio.wait_for(self._send(message), self._options.timeout)
        except TimeoutError as error:
            raise OSError("the client does not read") from error
        self._ended = message["type"] == "http.response.body" and not message.get("more_body")

    async def _answer(self, error: RefusedError) -> None:
        # An answer has begun: it can only be broken off.
        if self._status:
            return
        body = json.dumps(error_body(error)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        # What was not read of the body is not read any more.
        headers += [(b"connection", b"close")] if error.status in (413, 408) else []
        with contextlib.suppress(OSError):
            await self._give({"type": "http.response.start", "status": error.status, "headers": headers})
            await self._give({"type": "http.response.body", "body": body})

    def _log(self, seconds: float) -> None:
        route = self._scope.get("route")
        path = getattr(route, "path", "other") if route is not None else "other"
        self._metrics.observe(path, self._status or 499, seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": self._scope["method"],
            "path": self._scope["path"][:200],
            "status": self._status or 499,
            "whole": self._ended,
            "ms": round(seconds * 1000, 1),
            "bytes": self._read,
        }
        LOG.info(json.dumps(line))
