"""Many cases on several processes, counted by format."""

import collections
import dataclasses
import itertools
import json
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .cases import Case, Lab
from .formats import FORMATS, schedule
from .watch import FAULTS, KINDS, Outcome

BATCH = 25
"""Cases that one process runs."""

REPORTED = 500
"""Cases after which the table so far is written anew, to be looked at meanwhile."""

KEPT = 3
"""Cases of one fault that are kept."""


class Tally:
    """What became of many cases."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.slowest: dict[str, float] = collections.defaultdict(float)
        self.largest: dict[str, int] = collections.defaultdict(int)
        self.faults: dict[tuple[str, ...], list[tuple[str, Outcome]]] = collections.defaultdict(list)
        self.seconds = 0.0

    def add(self, form: str, case: str, outcome: Outcome) -> bool:
        """Count a case; tell whether it is one of the first of its fault."""
        self.counts[form][outcome.kind] += 1
        self.slowest[form] = max(self.slowest[form], outcome.seconds)
        self.largest[form] = max(self.largest[form], outcome.megabytes)
        if not outcome.failed:
            return False
        known = self.faults[form, outcome.kind, outcome.what.partition(":")[0], outcome.where]
        known.append((case, outcome))
        return len(known) <= KEPT

    @property
    def cases(self) -> int:
        """How many there were."""
        return sum(count.total() for count in self.counts.values())

    @property
    def failed(self) -> int:
        """How many of them must not be."""
        return sum(count[kind] for count in self.counts.values() for kind in FAULTS)

    def table(self) -> str:
        """Draw the counts, and one line for each fault."""
        rows = [["format", "cases", *KINDS, "slowest, s", "most, MB"]]
        for form in sorted(self.counts):
            count = self.counts[form]
            rows.append(
                [
                    form,
                    str(count.total()),
                    *(str(count[kind]) for kind in KINDS),
                    f"{self.slowest[form]:.1f}",
                    str(self.largest[form]),
                ]
            )
        total: collections.Counter[str] = sum(self.counts.values(), collections.Counter())
        largest, slowest = max(self.largest.values(), default=0), max(self.slowest.values(), default=0.0)
        rows.append(["all", str(self.cases), *(str(total[kind]) for kind in KINDS), f"{slowest:.1f}", str(largest)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        for key, found in sorted(self.faults.items(), key=lambda item: -len(item[1])):
            case, outcome = found[0]
            lines.append(
                f"{len(found)} × {' '.join(key[:2])}, as {case} ({', '.join(outcome.done)}): {outcome.what!r:.160} "
                f"at {outcome.where}"
            )
        lines.append(f"{self.cases} cases in {self.seconds:.0f} s")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Give the counts as JSON values."""
        faults = [
            {
                "format": key[0],
                "kind": key[1],
                "count": len(found),
                "case": found[0][0],
                **dataclasses.asdict(found[0][1]),
            }
            for key, found in self.faults.items()
        ]
        formats = {
            form: {
                "cases": count.total(),
                **{kind: count[kind] for kind in KINDS},
                "slowest": round(self.slowest[form], 2),
                "megabytes": self.largest[form],
            }
            for form, count in self.counts.items()
        }
        return {
            "cases": self.cases,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "formats": formats,
            "faults": faults,
        }


def run(
    lab: Lab, forms: Sequence[str], seed: str, count: int | None, until: float | None, jobs: int, keep: Path
) -> Tally:
    """Run cases until there were enough of them, or the time is up.

    Args:
        lab: Where.
        forms: Names of formats.
        seed: What decides the mutations.
        count: How many cases; None: as many as there is time for.
        until: On `time.monotonic`; None: without end.
        jobs: Processes.
        keep: Folder for the files of cases that failed.
    """
    start = time.monotonic()
    lab.warm(forms)
    tally = Tally()
    pipes = []
    for job in range(jobs):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            status = 1
            try:
                _work(lab, _mine(forms, seed, count, job, jobs), until, keep, lab.place / f"box{job}", writing)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        pipes.append(os.fdopen(reading))
    for line in _lines(pipes):
        form, case, values = json.loads(line)
        tally.add(form, case, Outcome(**values))
        if tally.cases % REPORTED == 0:
            tally.seconds = time.monotonic() - start
            keep.parent.mkdir(parents=True, exist_ok=True)
            (keep.parent / "table.txt").write_text(tally.table() + "\n")
    for _ in range(jobs):
        _, status = os.wait()
        if status:
            raise RuntimeError("a process of the harness itself broke down")
    tally.seconds = time.monotonic() - start
    return tally


def _mine(forms: Sequence[str], seed: str, count: int | None, job: int, jobs: int) -> Iterator[Case]:
    """Give one process its share of the cases, in the same order whatever the number of processes."""
    numbers = dict.fromkeys(forms, 0)
    index = 0
    for form in schedule():
        if form not in numbers:
            continue
        if index == count:
            return
        if index % jobs == job:
            yield Case(form=form, seed=seed, number=numbers[form])
        numbers[form] += 1
        index += 1


def _work(lab: Lab, cases: Iterator[Case], until: float | None, keep: Path, box: Path, writing: int) -> None:
    known: collections.Counter[tuple[str, ...]] = collections.Counter()
    while until is None or time.monotonic() < until:
        batch = list(itertools.islice(cases, BATCH))
        if not batch:
            return
        outcomes = lab.run_many(batch, box)
        cases = itertools.chain(batch[len(outcomes) :], cases)
        for case, outcome in zip(batch, outcomes, strict=False):
            if case.number == 0 and outcome.kind != "accepted":
                raise RuntimeError(f"{case} is not mutated, and not accepted: {outcome}")
            if outcome.failed:
                key = (case.form, outcome.kind, outcome.what.partition(":")[0], outcome.where)
                known[key] += 1
                if known[key] <= KEPT:
                    _keep(keep / f"{case.form}-{case.seed}-{case.number}.json", lab, box, case, outcome)
            os.write(writing, json.dumps([case.form, str(case), dataclasses.asdict(outcome)]).encode() + b"\n")


def _keep(file: Path, lab: Lab, box: Path, case: Case, outcome: Outcome) -> None:
    """Write down which files make a case fail, as a corpus does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(lab.entry(case, box / "inside", outcome), indent=1, ensure_ascii=False) + "\n")


def _lines(pipes: list[Any]) -> Iterator[str]:
    import selectors

    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()
                if line:
                    yield line
                else:
                    selector.unregister(key.fileobj)


def all_formats() -> list[str]:
    """Names of all formats."""
    return list(FORMATS)
