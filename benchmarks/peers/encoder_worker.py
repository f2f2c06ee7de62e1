"""One engine of `encoders.py`, in a process and an environment of its own; `serving.py` says how it is asked.

The job names the engine, one of `encoder_engines.py`, and what that takes; "threads"; "side_by_side", whether calls may
run side by side on threads of their own; "whole", whether it schedules rows itself; and "corpus", a JSON file of rows
of token ids. Answers, besides "seconds" and the "way" that was taken:

- "start B S": from before the engine is imported to the embeddings of B rows of S tokens; "opening": without the
  import, of which numpy, which all need, is a part. Nothing else is asked of such a process;
- "shape B S SECONDS": B rows of S tokens, for that long, at least once: the fastest run;
- "corpus N": every N-th of the corpus's rows by length, padded and all;
- "embed SIZE FILE": the rows of the corpus at the places given there, SIZE at a time in that order (0: as "corpus"
  does), into FILE.npy; "seconds" mean nothing.

Ways to take many rows, sorted by length, are batches of several sizes, one after the other on all threads or side by
side on a thread each. The best is found by trying, once, on some of the batches.

Shapes: B batch, S sequence, D model size.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving import fastest, serve

SIZES = (1, 8, 32)
TRIED = 16
"""One of so many batches of the corpus is tried in each way."""

Part = tuple[list[int], Any, Any]
"""Places of rows, and their ids and mask, int64 (B, S)."""


@dataclasses.dataclass(frozen=True)
class Way:
    """How to take rows: so many at a time, so many calls side by side."""

    size: int
    streams: int

    def __str__(self) -> str:
        return f"by {self.size}" + (f", {self.streams} side by side" if self.streams > 1 else "")


class Engine:
    """An engine that is open, once for every number of streams that was asked for."""

    def __init__(self, job: dict[str, Any]) -> None:
        import encoder_engines

        self._job, self._opened = job, {}
        self._chosen: dict[str, Way] = {}
        self._open = getattr(encoder_engines, job["engine"])(job)

    def embed(self, streams: int = 1) -> Callable[[Any, Any], Any]:
        """Open it where it is not yet."""
        if streams not in self._opened:
            self._opened[streams] = self._open(streams), ThreadPoolExecutor(streams)
        return self._opened[streams][0]

    def run(self, way: Way, parts: Sequence[Part]) -> list[tuple[list[int], Any]]:
        """Embeddings of parts, each with its places."""
        embed = self.embed(way.streams)
        if way.streams == 1:
            return [(places, embed(ids_BS, mask_BS)) for places, ids_BS, mask_BS in parts]
        places, ids, masks = zip(*parts, strict=True)
        return list(zip(places, self._opened[way.streams][1].map(embed, ids, masks), strict=True))

    def best(self, work: str, rows: Sequence[Any], every: int) -> Way:
        """The way that takes the least time for every so many-th part, tried when `work` is first asked for."""
        if work not in self._chosen:
            ways = self._ways(len(rows))
            if len(ways) > 1:
                ways.sort(key=lambda way: self._try(way, rows, every))
            self._chosen[work] = ways[0]
        return self._chosen[work]

    def _ways(self, count: int) -> list[Way]:
        if self._job["whole"]:
            return [Way(count, 1)]
        found = []
        for streams in {1, self._job["threads"]} if self._job["side_by_side"] else {1}:
            shared = -(-count // streams)  # rows of each where all are begun at once
            sizes = {size for size in (*SIZES, shared) if size <= min(shared, max(SIZES))}
            found += [Way(size, streams) for size in sorted(sizes) if count >= streams]
        return found

    def _try(self, way: Way, rows: Sequence[Any], every: int) -> float:
        parts = batches(rows, way.size)[::every]
        taken = fastest(lambda: self.run(way, parts), 0.05)
        return taken / sum(len(places) for places, _, _ in parts)


def batches(rows: Sequence[Any], size: int) -> list[Part]:
    """Rows sorted by length, the longest first, so many at a time."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    return in_parts(rows, order, size)


def in_parts(rows: Sequence[Any], order: Sequence[int], size: int) -> list[Part]:
    """Rows in that order, so many at a time, padded on the right to the longest of them."""
    import numpy as np

    parts = []
    for start in range(0, len(order), size):
        places = list(order[start : start + size])
        ids_BS = np.zeros((len(places), max(len(rows[place]) for place in places)), np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for b, place in enumerate(places):
            ids_BS[b, : len(rows[place])], mask_BS[b, : len(rows[place])] = rows[place], 1
        parts.append((places, ids_BS, mask_BS))
    return parts


def random_rows(batch: int, length: int) -> list[Any]:
    """Rows of ids."""
    import numpy as np

    return list(np.random.default_rng(0).integers(1000, 20_000, (batch, length)))


def start(job: dict[str, Any], batch: int, length: int) -> dict[str, Any]:
    """Time the start."""
    begun = time.perf_counter()
    engine = Engine(job)
    imported = time.perf_counter()
    engine.run(Way(batch, 1), batches(random_rows(batch, length), batch))
    ended = time.perf_counter()
    return {"seconds": ended - begun, "opening": ended - imported}


def main(job: dict[str, Any]) -> None:
    """Answer until stdin ends."""
    engines: list[Engine] = []

    def answer(line: str) -> dict[str, Any]:
        what, *arguments = line.split()
        if what == "start":
            return start(job, *map(int, arguments))
        if not engines:
            engines.append(Engine(job))
        return globals()[f"answer_{what}"](engines[0], job, *arguments)

    serve(answer)


def answer_shape(engine: Engine, job: dict[str, Any], batch: str, length: str, seconds: str) -> dict[str, Any]:
    """Time a shape."""
    rows = random_rows(int(batch), int(length))
    way = engine.best(f"{batch}×{length}", rows, 1)
    parts = batches(rows, way.size)
    return {"seconds": fastest(lambda: engine.run(way, parts), float(seconds)), "way": str(way)}


def answer_corpus(engine: Engine, job: dict[str, Any], every: str) -> dict[str, Any]:
    """Time rows of the corpus, after a few that are not counted."""
    rows = sorted(json.loads(Path(job["corpus"]).read_text()), key=len)[:: int(every)]
    way = engine.best("corpus", rows, TRIED)
    engine.run(way, batches(rows[:: len(rows) // 32], way.size))
    begun = time.perf_counter()
    engine.run(way, batches(rows, way.size))
    return {"seconds": time.perf_counter() - begun, "way": str(way), "rows": len(rows)}


def answer_embed(engine: Engine, job: dict[str, Any], size: str, file: str) -> dict[str, Any]:
    """Embed what is judged."""
    import numpy as np

    rows = json.loads(Path(job["corpus"]).read_text())
    places = json.loads(Path(file).read_text())
    chosen = [rows[place] for place in places]
    way = Way(int(size), 1) if int(size) else engine.best("corpus", rows, TRIED)
    parts = in_parts(chosen, range(len(chosen)), way.size) if int(size) else batches(chosen, way.size)
    found: dict[int, Any] = {}
    for of, embeddings_BD in engine.run(way, parts):
        found.update(zip(of, embeddings_BD, strict=True))
    np.save(f"{file}.npy", np.stack([found[place] for place in range(len(chosen))]).astype(np.float32))
    return {"seconds": 0.0, "way": str(way)}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
