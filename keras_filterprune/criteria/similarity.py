"""Filters that resemble another one (Singh and Plumbley 2022), and the Nystrom form of it (Singh and Plumbley 2023)."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import numpy as np

from keras_filterprune.checks import check_integer, check_number, check_option
from keras_filterprune.criteria.base import Criterion
from keras_filterprune.criteria.pairwise import group_prototypes, landmarks, sweeps
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.graph.types import Group

_SIGNS = ("dominant", "first_channel")


class _Pairwise(Criterion):
    """Base of the criteria that remove a filter for its likeness to another one.

    Scores are the cosine distances at which `sweeps` found filters redundant, so they compare between layers; a filter
    without weights has 0 and goes first. The papers run one sweep and remove what it finds; where more has to go, the
    next one runs over what is left. Of two filters nearest to each other the larger stays (the papers' code: the one
    with the lower number).

    Args:
        sign: in which channel of the filter the rank-1 part is made positive, which settles the sign of the prototype:
            "dominant" (default, its largest) or "first_channel" (the paper).

    Attributes:
        search: precision in which `neighbours` looks.
    """

    search: type = np.float64

    def __init__(self, sign: str = "dominant"):
        self.sign = check_option("sign", sign, _SIGNS)

    @abc.abstractmethod
    def embed(self, group: Group, prototypes: np.ndarray) -> np.ndarray:
        """Rows whose inner products are the similarities, from prototypes of norm 1 (n, d)."""

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return self._swept(group, weights)[0]

    def redundant(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> int:
        """Units that one sweep removes, at most half: the papers' rule, without a ratio."""
        return self._swept(group, weights)[1]

    def _swept(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> tuple[np.ndarray, int]:
        prototypes, sizes = group_prototypes(group, weights, self.sign)
        full = np.flatnonzero(prototypes.any(axis=1))
        order, distances, first = sweeps(self.embed(group, prototypes[full]), sizes[full], self.search)
        scores = np.zeros(group.size)
        scores[full[order]] = np.maximum.accumulate(distances) + np.arange(1, len(order) + 1) * 1e-12
        return scores, first + min(group.size - len(full), group.size - 1)


class Similarity(_Pairwise):
    """Remove filters whose spatial prototype nearly equals another filter's, by all pairs.

    Singh and Plumbley 2022, "A Passive Similarity based CNN Filter Pruning".
    The prototype of a filter (k*k, channels) is the left singular vector of its largest singular value. Weights of
    1x1 convolutions and dense layers have no spatial pattern and are compared as vectors. In a coupled group a unit's
    prototypes in all layers stand side by side. Takes O(n^2) time and O(n) memory for n filters.

    Args:
        sign: the channel in which a filter's rank-1 part is made positive, so that its prototype has a sign: "dominant"
            (default, the largest entry) or "first_channel" (the paper; rounding where that entry is next to 0).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Similarity(sign="first_channel")
        Similarity(sign='first_channel')
    """

    def embed(self, group: Group, prototypes: np.ndarray) -> np.ndarray:
        return prototypes


class Nystrom(_Pairwise):
    """`Similarity` from the similarities to a few filters, C W^+ C^T in place of the whole matrix.

    Singh and Plumbley 2023, "Efficient Similarity-based Passive Filter Pruning".
    k*k independent columns reproduce every similarity of k x k filters.

    Args:
        m: how many columns: the first m filters, as in the paper (None: as many as `tolerance` needs).
        tolerance: columns are added, the worst represented filter next, until no similarity is off by more than this
            (1e-3 when m is None).
        sign: see `Similarity`.

    Raises:
        InvalidValueError: both m and tolerance are given, or one of them is out of range.
        UnknownNameError: sign is not known.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Nystrom(m=9)
        Nystrom(m=9, tolerance=None, sign='dominant')
    """

    search = np.float32

    def __init__(self, m: int | None = None, tolerance: float | None = None, sign: str = "dominant"):
        super().__init__(sign)
        if m is not None and tolerance is not None:
            raise InvalidValueError(f"Nystrom expects m= or tolerance=, not both. Received: m={m!r}, {tolerance=!r}.")
        self.m = check_integer("m", m, "a number of columns", optional=True)
        self.tolerance = check_number("tolerance", tolerance, "a similarity", least=0, below=1, optional=True)
        if m is None and tolerance is None:
            self.tolerance = 1e-3

    def __repr__(self) -> str:
        return f"Nystrom(m={self.m}, tolerance={self.tolerance}, sign={self.sign!r})"

    def embed(self, group: Group, prototypes: np.ndarray) -> np.ndarray:
        if self.m is not None and self.m > group.size:
            raise InvalidValueError(
                f"Nystrom(m={self.m}) takes m columns of a similarity matrix, and layer '{group.name}' has "
                f"{group.size} filters. Lower m, or give tolerance= instead, which chooses m for every layer."
            )
        return landmarks(prototypes, self.m, self.tolerance or 0.0)
