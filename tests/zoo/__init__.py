"""Small Keras models, one per structural difficulty, that the surgery tests run over.

`ZOO` maps a name to a function returning a fresh, uncompiled model with random, non-trivial weights.
A docstring ending in "(pinned: ...)" names the layers whose output channels must not be pruned.
"""

from . import attention, branches, chains, grouped, opaque, raw_ops, residual, sequences, sharing, volumes
from .base import ZOO, randomise
from .inputs import random_inputs

__all__ = ["ZOO", "random_inputs", "randomise"]

del attention, branches, chains, grouped, opaque, raw_ops, residual, sequences, sharing, volumes
