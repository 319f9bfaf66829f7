"""The one file that knows how Keras stores a graph: any functional or Sequential model becomes a flat `ModelView`.

The edges come from `get_config()`, which is also the schema of saved files: public, complete (raw operations,
shared layers, several outputs) and free of side effects on the model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections import deque
from dataclasses import replace
from typing import Any

import keras

from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.live import named_alone, serializable
from keras_filterprune.graph.types import Call, ModelView, Shape, TensorRef
from keras_filterprune.graph.variables import copy_value as copy_value
from keras_filterprune.graph.variables import named_weights as named_weights
from keras_filterprune.graph.variables import scale_slices as scale_slices
from keras_filterprune.graph.variables import weight_flags as weight_flags

# Sides assumed where a model leaves them open: images and signals, and sequences of tokens.
NOMINAL_SIZE, NOMINAL_TOKENS = 64, 8
# Keras prints in bold.
_STYLE = re.compile(r"\x1b\[\d+m")
_CAUSE = "Exception encountered: "
# Sides to try after that: longer ones, and such as most small numbers divide.
_SIDES = NOMINAL_SIZE, 256, 1024, 4096, 16384, 840, 5040, 27720


def view_model(model: keras.Model) -> ModelView:
    """Flatten a model into calls in topological order.

    Args:
        model: a built functional or Sequential `keras.Model`, nested to any depth.

    Returns:
        A `ModelView`; the model is not changed.

    Raises:
        UnsupportedModelError: the model is no Keras model, not built, or subclassed.
    """
    functional, config = _functional(model)
    builder = _Builder()
    names = [key.value[0] for key in keras.tree.flatten(_keys(config["input_layers"]))]
    inputs = [
        builder.add(Call(name, t, (), {}, (), (), (tuple(t.shape),)))
        for name, t in zip(names, functional.inputs, strict=True)
    ]
    outputs = builder.expand(functional, config, inputs, prefix="")
    view = ModelView(
        model=model,
        calls=tuple(builder.calls),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        output_names=tuple(functional.output_names),
        nested_inputs=builder.nested_inputs,
    )
    open_inputs = any(None in call.output_shapes[0][1:] for call in view.calls[: len(inputs)])
    unknown = any(None in shape[1:] for call in view.calls for shape in call.output_shapes if shape)
    return _with_shapes(view, open_inputs) if unknown or builder.reshaped else view


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs, by which losses and labels go; Keras itself gives Sequential models none."""
    return list(getattr(model, "output_names", None) or [model.layers[-1].name])


def packed(model: keras.Model, inputs: list[Any]) -> Any:
    """Flat inputs as a functional or Sequential model takes them, in batches of data, too."""
    single = isinstance(model, keras.Sequential)
    # TensorFlow's datasets hold no lists, as models have that are made of `keras.Model([x], y)`.
    return inputs[0] if single else keras.tree.lists_to_tuples(keras.tree.pack_sequence_as(model.input, inputs))


@functools.cache
def functional_class() -> type[keras.Model]:
    """The class that `keras.Model(inputs, outputs)` makes, which has no public name."""
    x = keras.Input((1,))
    # Before 3.14 Keras refuses an input that no layer reads. Named, so that the names of later layers do not change.
    return type(keras.Model(x, keras.layers.Identity(name="identity")(x)))


def _functional(model: Any) -> tuple[keras.Model, dict]:
    """The model (or a plain functional twin that shares its layers) with a config that lists nodes."""
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(f"expected a keras.Model. Received: {type(model).__name__}.")
    if not plain_call(model):
        raise UnsupportedModelError(
            f"model '{model.name}' ({type(model).__name__}) overrides call(), so its graph of layers is not all "
            "that it computes. Make one of all of it: kfp.open_model(model)."
        )
    if type(model) is not functional_class():
        try:
            inputs, outputs = model.inputs, model.outputs
        except (AttributeError, ValueError):
            inputs = outputs = None
        if not inputs or not outputs:
            raise UnsupportedModelError(_no_graph_message(model))
        model = keras.Model(inputs, outputs, name=model.name)
    with serializable(model):
        # Whatever the get_config() of a user's class raises.
        with contextlib.suppress(Exception):
            return model, model.get_config()
        try:
            with named_alone(model):
                return model, model.get_config()
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"model '{model.name}' has no configuration to rebuild it from: one of its layers raised "
                f"{type(error).__name__}: {first_line(error)} Keras cannot save it either; give that layer a "
                "get_config()."
            ) from error


def plain_call(model: keras.Model) -> bool:
    """Whether a model computes its graph and nothing else."""
    return type(model).call in (functional_class().call, keras.Sequential.call) or not getattr(model, "inputs", None)


def first_line(error: Exception) -> str:
    """The first line of an exception's text; Keras' own run over a page."""
    lines = [line.strip() for line in _STYLE.sub("", str(error)).splitlines() if line.strip()]
    # Keras says first where something happened, or of which configuration, and then what.
    lines = lines[1:] if len(lines) > 1 and lines[0].startswith("Exception encountered when calling") else lines
    lines = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)] or lines
    return lines[0] if lines else type(error).__name__


def _no_graph_message(model: keras.Model) -> str:
    if isinstance(model, keras.Sequential):
        return (
            f"Sequential model '{model.name}' is not built, so its shapes are unknown. Start it with "
            "keras.Input(shape), or call model.build((None, ...)) first."
        )
    return (
        f"model '{model.name}' is a subclassed {type(model).__name__} without a graph of layers. Make one of it: "
        "kfp.open_model(model), or kfp.open_model(model, input_spec) if it has not been called."
    )


class _Builder:
    """Collects calls; `expand` dissolves one (nested) model into them."""

    def __init__(self):
        self.calls: list[Call] = []
        # A nested model called on shapes other than its own inputs': its recorded inner shapes do not hold.
        self.reshaped = False
        self.paths: dict[int, str] = {}
        self.nested_inputs: dict[int, tuple[TensorRef, ...]] = {}

    def add(self, call: Call) -> TensorRef:
        self.calls.append(call)
        return TensorRef(len(self.calls) - 1, 0)

    def expand(self, model: keras.Model, config: dict, inputs: list[TensorRef], prefix: str) -> list[TensorRef]:
        """Append the calls of `model` applied to `inputs`; return the references of its flat outputs."""
        ops = {op.name: op for op in model.operations}
        nested = {c["name"]: c["config"] for c in config["layers"] if isinstance(ops[c["name"]], keras.Model)}
        made: dict[tuple[str, int, int], TensorRef] = {}
        for key, ref in zip(keras.tree.flatten(_keys(config["input_layers"])), inputs, strict=True):
            made[key.value] = ref
        shapes: dict[tuple[str, int, int], tuple] = {}
        nodes = {
            (c["name"], k): _decode(node, shapes) for c in config["layers"] for k, node in enumerate(c["inbound_nodes"])
        }
        outputs = [key.value for key in keras.tree.flatten(_keys(config["output_layers"]))]
        # Keras numbers the calls of a nested functional model from 1 in "output_layers", from 0 on the edges.
        outputs = [(n, k - (type(ops[n]) is functional_class()), i) for n, k, i in outputs]
        shapes.update({key: tuple(t.shape) for key, t in zip(outputs, model.outputs, strict=True)})
        n_outputs: dict[tuple[str, int], int] = {}
        for name, k, i in shapes:
            n_outputs[name, k] = max(n_outputs.get((name, k), 0), i + 1)
        for name, k in _topological(nodes, made):
            args, kwargs = _resolve(nodes[name, k], made)
            call = self._call(prefix + name, ops[name], args, kwargs)
            known = tuple(shapes.get((name, k, i), ()) for i in range(n_outputs.get((name, k), 0)))
            if name in nested and (inner := self._inner(call, nested[name], prefix + name + "/")) is not None:
                refs = inner
            else:
                ref = self.add(replace(call, output_shapes=known))
                refs = [TensorRef(ref.call, i) for i in range(len(known))]
            made.update({(name, k, i): ref for i, ref in enumerate(refs)})
        return [made[key] for key in outputs]

    def _call(self, path: str, op: Any, args: tuple, kwargs: dict) -> Call:
        args, kwargs = _first_by_place(op, args, kwargs)
        refs = tuple(x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, _Leaf))
        args, kwargs = keras.tree.map_structure(lambda x: x.value if isinstance(x, _Leaf) else x, (args, kwargs))
        inputs = tuple(x.value for x in refs)
        # A layer that lives in several models has one path, the first.
        path = self.paths.setdefault(id(op), path)
        return Call(path, op, args, kwargs, inputs, tuple(x.shape for x in refs), ())

    def _inner(self, call: Call, config: dict, prefix: str) -> list[TensorRef] | None:
        """Outputs of a nested model dissolved into the view; None where it cannot be, and stays one opaque call."""
        model = call.op
        if type(model) is not functional_class() or "input_layers" not in config:
            if not getattr(model, "inputs", None) or not plain_call(model):
                return None
            model, config = _functional(model)
        given = call.args[0]
        if isinstance(given, dict) and not isinstance(call.op.input, dict):
            given = [given[t.name] for t in model.inputs]
        refs = keras.tree.flatten(given)
        if len(refs) != len(model.inputs) or None in refs:
            return None
        actual = dict(zip(call.inputs, call.input_shapes, strict=True))
        self.reshaped |= any(
            tuple(t.shape)[1:] != tuple(actual[r])[1:] for t, r in zip(model.inputs, refs, strict=True)
        )
        self.nested_inputs.setdefault(id(call.op), tuple(refs))
        return self.expand(model, config, refs, prefix)


def _first_by_place(op: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a layer's call, the first one by its place where it was given by its name."""
    if args or not isinstance(op, keras.layers.Layer):
        return args, kwargs
    first = next(iter(inspect.signature(op.call).parameters.values()), None)
    if first is None or first.name not in kwargs or first.kind is not first.POSITIONAL_OR_KEYWORD:
        return args, kwargs
    return (kwargs[first.name],), {name: value for name, value in kwargs.items() if name != first.name}


class _Leaf:
    """Wraps a value so that keras.tree treats it as a leaf."""

    def __init__(self, value: Any, shape: Shape = ()):
        self.value = value
        self.shape = shape


def _keys(structure: Any) -> Any:
    """`input_layers` / `output_layers` of a config with every [name, node, tensor] triple as one leaf."""
    if isinstance(structure, list | tuple) and len(structure) == 3 and isinstance(structure[0], str):
        return _Leaf(tuple(structure))
    if isinstance(structure, dict):
        return {key: _keys(value) for key, value in structure.items()}
    return [_keys(value) for value in structure]


def _decode(node: Any, shapes: dict) -> Any:
    """Arguments of a serialized node: symbolic tensors become leaves that hold their key, the rest its value."""
    if isinstance(node, list | tuple):
        return type(node)(_decode(x, shapes) for x in node)
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == "__keras_tensor__":
        key, shape = tuple(node["config"]["keras_history"]), tuple(node["config"]["shape"])
        shapes[key] = shape
        return _Leaf(key, shape)
    if "class_name" in node and "config" in node:
        return keras.saving.deserialize_keras_object(node)
    return {key: _decode(value, shapes) for key, value in node.items()}


def _resolve(node: dict, made: dict) -> tuple[tuple, dict]:
    def reference(x: Any) -> Any:
        return _Leaf(made[x.value], x.shape) if isinstance(x, _Leaf) else x

    args, kwargs = keras.tree.map_structure(reference, (tuple(node["args"]), dict(node["kwargs"])))
    return args, kwargs


def _topological(nodes: dict, made: dict) -> list[tuple[str, int]]:
    """Kahn's order of the (layer, call index) nodes: linear in the edges, no recursion."""
    known = {key[:2] for key in made}
    waiting: dict[tuple[str, int], int] = {}
    readers: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for node, arguments in nodes.items():
        sources = {x.value[:2] for x in keras.tree.flatten(arguments) if isinstance(x, _Leaf)} - known
        waiting[node] = len(sources)
        for source in sources:
            readers.setdefault(source, []).append(node)
    ready = deque(node for node, count in waiting.items() if not count)
    order = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for reader in readers.get(node, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def _with_shapes(view: ModelView, open_inputs: bool) -> ModelView:
    """The view with every shape computed anew from the inputs, unknown sides taken at their nominal sizes.

    Where a layer takes more than these, a window of 400 samples of a sound, or multiples of a number, others are tried.
    """
    for side in _SIDES:
        try:
            return _sized(view, open_inputs, side)
        except ValueError as error:
            if not open_inputs:
                raise
            problem = error
    raise UnsupportedModelError(
        f"model '{view.name}' leaves sides of its inputs open, and its layers fit none of the sizes that were "
        f"tried, up to {max(_SIDES)}: {first_line(problem)} Give it inputs with fixed sizes."
    ) from problem


def _sized(view: ModelView, open_inputs: bool, side: int) -> ModelView:
    """The view with open sides of that size, and as many times as many tokens."""
    specs: dict[TensorRef, Any] = {}
    calls = []
    for number, call in enumerate(view.calls):
        if not call.inputs:
            shape = call.output_shapes[0]
            size = side * NOMINAL_TOKENS // NOMINAL_SIZE if "int" in call.op.dtype else side
            shape = (shape[0], *(size if d is None else d for d in shape[1:]))
            spec = [keras.KerasTensor(shape, dtype=call.op.dtype)]
            calls.append(replace(call, output_shapes=(shape,)))
        else:
            args, kwargs = substitute((call.args, call.kwargs), specs)
            spec = keras.tree.flatten(output_spec(call.op, args, kwargs))
            shapes = tuple(tuple(specs[ref].shape) for ref in call.inputs)
            _check_joined(call, shapes)
            made = tuple(tuple(s.shape) for s in spec)
            calls.append(replace(call, input_shapes=shapes, output_shapes=made))
        specs.update({TensorRef(number, i): s for i, s in enumerate(spec)})
    return replace(view, calls=tuple(calls), open_inputs=open_inputs)


def _check_joined(call: Call, shapes: tuple[Shape, ...]) -> None:
    """Raise `ValueError` where sides differ that are to be alike; Keras looks at them when a layer is built alone."""
    if type(call.op).__name__ != "Concatenate":
        return
    axis = call.op.axis % len(shapes[0])
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1:
        raise ValueError(f"'{call.path}' joins tensors of shapes {', '.join(map(str, shapes))}.")


def output_spec(op: Any, args: tuple, kwargs: dict) -> Any:
    """What an operation gives for symbolic arguments: `EinsumDense` with the sides that its equation takes over.

    Keras leaves those open that the layer was told nothing of.
    """
    outputs = op.compute_output_spec(*args, **kwargs)
    if not isinstance(op, keras.layers.EinsumDense) or not args or "..." in op.equation:
        return outputs
    read, _, made = re.split(",|->", op.equation)
    sides = dict(zip(read, args[0].shape, strict=True))
    shape = [sides.get(letter) if side is None else side for letter, side in zip(made, outputs.shape, strict=True)]
    return keras.KerasTensor(shape, dtype=outputs.dtype)


def substitute(structure: Any, values: dict[TensorRef, Any]) -> Any:
    """The structure with every `TensorRef` replaced by its value."""
    if isinstance(structure, TensorRef):
        return values[structure]
    if isinstance(structure, dict):
        return {key: substitute(value, values) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(substitute(value, values) for value in structure)
    return structure
