"""A `.pt2` file of torch.export.save, read only after everything in it that could run code has been refused.

`torch.export.load` (torch 2.13) is no safe reader: it unpickles weights, constants and example inputs without
`weights_only` (or falls back to that), evaluates the sizes' expressions by sympy, compiles the guards as Python, and
looks a node's function up anywhere below `torch`, from where `os` and `sys` can be reached. Containers' types may
import modules.
"""

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tfm.errors import CheckpointError

from .generic import GenericConfig, GenericGraph

_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/.*|models/model\.json|extra/.*|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_FUNCTIONS = re.compile(
    r"torch\.ops\.(aten|tfm)\.(?!from_file\b)\w+\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|ite|sum)|torch\._sym_sqrt|math\.(ceil|floor|trunc|sqrt)"
)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_SYMBOL = re.compile(r"[a-z]+\d+")
_NAMES = set(
    (  # noqa: SIM905
        "Abs Add And Eq Equality Float GreaterThan Integer LessThan Max Min Mod Mul Ne Not Or Pow Rational Symbol "
        "StrictGreaterThan StrictLessThan Unequality CeilDiv CeilToInt CleanDiv FloorDiv FloorToInt FloatPow "
        "FloatTrueDiv IntTrueDiv LShift ModularIndexing PowByNatural PythonMod RShift ToFloat TruncToInt Where"
    ).split()
)


def from_program(file: Path) -> GenericGraph:
    """Read an exported program; its dynamic axes and example inputs are those it was exported with.

    Args:
        file: What `torch.export.save` wrote.

    Raises:
        CheckpointError: It is damaged, of an unknown form, or holds what could run code.
    """
    _check(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(file, "rb") as stream:
                program = torch.export.load(io.BytesIO(stream.read()))
            module = program.module(check_guards=False)
    except Exception as error:  # torch raises almost anything on a damaged program
        raise CheckpointError(f"{file} cannot be read by torch.export.load: {_one_line(error)}") from error
    if program.example_inputs is None:
        raise CheckpointError(f"{file} holds no example inputs; save the program with them")
    args, kwargs = program.example_inputs
    signature = program.module_call_graph[0].signature
    names = list((signature.forward_arg_names if signature else None) or [])
    names = [names[i] if i < len(names) else f"input_{i}" for i in range(len(args))]
    examples = dict(zip(names, args, strict=True)) | dict(kwargs)
    tensors = [name for name, value in examples.items() if isinstance(value, torch.Tensor)]
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]
    if len(shapes) != len(tensors):
        raise CheckpointError(f"{file}: its program takes tensors within lists or dicts; export it with plain tensors")
    axes: dict[str, dict[int, str]] = {}
    dims: dict[str, str] = {}
    for name, shape in zip(tensors, shapes, strict=True):
        for axis, size in enumerate(shape):
            if not isinstance(size, int):
                dims.setdefault(
                    str(size), "batch" if axis == 0 and "batch" not in dims.values() else f"sequence_{len(dims)}"
                )
                axes.setdefault(name, {})[axis] = dims[str(size)]
    for key, dim in dims.items():
        if not _SYMBOL.fullmatch(key):
            raise CheckpointError(f"{file}: an input's size is {key}; export it with a dimension of its own for each")
        if dim != "batch" and sum(value != "batch" for value in dims.values()) == 1:
            axes = {n: {a: "sequence" if d == dim else d for a, d in found.items()} for n, found in axes.items()}
    return GenericGraph(module, examples, axes, in_order=names, config=GenericConfig(family="torch.export"))


def _check(file: Path) -> None:
    """Refuse whatever in the archive could run code."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist() if "/" in name}
            if len({name.partition("/")[0] for name in archive.namelist()}) != 1:
                raise CheckpointError(
                    f"{file} is of an older form of torch.export.save; save it again with torch 2.9 on"
                )
        contents = json.loads(entries["models/model.json"])
        payloads = [
            json.loads(entries[f"data/{kind}/model_{kind}_config.json"])["config"] for kind in ("weights", "constants")
        ]
        nodes = list(_values(contents, "target"))
        specs = [json.loads(spec)[1] for key in ("in_spec", "out_spec") for spec in _values(contents, key)]
        expressions = list(_values(contents, "expr_str")) + list(contents["range_constraints"])
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise CheckpointError(f"{file} is a damaged file of torch.export.save: {_one_line(error)}") from error
    for name in entries:
        if not _ENTRIES.fullmatch(name):
            raise CheckpointError(f"{file} holds {name}, which could be code; nothing was run")
    for payload in payloads:
        for name, value in payload.items():
            if value.get("use_pickle"):
                raise CheckpointError(f"{file}: {name} is pickled, which could run code on loading; nothing was run")
    try:
        torch.load(io.BytesIO(entries["data/sample_inputs/model.pt"]), weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise CheckpointError(
            f"{file}: its example inputs are more than tensors and plain containers, or damaged; nothing was run"
        ) from error
    for target in nodes:
        if not isinstance(target, str) or not _FUNCTIONS.fullmatch(target):
            raise CheckpointError(f"{file} calls {target!r}, which is no operator of ATen; nothing was run")
    for name in _values(specs, "type"):
        if name not in _CONTAINERS:
            raise CheckpointError(
                f"{file} takes or gives a {name}; export a module that takes and gives plain containers"
            )
    for context in _values(specs, "context"):
        if context is not None and not re.fullmatch(r'null|\[("\w*"(, )?|\d+(, )?)*\]', str(context)):
            raise CheckpointError(f"{file}: {context!r:.60} is no list of names; nothing was run")
    for expression in expressions:
        if not isinstance(expression, str) or not _is_arithmetic(expression):
            raise CheckpointError(f"{file}: {expression!r:.60} is no arithmetic of sizes; nothing was run")


def _values(content: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, key)


def _is_arithmetic(expression: str) -> bool:
    """Whether an expression is made of numbers, symbols and sympy's arithmetic alone."""
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    harmless = (ast.Expression, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load)
    for node in nodes:
        if isinstance(node, ast.Name):
            known = node.id in _NAMES or bool(_SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):
            known = isinstance(node.value, int | float) or bool(_SYMBOL.fullmatch(str(node.value)))
        else:
            known = isinstance(node, (*harmless, ast.operator, ast.unaryop, ast.cmpop))
        if not known:
            return False
    return True


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip().splitlines()[0]
