"""Quantizing a bundle's float32 graphs: every op in the form that a search, or a recipe, gives it."""

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from tfm.bundle import Manifest
from tfm.errors import QuantizeError
from tfm.latency import Workload
from tfm.runtime import StepProgress

from ..calibration.observe import Observed, joined, observe
from ..calibration.read import Calibration
from ..methods.edit import refuse_quantized
from ..methods.hessian import Hessian, second_moments
from ..methods.method import Float32, Method, method_to_json
from ..methods.ops import find_ops
from ..methods.rotated import share_rotations
from ..quantize_options import QuantizeOptions, refuse_moved
from ..recipe import Recipe
from ..target import Target, target_of
from .candidates import Candidate, candidates
from .cost import noise_of, time_shares
from .evaluator import Evaluator, Loss, Run
from .figures import is_loss, numbers
from .forms import write_forms
from .frontier import (
    OBJECTIVES,
    Assignment,
    Variant,
    choose_assignment,
    counted,
    frontier_of,
    frontier_to_json,
    noisiest,
)
from .journal import Journal
from .subgraphs import describe_subgraph, size_of_subgraph, splice, subgraph
from .switched import Switched

Array = npt.NDArray[Any]
BUDGETS = {("cosine", "int8"): 0.003, ("kl", "int8"): 0.01, ("cosine", "int4"): 0.02, ("kl", "int4"): 0.05}
"""How far from float32 each precision may be, by measure: 1 - mean cosine, or nats."""

_AIM = {
    ("kl", "int8", "speed"): 0.3,
    ("kl", "int4", "speed"): 0.5,
    ("kl", "int4", "size"): 0.5,
    ("cosine", "int8", "size"): 0.4,
    ("cosine", "int8", "speed"): 0.4,
    ("cosine", "int4", "size"): 0.4,
    ("cosine", "int4", "speed"): 0.4,
}
"""Share of a budget that the search spends, by measure, precision and objective: few samples decide, and others are
judged by.

In nats a few words make most of the mean: of SmolLM2 a mix that was 0.0039 from float32 on the eight sentences of its
search was 0.0061 on 64 others. Of MiniLM two mixes that were 0.0028 and 0.0030 of 0.0030 on the search's sentences were
0.0033 on 64 others, and so were refused after all the work. Of SmolLM2 with weights on no grid, an int4 mix that was
0.024 on code, documentation and chat was 0.036 on the worst of eight other kinds. Nats are also what the logarithm of
perplexity grows by on text as the model itself would write it: half of int4's budget are 2.5 % of perplexity. Where
time counts most decoders would spend all that they may in int8: of SmolLM2 half of that budget moves one of eighteen
likeliest tokens, and the task's gate lets pass one of twenty.
"""

_BATCH, _LOOKED_UP = 8, 4096
"""Samples at a time that products are observed on; rows of a table that are compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was made of a bundle's float32 graphs.

    Attributes:
        recipe: The method of every op.
        models: Role → quantized graph.
        products: Role → name of a product's node in it → name of its op.
        report: What each op costs, the mixes on the way and the verdict, as JSON values (docs/parity.md).
    """

    recipe: Recipe
    models: Mapping[str, ir.Model]
    products: Mapping[str, Mapping[str, str]]
    report: Mapping[str, Any]


def batch_size_of(manifest: Manifest) -> int:
    """How many samples a bundle is judged on at a time: as it runs, encoders one by one, so that none sways another."""
    return 1 if manifest.kind in ("encoder", "module") else _BATCH


def tune(
    manifest: Manifest,
    samples: Calibration,
    judged: Sequence[Calibration],
    workloads: Sequence[Workload],
    *,
    precision: str = "int8",
    options: QuantizeOptions | None = None,
    journal: Path | None = None,
    progress: StepProgress = lambda *_: None,
    **moved: Any,
) -> Tuned:
    """Quantize a bundle's float32 graphs as fast as keeps a budget, or by a recipe.

    Args:
        manifest: The bundle's.
        samples: What ranges and moments are taken from.
        judged: What drops are measured on, by kind of text: the worst counts. Other samples.
        workloads: What is timed.
        precision: "int8", or "int4" for weights of 4 bits.
        options: What for; None: as `QuantizeOptions` has it. `samples` and `judged` have been read by its `calib`.
        journal: File that figures are kept in, to go on with after an interruption or a failure, until the caller drops
            it; None: nowhere.
        progress: Told of every step.
        **moved: Nothing; what was an argument here is a field of `QuantizeOptions` now.

    Returns:
        The graphs, and how they came about.

    Raises:
        QuantizeError: A graph is quantized already, has nothing to quantize or a weight that is not finite; or the
            recipe is another model's.
        CalibrationError: The samples are bad.
    """
    refuse_moved("tune", moved)
    asked = QuantizeOptions() if options is None else options
    tuner = _Tuner(manifest, samples, judged, workloads, precision, asked, journal, progress)
    try:
        return tuner.run()
    finally:
        tuner.journal.close()


class _Tuner:
    """One run of `tune`."""

    def __init__(
        self,
        manifest: Manifest,
        samples: Calibration,
        judged: Sequence[Calibration],
        workloads: Sequence[Workload],
        precision: str,
        options: QuantizeOptions,
        journal: Path | None,
        progress: StepProgress,
    ) -> None:
        self.manifest, self.samples, self.workloads = manifest, samples, workloads
        self.precision, self.options, self.progress = precision, options, progress
        self.searches = options.recipe is None and options.search != "none"
        self.paths = {role: manifest.folder / path for role, path in manifest.graphs["fp32"].items()}
        if options.recipe is not None:
            options.recipe.check(precision, self.paths)
        self.observed: dict[str, dict[str, Observed]] = {}
        self.candidates = [found for role in self.paths for found in self._prepare(role)]
        if not self.candidates:
            raise QuantizeError(f"{manifest.folder} has no MatMul or Gather by a constant to quantize")
        # All that a figure depends on: of another subject a journal recalls nothing.
        subject: list[Any] = [precision, samples.digest, [one.digest for one in judged], ort.__version__]
        subject += [manifest.files[path].sha256 for path in manifest.graphs["fp32"].values()]
        # Figures tell by number.
        subject += [[one.key, *map(method_to_json, one.methods)] for one in self.candidates]
        self.size = sum(size_of_subgraph(one.subgraphs[0]) for one in self.candidates)
        self.judged = judged
        # Last, as `tune` closes it.
        self.journal = Journal(journal, json.dumps(subject))

    def run(self) -> Tuned:
        """Find the mix, and write it."""
        count = len(self.candidates)
        # Of each form by itself: what it does to the op's own result, and what it takes.
        noises = []
        for index, one in enumerate(self.candidates):
            self.progress(index, count, f"compare the forms of {one.op.name} with float32")
            find = functools.partial(self._noises, one)
            noises.append(self.journal.recall(f"noise {one.key}", find, numbers(len(one.methods))))
        times = time_shares(self.candidates, self.workloads, self.paths, self.size, self.journal, self.progress)
        for one, nmse, time in zip(self.candidates, noises, times, strict=True):
            sizes = [size_of_subgraph(written) / self.size for written in one.subgraphs]
            one.variants = [
                Variant(nmse=nmse[index], time=time[index], size=size, weight=OBJECTIVES[self.options.objective])
                for index, size in enumerate(sizes)
            ]
        self._open_mixes()
        frontier: list[dict[str, Any]] = []
        if self.searches:
            choice, frontier = self._search()
        else:
            # There are two forms at most, and the one that was asked for is the last.
            choice = [len(one.variants) - 1 for one in self.candidates]
        report = self._report(choice, frontier)
        methods: dict[str, dict[str, Method]] = {role: {} for role in self.paths}
        for one, index in zip(self.candidates, choice, strict=True):
            methods[one.role][one.op.name] = one.methods[index]
        models = {role: self._write(role, choice) for role in self.paths}
        # Quantized nodes keep the names of those that gave the results, by which they are found.
        products: dict[str, dict[str, str]] = {role: {} for role in self.paths}
        for one in self.candidates:
            products[one.role] |= {str(use.last.name): one.op.name for use in one.op.uses}
        recipe = Recipe(precision=self.precision, methods=methods)
        return Tuned(recipe=recipe, models=models, products=products, report=report)

    def _open_mixes(self) -> None:
        """Open the graphs of all forms, and run float32.

        After ops were timed, which takes sessions of whole graphs too: of a large model each holds its weights twice.
        """
        self.switched = {
            role: Switched(path, [one.subgraphs[1:] for one in self.candidates if one.role == role])
            for role, path in self.paths.items()
        }
        self.progress(0, 1, f"run float32 on {', '.join(one.description for one in self.judged)}")
        exact = self._runs([0] * len(self.candidates))
        self.evaluator = Evaluator(self.manifest, self.judged, exact, batch_size=batch_size_of(self.manifest))
        limit = self.options.max_drop
        self.budget = BUDGETS[self.evaluator.measure, self.precision] if limit is None else limit

    def _prepare(self, role: str) -> list[Candidate]:
        """Find a graph's ops, and write each in all its forms."""
        self.progress(0, 1, f"observe the {role} on {self.samples.description}")
        graph = ir.load(self.paths[role]).graph
        refuse_quantized(graph)
        ops = find_ops(graph)
        if not ops:
            return []
        observed = self.observed[role] = observe(self.paths[role], self.samples.batches(role, _BATCH))
        # A replay has float32, which everything is compared with, and the recipe's form: one where
        # they are the same.
        replayed = None if self.options.recipe is None else self.options.recipe.of(role, [op.name for op in ops])
        methods = [
            candidates(
                op,
                self.precision,
                self.manifest.kind,
                objective=self.options.objective,
                search=self.options.search,
            )
            if replayed is None
            else list(dict.fromkeys([Float32(), replayed[op.name]]))
            for op in ops
        ]
        hessian: Hessian | None = None
        if any(method.needs_moments for one in methods for method in one):
            # Inputs of the graph are no values that its nodes compute, which alone can be given
            # out.
            inputs = {use.x for op in ops for use in op.uses if not use.is_lookup and use.x.producer() is not None}
            names = sorted(str(value.name) for value in inputs)
            self.progress(0, 1, f"take second moments of the {role}")
            hessian = second_moments(self.paths[role], names, self.samples.batches(role, _BATCH))
        found = []
        target, portable = self._target(graph), self.options.portable
        for index, (op, listed) in enumerate(zip(ops, methods, strict=True)):
            self.progress(index, len(ops), f"write {op.name} in {len(listed)} forms")
            write = functools.partial(subgraph, observed=observed, hessian=hessian, portable=portable)
            found.append(write_forms(role, op, listed, target, write, replayed=replayed is not None))
        return found

    def _target(self, graph: ir.Graph) -> Target:
        """What is written for: by the graph's own opset."""
        opset = graph.opset_imports[""]
        wanted = target_of(self.options.runtime, portable=self.options.portable)
        if self.options.runtime is not None and opset > wanted.opset:
            raise QuantizeError(
                f"{self.manifest.folder} has graphs of opset {opset}, and onnxruntime {wanted.runtime} opens none "
                f"above {wanted.opset}: export the model with --runtime {self.options.runtime}"
            )
        return dataclasses.replace(wanted, opset=opset)

    def _noises(self, one: Candidate) -> list[float]:
        """Each form's own error on exact inputs, normalized; float32's is 0."""
        seen = joined(one.op, self.observed[one.role])
        rows = one.op.values.shape[0]
        # Of a large table rows at even distances stand for all.
        ids = np.unique(np.linspace(0, rows - 1, min(rows, _LOOKED_UP)).astype(np.int64))
        inputs: list[tuple[dict[str, Array], Array | None]] = []
        # An op that is only looked up in has no rows of inputs: its one input is the ids.
        for rows_RK, real_R in seen.batches if seen is not None else [(None, None)]:
            feeds = {str(u.x.name): ids.astype(_dtype(u.x)) if u.is_lookup else rows_RK for u in one.op.uses}
            inputs.append(({name: array for name, array in feeds.items() if array is not None}, real_R))
        return [0.0, *noise_of(one.subgraphs[1:], one.subgraphs[0], inputs)]

    def _search(self) -> tuple[list[int], list[dict[str, Any]]]:
        """Find the mix, and the row of mixes that it was taken from."""
        # One measurement for each kind of op, in the forms that show most; the others are predicted from it.
        most = [noisiest(one.variants) for one in self.candidates]
        alone = [{variant: loss.value} for variant, loss in zip(most, self._alone(most), strict=True)]
        assignments = frontier_of([one.variants for one in self.candidates], alone)
        steps = itertools.count()

        def measure(assignment: Assignment) -> Loss:
            self.progress(next(steps), math.ceil(math.log2(len(assignments) + 1)) + 2, "measure mixes on the way")
            return self._drop(assignment.choice)

        aim = self.budget * _AIM.get((self.evaluator.measure, self.precision, self.options.objective), 1.0)
        chosen, measured = choose_assignment(assignments, measure, aim)
        return list(assignments[chosen].choice), frontier_to_json(assignments, measured, chosen)

    def _alone(self, choice: Sequence[int]) -> list[Loss]:
        """Measure what ops cost by themselves, like ones of all layers together, each by its share of the noise.

        One figure of a kind says more than one of each op, which may be hardly above chance; and there are few kinds.
        """
        found = [Loss(value=0.0)] * len(choice)
        kinds = _alike(self.candidates)
        for number, members in enumerate(kinds):
            self.progress(number, len(kinds), f"quantize {_kind_of(self.candidates[members[0]])} alone")
            whole = self._drop([variant if index in members else 0 for index, variant in enumerate(choice)])
            noises = [counted(self.candidates[index].variants[choice[index]].nmse) for index in members]
            for index, noise in zip(members, noises, strict=True):
                share = noise / sum(noises) if sum(noises) > 0 else 1.0
                flips = None if whole.flips is None else whole.flips * share
                found[index] = Loss(value=whole.value * share, flips=flips)
        return found

    def _all_but(self, choice: Sequence[int]) -> list[float]:
        """Measure what is left of the drop of a mix where an op, and those like it, stay in float32."""
        found = [0.0] * len(choice)
        kinds = _alike(self.candidates)
        for number, members in enumerate(kinds):
            self.progress(number, len(kinds), f"quantize all but {_kind_of(self.candidates[members[0]])}")
            rest = self._drop([0 if index in members else form for index, form in enumerate(choice)]).value
            for index in members:
                found[index] = rest
        return found

    def _drop(self, choice: Sequence[int]) -> Loss:
        """Measure a mix."""
        found = self.journal.recall(
            f"drop {' '.join(map(str, choice))}",
            lambda: dataclasses.asdict(self.evaluator.drop(self._runs(choice))),
            is_loss,
        )
        return Loss(**found)

    def _runs(self, choice: Sequence[int]) -> dict[str, Run]:
        """The graphs of a mix."""
        of_role: dict[str, list[int]] = {role: [] for role in self.paths}
        for one, variant in zip(self.candidates, choice, strict=True):
            of_role[one.role].append(variant)
        return {role: functools.partial(self.switched[role].run, of_role[role]) for role in self.paths}

    def _report(self, choice: Sequence[int], frontier: list[dict[str, Any]]) -> dict[str, Any]:
        """What every op costs, and all of them together, as JSON values."""
        ops, saved = [], 0.0
        # A replay measures the whole only: what single ops cost was told when the mix was
        # searched for.
        searched = self.searches
        costs = self._alone(choice) if searched else []
        rests = self._all_but(choice) if searched and self.options.search == "full" else [None] * len(choice)
        for index, (one, variant) in enumerate(zip(self.candidates, choice, strict=True)):
            chosen, exact = one.variants[variant], one.variants[0]
            saved += exact.time - chosen.time
            alone, all_but = (costs[index], rests[index]) if searched and variant else (None, None)
            ops.append(
                {
                    "role": one.role,
                    "weight": one.op.name,
                    "shape": list(one.op.values.shape),
                    "uses": one.op.kinds,
                    "method": describe_subgraph(one.subgraphs[variant]),
                    "own_snr_db": -10 * math.log10(chosen.nmse) if variant and chosen.nmse > 0 else None,
                    "alone": alone.value if alone else None,
                    "all_but": all_but,
                    "flips_alone": alone.flips if alone else None,
                    "time": chosen.time,
                    "time_float32": exact.time,
                }
            )
        drop = self._drop(choice)
        return {
            "measure": self.evaluator.measure,
            "max_drop": self.budget,
            "drop": drop.value,
            "top_1": None if drop.flips is None else 1 - drop.flips,
            "samples": self.evaluator.description,
            "relative_time": 1 - saved,
            "searched": searched,
            "search": self.options.search if self.options.recipe is None else None,
            "ops": ops,
            "front": frontier,
        }

    def _write(self, role: str, choice: Sequence[int]) -> ir.Model:
        """Put the chosen forms into a copy of the float32 graph."""
        model = ir.load(self.paths[role])
        mine = [(one, variant) for one, variant in zip(self.candidates, choice, strict=True) if one.role == role]
        # The same file has the same ops in the same order.
        for op, (one, variant) in zip(find_ops(model.graph), mine, strict=True):
            if variant:
                splice(model.graph, op, one.subgraphs[variant])
        share_rotations(model.graph)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedOpsetsPass()(model)
        _forget_inferred(model.graph)
        return model


def _kind_of(one: Candidate) -> str:
    """What an op is called where its number among like ones is left out: "layers.*.linear1"."""
    return re.sub(r"\d+", "*", one.op.name)


def _alike(candidates: Sequence[Candidate]) -> list[list[int]]:
    """The places of ops that are alike but for their number: of one shape, with the same forms to choose from."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, one in enumerate(candidates):
        groups.setdefault((one.role, _kind_of(one), one.op.values.shape, *one.methods), []).append(index)
    return list(groups.values())


def _forget_inferred(graph: ir.Graph) -> None:
    """Leave out the constants' shapes and types, which they have themselves: of a small graph they are a part."""
    for value in graph.initializers.values():
        # Those are defaults, of inputs that must say what they are.
        if not value.is_graph_input():
            value.shape = value.type = None


def _dtype(ids: ir.Value) -> npt.DTypeLike:
    return np.int64 if ids.dtype is None else ids.dtype.numpy()
