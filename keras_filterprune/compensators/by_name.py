"""Compensators by their names."""

from __future__ import annotations

from keras_filterprune.checks import unknown_name
from keras_filterprune.compensators.adapters import Adapters
from keras_filterprune.compensators.base import Compensator
from keras_filterprune.compensators.least_squares import LeastSquares
from keras_filterprune.compensators.linear import Linear, Merge
from keras_filterprune.compensators.mean_shift import MeanShift
from keras_filterprune.compensators.recalibration import BNRecalibration
from keras_filterprune.compensators.reconstruct import Reconstruct
from keras_filterprune.parts import check_requires

_NAMES = {
    "least_squares": LeastSquares,
    "bn": BNRecalibration,
    "mean_shift": MeanShift,
    "linear": Linear,
    "merge": Merge,
    "adapter": Adapters,
    "reconstruct": Reconstruct,
}


def as_compensator(compensate: str | Compensator) -> Compensator:
    """A compensator; a name is one with its defaults."""
    if isinstance(compensate, Compensator):
        check_requires(compensate)
        return compensate
    if isinstance(compensate, str) and compensate in _NAMES:
        return _NAMES[compensate]()
    expected = f"'auto', 'none', one of {', '.join(_NAMES)}, or a compensator"
    raise unknown_name("compensate", compensate, expected, _NAMES)
