"""What other tools' checks say of the defects that our own verification is tested with.

    python benchmarks/yardsticks.py [--defects NAME …]

The tools are looked for in build/yardsticks first; docs/verification.md says what to install there.

Each defect of tests/support/defects.py is planted into our export of a tiny model. The file goes, beside the PyTorch
module, before each tool twice. By default: with the tool's tolerances and inputs as the tool makes them. At its best:
with our inputs where it takes any (optimum: five draws of its own), at the tightest tolerance, none or a power of ten
from 1e-7, that the right export of the same model passes. A value that a tool reports of the right export too, at any
tolerance, counts against neither. A defect is named where the first value that the tool reports is of the op that is
wrong, or lies between it and the op before; tools that see outputs alone can name outputs alone.

Prints Markdown, and writes benchmarks/results/yardsticks.json.
"""

import argparse
import gc
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
if __name__ == "__main__":  # what imports this as a module keeps its own packages
    sys.path.insert(0, str(Path(__file__).parents[1] / "build" / "yardsticks"))

import onnx_ir as ir
import torch
from side_by_side import say, table

from tests.conftest import random_model
from tests.support.defects import DEFECTS
from tests.support.planting import MODELS
from tfm.export import graphs_of, to_onnx, verify
from tfm.export.generic.open import open_generic
from tfm.export.passes import OP_KEY
from tfm.export.verify.samples import cases

if TYPE_CHECKING:
    from peers.yardstick_checks import Check, Subject

RESULTS = Path(__file__).with_name("results") / "yardsticks.json"
OURS = "ours"
DEFAULT, BEST = "by default", "at best"
TOLERANCES = (0.0, *(10.0**power for power in range(-7, 0)))
PACKAGES = ("torch", "onnx", "onnxruntime", "polygraphy", "optimum-onnx")
SEES_OUTPUTS_ALONE = ("torch verify", "Polygraphy", "optimum")

CLASSES: dict[str, tuple[str, ...]] = {
    "activation": (
        "gelu by tanh",
        "gelu becomes relu",
        "gelu without its name, and not one",
        "gelu bypassed",
        "gelu lost",
        "gelu twice",
        "gelu once more",
        "tanh-gelu becomes gelu",
        "pooler's tanh becomes erf",
        "quick-gelu's alpha",
        "quick-gelu becomes gelu",
        "silu's alpha",
        "gate and value swapped",
        "gate left out",
        "logits' softcap left out",
        "logits' softcap 1 % off",
    ),
    "mask": (
        "mask dropped",
        "mask dropped in the last layer",
        "mask inverted",
        "mask shifted by one",
        "mask that only weakens",
        "causal where it must not be",
        "cross-attention's mask dropped",
        "cached attention without its mask",
        "a token cannot see itself",
        "window one too wide",
        "window in every layer",
        "cached attention of another form without its mask",
        "padding sees nothing",
        "padding is seen",
        "a token sees those after it",
        "cached attention of another form that is not causal",
        "a window that eager does not have",
    ),
    "attention": (
        "scale 1 % off",
        "scale left out",
        "a softcap that eager does not have",
        "softcap left out",
        "two heads taken for one",
        "heads permuted",
        "queries of the other group",
        "keys and values swapped",
        "queries and keys swapped",
        "values taken from keys",
        "queries through float16",
        "cross-attention's keys and values swapped",
        "softmax over the wrong axis",
        "scores not scaled",
        "heads split in another order",
        "heads merged in another order",
        "groups in another order",
        "one group for all",
        "heads of another size taken for groups",
        "a sink that eager does not have",
        "a cached attention's scale 1 % off",
        "a cached attention's softcap 1 % off",
        "new values from keys",
        "new keys and values swapped",
    ),
    "cache": (
        "key cached before it is turned",
        "old keys given as new",
        "new keys given as the cache",
        "keys of another layer cached",
        "one place back",
        "no row of more than nine",
        "old keys and values swapped",
        "old keys of another layer",
        "values given as keys",
    ),
    "position": (
        "positions that forget the past",
        "positions off by one",
        "rotary pairs interleaved",
        "rotary turns the other way",
        "rotary base halved",
        "rotary positions off by one",
        "last bit of the rotary frequencies",
        "positions that end at 256",
        "queries not turned",
        "relative distances of the wrong sign",
        "relative buckets too coarse",
        "relative bias transposed",
        "ALiBi's slope 1 % off",
    ),
    "norm": (
        "epsilon of the first norm",
        "epsilon of the last norm",
        "epsilon of an RMS norm",
        "epsilon a tenth",
        "epsilon a tenth, of a large argument",
        "a norm's weight read as an offset from one",
        "an RMS norm that takes off the mean",
        "final norm left out",
    ),
    "weight": (
        "one weight of a projection",
        "one weight of the last layer",
        "one weight of the pooler",
        "a NaN among the weights",
        "a square weight transposed",
        "a bias dropped",
        "pooler's product 1 % off",
        "layers swapped",
    ),
    "last bit of a weight": (
        "last bit of a linear's weight",
        "last bit of a linear's bias",
        "last bit of an embedding",
        "last bit of a position",
        "last bit of a norm's weight",
    ),
    "wiring between layers": (
        "a layer skipped",
        "embeddings' scale left out",
        "residual left out",
        "residual from before the norm",
    ),
    "which token or row": (
        "logits of the token before",
        "logits of another row",
        "logits of every token in its order",
        "pooler on the last token",
        "sentence embedding by sum",
        "sentence embedding of padding too",
    ),
    "only the list of ops": (
        "a right op without its name",
        "an op that eager does not have",
    ),
}
"""Class → its defects. Those of the last leave what the graph computes as it is."""

PASSED, REFUSED, NAMED = "passed", "refused", "named"


def main() -> None:
    """Run all checks on all defects, print the tables and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--defects", nargs="*", default=list(DEFECTS), help="only these; nothing is written then")
    options = parser.parse_args()
    from peers.yardstick_checks import CHECKS

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = run(CHECKS, options.defects, Path(folder))
    if options.defects == list(DEFECTS):
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables(found))


def run(checks: "Mapping[str, Check]", defects: Sequence[str], folder: Path) -> dict[str, Any]:
    """Put every defect before every check.

    Returns:
        Versions; how many right graphs each setting of each check refuses; and each defect's verdicts by setting.
    """
    alarms: dict[str, int] = {}
    verdicts: dict[str, dict[str, str]] = {}
    models = dict.fromkeys(DEFECTS[name].model for name in defects)
    for model in models:
        subject = subject_of(model, folder)
        gc.freeze()  # torch collects all garbage after each of its sessions, which takes most of the time otherwise
        settings = settings_of(checks, subject)
        for name, setting in settings.items():
            alarms[name] = alarms.get(name, 0) + bool(setting.noise)
        for name in defects:
            if DEFECTS[name].model == model:
                say(f"{model}: {name}")
                verdicts[name] = judge(subject, name, settings)
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"versions": versions, "models": len(models), "false alarms": alarms, "defects": verdicts}


def subject_of(name: str, folder: Path) -> "Subject":
    """Export one of the tests' models, and keep what torch knows of its graph."""
    from peers.yardstick_checks import Subject

    if name == "by_hand":
        graph = open_generic(None, "tests.support.generic_models:by_hand")
    else:
        options, role = MODELS[name]
        graph = next(graph for graph in graphs_of(random_model(**options)) if graph.role == role)
    programs = []
    export = torch.onnx.export

    def kept(*args: Any, **options: Any) -> Any:
        programs.append(export(*args, **options))
        return programs[-1]

    with mock.patch.object(torch.onnx, "export", kept):
        model = to_onnx(graph)
    path = folder / f"{name}.onnx"
    ir.save(model, path)
    return Subject(graph=graph, program=programs[0], path=path, cases=cases(graph))


class Setting(NamedTuple):
    """A check as it is used: its tolerance, and what it says of the right graph all the same."""

    check: "Check"
    tolerance: float | None
    noise: frozenset[str]

    def says(self, subject: "Subject", file: Path) -> list[str] | None:
        """What is reported of a file."""
        return self.check(subject, file, self.tolerance, self.noise)


def settings_of(checks: "Mapping[str, Check]", subject: "Subject") -> dict[str, Setting]:
    """Each check by default, and at the tightest tolerance that the right graph passes."""
    settings: dict[str, Setting] = {}
    for name, check in checks.items():
        settings[f"{name}, {DEFAULT}"] = Setting(check, None, noise_of(check, subject, None))
        noise = noise_of(check, subject, TOLERANCES[-1])
        tightest = next(each for each in TOLERANCES if check(subject, subject.path, each, noise) is None)
        settings[f"{name}, {BEST}"] = Setting(check, tightest, noise)
    return settings


def noise_of(check: "Check", subject: "Subject", tolerance: float | None) -> frozenset[str]:
    """Everything that a check reports of the right graph: what a check may report at the first of several inputs."""
    noise: frozenset[str] = frozenset()
    while (said := check(subject, subject.path, tolerance, noise)) is not None:
        if not said:
            raise SystemExit(f"{check.__name__} cannot run the right graph of {subject.path.stem}")
        noise |= set(said)
    return noise


def judge(subject: "Subject", defect: str, settings: Mapping[str, Setting]) -> dict[str, str]:
    """Plant one defect, and ask all about it."""
    model = ir.load(subject.path)
    places = places_of(model)
    DEFECTS[defect].edit(model)
    file = subject.path.with_name("edited.onnx")
    ir.save(model, file)
    report = verify(subject.graph, file, subject.cases, levels=("disabled",))
    ours = verdict_of(not report.passed, report.first_fault.startswith(DEFECTS[defect].named))
    verdicts, wanted = {OURS: ours}, op_of(DEFECTS[defect].named)
    for name, setting in settings.items():
        said = setting.says(subject, file)
        if name.rpartition(", ")[0] in SEES_OUTPUTS_ALONE:
            named = {f"output {value}" for value in (said or [])[:1]}
        else:
            named = places.get(said[0], set()) if said else set()
        verdicts[name] = verdict_of(said is not None, wanted in named)
    return verdicts


def verdict_of(refused: bool, named: bool) -> str:
    """One word, of which the last holds the one before."""
    return (NAMED if named else REFUSED) if refused else PASSED


def op_of(named: str) -> str:
    """The op or output at the head of a fault, as in "output logits (disabled): off by"."""
    return named.partition(": ")[0].partition(" (")[0].removesuffix(":")


def places_of(model: ir.Model) -> dict[str, set[str]]:
    """For each value its op; of one that belongs to none, the ops and outputs that it leads to."""
    places: dict[str, set[str]] = {}

    def place(value: ir.Value) -> set[str]:
        if value.name in places:
            return places[value.name]
        node = value.producer()
        op = node.metadata_props.get(OP_KEY) if node is not None else None
        found = {f"output {value.name}"} if value.is_graph_output() else set()
        if op is not None:
            found.add(op)
        else:
            for user in value.consumers():
                used = user.metadata_props.get(OP_KEY)
                found |= {used} if used is not None else set().union(*map(place, user.outputs))
        places[str(value.name)] = found
        return found

    for node in model.graph:
        for value in node.outputs:
            place(value)
    return places


FORMER: dict[str, tuple[str, ...]] = {
    "mask": ("a token sees the next", "nothing is seen from the fifth place on"),
    "attention": (
        "heads split without a transpose",
        "heads merged without a transpose",
        "groups tiled, not repeated",
    ),
    "cache": ("values cached elsewhere", "new values not cached"),
}
"""Defects of forms that are written no more, in the results of before."""


def tables(found: Mapping[str, Any]) -> str:
    """The table of totals by setting, and that of classes at every tool's best."""
    verdicts = found["defects"]
    settings = list(next(iter(verdicts.values())))
    count = len(verdicts)
    rows = [["check", "defects refused", "named under the right op", "false alarms on right graphs"]]
    for setting in settings:
        refused, named = tally(verdicts.values(), setting)
        alarms = found["false alarms"].get(setting, 0)
        rows.append([setting, f"{refused} of {count}", str(named), f"{alarms} of {found['models']}"])
    best = [OURS, *(setting for setting in settings if setting.endswith(BEST))]
    by_class = [["defects in", "count", *(setting.removesuffix(f", {BEST}") for setting in best)]]
    for name, members in CLASSES.items():
        inside = [verdicts[member] for member in (*members, *FORMER.get(name, ())) if member in verdicts]
        cells = [" / ".join(map(str, tally(inside, setting))) for setting in best]
        by_class.append([name, str(len(inside)), *cells])
    return f"{table(rows)}\n\n{table(by_class)}"


def tally(verdicts: Iterable[Mapping[str, str]], setting: str) -> tuple[int, int]:
    """How many are refused, and how many of those named."""
    said = [each[setting] for each in verdicts]
    return len(said) - said.count(PASSED), said.count(NAMED)


if __name__ == "__main__":
    main()
