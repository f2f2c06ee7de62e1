"""One op of an ONNX graph against eager PyTorch: its weights, itself alone, and in place."""

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch

from tfm.errors import VerificationError
from tfm.ops import FREE, HALF, KINDS, OpId
from tfm.runtime import ErrorStats

from .hooks import RecordedCall
from .regions import Array, Region
from .reports import BROKEN, Cause, Fault, Kernel, OpReport, Optimized
from .subgraphs import Run, Subgraphs, open_nodes

# -inf, finfo.min and its half, by which models and the translation mask, all lie below; no bias
# does. float16 ends at -65504, so the bound is nearer there.
_MASKED, _MASKED_IN_HALF = -1e30, -2e4
"""Numbers added to a score that are smaller than this mask it; the second in a float16 graph."""


class Comparison:
    """All comparisons of one op, added up over the cases.

    Attributes:
        op: Which.
        region: Its nodes; None where the graph has none.
        free: Its error inside the whole graph.
    """

    def __init__(self, op: OpId, region: Region | None, source: str, half: bool = False) -> None:
        self.op, self.region = op, region
        self._half = half
        self.free = ErrorStats()
        self._source = source
        self._own, self._inherited = ErrorStats(), ErrorStats()
        # Of an attention over a cache, what it keeps, alone and in place: no number of it is computed.
        self._kept = [(ErrorStats(), ErrorStats()) for _ in (region.presents if region else ())]
        self._fed: dict[str, ErrorStats] = {}
        self._weights: str | None = None
        self._fault = self._broken = Fault()

    def add(self, call: RecordedCall, model: ir.Model, subgraphs: Subgraphs, run: Run) -> None:
        """Compare one call: alone on what eager fed to it, then as `run` of the whole graph has it."""
        if self.region is None:
            return
        try:
            # Alone first, on eager's own arguments: what is wrong here is the op's own fault.
            feeds, expected = self.region.feeds(call), self.region.expected(call)
            self._compare_weights(call)
            alone, *presents = self._run_alone(feeds, model, subgraphs)
            self._own.add(alone, expected)
            kept = [tensor.numpy() for tensor in call.presents]
            for (own, _), found, wanted in zip(self._kept, presents, kept, strict=True):
                own.add(found, wanted)
        except VerificationError as error:
            self._blame(str(error))
            return
        except Exception as error:  # onnxruntime's errors share no narrower base
            self._blame(f"it cannot be run by itself: {first_line(error)}")
            return
        try:
            # Then in place: arguments and result as the whole graph computes them. A run that
            # breaks here breaks for every op behind, so it ranks below any other fault.
            fed = dict(zip((v.name for _, v in self.region.arguments), run.take(f"{self.op} in"), strict=True))
            result, *presents = run.take(str(self.op))
        except Exception as error:  # as above
            self._broken = self._broken or Fault(f"{BROKEN}: {first_line(error)}", Cause.BREAKAGE)
            return
        self._blame(self._add_in_place(fed, feeds, [result, *presents], [expected, *kept]))

    def _blame(self, text: str, cause: Cause = Cause.RESULT) -> None:
        # The first fault stays: one that one input raised is not forgotten on the next.
        self._fault = self._fault or Fault(text, cause)

    def _compare_weights(self, call: RecordedCall) -> None:
        # Weights are the same in every case. Once compared, the memory that they were mapped into
        # is given back.
        assert self.region is not None
        if self._own.count == 0:
            self._weights, text = _compare_weights(self.region, call.weights, self._half)
            self._blame(text, Cause.WEIGHTS)
            self.region.release()

    def _run_alone(self, feeds: dict[str, Array], model: ir.Model, subgraphs: Subgraphs) -> list[Array]:
        assert self.region is not None
        names = [str(value.name) for value in self.region.results]
        # The piece of the whole graph serves where it is the op and nothing else, which saves a
        # session.
        results = subgraphs.run_alone(str(self.op), feeds, names)
        if results is not None:
            return results
        session = open_nodes(model, self.region.nodes, feeds, names, subgraphs.folder, subgraphs.providers)
        found: list[Array] = session.run(names, feeds)
        return found

    def _add_in_place(
        self,
        found: dict[str | None, Array],
        feeds: dict[str, Array],
        results: Sequence[Array],
        expected: Sequence[Array],
    ) -> str:
        assert self.region is not None
        try:
            for argument, value in self.region.arguments:
                actual, wanted = found[value.name], feeds[str(value.name)]
                if argument == "mask":
                    # Eager's mask may be smaller and broadcast: only what is masked has to agree.
                    limit = _MASKED_IN_HALF if self._half else _MASKED
                    actual, wanted = np.broadcast_arrays(_plain_mask(actual, limit), _plain_mask(wanted, limit))
                elif actual.dtype.kind == "f":
                    # Of numbers alone: a mask is right or wrong, and says nothing of how errors add
                    # up.
                    self._inherited.add(actual, wanted)
                # A past of nothing has no numbers that could be wrong; one case alone may be without one.
                if actual.shape == wanted.shape and not wanted.size:
                    continue
                self._fed.setdefault(argument, ErrorStats()).add(actual, wanted)
            self.free.add(results[0], expected[0])
            for (_, free), kept, wanted in zip(self._kept, results[1:], expected[1:], strict=True):
                free.add(kept, wanted)
        except (VerificationError, ValueError) as error:  # shapes that differ, or do not broadcast
            return f"in the whole graph, {error}"
        return ""

    def report(self, *, rounded: Collection[ir.Value], optimized: Optimized | None, kernel: Kernel | None) -> OpReport:
        """Give the verdict.

        Args:
            rounded: Values that are not judged inside the whole graph, since quantized weights lead to them.
            optimized: How it fared in the optimized graph.
            kernel: What ran it there.
        """
        if self.region is None:
            return OpReport(op=self.op, source=self._source, fault="no node of the graph computes it")
        # Rounded weights make the op's own error a matter of the task, which `fidelity` judges.
        judged_alone = self._weights != "quantized"
        tolerance = HALF if self._half else KINDS[self.op.kind].tolerance
        own_limit = tolerance.limit(self._own) if judged_alone else None
        free_limit = None if self.region.output in rounded else FREE.limit(self.free)
        faults = self._faults(own_limit, free_limit, rounded, optimized)  # in the order of what explains most
        fault = next((fault for fault in faults if fault), Fault())
        return OpReport(
            op=self.op,
            source=self._source,
            form=self.region.form,
            weights=self._weights,
            own=self._own,
            own_limit=own_limit,
            inherited=self._inherited,
            free=self.free,
            free_limit=free_limit,
            optimized=optimized,
            kernel=kernel,
            fault=fault.text,
            cause=fault.cause,
        )

    def _faults(
        self,
        own_limit: float | None,
        free_limit: float | None,
        rounded: Collection[ir.Value],
        optimized: Optimized | None,
    ) -> Iterator[Fault]:
        """What is wrong, in the order of what explains most: the op alone, what it is fed, what it gives in place."""
        assert self.region is not None
        yield self._fault
        yield Fault(judge(self._own, own_limit, "off by itself"))
        yield from self._faults_of_cache(rounded, alone=True)
        yield self._broken
        values = dict(self.region.arguments)
        for argument, figures in self._fed.items():
            limit = 0.0 if KINDS[self.op.kind].looks_up else FREE.limit(figures)  # ids are exact
            judged = None if values[argument] in rounded else limit
            yield Fault(judge(figures, judged, f"fed a wrong {argument}: off in the whole graph"))
        yield Fault(judge(self.free, free_limit, "off in the whole graph"))
        yield from self._faults_of_cache(rounded, alone=False)
        # Last: a fault in our graph shows in the optimized one too, and is told already.
        if optimized is not None:
            swallowed = f", which swallowed it, seen at {optimized.at}" if optimized.swallowed else ""
            what = f"off after onnxruntime's optimization ({optimized.level}) into {optimized.node}{swallowed}"
            yield Fault(judge(optimized.figures, optimized.limit, what), Cause.OPTIMIZATION)

    def _faults_of_cache(self, rounded: Collection[ir.Value], *, alone: bool) -> Iterator[Fault]:
        assert self.region is not None
        tolerance = HALF if self._half else KINDS[self.op.kind].tolerance
        where = "by itself" if alone else "in the whole graph"
        for what, value, (own, free) in zip(("keys", "values"), self.region.presents, self._kept, strict=False):
            judged = None if value in rounded else FREE.limit(free)
            figures, limit = (own, tolerance.limit(own)) if alone else (free, judged)
            yield Fault(judge(figures, limit, f"keeps other {what} {where}: off"))


def judge(figures: ErrorStats, limit: float | None, what: str) -> str:
    """Say what is wrong with these figures; "" where nothing is."""
    # Nothing compared is a fault, never a pass.
    if figures.count == 0:
        return "nothing was compared"
    if math.isinf(figures.max_abs):  # in every precision, whatever the tolerance
        return f"{what}: NaN or infinity where eager has another value, or the other way round"
    # Not ">": NaN must fail.
    if limit is not None and not figures.max_abs <= limit:
        return f"{what} by {figures.max_abs:.1e}, more than {limit:.1e}"
    return ""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _plain_mask(mask: Array, limit: float) -> Array:
    """A mask with NaN for what is masked by a large negative number: any will do."""
    return mask if mask.dtype == np.bool_ else np.where(mask < limit, np.float32(np.nan), mask)


def _compare_weights(region: Region, weights: tuple[torch.Tensor, ...], half: bool) -> tuple[str | None, str]:
    """Compare a layer's constants with eager's weights, bit by bit; gives the verdict and the fault."""
    # Bit by bit: a weight goes through no arithmetic, so nothing excuses a difference. The last bit
    # of one number would show in no result.
    constants = region.constant_arrays()
    if not weights or not constants:
        return None, ""
    # What is rounded cannot be eager's; its error is measured, not judged here.
    if any(constant.dtype in (np.int8, np.uint8) for constant in constants):
        return "quantized", ""
    for weight in weights:
        differing = _differing(weight.numpy(), constants, half)
        if differing is None:  # folded into something else: the op alone, and what follows, are to show whether rightly
            return None, ""
        if differing:
            return None, f"its weights are not eager's: {differing} of {weight.numel()} numbers differ"
    return "rounded" if half else "identical", ""


def _differing(weight: Array, constants: Sequence[Array], half: bool) -> int | None:
    """How many numbers of a weight differ from the nearest constant of its shape; None where none has it."""
    # A Linear's weight (out, in) stands in a MatMul as (in, out).
    forms = [form for constant in constants for form in (constant, constant.T) if _alike(form, weight)]
    wanted = [weight]
    if half:  # what computes in float32 there has eager's weights
        with np.errstate(over="ignore"):
            wanted.append(weight.astype(np.float16).astype(weight.dtype))
    # Several constants of an op may have a weight's shape.
    return min((int((_bits(form) != _bits(one)).sum()) for form in forms for one in wanted), default=None)


def _alike(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _bits(array: Array) -> Array:
    # As integers, NaN equals itself, and -0 is not 0.
    return array.view(np.int32) if array.dtype == np.float32 else array
