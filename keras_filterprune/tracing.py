"""trace_model(model) -> ChannelGraph: send channel ids through every call of a model, as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import shown
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.keras_view import named_weights, view_model
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import ROLES, Call, ChannelGraph, ModelView, Pinned, Tensor, TensorRef
from keras_filterprune.handlers.base import describe
from keras_filterprune.handlers.registry import (
    check_format,
    check_weights,
    explained,
    handler_for,
    keras_class,
    remedy,
)


def trace_model(model: keras.Model) -> ChannelGraph:
    """The channel graph of a functional or Sequential model, composite layers left as they are: opaque.

    Args:
        model: whose layers are to be looked at, or written to, where they are; `analyze` opens composite layers first.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or uses channels_first.
    """
    return trace_view(view_model(model))


def trace_view(view: ModelView) -> ChannelGraph:
    """The channel graph of a flat model view, in time linear in its calls and channels; no weight is read."""
    avoided: dict[str, list[Hashable]] = defaultdict(list)
    while True:
        t = Tracer(avoided)
        graph = _traced(view, t)
        if not t.regrets:
            return graph
        # Attention written by hand asks for whole heads, where a reshape before has seen the numbers of each.
        for reshape, axis in t.regrets.items():
            avoided[reshape].append(axis)


def _traced(view: ModelView, t: Tracer) -> ChannelGraph:
    made: dict[TensorRef, Tensor] = {}
    traced: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    first_use: dict[str, int] = {}
    for number, call in enumerate(view.calls):
        inputs = tuple(made[ref] for ref in call.inputs)
        read = [index for index in range(len(call.output_shapes)) if TensorRef(number, index) in view.readers]
        outputs = _trace(call, inputs, read, t) if call.inputs else [_input(call, t)]
        traced.append((inputs, tuple(outputs)))
        made.update({TensorRef(number, i): x for i, x in enumerate(outputs)})
        if call.inputs and handler_for(call.op).sized:
            earlier = first_use.setdefault(call.path, number)
            _tie_calls(call, traced[earlier], traced[number], t)
    for ref, name in zip(view.outputs, view.output_names, strict=True):
        if made[ref].tracked:
            t.pin(made[ref].ids, f"is model output '{name}'", first=True)
    layers = {call.path: call.op for call in view.calls if call.inputs}
    _pin_tied_variables(layers, traced, view, t)
    weights = {
        path: {n: tuple(v.shape) for n, v in w.items()} for path, op in layers.items() if (w := named_weights(op))
    }
    counted = t.counted_layers()
    uncounted = tuple(p for p, op in layers.items() if p in weights and p not in counted and _computes(op))
    graph = t.resolve(view, traced, weights, uncounted)
    _check_binds(graph)
    return replace(graph, pinned=graph.pinned + _unseen(graph))


def _unseen(graph: ChannelGraph) -> tuple[Pinned, ...]:
    """Layers that hold filters which no handler sees: other layers perhaps, or a whole model."""
    seen = {bind.layer for bind in graph.binds}
    calls = {c.path: c for c in graph.view.calls if c.path in graph.uncounted and c.path not in seen}
    # A weight that stands for itself in an opened model is looked into, and has no filters.
    calls = {path: c for path, c in calls.items() if not type(c.op).__module__.startswith("keras_filterprune.")}
    return tuple(
        Pinned(
            path,
            call.output_shapes[0][-1] or 0 if call.output_shapes[0] else 0,
            f"is opaque: no handler looks into {type(call.op).__name__}{_around(call.op)}{remedy(call)}",
        )
        for path, call in calls.items()
    )


def _around(op: Any) -> str:
    """The layers with weights in the model that a wrapper applies, by name."""
    names = [repr(layer.name) for layer in getattr(getattr(op, "layer", None), "layers", ()) if layer.weights]
    return f" around {', '.join(names)}" if names else ""


def _input(call: Call, t: Tracer) -> Tensor:
    shape = call.output_shapes[0]
    if len(shape) < 2 or shape[-1] is None:
        return Tensor(shape)
    return Tensor(shape, len(shape) - 1, t.pinned(shape[-1], f"is model input '{call.path}'"))


def _trace(call: Call, inputs: tuple[Tensor, ...], read: list[int], t: Tracer) -> list[Tensor]:
    check_format(call.op)
    with explained():
        check_weights(call.op)
        outputs = handler_for(call.op).trace(call, inputs, t)
    _check_outputs(call, outputs, read, t)
    unknown = [name for name in named_weights(call.op) if name not in t.known_weights(call.path)]
    if unknown:
        # A quantized or LoRA layer, say: its extra weights would keep their old size.
        why = f"belongs to {describe(call)}, whose weight '{unknown[0]}' no handler knows"
        t.pin_tensors((*inputs, *outputs), why)
        t.pin_layer(call.path, why)
        t.constant(call.path, *unknown)
    return outputs


def _check_outputs(call: Call, outputs: Any, read: list[int], t: Tracer) -> None:
    """Refuse what a handler, anybody's perhaps, returns in the place of tensors that others can read."""
    whole = isinstance(outputs, list | tuple) and all(isinstance(x, Tensor) for x in outputs)
    if (
        not whole
        or len(outputs) <= max(read, default=-1)
        or any(tuple(outputs[index].shape) != call.output_shapes[index] for index in read)
        or any(x.axis is not None and np.shape(x.ids) != (x.shape[x.axis],) for x in outputs)
        or not all(t.knows(x.ids) for x in outputs if x.axis is not None)
        or any(outputs[index].axis is not None and outputs[index].axis < 0 for index in read)
    ):
        raise UnsupportedLayerError(
            f"the handler of {describe(call)} is to return a Tensor for each of its {len(call.output_shapes)} outputs, "
            f"of shapes {call.output_shapes}, with an id for every channel if it is tracked. Received: "
            f"{shown(outputs)}."
        )


def _check_binds(graph: ChannelGraph) -> None:
    """Refuse what a handler says of weights that are not there, or of axes of another length."""
    own = {call.path for call in graph.view.calls if call.inputs and keras_class(call.op) is None}
    for bind in graph.binds:
        shapes = graph.weights.get(bind.layer, {})
        if bind.weight not in shapes or bind.axis not in range(len(shapes[bind.weight])) or bind.role not in ROLES:
            raise UnsupportedLayerError(
                f"the handler of layer '{bind.layer}' is to bind axes, counted from 0, of its weights {shapes}, as one "
                f"of {', '.join(ROLES)}. Received: axis {bind.axis} of '{bind.weight}' as {bind.role!r}."
            )
        # A layer of Keras that was quantized packs several channels into one number.
        if bind.layer in own and len(bind.ids) != (size := shapes[bind.weight][bind.axis]):
            raise UnsupportedLayerError(
                f"the handler of layer '{bind.layer}' binds axis {bind.axis} of its weight '{bind.weight}', of shape "
                f"{shapes[bind.weight]}, to {len(bind.ids)} channels as {bind.role!r}; expected {size}, one for every "
                "index along the axis."
            )


def _tie_calls(call: Call, first: tuple, again: tuple, t: Tracer) -> None:
    """A layer whose configuration names channel counts has one configuration for all its calls."""
    for x, y in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        if x is y or not (x.tracked or y.tracked):
            continue
        if x.axis == y.axis and len(x.ids) == len(y.ids):
            t.tie(x.ids, y.ids)
        else:
            t.pin_tensors((x, y), f"goes through {describe(call)}, which is also called on other channels")


def _pin_tied_variables(layers: dict, traced: list, view: ModelView, t: Tracer) -> None:
    """Cloning a model separates a variable that two layers share, so the channels of both stay."""
    owners: dict[int, list[str]] = defaultdict(list)
    for path, op in layers.items():
        for variable in named_weights(op).values():
            owners[id(variable)].append(path)
    tied = {path: paths for paths in owners.values() if len(paths) > 1 for path in paths}
    for call, (inputs, outputs) in zip(view.calls, traced, strict=True):
        if call.path in tied:
            others = " and ".join(repr(p) for p in tied[call.path])
            why = f"is indexed by a weight that layers {others} share"
            t.pin_tensors((*inputs, *outputs), why)
            t.pin_layer(call.path, why)


def _computes(op) -> bool:
    """Whether a layer with weights spends multiplications that are worth counting: a matrix among its weights."""
    return any(len(v.shape) > 1 for v in named_weights(op).values()) and keras_class(op) is not keras.layers.PReLU
