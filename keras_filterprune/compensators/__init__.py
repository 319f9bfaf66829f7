"""How the surviving weights make up for the removed ones."""

from __future__ import annotations

import difflib

from keras_filterprune.compensators.adapters import Adapters as Adapters
from keras_filterprune.compensators.base import Compensator as Compensator
from keras_filterprune.compensators.least_squares import LeastSquares as LeastSquares
from keras_filterprune.compensators.linear import Linear as Linear
from keras_filterprune.compensators.linear import Merge as Merge
from keras_filterprune.compensators.mean_shift import MeanShift as MeanShift
from keras_filterprune.compensators.recalibration import BNRecalibration as BNRecalibration
from keras_filterprune.errors import UnknownNameError

_NAMES = {
    "least_squares": LeastSquares,
    "bn": BNRecalibration,
    "mean_shift": MeanShift,
    "linear": Linear,
    "merge": Merge,
    "adapter": Adapters,
}


def as_compensator(compensate: str | Compensator) -> Compensator:
    """A compensator; a name is one with its defaults."""
    if isinstance(compensate, Compensator):
        return compensate
    if isinstance(compensate, str) and compensate in _NAMES:
        return _NAMES[compensate]()
    near = difflib.get_close_matches(str(compensate), _NAMES, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownNameError(
        f"compensate is 'auto', 'none', one of {', '.join(_NAMES)}, or a compensator. Received: "
        f"compensate={compensate!r}.{hint}"
    )
