"""Sensitivity analysis: every group is cut alone, by masking, and the network is measured (Hu et al. 2018)."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import keras
import numpy as np

from keras_filterprune.allocators.sensitivity import check_falling
from keras_filterprune.analysis import analyze
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.checks import check_flags, check_integer, renamed_arguments
from keras_filterprune.cost import CostModel
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import ChannelGraph, Group
from keras_filterprune.interrupts import interruptible
from keras_filterprune.methods import Method, as_method
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.metrics import NAMES, measured
from keras_filterprune.probe.trial import digest_of, masked_outputs, samples_of
from keras_filterprune.probe.workers import check_executor, spread
from keras_filterprune.progress import track
from keras_filterprune.rebuild.plan import fingerprint
from keras_filterprune.studies.sensitivity_table import Cut, SensitivityTable

_RESAMPLES = 1000
# What a checkpoint's key is made of, for messages.
_PARTS = "model, data, metric, samples, method or seed"


@interruptible()
@renamed_arguments(cache="checkpoint")
def measure_sensitivity(
    model: keras.Model,
    data: Any,
    metric: Any = "auto",
    keep: Sequence[float] = (0.75, 0.5, 0.25),
    method: str | Method | Criterion = "l2",
    *,
    samples: int = 1024,
    checkpoint: str | os.PathLike | None = None,
    executor: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> SensitivityTable:
    """Cut every group of filters alone, to several fractions, and measure what the network loses.

    Masked, not rebuilt: readers of a filter that goes read zeros in its place, and nothing makes up for it.

    Args:
        model: a built functional or Sequential model. It is not modified.
        data: labelled samples, `(x, y)` or batches of them, of a validation split; inputs alone for "error".
        metric: "auto" (default): what labels fit first of "accuracy", "loss" (minus the compiled one) and minus "mse";
            or a metric or loss of Keras, or its name, errors with a minus; a list or dict by output; "error" (minus the
            squared error of the outputs, relative to their variance); or a function, higher = better, of labels as the
            data gives them and flat outputs (samples, values), a list of several: a number, or one per sample.
        keep: fractions of the filters kept, falling, in (0, 1) ((0.75, 0.5, 0.25)); at least one filter stays.
        method: its criterion chooses the filters that stay ("l2").
        samples: at most so many, the first ones (1 024).
        checkpoint: JSON file that is written after every cut (None), from which a run goes on. It knows a function by
            its name alone.
        executor: a `concurrent.futures` executor, or one with the same `submit`, that measures cuts side by side
            (None: one by one). A process pool has to start its processes by "spawn"; functions as metrics have to be
            importable.
        seed: of everything random, the intervals included (0).
        progress: show a progress bar with an estimate of the time (True).

    Returns:
        A `SensitivityTable`, the same with and without an executor.

    Raises:
        CalibrationDataError: data is missing, does not fit, or has no labels, or none that fit the metric.
        UnknownNameError: metric or method is not known.
        InvalidValueError: a number is out of range, or keep does not fall.
        InfeasibleBudgetError: the model has no filter that can be removed.
        FileError: the checkpoint is damaged, or belongs to another model, data, metric, method or seed.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten()]
        >>> model = keras.Sequential([*layers, keras.layers.Dense(2)])
        >>> x, y = np.random.default_rng(0).normal(size=(16, 8, 8, 3)), np.arange(16) % 2
        >>> table = kfp.measure_sensitivity(model, (x, y), keep=(0.5,))
        >>> [(cut.group, cut.kept) for cut in table.cuts]
        [('conv', 2)]
    """
    keep, criterion = check_falling(keep), as_method(method, seed, True).criterion
    file, executor = Checkpoint(checkpoint, "sensitivity analysis", _PARTS), check_executor(executor)
    check_flags(progress=progress)
    graph = analyze(model)
    weights = _checked(graph)
    data = Samples.of(data)
    network = Measured(graph, data, metric, samples)
    criterion = criterion.observe(graph, weights, data if criterion.requires else None, progress)
    skipped = {group.name: why for group in graph.groups if (why := criterion.refuses(group)) is not None}
    planned = [cut for group in graph.groups if group.name not in skipped for cut in _counts(group, keep)]
    key = f"{fingerprint(graph, weights)} {network.digest()} {criterion!r} {seed}"
    key = hashlib.sha256(key.encode()).hexdigest()
    found = file.read(key, lambda content: {name: Cut(*values) for name, values in content["cuts"].items()}) or {}
    start = time.perf_counter()
    base = network(Kept(graph))
    seconds = time.perf_counter() - start
    missing = {name: cut for cut in planned if (name := _name(*cut)) not in found}
    choices = [Kept(graph, {group.name: criterion.select(group, count, weights)}) for group, count in missing.values()]
    about = f"measuring sensitivity, about {len(missing) * seconds:.0f} s in one process"
    values = track(spread(model, network, choices, executor), about, len(missing), progress)
    for (name, (group, count)), value in zip(missing.items(), values, strict=True):
        found[name] = Cut(group.name, group.size, count, float(value.mean()), *_drop(base, value, seed))
        file.write(key, {"cuts": {name: astuple(cut) for name, cut in found.items()}})
    cuts = tuple(found[_name(*cut)] for cut in planned)
    _check_direction(network.name, cuts[len(keep) - 1 :: len(keep)])
    return SensitivityTable(network.name, float(base.mean()), keep, cuts, CostModel(graph), skipped)


def _checked(graph: ChannelGraph) -> Weights:
    """The weights of a model that has filters to remove."""
    if not graph.groups:
        raise InfeasibleBudgetError(graph.why_whole())
    weights = Weights(graph.view)
    weights.check_finite()
    return weights


def _counts(group: Group, keep: Sequence[float]) -> list[tuple[Group, int]]:
    """The group with each number of units that is to be tried."""
    return [(group, max(group.least, int(np.floor(fraction * group.size + 0.5)))) for fraction in keep]


def _check_direction(metric: str, deepest: tuple[Cut, ...]) -> None:
    # Of ours it is known.
    if metric not in NAMES and deepest and all(cut.high < 0 for cut in deepest):
        warnings.warn(
            f"metric '{metric}' rises for every group that is cut. It has to be higher for better networks: return "
            "minus a loss.",
            stacklevel=5,
        )


def _name(group: Group, count: int) -> str:
    """A cut's name in the cache."""
    return f"{group.name} {count}"


def _drop(base: np.ndarray, value: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Mean of the paired differences, and its 95 % bootstrap interval over samples."""
    lost = base - value
    drawn = np.random.default_rng(seed).multinomial(len(lost), np.full(len(lost), 1 / len(lost)), _RESAMPLES)
    low, high = np.quantile(drawn @ lost / len(lost), (0.025, 0.975))
    return float(lost.mean()), float(low), float(high)


class Measured:
    """A network and the samples it is measured on.

    Args:
        graph: its channel graph.
        data, metric, samples: see `measure_sensitivity`.
    """

    def __init__(self, graph: ChannelGraph, data: Any, metric: Any, samples: int):
        self._score, self._inputs, self._labels = measured(graph.view, data, metric, check_integer("samples", samples))
        self.name = self._score.name
        whole = masked_outputs(Kept(graph), self._inputs)
        self._wanted = self._labels if self._score.labelled else whole
        self._score.check(self._wanted, whole)

    def digest(self) -> str:
        """What a measurement depends on besides the network."""
        return f"{self.name} {digest_of(self._inputs, self._labels)}"

    def __call__(self, kept: Kept) -> np.ndarray:
        """Numbers whose mean is the metric with what stays, float64 of shape (k,)."""
        return self._score.values(self._wanted, masked_outputs(kept, self._inputs))

    def payload(self) -> tuple:
        return samples_of(self._inputs, self._labels), self._score, len(self._inputs)
