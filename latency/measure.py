"""How fast a bundle is on this machine: every precision, and what else is given, side by side."""

import datetime
import importlib.metadata
import os
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfm.bundle import Manifest, folder_of, read_manifest
from tfm.errors import InputError
from tfm.runtime import Progress, check_count, files_of_graph, model_name, nearest, usable_cores

from .ratios import LEAST_ROUNDS, NOISE_LIMIT, noise_of, ratio_of, spread_of
from .report import BASELINES, LatencyReport, Line, Start, Timing
from .rounds import SECONDS, WARMUP, Job, Turns, start_once, take_turns
from .shelf import shelf
from .workloads import CORPUS, ModelWork, corpus_of, model_works

ROUNDS = 15
STARTS = 5
NEW_TOKENS = 16

_PACKAGES = ("tfm-export", "onnxruntime", "numpy", "torch")


def measure_latency(
    bundle: str | os.PathLike[str],
    *,
    precisions: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (16, 128),
    threads: Sequence[int] = (1,),
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    warmup: int = WARMUP,
    new_tokens: int = NEW_TOKENS,
    texts: Sequence[str] | None = None,
    corpus: bool = True,
    starts: int = STARTS,
    baseline: str | None = None,
    engines: Mapping[str, Job] | None = None,
    left_out: Mapping[str, str] | None = None,
    progress: Progress = False,
    say: Callable[[str], None] = lambda text: None,
) -> LatencyReport:
    """Time every precision of a bundle, run as an app runs it, each in a process of its own, in interleaved rounds.

    Args:
        bundle: Its folder, or a .zip of it.
        precisions: Those to time; None: all that it has.
        batch_sizes: Numbers of rows.
        lengths: Tokens of each row; of what generates, of its prompt or source.
        threads: Numbers of threads, one after the other; threads are pinned to as many cores.
        rounds: How often every engine has its turn, at least 6.
        seconds: How long a turn is.
        warmup: Runs of each work before the first round.
        new_tokens: How many tokens follow each prompt or source.
        texts: The corpus that throughput is measured on; None: built-in English.
        corpus: Whether it is measured.
        starts: How often each engine is started in a fresh process; 0: never.
        baseline: Engine that the others are compared with; None: eager where it is one, else fp32.
        engines: More than the precisions, by name.
        left_out: Engines that cannot run → why, for the report.
        progress: Whether to count turns on stderr, or a function to tell (done, total).
        say: Told what is being done.

    Raises:
        TfmError: The bundle is bad, what is asked for makes no sense, or an engine broke down.
    """
    folder = folder_of(bundle)
    manifest = read_manifest(folder)
    _check(manifest, precisions, threads, rounds, seconds, new_tokens)
    for name, values in (("batch_sizes", batch_sizes), ("lengths", lengths)):
        if not [check_count(name, value) for value in values]:
            raise InputError(f"{name} is empty; give at least one")
    chosen = list(manifest.graphs) if precisions is None else list(dict.fromkeys(precisions))
    # Of a .zip it is the folder that it was unpacked into, so that no engine unpacks it again.
    common = {"bundle": str(folder.resolve())}
    jobs = {name: replace(job, options={**common, **job.options}) for name, job in (engines or {}).items()}
    for name in chosen:
        jobs[name] = Job(worker="tfm.latency.engine", options={**common, "precision": name})
    if baseline is not None and baseline not in jobs:
        raise InputError(f"there is no engine {baseline!r} to compare with; {nearest(baseline, list(jobs))}")
    bases = BASELINES if baseline is None else (baseline,)
    workloads = model_works(manifest, batch_sizes, lengths, new_tokens)
    ragged, about = corpus_of(manifest, texts, new_tokens) if corpus else (None, "not asked for")
    # Before anything of ours runs, which would be counted too.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    warnings = _warnings(load)
    peaks: dict[int, Mapping[str, int | None]] = {}
    lines: list[Line] = []
    with shelf() as place:
        first = _first_answer(workloads[0], ragged).told(place / "first.npz")
        startable = {name: job for name, job in jobs.items() if job.starts and starts}
        if startable:
            say(f"start {', '.join(startable)} anew, in turn, {starts}×")
        # Before the rounds, while no other process of ours is open.
        started = _start(startable, first, threads[0], starts)
        workloads += [ragged] if ragged else []
        told = [work.told(place / f"{index}.npz") for index, work in enumerate(workloads)]
        unable = dict(left_out or {})
        for count in threads:
            say(f"open {', '.join(jobs)} on {count} thread{'s' * (count > 1)}, and warm up")
            # New processes for each number of threads, as a session has its threads from the start.
            here = {name: replace(job, options={**job.options, "threads": count}) for name, job in jobs.items()}
            turns = take_turns(
                here, told, rounds=rounds, seconds=seconds, warmup=warmup, cores=_cores(count), progress=progress
            )
            lines += _lines(workloads, turns, count, list(jobs), bases)
            peaks[count] = turns.peaks
            unable |= turns.unable
    # It was made, but no engine could do it.
    if ragged and not any(line.measure == CORPUS for line in lines):
        about = "this bundle has no task for texts as they are"
    warnings += [_noise(line) for line in lines if line.noisy]
    return LatencyReport(
        bundle=Path(os.path.abspath(bundle)).name,
        kind=manifest.kind,
        made=_made(load),
        settings={
            "batch_sizes": list(batch_sizes),
            "lengths": list(lengths),
            "threads": list(threads),
            "rounds": rounds,
            "seconds": seconds,
            "warmup": warmup,
            "new_tokens": new_tokens,
            "noise_limit": NOISE_LIMIT,
        },
        corpus=about,
        warnings=warnings,
        left_out=unable,
        lines=lines,
        starts=started,
        peaks=peaks,
        sizes={name: _size(manifest, name) for name in chosen},
    )


def _check(
    manifest: Manifest,
    precisions: Sequence[str] | None,
    threads: Sequence[int],
    rounds: int,
    seconds: float,
    new_tokens: int,
) -> None:
    for name in precisions or ():
        if name not in manifest.graphs:
            raise InputError(f"{manifest.folder} has no precision {name!r}; {nearest(name, list(manifest.graphs))}")
    if precisions is not None and not precisions:
        raise InputError("precisions is empty; name one that the bundle has, or pass None for all")
    if not threads:
        raise InputError("threads is empty; give at least one number")
    cores = usable_cores()
    for count in threads:
        if check_count("threads", count) > cores:
            raise InputError(f"{count} threads cannot be pinned to {cores} usable cores; ask for at most {cores}")
    if check_count("rounds", rounds) < LEAST_ROUNDS:
        raise InputError(f"rounds must be at least {LEAST_ROUNDS}, as fewer show nothing, but is {rounds}")
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds must be a number above 0, but is {seconds}")
    if check_count("new_tokens", new_tokens) < 2:
        raise InputError("new_tokens must be at least 2: the first one, and one that follows it")


def _first_answer(work: ModelWork, ragged: ModelWork | None) -> ModelWork:
    """The least that a freshly opened model is asked for: one text or row, and one token."""
    if work.arrays:
        return work
    # A text where there is one, so that loading the tokenizer is counted.
    source = ragged or work
    return ModelWork(name="answer", kind="answer", rows=source.rows[:1], texts=source.texts[:1], new_tokens=1, count=1)


def _start(jobs: Mapping[str, Job], work: Mapping[str, Any], threads: int, starts: int) -> dict[str, Start]:
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in jobs}
    # In an order drawn anew each time: who is first finds files that nobody has read yet.
    draw = random.Random(1)
    for _ in range(starts):
        for name in draw.sample(list(jobs), len(jobs)):
            job = replace(jobs[name], options={**jobs[name].options, "threads": threads})
            found[name].append(start_once(name, job, [work]))
    return {
        name: Start(
            starts=starts,
            imported=statistics.median(one["import"] for one in times),
            opened=statistics.median(one["open"] for one in times),
            answered=statistics.median(one["answer"] for one in times),
            peak=None if times[0]["peak"] is None else int(statistics.median(one["peak"] for one in times)),
        )
        for name, times in found.items()
    }


def _lines(
    workloads: Sequence[ModelWork], turns: Turns, threads: int, order: Sequence[str], bases: Sequence[str]
) -> list[Line]:
    """A line for every measure of every work, with the engines in their order."""
    lines = []
    for work, times in zip(workloads, turns.times, strict=True):
        # An engine that cannot do this work is not there.
        names = [name for name in order if name in times]
        measures = dict.fromkeys(measure for name in names for turn in times[name] for measure in turn)
        for measure in measures:
            baseline = next((name for name in bases if name in names), None) if len(names) > 1 else None
            medians = {name: [statistics.median(turn[measure]) for turn in times[name]] for name in names}
            timings = {}
            for name in names:
                single = [seconds for turn in times[name] for seconds in turn[measure]]
                compared = baseline is not None and name != baseline
                # Medians of rounds are compared; single runs of a round are not independent of each
                # other.
                ratio = ratio_of(medians[baseline], medians[name]) if compared and baseline is not None else None
                timings[name] = Timing(spread=spread_of(single), ratio=ratio)
            lines.append(
                Line(
                    work=work.name,
                    measure=CORPUS if work.kind == CORPUS else measure,
                    threads=threads,
                    rows=work.count,
                    baseline=baseline,
                    noise=None if baseline is None else noise_of(medians[baseline]),
                    timings=timings,
                )
            )
    return lines


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
