"""Whether an entry of the certificate failed: its own word, checked against its own figures."""

from collections.abc import Mapping
from typing import Any

from . import numbers


def fault_of_op(op: Mapping[str, Any]) -> str:
    """Why an op failed; "" where it passed."""
    return _fault(op, op["own"], op["free"], op["optimized"])


def fault_of_output(output: Mapping[str, Any]) -> str:
    """Why an output failed; "" where it passed."""
    return _fault(output, output)


def fault_of_fidelity(entry: Mapping[str, Any]) -> str:
    """Why a measure of the task failed; "" where it passed."""
    value, floor = numbers.finite(entry["value"]), numbers.finite(entry["floor"])
    # `is True`: what is no boolean has not passed.
    if entry["passed"] is True and value is not None and (floor is None or value >= floor):
        return ""
    return f"{numbers.plain(value)} on {entry['data']}, at least {numbers.plain(floor)} is wanted"


def fault_of_quantization(entry: Mapping[str, Any]) -> str:
    """Why a mix of methods is refused, its drop being no number or over the budget; "" where it is within."""
    drop, budget = numbers.finite(entry["drop"]), numbers.finite(entry["max_drop"])
    if drop is None:
        return "its drop is NaN or infinity"
    # Not `>`: what cannot be compared is not within.
    if budget is None or not drop <= budget:
        return f"its drop is {numbers.error(drop)}, more than the {numbers.error(budget)} allowed"
    return ""


def fault_of_speed(entry: Mapping[str, Any]) -> str:
    """Why a precision's speed is refused, the interval of its ratio to fp32 lying below 1; "" where it is not."""
    high = numbers.finite(entry["high"])
    if entry["baseline"] != "fp32" or high is None or not high < 1:
        return ""
    low = numbers.finite(entry["low"])
    most = numbers.plain(1 / low, 3) if low else "∞"
    return f"it takes {numbers.plain(1 / high, 3)} to {most} times as long as fp32 (95 % interval)"


def _fault(entry: Mapping[str, Any], *measured: Mapping[str, Any] | None) -> str:
    """The fault that an entry names; else that of figures that are infinite or past their limit, whatever it says."""
    if entry["fault"]:
        return numbers.prose(str(entry["fault"]))
    for figures in measured:
        # Compared with nothing: whether that is a fault is for the graph to say.
        if not figures or not figures["count"]:
            continue
        value, limit = numbers.finite(figures["max_abs"]), figures.get("limit")
        if value is None:
            return "NaN or infinity where eager has another value, or the other way round"
        if limit is not None and not value <= limit:
            return f"off by {numbers.error(value)}, more than {numbers.error(limit)}"
    return "" if entry["passed"] is True else "failed, without a reason given"
