"""Gates on tensors, all of them 1: how the loss reacts to them, sample by sample or behind whole blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import keras
import numpy as np
from scipy.sparse import csr_array

from keras_filterprune.graph.types import Call, ChannelGraph, ModelView, Tensor, TensorRef
from keras_filterprune.probe.execute import Executor, compute
from keras_filterprune.probe.gradients import Tensors, loss_gradients
from keras_filterprune.probe.masks import mask_of, masked


def sample_gate_gradients(graph: ChannelGraph, data: Any, progress: bool) -> Iterator[np.ndarray]:
    """As `gate_gradients`, with a gate on each unit in every sample: gradients of that sample's loss.

    A gate multiplies a unit's channels in every tensor that a layer with weights reads. The loss is taken for the mean
    over the samples of a batch.

    Yields:
        float64 of shape (samples, units), batch by batch; NaN for units that a layer reads of no tensor, as heads of
        attention.
    """
    gated = [_read_tensors(graph, number) for number in range(len(graph.view.calls))]
    tensors = {(number, place): t for number, found in enumerate(gated) for place, t in found.items()}
    number_of = {id(call): number for number, call in enumerate(graph.view.calls)}
    count = graph.unit_of_id.max(initial=-1) + 1
    owners = {
        key: csr_array((np.ones(len(t.ids)), graph.unit_of_id[t.ids], np.arange(len(t.ids) + 1)), (len(t.ids), count))
        for key, t in tensors.items()
    }

    def outputs(gates: Tensors, inputs: list[Any]) -> list[Any]:
        def through(call: Call, args: tuple, kwargs: dict) -> Any:
            own, number = {key: kwargs[key] for key in call.kwargs}, number_of[id(call)]
            given = keras.tree.flatten((args, own))
            for place, t in gated[number].items():
                given[place] = _scaled(given[place], t, gates[number, place])
            args, own = keras.tree.pack_sequence_as((args, own), given)
            return compute(call, args, kwargs | own)

        return Executor(graph.view, through, check=True).run(inputs)

    def ones(samples: int) -> Tensors:
        return {key: keras.ops.ones((samples, len(t.ids))) for key, t in tensors.items()}

    unseen = _unseen(graph, tensors)
    for found in loss_gradients(graph.view, data, outputs, ones, progress, np.concatenate):
        total = sum((gradient @ owners[key] for key, gradient in found.items()), np.zeros((1, count)))
        total[:, unseen] = np.nan
        yield len(total) * total


def _read_tensors(graph: ChannelGraph, number: int) -> dict[int, Tensor]:
    """{place among the flat arguments of a call: tensor} of those of every sample that its weights read."""
    call, (inputs, _) = graph.view.calls[number], graph.tensors[number]
    bound = [bind.ids for bind in graph.binds_of.get(call.path, ()) if bind.role == "input"]
    # Later calls of a layer read other channels, of the same units.
    read = graph.unit_of_id[np.concatenate([np.zeros(0, int), *bound])]
    flat = keras.tree.flatten((call.args, call.kwargs))
    places = [place for place, value in enumerate(flat) if isinstance(value, TensorRef)]
    pairs = zip(places, inputs, strict=True)
    per_sample = [(place, t) for place, t in pairs if t.tracked and t.shape[0] is None]
    return {place: t for place, t in per_sample if np.isin(graph.unit_of_id[t.ids], read).any()}


def _scaled(x: Any, tensor: Tensor, gate: Any) -> Any:
    """A tensor times a gate (samples, channels)."""
    shape = [-1] + [1] * (len(tensor.shape) - 1)
    if tensor.axis is not None:
        shape[tensor.axis] = len(tensor.ids)
    return masked(x * keras.ops.cast(keras.ops.reshape(gate, shape), x.dtype), mask_of(x))


def _unseen(graph: ChannelGraph, tensors: dict[tuple[int, int], Tensor]) -> np.ndarray:
    """Units that some layer reads of none of these tensors of its calls."""
    seen: dict[str, list[np.ndarray]] = {}
    for (number, _), t in tensors.items():
        seen.setdefault(graph.view.calls[number].path, []).append(t.ids)
    binds = (bind for bind in graph.binds if bind.role == "input")
    missed = [bind.ids[~np.isin(bind.ids, np.concatenate([[-1], *seen.get(bind.layer, [])]))] for bind in binds]
    return np.unique(graph.unit_of_id[np.concatenate([np.zeros(0, int), *missed])])


def tensor_gate_gradients(
    view: ModelView, refs: Collection[TensorRef], data: Any, progress: bool
) -> Iterator[dict[TensorRef, np.ndarray]]:
    """Gradients of the loss of every batch with respect to a gate on each channel of some tensors.

    Args:
        view: the model.
        refs: tensors with channels on the last axis.
        data: labelled samples, of which the first 2 048 are used.
        progress: show a progress bar.

    Yields:
        {tensor: float64 of shape (channels,)}, batch by batch.
    """
    number_of = {id(call): number for number, call in enumerate(view.calls)}

    def outputs(gates: Tensors, inputs: list[Any]) -> list[Any]:
        def through(call: Call, args: tuple, kwargs: dict) -> Any:
            made = compute(call, args, kwargs)
            flat = keras.tree.flatten(made)
            for index, value in enumerate(flat):
                gate = gates.get(TensorRef(number_of[id(call)], index))
                flat[index] = value if gate is None else value * keras.ops.cast(gate, value.dtype)
            return keras.tree.pack_sequence_as(made, flat)

        return Executor(view, through, check=True).run(inputs)

    def ones(_: int) -> Tensors:
        return {ref: keras.ops.ones(view.calls[ref.call].output_shapes[ref.index][-1]) for ref in refs}

    return loss_gradients(view, data, outputs, ones, progress)
