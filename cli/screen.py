"""Tables and styled lines: rich, with texts that are never markup and never obeyed by a terminal."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .streams import printable, trusted


class Screen(Console):
    """A console on which "[red]" and ":smile:" are those letters; what is styled is a `Text`.

    Args:
        err: On standard error.
        options: Of `rich.console.Console`.
    """

    def __init__(self, *, err: bool = False, **options: Any) -> None:
        stream = sys.stderr if err else sys.stdout
        # rich moves the cursor and colors by itself; its texts are escaped in `render`.
        file = None if stream is None else trusted(stream)
        super().__init__(**{"file": file, "markup": False, "highlight": False, "emoji": False, **options})
        # Asked of the file: rich may be told to color what is no terminal.
        self._guarded = self.file.isatty()

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a `Text` of a string, escaped before it is laid out."""
        # Before it is laid out, as an escape is wider than what it stands for.
        return super().render_str(printable(text) if self._guarded else text, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything; no text of it holds what the terminal would obey."""
        for segment in super().render(renderable, options):
            # What rich itself says to the terminal, such as where the cursor goes, is a control.
            plain = segment.control or not self._guarded
            yield segment if plain else segment._replace(text=printable(segment.text))
