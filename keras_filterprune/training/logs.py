"""What callbacks add to the logs of `fit`."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from keras_filterprune.cost import CostModel


def if_pruned(costs: CostModel, keep: np.ndarray, gone: Collection[str] = ()) -> dict[str, float]:
    """`kept_filters`, `filter_sparsity` and `macs_if_pruned`, if every group kept so many units.

    Args:
        costs: of the model that is trained.
        keep: units kept of every group, int64 of shape (n_groups,).
        gone: layers that leave as a whole.
    """
    filters = [bind for bind in costs.graph.binds if bind.role == "filter"]
    kept = sum(len(bind.ids) for bind in filters if bind.layer not in gone) - sum(
        member.positions.shape[1] * (group.size - count)
        for group, count in zip(costs.graph.groups, keep, strict=True)
        for member in group.members
        if member.role == "filter" and member.layer not in gone
    )
    return {
        "kept_filters": float(kept),
        "filter_sparsity": float(1 - kept / sum(len(bind.ids) for bind in filters)),
        "macs_if_pruned": float(costs.macs.without(gone)(keep)),
    }
