"""A `.pt2` file of torch.export.save, read only after everything in it that could run code has been refused.

`torch.export.load` (torch 2.13) is no safe reader: it unpickles weights, constants and example inputs without
`weights_only` (or falls back to that), evaluates the sizes' expressions by sympy, compiles the guards as Python, and
looks a node's function up anywhere below `torch`, from where `os` and `sys` can be reached. Containers' types may
import modules.
"""

import ast
import io
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tfm.errors import CheckpointError
from tfm.model import open_archive

from ..reasons import one_line
from .graph import GenericConfig, GenericGraph
from .lengths import lengthen

# Lists of what is allowed, not of what is known to be bad: torch may learn to read more. A compiled
# library or a pickled object may lie in such an archive too.
_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/.*|models/model\.json|extra/.*|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
# from_file maps any file of the machine into a tensor. The second line is arithmetic of sizes.
_FUNCTIONS = re.compile(
    r"torch\.ops\.(aten|tfm)\.(?!from_file\b)\w+\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|ite|sum)|torch\._sym_sqrt|math\.(ceil|floor|trunc|sqrt)"
)
# None is a leaf. Any other type would be imported by its name.
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_SYMBOL = re.compile(r"[a-z]+\d+")
_NAMES = set(
    (  # noqa: SIM905
        "Abs Add And Eq Equality Float GreaterThan Integer LessThan Max Min Mod Mul Ne Not Or Pow Rational Symbol "
        "StrictGreaterThan StrictLessThan Unequality CeilDiv CeilToInt CleanDiv FloorDiv FloorToInt FloatPow "
        "FloatTrueDiv IntTrueDiv LShift ModularIndexing PowByNatural PythonMod RShift ToFloat TruncToInt Where"
    ).split()
)

# A tower of powers, 9**9**9**9, would take all memory and all time.
_GROWING = ("Pow", "PowByNatural", "FloatPow", "LShift")
_GREATEST_EXPONENT = 64
_LONGEST_EXPRESSION = 10_000
"""Characters of an expression; that of a size is rarely longer than a line."""


def from_program(file: Path) -> GenericGraph:
    """Read an exported program; its dynamic axes and example inputs are those it was exported with.

    Args:
        file: What `torch.export.save` wrote.

    Raises:
        CheckpointError: It is damaged, of an unknown form, or holds what could run code.
    """
    # Nothing of torch's may see the file before it has been looked through.
    _check(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # As bytes: of a path that does not end in .pt2 torch warns. Here the content tells.
            with open(file, "rb") as stream:
                program = torch.export.load(io.BytesIO(stream.read()))
            # check_guards would compile the guards in the file as Python.
            module = program.module(check_guards=False)
    except Exception as error:  # torch raises almost anything on a damaged program
        raise CheckpointError(f"{file} cannot be read by torch.export.load: {one_line(error)}") from error
    # Names of the inputs: as forward calls them, else by number.
    args, kwargs = _examples(file, program)
    signature = program.module_call_graph[0].signature
    names = list((signature.forward_arg_names if signature else None) or [])
    names = [names[i] if i < len(names) else f"input_{i}" for i in range(len(args))]
    examples = dict(zip(names, args, strict=True)) | dict(kwargs)
    axes = _axes(file, program, examples)
    graph = GenericGraph(module, examples, axes, in_order=names, config=GenericConfig(family="torch.export"))
    return lengthen(graph, _bounds(program, graph))


def _axes(file: Path, program: torch.export.ExportedProgram, examples: dict[str, Any]) -> dict[str, dict[int, str]]:
    """Name the axes that may vary: input → axis → dimension."""
    tensors = [name for name, value in examples.items() if isinstance(value, torch.Tensor)]
    # The sizes as they were traced: numbers, or symbols such as s0 where they may vary.
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]
    if len(shapes) != len(tensors):
        raise CheckpointError(f"{file}: its program takes tensors within lists or dicts; export it with plain tensors")
    # Symbols become names: equal symbols are equal sizes. The first one that an axis 0 has counts
    # rows.
    axes: dict[str, dict[int, str]] = {}
    dims: dict[str, str] = {}
    for name, shape in zip(tensors, shapes, strict=True):
        for axis, size in enumerate(shape):
            if not isinstance(size, int):
                dims.setdefault(
                    str(size), "batch" if axis == 0 and "batch" not in dims.values() else f"sequence_{len(dims)}"
                )
                axes.setdefault(name, {})[axis] = dims[str(size)]
    for key in dims:
        # 2*s0, say: a size that follows from another cannot be sampled by itself.
        if not _SYMBOL.fullmatch(key):
            raise CheckpointError(f"{file}: an input's size is {key}; export it with a dimension of its own for each")
    # An only length needs no number.
    lengths = [dim for dim in dims.values() if dim != "batch"]
    shown = {lengths[0]: "sequence"} if len(lengths) == 1 else {}
    return {name: {axis: shown.get(dim, dim) for axis, dim in found.items()} for name, found in axes.items()}


def _bounds(program: torch.export.ExportedProgram, graph: GenericGraph) -> dict[str, int]:
    """Tell how long each length may be, as far as the program says: beyond it another way may have been right."""
    nodes = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    named = {
        str(size): dim
        for node, value in zip(nodes, graph.inputs, strict=True)
        for size, dim in zip(node.meta["val"].shape, value.shape, strict=True)
        if isinstance(dim, str)
    }
    # Infinity where there is no bound, of which Python makes no int.
    found = {
        named[str(symbol)]: limits.upper for symbol, limits in program.range_constraints.items() if str(symbol) in named
    }
    return {dim: int(most) for dim, most in found.items() if most.is_Integer}


def _examples(file: Path, program: torch.export.ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the example inputs, which torch takes as they are in the file."""
    inputs: Any = program.example_inputs
    if inputs is None:
        raise CheckpointError(f"{file} holds no example inputs; save the program with them")
    if not isinstance(inputs, tuple | list) or [type(part) for part in inputs] != [tuple, dict]:
        raise CheckpointError(f"{file}: its example inputs are no tuple of arguments and dict of named ones")
    return inputs[0], inputs[1]


def _check(file: Path) -> None:
    """Refuse whatever in the archive could run code."""
    with open_archive(file, "file of torch.export.save") as archive:
        names = archive.namelist()
        # Everything lies in one folder of the archive; its name may be any.
        entries = {name.partition("/")[2]: archive.read(name) for name in names if "/" in name}
    if len({name.partition("/")[0] for name in names}) != 1:
        raise CheckpointError(f"{file} is of an older form of torch.export.save; save it again with torch 2.9 on")
    # From the outside inwards: what entries there are, then which of them are pickled, then what
    # the program calls.
    for name in entries:
        if not _ENTRIES.fullmatch(name):
            raise CheckpointError(f"{file} holds {name}, which could be code; nothing was run")
    for kind in ("weights", "constants"):
        _check_payload(file, _object(file, entries, f"data/{kind}/model_{kind}_config.json").get("config"))
    try:
        # Only a proof: torch.export.load reads them again, and without weights_only. An entry that
        # is missing is an error here as well.
        torch.load(io.BytesIO(entries.get("data/sample_inputs/model.pt", b"")), weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise CheckpointError(
            f"{file}: its example inputs are more than tensors and plain containers, or damaged; nothing was run"
        ) from error
    contents = _object(file, entries, "models/model.json")
    try:
        _check_program(file, contents)
    # _values goes as deep as the JSON does, which may be deeper than Python's stack.
    except RecursionError as error:
        raise CheckpointError(f"{file}: its program is nested too deeply to be read") from error


def _object(file: Path, entries: dict[str, bytes], name: str) -> dict[str, Any]:
    """Read an entry that is an object of JSON."""
    try:
        content = json.loads(entries.get(name, b""))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is a damaged file of torch.export.save: {name} is missing or not JSON"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is a damaged file of torch.export.save: {name} holds no object")
    return content


def _check_payload(file: Path, payload: Any) -> None:
    """Refuse weights or constants that are pickled."""
    if not isinstance(payload, dict) or not all(isinstance(value, dict) for value in payload.values()):
        raise CheckpointError(f"{file} is a damaged file of torch.export.save: it does not say where its weights are")
    for name, value in payload.items():
        if value.get("use_pickle"):
            raise CheckpointError(f"{file}: {name} is pickled, which could run code on loading; nothing was run")


def _check_program(file: Path, contents: dict[str, Any]) -> None:
    """Refuse a program that calls, takes or computes anything but what programs of tensors do."""
    # At any depth: subgraphs of control flow hold calls of their own.
    for target in _values(contents, "target"):
        if not isinstance(target, str) or not _FUNCTIONS.fullmatch(target):
            raise CheckpointError(f"{file} calls {target!r:.60}, which is no operator of ATen; nothing was run")
    _check_specs(file, [_read_spec(file, s) for key in ("in_spec", "out_spec") for s in _values(contents, key)])
    constraints = contents.get("range_constraints")
    if not isinstance(constraints, dict):
        raise CheckpointError(f"{file} is a damaged file of torch.export.save: it does not say how sizes may vary")
    # sympy evaluates these as Python: names and numbers of arithmetic alone may be in them.
    for expression in [*_values(contents, "expr_str"), *constraints]:
        if not isinstance(expression, str) or not _is_arithmetic(expression):
            raise CheckpointError(f"{file}: {expression!r:.60} is no arithmetic of sizes; nothing was run")


def _check_specs(file: Path, specs: list[Any]) -> None:
    """Refuse containers other than plain ones."""
    for name in _values(specs, "type"):
        if not (name is None or isinstance(name, str)) or name not in _CONTAINERS:
            raise CheckpointError(
                f"{file} takes or gives a {name!s:.60}; export a module that takes and gives plain containers"
            )
    # The keys of a dict, or null: names and whole numbers alone.
    for context in _values(specs, "context"):
        if context is not None and not re.fullmatch(r'null|\[("\w*"(, )?|\d+(, )?)*\]', str(context)):
            raise CheckpointError(f"{file}: {context!r:.60} is no list of names; nothing was run")


def _read_spec(file: Path, spec: Any) -> Any:
    """Read how containers nest, which is JSON within JSON: a version and a tree."""
    try:
        _, tree = json.loads(spec)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is a damaged file of torch.export.save: {spec!r:.60} is no tree") from error
    return tree


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
    """Whether an expression is made of numbers, symbols and sympy's arithmetic alone, and no number too large."""
    if len(expression) > _LONGEST_EXPRESSION:
        return False
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # Python's parser says MemoryError of deep nesting
        return False
    # One power at most: ((s0**64)**64)**64 has small exponents only.
    return all(map(_is_harmless, nodes)) and sum(map(_grows, nodes)) <= 1


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _NAMES or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        # Larger than any size can be.
        if isinstance(node.value, int):
            return abs(node.value) < 1 << 64
        return isinstance(node.value, float) or bool(_SYMBOL.fullmatch(str(node.value)))
    if isinstance(node, ast.BinOp | ast.Call) and _grows(node):
        return _exponent(node) <= _GREATEST_EXPONENT
    # No attributes, no subscripts, no comprehensions: a call can only be of one of the _NAMES.
    harmless = (ast.Expression, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load)
    return isinstance(node, (*harmless, ast.operator, ast.unaryop, ast.cmpop))


def _grows(node: ast.AST) -> bool:
    """Whether a node is a power or a shift, whose result has more digits than what it is of by any factor."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Pow | ast.LShift)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _GROWING


def _exponent(node: ast.BinOp | ast.Call) -> float:
    """Give the exponent of a power; infinity where it is no plain number."""
    written = node.right if isinstance(node, ast.BinOp) else node.args[1] if len(node.args) == 2 else None
    # Integer(2).
    if isinstance(written, ast.Call) and len(written.args) == 1:
        written = written.args[0]
    # The sign does not matter: 10**-99 has as many digits as 10**99.
    if isinstance(written, ast.UnaryOp):
        written = written.operand
    value = written.value if isinstance(written, ast.Constant) else None
    return abs(value) if isinstance(value, int | float) else math.inf
