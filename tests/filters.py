"""Kernels, what criteria see of them, and prototypes written out."""

from __future__ import annotations

import numpy as np
import pytest

from keras_filterprune.graph.types import Group, Member

SIGNS = ("first_channel", "dominant")
every_sign = pytest.mark.parametrize("sign", SIGNS)
LAYERS = [(3, 3, 4, 30), (3, 3, 32, 24), (7, 7, 16, 16), (1, 5, 2, 9), (1, 1, 6, 25), (2, 2, 3, 2)]
every_layer = pytest.mark.parametrize("shape", LAYERS, ids=str)


def random_kernel(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def layer_of(kernel: np.ndarray) -> tuple[Group, dict]:
    """(group, weights) of one convolution: what criteria look at."""
    units = np.arange(kernel.shape[3])
    return Group("conv", units, (Member("conv", "kernel", 3, "filter", units[:, None]),)), {("conv", "kernel"): kernel}


def coupled(first: np.ndarray, second: np.ndarray) -> tuple[Group, dict]:
    """(group, weights) of two convolutions whose outputs are added."""
    units = np.arange(first.shape[3])
    members = tuple(Member(name, "kernel", 3, "filter", units[:, None]) for name in "ab")
    return Group("a", units, members), {("a", "kernel"): first, ("b", "kernel"): second}


def kept_by(criterion, kernel: np.ndarray, count: int | None = None) -> list[int]:
    """What stays of a layer, after one sweep if no count is given."""
    group, weights = layer_of(kernel)
    count = group.size - criterion.redundant(group, weights) if count is None else count
    return criterion.select(group, count, weights).tolist()


def removed_by(criterion, kernel: np.ndarray) -> set[int]:
    return set(range(kernel.shape[3])) - set(kept_by(criterion, kernel))


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def matrices(kernel: np.ndarray) -> np.ndarray:
    """(n, taps, channels) of a convolution's kernel."""
    return np.moveaxis(kernel, 3, 0).reshape(kernel.shape[3], -1, kernel.shape[2])


def by_definition(matrix: np.ndarray, sign: str) -> np.ndarray:
    """A column of the rank-1 part s_1 u_1 v_1^T of a matrix (taps, channels), of norm 1."""
    if len(matrix) == 1:
        return matrix[0] / np.linalg.norm(matrix[0].astype(float))
    left, values, right = np.linalg.svd(matrix.astype(float))
    part = values[0] * np.outer(left[:, 0], right[0])
    column = part[:, 0] if sign == "first_channel" else part[:, np.abs(right[0]).argmax()]
    return column / np.linalg.norm(column)
