"""Layers of a network that trains; `apply_bridgeout`, `apply_filter_pruning` and `apply_filter_gates` put them in."""

from keras_filterprune.training import BatchBridgeout as BatchBridgeout
from keras_filterprune.training import BranchGate as BranchGate
from keras_filterprune.training import FilterPruning as FilterPruning
