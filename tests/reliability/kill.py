"""Kill export, quantize and prune at many moments, into what is there already: the old or the new is whole each time.

    python tests/reliability/kill.py --moments 100

Each command makes a tiny model's folder anew, over an earlier one. It is killed with SIGKILL at moments that are spread
over its whole duration and drawn within each step, and, at a tenth as many, asked to stop by SIGTERM, by SIGHUP and by
five SIGINTs in a row. Then:

- what is at its place is whole: every digest of the manifest is compared and a task is run; of a pruned checkpoint, the
  weights are read. It is byte for byte the old one, or a new one.
- no process of it lives on.
- a command that was asked to stop left nothing but a search's figures; of one that was killed nothing is left, beside
  its place or where temporary files are, after the next run that is not disturbed. That follows each SIGKILL.

Prints a table; exit code 1 where anything was violated. Nothing else is needed on the machine, and no network.

The commands run in forks of one process that has imported what they need, as importing takes longer than all the rest.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PATIENCE = 60.0
"""Seconds after which what should have ended has not."""

_FOREVER = 1800.0
"""Seconds for a command that nobody disturbs: a machine with no time to spare is no violation."""

_BETWEEN = 0.03
"""Seconds between the five SIGINTs."""

_THEIRS = (".ses", "torchinductor_")
"""What libraries keep among temporary files, killed or not: onnxruntime's number of a session, and torch's cache."""

WORDS = ["<pad>", "<unk>", *"abcdefghijklmnopq"]


@dataclass
class Command:
    """What is killed.

    Attributes:
        name: For the table.
        output: What it makes.
        run: Runs it, in the process that calls it; ends by SystemExit.
        check: Raises where the output is not whole.
        seconds: How long it takes undisturbed; measured.
    """

    name: str
    output: Path
    run: Callable[[], None]
    check: Callable[[], None]
    seconds: float = 0.0


@dataclass
class Findings:
    """What was seen.

    Attributes:
        counts: Command, signal and outcome → how often.
        violations: What must never be, one sentence each.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def prepare(room: Path) -> None:
    """Make a tiny checkpoint and texts. In a fork: what has used several threads once must not be forked."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tfm.model import Transformer, TransformerConfig, save_checkpoint

    shape = {"vocab_size": 19, "d_model": 16, "nhead": 2, "num_encoder_layers": 1, "dim_feedforward": 32}
    config = TransformerConfig(**shape, kind="encoder", pooling="mean", normalize=True, max_positions=16)  # type: ignore[arg-type]
    checkpoint = room / "checkpoint"
    checkpoint.mkdir()
    save_checkpoint(Transformer(config).eval(), checkpoint / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS[2:], k=draw.randint(2, 9))) for _ in range(300)]
    (room / "texts.txt").write_text("\n".join(lines), encoding="utf-8")


def commands_on(room: Path) -> list[Command]:
    """The three commands on what `prepare` made, each with its output in a folder of its own."""
    from tfm import cli

    texts = room / "texts.txt"
    outputs = {name: room / name / f"x{suffix}" for name, suffix in
               (("export", ".tfm"), ("quantize", ".tfm"), ("prune", "-pruned"))}  # fmt: skip
    for output in outputs.values():
        output.parent.mkdir()
    ckpt = ["--ckpt", str(room / "checkpoint")]
    export = [*ckpt, "-o", str(outputs["export"]), "--calib", str(texts), "--overwrite", "--force"]
    quantize = ["quantize", str(outputs["quantize"]), "--calib", str(texts), "--force"]
    prune = ["prune", *ckpt, "-o", str(outputs["prune"]), "--keep", "0.5", "--multiple", "4", "--text", str(texts)]
    commands = {
        "export": lambda: forced(cli.export, export),
        "quantize": lambda: forced(cli.main, quantize),
        "prune": lambda: cli.main([*prune, "--steps", "60", "--overwrite"]),
    }
    checks = {"export": check_bundle, "quantize": check_bundle, "prune": check_checkpoint}
    return [
        Command(name, outputs[name], run, lambda name=name: checks[name](outputs[name]))  # type: ignore[misc]
        for name, run in commands.items()
    ]


def forced(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run what ships whatever it finds: that a gate failed, 1, is as good an end here as 0."""
    try:
        command(arguments)
    except SystemExit as end:
        if end.code != 1:
            raise


def check_bundle(folder: Path) -> None:
    """Raise where a bundle is not whole: a digest that is not the manifest's, or a task that does not run."""
    from tfm.bundle.manifest import check_digests, read_manifest
    from tfm.runtime import load

    manifest = read_manifest(folder)
    check_digests(manifest, manifest.files)
    for precision in manifest.graphs:
        load(folder, provider="cpu", precision=precision, threads=1).embed(["a b c"])  # type: ignore[attr-defined]
    listed = {*manifest.files, "manifest.json"}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if found != listed:
        raise ValueError(f"{folder} holds {found ^ listed} more or less than its manifest says")


def check_checkpoint(folder: Path) -> None:
    """Raise where a pruned checkpoint is not whole."""
    from tfm.model import load_checkpoint

    report = json.loads((folder / "pruning.json").read_text(encoding="utf-8"))
    model = load_checkpoint(folder)
    if sum(parameter.numel() for parameter in model.parameters()) != report["parameters"][1]:
        raise ValueError(f"{folder} has other parameters than its report says")


def take_no_time() -> None:
    """Let nothing be timed in processes of their own, which on a tiny model is most of what a command does."""
    import tfm.export.bundle
    import tfm.quantize.existing
    from tfm.latency import Latency

    times = [Latency(work="none", rounds={"eager": [3.0] * 9, "fp32": [2.0] * 9, "int8": [1.0] * 9})]
    tfm.export.bundle.measure_latency = lambda *_, **__: times  # type: ignore[assignment]
    tfm.quantize.existing.time_engines = lambda *_, **__: times  # type: ignore[assignment]
    tfm.quantize.existing.try_engines = lambda *_, **__: None  # type: ignore[assignment]


class Ground:
    """Where the commands run, and what is looked at there."""

    def __init__(self, room: Path, findings: Findings) -> None:
        self.room, self.findings = room, findings
        self.temporary = room / "tmp"
        self.temporary.mkdir(exist_ok=True)

    def start(self, work: Callable[[], None]) -> int:
        """Do something in a fork, in a session of its own and with a folder of its own for temporary files."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            os.environ["TMPDIR"] = str(self.temporary)
            tempfile.tempdir = str(self.temporary)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log = os.open(self.room / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            work()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0) if not isinstance(stopped.code, str) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            import atexit

            atexit._run_exitfuncs()
            os._exit(code)
        raise AssertionError("unreachable")

    def wait(self, child: int, seconds: float = _FOREVER) -> int | None:
        """Its exit code, negative where a signal ended it; None: it did not end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def undisturbed(self, command: Command, *, quick: bool = False) -> float:
        """Run it to its end, if wanted without the long timing of engines; gives the seconds."""

        def run() -> None:
            if quick:
                take_no_time()
            command.run()

        start = time.monotonic()
        code = self.wait(self.start(run))
        if code != 0:
            self.complain(command, f"undisturbed, it ended with {code}: {self.said()}")
        return time.monotonic() - start

    def said(self) -> str:
        return (self.room / "log").read_text(errors="replace").strip()[-1500:]

    def complain(self, command: Command, what: str) -> None:
        self.findings.violations.append(f"{command.name}: {what}")
        print(f"  VIOLATION {self.findings.violations[-1]}", flush=True)

    def whole(self, command: Command, when: str) -> None:
        """Complain unless what is there is whole; looked at in a fork, which a crash ends without ending this."""
        if self.wait(self.start(command.check)) != 0:
            self.complain(command, f"{when}: what is there is not whole: {self.said()}")

    def left(self, command: Command) -> list[str]:
        """Name what is beside the output or among the temporary files and is no search's journal."""
        beside = [path.name for path in command.output.parent.iterdir() if path != command.output]
        beside = [name for name in beside if not name.endswith(".search")]
        temporary = [path.name for path in self.temporary.iterdir() if not path.name.startswith(_THEIRS)]
        return sorted([*beside, *(f"TMPDIR/{name}" for name in temporary)])

    def survivors(self) -> list[int]:
        """Processes that were started by a command: their environment names the folder for temporary files."""
        mark, found = f"TMPDIR={self.temporary}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found

    def await_end_of_all(self, command: Command, when: str) -> None:
        end = time.monotonic() + _PATIENCE
        while survivors := self.survivors():
            if time.monotonic() > end:
                self.complain(command, f"{when}: processes {survivors} live on")
                for process in survivors:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.05)

    def disturb(self, command: Command, moment: float, kind: str) -> None:
        """Run a command, send it signals at a moment, and look at what became of it."""
        before = digest(command.output)
        when = f"{kind} after {moment:.2f} s"
        child = self.start(command.run)
        code = self._strike(child, moment, kind)
        outcome = "ran to its end" if code == 0 else "ended by it"
        if code is None:
            self.complain(command, f"{when}: it did not end")
        expected = {"SIGKILL": (-9,), "SIGTERM": (143,), "SIGHUP": (129,), "SIGINT ×5": (130,)}[kind]
        if code not in (0, *expected, None) and not (code == -int(signal.SIGHUP) or code == -int(signal.SIGTERM)):
            self.complain(command, f"{when}: exit code {code}: {self.said()}")
        self.await_end_of_all(command, when)
        if not command.output.exists():
            self.complain(command, f"{when}: nothing is there; beside it: {self.left(command)}")
        else:
            after = digest(command.output)
            self.findings.counts[command.name, kind, f"{outcome}, {'old' if after == before else 'new'}"] += 1
            if code == 0 and after == before and command.name != "prune":  # pruning by one seed gives the same again
                self.complain(command, f"{when}: it said it was done, but the old one is there")
        self.whole(command, when)
        if kind != "SIGKILL":
            if left := self.left(command):
                self.complain(command, f"{when}: it left {left}; it ended with {code} and said {self.said()}")
            return
        self.findings.counts[command.name, kind, "left something"] += bool(self.left(command))
        self.undisturbed(command, quick=True)
        if left := [*self.left(command), *command.output.parent.glob(".*.search")]:
            self.complain(command, f"{when}: after the next run {left} is left")
        self.whole(command, f"{when}, and the next run")

    def _strike(self, child: int, moment: float, kind: str) -> int | None:
        end = time.monotonic() + moment
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(min(0.002, max(end - time.monotonic(), 0)))
        name = kind.split()[0]
        for _ in range(5 if name == "SIGINT" else 1):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            os.kill(child, signal.Signals[name])
            if name == "SIGINT":
                time.sleep(_BETWEEN)
        return self.wait(child)


def digest(folder: Path) -> str:
    """Of all that is in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def moments(count: int, seconds: float, draw: random.Random) -> Iterator[float]:
    """Spread moments over a duration and a little beyond, each drawn within its step."""
    for index in range(count):
        yield (index + draw.random()) / count * seconds * 1.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=100, help="SIGKILLs, over all commands")
    parser.add_argument("--polite", type=int, help="of each other signal, over all commands [default: a tenth]")
    parser.add_argument("--only", choices=["export", "quantize", "prune"], help="one command alone")
    parser.add_argument("--quick", action="store_true", help="time no engines in processes of their own")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    polite = max(options.moments // 10, 3) if options.polite is None else options.polite
    findings = Findings()
    room = Path(tempfile.mkdtemp(prefix="kill-")).resolve()  # no TemporaryDirectory, which every fork would remove
    try:
        run_all(room, findings, options.moments, polite, options.only, random.Random(options.seed), quick=options.quick)
    finally:
        shutil.rmtree(room)
    print(f"\n{len(findings.violations)} violations")
    for violation in findings.violations:
        print(f"- {violation}")
    return 1 if findings.violations else 0


def run_all(
    room: Path, findings: Findings, kills: int, polite: int, only: str | None, draw: random.Random, *, quick: bool
) -> None:
    """Run every command undisturbed, then disturb it; prints what became of it."""
    import tfm.export
    import tfm.study.prune  # noqa: F401 - before it forks

    if quick:
        take_no_time()

    ground = Ground(room, findings)
    if ground.wait(ground.start(lambda: prepare(room))) != 0:
        raise SystemExit(f"no model could be made: {ground.said()}")
    commands = commands_on(room)
    chosen = [command for command in commands if only in (None, command.name)]
    for command in commands if only != "prune" else chosen:
        if command.name == "quantize":  # of the bundle that was exported
            shutil.copytree(commands[0].output, command.output)
        if command in chosen or command.name == "export":
            command.seconds = ground.undisturbed(command)
            ground.whole(command, "undisturbed")
    for number, command in enumerate(chosen):
        command.seconds = ground.undisturbed(command)
        print(f"{command.name}: {command.seconds:.1f} s undisturbed", flush=True)
        for kind, total in (("SIGKILL", kills), ("SIGTERM", polite), ("SIGHUP", polite), ("SIGINT ×5", polite)):
            share = total // len(chosen) + (number < total % len(chosen))
            for index, moment in enumerate(moments(share, command.seconds, draw)):
                if sys.stderr.isatty():
                    print(f"\r  {kind} {index + 1} of {share}", end="\r", file=sys.stderr, flush=True)
                ground.disturb(command, moment, kind)
            seen = {
                what: n for (name, sent, what), n in findings.counts.items() if (name, sent) == (command.name, kind)
            }
            told = ", ".join(f"{n} {what}" for what, n in sorted(seen.items()))
            print(f"  {kind:<10} {share:>4} moments: {told}; {len(findings.violations)} violations so far", flush=True)


if __name__ == "__main__":
    sys.exit(main())
