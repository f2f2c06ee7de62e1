"""Lines as they come: from a pipe, a terminal or a file, without waiting for more of them."""

from collections.abc import Iterator
from io import BufferedReader

from tfm.errors import InputError

MOST = 64
"""Lines that are given out together: more make a batch no faster, and later results."""

_CHUNK = 1 << 16


def read_lines(stream: BufferedReader, name: str) -> Iterator[list[str]]:
    """Read lines of UTF-8, ended by LF or CR LF; the last one need not be.

    Args:
        stream: Where they come from.
        name: Of it, for messages.

    Yields:
        Lines that were there at once, at least one and at most `MOST`.

    Raises:
        InputError: A line is not UTF-8; those before it have been given out.
    """
    number, rest = 0, b""
    while True:
        chunk = stream.read1(_CHUNK)  # what is there now; waits only where nothing is
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:
            lines.append(rest)
        for start in range(0, len(lines), MOST):
            texts = []
            for line in lines[start : start + MOST]:
                try:
                    texts.append(line.removesuffix(b"\r").decode())
                except UnicodeDecodeError as error:
                    if texts:
                        yield texts
                    raise InputError(
                        f"line {number + len(texts) + 1} of {name} is not UTF-8 ({error.reason} at its byte "
                        f"{error.start}); convert it"
                    ) from error
            number += len(texts)
            yield texts
        if not chunk:
            return
