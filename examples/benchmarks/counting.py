"""Multiply-accumulates, counted without the rules of the library: in a graph of TensorFlow, and from shapes."""

import math
import re

import keras


def graph_macs(model: keras.Model, specs: list, structure) -> int:
    """Multiply-accumulates of a model, read off the TensorFlow graph of a batch of one: whatever stands in its layers.

    Args:
        model: any model.
        specs: its flat inputs as `tf.TensorSpec`s, every side known.
        structure: of its inputs.
    """
    import tensorflow as tf

    recurrent = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)]
    rolled = [layer.unroll for layer in recurrent]
    for layer in recurrent:
        layer.unroll = True

    def flat(*tensors):
        return model(keras.tree.pack_sequence_as(structure, tensors), training=False)

    try:
        graph = tf.function(flat).get_concrete_function(*specs).graph
        return sum(_macs(op) for part in [graph, *_inner(graph)] for op in part.get_operations())
    finally:
        for layer, value in zip(recurrent, rolled, strict=True):
            layer.unroll = value


def _inner(graph) -> list:
    return [function.graph for function in graph._functions.values() if hasattr(function, "graph")]


def _macs(op) -> int:
    shapes = [tuple(x.shape) if x.shape.rank is not None else () for x in op.inputs]
    made = tuple(op.outputs[0].shape) if op.outputs and op.outputs[0].shape.rank is not None else ()
    if op.type in ("Conv2D", "Conv3D"):
        if not _reads_weight(op.inputs[1].op):
            return 0  # How Keras cuts images into patches.
        return _volume(made) * _volume(shapes[1][:-1])
    if op.type == "DepthwiseConv2dNative":
        return _volume(made) * _volume(shapes[1][:2])
    if op.type in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):
        return _volume(shapes[2]) * _volume(shapes[1][:-1])
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return _volume(made) * (shapes[0][-2 if transposed else -1] or 1)
    if op.type == "Einsum":
        return _letters(op.get_attr("equation").decode(), shapes)
    return 0


def _reads_weight(op) -> bool:
    """Whether a filter is a weight, or made of one."""
    return op.type in ("ReadVariableOp", "Placeholder") or any(_reads_weight(x.op) for x in op.inputs)


def call_macs(op, inputs: list[tuple], output: tuple) -> int:
    """Multiply-accumulates of one call of a Keras layer or operation, from the shapes of its tensors."""
    name = type(op).__name__
    if name == "Matmul":
        return _volume(output) * (inputs[0][-1] or 1)
    if name == "Einsum":
        return _letters(op.subscripts, inputs)
    if name == "DotProductAttention":
        return 2 * _volume(inputs[0]) * inputs[1][1]
    if name == "EinsumDense":
        return _letters(op.equation, [inputs[0], tuple(op.kernel.shape)])
    kernels = [v for v in getattr(op, "weights", ()) if "kernel" in v.name and len(v.shape) > 1]
    sizes = sum(_volume(v.shape) for v in kernels)
    if name in ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"):
        numbers, both = op.weights[0].shape[-1] * op.weights[0].shape[-2], sum(_volume(v.shape) for v in kernels[1:3])
        # Masks come before or after; the last sequence of as many numbers as values have is that of the values.
        values = next((x for x in inputs[::-1] if len(x) == len(output) and x[-1] == kernels[2].shape[0]), output)
        scores = 2 * _volume(output[:-1]) * _volume(values[1:-1]) * numbers
        return _volume(output[:-1]) * (sizes - both) + _volume(values[:-1]) * both + scores
    if name.endswith("Transpose") and kernels:
        return _volume(inputs[0][:-1]) * sizes
    if name in ("LSTM", "GRU", "SimpleRNN", "Bidirectional"):
        return inputs[0][1] * sizes
    return _volume(output[:-1]) * sizes if kernels and output else 0


def _letters(equation: str, shapes: list[tuple]) -> int:
    """The product of the sizes of all letters of an equation."""
    sizes = {}
    for term, shape in zip(re.split(",|->", equation.replace(" ", "")), shapes, strict=False):
        if not shape:  # TensorFlow does not know it.
            continue
        before, dots, after = term.partition("...")
        letters = [*before, *range(len(before) + len(after) - len(shape), 0), *after] if dots else [*term]
        sizes.update({n: s for n, s in zip(letters, shape, strict=True) if s not in (None, 1)})
    return math.prod(sizes.values())


def _volume(shape) -> int:
    return math.prod(n for n in shape if n is not None)
