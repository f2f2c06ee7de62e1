"""What is being done, on a terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

_WIDTH = 20
"""Of a progress bar, in characters."""


@contextlib.contextmanager
def show_stage(console: Console, name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show what is being done and, of a long stage that tells, which step; and then how long it took."""
    start = time.perf_counter()
    # The dots are of Braille, which other encodings lack.
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(Text(name), spinner=spinner) as status:

        def show_step(done: int, total: int, what: str) -> None:
            full = _WIDTH * (done + 1) // max(total, 1)
            # A Text, not markup: names of weights may hold brackets.
            bar = Text.assemble(("━" * full, "green"), ("━" * (_WIDTH - full), "dim"), f" {done + 1}/{total}  ")
            status.update(Text.assemble(f"{name}  ", bar if total > 1 else "", (what, "dim")))

        yield show_step
    console.print(Text.assemble((f"{time.perf_counter() - start:6.1f} s", "dim"), f"  {name}"))
