"""What a bundle makes of texts, for `tfm run`: computed, and as a line for people or an object for machines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfm.errors import InputError

from .streams import fitting

if TYPE_CHECKING:  # importing it loads onnxruntime, which --help must not wait for
    from tfm.runtime import Model

KEYS = {
    "embed": "embedding",
    "classify": "labels",
    "fill_mask": "fills",
    "classify_tokens": "entities",
    "generate": "output",
    "translate": "output",
}
"""What the result of each task is called in JSON."""

GENERATING = ("generate", "translate")
_WIDEST = 40
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class TaskRunner:
    """One task of a bundle, with its settings.

    Attributes:
        model: The bundle.
        task: The name of a method of it.
        settings: What that takes beside texts.
    """

    model: "Model"
    task: str
    settings: dict[str, Any]

    def of(self, texts: Sequence[str], number: int = 0) -> list[Any]:
        """Compute the results of texts; of blank ones, None.

        Args:
            texts: The texts.
            number: How many came before them. With a seed each is drawn apart, by the seed plus its number, so that the
                result does not depend on how many arrived at once.
        """
        results: list[Any] = [None] * len(texts)
        # Blank texts have no tokens, which the runtime refuses; here each has an empty result.
        positions = [position for position, text in enumerate(texts) if text.strip()]
        if "seed" in self.settings:
            for position in positions:
                results[position] = self._call([texts[position]], self.seeded(number + position))[0]
        elif positions:
            found = self._call([texts[position] for position in positions], self.settings)
            for position, result in zip(positions, found, strict=True):
                results[position] = result
        return results

    def in_order(self, texts: Sequence[str], number: int = 0) -> Iterator[Any]:
        """Compute results as `of` does, but give out those before the first text that is refused."""
        try:
            results = self.of(texts, number)
        except InputError:
            for position, text in enumerate(texts):
                # One by one, so that those before it are given out; the refused one raises again
                # here.
                yield self.of([text], number + position)[0]
        else:
            yield from results

    def parts(self, text: str, number: int = 0) -> Iterator[str]:
        """Yield the parts of what is generated for a text while it is made; of a blank one, none."""
        if text.strip():
            yield from getattr(self.model, "stream")(text, **self.seeded(number))  # noqa: B009 - not every Model's

    def _call(self, texts: list[str], settings: dict[str, Any]) -> Any:
        return getattr(self.model, self.task)(texts, **settings)

    def seeded(self, number: int) -> dict[str, Any]:
        """Give the settings of the text that so many came before."""
        seed = self.settings.get("seed")
        return self.settings if seed is None else self.settings | {"seed": seed + number}


def to_json(task: str, text: str, result: Any) -> dict[str, Any]:
    """Describe a result for machines."""
    return {"text": text, KEYS[task]: result.tolist() if task == "embed" and result is not None else result}


def to_text(task: str, result: Any) -> str:
    """Describe a result in one line."""
    if result is None:
        return ""
    if task == "embed":
        return _vector(result.tolist())
    if task == "classify":
        return "  ".join(f"{one_line(one['label'])} {one['score']:.3f}" for one in result)
    if task == "fill_mask":
        return "  ".join(f"{one_line(one['token_str'].strip())} {one['score']:.3f}" for one in result)
    if task == "classify_tokens":
        return "  ".join(f"{one_line(one['word'])}={one_line(one['entity'])} {one['score']:.3f}" for one in result)
    return one_line(str(result))


def _vector(values: list[float]) -> str:
    beginning = " ".join(f"{value:+.4f}" for value in values[:_SHOWN])
    return f"[{len(values)}]  {beginning}" + (fitting(" …") if len(values) > _SHOWN else "")


def one_line(text: str) -> str:
    """Write line breaks and tabs as their escapes, so that a result stays in its row and column."""
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def shortened(text: str) -> str:
    """Cut a text to what a table has room for."""
    text = one_line(text)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + fitting("…")
