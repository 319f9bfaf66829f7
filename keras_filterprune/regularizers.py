"""Penalties that make filters removable, for `kernel_regularizer=` or `apply_penalty`."""

from keras_filterprune.training import BridgePenalty, GroupLasso

__all__ = [
    "BridgePenalty",
    "GroupLasso",
]
