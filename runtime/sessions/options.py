"""How a graph is opened: `onnxruntime.SessionOptions`, and what a caller may say of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime

from tfm.bundle import brief, kind_of
from tfm.errors import InputError

from ..doctor.saturation import saturates
from ..inputs.checks import nearest

# What fuses into kernels that are slower than their parts. MiniLM in int8, 8 × 128 tokens, one thread: 12
# SkipLayerNormalization took 19.3 ms of 69, the same 12 Add and LayerNormalization 3.9.
_SLOW_FUSIONS = {"cpu": "SkipLayerNormFusion;BiasGeluFusion"}
_SILENT = 4  # fatal only: every failure is raised, none needs printing

_SPINNING = "session.intra_op.allow_spinning"
_NO_SPINNING_BETWEEN_RUNS = "session.force_spinning_stop"

# Attributes of SessionOptions that hold one number or flag; the others are set by parameters of `load`, or are methods.
_ATTRIBUTES: Mapping[str, type] = {
    "enable_mem_pattern": bool,
    "enable_mem_reuse": bool,
    "log_severity_level": int,
    "log_verbosity_level": int,
    "use_deterministic_compute": bool,
}
# Entries of onnxruntime 1.32's onnxruntime_session_options_config_keys.h that concern how a graph runs here. Those that
# say what is opened or written are left out: what runs is what the bundle's digests prove, and nothing else.
_ENTRIES = frozenset(
    {
        "ep.cpu.qmoe_deferred_scale",
        "mlas.disable_kleidiai",
        "mlas.qnbit.force_fp32",
        "mlas.use_lut_gemm",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "optimization.minimal_build_optimizations",
        "session.disable_aot_function_inlining",
        "session.disable_cpu_ep_fallback",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.inter_op.spin_backoff_max",
        "session.inter_op.spin_duration_us",
        "session.intra_op.spin_backoff_max",
        "session.intra_op.spin_duration_us",
        "session.intra_op_thread_affinities",
        "session.prepack.enable_parallel",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
        "session.x64quantprecision",
    }
)
_PARAMETERS = {
    _SPINNING: "spin",
    _NO_SPINNING_BETWEEN_RUNS: "spin",
    "enable_cpu_mem_arena": "arena",
    "intra_op_num_threads": "threads",
    "session.enable_cpu_mem_arena": "arena",
    "session.intra_op_num_threads": "threads",
}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a caller says of how a graph is opened, beside the provider and the number of threads.

    Attributes:
        spin: Whether threads that wait for work keep their cores busy: None: while a run is under way, and not between
            runs; True: after a run too, for some milliseconds; False: never.
        arena: Whether memory of a run is kept for the next one.
        mapped: Whether weights in a file of their own are mapped into memory, rather than read.
        options: Further options of onnxruntime, by its names for them.
    """

    spin: bool | None = None
    arena: bool = True
    mapped: bool = True
    options: tuple[tuple[str, str | int | bool], ...] = ()


DEFAULTS = Tuning()


def check_tuning(spin: Any, arena: Any, mapped: Any, options: Any) -> Tuning:
    """Check what a caller says of how a graph is opened."""
    if spin is not None and not isinstance(spin, bool):
        raise InputError(f"spin must be True, False or None, but is {brief(spin)}")
    for name, value in (("arena", arena), ("mapped", mapped)):
        if not isinstance(value, bool):
            raise InputError(f"{name} must be True or False, but is {brief(value)}")
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise InputError(f"options must be a mapping of onnxruntime's names to values, but is {kind_of(options)}")
    checked = tuple((name, _check_option(name, value)) for name, value in options.items())
    return Tuning(spin=spin, arena=arena, mapped=mapped, options=checked)


def _check_option(name: Any, value: Any) -> str | int | bool:
    if name in _PARAMETERS:
        raise InputError(f"the option {name!r} is set by the parameter {_PARAMETERS[name]} of load()")
    if name in _ATTRIBUTES:
        wanted = _ATTRIBUTES[name]
        # Not isinstance: True is an int as well.
        if type(value) is not wanted:
            raise InputError(f"the option {name!r} must be a value of {wanted.__name__}, but is {brief(value)}")
        return wanted(value)
    if name not in _ENTRIES:
        raise InputError(f"there is no option {brief(name)}; {nearest(name, [*_ENTRIES, *_ATTRIBUTES])}")
    if isinstance(value, bool):  # onnxruntime's entries are texts, and "1" and "0" its flags
        return str(int(value))
    if not isinstance(value, (str, int)):
        raise InputError(f"the option {name!r} must be a str, an int or a bool, but is {brief(value)}")
    return str(value)


def session_options(provider: str, threads: int, tuning: Tuning = DEFAULTS) -> Any:
    """Make the `onnxruntime.SessionOptions` that every graph is opened with.

    Threads that wait spin for some milliseconds before they sleep, which makes runs faster, and lets an idle app burn
    CPU time after each: MiniLM in int8 on two threads, runs of 4 tokens 0.1 s apart, took 31 ms of CPU time each where
    threads spin on, 3.6 where they stop with the run, 2.5 where they never spin; back to back, 0.68, 0.75 and 1.05 ms
    of wall time. So they stop with the run, unless `tuning` says otherwise.

    Args:
        provider: "cpu" or "cuda".
        threads: Number of threads within an operator, at least 1.
        tuning: What a caller says of it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _SILENT
    options.enable_cpu_mem_arena = tuning.arena
    # Without it, `assignment` could not tell which provider a node was given to.
    entries = {"session.record_ep_graph_assignment_info": "1"}
    entries[_SPINNING] = "0" if tuning.spin is False else "1"
    entries[_NO_SPINNING_BETWEEN_RUNS] = "1" if tuning.spin is None else "0"
    if provider in _SLOW_FUSIONS:
        entries["optimization.disable_specified_optimizers"] = _SLOW_FUSIONS[provider]
    if provider == "cpu" and saturates():  # exact kernels; where they are not needed, they are half as fast again
        entries["session.x64quantprecision"] = "1"
    # The caller's come last, so that they hold.
    for name, value in tuning.options:
        if name in _ATTRIBUTES:
            setattr(options, name, value)
        else:
            entries[name] = str(value)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return options
