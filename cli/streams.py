"""What commands write to: no encoding ends a command, and no text but our own is obeyed by a terminal.

Whatever is printed without more thought is safe, since `outputs` puts an `Output` in the place of both streams. Only
what colors or moves the cursor itself writes to `trusted`: `say` here, and the tables of `screen`.
"""

import codecs
import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO, cast

import click

from tfm.errors import InputError, TextWarning

FALLBACKS = {
    "✓": "+", "✗": "x", "×": "x", "⊙": "*", "·": "-", "—": "-", "–": "-", "−": "-", "…": "...", "→": "->", "±": "+-",
    "≤": "<=", "≥": ">=", "≈": "~", "∞": "inf", "√": "sqrt ", "∂": "d", "½": "1/2 ", "′": "'", "’": "'", "“": '"',
    "”": '"', "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")", "⁻": "-", "¹": "1", "²": "^2", "³": "^3", "⁴": "^4",
    "⁵": "5", "⁶": "6", "₁": "1", "₂": "2", "ₖ": "_k", "ˣ": "^x", "ᵀ": "^T", "µ": "u", "α": "alpha", "β": "beta",
    "ε": "eps", "θ": "theta", "π": "pi", "σ": "sigma", "φ": "phi", "Σ": "sum ", "Φ": "Phi", "─": "-", "━": "=",
    "│": "|", "├": "|", "└": "`", "▁": "1", "▂": "2", "▃": "3", "▄": "4", "▅": "5", "▆": "6", "▇": "7", "█": "8",
    "␣": "_", "⏎": "\\n", "⇥": "\\t", "\xa0": " ", "�": "?",
}  # fmt: skip
"""What stands for a character of our own messages in an encoding that lacks it."""

_READABLE = "tfm.readable"
"""Name of the codecs' error handler."""

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # what moves the cursor, begins a sequence or rings: all controls but \n and \t
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"  # what turns the direction of the text around it, and breaks lines
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # halves of characters; marks and tags that nobody sees
)


def printable(text: str) -> str:
    """Write what a terminal would obey, rather than show, as Python writes it: a bell as backslash, x07."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


@dataclasses.dataclass(frozen=True)
class Styled:
    """Part of what is said, in a style of `click.style`."""

    text: str
    style: dict[str, Any]


def styled(text: str, **style: Any) -> Styled:
    """Give a text a color or weight, as `click.style` takes them; it shows on terminals alone."""
    return Styled(text, style)


class OutputError(Exception):
    """Standard output cannot be written to: nobody reads it any more, or its disk is full.

    It is no OSError, since click and rich end a process by exit code 1 at those.

    Attributes:
        reason: What the system said.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Output:
    """A text stream that writes, on a terminal, what it would obey as escapes; elsewhere everything as it is.

    Args:
        stream: What it writes to.
        obeyed: Whether all is written as it is on a terminal too.
        needed: Whether that it cannot be written to is an error; else what is written is lost then.
    """

    def __init__(self, stream: TextIO, *, obeyed: bool = False, needed: bool = True) -> None:
        self._stream, self._needed = stream, needed
        # Between pipes nothing is escaped: who reads there gets every character as it is.
        self._guarded = not obeyed and stream.isatty()
        self._trusted = self if obeyed else Output(stream, obeyed=True, needed=needed)

    @property
    def trusted(self) -> "Output":
        """The same stream, for what a terminal is to obey."""
        return self._trusted

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            # All that is printed comes by here, so that no text of a bundle reaches a terminal as
            # it is.
            self._stream.write(printable(text) if self._guarded else text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Have the system take what was written.

        Raises:
            OutputError: It does not.
        """
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach"):  # click would write there where the encoding is ASCII, past `write`
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}: it takes texts alone")
        return getattr(self._stream, name)

    def _fail(self, error: OSError) -> None:
        """Write to nowhere from now on, so that Python can flush when it ends; and tell, where that matters."""
        with contextlib.suppress(OSError):
            # Of the descriptor, not of this object: what is in Python's buffer goes there as well.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        # Results that are lost are an error; messages that are lost change no exit code.
        if self._needed:
            raise OutputError(error) from error


def trusted(stream: TextIO) -> TextIO:
    """Give the stream that a terminal obeys; any other than an `Output` is that itself."""
    return cast(TextIO, getattr(stream, "trusted", stream))


@contextlib.contextmanager
def outputs() -> Iterator[None]:
    """Put an `Output` in the place of both streams, and have characters that they lack written readably."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:  # as in a program without a console
            sys.stdout = cast(TextIO, Output(stack.enter_context(_readable_stream(sys.stdout))))
        if sys.stderr is not None:
            sys.stderr = cast(TextIO, Output(stack.enter_context(_readable_stream(sys.stderr)), needed=False))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _readable_stream(stream: TextIO) -> Iterator[TextIO]:
    """A stream that writes what its encoding lacks readably, while this context lasts."""
    if not isinstance(stream, io.TextIOWrapper):
        yield stream
    elif isinstance(stream.buffer, io.RawIOBase):  # by PYTHONUNBUFFERED: it would lose what a disk took only half of
        whole = io.TextIOWrapper(
            io.BufferedWriter(stream.buffer), stream.encoding, _READABLE, line_buffering=stream.line_buffering
        )
        try:
            yield whole
        finally:
            # Twice: the stream below is the caller's, and is not closed with these two around it.
            with contextlib.suppress(OSError):
                whole.detach().detach()
    else:
        # Put back afterwards: commands are called from Python too, one after the other.
        encoding, errors = stream.encoding, stream.errors
        stream.reconfigure(errors=_READABLE)
        try:
            yield stream
        finally:
            stream.reconfigure(encoding=encoding, errors=errors)


def say(*parts: str | Styled, err: bool = False, nl: bool = True) -> None:
    """Print a message.

    Args:
        parts: Texts, which a terminal shows and does not obey, and what `styled` gives.
        err: To standard error.
        nl: End it by a line break.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    if stream.isatty():
        styled_parts = (part if isinstance(part, Styled) else Styled(part, {}) for part in parts)
        # Escaped piece by piece, before the style is added, whose escapes are to be obeyed.
        text = "".join(click.style(printable(part.text), **part.style) for part in styled_parts)
        click.echo(text, file=trusted(stream), nl=nl)
    else:  # by click, which strips what looks like a style, it would not be to the letter
        text = "".join(part.text if isinstance(part, Styled) else part for part in parts)
        stream.write(f"{text}\n" if nl else text)
        stream.flush()


@contextlib.contextmanager
def said_warnings() -> Iterator[None]:
    """Say warnings of texts, each once, on standard error, while this context lasts."""
    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        # Of a file of a million lines one line is enough.
        if str(message) not in said:
            said.add(str(message))
            say(styled(f"warning: {message}", fg="yellow"), err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", TextWarning)
        warnings.showwarning = show
        yield


def say_json(content: Any) -> None:
    """Print JSON values in one line of ASCII; null in the place of what is infinite or NaN, which JSON lacks."""
    say(json.dumps(_finite(content), allow_nan=False))


def put(text: str, *, nl: bool = True) -> None:
    """Print a result: on a terminal as a message, anywhere else to the letter.

    Raises:
        InputError: The encoding of what it goes to lacks a character of it.
    """
    if sys.stdout is not None and not sys.stdout.isatty():
        # Our own messages have stand-ins; a result with one in it would be another result.
        _check_encodable(text, _encoding_of(sys.stdout))
    say(text, nl=nl)


def fitting(text: str) -> str:
    """Give a text of our own as the encoding of standard output can hold it, for use among results."""
    encoding = _encoding_of(sys.stdout)
    return text.encode(encoding, _READABLE).decode(encoding)


def write_utf8() -> None:
    """Have results that go to a file or pipe written in UTF-8, unless PYTHONIOENCODING asks for another encoding.

    Texts are read from there by the same rule: `input_encoding`.
    """
    stream = sys.stdout
    if stream is not None and not stream.isatty() and _asked_encoding() is None and hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors=stream.errors)


def input_encoding() -> str:
    """The encoding of texts on standard input, where that is no terminal: UTF-8, or what PYTHONIOENCODING asks for.

    Raises:
        InputError: That is none whose lines end by the byte of LF.
    """
    encoding = _asked_encoding()
    if encoding is None:
        return "utf-8"
    try:
        # Lines are split as bytes, so that UTF-16, say, cannot be read.
        if "\r\n".encode(encoding) == b"\r\n":
            return encoding
    except LookupError:
        pass
    raise InputError(f"PYTHONIOENCODING asks for {encoding}, which texts cannot be read in; leave it out for UTF-8")


def _asked_encoding() -> str | None:
    # By -E and -I Python itself does not look at its variables either.
    if sys.flags.ignore_environment:
        return None
    return os.environ.get("PYTHONIOENCODING", "").partition(":")[0] or None


def _encoding_of(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def _stand_in(letter: str) -> str:
    # What is not in the table is shown by its number, as Python does.
    return FALLBACKS.get(letter) or letter.encode("ascii", "backslashreplace").decode()


def _check_encodable(text: str, encoding: str) -> None:
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        letter = text[error.start]
        raise InputError(
            f"the result holds {letter!a} (U+{ord(letter):04X}), which the encoding of standard output, {encoding}, "
            "lacks; set PYTHONIOENCODING=utf-8, or print --json, which is ASCII"
        ) from error


codecs.register_error(_READABLE, _readable)
