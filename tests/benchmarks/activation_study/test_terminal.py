"""The table of a study on a terminal: verdicts in words, and no figure without its interval."""

import re

import pytest
from activation_study.statistics import SAME, Estimate, mean_of
from activation_study.summary import Line
from activation_study.terminal import print_study

WORKS = ("encoder 1×16", "encoder 1×63", "decoder step after 16")


def line(name: str, against: Estimate | None, value: float, low: float, high: float, noisy: bool = False) -> Line:
    ratio = {"value": value, "low": low, "high": high, "noisy": noisy}
    fp32 = {"value": 7.77, "low": 7.7, "high": 7.8, "noisy": False}
    zero = mean_of([0.0, 0.0])
    return Line(
        activation=name,
        forms=["Relu"],
        own_error=0.0,
        errors={"phoneme_error": mean_of([0.09, 0.11]), "word_error": mean_of([0.5, 0.5])},
        against=against,
        int8_loss=Estimate(mean=0.003, low=0.001, high=0.005),
        drop=zero,
        ratios={(work, "int8"): ratio for work in WORKS} | {(WORKS[0], "fp32"): fp32} if against else {},
        units={},
        gradients={},
        loss=[],
        parameters=1,
        size=1,
    )


def rows(lines: list[Line], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "140")
    print_study(lines)
    return [re.sub(r"\s{2,}", "|", text.strip()) for text in capsys.readouterr().out.splitlines()]


def test_verdicts_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """0.09 and 0.11 have the mean 0.10, and t(0.975, 1) × 0.01 = 12.706 × 0.01 on either side."""
    found = rows(
        [
            line("relu", None, 1, 1, 1),
            line("tanh", Estimate(mean=0.012, low=0.01, high=0.014), 1.5, 1.25, 1.75),
            line("gelu", Estimate(mean=-0.012, low=-0.014, high=-0.01), 0.9, 0.8, 0.996),
            line("silu", Estimate(mean=0.02, low=-0.01, high=0.05), 1.1, 0.9, 1.3),
            line("mish", Estimate(mean=0.02, low=-0.01, high=0.05), 1.5, 1.25, 1.75, noisy=True),
        ],
        capsys,
        monkeypatch,
    )
    heads = ("activation", "error, %", "less relu’s", "lost by int8", *(f"int8 time, {work}" for work in WORKS[1:]))
    assert found[0].split("|") == list(heads)
    body = found[2:-2]
    int8 = ("worse, +0.30", "+0.10 to +0.50")
    error = "10.00 ± 12.71"
    assert body[0::2] == [
        f"relu|{error}|the baseline|{int8[0]}|1|1",
        f"tanh|{error}|worse, +1.20|{int8[0]}|1.50×|1.50×",
        f"gelu|{error}|better, -1.20|{int8[0]}|0.90×|0.90×",
        f"silu|{error}|no difference shown|{int8[0]}|no difference shown|no difference shown",
        f"mish|{error}|no difference shown|{int8[0]}|too noisy|too noisy",
    ]
    assert body[1::2] == [
        int8[1],
        f"+1.00 to +1.40|{int8[1]}|1.25 to 1.75|1.25 to 1.75",
        f"-1.40 to -1.00|{int8[1]}|0.80 to 0.996|0.80 to 0.996",
        f"-1.00 to +5.00|{int8[1]}|0.90 to 1.30|0.90 to 1.30",
        f"-1.00 to +5.00|{int8[1]}",
    ]
    assert found[-2].startswith("error: phoneme error")


def test_one_seed_and_what_is_not_finite(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = float("nan")
    text = "\n".join(
        rows(
            [line("relu", None, 1, 1, 1), line("a", mean_of([0.5]), 1, 1, 1), line("b", mean_of([nothing]), 1, 1, 1)],
            capsys,
            monkeypatch,
        )
    )
    assert re.search(rf"a\|.*\|{SAME}\|", text)
    assert "no interval" in text
    assert re.search(r"b\|.*\|not finite\|", text)
    assert "nan" not in text
    assert "inf" not in text.replace("not finite", "")


def test_slower_is_red_and_faster_green(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "140"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    same = Estimate(mean=0.0, low=-0.1, high=0.1)
    print_study([line("relu", None, 1, 1, 1), line("a", same, 1.5, 1.2, 1.8), line("b", same, 0.5, 0.4, 0.6)])
    out = capsys.readouterr().out
    assert out.count("\x1b[31m1.50×") == out.count("\x1b[32m0.50×") == 2
