"""Make a plain functional model of a trace: clones in the places of layers, layers in those of held weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import keras

from keras_filterprune.graph.keras_view import copy_value, named_weights, substitute, view_model
from keras_filterprune.graph.types import Call, TensorRef
from keras_filterprune.opening.batch import OpenBatch
from keras_filterprune.opening.errors import CannotOpenError
from keras_filterprune.opening.kernels import computed, value_of, weights
from keras_filterprune.opening.kinds import has_graph
from keras_filterprune.opening.placeholders import HeldConstant, HeldWeight, Leaf, Losses
from keras_filterprune.opening.plain_layers import AddedLoss, Constant, Weight, WeightedSum
from keras_filterprune.opening.products import products
from keras_filterprune.opening.where import where
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.rebuild.state import paired


class Assembler(Cloner):
    """Clones what a trace of a model calls.

    Args:
        traced: the graph of placeholders.
        paths: of the layers of the model.
        batch: the size of the batch in the trace; None: that of the model.
        adding: ids of layers that add their losses in inference as well.

    Attributes:
        failed: (operation of the trace, why) for those that cannot be applied to another batch.
        origins: (variable of the model, its twin), once made.
    """

    def __init__(
        self, traced: keras.Model, paths: dict[int, tuple[str, ...]], batch: int | None, adding: Collection[int]
    ):
        super().__init__(view_model(traced))
        self._traced, self._paths, self._batch, self._adding = traced, paths, batch, adding
        self._names = Counter(tensor.name for tensor in traced.inputs)
        self._held: dict[int, tuple[Any, Any]] = {}
        self._root: Any = None
        # What the user has named goes before what Keras numbers.
        ops = {id(call.op.op): call.op.op for call in self.view.calls if isinstance(call.op, Leaf)}
        order = sorted(ops.items(), key=lambda entry: not isinstance(entry[1], keras.layers.Layer))
        self._tied = {id(variable) for op in ops.values() for variable in getattr(op, "trainable_variables", ())}
        made_by = {n: calls for n, calls in computed(self.view).items() if not self._is_tied(calls)}
        # {number of the call that gives a kernel: the layer that multiplies by it, or what that is made with}
        self._products: dict[int, Any] = {
            n: made for n, made in products(self.view, made_by).items() if not self._is_tied([n])
        }
        self._computed = {n: calls for n, calls in made_by.items() if n in self._products}
        self._leaves = {key: self._name(paths.get(key, (op.name,))) for key, op in order}
        self.failed: list[tuple[Any, str]] = []

    def _is_tied(self, calls: Collection[int]) -> bool:
        return any(id(held.variable) in self._tied for held in weights(self.view, calls))

    def opened(self, model: keras.Model) -> keras.Model:
        """The plain functional model that computes what `model` does, with its weights."""
        self._root = model
        twin = self.uncompiled(model)
        for old, new in self._layers():
            if new.trainable != old.trainable:
                new.trainable = old.trainable
        return twin

    @property
    def origins(self) -> list[tuple[Any, Any]]:
        found = [pair for old, new in self._layers() for pair in paired(_state(old), _state(new))]
        return [*found, *self._held.values()]

    def _layers(self) -> list[tuple[Any, Any]]:
        return [(old, new) for old, new in self._made if isinstance(old, keras.layers.Layer)]

    def model(self, model: keras.Model) -> keras.Model:
        return self._connected() if model is self._root else super().model(model)

    def config(self, op: Any) -> dict[str, Any]:
        config = super().config(op)
        return config | {"name": self.name_of(op)} if id(op) in self._leaves and "name" in config else config

    def name_of(self, op: Any) -> str:
        return self._leaves.get(id(op), op.name)

    def write(self) -> None:
        for variable, twin in self._held.values():
            copy_value(variable, twin)
            twin.trainable = variable.trainable
        for number, calls in self._computed.items():
            kernel = self._products[number].kernel
            kernel.assign(value_of(self.view, calls))
            kernel.trainable = weights(self.view, calls)[0].variable.trainable

    def notes(self) -> list[str]:
        """What becomes of kernels that are computed at each call."""
        names = [self._products[number].name for number in self._computed]
        if not names:
            return []
        return [
            f"Kernels that the model computes anew of other weights at each call, of {', '.join(map(repr, names))}, "
            "are kernels like any other once it is opened, with the values of now: training goes on with these."
        ]

    # ------------------------------------------------------------------------------------------------------ graph

    def _connected(self) -> keras.Model:
        model = self._root
        inputs = self.inputs(model) if has_graph(model) else [self._input(t) for t in self._traced.inputs]
        open_batch = OpenBatch(self._batch, inputs[0], self._layer) if self._batch else None
        values: dict[TensorRef, Any] = dict(zip(self.view.inputs, inputs, strict=True))
        # Kernels are made with the layers that multiply by them.
        values |= {TensorRef(number, 0): None for number in self._products}
        kernels = set(self._products).union(*self._computed.values())
        for number, call in enumerate(self.view.calls):
            if number in kernels or not call.inputs or any(ref not in values for ref in call.inputs):
                continue
            args, kwargs = substitute((call.args, call.kwargs), values)
            try:
                outputs = self._applied(call, args, kwargs, inputs[0], open_batch)
            # Keras and the user's layers raise what they like; what cannot be had for any batch stays in its layer.
            except Exception as error:  # noqa: BLE001
                self.failed.append((call.op, where(error)))
                continue
            values.update({TensorRef(number, i): x for i, x in enumerate(keras.tree.flatten(outputs))})
        if self.failed:
            raise CannotOpenError(self.failed[0][1])
        structure = keras.tree.pack_sequence_as(self._traced.input, inputs)
        outputs = keras.tree.pack_sequence_as(self._traced.output, [values[ref] for ref in self.view.outputs])
        return keras.Model(structure, outputs, name=model.name)

    def _input(self, tensor: Any) -> Any:
        return keras.Input(batch_shape=self._open(tensor), dtype=tensor.dtype, name=tensor.name)

    def input_shape(self, model: keras.Model, index: int) -> tuple[int | None, ...]:
        # An `input_spec` may have fixed sides that the model leaves open.
        return self._open(self._traced.inputs[index]) if model is self._root else super().input_shape(model, index)

    def _open(self, tensor: Any) -> tuple[int | None, ...]:
        return (None if self._batch else tensor.shape[0], *tensor.shape[1:])

    def _applied(self, call: Call, args: tuple, kwargs: dict, anchor: Any, open_batch: OpenBatch | None) -> Any:
        op = call.op
        if isinstance(op, Leaf):
            return self.operation(op.op)(*args, **kwargs)
        if isinstance(op, HeldWeight):
            return self._weight(op, anchor)
        if isinstance(op, HeldConstant):
            if open_batch is not None and (copies := open_batch.copied(op.value)) is not None:
                return copies
            values = {"values": op.value.tolist(), "values_dtype": op.dtype}
            return self._layer(Constant, "_".join((*op.path, "constant")), **values)(anchor)
        if isinstance(op, Losses):
            return self._layer(AddedLoss, "_".join((*op.path, "loss")), always=id(op.layer) in self._adding)(*args)
        if getattr(op, "weights", None):
            raise CannotOpenError(f"calls layer '{op.name}', which none of its attributes holds")
        kernels = [ref.call for ref in call.inputs if ref.call in self._products]
        if kernels:
            return self._product(kernels[0], next(x for x in args if x is not None))
        twin = self._copied(op)
        if open_batch is None:
            return twin(*args, **kwargs)
        return open_batch.apply(twin, call.input_shapes[0], args, kwargs)

    def _copied(self, op: Any) -> Any:
        """An operation of the trace anew, under a name that is the same in every process."""
        try:
            config = op.get_config()
            name = {"name": self._name((re.sub(r"_\d+$", "", op.name),))} if "name" in config else {}
            return type(op).from_config(config | name)
        except (NotImplementedError, TypeError, ValueError):  # Made with what Keras cannot write down, a function say.
            return op

    def _weight(self, held: HeldWeight, anchor: Any) -> Any:
        variable = held.variable
        if id(variable) in self._tied:
            return self._looked_up(held, anchor)
        layer = self._layer(
            Weight,
            self._path(held),
            shape=tuple(variable.shape),
            weight_dtype=variable.dtype,
            regularizer=variable.regularizer,
            constraint=variable.constraint,
            dtype=held.holder.dtype_policy,
        )
        outputs = layer(anchor)
        self._held[id(variable)] = variable, layer.value
        return outputs

    def _looked_up(self, held: HeldWeight, anchor: Any) -> Any:
        """The weight of a layer that is called as well: all rows of a table, in their order."""
        table = held.holder
        if type(table) is not keras.layers.Embedding:
            raise CannotOpenError(
                f"reads a weight of layer '{table.name}', which is called as well; with one of its own, it would open"
            )
        rows = {"values": list(range(table.input_dim)), "values_dtype": "int32"}
        return self.operation(table)(self._layer(Constant, f"{self.name_of(table)}_rows", **rows)(anchor))

    def _product(self, number: int, x: Any) -> Any:
        """What the layer gives that multiplies by the kernel of a call, for a tensor."""
        held = weights(self.view, self._computed.get(number, (number,)))[0]
        variable, made = held.variable, self._products[number]
        if isinstance(made, tuple):
            kind, settings = made
            prefix = "" if kind is WeightedSum else "depthwise_" if "depth_multiplier" in settings else "kernel_"
            rules = {f"{prefix}regularizer": variable.regularizer, f"{prefix}constraint": variable.constraint}
            made = self._layer(kind, self._path(held), dtype=held.holder.dtype_policy, **settings, **rules)
            made.build(x.shape)
            self._products[number] = made
            if number not in self._computed:
                self._held[id(variable)] = variable, made.kernel
        return made(x)

    # ------------------------------------------------------------------------------------------------------ names

    def _path(self, held: HeldWeight) -> str:
        variable, holder = held.variable, held.holder
        name = variable.name
        if re.fullmatch(r"variable(_\d+)?", name):
            name = next((n for n, value in vars(holder).items() if value is variable), "variable")
        return "_".join((*self._paths.get(id(holder), ()), name))

    def _layer(self, kind: type, name: str, **arguments: Any) -> Any:
        return kind(name=self._name((name,)), **arguments)

    def _name(self, path: tuple[str, ...]) -> str:
        """A name of its own, with nothing in it that a backend refuses."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(path))
        self._names[name] += 1
        return name if self._names[name] == 1 else self._name((f"{name}_{self._names[name]}",))


def _state(layer: keras.layers.Layer) -> dict[str, Any]:
    """{name: variable} of all that a layer keeps, positions of random numbers included."""
    known = {id(variable) for variable in layer.weights}
    others = [variable for variable in layer.variables if id(variable) not in known]
    return named_weights(layer) | {f"{n}/{variable.name}": variable for n, variable in enumerate(others)}
