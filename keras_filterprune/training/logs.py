"""What callbacks add to the logs of `fit`."""

from __future__ import annotations

import numpy as np

from keras_filterprune.cost import CostModel


def if_pruned(costs: CostModel, keep: np.ndarray) -> dict[str, float]:
    """`kept_filters`, `filter_sparsity` and `macs_if_pruned`, if every group kept so many units.

    Args:
        costs: of the model that is trained.
        keep: units kept of every group, int64 of shape (n_groups,).
    """
    every = sum(len(bind.ids) for bind in costs.graph.binds if bind.role == "filter")
    gone = sum(
        member.positions.shape[1] * (group.size - count)
        for group, count in zip(costs.graph.groups, keep, strict=True)
        for member in group.members
        if member.role == "filter"
    )
    return {
        "kept_filters": float(every - gone),
        "filter_sparsity": float(gone / every),
        "macs_if_pruned": float(costs.macs(keep)),
    }
