"""Cases by number: which format, which unharmed files, how they are changed; and how a corpus keeps them."""

import base64
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from .formats import FORMATS, mutate
from .path_edits import HUGE, NODES
from .watch import SECONDS, HarnessError, Outcome, Workload, prepared, watch_many, watched

PRINTABLE = 300
"""Most characters of a file that a corpus shows as a text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One case; number 0 of a format is not mutated at all."""

    form: str
    seed: str
    number: int

    def __str__(self) -> str:
        return f"{self.form}:{self.seed}:{self.number}"


class Lab:
    """Unharmed files of the formats, and a place to work in."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)

    def unharmed(self, form: str) -> list[Path]:
        """The folders that a format's cases begin with, made on first use."""
        make, only = FORMATS[form].make, FORMATS[form].only
        place = self.place / "unharmed" / make.__name__
        if not place.is_dir():
            box = self.place / "making"
            outcome = watched(box, lambda box: (make(box / "inside") or [], ""), seconds=300)
            if outcome.kind != "accepted":
                raise RuntimeError(f"{form}: the unharmed files could not be made: {outcome}")
            place.parent.mkdir(parents=True, exist_ok=True)
            (box / "inside").rename(place)
        return sorted(path for path in place.iterdir() if any(path.glob(only)))

    def warm(self, forms: Iterable[str]) -> None:
        """Import what readers import when they first read, so that it is there in every process that is forked."""
        for form in forms:
            box = self.place / "warming"

            def work(box: Path, form: str = form) -> tuple[list[str], str]:
                for start in self.unharmed(form):
                    copy = box / start.name
                    shutil.copytree(start, copy)
                    FORMATS[form].read(copy, start)
                return sorted(sys.modules), ""

            folders = self.unharmed(form)  # here, not in the process that reads them
            outcome = watched(box, work, seconds=300)
            if outcome.kind != "accepted":
                raise RuntimeError(f"{form}: not all of {[path.name for path in folders]} can be read: {outcome}")
            for name in outcome.done:
                with contextlib.suppress(Exception):  # some can be imported in one order only
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # or the collector would touch, and so copy, the pages of all objects in every fork

    def run(self, case: Case, box: Path, seconds: float = SECONDS) -> Outcome:
        """Mutate files, and read them, in a process that has seen no others."""
        return watched(box, self._work(case), seconds)

    def run_many(self, cases: Sequence[Case], box: Path) -> list[Outcome]:
        """Run cases one after the other in one process, until one fails.

        That one is run once more by itself. So is what hung: a machine that is busy makes who works wait, too.
        """
        outcomes = watch_many(box, [self._work(case) for case in cases])
        if outcomes[-1].failed:
            case = cases[len(outcomes) - 1]
            if not (box / "done").is_file():
                raise HarnessError(f"{case} could not be mutated: {outcomes[-1]}")
            outcomes[-1].done = json.loads((box / "done").read_text())
            again = self.run(case, box)
            if again.failed or outcomes[-1].kind == "hang":
                again.done = outcomes[-1].done
                outcomes[-1] = again
            else:
                outcomes[-1].what += f" (only after {len(outcomes) - 1} other cases)"
        return outcomes

    def _work(self, case: Case) -> Workload:
        form, rng = FORMATS[case.form], Random(str(case))
        folders = self.unharmed(case.form)
        start = folders[rng.randrange(len(folders))]
        state = rng.getstate()

        def work(box: Path) -> tuple[list[str], str]:
            rng.setstate(state)
            with prepared():
                shutil.copytree(start, box / "inside")
                done = [start.name, *(mutate(rng, form, box / "inside") if case.number else [])]
                (box / "done").write_text(json.dumps(done))
            return done, form.read(box / "inside", start)

        return work

    def replay(self, entry: dict[str, Any], box: Path) -> Outcome:
        """Read files that a corpus keeps."""
        form = FORMATS[entry["format"]]
        (start,) = [path for path in self.unharmed(entry["format"]) if path.name == entry["start"]]

        def work(box: Path) -> tuple[list[str], str]:
            shutil.copytree(start, box / "inside")
            with prepared():
                for name, content in entry["files"].items():
                    _put(box / "inside" / name, content)
                if form.seal is not None:
                    form.seal(box / "inside")
            return [start.name], form.read(box / "inside", start)

        return watched(box, work)

    def entry(self, case: Case, folder: Path, outcome: Outcome) -> dict[str, Any]:
        """Make what a corpus keeps of a case: the files that differ."""
        (start,) = [path for path in self.unharmed(case.form) if path.name == outcome.done[0]]
        files = {
            name: _kept(folder / name)
            for name in sorted({*_names(start), *_names(folder)})
            if _differ(start / name, folder / name)
        }
        if FORMATS[case.form].seal is not None and len(files) > 1:
            files.pop("manifest.json", None)
        return {
            "format": case.form,
            "case": str(case),
            "start": start.name,
            "was": f"{outcome.kind}: {outcome.what}"[:200],
            "where": outcome.where,
            "files": files,
        }


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _differ(one: Path, other: Path) -> bool:
    states = [path.lstat() if os.path.lexists(path) else None for path in (one, other)]
    if states[0] is None or states[1] is None:
        return True
    if stat.S_IFMT(states[0].st_mode) != stat.S_IFMT(states[1].st_mode) or states[0].st_size != states[1].st_size:
        return True
    return one.read_bytes() != other.read_bytes()


def _kept(path: Path) -> Any:
    if not os.path.lexists(path):
        return {"node": "gone"}
    if path.is_symlink():
        return {"link": os.readlink(path)}
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        return {"node": "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "folder"}
    if path.stat().st_size >= HUGE:
        return {"node": "huge" if path.stat().st_blocks else "zeros"}
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
        if len(text) <= PRINTABLE:
            return {"text": text}
    except UnicodeDecodeError:
        pass
    return {"deflated": base64.b64encode(zlib.compress(content, 9)).decode()}


def _put(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if "node" in content:
        if not path.exists():
            path.write_bytes(b"")
        NODES[content["node"]](path)
        return
    path.unlink(missing_ok=True)
    if "link" in content:
        path.symlink_to(content["link"])
    elif "text" in content:
        path.write_bytes(content["text"].encode("utf-8"))
    else:
        path.write_bytes(zlib.decompress(base64.b64decode(content["deflated"])))
