"""The search for a mix, against every mix there is of small random problems."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfm.quantize.search.evaluator import Loss
from tfm.quantize.search.frontier import (
    SLACK,
    Assignment,
    Variant,
    choose_assignment,
    frontier_of,
    frontier_to_json,
    noisiest,
)

FLOAT32 = Variant(nmse=0.0, time=0.3, size=0.3)
POSITIVE = st.floats(1e-6, 1.0)
Problem = tuple[list[list[Variant]], list[dict[int, float]]]


@st.composite
def problems(draw: st.DrawFn, *, measured: st.SearchStrategy[float] = POSITIVE) -> Problem:
    """Ops with up to three forms beside float32, every one of them measured alone."""
    variant = st.builds(Variant, nmse=POSITIVE, time=st.floats(1e-4, 0.5), size=st.floats(1e-4, 0.5))
    ops = draw(st.lists(st.lists(variant, min_size=1, max_size=3), min_size=1, max_size=4))
    alone = [{index: draw(measured) for index in range(1, len(variants) + 1)} for variants in ops]
    return [[FLOAT32, *variants] for variants in ops], alone


def cost(ops: Sequence[Sequence[Variant]], choice: Sequence[int]) -> float:
    return sum(variants[index].cost for variants, index in zip(ops, choice, strict=True))


def additive(alone: Sequence[dict[int, float]], choice: Sequence[int]) -> float:
    return sum(found[index] if index else 0.0 for found, index in zip(alone, choice, strict=True))


def every(ops: Sequence[Sequence[Variant]]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(variants)) for variants in ops)))


# ------------------------------------------------ the row


@given(problems())
def test_a_row_goes_from_the_cheapest_mix_without_float32_to_the_most_faithful(problem: Problem) -> None:
    ops, alone = problem
    row = frontier_of(ops, alone)
    quantized = [choice for choice in every(ops) if all(choice)]
    assert row[0].choice in quantized
    assert cost(ops, row[0].choice) == pytest.approx(min(cost(ops, choice) for choice in quantized))
    assert row[-1].choice == (0,) * len(ops)
    assert (row[-1].time, row[-1].size, row[-1].drop) == (1, 1, 0)
    for one, other in itertools.pairwise(row):
        assert sum(a != b for a, b in zip(one.choice, other.choice, strict=True)) == 1
        assert other.drop < one.drop


@given(problems())
def test_what_a_mix_is_said_to_cost(problem: Problem) -> None:
    ops, alone = problem
    for assignment in frontier_of(ops, alone):
        others = [variants[i] for variants, i in zip(ops, assignment.choice, strict=True)]
        assert assignment.time == pytest.approx(1 + sum(variant.time - FLOAT32.time for variant in others), abs=1e-9)
        assert assignment.size == pytest.approx(1 + sum(variant.size - FLOAT32.size for variant in others), abs=1e-9)
        assert assignment.drop == pytest.approx(additive(alone, assignment.choice), rel=1e-9)


@given(problems())
def test_no_mix_there_is_beats_one_of_the_row(problem: Problem) -> None:
    """Lagrange: a mix on the hull of all ops is best for its own drop, among all of them."""
    ops, alone = problem
    floor = [min(variant.cost for variant in variants[1:]) for variants in ops]
    prices = [
        [max(variants[0].cost, least), *(variant.cost for variant in variants[1:])]
        for variants, least in zip(ops, floor, strict=True)
    ]
    for assignment in frontier_of(ops, alone):
        mine = sum(price[index] for price, index in zip(prices, assignment.choice, strict=True))
        for choice in every(ops):
            other = sum(price[index] for price, index in zip(prices, choice, strict=True))
            beaten = additive(alone, choice) <= assignment.drop - 1e-9 and other <= mine - 1e-6
            assert not beaten, (assignment, choice)


def test_a_row_by_hand() -> None:
    """Two ops: the bargains are op 1 to its better form (0.08 for 0.01), op 0 to float32, op 1 to float32."""
    ops = [
        [Variant(nmse=0, time=0.5, size=0.5), Variant(nmse=1, time=0.1, size=0.1)],
        [
            Variant(nmse=0, time=0.5, size=0.5),
            Variant(nmse=9, time=0.1, size=0.1),
            Variant(nmse=1, time=0.11, size=0.1),
            Variant(nmse=8, time=0.3, size=0.3),  # dearer and hardly better: on no hull
        ],
    ]
    row = frontier_of(ops, [{1: 0.05}, {1: 0.09}])
    assert [assignment.choice for assignment in row] == [(1, 1), (1, 2), (0, 2), (0, 0)]
    np.testing.assert_allclose([assignment.drop for assignment in row], [0.14, 0.06, 0.01, 0], atol=1e-12)
    np.testing.assert_allclose([assignment.time for assignment in row], [0.2, 0.21, 0.61, 1])


def test_forms_that_were_not_measured_are_taken_to_do_harm_by_their_noise() -> None:
    ops = [[FLOAT32, Variant(nmse=4, time=0.1, size=0.1), Variant(nmse=1, time=0.2, size=0.1)]]
    assert noisiest(ops[0]) == 1
    assert [assignment.drop for assignment in frontier_of(ops, [{1: 0.8}])] == [0.8, 0.2, 0]
    assert [assignment.drop for assignment in frontier_of(ops, [{1: 0.8, 2: 0.1}])] == [0.8, 0.1, 0]


def test_float32_that_is_faster_comes_second_and_never_first() -> None:
    slow = Variant(nmse=1, time=0.4, size=0.4)
    row = frontier_of([[FLOAT32, slow], [FLOAT32, slow]], [{1: 0.1}, {1: 0.2}])
    assert [assignment.choice for assignment in row] == [(1, 1), (1, 0), (0, 0)]
    assert [assignment.time for assignment in row] == pytest.approx([1.2, 1.1, 1.0])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_form_that_ruins_the_model_goes_first_and_leaves_its_op_the_others(bad: float) -> None:
    ruins, fine = Variant(nmse=9, time=0.05, size=0.05), Variant(nmse=0.5, time=0.1, size=0.1)
    ops = [[FLOAT32, fine], [FLOAT32, ruins, fine]]
    row = frontier_of(ops, [{1: 0.01}, {1: bad, 2: 0.02}])
    assert [assignment.choice for assignment in row] == [(1, 1), (1, 2), (1, 0), (0, 0)]
    assert row[-1].drop == 0
    assert all(math.isfinite(assignment.drop) for assignment in row)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_noise_that_is_no_number(bad: float) -> None:
    ops = [[FLOAT32, Variant(nmse=bad, time=0.05, size=0.05), Variant(nmse=0.5, time=0.1, size=0.1)]]
    assert noisiest(ops[0]) == 1
    row = frontier_of(ops, [{1: math.inf}])
    assert [assignment.choice for assignment in row][-1] == (0,)
    assert row[-1].drop == 0


@given(problems(measured=st.sampled_from([math.inf, math.nan, -1e-3, 0.0, 1e-3, 1.0])))
def test_rows_of_odd_drops_are_rows(problem: Problem) -> None:
    ops, alone = problem
    row = frontier_of(ops, alone)
    assert all(row[0].choice)
    for one, other in itertools.pairwise(row):
        assert sum(a != b for a, b in zip(one.choice, other.choice, strict=True)) == 1
        assert other.drop <= one.drop
    assert row == frontier_of(ops, alone)


# ------------------------------------------------ the choice


def measured_by(alone: Sequence[dict[int, float]], seen: list[Assignment]) -> object:
    def measure(assignment: Assignment) -> Loss:
        seen.append(assignment)
        return Loss(value=additive(alone, assignment.choice))

    return measure


@given(problems(), st.floats(0, 4))
def test_the_budget_is_kept_and_nothing_of_the_row_that_keeps_it_is_cheaper(problem: Problem, budget: float) -> None:
    ops, alone = problem
    row, seen = frontier_of(ops, alone), []
    chosen, found = choose_assignment(row, measured_by(alone, seen), budget)
    assert additive(alone, row[chosen].choice) <= budget
    assert found[chosen].value == additive(alone, row[chosen].choice)
    first = next(index for index, assignment in enumerate(row) if additive(alone, assignment.choice) <= budget)
    assert chosen >= first
    near = row[chosen].time <= row[0].time * SLACK[0] and row[chosen].size <= row[0].size * SLACK[1]
    assert chosen == first or near
    assert len(seen) == len(found) <= math.ceil(math.log2(len(row) + 1)) + 2  # each is measured once
    assert choose_assignment(row, measured_by(alone, []), budget)[0] == chosen


@given(st.lists(st.sampled_from([math.inf, math.nan, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=20))
def test_whatever_is_measured_what_is_chosen_keeps_the_budget_or_is_the_last(drops: list[float]) -> None:
    row = [Assignment(choice=(i,), time=1 + i, size=1, drop=0) for i in range(len(drops))]
    chosen, found = choose_assignment(row, lambda assignment: Loss(value=drops[assignment.choice[0]]), 1.0)
    assert chosen == len(drops) - 1 or drops[chosen] <= 1.0
    np.testing.assert_equal(found[chosen].value, drops[chosen])


def test_one_mix_is_measured_all_the_same() -> None:
    (assignment,) = [Assignment(choice=(1,), time=0.5, size=0.5, drop=9)]
    assert choose_assignment([assignment], lambda _: Loss(value=9.0), 1.0) == (0, {0: Loss(value=9.0)})


def test_a_more_faithful_mix_that_costs_next_to_nothing_is_taken() -> None:
    row = [
        Assignment(choice=(i,), time=t, size=s, drop=0)
        for i, (t, s) in enumerate([(1, 1), (1.05, 1), (1.06, 1.02), (2, 1)])
    ]
    drops = [0.5, 0.4, 0.3, 0.0]
    assert choose_assignment(row, lambda assignment: Loss(value=drops[assignment.choice[0]]), 1.0)[0] == 1
    drops[1] = 0.6  # it is not more faithful after all
    assert choose_assignment(row, lambda assignment: Loss(value=drops[assignment.choice[0]]), 1.0)[0] == 0


# ------------------------------------------------ what is drawn


def test_the_front() -> None:
    drops = [0.5, 0.6, 0.2, 0.0]
    row = [Assignment(choice=(i, 0), time=0.2 * (i + 1), size=1, drop=drop) for i, drop in enumerate(drops)]
    frontier = frontier_to_json(row, {2: Loss(value=0.3)}, 2)
    assert [point["drop"] for point in frontier] == [0.5, 0.3, 0.0]  # 0.6 is slower and worse than 0.5
    assert [point["measured"] for point in frontier] == [False, True, False]
    assert [point["chosen"] for point in frontier] == [False, True, False]
    assert [point["float32"] for point in frontier] == [2, 1, 1]  # choice 0 is float32
    assert [point["relative_time"] for point in frontier] == pytest.approx([0.2, 0.6, 0.8])


def test_a_front_of_many_is_thinned_but_what_was_measured_stays() -> None:
    row = [Assignment(choice=(1,), time=0.001 * i, size=1, drop=1 - i / 1000) for i in range(500)]
    measured = {i: Loss(value=row[i].drop) for i in (3, 7, 301)}
    frontier = frontier_to_json(row, measured, 301)
    assert len(frontier) <= 30
    assert sum(point["measured"] for point in frontier) == 3
    assert frontier[-1]["drop"] == row[-1].drop
    assert [point["chosen"] for point in frontier].count(True) == 1
