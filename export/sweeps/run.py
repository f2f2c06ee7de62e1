"""Sweep ops: export each by itself, run it at every optimization level, compare it with its oracle."""

import difflib
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from tfm.errors import ConfigError, ExportError
from tfm.ops import SWEEPS, activation_names
from tfm.report import ActivationCurve
from tfm.runtime import StepProgress

from ..to_onnx import to_onnx
from ..verify.compare import first_line
from ..verify.optimized import LEVELS
from . import activations, attention, cached_attention, norms, positions
from .report import SweepReport, verdict
from .subjects import Array, Case, Check, Group, Source, to_float16
from .tally import Tally

DTYPES = ("float32", "float16")
"""What can be swept; float16 only activations."""

Tallies = dict[tuple[str, str, str, str], Tally]
"""Group, op, form and dtype → figures."""


GROUPS: dict[str, Group] = {
    "activations": Group(
        names=activation_names, subjects=lambda name, dtypes, full: activations.subjects(name, dtypes), dtypes=DTYPES
    ),
    "attention": Group(names=lambda: ("attention",), subjects=lambda name, dtypes, full: attention.subjects(full=full)),
    "cached_attention": Group(
        names=lambda: ("cached_attention",), subjects=lambda name, dtypes, full: cached_attention.subjects(full=full)
    ),
    "positions": Group(names=lambda: positions.NAMES, subjects=lambda name, dtypes, full: positions.subjects(name)),
    "norms": Group(names=lambda: norms.NAMES, subjects=lambda name, dtypes, full: norms.subjects(name)),
}
"""What is swept. To add ops, add a file and an entry here."""


def groups() -> dict[str, tuple[str, ...]]:
    """Give the names of ops that can be asked for, one by one or by group."""
    return {name: tuple(group.names()) for name, group in GROUPS.items()}


def sweep(
    names: Sequence[str] | None = None,
    *,
    dtypes: Collection[str] = DTYPES,
    levels: Sequence[str] = tuple(LEVELS),
    full: bool = False,
    progress: StepProgress = lambda done, total, what: None,
) -> SweepReport:
    """Compare ops, each exported alone, with an independent float64 oracle.

    Args:
        names: Ops or groups of `groups`; None for all.
        dtypes: Of `DTYPES`.
        levels: Of `tfm.export.verify.verify.LEVELS`.
        full: Sweep attention's whole product of heads, sizes, scales and layouts, not every pair.
        progress: Called before each graph, and once at the end.

    Returns:
        The report. What could not be exported, run or compared is a fault in it, never a pass.

    Raises:
        ConfigError: A name, dtype or level is unknown, or an op is not swept in any of the dtypes.
    """
    # All names are checked before the first export, which takes seconds.
    chosen = _choose(names)
    _known("dtype", dtypes, DTYPES)
    _known("optimization level", levels, LEVELS)
    subjects = _subjects(chosen, dtypes, full)
    swept = {subject.op for subject in subjects}
    missing = [name for name in chosen if name not in swept]
    # Asked for by name, an op that is not swept must be told. Asked for all, it is no mistake.
    if missing and names is not None:
        raise ConfigError(f"{', '.join(missing)}: only activations are swept in float16; add float32")
    tallies: Tallies = {}
    for done, subject in enumerate(subjects):
        progress(done, len(subjects), subject.title)
        _sweep_one(subject, levels, tallies)
    progress(len(subjects), len(subjects), "done")
    ops = [verdict(*key, tally) for key, tally in tallies.items()]
    # Two stable sorts: forms of attention in the table's order, then groups; all else stays as it
    # came.
    forms = {"attention": attention.FORMS, "cached_attention": cached_attention.FORMS}
    ops.sort(key=lambda op: forms[op.op].index(op.form) if op.op in forms else -1)
    ops.sort(key=lambda op: list(groups()).index(op.group))
    return SweepReport(ops=tuple(ops), levels=tuple(levels))


def activation_curve(name: str, points: int = 241, *, reach: float = 6.0) -> ActivationCurve:
    """Evaluate an activation as it is exported, in float32.

    Args:
        name: One of `tfm.ops.activation_names`.
        points: How many, from -reach to reach.
        reach: How far.

    Raises:
        ConfigError: The name is unknown.
    """
    _known("activation", [name], activation_names())
    x = np.linspace(-reach, reach, points).astype(np.float32)
    feeds = activations.inputs(name, x)
    # A gated activation is drawn with a value of 1: what is left is its gate.
    feeds[:, 0] = 1.0 if feeds.shape[1] == 2 else feeds[:, 0]
    model = to_onnx(activations.make_graph(name))
    (y,) = _session(ir.to_proto(model).SerializeToString(), "all").run(None, {"x": feeds})
    exact = activations.exact(name, x)
    tolerance = SWEEPS["float32", "activation"]
    return ActivationCurve(
        name=name,
        x=x.tolist(),
        y=exact.tolist(),
        error=np.abs(y - exact).tolist(),
        # The tolerance at the ends, where it is widest.
        limit=tolerance.atol * reach + tolerance.rtol * float(np.abs(exact).max()),
    )


def _choose(names: Sequence[str] | None) -> list[str]:
    every = [op for ops in groups().values() for op in ops]
    if names is None:
        return every
    _known("op", names, dict.fromkeys([*groups(), *every]))
    wanted = {op for name in names for op in groups().get(name, (name,))}
    return [op for op in every if op in wanted]


def _known(what: str, names: Collection[str], known: Collection[str]) -> None:
    if not names:
        raise ConfigError(f"no {what} is asked for; there are {', '.join(known)}")
    for name in names:
        if name not in known:
            # cutoff=0: whatever was typed, something is nearest.
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown {what} {name!r}; the nearest is {near!r} (known: {', '.join(known)})")


def _subjects(names: Collection[str], dtypes: Collection[str], full: bool) -> list[Source]:
    subjects: list[Source] = []
    for name in names:
        group = next(group for group in GROUPS.values() if name in group.names())
        if wanted := tuple(dtype for dtype in group.dtypes if dtype in dtypes):
            subjects += group.subjects(name, wanted, full)
    return subjects


def _sweep_one(subject: Source, levels: Sequence[str], tallies: Tallies) -> None:
    """Export one graph, and add what it gives to the tallies of its forms."""
    # One export for all dtypes and levels. A failure does not end here, but goes on as the fault of
    # every form: what was not compared must show as failed.
    graph = subject.make()
    refused, content = "", b""
    try:
        content = ir.to_proto(to_onnx(graph)).SerializeToString()
    except ExportError as error:
        refused = str(error)
    for dtype in subject.dtypes:
        fault, sessions = (refused, {}) if refused else _open(subject.title, content, dtype, levels)
        for case in subject.cases(graph, dtype):
            checked = []
            for check in case.checks:
                key = (subject.group, subject.op, check.form, dtype)
                # Several graphs have the same form, of other heads and sizes: their figures are one
                # row.
                tally = tallies.setdefault(key, Tally(subject.tolerances[dtype]))
                tally.cases += 1
                tally.fail(fault)
                checked.append((check, tally))
            # Once a case, and not for each level.
            eager = {} if fault else graph.outputs_of(case.feeds)
            for level, session in sessions.items():
                _compare(session, level, subject.title, case, checked, eager)


def _open(title: str, content: bytes, dtype: str, levels: Sequence[str]) -> tuple[str, dict[str, ort.InferenceSession]]:
    """Open a graph at every level; a fault in words, or ""."""
    try:
        typed = to_float16(content) if dtype == "float16" else content
        return "", {level: _session(typed, level) for level in levels}
    except Exception as error:  # onnxruntime's errors share no narrower base
        return f"onnxruntime does not load {title}: {first_line(error)}", {}


def _compare(
    session: ort.InferenceSession,
    level: str,
    title: str,
    case: Case,
    checked: list[tuple[Check, Tally]],
    eager: dict[str, Array],
) -> None:
    """Run one case at one level, and add each checked output to its tally."""
    names = [value.name for value in session.get_inputs()]
    try:
        feeds = dict(zip(names, case.feeds, strict=True))
        found = session.run([check.output for check, _ in checked], feeds)
    except Exception as error:  # onnxruntime's errors share no narrower base
        for _, tally in checked:
            tally.fail(f"it cannot be run on {title} ({level}): {first_line(error)}")
        return
    for (check, tally), actual in zip(checked, found, strict=True):
        tally.add(check, actual, level, eager[check.output])


def _session(content: bytes, level: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # small graphs: more threads only wait for each other
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
