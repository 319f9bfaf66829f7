"""Put training-time wrappers around the layers of a model, and take them off again."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_flag, check_integer, check_names, unknown_name
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import CalibrationDataError, FilterPruneError, UnknownNameError, UnsupportedModelError
from keras_filterprune.graph.keras_view import named_weights, scale_slices, view_model
from keras_filterprune.graph.types import Call, ChannelGraph
from keras_filterprune.handlers.registry import linear_of
from keras_filterprune.methods import Method, as_method
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import check_data
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.training.base import TrainingWrapper, unwrapped, wrappers_of
from keras_filterprune.training.branches import branch_starts, gated_branches, with_branch_gates, without_closed
from keras_filterprune.training.bridgeout import BatchBridgeout
from keras_filterprune.training.filter_pruning import FilterPruning
from keras_filterprune.training.gate import GATES, BranchGate


def apply_bridgeout(
    model: keras.Model,
    rate: float = 0.3,
    norm: float = 1.5,
    target_fraction: float = 1.0,
    *,
    include: str | Iterable[str] | None = None,
    seed: int = 0,
) -> keras.Model:
    """An equal model with every convolution with a window in a `BatchBridgeout`; the original is not touched.

    Args:
        model: a built functional or Sequential model.
        rate, norm, target_fraction: see `BatchBridgeout`.
        include: names or globs of the layers to wrap, `Dense` and 1x1 convolutions too (None: every convolution with a
            window).
        seed: seed of the masks; every layer has its own, counted from it (0).

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Raises:
        UnknownNameError: no layer matches `include`.
        UnsupportedModelError: there is no convolution with a window.
        InvalidValueError: an argument is out of range.
        UnsupportedLayerError: a layer that matches has no kernel, or is wrapped already.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> [layer.name for layer in kfp.apply_bridgeout(model).layers]
        ['conv_bridgeout']
    """
    graph = analyze(model)
    patterns = None if include is None else check_names("include", include)
    check_integer("seed", seed, least=0)

    def chosen(call: Call) -> bool:
        if patterns is None:
            linear = linear_of(call.op)
            return linear is not None and linear.window is not None and math.prod(linear.window.kernel_size) > 1
        return any(fnmatch.fnmatch(call.path, pattern) for pattern in patterns)

    wanted = "a convolution with a window" if patterns is None else f"{include!r}"
    return _wrapped(
        graph,
        chosen,
        wanted,
        lambda layer, number: BatchBridgeout(layer, rate, norm, target_fraction, seed=seed + number),
        UnsupportedModelError if patterns is None else UnknownNameError,
    )


def apply_filter_pruning(model: keras.Model) -> keras.Model:
    """An equal model in which every layer that reads prunable filters is in a `FilterPruning`, whose masks are ones.

    Args:
        model: a built functional or Sequential model, with `BatchBridgeout` wrappers perhaps. It is not modified.

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Raises:
        UnsupportedModelError: the model has no filters that can be removed.
        UnsupportedLayerError: the model is masked already.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1, name="reader")]
        >>> [layer.name for layer in kfp.apply_filter_pruning(keras.Sequential(layers)).layers][1]
        'reader_masked'
    """
    return _masked(_maskable_of(model), lambda layer, _: FilterPruning(layer))


def apply_filter_gates(
    model: keras.Model,
    method: str | Method | Criterion = "l2",
    *,
    data: Any = None,
    gates: bool | str = True,
    branches: bool = False,
) -> keras.Model:
    """As `apply_filter_pruning`, with gates that are trained in the place of masks, for `BudgetGates`.

    Layers that are frozen stay so, and their gates are trained.

    Args:
        model: a built functional or Sequential model. It is not modified.
        method: gates start at the scores of its criterion, divided by their mean in the group, at 1 where it gives
            none ("l2"; those of Enderich et al. 2021 are the scales of batch normalization, "bn_scale"). Scores above 0
            are open.
        data: calibration data for methods that need it (None).
        gates: what a gate is in training, "straight" (True), "gumbel" or "sigmoid", see `kfp.layers.FilterPruning`.
        branches: gate what residual blocks add to their shortcut as well, see `kfp.layers.BranchGate`, so that whole
            branches can leave; these gates start at the mean score of a branch's filters, divided by that of all
            branches (False).

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Raises:
        CalibrationDataError: the method needs data that is not there.
        UnsupportedModelError: the model has no filters that can be removed, or no branches.
        UnknownNameError: the method, or the kind of gates, is not known.
        UnsupportedLayerError: the model is masked already.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1, name="reader")]
        >>> kfp.apply_filter_gates(keras.Sequential(layers)).layers[1].gates
        True
    """
    if gates is not True and not (isinstance(gates, str) and gates in GATES):
        raise unknown_name("gates", gates, f"True or one of {', '.join(GATES)}", GATES)
    check_flag("branches", branches)
    graph = _maskable_of(model)
    criterion = as_method(method, 0, data is not None).criterion
    if criterion.requires and data is None:
        raise CalibrationDataError(f"{criterion!r} needs calibration inputs: pass data=.")
    check_data(data, graph.view)
    starts = branch_starts(graph, criterion, data) if branches else {}
    values = _filter_starts(graph, criterion, data)
    gated = _masked(graph, lambda layer, _: FilterPruning(layer, gates=gates))
    # The same calls in the same order, with and without wrappers.
    for call, (inputs, _) in zip(view_model(gated).calls, graph.tensors, strict=True):
        if isinstance(call.op, FilterPruning):
            call.op.mask.assign(values[graph.unit_of_id[inputs[0].ids]].astype("float32"))
    return with_branch_gates(gated, gates, starts) if branches else gated


def _filter_starts(graph: ChannelGraph, criterion: Criterion, data: Any) -> np.ndarray:
    """At which the gate of every unit starts."""
    weights = Weights(graph.view)
    criterion = criterion.observe(graph, weights, data, False)
    values = np.ones(graph.unit_of_id.max(initial=-1) + 1)
    for group in graph.groups:
        scores = np.zeros(1) if criterion.refuses(group) else criterion.scores(group, weights)
        if scores.mean() > 0:
            values[group.units] = scores / scores.mean()
    return values


def maskable(graph: ChannelGraph) -> ChannelGraph:
    """The graph with those groups alone that masks can stand for: attention reads several tensors, and heads.

    Channels that end in a product of two tensors are read by no layer.
    """
    attention = {member.layer for group in graph.groups if group.heads for member in group.members}
    readers = {g: {m.layer for m in g.members if m.role == "input"} for g in graph.groups}
    return replace(graph, groups=tuple(g for g, layers in readers.items() if layers and not layers & attention))


def _maskable_of(model: keras.Model) -> ChannelGraph:
    """The groups of a model that are masked; a warning names the others."""
    graph = analyze(model)
    found = maskable(graph)
    if others := {group.name for group in graph.groups} - {group.name for group in found.groups}:
        warnings.warn(
            f"no mask for {', '.join(map(repr, sorted(others)))}, which attention reads: these stay whole while masks "
            "or gates are trained. SoftPruning, or prune_model after training, prunes them.",
            stacklevel=3,
        )
    return found


def _masked(graph: ChannelGraph, wrapper: Callable[[keras.layers.Layer, int], FilterPruning]) -> keras.Model:
    readers = {member.layer for group in graph.groups for member in group.members if member.role == "input"}
    return _wrapped(graph, lambda call: call.path in readers, "a layer that reads prunable filters", wrapper)


def _wrapped(
    graph: ChannelGraph,
    chosen: Callable[[Call], bool],
    wanted: str,
    wrapper: Callable[[keras.layers.Layer, int], TrainingWrapper],
    error: type[FilterPruneError] = UnsupportedModelError,
) -> keras.Model:
    """The model with wrappers around the layers of the chosen calls; `wanted` says what these are."""
    numbers: dict[int, int] = {}
    for call in graph.view.calls:
        if call.inputs and chosen(call):
            numbers.setdefault(id(call.op), len(numbers))
    if not numbers:
        raise error(f"model '{graph.view.name}' has no layer that matches {wanted}. analyze(model) lists them.")
    return _Swapper(graph, lambda op, clone: wrapper(clone(op), numbers[id(op)]) if id(op) in numbers else None).result(
        graph.model
    )


def strip_wrappers(model: keras.Model) -> keras.Model:
    """The plain model inside a wrapped one: bit-identical at inference, and without any custom object.

    Branches whose gate is closed leave as layers. Warns of masks or gates that the callback had not yet brought to its
    budget: of a training that was stopped, or in a file from its middle (`ModelCheckpoint`).

    Args:
        model: a model, with training-time wrappers perhaps, in nested models too. It is not modified.

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> [layer.name for layer in kfp.strip_wrappers(kfp.apply_bridgeout(model)).layers]
        ['conv']
    """

    graph = analyze(model)
    reached = next((w.reached for w in wrappers_of(model, FilterPruning) if w.reached is not None), (0.0, 0.0))
    if reached[0] > reached[1]:
        warnings.warn(
            f"the masks of model '{model.name}' are from before the budget was met: they leave {reached[0]:.1%} of the "
            f"network, and {reached[1]:.1%} is the budget. Train on; of files, take one of a later epoch, "
            "ModelCheckpoint(save_best_only=True) in a second fit() say.",
            stacklevel=2,
        )
    return stripped(without_closed(graph.model, graph))


def stripped(model: keras.Model) -> keras.Model:
    """`strip_wrappers`, whatever the masks, with the branches that are closed."""

    def plain(op: Any, clone: Callable[[Any], Any]) -> Any | None:
        return None if unwrapped(op) is op else clone(unwrapped(op))

    graph = analyze(model)
    return _Stripper(graph, plain).result(graph.model)


class _Swapper(Cloner):
    """Clones a model with other layers in the place of some, around clones of theirs or of what is in them.

    Args:
        graph: the channel graph of the model.
        swap: `f(operation, clone)` returns the layer in an operation's place, None for its clone.
    """

    def __init__(self, graph: ChannelGraph, swap: Callable[[Any, Callable[[Any], Any]], Any | None]):
        super().__init__(graph.view)
        self.graph = graph
        self._swap = swap
        self._swapped: list[tuple[Any, Any]] = []

    def _clone(self, op: Any) -> Any:
        new = self._swap(op, super()._clone)
        if new is None:
            return super()._clone(op)
        self._swapped.append((op, new))
        return new

    def uncompiled(self, model: keras.Model) -> keras.Model:
        twin = super().uncompiled(model)
        for op, new in self._swapped:
            inner, trainable = unwrapped(new), op.trainable and unwrapped(op).trainable
            if isinstance(new, FilterPruning) and new.gates and not new.trainable:
                # A frozen layer has gates that are trained.
                new.trainable = True
            if inner.trainable != trainable:
                inner.trainable = trainable
        return twin


class _Stripper(_Swapper):
    """Takes wrappers and gates of branches off; the weights that read what masks hide become zero."""

    def call(self, twin: Any, *args, **kwargs) -> Any:
        return args[0] if isinstance(twin, BranchGate) else super().call(twin, *args, **kwargs)

    def check(self, model: keras.Model, twin: keras.Model) -> None:
        # Branches that are closed are not in it.
        if all(keras.ops.convert_to_numpy(gate.open).all() for _, gate in gated_branches(self.graph)):
            super().check(model, twin)

    def write(self) -> None:
        hidden: dict[str, np.ndarray] = {}
        for call, (inputs, _) in zip(self.graph.view.calls, self.graph.tensors, strict=True):
            if isinstance(call.op, FilterPruning):
                # The ids of the first call are those of the weights.
                hidden.setdefault(call.path, inputs[0].ids[~keras.ops.convert_to_numpy(call.op.open)])
        twins = {call.path: self.twins[id(call.op)] for call in self.graph.view.calls if call.path in hidden}
        for bind in self.graph.binds:
            if bind.layer in hidden and bind.role == "input":
                variable = named_weights(twins[bind.layer])[bind.weight]
                scale_slices(variable, bind.axis, np.isin(bind.ids, hidden[bind.layer]), 0.0)
