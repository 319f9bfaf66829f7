"""Operator norm (Singh and Plumbley 2023, "Efficient CNNs via Passive Filter Pruning")."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_filterprune.checks import check_option
from keras_filterprune.criteria.base import MemberCriterion, filter_tensors
from keras_filterprune.graph.types import Member

_AGGREGATES = ("sumsq", "signed")


class OperatorNorm(MemberCriterion):
    """What a filter adds along the direction in which the filters of its layer differ most, channel by channel.

    Singh and Plumbley 2023, "Efficient CNNs via Passive Filter Pruning".
    For every input channel i, v_i is the top right singular vector of the layer's kernels (filters, k*k), centred over
    filters; the score of filter j is sum_i <w_ij - mean_i, v_i>^2. Layers of a coupled group are averaged.

    Args:
        aggregate: "sumsq" (default) as above; "signed" is the paper's code, (sum_i <w_ij - mean_i, v_i>)^2 with v_i
            positive for the first filter, so that scores depend on which filter stands first.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.OperatorNorm(aggregate="signed")
        OperatorNorm(aggregate='signed')
    """

    def __init__(self, aggregate: str = "sumsq"):
        super().__init__("mean")
        self.over_channels = check_option("aggregate", aggregate, _AGGREGATES)

    def __repr__(self) -> str:
        return f"OperatorNorm(aggregate={self.over_channels!r})"

    def filters(self, member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return filter_tensors(member, weights).astype(np.float64)

    def score(self, filters: np.ndarray) -> np.ndarray:
        count, width, _, channels = filters.shape
        # The kernels of one channel as rows, the filters of a unit below each other.
        kernels = np.moveaxis(filters, -1, 0).reshape(channels, count * width, -1)
        kernels = kernels - kernels.mean(axis=1, keepdims=True)
        direction = np.linalg.eigh(kernels.swapaxes(1, 2) @ kernels)[1][:, :, -1]
        along = np.einsum("cft,ct->cf", kernels, direction)
        if self.over_channels == "sumsq":
            own = np.einsum("cf,cf->f", along, along)
        else:
            own = (along * np.where(along[:, :1] < 0, -1, 1)).sum(axis=0) ** 2
        return own.reshape(count, width).sum(axis=1)
