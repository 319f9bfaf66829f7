"""Layers of a network that trains; `apply_bridgeout`, `apply_filter_pruning` and `apply_filter_gates` put them in."""

from keras_filterprune.training import BatchBridgeout, BranchGate, FilterPruning

__all__ = [
    "BatchBridgeout",
    "BranchGate",
    "FilterPruning",
]
