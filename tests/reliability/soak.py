"""Many threads, mixed work, for minutes: whether any answer is ever another than that of one thread alone.

    python tests/reliability/soak.py BUNDLE… [--threads 32] [--minutes 5] [--opens 2000]

Every thread draws what to do next: run, embed, generate or stream on a model that all of them share, a call that is
cancelled or times out, a model of its own that is loaded, used and closed, a shared one that is closed under the
others and opened anew, and an altered copy that must be refused. Each answer is compared with what the model gave
before any other thread ran: equal to the last bit where the same batches are computed. Then bundles are opened, used
and closed many times over, for memory and descriptors to stay flat. Exits with 1 where something did not hold.
"""

import argparse
import collections
import contextlib
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfm.errors import BundleError, ClosedError, InputError, RunCancelledError, RunTimeoutError
from tfm.runtime import CancelToken, Model, load

TEXTS = ["hello", "onnx", "transformer", "a", "bee", "bundle that runs", "a b c"]
"""Of these, each bundle is asked those that it reads."""
_SETTLED = 0.2
"""Share of the opens after which memory is that of a process at work: allocators have what they keep by then."""

_GROWTH = 16.0
"""MiB that the rest of them may add, allocators' noise: a session that leaked would add its own size each time."""


class Soak:
    """What the threads share, and what they found.

    Attributes:
        counts: What was done → how often.
        mismatches: What was wrong, in words.
    """

    def __init__(self, bundles: list[Path], altered: Path) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.mismatches: list[str] = []
        self._bundles, self._altered = bundles, altered
        self._lock = threading.Lock()
        self._shared = {bundle: self._open(bundle) for bundle in bundles}
        self._expected = {bundle: _answers(model) for bundle, model in self._shared.items()}

    def work(self, seed: int, end: float) -> None:
        """Do one thing after the other until `end`."""
        draw = random.Random(seed)
        actions = [self._ask, self._ask, self._ask, self._cancel, self._time_out, self._own, self._reopen, self._refuse]
        while time.monotonic() < end:
            action = draw.choice(actions)
            try:
                action(draw)
            except ClosedError:  # another thread closed it: what is asked of a closed model says so
                self._count("closed under way")
            except Exception as error:
                self._wrong(f"{action.__name__}: {type(error).__name__}: {error}")

    def _ask(self, draw: random.Random) -> None:
        bundle = draw.choice(self._bundles)
        self._compare(draw, bundle, self._shared[bundle])

    def _own(self, draw: random.Random) -> None:
        bundle = draw.choice(self._bundles)
        with self._open(bundle) as model:
            self._compare(draw, bundle, model)
        self._count("opened and closed")

    def _reopen(self, draw: random.Random) -> None:
        bundle = draw.choice(self._bundles)
        model = self._open(bundle)
        with self._lock:
            old, self._shared[bundle] = self._shared[bundle], model
        old.close()
        self._count("closed under others")

    def _cancel(self, draw: random.Random) -> None:
        bundle = draw.choice(self._bundles)
        token = CancelToken()
        timer = threading.Timer(draw.random() * 0.01, token.cancel)
        timer.start()
        try:
            _task(self._shared[bundle])(self._texts(bundle) * 20, cancel=token)
            self._count("done before it was cancelled")
        except RunCancelledError:
            self._count("cancelled")
        finally:
            timer.join()

    def _time_out(self, draw: random.Random) -> None:
        bundle = draw.choice(self._bundles)
        try:
            _task(self._shared[bundle])(self._texts(bundle) * 20, timeout=draw.random() * 0.02)
            self._count("done in time")
        except RunTimeoutError:
            self._count("timed out")

    def _refuse(self, draw: random.Random) -> None:
        try:
            load(self._altered, provider="cpu", threads=1)
        except BundleError:
            self._count("refused")
            return
        self._wrong("an altered bundle was opened")

    def _compare(self, draw: random.Random, bundle: Path, model: Any) -> None:
        text = draw.choice(self._texts(bundle))
        if _answer(model, text) != self._expected[bundle][text]:
            self._wrong(f"{bundle.name}: another answer to {text!r}")
        self._count(f"{model.tasks[0]} compared")

    def _texts(self, bundle: Path) -> list[str]:
        return list(self._expected[bundle])

    def _open(self, bundle: Path) -> Any:
        return load(bundle, provider="cpu", threads=1)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _wrong(self, what: str) -> None:
        with self._lock:
            self.mismatches.append(what)


def _task(model: Model) -> Callable[..., Any]:
    return getattr(model, model.tasks[0])  # type: ignore[no-any-return]


def _answers(model: Any) -> dict[str, Any]:
    """Ask for all the texts that a model reads."""
    answers = {}
    for text in TEXTS:
        with contextlib.suppress(InputError):  # it has none of the text's letters, or takes no text of such a length
            answers[text] = _answer(model, text)
    return answers


def _answer(model: Any, text: str) -> Any:
    """Ask a model in each way that it has."""
    if "embed" in model.tasks:
        streamed = [row.tobytes() for row in model.embed_stream([text])]
        ids_BS = np.array(model.tokenize(text))
        feeds = {"input_ids": ids_BS, "attention_mask": np.ones_like(ids_BS), "token_type_ids": np.zeros_like(ids_BS)}
        return model.embed(text).tobytes(), streamed, [array.tobytes() for array in model.run(feeds).values()]
    return model.generate(text), "".join(model.stream(text)), model.generate(text, num_beams=2)


def alter(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, and change one byte of its first graph."""
    copy = folder / "altered.tfm"
    shutil.copytree(bundle, copy)
    graphs = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["graphs"]
    for roles in graphs.values():
        path = copy / next(iter(roles.values()))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    return copy


def open_and_close(bundles: list[Path], times: int) -> tuple[float, int]:
    """Open, use and close bundles in turn.

    Returns:
        MiB of resident memory, and descriptors, that the process has more at the end than once it had settled.
    """
    settled = (0.0, 0)
    for number in range(times):
        with load(bundles[number % len(bundles)], provider="cpu", threads=1 + number % 2) as model:
            _task(model)([[4]])
        del model
        if number == int(times * _SETTLED):
            settled = _resources()
    memory, descriptors = _resources()
    return memory - settled[0], descriptors - settled[1]


def _resources() -> tuple[float, int]:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir("/proc/self/fd"))


def soak(bundles: list[Path], threads: int, minutes: float, opens: int) -> bool:
    """Do all of it and print what came of it; whether everything held."""
    with tempfile.TemporaryDirectory(prefix="tfm-soak-") as folder:
        shared = Soak(bundles, alter(bundles[0], Path(folder)))
        end = time.monotonic() + minutes * 60
        workers = [threading.Thread(target=shared.work, args=(seed, end)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(f"{threads} threads, {minutes:g} minutes: {sum(shared.counts.values()):,} calls")
        for what, count in sorted(shared.counts.items()):
            print(f"  {count:>10,}  {what}")
        print(f"{len(shared.mismatches)} mismatches")
        for what, count in collections.Counter(shared.mismatches).most_common(10):
            print(f"  {count:>10,}  {what}")
        mismatches = len(shared.mismatches)
        del shared
    memory, descriptors = open_and_close(bundles, opens)
    print(f"{opens:,} opens and closes: {memory:+.1f} MiB, {descriptors:+d} descriptors")
    return not mismatches and memory <= _GROWTH and descriptors <= 0


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--opens", type=int, default=2000)
    arguments = parser.parse_args()
    sys.exit(0 if soak(arguments.bundles, arguments.threads, arguments.minutes, arguments.opens) else 1)


if __name__ == "__main__":
    main()
