"""Make the table: each activation exported, swept, timed and rounded."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tfm.export import OpSweep, activation_curve, sweep
from tfm.export.sweeps import DTYPES
from tfm.latency import NOISE_LIMIT
from tfm.model import check_activation
from tfm.ops import ACTIVATIONS, GATED, activation_names, derivative_of, gate_of, is_gated
from tfm.quantize import Stage, silent
from tfm.report import ActivationCurve
from tfm.runtime import model_name, usable_cores

from .hidden import HiddenStates, normal_states, record_states
from .kernels import export_activation, find_kernels
from .rows import ActivationRow, ActivationTable
from .speed import BASELINE, ROUNDS, WIDTH, Speed, check_rounds, time_activations
from .sqnr import SCALES, Floats, Sqnr, summarize, text_sqnr

_PACKAGES = ("tfm-export", "torch", "onnx", "onnxruntime", "numpy")
_LEVEL = "runtime"


def tabulate(
    names: Sequence[str] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    rounds: int = ROUNDS,
    timing: bool = True,
    stage: Stage = silent,
) -> ActivationTable:
    """Tell what activations cost: what they become in ONNX, and their error, time and sensitivity to 8 bits.

    Args:
        names: Of `tfm.ops.ACTIVATIONS` and `GATED`; None: all.
        checkpoint: Whose inputs of activations the SQNR is measured on; None: standard normal ones.
        rounds: How often each is timed in turn.
        timing: Whether they are timed at all.
        stage: Told of every stage.

    Raises:
        ConfigError: A name is unknown.
        InputError: Too few rounds to tell an interval from.
        CheckpointError: The checkpoint cannot be read, or not on English texts.
        VerificationError: An activation cannot be run.
    """
    # All that may be wrong is refused before minutes of work.
    for name in names or ():
        check_activation(name)
    if timing:
        check_rounds(rounds)
    chosen = [name for name in activation_names() if names is None or name in names]
    # Before anything of this runs, which would be counted too.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if checkpoint is None:
        states = normal_states()
    else:
        with stage("run the checkpoint on English"):
            states = record_states(checkpoint)
    # relu is timed even where nobody asked for it: all others are compared with it.
    models: dict[str, ir.Model] = (
        {} if BASELINE in chosen or not timing else {BASELINE: export_activation(BASELINE, WIDTH)}
    )
    errors: dict[str, dict[str, OpSweep]] = {}
    curves: dict[str, ActivationCurve] = {}
    with stage("export each, and compare it with float64") as step:
        for done, name in enumerate(chosen):
            step(done, len(chosen), name)
            models[name] = export_activation(name, WIDTH)
            # At the level of the runtime, as the kernels that are shown are those.
            errors[name] = {op.dtype: op for op in sweep([name], levels=[_LEVEL]).ops}
            curves[name] = _curve(name)
        kernels = {name: find_kernels(models[name]) for name in chosen}
    with stage("round the outputs to 8 bits"):
        sqnr = _sqnr(chosen, states)
    speed: dict[str, tuple[Speed, ...]] = {}
    call = None
    if timing:
        with stage(f"time them in {rounds} rounds") as step:
            speed, call = time_activations(models, rounds, lambda done, total: step(done - 1, total, "turns"))
    rows = tuple(
        ActivationRow(
            name=name,
            gated=is_gated(name),
            definition=GATED.get(name) or ACTIVATIONS[name],
            kernels=kernels[name],
            errors={dtype: errors[name][dtype] for dtype in DTYPES},
            speed=speed.get(name, ()),
            sqnr=sqnr[name],
            curve=curves[name],
        )
        for name in chosen
    )
    return ActivationTable(
        rows=rows,
        about=states.about,
        source=states.source,
        rounds=rounds if timing else 0,
        call=call,
        made=_made(load),
        warnings=tuple(_warnings(load, speed.get(BASELINE, ()))),
    )


def _sqnr(names: Sequence[str], states: HiddenStates) -> dict[str, dict[str, Sqnr]]:
    of_texts: dict[str, dict[str, Floats]] = {}
    # relu first, and once: all others are compared with it.
    for name in dict.fromkeys([BASELINE, *names]):
        found = [[text_sqnr(y, scale) for scale in SCALES] for y in states.outputs(gate_of(name), is_gated(name))]
        of_texts[name] = dict(zip(SCALES, np.array(found).T, strict=True))
    return {
        name: {
            scale: summarize(of_texts[name][scale], None if name == BASELINE else of_texts[BASELINE][scale])
            for scale in SCALES
        }
        for name in names
    }


def _curve(name: str) -> ActivationCurve:
    """The curve of what is exported, with the function's derivative; of a gated one with a value of 1."""
    curve = activation_curve(name)
    derivative = derivative_of(name)
    assert derivative is not None  # it was checked
    return dataclasses.replace(curve, derivative=derivative(np.array(curve.x)).tolist())


def _warnings(load: float | None, baseline: Sequence[Speed]) -> list[str]:
    found = []
    if baseline and load is not None and load > (cores := usable_cores()):
        found.append(f"the machine was busy when this began: a load of {load:.1f} on {cores} usable cores")
    return found + [
        f"{one.rows}×{one.width}: nothing is concluded of times, as the quartiles of {BASELINE}'s rounds lie "
        f"{one.noise:.0%} apart, more than {NOISE_LIMIT:.0%}; try again on an idle machine"
        for one in baseline
        if one.noise > NOISE_LIMIT
    ]


def _made(load: float | None) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{model_name()}, {usable_cores()} usable cores",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load": load,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
