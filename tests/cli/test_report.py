"""What the terminal says of a quantization: calm, in few lines, and nothing that a checkpoint's names could change."""

import io
import subprocess
import sys
from typing import Any

import pytest

from tests.support.planted_quantization import encoder_weights, planted
from tfm.cli.report import print_latency, print_quantization
from tfm.cli.screen import Screen
from tfm.latency import Latency


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(quantization: dict[str, Any], width: int = 80, file: io.StringIO | None = None) -> list[str]:
    file = file or io.StringIO()
    console = Screen(file=file, width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        print_quantization(quantization, console)
    return capture.get().splitlines()


def entry(**change: Any) -> dict[str, Any]:
    found: dict[str, Any] = planted(encoder_weights(), float32=(3, 11))
    return found | {"drop": 0.0016, "relative_time": 0.31} | change


EVEN, UNEVEN = [1.0] * 15, [1.0, 1.1, 0.9] * 5


@pytest.mark.parametrize(
    ("int8", "beside", "mark", "said"),
    [
        ([0.5] * 15, "faster 4.0× (4.0–4.0)", "✓", "faster than fp32 here: 0.50× its time (0.50–0.50) over all work"),
        (UNEVEN, "faster 2.0× (1.8–2.2)", "–", "not shown to be faster or slower than fp32 here: 1.00× its time"),
        ([4.0] * 15, "slower 2.0× (2.0–2.0)", "✗", "slower than fp32 here: 4.00× its time (4.00–4.00) over all work"),
    ],
    ids=["faster", "the same", "slower"],
)
def test_a_time_stands_beside_what_it_shows(int8: list[float], beside: str, mark: str, said: str) -> None:
    """In a terminal of 80 columns: its ratio to eager with the interval, and whether it pays."""
    console = Screen(width=80, force_terminal=False, color_system=None)
    rounds = {"eager": [2.0] * 15, "fp32": EVEN, "int8": int8}
    with console.capture() as capture:
        print_latency([Latency(work="decoder step after 128", rounds=rounds)], console)
    _, title, head, _, eager, fp32, last, verdict = capture.get().splitlines()
    assert title == "latency, one thread, median of interleaved rounds"
    assert head.split() == ["work", "engine", "time", "beside", "eager"]
    assert eager.split()[-3:] == ["eager", "2.00", "ms"]
    assert "  fp32   1.00 ms faster 2.0× (2.0–2.0)" in fp32
    assert last.endswith(f" ms {beside}")
    assert verdict.startswith(f"  {mark} int8 is {said}")


def test_of_a_noisy_machine_nothing_is_claimed() -> None:
    console = Screen(width=80, force_terminal=False, color_system=None)
    wild = [1.0, 2.0, 1.0, 3.0, 1.0] * 3
    with console.capture() as capture:
        print_latency([Latency(work="model", rounds={"eager": wild, "fp32": wild, "int8": EVEN})], console)
    out = capture.get()
    assert "×" not in out.split("int8 is")[0]
    assert "– int8 is not compared with fp32 on a machine as noisy as this" in out
    with console.capture() as capture:
        print_latency([], console)
    assert capture.get() == ""


def test_it_takes_few_lines_and_names_the_costliest() -> None:
    found = entry()
    lines = printed({"int8": found})
    assert len(lines) <= 15
    assert lines[1] == "✓ int8: 0.31× the time of fp32, drop 1.6e-03 of the 3.0e-03 allowed (1 - mean cosine)"
    ranked = sorted(found["ops"], key=lambda op: op["alone"], reverse=True)[:8]
    rows = lines[4:12]
    assert [row.split()[0] for row in rows] == [op["weight"].removesuffix(".weight") for op in ranked]
    for row, op in zip(rows, ranked, strict=True):
        snr = "—" if op["method"] == "float32" else f"{op['own_snr_db']:.0f} dB"
        all_but = "—" if op["method"] == "float32" else f"{op['all_but']:.2e}"
        assert row.split()[-2:] == [f"{op['alone']:.1e}", all_but]
        assert f" {snr} " in row
    kept = "layers.0.feed_forward.down.weight, layers.2.feed_forward.down.weight"
    assert lines[12] == f"  2 of 24 ops stay in float32: {kept}"
    assert lines[13] == "  on 3 kinds of text that it was not chosen by: at worst 1.7e-03 (short, by 32)"
    assert lines[14] == "  on another kind, 19 times in 20: 6.6e-04 to 3.3e-03 (by 32)"
    assert len(lines) == 15


def test_a_table_keeps_to_the_width() -> None:
    weights = [(f"model.decoder.layers.{i}.a_very_long_name.{'x' * 60}.weight", (2, 2)) for i in range(12)]
    found = planted(weights, "kl", roles=("encoder", "decoder"))
    rows = printed({"int8": found})[2:12]
    assert max(map(len, rows)) <= 80
    assert all("…" in row for row in rows[2:])
    assert all(" dynamic" in row for row in rows[2:])


@pytest.mark.parametrize("drop", [0.0031, None, float("nan")])
def test_over_the_budget_is_said(drop: float | None) -> None:
    title = printed({"int8": entry(drop=drop)})[1]
    assert title.startswith("✗ int8: 0.31× the time of fp32, drop ")
    assert "more than the 3.0e-03 allowed" in title


def test_what_is_not_known_is_left_out() -> None:
    found = entry(relative_time=None, portability={"vnni_only": False, "saturating": [], "extra_drop": 0.0})
    found["held_out"] |= {"worst": None, "elsewhere": []}  # one kind of data
    for op in found["ops"]:
        op["alone"] = None
    assert printed({"int8": found})[1:2] == ["✓ int8: drop 1.6e-03 of the 3.0e-03 allowed (1 - mean cosine)"]
    assert len(printed({"int8": found})) == 3
    assert printed({}) == []
    assert printed({"int8": entry(ops=[])})[2] == "  all 0 ops are quantized"


def test_vnni_only_is_said() -> None:
    lines = printed({"int8": entry(portability={"vnni_only": True, "saturating": ["a"], "extra_drop": 0.2})})
    assert lines[-1] == "  x86 without VNNI needs session.x64quantprecision=1, which tfm.runtime sets"


def test_names_are_neither_markup_nor_obeyed_by_the_terminal() -> None:
    evil = "[red]x\x1b[31m\r\x07"
    found = planted([(evil, (2, 2))], float32=(0,)) | {"measure": evil}
    found["ops"][0]["method"] = "float32"
    text = "\n".join(printed({evil: found}, 120, Terminal()))
    assert text.count(r"[red]x\x1b[31m") == 4  # precision, measure, the row and the list of those in float32
    assert "\x1b" not in text
    assert "\n".join(printed({evil: found}, 120)).count("[red]x\x1b[31m") == 4  # a pipe obeys nothing


def test_it_needs_no_torch() -> None:
    code = "import sys, tfm.cli.report; sys.exit('torch' in sys.modules or 'tfm.export' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
