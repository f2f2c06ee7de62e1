"""How rows are divided into batches."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfm.runtime.inputs.batches import pad_rows, plan

LENGTHS = st.lists(st.integers(1, 90), max_size=80)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 600))
def test_a_plan(lengths, batch_tokens):
    planned = plan(lengths, batch_tokens)
    assert sorted(place for places in planned for place in places) == list(range(len(lengths)))
    sizes = [[lengths[place] for place in places] for places in planned]
    assert [row for places in sizes for row in places] == sorted(lengths, reverse=True)
    for rows in sizes:
        assert len(rows) == 1 or len(rows) * max(rows) <= batch_tokens
        assert sum(max(rows) - row for row in rows) <= 18
    for rows, after in itertools.pairwise(sizes):  # no batch takes less than it can
        more = [*rows, after[0]]
        assert len(more) * max(more) > batch_tokens or sum(max(more) - row for row in more) > 18


@given(lengths=LENGTHS)
def test_each_row_alone(lengths):
    planned = plan(lengths, None)
    assert sorted(planned) == [[place] for place in range(len(lengths))]
    ordered = [lengths[place] for (place,) in planned]
    assert ordered == sorted(lengths, reverse=True)


def test_padding():
    found = pad_rows([[4], [5, 6]], 9)
    assert [array.dtype for array in found] == [np.int64, np.int64]
    np.testing.assert_array_equal(found, [[[4, 9], [5, 6]], [[1, 0], [1, 1]]])
