"""Every allocator on any problem: within the limit whenever the floors are, on rungs, and no budget left unspent."""

import numpy as np
import pytest
from contracts import assert_contract, assert_legal
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import allocations

from keras_filterprune import allocators
from keras_filterprune.allocators.base import top_up

ALLOCATORS = {
    "uniform": allocators.Uniform(),
    "global0": allocators.Global(0.0),
    "global": allocators.Global(),
    "sensitivity": allocators.Sensitivity((0.6, 0.3), measure="error"),
    "tolerance": allocators.Tolerance(measure="error"),
    "tolerance per layer": allocators.Tolerance(floor="per_layer", measure="error"),
    "search": allocators.Search(beta=3, measure="error"),
    "evolution": allocators.Evolution(population=10, generations=1, measure="error"),
}


@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
@settings(max_examples=50)
@given(problem=allocations())
def test_contract(allocator, problem):
    keep = allocator.allocate(problem)
    assert_contract(problem, keep)
    np.testing.assert_array_equal(keep, allocator.allocate(problem))


@given(problem=allocations())
def test_what_is_left_over_is_spent_and_taken_from_nobody(problem):
    least = problem.legal(problem.floors)
    keep = top_up(problem, least, range(len(least)))
    assert (keep >= least).all()
    assert_contract(problem, keep)


@given(problem=allocations(), data=st.data())
def test_counts_are_brought_to_the_next_rung(problem, data):
    wanted = np.array([data.draw(st.integers(-3, size + 3)) for size in problem.sizes.tolist()])
    legal = problem.legal(wanted)
    assert_legal(problem, legal)
    for number, (asked, got) in enumerate(zip(np.clip(wanted, problem.floors, problem.sizes), legal, strict=True)):
        assert got == min(rung for rung in problem.rungs[number] if rung >= asked)
        higher = [rung for rung in problem.rungs[number] if rung > got]
        assert problem.wider(number, int(got)) == min(higher, default=got)
