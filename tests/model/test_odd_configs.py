"""A sample of `odd_configs`: no odd value is accepted for another, hangs, or raises what is no error of ours."""

import random
from pathlib import Path

import pytest

from tests.support import odd_configs

SAMPLE = 500
"""Of some thirty thousand: as many as some seconds are enough for."""


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, odd_configs.Format]:
    return odd_configs.make_formats(tmp_path_factory.mktemp("formats"))


def test_the_originals_are_read(formats: dict[str, odd_configs.Format]) -> None:
    for name, form in formats.items():
        assert odd_configs.load(form, name)["vocab_size"] >= 0
    from tfm.model import FAMILIES

    assert set(FAMILIES) <= set(formats)


def test_every_field_of_every_format_is_among_the_cases(formats: dict[str, odd_configs.Format]) -> None:
    cases = list(odd_configs.cases(formats))
    assert len(cases) > 20_000
    changed = {(case.format, path) for case in cases for path, _ in case.changes}
    for name, form in formats.items():
        assert {(name, path) for path in odd_configs.paths(form.content)} <= changed


@pytest.mark.parametrize("seed", [0])
def test_odd_values_are_refused_or_mean_what_they_say(formats: dict[str, odd_configs.Format], seed: int) -> None:
    numbers = random.Random(seed).sample(range(sum(1 for _ in odd_configs.cases(formats))), SAMPLE)
    figures = odd_configs.run(sorted(numbers), seed)
    assert figures.faults == []
    assert figures.cases == SAMPLE
    assert figures.refused > SAMPLE // 3
    assert figures.accepted > SAMPLE // 10  # fields that are not read, and values that are fine


def test_the_judge_sees_what_should_not_be_accepted() -> None:
    def case(value: object) -> odd_configs.Case:
        return odd_configs.Case("bert", ((("num_attention_heads",), value),))

    content = {"num_attention_heads": 2}
    for value in ("2", 2.0, True, [2], float("nan")):
        assert odd_configs.judge(case(value), {"num_attention_heads"}, {}, {}, content)
    assert odd_configs.judge(case(1), {"num_attention_heads"}, {}, {}, content) is None
    assert odd_configs.judge(case("2"), set(), {}, {}, content) is None  # it was not read
    assert odd_configs.judge(case("2"), set(), {}, {"nhead": 3}, content)
    assert odd_configs.judge(odd_configs.Case("bert", text=b"{}"), set(), {}, {"nhead": 3}, content)


CHILD = """
import json, sys
numbers = json.loads(sys.stdin.read())
print(json.dumps({"ready": True}), flush=True)
for number in numbers:
    if number == 1:
        PROGRAM
    print(json.dumps({"case": str(number), "outcome": "refused", "fault": None}), flush=True)
"""


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import time; time.sleep(60)", "hangs"),
        ("import os; os.kill(os.getpid(), 9)", "ends the process"),
    ],
)
def test_what_hangs_or_crashes_is_counted(
    program: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("PROGRAM", program))
    monkeypatch.setattr(odd_configs, "__file__", str(script))
    monkeypatch.setattr(odd_configs, "SECONDS", 0.2)
    figures = odd_configs.run([0, 1, 2, 3])
    assert figures.cases == 4
    assert figures.kinds == {"refused": 3, told: 1}
    assert figures.faults == [f"case 1: {told}"]
