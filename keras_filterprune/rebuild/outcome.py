"""One cut: rebuild with the units that are kept, prove it, compensate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.compensators import Compensator
from keras_filterprune.cost import CostModel
from keras_filterprune.errors import SurgeryError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.rebuild.clone import rebuild
from keras_filterprune.rebuild.verify import verify as verify_surgery


@dataclass(frozen=True, eq=False)
class Outcome:
    """A smaller model, and how it came about.

    Attributes:
        model: the smaller model.
        kept: {group name: indices of the original's units that stayed}.
        difference: the largest relative difference seen by verification, None if there was none.
        compensation: what the compensator did, in words.
        notes: what could not be carried over, in sentences.
    """

    model: keras.Model
    kept: dict[str, np.ndarray]
    difference: float | None
    compensation: str
    notes: list[str]


def operate(
    model: keras.Model,
    graph: ChannelGraph,
    kept: dict[str, np.ndarray],
    compensator: Compensator | None,
    data: Any,
    seed: int,
    verify: bool,
    progress: bool,
) -> Outcome:
    """Rebuild a model with the units that are kept, prove the surgery, compensate."""
    cost = CostModel(graph)
    rebuilt = rebuild(model, graph, kept)
    keep = np.array([len(kept.get(g.name, g.units)) for g in graph.groups], int)
    if rebuilt.model.count_params() != cost.params(keep):
        raise SurgeryError(
            f"surgery failed: the rebuilt model has {rebuilt.model.count_params():,} parameters, "
            f"{cost.params(keep):,} were predicted."
        )
    difference = verify_surgery(graph, rebuilt, seed, progress) if verify else None
    compensation = compensator.apply(rebuilt, data, progress) if compensator else "none"
    return Outcome(rebuilt.model, kept, difference, compensation, rebuilt.notes)
