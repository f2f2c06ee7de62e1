"""Mutate files of every format that is read, and watch who reads them.

    python -m tests.fuzz.fuzzing --cases 20000          # so many cases over all formats
    python -m tests.fuzz.fuzzing --minutes 2 --format gguf
    python -m tests.fuzz.fuzzing --replay tests/fuzz/corpus
    python -m tests.fuzz.fuzzing --case gguf:0:17       # one case again, its files kept

What failed is kept in build/fuzz/failed as a corpus keeps it; the table so far, in build/fuzz/table.txt.
Exits with 0 where nothing failed, else with 1.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # threads do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"

from . import campaign  # noqa: E402
from .cases import Case, Lab  # noqa: E402


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="how many; default: as many as --minutes allow, else 20000")
    parser.add_argument("--minutes", type=float, help="time to spend")
    parser.add_argument(
        "--format", action="append", choices=campaign.all_formats(), help="only this one; may be given again"
    )
    parser.add_argument(
        "--seed",
        default=str(int(time.time()) // 86400),
        help="what decides the mutations; default: the number of the day",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where files of failed cases are kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", help="FORMAT:SEED:NUMBER, run by itself")
    parser.add_argument("--replay", type=Path, help="a corpus to read again")
    parser.add_argument(
        "--lab", type=Path, help="folder to work in, whose unharmed files serve again; default: a temporary one"
    )
    told = parser.parse_args()
    out = told.out.resolve()
    with tempfile.TemporaryDirectory(
        prefix="tfm-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as place:
        lab = Lab(told.lab.resolve() if told.lab else Path(place))
        preload()
        if told.case:
            return one(lab, told.case, out)
        if told.replay:
            tally = replay(lab, told.replay)
        else:
            until = None if told.minutes is None else time.monotonic() + 60 * told.minutes
            count = told.cases or (20_000 if until is None else None)
            print(f"seed {told.seed}", file=sys.stderr, flush=True)
            tally = campaign.run(
                lab, told.format or campaign.all_formats(), told.seed, count, until, told.jobs, out / "failed"
            )
    print(
        json.dumps(tally.to_json(), indent=1)
        if told.json
        else f"{tally.table()}\n{tally.cases} cases in {tally.seconds:.0f} s"
    )
    return 1 if tally.failed else 0


def preload() -> None:
    """Import what readers import, once for all cases."""
    import gguf  # noqa: F401
    import torch
    import transformers
    import yaml  # noqa: F401

    import tfm.bundle.archive
    import tfm.export.bundle
    import tfm.model
    import tfm.quantize
    import tfm.runtime.decoder
    import tfm.runtime.encoder
    import tfm.runtime.encoder_decoder
    import tfm.runtime.module  # noqa: F401

    torch.set_num_threads(1)
    transformers.AutoConfig, transformers.AutoModel  # noqa: B018 - each is imported when it is first named


def one(lab: Lab, name: str, out: Path) -> int:
    """Run one case."""
    form, seed, number = name.rsplit(":", 2)
    box = out / "case"
    out.mkdir(parents=True, exist_ok=True)
    lab.warm([form])
    outcome = lab.run(Case(form=form, seed=seed, number=int(number)), box)
    print(f"{outcome}\nits files: {box / 'inside'}\n{box.with_name('case.printed').read_text()}")
    return 1 if outcome.failed else 0


def replay(lab: Lab, corpus: Path) -> campaign.Tally:
    """Read what a corpus keeps."""
    tally, box = campaign.Tally(), lab.place / "box"
    entries = {file: json.loads(file.read_text()) for file in sorted(corpus.glob("*.json"))}
    lab.warm(dict.fromkeys(entry["format"] for entry in entries.values()))
    start = time.monotonic()
    for file, entry in entries.items():
        outcome = lab.replay(entry, box)
        outcome.done = [file.name]
        tally.add(entry["format"], file.stem, outcome)
    tally.seconds = time.monotonic() - start
    shutil.rmtree(box, ignore_errors=True)
    return tally


sys.exit(main())
