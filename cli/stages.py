"""What is being done, on a terminal."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console


@contextlib.contextmanager
def show_stage(console: Console, name: str) -> Iterator[None]:
    """Show what is being done, and then how long it took."""
    start = time.perf_counter()
    with console.status(name):
        yield
    console.print(f"[dim]{time.perf_counter() - start:6.1f} s[/]  {name}")
