"""What becomes of a task's results: columns of a table.

Shapes: N rows, D dimensions.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tfm.errors import InputError

TASKS = ("embed", "classify", "rank", "generate")
"""What rows can be put through."""


@dataclass(frozen=True)
class TaskColumns:
    """A task that is ready to run.

    Attributes:
        fields: The columns that it adds.
        call: Gives a result for each of some inputs; one that is refused raises InputError for all of them.
        arrays: Makes the columns of results, None where a row has none.
    """

    fields: tuple[pa.Field, ...]
    call: Callable[[list[Any]], Sequence[Any]]
    arrays: Callable[[Sequence[Any]], list[pa.Array]]


def task_columns(model: Any, task: str, settings: Mapping[str, Any], prefix: str) -> TaskColumns:
    """Get a task of a bundle ready.

    Args:
        model: The bundle.
        task: One of `TASKS`.
        settings: What its method takes besides.
        prefix: What the names of its columns begin with.

    Raises:
        InputError: The bundle has no such task, or a setting is off.
    """
    if task not in TASKS:
        raise InputError(f"there is no task {task!r} for rows; there are: {', '.join(TASKS)}")
    if task not in model.tasks:
        has = ", ".join(name for name in model.tasks if name in TASKS) or "none of them"
        raise InputError(f"{model.manifest.folder} does not {task}; of {', '.join(TASKS)} it has: {has}")
    # Else each row would be refused for itself, as the bundle reads no texts.
    model.tokenize([])
    make = {"embed": _embed, "classify": _classify, "rank": _rank, "generate": _generate}[task]
    return make(model, dict(settings), prefix)


def _embed(model: Any, settings: dict[str, Any], prefix: str) -> TaskColumns:
    if settings.get("dtype", "float32") in ("int8", "uint8") and settings.get("ranges") is None:
        raise InputError(
            f"embeddings in {settings['dtype']} need ranges, the same for all rows and for what is compared with them: "
            "embedding_ranges(embeddings of some thousand rows) of tfm.runtime makes them (tfm map --ranges FILE.npy)"
        )
    # Of nothing, which checks the settings and says what form they ask for.
    form = model.embed([], **settings)
    size, kind = form.shape[1], pa.from_numpy_dtype(form.dtype)

    def arrays(results: Sequence[Any]) -> list[pa.Array]:
        rows_ND = np.zeros((len(results), size), form.dtype)
        for place, row_D in enumerate(results):
            if row_D is not None:
                rows_ND[place] = row_D
        missing = pa.array([row_D is None for row_D in results], pa.bool_())
        return [pa.FixedSizeListArray.from_arrays(pa.array(rows_ND.ravel()), size, mask=missing)]

    fields = (pa.field(f"{prefix}embedding", pa.list_(kind, size)),)
    return TaskColumns(fields, lambda items: model.embed(items, **settings), arrays)


def _classify(model: Any, settings: dict[str, Any], prefix: str) -> TaskColumns:
    model.classify([], **settings)
    types = (pa.string(), pa.float64())
    # One label is a value; several are lists beside each other.
    several = settings.get("top_k", 1) != 1
    names = ("labels", "scores") if several else ("label", "score")
    kinds = [pa.list_(kind) if several else kind for kind in types]

    def arrays(results: Sequence[Any]) -> list[pa.Array]:
        columns = []
        for key, kind in zip(("label", "score"), kinds, strict=True):
            found = [None if row is None else [one[key] for one in row] for row in results]
            columns.append(pa.array(found if several else [row and row[0] for row in found], kind))
        return columns

    fields = tuple(pa.field(prefix + name, kind) for name, kind in zip(names, kinds, strict=True))
    return TaskColumns(fields, lambda items: model.classify(items, **settings), arrays)


def _rank(model: Any, settings: dict[str, Any], prefix: str) -> TaskColumns:
    if "top_k" in settings:
        raise InputError("each row has a score of its own when rows are ranked; leave top_k out")
    model.rank("", [], **settings)

    def scores(pairs: list[tuple[str, str]]) -> Iterator[float]:
        # The model ranks the documents of one query at a time.
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            texts = [text for _, text in group]
            ranked = {one["index"]: one["score"] for one in model.rank(query, texts, **settings)}
            yield from (ranked[place] for place in range(len(texts)))

    return TaskColumns(
        (pa.field(f"{prefix}score", pa.float64()),),
        lambda pairs: list(scores(pairs)),
        lambda results: [pa.array(results, pa.float64())],
    )


def _generate(model: Any, settings: dict[str, Any], prefix: str) -> TaskColumns:
    for name in ("do_sample", "seed", "num_return_sequences"):
        if settings.get(name):
            raise InputError(f"a row has one text, the same each time that it is made; leave {name} out")
    # Also where the bundle would draw by itself: what is made again after an interruption must be the same.
    settings = {**settings, "do_sample": False}
    model.generate([], **settings)
    return TaskColumns(
        (pa.field(f"{prefix}output", pa.string()),),
        lambda items: model.generate(items, **settings),
        lambda results: [pa.array(results, pa.string())],
    )
