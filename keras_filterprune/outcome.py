"""One cut: rebuild with the units that are kept, prove it, compensate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_filterprune.checks import check_callable, check_flags, check_integer
from keras_filterprune.compensators import Compensator
from keras_filterprune.cost import CostModel
from keras_filterprune.errors import SurgeryError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.subsets import Thinned
from keras_filterprune.rebuild.clone import rebuild, scope_of
from keras_filterprune.rebuild.verify import verify

# Before the last cut every second sample is used, and 64 at least: half of them choose as well as all, a quarter worse.
_BETWEEN = 2, 64


@dataclass(frozen=True, eq=False)
class Run:
    """How work is carried out, whatever is pruned.

    Attributes:
        data: calibration data (None).
        seed: of everything random (0).
        verify: prove every cut (True).
        progress: show progress bars (True).
        compensator: what makes up for what was cut (None).
        finetune: what trains a model in place after a cut (None).
    """

    data: Any = None
    seed: int = 0
    verify: bool = True
    progress: bool = True
    compensator: Compensator | None = None
    finetune: Callable[[keras.Model], Any] | None = None

    def __post_init__(self):
        check_integer("seed", self.seed, least=0)
        check_flags(verify=self.verify, progress=self.progress)
        check_callable("finetune", self.finetune, "a function of the model", optional=True)
        # Generators can be gone through once, and several steps look at the data.
        object.__setattr__(self, "data", Samples.of(self.data))

    @property
    def between(self) -> Run:
        """How it is carried out before the last cut: nobody sees what comes of that but the next choice."""
        data = None if self.data is None else Thinned(self.data, *_BETWEEN)
        compensator = None if self.compensator is None else self.compensator.between
        return replace(self, data=data, compensator=compensator)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A smaller model, and how it came about.

    Attributes:
        model: the smaller model.
        kept: units of the original that stayed.
        difference: the largest relative difference seen by verification, None if there was none.
        compensation: what the compensator did, in words.
        notes: what could not be carried over, and what else is worth knowing, in sentences.
    """

    model: keras.Model
    kept: Kept
    difference: float | None = None
    compensation: str = "none"
    notes: tuple[str, ...] = ()


def operate(model: keras.Model, cost: CostModel, kept: Kept, run: Run) -> Outcome:
    """Rebuild a model with the units that are kept, prove the surgery, compensate.

    Args:
        model: the model that `kept.graph` was read from; it is not changed.
        cost: what it costs.
        kept: the units that stay.
        run: how to do it.

    Raises:
        SurgeryError: the smaller model does not compute what the masked original computes.
    """
    rebuilt = rebuild(model, kept)
    found, predicted = rebuilt.model.count_params(), cost.params(kept.counts)
    if found != predicted:
        raise SurgeryError(f"surgery failed: the rebuilt model has {found:,} parameters, {predicted:,} were predicted.")
    # What Keras builds at the first call on numbers, activations with weights, belongs to the strategy as well.
    with scope_of(model):
        difference = verify(rebuilt, run.seed, run.progress) if run.verify else None
        compensation = "none" if run.compensator is None else run.compensator.apply(rebuilt, run.data, run.progress)
    return Outcome(rebuilt.model, kept, difference, compensation, tuple(rebuilt.notes))
