"""The values that analysis passes on: calls and tensors of a flat model view, and which weights channels index."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class TensorRef:
    """Output number `index` of call number `call` of a flat model view.

    Attributes:
        call: number of the call in `ChannelGraph.view.calls`.
        index: which of its outputs.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> kfp.analyze(model).view.calls[1].inputs
        (TensorRef(call=0, index=0),)
    """

    call: int
    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """One application of one Keras operation.

    Attributes:
        path: name of the operation, prefixed by the nested models it lives in (`"backbone/conv1"`).
        op: the live Keras layer or operation; of an input of the model, a call without inputs, its `KerasTensor`.
        args, kwargs: its call arguments, with a `TensorRef` in place of every symbolic tensor.
        inputs: those references, flat and in order.
        input_shapes, output_shapes: shapes with the batch axis first; an output nobody reads has shape (). Sides that
            the model leaves open count 64, 8 for tokens.
        closed: why a layer that is made of others could not be opened, as in "draws random numbers itself" ("").

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3), name="image"), keras.layers.Conv2D(4, 3, name="conv")])
        >>> [(call.path, call.output_shapes) for call in kfp.analyze(model).view.calls]
        [('image', ((None, 8, 8, 3),)), ('conv', ((None, 6, 6, 4),))]
    """

    path: str
    op: Any
    args: tuple
    kwargs: dict[str, Any]
    inputs: tuple[TensorRef, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    closed: str = ""

    @property
    def per_sample(self) -> bool:
        """Whether its outputs have the batch of its inputs as their first axis; those of a weight have not."""
        made, read = ([shape[0] for shape in shapes if shape] for shapes in (self.output_shapes, self.input_shapes))
        return None in made or None not in read


@dataclass(frozen=True, eq=False)
class ModelView:
    """A Keras model as one flat list of calls in topological order; nested models are dissolved into it.

    Attributes:
        model: the functional or Sequential model whose calls they are, for how it is compiled as well.
        calls: model inputs (as calls without inputs) and operations.
        inputs, outputs: references of the model's flat inputs and outputs.
        output_names: one name per output.
        nested_inputs: per nested model (by id), the references fed to its flat inputs at its first call.
        open_inputs: inputs leave dimensions beside the batch open; shapes hold for nominal sizes (64, 8 for tokens).
        notes: what a plain model has not kept of the model that it was opened from, in sentences.
        origin: the model that it was opened from, None for one that is looked at as it is.
    """

    model: Any
    calls: tuple[Call, ...]
    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]
    output_names: tuple[str, ...]
    nested_inputs: dict[int, tuple[TensorRef, ...]]
    open_inputs: bool = False
    notes: tuple[str, ...] = ()
    origin: Any = None

    @property
    def given(self) -> Any:
        """The model as the user knows it, whose class may train in a way of its own."""
        return self.model if self.origin is None else self.origin

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @cached_property
    def readers(self) -> dict[TensorRef, tuple[int, ...]]:
        """{tensor: numbers of the calls that read it}, in order; `len(calls)` stands for an output of the model."""
        found: dict[TensorRef, list[int]] = {}
        for number, call in enumerate(self.calls):
            for ref in call.inputs:
                found.setdefault(ref, []).append(number)
        for ref in self.outputs:
            found.setdefault(ref, []).append(len(self.calls))
        return {ref: tuple(numbers) for ref, numbers in found.items()}

    def only_reader(self, number: int) -> int | None:
        """The one call that reads the first output of call `number`, None if several do or the model gives it out."""
        readers = self.readers.get(TensorRef(number, 0), ())
        return readers[0] if len(readers) == 1 and readers[0] < len(self.calls) else None


@dataclass(frozen=True, eq=False)
class Tensor:
    """Shape of a tensor and, if its channels are tracked, their axis and one id per channel.

    Attributes:
        shape: shape with the batch axis first.
        axis: channel axis (non-negative), or None when no channel of this tensor is tracked (None).
        ids: int64 array of shape (shape[axis],), of shape (0,) when none is tracked.

    Example:
        >>> import numpy as np, keras_filterprune as kfp
        >>> kfp.handlers.Tensor((None, 8, 8, 4), axis=3, ids=np.arange(4)).tracked
        True
    """

    shape: Shape
    axis: int | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    @property
    def tracked(self) -> bool:
        """Whether its channels have ids."""
        return self.axis is not None

    @property
    def last(self) -> int:
        """Size of the last axis, where most layers have their channels; 1 where it is not known."""
        size = self.shape[-1] if self.shape else None
        return 1 if size is None else size


# What an axis of a weight has to do with channels, see `Member`.
ROLES = ("filter", "input", "channel")


@dataclass(frozen=True, eq=False)
class Bind:
    """Axis `axis` of weight `weight` of layer `layer` is indexed by the channels `ids`; `role` as in `Member`."""

    layer: str
    weight: str
    axis: int
    role: str
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Term:
    """`coefficient * product of the widths of axes` multiply-accumulates, spent by one call of `layer`."""

    layer: str
    coefficient: int
    axes: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Member:
    """What a group owns of one weight axis.

    Attributes:
        layer, weight, axis: path of the layer, name of the weight, and the axis along which channels lie.
        role: "filter" (the axis numbers the filters of a kernel), "input" (the axis reads incoming channels) or
            "channel" (one value per channel: bias, batch normalization).
        positions: int64 array of shape (n_units, m), the m indices along the axis that belong to each unit.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="a"), keras.layers.Conv2D(2, 1, name="b")]
        >>> (group,) = kfp.analyze(keras.Sequential(layers)).groups
        >>> [(m.layer, m.weight, m.axis, m.role) for m in group.members]
        [('a', 'kernel', 3, 'filter'), ('a', 'bias', 0, 'channel'), ('b', 'kernel', 2, 'input')]
    """

    layer: str
    weight: str
    axis: int
    role: str
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that live in the same layers; each of its `size` units is kept or removed as a whole.

    Attributes:
        name: unique name, after the first layer that makes these channels.
        units: int64 array of shape (size,), the graph's unit numbers, in the order of that layer's filters.
        members: every weight axis the units live in.
        approximate: why removal cannot be exact (statistics over channels), empty when it is.
        heads: they are heads of attention: the layer that makes them reads them too, and most often no other (False).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> (group,) = kfp.analyze(keras.Sequential(layers)).groups
        >>> group.name, group.size, group.producers
        ('conv', 4, ('conv',))
    """

    name: str
    units: np.ndarray
    members: tuple[Member, ...]
    approximate: tuple[str, ...] = ()
    heads: bool = False

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def least(self) -> int:
        """The fewest units it can keep: two where statistics over channels are taken; they make one constant."""
        return min(self.size, 2 if self.approximate else 1)

    @cached_property
    def producers(self) -> tuple[str, ...]:
        """Layers whose filters these units are, in the order of the model."""
        return tuple(dict.fromkeys(m.layer for m in self.members if m.role == "filter"))


class Pinned(NamedTuple):
    """`channels` filters of `layer` cannot be removed, because of `reason`."""

    layer: str
    channels: int
    reason: str
