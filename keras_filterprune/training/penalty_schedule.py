"""Penalties that become as strong as it takes to reach a budget."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_number, wrong
from keras_filterprune.cost import Budget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.files import read_json, write_json
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.methods import Method, as_method
from keras_filterprune.probe import Weights
from keras_filterprune.training.regularizers import Penalty
from keras_filterprune.training.steering import Steered


class PenaltySchedule(Steered):
    """Steers the strength of `BridgePenalty` and `GroupLasso` until the filters that matter fit a budget.

    Of every group the filters are counted out that hold, together, no more than a share of its energy, the sum of its
    squared scores. After an epoch in which the cost of the others fell by less than a straight line to the budget asks
    for, all strengths grow by a step; below the budget they fall by one (dependency-aware filter pruning, Zhao et al.
    2020). Adds `strength` (the highest), `kept_filters`, `filter_sparsity` and `macs_if_pruned` to the logs of every
    epoch. After training, `prune_model` with the same method and budget removes filters that hardly matter. Beside
    `BackupAndRestore`, strengths are kept in its folder, in `strengths.json`.

    Args:
        budget: what the filters that matter may cost at the end of training: a fraction of the multiply-accumulates,
            `MacsBudget` or `ParamsBudget`.
        method: whose scores say what matters, one that needs no data: "l2" for penalties on kernels (default),
            "bn_scale" for those on scales.
        step: of the strengths, above 0 (1e-5).
        energy: share of a group's energy that does not matter, in (0, 1) (0.01).

    Raises:
        InfeasibleBudgetError: a budget that says how many filters to keep.
        UnknownNameError: the method is not known.
        InvalidValueError: the method needs data, step is not above 0, or energy is outside (0, 1).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.PenaltySchedule(0.5, "bn_scale", step=1e-4).budget
        MacsBudget(keep=0.5)
    """

    advice = "Train for more epochs, or take larger steps."

    def __init__(
        self,
        budget: Budget | float,
        method: str | Method | Criterion = "l2",
        step: float = 1e-5,
        energy: float = 0.01,
    ):
        super().__init__(budget)
        self._criterion = as_method(method, 0).criterion
        if self._criterion.requires:
            raise wrong("method", method, "one that needs no data")
        self.step = float(check_number("step", step, above=0))
        self.energy = float(check_number("energy", energy, "a share", above=0, below=1))

    def prepare(self, graph: ChannelGraph) -> None:
        found = {id(v.regularizer): v.regularizer for v in self.model.trainable_variables}
        self._penalties = [penalty for penalty in found.values() if isinstance(penalty, Penalty)]
        if not self._penalties:
            raise UnsupportedModelError(
                f"PenaltySchedule found no BridgePenalty or GroupLasso in model '{self.model.name}': "
                "apply_penalty(model, GroupLasso(1e-5))."
            )
        self._criterion = self._criterion.observe(graph, Weights(graph.view), None, False)
        self._strengths: dict[int, list[float]] = {}

    def counts(self) -> np.ndarray:
        weights = Weights(self._graph.view)
        keep = []
        for group in self._graph.groups:
            keep.append(group.size)
            if self._criterion.refuses(group) is None:
                held = np.cumsum(np.sort(self._criterion.scores(group, weights) ** 2))
                keep[-1] -= min(int((held <= self.energy * held[-1]).sum()), group.size - 1)
        return np.array(keep, int)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._spent is None and epoch:
            for backup in self._backups():
                self._restore(backup, epoch)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        before = self._spent
        super().on_epoch_end(epoch, logs)
        if before is not None and self._spent is not None:
            left = max(1, self.params["epochs"] - epoch - 1)
            if before - self._spent < (self._spent - self._limit) / left:
                self._strengthen(self.step)
            elif self._spent < self._limit:
                self._strengthen(-self.step)
        strengths = [penalty.strength for penalty in self._penalties]
        if logs is not None:
            logs["strength"] = max(strengths)
        # Weights are backed up after this, so that a killed training may go on from those of the epoch before.
        self._strengths = {epoch + 1: strengths, epoch: self._strengths.get(epoch, strengths)}
        for backup in self._backups():
            backup.parent.mkdir(parents=True, exist_ok=True)
            write_json(backup, {"strengths": {str(number): found for number, found in self._strengths.items()}})

    def _backups(self) -> list[Path]:
        """Where strengths stand next to the weights of `BackupAndRestore`."""
        found = [] if self._others is None else self._others.callbacks
        folders = [callback.backup_dir for callback in found if isinstance(callback, keras.callbacks.BackupAndRestore)]
        return [Path(folder, "strengths.json") for folder in folders]

    def _restore(self, backup: Path, epoch: int) -> None:
        known = read_json(backup, "strengths of penalties", sealed=True)["strengths"] if backup.exists() else {}
        strengths = known.get(str(epoch), [])
        if len(strengths) != len(self._penalties):
            warnings.warn(
                f"PenaltySchedule: '{backup}' holds no strengths of {len(self._penalties)} penalties at epoch {epoch}: "
                f"they go on from {max(penalty.strength for penalty in self._penalties):g}.",
                stacklevel=2,
            )
            return
        for penalty, strength in zip(self._penalties, strengths, strict=True):
            penalty.strength = strength

    def _strengthen(self, step: float) -> None:
        for penalty in self._penalties:
            penalty.strength = max(0.0, penalty.strength + step)
        if keras.backend.backend() == "jax":
            # Compiled with the value that the variable had, since it is none of the model's own.
            self._trainer.make_train_function(force=True)
