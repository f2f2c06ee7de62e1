"""How fast a bundle is on this machine: every precision, and what else is given, side by side."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfm.bundle import Manifest, folder_of, read_manifest
from tfm.errors import InputError
from tfm.runtime import StepProgress, files_of_graph, model_name, nearest, usable_cores

from .latency_options import LatencyOptions
from .ratios import NOISE_LIMIT, noise_of, ratio_of, spread_of
from .report import BASELINES, LatencyReport, Line, Start, Timing
from .rounds import Job, Turns, start_once, take_turns
from .shelf import shelf
from .workloads import CORPUS, ModelWork, corpus_of, model_works

_PACKAGES = ("tfm-export", "onnxruntime", "numpy", "torch")


def measure_latency(
    bundle: str | os.PathLike[str],
    options: LatencyOptions | None = None,
    *,
    engines: Mapping[str, Job] | None = None,
    left_out: Mapping[str, str] | None = None,
    progress: bool | StepProgress = False,
    **moved: Any,
) -> LatencyReport:
    """Time every precision of a bundle, run as an app runs it, each in a process of its own, in interleaved rounds.

    Args:
        bundle: Its folder, or a .zip of it.
        options: What is timed, and how long; None: as `LatencyOptions` has it.
        engines: More than the precisions, by name.
        left_out: Engines that cannot run → why, for the report.
        progress: Whether to say on stderr what is done, and to count turns; or a function to tell (done, total, what).
        **moved: Nothing; what was an argument here is a field of `LatencyOptions` now.

    Raises:
        TfmError: The bundle is bad, what is asked for makes no sense, or an engine broke down.
    """
    _refuse(moved)
    asked = LatencyOptions() if options is None else options
    folder = folder_of(bundle)
    manifest = read_manifest(folder)
    chosen = _precisions(manifest, asked)
    jobs = _jobs(folder, chosen, engines or {}, asked.baseline)
    workloads = model_works(manifest, asked.batch_sizes, asked.lengths, asked.new_tokens)
    ragged, about = corpus_of(manifest, asked.texts, asked.new_tokens) if asked.corpus else (None, "not asked for")
    # Before anything of ours runs, which would be counted too.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    warnings = _warnings(load)
    with shelf() as folder:
        first = _first_answer(workloads[0], ragged).spec(folder / "first.npz")
        # Before the rounds, while no other process of ours is open.
        started = _start({name: job for name, job in jobs.items() if job.starts}, first, asked, progress)
        workloads += [ragged] if ragged else []
        specs = [work.spec(folder / f"{index}.npz") for index, work in enumerate(workloads)]
        turns_of = {count: _take_turns(jobs, specs, count, asked, progress) for count in asked.threads}
    lines = [
        line for count, turns in turns_of.items() for line in _lines(workloads, turns, count, jobs, asked.baseline)
    ]
    # It was made, but no engine could do it.
    if ragged and CORPUS not in {line.measure for line in lines}:
        about = "this bundle has no task for texts as they are"
    return LatencyReport(
        bundle=Path(os.path.abspath(bundle)).name,
        kind=manifest.kind,
        made=_made(load),
        settings=asked.settings,
        corpus=about,
        warnings=[*warnings, *(_noise(line) for line in lines if line.noisy)],
        left_out={
            **(left_out or {}),
            **{name: why for turns in turns_of.values() for name, why in turns.unable.items()},
        },
        lines=lines,
        starts=started,
        peaks={count: turns.peaks for count, turns in turns_of.items()},
        sizes={name: _size(manifest, name) for name in chosen},
    )


def _refuse(moved: Mapping[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(LatencyOptions)}
    for name in moved:
        if name in fields:
            raise InputError(
                f"{name} is a field of LatencyOptions now: measure_latency(bundle, LatencyOptions({name}=…))"
            )
        hint = "; progress is told that too" if name == "say" else ""
        raise InputError(f"measure_latency has no argument {name!r}{hint}")


def _precisions(manifest: Manifest, asked: LatencyOptions) -> list[str]:
    for name in asked.precisions or ():
        if name not in manifest.graphs:
            raise InputError(f"{manifest.folder} has no precision {name!r}; {nearest(name, list(manifest.graphs))}")
    return list(dict.fromkeys(asked.precisions or manifest.graphs))


def _jobs(folder: Path, precisions: Sequence[str], engines: Mapping[str, Job], baseline: str | None) -> dict[str, Job]:
    # Of a .zip it is the folder that it was unpacked into, so that no engine unpacks it again.
    common = {"bundle": str(folder.resolve())}
    jobs = {name: replace(job, options={**common, **job.options}) for name, job in engines.items()}
    jobs |= {name: Job(worker="tfm.latency.engine", options={**common, "precision": name}) for name in precisions}
    if baseline is not None and baseline not in jobs:
        raise InputError(f"there is no engine {baseline!r} to compare with; {nearest(baseline, list(jobs))}")
    return jobs


def _on(threads: int, job: Job) -> Job:
    return replace(job, options={**job.options, "threads": threads})


def _begin(progress: bool | StepProgress, what: str) -> bool | Callable[[int, int], None]:
    """Tell what begins; give what is to be told how far that is."""
    if isinstance(progress, bool):
        if progress and sys.stderr is not None:
            print(what, file=sys.stderr)
        return progress
    progress(0, 1, what)
    return lambda done, total: progress(done, total, what)


def _take_turns(
    jobs: Mapping[str, Job],
    specs: Sequence[Mapping[str, Any]],
    threads: int,
    asked: LatencyOptions,
    progress: bool | StepProgress,
) -> Turns:
    # New processes for each number of threads, as a session has its threads from the start.
    return take_turns(
        {name: _on(threads, job) for name, job in jobs.items()},
        specs,
        rounds=asked.rounds,
        seconds=asked.seconds,
        warmup=asked.warmup,
        cores=_cores(threads),
        progress=_begin(progress, f"open {', '.join(jobs)} on {threads} thread{'s' * (threads > 1)}, and warm up"),
    )


def _first_answer(work: ModelWork, ragged: ModelWork | None) -> ModelWork:
    """The least that a freshly opened model is asked for: one text or row, and one token."""
    if work.arrays:
        return work
    # A text where there is one, so that loading the tokenizer is counted.
    source = ragged or work
    return ModelWork(name="answer", kind="answer", rows=source.rows[:1], texts=source.texts[:1], new_tokens=1, count=1)


def _start(
    jobs: Mapping[str, Job], work: Mapping[str, Any], asked: LatencyOptions, progress: bool | StepProgress
) -> dict[str, Start]:
    if not jobs or not asked.starts:
        return {}
    _begin(progress, f"start {', '.join(jobs)} anew, in turn, {asked.starts}×")
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in jobs}
    # In an order drawn anew each time: who is first finds files that nobody has read yet.
    draw = random.Random(1)
    for _ in range(asked.starts):
        for name in draw.sample(list(jobs), len(jobs)):
            found[name].append(start_once(name, _on(asked.threads[0], jobs[name]), [work]))
    return {
        name: Start(
            starts=asked.starts,
            imported=_median(times, "import"),
            opened=_median(times, "open"),
            answered=_median(times, "answer"),
            peak=None if times[0]["peak"] is None else int(_median(times, "peak")),
        )
        for name, times in found.items()
    }


def _median(starts: Sequence[Mapping[str, Any]], what: str) -> float:
    return statistics.median(start[what] for start in starts)


def _lines(
    workloads: Sequence[ModelWork], turns: Turns, threads: int, order: Iterable[str], baseline: str | None
) -> Iterator[Line]:
    """A line for every measure of every work, with the engines in their order."""
    for work, times in zip(workloads, turns.times, strict=True):
        # An engine that cannot do this work is not there.
        names = [name for name in order if name in times]
        base = _base(names, baseline)
        for measure in dict.fromkeys(measure for name in names for turn in times[name] for measure in turn):
            rounds = {name: [turn[measure] for turn in times[name]] for name in names}
            yield Line(
                work=work.name,
                measure=CORPUS if work.kind == CORPUS else measure,
                threads=threads,
                rows=work.count,
                baseline=base,
                noise=None if base is None else noise_of(_medians(rounds[base])),
                timings={name: _timing(rounds, name, base) for name in names},
            )


def _base(names: Sequence[str], baseline: str | None) -> str | None:
    """What engines are compared with; None: there is nothing to compare."""
    bases = BASELINES if baseline is None else [baseline]
    return next((name for name in bases if name in names), None) if len(names) > 1 else None


def _timing(rounds: Mapping[str, Sequence[Sequence[float]]], name: str, base: str | None) -> Timing:
    compared = base is not None and name != base
    return Timing(
        spread=spread_of([seconds for turn in rounds[name] for seconds in turn]),
        # Medians of rounds are compared; single runs of a round are not independent of each other.
        ratio=ratio_of(_medians(rounds[str(base)]), _medians(rounds[name])) if compared else None,
    )


def _medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    return list(map(statistics.median, rounds))


def _cores(count: int) -> list[int] | None:
    # As many as threads, so that each engine has the same ones.
    return sorted(os.sched_getaffinity(0))[:count] if hasattr(os, "sched_getaffinity") else None


def _warnings(load: float | None) -> list[str]:
    found = []
    if load is not None and load > (cores := usable_cores()):
        found.append(f"the machine was busy when this began: a load of {load:.1f} on {cores} usable cores")
    if not hasattr(os, "sched_setaffinity"):
        found.append("this system does not pin threads to cores")
    return found


def _noise(line: Line) -> str:
    where = f"{line.measure} of {line.work}" if line.measure not in ("run", CORPUS) else line.work
    return (
        f"{where} on {line.threads} thread{'s' * (line.threads > 1)}: nothing is concluded, as the quartiles of "
        f"{line.baseline}'s rounds lie {line.noise or 0:.0%} apart, more than {NOISE_LIMIT:.0%}; try again on an idle "
        "machine"
    )


def _made(load: float | None) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{model_name()}, {usable_cores()} usable cores",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load": load,
        "versions": versions,
    }


def _size(manifest: Manifest, precision: str) -> int:
    paths = manifest.graphs[precision].values()
    return sum(manifest.files[name].size for path in paths for name in files_of_graph(manifest, path))
