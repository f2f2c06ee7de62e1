"""What a text or a line stands for: itself, several texts with tabs between them, or a JSON value that says more."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfm.errors import InputError

GENERATING = ("generate", "translate", "image_to_text")
"""Tasks whose result is a text that the model goes on with."""

SEVERAL = {"rank": "query, document", "answer": "question, context"}
"""Task → what a line of it has at least, with a tab between."""

_NAMED = {
    "rank": ("query", "documents"),
    "answer": ("question", "context"),
    "classify_images": ("image",),
    "classify_audio": ("audio",),
    "transcribe": ("audio",),
    "image_to_text": ("image",),
}
"""Task → the keys of an object that stands for an input of it."""

_OF_TEXTS = ("text", "text_pair")


@dataclass(frozen=True, kw_only=True)
class Items:
    """How texts and lines become a task's inputs.

    Attributes:
        task: Name of the task.
        pairs: Whether each is two texts with a tab between.
        as_json: Whether each is a JSON value: a text, a list of several, or an object of `_NAMED` or `_OF_TEXTS`, or
            one with messages for what generates.
        chat: Whether each is a message that a user sends.
        system: What a chat begins with; None: nothing.
    """

    task: str
    pairs: bool = False
    as_json: bool = False
    chat: bool = False
    system: str | None = None

    def of(self, line: str) -> Any:
        """Make an input of a text or a line that is not blank.

        Raises:
            InputError: It is not JSON, or of other parts than the task takes.
        """
        if self.as_json:
            value = self._of_json(line)
            return self.begun(value) if self.chat and isinstance(value, str) else value
        if self.chat:
            return self.begun(line)
        # A tab is a letter like any other, unless somebody says that it separates.
        if not self.pairs and self.task not in SEVERAL:
            return line
        return self._of_parts(line.split("\t"), SEVERAL.get(self.task, "text, text"))

    def begun(self, message: str) -> list[dict[str, str]]:
        """Begin a chat with what a user says."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": message}]

    def _of_parts(self, parts: Sequence[Any], wanted: str) -> Any:
        if len(parts) < 2 or (len(parts) > 2 and self.task != "rank") or not all(isinstance(p, str) for p in parts):
            raise InputError(f"it must be {wanted.replace(', ', ', a tab and ')}, but has {len(parts)} such parts")
        return (parts[0], list(parts[1:])) if self.task == "rank" else tuple(parts)

    def _of_json(self, line: str) -> Any:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"it is not JSON: {error}") from error
        if isinstance(value, list):
            return self._of_parts(value, SEVERAL.get(self.task, "text, text"))
        if isinstance(value, dict):
            return self._of_object(value)
        if not isinstance(value, str) or self.task in SEVERAL:
            raise InputError(f"it must be {self._wanted()}, but is {type(value).__name__}")
        return value

    def _of_object(self, value: Mapping[str, Any]) -> Any:
        if self.task in GENERATING and "messages" in value:
            return value["messages"]
        names = _NAMED.get(self.task, _OF_TEXTS)
        # Lines of a data set have other keys too, such as an id.
        known = [value[name] for name in names if name in value]
        # One text may stand alone; what is more than these is the caller's own, and stays out of it.
        # A text may stand alone, but no question without its context.
        if len(known) < (1 if names == _OF_TEXTS and "text" in value else len(names)):
            raise InputError(f"it must be {self._wanted()}, but is an object with {', '.join(value) or 'nothing'}")
        if self.task == "rank":
            documents = known[1] if isinstance(known[1], list) else [known[1]]
            return self._of_parts([known[0], *documents], SEVERAL["rank"])
        return known[0] if len(known) == 1 else self._of_parts(known, SEVERAL.get(self.task, "text, text"))

    def _wanted(self) -> str:
        names = _NAMED.get(self.task, _OF_TEXTS)
        return f"a list of them, or an object with {' and '.join(names)}"
