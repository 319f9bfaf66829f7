"""Attention: whole heads are channels that live inside a layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import HEADS, Tracer
from keras_filterprune.graph.types import Call, Shape, Tensor, TensorRef
from keras_filterprune.handlers.base import Handler, Resize, describe, give_up, read_last_axis, volume
from keras_filterprune.handlers.registry import register_handler


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

    def made(self, call: Call, width: int, read: Mapping[str, np.ndarray], t: Tracer) -> np.ndarray:
        """Ids of the output's channels."""
        return t.fresh(width, (call.path, "filters"))

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        parts, sizes = _parts(call.op), {name: v.shape for name, v in named_weights(call.op).items()}
        if any(names.keys() - {"kernel", "bias"} for names in parts.values()):
            t.constant(call.path, *sizes)
            return give_up(call, inputs, t, "feeds quantized or adapted projections of")
        found = _arguments(call, inputs)
        found = {"key": found["value"], "gate": found["query"]} | found
        read = {name: read_last_axis(call, found[name], t) for name in ("query", "value", "key")}
        read["gate"] = read["query"]
        many, few = self.heads(call, t)
        heads = {"query": many, "gate": many, "key": few, "value": few}
        axes, spent = _axes(call.op), 0
        positions = volume(found["query"].shape[1:-1])
        _look_at_masks(call, found, many, t)
        for part in (part for part in parts if part in heads):
            names = parts[part]
            t.bind(call.path, names["kernel"], 0, read[part], "input")
            t.bind(call.path, names["kernel"], 1, heads[part], "filter")
            if "bias" in names:
                t.bind(call.path, names["bias"], 0, heads[part])
            size = sizes[names["kernel"]][2]
            t.spend(call.path, volume(found[part].shape[1:-1]) * size, read[part], heads[part])
            # Scores are sums over the numbers of a query, the output of a head is one over those of values.
            spent += size if part in ("query", "value") else 0
        t.spend(call.path, positions * volume(tuple(found["value"].shape[axis] for axis in axes)) * spent, many)
        out = self._output(call, positions, many, read, t)
        shape, *scores = call.output_shapes
        return [Tensor(shape, len(shape) - 1, out), *(_scores(call, found["query"], s, many) for s in scores)]

    def _output(
        self, call: Call, positions: int, heads: np.ndarray, read: Mapping[str, np.ndarray], t: Tracer
    ) -> np.ndarray:
        """Bind the weights of the projection that reads heads; returns the ids of what it makes."""
        names = _parts(call.op)["attention_output"]
        shape = named_weights(call.op)[names["kernel"]].shape
        ids = self.made(call, shape[-1], read, t)
        t.bind(call.path, names["kernel"], 0, heads, "input")
        t.bind(call.path, names["kernel"], len(shape) - 1, ids, "filter")
        if "bias" in names:
            t.bind(call.path, names["bias"], len(shape) - 3, ids)
        t.spend(call.path, positions * volume(tuple(shape[1:-1])), heads, ids)
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
    """A head of keys and values goes with the heads of queries that share it; queries, values, output are as wide."""

    counts: Mapping[str, str] = {"num_query_heads": "query", "num_key_value_heads": "key"}

    def heads(self, call: Call, t: Tracer) -> tuple[np.ndarray, np.ndarray]:
        ids = t.fresh(call.op.num_key_value_heads, (call.path, HEADS))
        return np.repeat(ids, call.op.num_query_heads // len(ids)), ids

    def made(self, call: Call, width: int, read: Mapping[str, np.ndarray], t: Tracer) -> np.ndarray:
        ids = super().made(call, width, read, t)
        t.tie(ids, read["query"], read["value"])
        return ids

    def shaped(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        return {}


@register_handler(keras.layers.Attention, keras.layers.AdditiveAttention)
class ScoringAttention(Handler):
    """Channels of queries and keys meet their partners in sums, and end there; those of values go on."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        made = dict(zip(call.inputs, inputs, strict=True))
        refs = _scored(call)
        query, value, key = (made[ref] for ref in refs)
        for x in inputs:
            if x.axis not in (None, len(x.shape) - 1):
                return give_up(call, inputs, t, "lies on another axis than that of the channels of")
        t.pin_tensors((x for ref, x in made.items() if ref not in refs), f"masks {describe(call)}")
        ids = read_last_axis(call, query, t)
        t.tie(ids, read_last_axis(call, key, t))
        for name, variable in named_weights(call.op).items():
            if len(variable.shape):
                t.bind(call.path, name, 0, ids, "input")
            else:
                t.constant(call.path, name)
        positions = volume((*query.shape[1:-1], value.shape[-2]))
        if getattr(call.op, "score_mode", "") == "dot" and not isinstance(call.op, keras.layers.AdditiveAttention):
            t.spend(call.path, positions, ids)
        width = (value.ids,) if value.tracked else ()
        t.spend(call.path, positions if width else positions * volume(value.shape[-1:]), *width)
        shape, *scores = call.output_shapes
        return [Tensor(shape, len(shape) - 1, value.ids) if width else Tensor(shape), *map(Tensor, scores)]

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        """Removed channels of queries and keys are left out; where a weight scales each of them, it is zero."""
        query = dict(zip(r.call.inputs, r.inputs, strict=True))[_scored(r.call)[0]]
        if not query.tracked or r.kept(query).all() or any(len(v.shape) for v in named_weights(op).values()):
            return op(*args, **kwargs)
        given, *others = args or (kwargs["inputs"],)
        stays = np.flatnonzero(r.kept(query))
        query, key = (keras.ops.take(x, stays, axis=-1) for x in (given[0], given[2 if len(given) > 2 else 1]))
        named = {name: value for name, value in kwargs.items() if name != "inputs"}
        return op([query, given[1], key], *others, **named)


def _scored(call: Call) -> tuple[TensorRef, TensorRef, TensorRef]:
    """Query, value and key of a call; without a key, values are keys as well."""
    query, value, *key = call.args[0] if call.args else call.kwargs["inputs"]
    return query, value, key[0] if key else value


def _parts(op: Any) -> dict[str, dict[str, str]]:
    """{projection: {"kernel" or "bias": name of the weight}}; the projections are layers inside the layer."""
    found: dict[str, dict[str, str]] = {}
    for name, variable in named_weights(op).items():
        _, part, kind = f"//{variable.path}".rsplit("/", 2)
        found.setdefault(part, {})[kind] = name
    return found


def _axes(op: Any) -> tuple[int, ...]:
    """The axes of positions that look at each other."""
    return getattr(op, "attention_axes", (1,))


def _arguments(call: Call, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The tensors of a call by the names of its arguments; constants are tensors that carry no channels."""
    made = dict(zip(call.inputs, inputs, strict=True))
    given = inspect.signature(call.op.call).bind(*call.args, **call.kwargs).arguments
    return {
        name: made[value] if isinstance(value, TensorRef) else Tensor(np.shape(value))
        for name, value in given.items()
        if value is not None
    }


def _scores(call: Call, query: Tensor, shape: Shape, heads: np.ndarray) -> Tensor:
    """What scores carry: batch axes, heads, positions of queries, positions of keys."""
    return Tensor(shape, len(query.shape) - len(_axes(call.op)) - 1, heads) if shape else Tensor(shape)


def _look_at_masks(call: Call, found: Mapping[str, Tensor], heads: np.ndarray, t: Tracer) -> None:
    """Pin what a mask is made of, and heads that have a mask each."""
    masks = [x for name, x in found.items() if name.endswith("mask")]
    t.pin_tensors(masks, f"masks {describe(call)}")
    rank, axes = len(found["query"].shape), len(_axes(call.op))
    if any(len(x.shape) >= rank + axes and x.shape[rank - axes - 1] != 1 for x in masks):
        t.pin(heads, f"is masked on its own in {describe(call)}")
