"""Sensitivity curves while a network trains."""

from __future__ import annotations

import os
from typing import Any

from keras_filterprune.checks import check_integer, check_path
from keras_filterprune.probe.data import Samples
from keras_filterprune.studies import SensitivityTable, measure_sensitivity
from keras_filterprune.training.callback import TrainingCallback
from keras_filterprune.training.wrapping import stripped


class SensitivityScorer(TrainingCallback):
    """Runs `measure_sensitivity` after every few epochs of `fit`, on the network without training-time wrappers.

    Adds `drop_<group>`, what the metric loses when the group alone is cut to the last fraction, to the logs of every
    epoch; between two runs the last one's.

    Args:
        data: labelled samples of a validation split, see `measure_sensitivity`.
        every: epochs from one run to the next; the first one follows the first epoch (1).
        folder: folder for one file per run, `sensitivity_<epoch>.csv`, which is made if need be (None: no files).
        **options: of `measure_sensitivity`: metric, keep, method, samples, executor, seed, progress (False here).

    Attributes:
        tables: {epoch, from 0: `SensitivityTable`}.

    Raises:
        InvalidValueError: every is not a positive number of epochs.

    Example:
        >>> import numpy as np, keras_filterprune as kfp
        >>> kfp.callbacks.SensitivityScorer((np.zeros((8, 4)), np.zeros(8)), every=5).every
        5
    """

    def __init__(self, data: Any, every: int = 1, folder: str | os.PathLike | None = None, **options):
        super().__init__()
        self.every = check_integer("every", every, "a number of epochs")
        self.folder = None if folder is None else check_path("folder", folder, of="folder")
        self.tables: dict[int, SensitivityTable] = {}
        self._data, self._options = Samples.of(data), {"progress": False} | options
        self._logs: dict[str, float] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch % self.every == 0 or not self._logs:
            table = self.tables[epoch] = measure_sensitivity(stripped(self.model), self._data, **self._options)
            deepest = table.cuts[len(table.keep) - 1 :: len(table.keep)]
            self._logs = {f"drop_{cut.group}": cut.drop for cut in deepest}
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                table.to_csv(self.folder / f"sensitivity_{epoch}.csv")
        if logs is not None:
            logs.update(self._logs)
