"""What a bundle makes of texts, for `tfm run`: computed, and as a line for people or an object for machines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfm.errors import InputError

from .items import GENERATING, Items
from .streams import fitting

# Importing it loads onnxruntime, which --help must not wait for.
if TYPE_CHECKING:
    from tfm.runtime import Model

KEYS = {
    "embed": "embedding",
    "classify": "labels",
    "fill_mask": "fills",
    "classify_tokens": "entities",
    "classify_images": "labels",
    "classify_audio": "labels",
    "classify_zero_shot": "labels",
    "rank": "documents",
    "answer": "answers",
    "generate": "output",
    "translate": "output",
    "transcribe": "transcript",
    "image_to_text": "output",
}
"""What the result of each task is called in JSON."""

TAKES = {
    "embed": ("prompt", "dimensions", "normalize", "dtype"),
    "classify": ("top_k",),
    "fill_mask": ("top_k",),
    "classify_tokens": ("aggregation",),
    "classify_images": ("top_k",),
    "classify_audio": ("top_k",),
    "transcribe": ("return_timestamps", "language"),
    "classify_zero_shot": ("candidate_labels", "hypothesis_template", "multi_label"),
    "rank": ("top_k", "prompt"),
    "answer": ("top_k", "max_answer_len", "handle_impossible_answer"),
}
"""Task that does not generate → settings that it takes, beside those of every task."""

WRITING = ("transcribe",)
"""Tasks that may generate, and take settings of that where they do."""

READ_TOGETHER = ("embed", "classify", "fill_mask", "rank", "answer")
"""Tasks that take two texts at once."""

_WIDEST = 40
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class TaskRunner:
    """One task of a bundle, with its settings.

    Attributes:
        model: The bundle.
        task: The name of a method of it.
        settings: What that takes beside texts.
        items: What each text stands for; None: itself.
    """

    model: "Model"
    task: str
    settings: dict[str, Any]
    items: Items | None = None

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
            yield from getattr(self.model, "stream")(self._item(text), **self.seeded(number))  # noqa: B009 - not every Model's

    def _call(self, texts: list[str], settings: dict[str, Any]) -> Any:
        call = getattr(self.model, self.task)
        items = [self._item(text) for text in texts]
        if self.task == "rank":  # of one query at a time
            return [call(*item, **settings) for item in items]
        return call(items, **settings)

    def _item(self, text: str) -> Any:
        return text if self.items is None else self.items.of(text)

    def seeded(self, number: int) -> dict[str, Any]:
        """Give the settings of the text that so many came before."""
        seed = self.settings.get("seed")
        return self.settings if seed is None else self.settings | {"seed": seed + number}


def to_json(task: str, text: str, result: Any, items: Items | None = None) -> dict[str, Any]:
    """Describe a result for machines, beside what it is of."""
    # What was JSON stays JSON, so that a line finds back to its data set.
    given = {"input": json.loads(text)} if items is not None and items.as_json and text.strip() else {"text": text}
    return given | {KEYS[task]: result.tolist() if task == "embed" and result is not None else result}


def to_text(task: str, result: Any) -> str:
    """Describe a result in one line."""
    if result is None:
        return ""
    if task == "embed":
        return _vector(result.tolist())
    # Two lists in place of a list of labels, as the pipeline gives them.
    if task == "classify_zero_shot":
        result = [{"label": label, "score": score} for label, score in zip(*_columns(result), strict=True)]
    if task == "transcribe":
        return one_line(result["text"])
    if task in GENERATING:
        return one_line(str(result))
    return "  ".join(f"{one_line(_name(one))} {one['score']:.3f}" for one in result)


def _columns(result: dict[str, Any]) -> tuple[list[str], list[float]]:
    return result["labels"], result["scores"]


def _name(one: dict[str, Any]) -> str:
    """Name what has a score: a token or words and their label, a document's number, a label or an answer."""
    if "word" in one:
        return f"{one['word']}={one.get('entity') or one['entity_group']}"
    if "token_str" in one:
        return str(one["token_str"]).strip()
    return str(one.get("label") or one.get("answer") or ("" if "answer" in one else one["index"] + 1))


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
