"""Layers that wrap others while a network trains; `apply_bridgeout` and `apply_filter_pruning` put them in a model."""

from keras_filterprune.training import BatchBridgeout as BatchBridgeout
from keras_filterprune.training import FilterPruning as FilterPruning
