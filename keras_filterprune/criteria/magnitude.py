"""Norms of filters (Li et al. 2017, "Pruning Filters for Efficient ConvNets") and of batch normalization scales."""

from __future__ import annotations

import numpy as np

from keras_filterprune.criteria.base import MemberCriterion
from keras_filterprune.graph.types import Group, Member


class L1(MemberCriterion):
    """Sum of absolute weights of a filter, sum |w|; the bias does not count.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets".

    Args:
        aggregate: how the layers of a coupled group combine, see `MemberCriterion` ("mean").

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.L1(aggregate="max")
        L1(aggregate='max')
    """

    def score(self, filters: np.ndarray) -> np.ndarray:
        return np.abs(filters).sum(axis=1)


class L2(MemberCriterion):
    """Euclidean norm of a filter, sqrt(sum w^2); the bias does not count.

    Compared with `L1` by Li et al. 2017.

    Args:
        aggregate: how the layers of a coupled group combine, see `MemberCriterion` ("mean").

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.L2(aggregate="max")
        L2(aggregate='max')
    """

    def score(self, filters: np.ndarray) -> np.ndarray:
        return np.sqrt(np.einsum("ij,ij->i", filters, filters))


class GeometricMean(MemberCriterion):
    """Squared distance of the geometric mean of a filter's |w| from that of the whole layer's; 0 for a zero among them.

    The baseline that Singh and Plumbley (2023) call geometric median; `FPGM` is the geometric median.

    Args:
        aggregate: how the layers of a coupled group combine, see `MemberCriterion` ("mean").

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.GeometricMean()
        GeometricMean(aggregate='mean')
    """

    def score(self, filters: np.ndarray) -> np.ndarray:
        logarithms = np.log(np.abs(filters), out=np.full_like(filters, -np.inf), where=filters != 0)
        return (np.exp(logarithms.mean()) - np.exp(logarithms.mean(axis=1))) ** 2


class BNScale(MemberCriterion):
    """|gamma| of the batch normalization after a layer (Liu et al. 2017, "Network Slimming").

    Meant for networks trained with a sparsity penalty on gamma, whose scales compare between layers as they are. Groups
    without such a scale stay whole.

    Args:
        aggregate: how the layers of a coupled group combine, see `MemberCriterion` ("mean").

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.BNScale(), kfp.allocators.Global(alpha=0.0)).name
        "BNScale(aggregate='mean') + Global(alpha=0.0)"
    """

    normalised = False

    def members(self, group: Group) -> list[Member]:
        moving = {m.layer for m in group.members if m.weight == "moving_mean"}
        return [m for m in group.members if m.weight == "gamma" and m.layer in moving]

    def score(self, filters: np.ndarray) -> np.ndarray:
        return np.abs(filters).mean(axis=1)

    def refuses(self, group: Group) -> str | None:
        return None if self.members(group) else "has no batch normalization scale for bn_scale to read"
