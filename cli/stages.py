"""What is being done, on a terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape

_WIDTH = 20
"""Of a progress bar, in characters."""


@contextlib.contextmanager
def show_stage(console: Console, name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show what is being done and, of a long stage that tells, which step; and then how long it took."""
    start = time.perf_counter()
    with console.status(name) as status:

        def show_step(done: int, total: int, what: str) -> None:
            full = _WIDTH * (done + 1) // max(total, 1)
            bar = f"[green]{'━' * full}[/][dim]{'━' * (_WIDTH - full)}[/] {done + 1}/{total}  " if total > 1 else ""
            status.update(f"{name}  {bar}[dim]{escape(what)}[/]")

        yield show_step
    console.print(f"[dim]{time.perf_counter() - start:6.1f} s[/]  {name}")
