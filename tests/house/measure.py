"""What the library's structure amounts to in numbers: `make house`. CI fails when one gets worse than limits.json says.

    python tests/house/measure.py [--json] [--renew]

Read from the source alone; radon counts the branches of functions. `--renew` writes today's numbers as the limits,
which a change that betters them should do.
"""

import argparse
import ast
import collections
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import radon.complexity
from radon.visitors import Class, Function

REPO = Path(__file__).resolve().parents[2]
ROOMS = sorted(file.parent.name for file in REPO.glob("*/__init__.py"))
LIMITS = Path(__file__).with_name("limits.json")

MOST_LINES, MOST_PARAMETERS, MOST_BRANCHES = 60, 8, 10
FACES = {"tfm.study.activations", "tfm.study.inspect", "tfm.study.prune"}
"""Leaves that stand in one room: each is reached through a face of its own."""

HIGHER_IS_BETTER = {"own-line comments, %"}


def measure() -> dict[str, float]:
    """Measure everything; name → number."""
    sources = {file: file.read_text(encoding="utf-8") for file in files()}
    trees = {file: ast.parse(source) for file, source in sources.items()}
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lines = collections.Counter(dict.fromkeys(ROOMS, 0))
    for file, source in sources.items():
        lines[file.relative_to(REPO).parts[0]] += source.count("\n") - comments(source)  # to explain is no burden
    total, explained = lines.total(), sum(map(comments, sources.values()))
    crossing = [module for file, tree in trees.items() for module in crossings(file, tree)]
    below = [module for module in crossing if module.count(".") > 1 and module not in FACES]
    names = collections.Counter(file.name for file in sources if file.name != "__init__.py")
    return {
        **{f"lines of {room}/": count for room, count in sorted(lines.items())},
        "lines": total,
        "imports below a room's face, %": percent(len(below), len(crossing)),
        f"functions over {MOST_LINES} lines": sum(
            length(node, sources[file]) > MOST_LINES
            for file, tree in trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
        ),
        f"functions over {MOST_PARAMETERS} parameters": sum(count(node) > MOST_PARAMETERS for node in functions),
        f"functions over {MOST_BRANCHES} branches, %": percent(sum(map(branching, sources.values())), len(functions)),
        "repeated names of files": sum(many - 1 for many in names.values()),
        "own-line comments, %": percent(explained, total + explained),
    }


def files() -> list[Path]:
    """Every module of the library, each once: tfm/ holds links to the rooms."""
    found = [file for room in ROOMS if room != "tfm" for file in (REPO / room).rglob("*.py")]
    return sorted([*found, *(REPO / "tfm").glob("*.py")])


def crossings(file: Path, tree: ast.Module) -> Iterator[str]:
    """Modules of other rooms that one imports names from; errors and `lazy`, which all share, aside."""
    room = file.relative_to(REPO).parts[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("tfm."):
            target = str(node.module).split(".")[1]
            if target not in (room, "errors", "lazy"):
                yield str(node.module)


def length(node: ast.FunctionDef, source: str) -> int:
    """Lines of a function, its docstring and comments aside: what it says of itself is no burden."""
    lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
    said = node.body[0] if ast.get_docstring(node) is not None else None
    about = 0 if said is None else int(said.end_lineno or 0) - said.lineno + 1
    return len(lines) - about - sum(line.lstrip().startswith("#") for line in lines)


def count(node: ast.FunctionDef) -> int:
    """Parameters of a function, `self` and `cls` aside."""
    given = node.args
    named = [one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def branching(source: str) -> int:
    """How many functions have more branches than one follows: McCabe's complexity, boolean operators counted."""
    found = radon.complexity.cc_visit(source)
    inner = [method for block in found if isinstance(block, Class) for method in block.methods]
    functions = {(block.lineno, block.name): block for block in [*found, *inner] if isinstance(block, Function)}
    return sum(block.complexity > MOST_BRANCHES for block in functions.values())


def comments(source: str) -> int:
    """Lines that hold a comment and nothing else; those that speak to a tool aside."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    own = [token for token in tokens if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()]
    return sum(not re.match(r"#\s*(noqa|fmt:|type:|ruff:)", token.string) for token in own)


def percent(part: int, whole: int) -> float:
    """A share, to a tenth of a percent."""
    return round(100 * part / whole, 1)


def worse(now: dict[str, float], limits: dict[str, float]) -> list[str]:
    """Say what got worse; lines of a single room may move to another."""
    said = []
    for name, limit in limits.items():
        sign = -1 if name in HIGHER_IS_BETTER else 1
        if not name.startswith("lines of ") and sign * now[name] > sign * limit:
            said.append(f"{name}: {now[name]:g}, and it was {limit:g}")
    return said


def main() -> None:
    """Print a table, and end with 1 where something got worse."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--renew", action="store_true", help="write them as the new limits")
    options = parser.parse_args()
    now, limits = measure(), json.loads(LIMITS.read_text(encoding="utf-8"))
    if options.renew:
        LIMITS.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(now, indent=2))
    else:
        for name, value in now.items():
            print(f"{name:34} {value:>8,g}   limit {limits.get(name, value):,g}")
    said = [] if options.renew else worse(now, limits)
    sys.exit("worse than it was: " + "; ".join(said) if said else 0)


if __name__ == "__main__":
    main()
