"""Pruned networks of which one part after the other grows back for a while."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_integer
from keras_filterprune.cost import CostModel
from keras_filterprune.cost.base import check_fraction
from keras_filterprune.criteria import Criterion
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights, scale_slices
from keras_filterprune.methods import Method
from keras_filterprune.training.logs import if_pruned
from keras_filterprune.training.schedule import PruningSchedule, living
from keras_filterprune.training.wrapping import stripped


class GrowAndPrune(PruningSchedule):
    """Masks filters to a budget at once, and then lets one part of the network after the other grow back for a while.

    After scheduled grow-and-prune (Ma et al. 2022), there of single weights: the groups of filters are split, from the
    input to the output, into `parts`. For `epochs` epochs, all filters of one part are open, then filters are masked to
    the budget again, wherever the method finds the least important ones, and the next part grows. What reads a filter
    that comes back starts at zero, so that growing changes no output. After `parts` times `cycles` such steps masks
    stay, and the rest of the training is fine-tuning. Trains a model that `apply_filter_pruning` has prepared; what
    comes after, and the logs, are those of `PruningSchedule`.

    Args:
        keep: fraction of the multiply-accumulates that is kept in the end.
        parts: into how many the groups are split (4).
        epochs: for how many a part grows (1).
        cycles: how often each part does (1).
        method: how filters are chosen, as in `prune_model`; its compensator is not used ("l2").
        **options: `data`, `include`, `exclude`, `min_filters` and `seed`, as in `prune_model`.

    Raises:
        InfeasibleBudgetError: keep is outside (0, 1].
        UnknownNameError: the method is not known.
        InvalidValueError: parts, epochs or cycles is not a positive integer.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.GrowAndPrune(0.5, parts=3, epochs=2).last_cut
        6
    """

    def __init__(
        self,
        keep: float,
        parts: int = 4,
        epochs: int = 1,
        cycles: int = 1,
        method: str | Method | Criterion = "l2",
        **options: Any,
    ):
        super().__init__(check_fraction("keep", keep), method, **options)
        self.parts = check_integer("parts", parts)
        self.epochs = check_integer("epochs", epochs)
        self.cycles = check_integer("cycles", cycles)

    @property
    def last_cut(self) -> int:
        return self.parts * self.cycles * self.epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._step: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        epoch = min(epoch, self.last_cut)
        step, first = epoch // self.epochs, epoch % self.epochs == 0
        if step == self._step:
            return
        self._step, plain = step, stripped(self.model)
        # A training that is resumed within a step has its masks.
        kept = self.choose(plain, epoch, lasting=True) if first else living(self.graph_of(plain))
        if first and epoch < self.last_cut:
            kept = self._grown(kept, step % self.parts)
        costs = CostModel(kept.graph)
        self._logs = if_pruned(costs, kept.counts)
        self.note(kept.graph, self._logs["macs_if_pruned"])
        self._reached = (
            self.keep[-1] if epoch == self.last_cut else self._logs["macs_if_pruned"] / costs.macs(costs.sizes)
        )
        if first:
            self._mask(kept)

    def _grown(self, kept: Kept, part: int) -> Kept:
        """The units that stay, and all of a part."""
        growing = np.array_split([group.name for group in kept.graph.groups], self.parts)[part]
        return Kept(kept.graph, {name: units for name, units in kept.units.items() if name not in growing})

    def _mask(self, kept: Kept) -> None:
        """Set all masks; what reads a channel that was masked becomes zero."""
        back: dict[str, tuple[Any, np.ndarray]] = {}
        for path, wrapper, ids in self.wrappers(kept.graph):
            was = keras.ops.convert_to_numpy(wrapper.open)
            back.setdefault(path, (wrapper.layer, ids[kept.alive[ids] & ~was]))
            wrapper.mask.assign(kept.alive[ids].astype("float32"))
        for bind in kept.graph.binds:
            if bind.role == "input" and bind.layer in back:
                layer, ids = back[bind.layer]
                scale_slices(named_weights(layer)[bind.weight], bind.axis, np.isin(bind.ids, ids), 0.0)
