"""Every model of the board, exported, verified and compared with transformers by its task.

    python -m tests.board.board --part 3/10          # a tenth of the models; build/board.json keeps what was found
    python -m tests.board.board --today --seconds 60 # as many as go into a minute, others every day
    python -m tests.board.board --write docs/families.md

Each model is tiny, with random weights, and goes through the public way: `export_checkpoint`, `load`, and what its task
is; it is not timed, and no page is drawn of it. What is refused must be refused by an error of ours, whose words the
table has; any other error is counted as one, and ends in exit code 1, as a model does that is exported and computes
something else.
"""

import argparse
import contextlib
import copy
import dataclasses
import datetime
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tfm.export.bundle as bundles
from tests.board.models import Entry, entries
from tfm.errors import TfmError
from tfm.export import export_checkpoint
from tfm.runtime import Perceiver, Whisper, load
from tfm.runtime.perceiver import Perceived

START, END = "<!-- board -->", "<!-- /board -->"

NEAR = 1e-4
"""Of an output's largest value: float32 through two libraries, a few layers deep."""

NEW = 5
"""Tokens that are generated."""

STRIDE = 7
"""Models that a day's sample begins behind the last one's."""

SECONDS = 7200
"""After which no further model is begun."""


@dataclasses.dataclass
class Row:
    """What became of one model; None: it is not asked of this one."""

    name: str
    cls: str
    family: str = ""
    way: str = ""
    exported: bool = False
    task: bool | None = None
    generates: bool | None = None
    refusal: str = ""
    untyped: bool = False
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether it is a fault of ours: an error of another kind, or an export that computes something else."""
        return self.untyped or self.task is False or self.generates is False


def examine(entry: Entry) -> Row:
    """Make a model, export it, and compare what the bundle does with what transformers does."""
    row, start = Row(entry.name, entry.cls), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder)
        try:
            module = make(entry, place / "m")
        except Exception as error:
            raise RuntimeError(f"{entry.name}: transformers cannot make it: {error}") from error
        row.family, row.cls = module.config.model_type, type(module).__name__
        try:
            judge(row, module, place)
        except TfmError as error:
            row.refusal = _short(str(error).replace(folder, "…"))
        except Exception as error:  # it is what the board is for
            row.refusal, row.untyped = _short(f"{type(error).__name__} {error}"), True
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def make(entry: Entry, folder: Path) -> Any:
    """Save a model whose weights are random, and large enough for a mistake to show."""
    import transformers

    transformers.logging.disable_progress_bar()
    options = copy.deepcopy(entry.options)
    kind = getattr(transformers, entry.cls)
    if entry.cls.startswith("Auto"):
        config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
        module = kind.from_config(config).eval()
    else:
        module = kind(kind.config_class(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "embed_positions" in name and not weight.requires_grad:
                continue  # a fixed table
            unit = 1.0 if "norm" in name.lower() and name.endswith("weight") and weight.ndim == 1 else 0.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + unit)
    module.save_pretrained(folder)
    if "preprocessor" in entry.beside:
        (folder / "preprocessor_config.json").write_text(json.dumps(entry.beside["preprocessor"]))
    return module


def judge(row: Row, module: Any, place: Path) -> None:
    """Fill a row."""
    stages: list[str] = []
    bundles.measure_latency = lambda *_: []  # type: ignore[assignment]
    bundles.draw_report = lambda *_: None
    report = export_checkpoint(place / "m", place / "b", precisions=["fp32"], stage=_noting(stages))
    row.way = "transformers" if any("by transformers" in stage for stage in stages) else "native"
    row.exported = report.shipped
    if not report.shipped:
        row.refusal = _short("; ".join(report.faults()))
        return
    bundle = load(place / "b", provider="cpu")
    if isinstance(bundle, Perceiver):
        row.generates = row.task = writes_alike(bundle, module)
    elif "generate" in bundle.tasks:
        row.generates = row.task = generates_alike(bundle, module)
    else:
        row.task = computes_alike(bundle, module)


def generates_alike(bundle: Any, module: Any) -> bool:
    """Whether ragged prompts go on as transformers has each of them go on, token for token."""
    rows = [[5, 9, 11, 7, 6, 8], [12], [21, 4, 30]]
    config = module.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    wanted = []
    for row in rows:
        found = module.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=NEW,
        )[0].tolist()
        new = found[1:] if module.config.is_encoder_decoder else found[len(row) :]
        wanted.append(new[: next((place for place, token in enumerate(new) if token in ends), len(new))])
    return bool(bundle.generate(rows, max_new_tokens=NEW) == wanted)


def writes_alike(bundle: Perceiver, module: Any) -> bool:
    """Whether what is heard or seen becomes what transformers makes of it, token for token."""
    from transformers import GenerationMixin

    [spec] = bundle.manifest.signature["encoder"].inputs
    shape = [dim if isinstance(dim, int) else 24 for dim in spec.shape[1:]]
    source = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    config = module.generation_config
    options = {"do_sample": False, "max_new_tokens": NEW}
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    wanted = []
    for one in source:
        # Whisper's own would ask for a language first.
        found = GenerationMixin.generate(module, **{spec.name: torch.from_numpy(one[None])}, **options)
        new = found[0].tolist()[1:]
        wanted.append(new[: next((place for place, token in enumerate(new) if token in ends), len(new))])
    if isinstance(bundle, Whisper):
        return bool(bundle.greedy(source, [config.decoder_start_token_id], NEW) == wanted)
    rows: list[Any] = [Perceived(one) for one in source]
    return bool(bundle.generate(rows, max_new_tokens=NEW) == wanted)


def computes_alike(bundle: Any, module: Any) -> bool:
    """Whether every output that both have is the same, padding aside."""
    feeds = _feeds(bundle, module)
    got = bundle.run(**feeds)
    with torch.no_grad():
        found = module(**{name: torch.from_numpy(value) for name, value in feeds.items()}, return_dict=True)
        if module is not module.base_model and "last_hidden_state" in got and "last_hidden_state" not in found:
            found["last_hidden_state"] = module.base_model(
                **{name: torch.from_numpy(value) for name, value in feeds.items()}
            )[0]
    shared = [name for name in got if name in found]
    real = feeds.get("attention_mask")
    return bool(shared) and all(_alike(got[name], found[name].numpy(), real) for name in shared)


def _alike(got: Any, want: Any, real: Any) -> bool:
    got = got.reshape(want.shape)
    if real is not None and got.shape[:2] == real.shape:
        got, want = got[real == 1], want[real == 1]
    return bool(np.abs(got - want).max() <= NEAR * max(1.0, float(np.abs(want).max())))


def _feeds(bundle: Any, module: Any) -> dict[str, Any]:
    """Make inputs by the bundle's signature: ragged texts, or numbers."""
    random, feeds = np.random.default_rng(0), {}
    low = 3 if getattr(module.config, "pad_token_id", None) in (None, 0, 1, 2) else 0
    least = bundle.manifest.signature["model"].min_length
    for spec in bundle.manifest.signature["model"].inputs:
        shape = [dim if isinstance(dim, int) else 3 if "batch" in dim else least.get(dim, 0) + 7 for dim in spec.shape]
        if "mask" in spec.name:
            feeds[spec.name] = (np.arange(shape[1]) < np.array([[7], [4], [1]])).astype(np.int64)
        elif spec.dtype == "float32":
            feeds[spec.name] = random.standard_normal(shape).astype(np.float32)
        else:
            below = spec.below or 41
            feeds[spec.name] = random.integers(low if below > low else 0, below, shape)
    return feeds


def _noting(stages: list[str]) -> Any:
    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Any]:
        stages.append(name)
        yield lambda *_: None

    return stage


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def chosen(part: str | None, day: int | None = None) -> list[Entry]:
    """Give the models of a part, or all, begun elsewhere on each day, in the order in which they are examined."""
    found = entries()
    if part is not None:
        number, of = map(int, part.split("/"))
        if not 1 <= number <= of:
            raise SystemExit(f"--part {part}: write one from 1/{of} to {of}/{of}")
        return found[number - 1 :: of]
    if day is not None:
        # By as many as go into a minute, so that the days of a month see all of them.
        first = day * STRIDE % len(found)
        return found[first:] + found[:first]
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Give what was found as Markdown: a row for each family, and below it why the rest was refused."""
    lines = [
        "| Family | Way | Classes | Exported, verified | Task as transformers | Generates as transformers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    for family, found in sorted(families.items()):
        ways = ", ".join(sorted({row["way"] for row in found if row["way"]})) or "–"
        counts = [_count(found, key) for key in ("exported", "task", "generates")]
        lines.append(f"| `{family}` | {ways} | {len(found)} | {' | '.join(counts)} |")
    lines += [
        "",
        f"In all: {_count(rows, 'exported')} exported and verified; the task of {_count(rows, 'task')}, and "
        f"the generation of {_count(rows, 'generates')}, as transformers has it.",
    ]
    refused = [row for row in rows if row["refusal"]]
    lines += ["", "Not exported:", ""] if refused else []
    # A bracket would begin a link.
    lines += [f"- `{row['cls']}` ({row['name']}): {row['refusal'].replace('[', chr(92) + '[')}" for row in refused]
    return "\n".join(lines)


def _count(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    asked = [row for row in rows if row[key] is not None]
    return f"{sum(bool(row[key]) for row in asked)} of {len(asked)}" if asked else "–"


def renew(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between the two marks of a file of Markdown."""
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{path} has no {START} … {END} for the table to go between")
    path.write_text(f"{before}{start}\n\n{table(rows)}\n\n{end}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine what is asked for, keep what was found, and give the exit code."""
    parser = argparse.ArgumentParser(description="Which models of transformers are exported, and are the same.")
    parser.add_argument("--part", help="one of so many parts, 3/10")
    parser.add_argument("--today", action="store_true", help="begin elsewhere every day")
    parser.add_argument("--only", help="those whose names have this in them")
    parser.add_argument("--missing", action="store_true", help="those of which nothing is kept yet")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no further model is begun")
    parser.add_argument("--kept", type=Path, default=Path("build/board.json"), help="where what was found is kept")
    parser.add_argument("--write", type=Path, action="append", default=[], help="file whose table is renewed; no run")
    options = parser.parse_args(arguments)
    kept: dict[str, Any] = json.loads(options.kept.read_text()) if options.kept.is_file() else {}
    names = [entry.name for entry in entries()]
    if options.write:
        rows = [kept[name] for name in names if name in kept]
        if lacking := len(names) - len(rows):
            raise SystemExit(f"{options.kept} lacks {lacking} of {len(names)} models; run the other parts first")
        for path in options.write:
            renew(path, rows)
        return 0
    start, wrong = time.perf_counter(), 0
    day = datetime.date.today().toordinal() if options.today else None
    for entry in chosen(options.part, day):
        if (options.only and options.only not in entry.name) or (options.missing and entry.name in kept):
            continue
        if time.perf_counter() - start > options.seconds:
            break
        row = examine(entry)
        kept[entry.name] = dataclasses.asdict(row)
        wrong += row.wrong
        verdict = "WRONG" if row.wrong else "ok" if row.exported else "refused"
        print(f"{verdict:8}{row.seconds:6.1f} s  {row.name}: {row.way or '–'} {row.refusal}", flush=True)
        options.kept.parent.mkdir(parents=True, exist_ok=True)
        options.kept.write_text(json.dumps(kept, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
