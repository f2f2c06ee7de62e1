"""What runs here: providers, processor, and whether each family of ops that bundles have computes what it should."""

import functools
import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnxruntime

from tfm.bundle import OLDEST, Gate, Judged, folder_of, is_older, lowest_needed, read_manifest
from tfm.errors import TfmError

from ..loading import load
from ..sessions.cpu import default_threads, features, model_name, quota, usable_cores
from ..sessions.providers import PROVIDERS, assignment, open_session
from ..sessions.requires import upgrade
from .canaries import Canary, canaries
from .saturation import saturates


@dataclass(frozen=True, kw_only=True)
class ProviderState:
    """Whether a provider runs here.

    Attributes:
        name: "cpu" or "cuda".
        runs: Whether it opened a graph and ran it.
        why: Why it does not.
    """

    name: str
    runs: bool
    why: str | None


@dataclass(frozen=True, kw_only=True)
class CanaryState:
    """What a family of ops gives on one provider.

    Attributes:
        family: The ops.
        provider: That was asked for.
        verdict: "right", "wrong", or "missing": this onnxruntime does not run it, nor a bundle that has it.
        max_abs: The largest error of any element; None where there is no result, or one that is not a number.
        limit: How far off it may be.
        on: The providers that its nodes were given to; none where onnxruntime does not say.
        why: What onnxruntime said, or what is wrong.
    """

    family: str
    provider: str
    verdict: str
    max_abs: float | None
    limit: float
    on: tuple[str, ...]
    why: str | None

    @property
    def gate(self) -> Gate:
        """Whether it is right, where it runs."""
        name, right = f"{self.family} on {self.provider}", self.verdict == "right"
        advice = "try another onnxruntime" + ("" if self.provider == "cpu" else ", or provider='cpu'")
        return Gate(
            name=name,
            stage="machine",
            precision="",
            op=self.family,
            passed=right,
            figure=self.max_abs,
            limit=self.limit,
            reason="" if right else f"{name} is wrong: {self.why}; {advice}",
        )


@dataclass(frozen=True, kw_only=True)
class BundleState:
    """What runs where a bundle is loaded as an app loads it.

    Attributes:
        path: The bundle.
        kind: "encoder", …; None where it does not open.
        provider: "cpu" or "cuda"; None where it does not open.
        device: "cpu" or "cuda:0".
        precision: Of its graphs.
        threads: Within an operator.
        skipped: Provider that does not run it → why.
        needs: Precision → the lowest onnxruntime that opens its graphs; empty where the bundle does not say.
        why: Why it does not open.
    """

    path: str
    kind: str | None = None
    provider: str | None = None
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    skipped: dict[str, str] | None = None
    needs: dict[str, str] = field(default_factory=dict)
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Judged):
    """All that was found.

    Attributes:
        system: Operating system and machine.
        python: Version of Python.
        onnxruntime: Its version.
        build: What it says of its build.
        available: The providers that it was built with, by its own names.
        processor: The processor's name.
        features: Instructions for products of matrices → whether the processor has them.
        saturates: Whether products of 8 bits need exact kernels that are asked for; None where the CPU does not run.
        cores: Logical cores of the machine.
        usable: Of them those that this process may run on.
        quota: How many cores' time its containers allow; None: no limit.
        threads: Within an operator, unless asked otherwise.
        providers: Each provider that tfm knows.
        canaries: Each family of ops, on each provider that runs.
        bundle: The bundle that was asked about.
    """

    system: str
    python: str
    onnxruntime: str
    build: str
    available: tuple[str, ...]
    processor: str
    features: dict[str, bool]
    saturates: bool | None
    cores: int
    usable: int
    quota: float | None
    threads: int
    providers: tuple[ProviderState, ...]
    canaries: tuple[CanaryState, ...]
    bundle: BundleState | None

    def gates(self) -> list[Gate]:
        """List what must hold here. What merely is not there is no fault."""
        gate = functools.partial(Gate, stage="machine", precision="")
        old = is_older(self.onnxruntime, OLDEST)
        reason = f"onnxruntime {self.onnxruntime} is older than {OLDEST}, the oldest tested: {upgrade()}"
        gates = [gate(name="onnxruntime", passed=not old, reason=reason if old else "")]
        runs = any(provider.runs for provider in self.providers)
        reason = "" if runs else "no provider runs here: install onnxruntime again"
        gates.append(gate(name="a provider", passed=runs, reason=reason))
        gates += [canary.gate for canary in self.canaries if canary.verdict != "missing"]
        if self.bundle is not None:
            opens, path = self.bundle.why is None, self.bundle.path
            gates.append(
                gate(name=path, passed=opens, reason="" if opens else f"{path} does not open: {self.bundle.why}")
            )
        return gates

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON has it."""
        return asdict(self)


def diagnose(bundle: str | os.PathLike[str] | None = None) -> Diagnosis:
    """Find out what runs on this machine; nothing that fails raises.

    Args:
        bundle: A bundle's folder or .zip, to be loaded as an app would.

    Returns:
        What was found.
    """
    made = canaries()
    # Any graph shows whether a provider runs.
    providers = tuple(_try_provider(name, made[0]) for name in PROVIDERS)
    running = [provider.name for provider in providers if provider.runs]
    return Diagnosis(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        build=onnxruntime.get_build_info(),
        available=tuple(onnxruntime.get_available_providers()),
        processor=model_name(),
        features=features(),
        saturates=saturates() if "cpu" in running else None,
        cores=os.cpu_count() or 1,
        usable=usable_cores(),
        quota=quota(),
        threads=default_threads(),
        providers=providers,
        canaries=tuple(_try_canary(canary, name) for canary in made for name in running),
        bundle=None if bundle is None else _try_bundle(bundle),
    )


def _try_provider(name: str, canary: Canary) -> ProviderState:
    """Open and run a graph; that its result is right is for the canaries to say."""
    try:
        open_session(canary.model, name, 1).run(None, canary.feeds)
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        return ProviderState(name=name, runs=False, why=str(error))
    return ProviderState(name=name, runs=True, why=None)


def _try_canary(canary: Canary, provider: str) -> CanaryState:
    state = functools.partial(CanaryState, family=canary.family, provider=provider, limit=canary.limit)
    try:
        session = open_session(canary.model, provider, 1)
        (result,) = session.run(None, canary.feeds)
    except Exception as error:  # as above
        return state(verdict="missing", max_abs=None, on=(), why=str(error))
    verdict, max_abs, why = _judge(canary, np.asarray(result))
    return state(verdict=verdict, max_abs=max_abs, on=_assigned(session), why=why)


def _assigned(session: Any) -> tuple[str, ...]:
    try:
        return tuple(assignment(session))
    except TfmError:  # an older onnxruntime does not say
        return ()


def _judge(canary: Canary, result: "np.ndarray[Any, Any]") -> tuple[str, float | None, str | None]:
    """Compare; only numbers within the limit, in the right shape, are right."""
    if result.shape != canary.expected.shape:
        return "wrong", None, f"its result has shape {result.shape}, not {canary.expected.shape}"
    off = np.abs(result.astype(np.float64) - canary.expected)
    if not np.isfinite(off).all():
        return "wrong", None, "its result holds what is not a finite number"
    worst = float(off.max())
    if worst <= canary.limit:
        return "right", worst, None
    return "wrong", worst, f"off by {worst:.1e}, more than {canary.limit:.1e}"


def _try_bundle(bundle: str | os.PathLike[str]) -> BundleState:
    path, needs = os.fspath(bundle), {}
    try:
        # Before it is opened, as what it needs is most wanted where opening fails.
        needs = lowest_needed(read_manifest(folder_of(bundle)))
        model = load(bundle)
    except TfmError as error:
        return BundleState(path=path, needs=needs, why=str(error))
    return BundleState(
        path=path,
        kind=model.manifest.kind,
        provider=model.provider,
        device=model.device,
        precision=model.precision,
        threads=model.threads,
        skipped=dict(model.skipped),
        needs=needs,
    )
