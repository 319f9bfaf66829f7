"""Attention: whole heads are channels that live inside a layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import HEADS, Tracer
from keras_filterprune.graph.types import Call, Tensor, TensorRef
from keras_filterprune.handlers.base import Handler, Resize, describe, read_last_axis, volume
from keras_filterprune.handlers.registry import register_handler

# Weights of the projection that reads the heads; those of all others make them.
_OUTPUT = "attention_output"


@register_handler(keras.layers.MultiHeadAttention)
class MultiHeadAttention(Handler):
    """Heads are axis 1 of the kernels of queries, keys and values, and axis 0 of the output's; they do not mix before.

    Attributes:
        counts: {argument of the constructor: the projection whose heads it counts}.
    """

    counts: Mapping[str, str] = {"num_heads": "query"}

    def heads(self, call: Call, t: Tracer) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the heads of queries, and of those of keys and values."""
        ids = t.fresh(call.op.num_heads, (call.path, HEADS))
        return ids, ids

    def made(self, call: Call, width: int, query: np.ndarray, t: Tracer) -> np.ndarray:
        """Ids of the output's channels."""
        return t.fresh(width, (call.path, "filters"))

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        found, kernels = _arguments(call, inputs), _kernels(call.op)
        query, value = found["query"], found["value"]
        key = found.get("key", value)
        many, few = self.heads(call, t)
        axes = getattr(call.op, "attention_axes", (1,))
        _look_at_masks(call, found, many, len(query.shape) - len(axes) - 1, t)
        for part, x, heads in (("query", query, many), ("gate", query, many), ("key", key, few), ("value", value, few)):
            if part in kernels:
                ids = read_last_axis(call, x, t)
                self._project(call, part, (ids, heads), volume(x.shape[1:-1]), t)
        ids = self._output(call, query, many, t)
        sizes = [kernels[part].shape[2] for part in ("query", "value")]
        attended = volume(tuple(value.shape[axis] for axis in axes))
        t.spend(call.path, volume(query.shape[1:-1]) * attended * sum(sizes), many)
        out, *scores = call.output_shapes
        # Scores have batch axes, heads, positions of queries, positions of keys.
        return [
            Tensor(out, len(out) - 1, ids),
            *(Tensor(s, len(s) - 2 * len(axes) - 1, many) if s else Tensor(s) for s in scores),
        ]

    def _project(self, call: Call, part: str, ids: tuple[np.ndarray, np.ndarray], positions: int, t: Tracer) -> None:
        """Bind the weights of a projection that makes heads."""
        names, shape = _parts(call.op)[part], _kernels(call.op)[part].shape
        t.bind(call.path, names["kernel"], 0, ids[0], "input")
        t.bind(call.path, names["kernel"], 1, ids[1], "filter")
        if "bias" in names:
            t.bind(call.path, names["bias"], 0, ids[1])
        t.spend(call.path, positions * shape[2], *ids)

    def _output(self, call: Call, query: Tensor, heads: np.ndarray, t: Tracer) -> np.ndarray:
        """Bind the weights of the projection that reads heads; returns the ids of what it makes."""
        names, shape = _parts(call.op)[_OUTPUT], _kernels(call.op)[_OUTPUT].shape
        ids = self.made(call, shape[-1], read_last_axis(call, query, t), t)
        t.bind(call.path, names["kernel"], 0, heads, "input")
        t.bind(call.path, names["kernel"], len(shape) - 1, ids, "filter")
        if "bias" in names:
            t.bind(call.path, names["bias"], len(shape) - 3, ids)
        t.spend(call.path, volume(query.shape[1:-1]) * volume(tuple(shape[1:-1])), heads, ids)
        return ids

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        parts = _parts(r.call.op)
        for argument, part in self.counts.items():
            (ids,) = (b.ids for b in r.binds if b.weight == parts[part]["kernel"] and b.axis == 1)
            config[argument] = int(r.alive[ids].sum())
        return config | self.shaped(config, r)

    def shaped(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        """What says how wide the output is; by default it is as wide as the query."""
        width, given = r.width(r.outputs[0]), config["output_shape"]
        as_query = given is None and width == r.shape(_arguments(r.call, r.inputs)["query"])[-1]
        return {} if as_query else {"output_shape": (*(given or ())[:-1], width)}


@register_handler(keras.layers.GroupQueryAttention)
class GroupedQueryAttention(MultiHeadAttention):
    """A head of keys and values goes with all heads of queries that share it; the output is as wide as the query."""

    counts: Mapping[str, str] = {"num_query_heads": "query", "num_key_value_heads": "key"}

    def heads(self, call: Call, t: Tracer) -> tuple[np.ndarray, np.ndarray]:
        ids = t.fresh(call.op.num_key_value_heads, (call.path, HEADS))
        return np.repeat(ids, call.op.num_query_heads // len(ids)), ids

    def made(self, call: Call, width: int, query: np.ndarray, t: Tracer) -> np.ndarray:
        ids = super().made(call, width, query, t)
        t.tie(ids, query)
        return ids

    def shaped(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        return {}


def _parts(op: Any) -> dict[str, dict[str, str]]:
    """{projection: {"kernel" or "bias": name of the weight}}; the projections are layers inside the layer."""
    found: dict[str, dict[str, str]] = {}
    for name, variable in named_weights(op).items():
        _, part, kind = f"//{variable.path}".rsplit("/", 2)
        found.setdefault(part, {})[kind] = name
    return found


def _kernels(op: Any) -> dict[str, keras.Variable]:
    """{projection: its kernel}."""
    weights = named_weights(op)
    return {part: weights[names["kernel"]] for part, names in _parts(op).items() if "kernel" in names}


def _arguments(call: Call, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The tensors of a call by the names of its arguments; constants are tensors that carry no channels."""
    made = dict(zip(call.inputs, inputs, strict=True))
    given = inspect.signature(call.op.call).bind(*call.args, **call.kwargs).arguments
    return {
        name: made[value] if isinstance(value, TensorRef) else Tensor(np.shape(value))
        for name, value in given.items()
        if value is not None
    }


def _look_at_masks(call: Call, found: dict[str, Tensor], heads: np.ndarray, axis: int, t: Tracer) -> None:
    """Pin what a mask is made of, and heads that have masks of their own along this axis."""
    masks = [x for name, x in found.items() if name.endswith("mask")]
    t.pin_tensors(masks, f"masks {describe(call)}")
    scores = len(found["query"].shape) + len(call.op.attention_axes if hasattr(call.op, "attention_axes") else (1,))
    if any(len(x.shape) >= scores and x.shape[axis] != 1 for x in masks):
        t.pin(heads, f"is masked on its own in {describe(call)}")
