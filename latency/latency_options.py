"""What `measure_latency` is asked for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfm.errors import InputError
from tfm.runtime import check_count, usable_cores

from .ratios import LEAST_ROUNDS, NOISE_LIMIT
from .rounds import ROUNDS, SECONDS, WARMUP

STARTS = 5
NEW_TOKENS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """What is timed, and how long.

    Attributes:
        precisions: Those to time; None: all that the bundle has.
        batch_sizes: Numbers of rows.
        lengths: Tokens of each row; of what generates, of its prompt or source.
        threads: Numbers of threads, one after the other; threads are pinned to as many cores.
        rounds: How often every engine has its turn, at least 6.
        seconds: How long a turn is.
        warmup: Runs of each work before the first round.
        new_tokens: How many tokens follow each prompt or source, at least 2.
        texts: The corpus that throughput is measured on; None: built-in English.
        corpus: Whether it is measured.
        starts: How often each engine is started in a fresh process; 0: never.
        baseline: Engine that the others are compared with; None: eager where it is one, else fp32.

    Raises:
        InputError: One of them makes no sense, or not on this machine.
    """

    precisions: Sequence[str] | None = None
    batch_sizes: Sequence[int] = (1, 8)
    lengths: Sequence[int] = (16, 128)
    threads: Sequence[int] = (1,)
    rounds: int = ROUNDS
    seconds: float = SECONDS
    warmup: int = WARMUP
    new_tokens: int = NEW_TOKENS
    texts: Sequence[str] | None = None
    corpus: bool = True
    starts: int = STARTS
    baseline: str | None = None

    def __post_init__(self) -> None:
        if self.precisions is not None and not self.precisions:
            raise InputError("precisions is empty; name one that the bundle has, or pass None for all")
        for name in ("threads", "batch_sizes", "lengths"):
            if not [check_count(name, value) for value in getattr(self, name)]:
                raise InputError(f"{name} is empty; give at least one number")
        most, cores = max(self.threads), usable_cores()
        if most > cores:
            raise InputError(f"{most} threads cannot be pinned to {cores} usable cores; ask for at most {cores}")
        if check_count("rounds", self.rounds) < LEAST_ROUNDS:
            raise InputError(f"rounds must be at least {LEAST_ROUNDS}, as fewer show nothing, but is {self.rounds}")
        if not 0 < self.seconds < float("inf"):
            raise InputError(f"seconds must be a number above 0, but is {self.seconds}")
        if check_count("new_tokens", self.new_tokens) < 2:
            raise InputError("new_tokens must be at least 2: the first one, and one that follows it")

    @property
    def settings(self) -> dict[str, Any]:
        """What a report says of them, as JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("batch_sizes", "lengths", "threads")}
        numbers = {name: getattr(self, name) for name in ("rounds", "seconds", "warmup", "new_tokens")}
        return {**lists, **numbers, "noise_limit": NOISE_LIMIT}
