"""Hypothesis draws what allocators and tiles are given."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from keras_filterprune.allocators import Allocation
from keras_filterprune.cost import Tiles


@st.composite
def any_tiles(draw) -> Tiles:
    step = draw(st.integers(1, 40))
    return Tiles(step, draw(st.none() | st.integers(1, step // 2)) if step > 1 else None)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Sum of coefficients times products of kept counts, two at most, as the cost of a network is."""

    coefficients: np.ndarray

    def __call__(self, keep: np.ndarray) -> int:
        width = np.append(keep, 1)
        return int(width @ self.coefficients @ width)

    def gradient(self, keep: np.ndarray) -> np.ndarray:
        width = np.append(keep, 1).astype(float)
        return ((self.coefficients + self.coefficients.T) @ width)[:-1]


@st.composite
def allocations(draw) -> Allocation:
    """One to four groups, of which the floors are within the limit; every group costs and matters something."""
    sizes = np.array(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    groups, tiles = len(sizes), draw(any_tiles())
    floors = np.array([draw(st.integers(1, size)) for size in sizes.tolist()])
    rungs = [tiles.rungs(size) for size in sizes.tolist()]
    numbers = st.integers(0, 20)
    square = draw(st.lists(numbers, min_size=(groups + 1) ** 2, max_size=(groups + 1) ** 2))
    # Every unit costs at least something.
    coefficients = np.array(square).reshape(groups + 1, groups + 1)
    coefficients[:, -1] += 1
    cost = Quadratic(coefficients)
    scores = [draw(st.lists(numbers, min_size=size, max_size=size)) for size in sizes.tolist()]
    matters = np.array(draw(st.lists(st.integers(1, 20), min_size=groups, max_size=groups)))

    def evaluate(keep: np.ndarray) -> float:
        return float(matters @ np.sqrt(keep / sizes))

    problem = Allocation(
        sizes,
        floors,
        rungs,
        cost,
        0,
        scores=lambda group: np.array(scores[group], float),
        evaluate=evaluate,
        evaluate_all=lambda keeps: map(evaluate, keeps),
    )
    least, most = cost(problem.legal(floors)), cost(sizes)
    return dataclasses.replace(problem, limit=draw(st.integers(least, most)))
