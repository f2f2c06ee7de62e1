"""Why torch, transformers or a module of the user's has failed: the cause and the line, not the first words said."""

import linecache
import re
import traceback
from pathlib import Path
from types import TracebackType

_COLORS = re.compile(r"\x1b\[[0-9;]*m")

_MACHINERY = ("torch", "onnxscript", "onnx_ir", "tfm", "tfm_export", "contextlib.py", "functools.py")
"""Packages and modules whose lines are not the user's: in them it fails, but never for a reason of theirs."""

_CAUSES = (
    (
        r"data.dependent|Could not (?:guard|extract)|GuardOnDataDependent",
        "data-dependent: which way it goes, or how large something is, depends on values of inputs",
    ),
    (r"No ONNX function found for .*?([a-z_]+[.:]{1,2}[\w.:]+)", "ONNX has no form of {0}"),
    (r"flex_attention", "it computes attention by flex_attention, which has no ONNX form"),
    (r"[Cc]omplex(?:64|128| (?:tensor|number|dtype))", "it computes with complex numbers, which ONNX does not have"),
    (r"grouped_mm", "its experts are computed by grouped_mm, which has no ONNX form"),
)
"""What torch's words, at any depth, mean."""


def reason_of(error: BaseException) -> str:
    """Say in one line why something failed: what is known to be the cause, or the line that says most; and where."""
    # torch lists violated constraints as "  - …" below a long preamble, and names the inputs in them.
    for words in _plain(error).splitlines():
        if words.startswith("  - "):
            return words.removeprefix("  - ")
    chain = _chain(error)
    said = _known(chain) or _deepest(chain)
    lines = (_own_line(each.__traceback__) for each in reversed(chain))
    line = next(filter(None, lines), None)
    return said if line is None else f"{said} ({line})"


def one_line(error: BaseException) -> str:
    """Say an error's class and the first line of its message, without the colors of a terminal."""
    return f"{type(error).__name__} {_plain(error)}".strip().splitlines()[0]


def _known(chain: list[BaseException]) -> str | None:
    text = "\n".join(map(_plain, chain))
    for pattern, meaning in _CAUSES:
        if found := re.search(pattern, text):
            return meaning.format(*found.groups())
    return None


def _deepest(chain: list[BaseException]) -> str:
    """Give the first line of the deepest error that says anything."""
    speaking = [error for error in chain if str(error).strip()]
    return _first_line(speaking[-1]) if speaking else type(chain[0]).__name__


def _chain(error: BaseException) -> list[BaseException]:
    """List an error and what it was raised from, in turn."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return chain


def _plain(error: BaseException) -> str:
    return _COLORS.sub("", str(error))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in _plain(error).splitlines() if line.strip()]
    return f"{type(error).__name__} {lines[0]}"


def _own_line(trace: TracebackType | None) -> str | None:
    """Name the deepest line that is a module's own, neither torch's nor ours."""
    for frame, number in reversed(list(traceback.walk_tb(trace))):
        path = Path(frame.f_code.co_filename)
        if not path.is_absolute() or not _MACHINERY_PARTS.isdisjoint(path.parts):
            continue
        code = linecache.getline(str(path), number).strip()
        return f"{path.name}:{number}: {code[:120]}" if code else f"{path.name}:{number}"
    return None


_MACHINERY_PARTS = frozenset(_MACHINERY)
