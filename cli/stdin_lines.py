"""Lines as they come: from a pipe, a terminal or a file, without waiting for more of them."""

import codecs
import os
from collections.abc import Iterator
from io import BufferedReader

from tfm.errors import InputError

MOST = 64
"""Lines that are given out together: more make a batch no faster, and later results."""

_CHUNK = 1 << 16


def read_lines(stream: BufferedReader, name: str, *, encoding: str = "utf-8") -> Iterator[list[str]]:
    """Read lines of text, ended by LF or CR LF; the last one need not be. A mark of UTF-8 before the first is no text.

    Args:
        stream: Where they come from.
        name: Of it, for messages.
        encoding: Of the text; its LF is that of ASCII.

    Yields:
        Lines that were there at once, at least one and at most `MOST`.

    Raises:
        InputError: A line is not in that encoding; those before it have been given out.
    """
    number, rest = 0, b""
    while True:
        chunk = stream.read1(_CHUNK)  # what is there now; waits only where nothing is
        # Split as bytes, before decoding: a chunk may end within a character.
        *lines, rest = (rest + chunk).split(b"\n")
        # At the end, what has no line break is a line too.
        if not chunk and rest:
            lines.append(rest)
        for start in range(0, len(lines), MOST):
            texts: list[str] = []
            for line in lines[start : start + MOST]:
                place = number + len(texts) + 1
                try:
                    texts.append(_decode(line, encoding, first=place == 1))
                except UnicodeDecodeError as error:
                    # What came before is answered first; only then is the line refused.
                    if texts:
                        yield texts
                    raise InputError(
                        f"line {place} of {name} is not {_shown(encoding)} ({error.reason} at its byte "
                        f"{error.start}); convert it{_or_ask(name)}"
                    ) from error
            number += len(texts)
            yield texts
        if not chunk:
            return


def as_utf8(text: str) -> str:
    """Read a text of the command line as UTF-8, whatever the system's encoding is: what this lacks are surrogates.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            # Back to the bytes that the shell gave, which Python had read by the system's encoding.
            return os.fsencode(text).decode()
        except UnicodeError as error:
            raise InputError(f"the text {text!a} is not UTF-8; convert it") from error
    return text


def _decode(line: bytes, encoding: str, *, first: bool) -> str:
    if first and encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        line = line.removeprefix(codecs.BOM_UTF8)  # which editors and shells of Windows write
    # As Windows ends lines.
    return line.removesuffix(b"\r").decode(encoding)


def _shown(encoding: str) -> str:
    return "UTF-8" if encoding == "utf-8" else encoding


def _or_ask(name: str) -> str:
    return ", or name its encoding: PYTHONIOENCODING=cp1252" if name == "standard input" else ""
