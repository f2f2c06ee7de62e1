"""Errors as an answer, in the form that OpenAI's clients read."""

from typing import Any

from tfm.errors import InputError, RunTimeoutError, TfmError


class RefusedError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: HTTP's.
        code: What went wrong, for machines.
        parameter: Which field of the request is at fault; None: none in particular.
        retry_after: Seconds after which it may be tried again; None: never as it is.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "invalid_request",
        *,
        parameter: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.parameter, self.retry_after = status, code, parameter, retry_after


_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(error: RefusedError) -> dict[str, Any]:
    """Write an error as OpenAI's API does."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": str(error), "type": kind, "param": error.parameter, "code": error.code}}


def refused(error: BaseException, folder: str, name: str) -> RefusedError:
    """Say what a model's error means for a request; where the bundle lies on the disk is nobody's business.

    Args:
        error: What was raised.
        folder: The bundle's path, which messages may have.
        name: The bundle's, in its place.
    """
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, RunTimeoutError):
        return RefusedError(504, "the request took longer than this server allows", "timeout")
    if isinstance(error, InputError):
        return RefusedError(400, str(error).replace(folder, name))
    if isinstance(error, TfmError):
        return RefusedError(500, str(error).replace(folder, name), "server_error")
    return unforeseen()


def unforeseen() -> RefusedError:
    """Say no more than that."""
    return RefusedError(500, "something unforeseen went wrong; the server's log has it", "server_error")
