"""Filters against bits: what a network costs, weighs and still knows at several widths and precisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
from rich.table import Table

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import entries, wrong
from keras_filterprune.cost import BopsBudget, CostModel, MacsBudget, Polynomial
from keras_filterprune.cost.base import check_fraction
from keras_filterprune.cost.bops import Bits, bits_by_layer
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.methods import Method, as_method
from keras_filterprune.outcome import Run
from keras_filterprune.probe.accuracy import class_numbers
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.inputs import check_class_scores, labelled_inputs
from keras_filterprune.probe.trial import masked_outputs
from keras_filterprune.progress import track
from keras_filterprune.pruning import prune_model
from keras_filterprune.pruning.options import Options
from keras_filterprune.pruning.task import Task

_SAMPLES = 10_000
_FLOAT_BITS = 32


@dataclass(frozen=True)
class BopsRow:
    """One width at one precision.

    Attributes:
        keep: fraction of the multiply-accumulates that was asked for.
        weight_bits, activation_bits: as they were given.
        macs, bops: multiply-accumulates and bit operations of one sample.
        bytes: weights that multiply at their bits, all others at 32.
        accuracy: share of the test samples in the right class, with rounded weights; None without test data.
    """

    keep: float
    weight_bits: Bits
    activation_bits: Bits
    macs: int
    bops: int
    bytes: int
    accuracy: float | None


@dataclass(frozen=True)
class BopsTable:
    """What `compare_bits` found.

    Attributes:
        rows: one `BopsRow` per fraction and precision, fractions in the outer loop.
        samples: how many test samples the accuracies are from; 0 without test data.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> table = kfp.studies.compare_bits(keras.Sequential(layers), keep=(1, 0.5), bits=(8, 4))
        >>> [(row.keep, row.weight_bits, row.bytes) for row in table.rows]
        [(1.0, 8, 272), (1.0, 4, 156), (0.5, 8, 140), (0.5, 4, 82)]
    """

    rows: tuple[BopsRow, ...]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows], "samples": self.samples}

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(title="filters against bits: weights rounded per filter, activations not")
        for name in ("keep", "weight bits", "activation bits", "MACs", "bit operations", "bytes", "accuracy"):
            table.add_column(name, justify="right")
        for row in self.rows:
            accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
            costs = f"{row.macs:,}", f"{row.bops:,}", f"{row.bytes:,}"
            table.add_row(f"{row.keep:g}", str(row.weight_bits), str(row.activation_bits), *costs, accuracy)
        return table


def compare_bits(
    model: keras.Model,
    keep: Sequence[float] = (1.0, 0.75, 0.5),
    bits: Sequence[Bits | tuple[Bits, Bits]] = (8, 6, 4),
    *,
    method: str | Method | Criterion = "l2",
    data: Any = None,
    test: Any = None,
    finetune: Callable[[keras.Model], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> BopsTable:
    """Prune to several widths, and say what each costs at several precisions.

    Accuracies are those of the pruned network with its kernels rounded to the bits, symmetrically, with one scale per
    filter. Activations are not rounded: their bits count in the bit operations alone, and the accuracy of a file
    with activations of few bits is lower. Rounding batch normalization into the kernels first gives the same.

    Args:
        model: a built functional or Sequential model. It is not modified.
        keep: fractions of the multiply-accumulates ((1.0, 0.75, 0.5)).
        bits: per precision, bits of weights and activations alike, or a pair of both; each a number from 2 to 32, or
            {layer name or glob: bits} as in `BopsBudget` ((8, 6, 4)). 32 is float32.
        method, data: as in `prune_model` ("l2", None).
        test: labelled samples `(x, y)` or batches of them (None: no accuracies); the first 10,000, fewer where the
            largest activation of all would exceed 256 MiB.
        finetune: trains every pruned model in place (None).
        seed: seed of everything random (0).
        progress: show a progress bar (True).

    Returns:
        A `BopsTable`.

    Raises:
        InfeasibleBudgetError: a fraction is out of range, or out of reach.
        InvalidValueError: a number of bits is out of range, or there is none.
        UnknownNameError: a pattern fits no layer, or a layer no pattern.
        CalibrationDataError: data or test do not fit the model.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Flatten()]
        >>> model = keras.Sequential([*layers, keras.layers.Dense(2)])
        >>> found = kfp.studies.compare_bits(model, keep=(1, 0.5), bits=(8, 4))
        >>> [(row.keep, row.weight_bits, row.bops) for row in found.rows]
        [(1.0, 8, 1069056), (1.0, 4, 267264), (0.5, 8, 534528), (0.5, 4, 133632)]
    """
    fractions = [check_fraction("keep", fraction) for fraction in entries(keep)]
    budgets = [BopsBudget(1.0, None, *_pair(bits_of_one)) for bits_of_one in entries(bits)]
    if not fractions or not budgets:
        raise InvalidValueError(f"keep and bits name at least one value each. Received: keep={keep!r}, bits={bits!r}.")
    graph = analyze(model)
    known = CostModel(graph)
    # What does not fit the model, or is out of reach, shows before anything is pruned.
    for budget in budgets:
        budget.cost(known)
    data = Samples.of(data)
    recipe, options = as_method(method, seed, data is not None), Options(None, None, 1, 1)
    for fraction in fractions:
        Task(model, known, recipe, MacsBudget(fraction), options, Run(data, seed, progress=progress, finetune=finetune))
    samples = None
    if test is not None:
        check_class_scores(graph.view, "accuracy")
        samples = labelled_inputs(test, graph.view, "accuracy", _SAMPLES)
    rows: list[BopsRow] = []
    for fraction in track(fractions, "pruning", len(fractions), progress):
        pruned = prune_model(graph.model, method, fraction, data=data, seed=seed, progress=progress)
        if finetune is not None:
            finetune(pruned)
        rows += _rows(pruned, fraction, budgets, samples)
    return BopsTable(tuple(rows), len(samples[1]) if samples else 0)


def _pair(bits: Any) -> tuple[Bits, Bits]:
    """Bits of weights and of activations; one value stands for both."""
    if not isinstance(bits, tuple):
        return bits, bits
    if len(bits) != 2:
        raise wrong("bits", bits, "one number, or a pair for weights and activations, per precision")
    return bits


def _rows(pruned: keras.Model, fraction: float, budgets: list[BopsBudget], samples: Any) -> Iterator[BopsRow]:
    graph = analyze(pruned)
    costs = CostModel(graph)
    for budget in budgets:
        rounded = list(_rounded(graph, costs.macs, budget.weight_bits))
        values: dict[str, list[tuple[Any, Any]]] = {}
        for layer, variable, value, _ in rounded:
            values.setdefault(layer, []).append((variable, keras.ops.convert_to_tensor(value, variable.dtype)))
        # What is not a kernel stays float32.
        size = costs.params(costs.sizes) * _FLOAT_BITS
        size -= sum(value.size * (_FLOAT_BITS - bits) for _, _, value, bits in rounded)
        accuracy = None
        if samples is not None:
            found = class_numbers(masked_outputs(Kept(graph), samples[0], values)[0])
            accuracy = float(np.mean(found == samples[1]))
        macs, bops = costs.macs(costs.sizes), budget.cost(costs)(costs.sizes)
        yield BopsRow(fraction, budget.weight_bits, budget.activation_bits, macs, bops, -(-size // 8), accuracy)


def _rounded(graph: ChannelGraph, macs: Polynomial, weight_bits: Bits) -> Iterator[tuple[str, Any, np.ndarray, int]]:
    """(layer, variable, rounded value, bits) of every kernel of a layer that multiplies."""
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    axes = {(bind.layer, bind.weight): bind.axis for bind in graph.binds if bind.role == "filter"}
    for layer, bits in bits_by_layer("weight_bits", weight_bits, macs.spending).items():
        for name, variable in named_weights(layers[layer]).items():
            if len(variable.shape) > 1:
                array = keras.ops.convert_to_numpy(variable.value)
                yield layer, variable, round_weights(array, bits, axes.get((layer, name), -1)), bits


def round_weights(array: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Weights as whole multiples of one scale per index of `axis`, symmetric around zero; 32 bits change nothing."""
    if bits == _FLOAT_BITS:
        return array
    others = tuple(n for n in range(array.ndim) if n != axis % array.ndim)
    scale = np.abs(array).max(axis=others, keepdims=True) / (math.pow(2, bits - 1) - 1)
    return np.round(array / np.where(scale, scale, 1)) * scale
