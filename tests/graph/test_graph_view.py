"""The flat view of a model: its edges, its shapes, and what is refused."""

import keras
import numpy as np
import pytest
from builders import assert_all_equal, conv, predict
from hypothesis import given, settings
from keras import layers, ops
from random_graphs import RandomGraph, random_graphs
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.graph.keras_view import NOMINAL_SIZE, view_model
from keras_filterprune.probe.execute import Executor
from keras_filterprune.probe.execute import random_inputs as inputs_of_view
from keras_filterprune.tracing import trace_model


@pytest.fixture(scope="module", params=ZOO)
def model(request):
    return ZOO[request.param]()


def assert_view_computes(model) -> None:
    """The view, executed call by call, gives the model's own outputs, and every call's in the shapes it records."""
    view, x = view_model(model), random_inputs(model, batch=3)

    def apply(call, args, kwargs):
        outputs = call.op(*args, **kwargs)
        # Those of open inputs were computed for another size.
        shapes = () if view.open_inputs else call.output_shapes
        for shape, y in zip(shapes, keras.tree.flatten(outputs), strict=False):
            expected = tuple(shape or y.shape)
            assert all(n in (None, m) for n, m in zip(expected, y.shape, strict=True)), call.path
        return outputs

    tensors = [ops.convert_to_tensor(a) for a in keras.tree.flatten(x)]
    assert_all_equal([ops.convert_to_numpy(y) for y in Executor(view, apply).run(tensors)], predict(model, x))


def nested(model) -> list[keras.Model]:
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def recorded_edges(model) -> list[tuple]:
    """(operation, where its tensors come from) of every call, as `clone_model` visits them."""
    plain = keras.Model(model.inputs, model.outputs)
    made: dict[int, tuple[str, int]] = {}
    alive, edges = [], []

    def clone(layer):
        if isinstance(layer, layers.Lambda):
            return layers.Lambda.from_config(layer.get_config(), safe_mode=False)
        return type(layer).from_config(layer.get_config())

    def record(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        symbolic = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        edges.append((operation.name, tuple(made.get(id(x), (x.name, 0)) for x in symbolic)))
        for i, y in enumerate(keras.tree.flatten(outputs)):
            made[id(y)] = operation.name, i
            alive.append(y)  # an id is only unique while the tensor lives
        return outputs

    keras.models.clone_model(plain, clone_function=clone, call_function=record)
    return sorted(edges)


def viewed_edges(view) -> list[tuple]:
    return sorted(
        (call.path, tuple((view.calls[ref.call].path, ref.index) for ref in call.inputs))
        for call in view.calls
        if call.inputs
    )


def test_view_computes_what_the_model_computes(model):
    assert_view_computes(model)


def test_calls_read_only_what_earlier_calls_made(model):
    view = view_model(model)
    for number, call in enumerate(view.calls):
        assert all(ref.call < number for ref in call.inputs)
        assert len(call.inputs) == len(call.input_shapes)
        for ref, shape in zip(call.inputs, call.input_shapes, strict=True):
            assert view.calls[ref.call].output_shapes[ref.index] == tuple(shape)


def test_edges_equal_those_that_clone_model_visits(model):
    if nested(model):
        # The view dissolves them; `clone_model` shows each as one operation.
        assert all("/" in c.path for c in view_model(model).calls if c.path.startswith(nested(model)[0].name + "/"))
    else:
        assert viewed_edges(view_model(model)) == recorded_edges(model)


def test_viewing_leaves_the_model_alone(model):
    before = repr(model.get_config()), model.name, [op.name for op in model.layers]
    view_model(model)
    assert (repr(model.get_config()), model.name, [op.name for op in model.layers]) == before


@settings(max_examples=12)
@given(graph=random_graphs)
def test_random_graphs(graph: RandomGraph):
    test_view_computes_what_the_model_computes(graph.model)
    test_calls_read_only_what_earlier_calls_made(graph.model)
    test_edges_equal_those_that_clone_model_visits(graph.model)
    test_viewing_leaves_the_model_alone(graph.model)


# Structures that the zoo does not have.


def block(shape=(6, 6, 3), name="block") -> keras.Model:
    x = keras.Input(shape, name="block_in")
    y = conv(4, "inner")(x)
    return keras.Model(x, [y, layers.ReLU(name="second")(y)], name=name)


def test_paths_of_nested_layers_name_the_models_around_them():
    inner = keras.Input((6, 6, 3))
    middle = keras.Model(inner, block()(inner)[1], name="middle")
    x = keras.Input((6, 6, 3), name="image")
    paths = [call.path for call in view_model(keras.Model(x, middle(x))).calls]
    assert paths == ["image", "middle/block/inner", "middle/block/second"]


def test_unused_output_of_a_nested_model_is_no_output_of_the_view():
    x = keras.Input((6, 6, 3))
    first, _ = block()(x)
    model = keras.Model(x, layers.Flatten()(first))
    assert len(view_model(model).outputs) == 1
    assert_view_computes(model)


def test_unused_output_of_an_operation_has_no_shape_in_the_view():
    x = keras.Input((6, 6, 3))
    _, middle, _ = ops.split(conv(9, "conv")(x), 3, axis=-1)
    model = keras.Model(x, middle)
    shapes = [c.output_shapes for c in view_model(model).calls if type(c.op).__name__ == "Split"]
    assert shapes == [((), (None, 6, 6, 3))]
    assert_view_computes(model)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_nested_model_as_output_keeps_its_call(times):
    """`get_config()` numbers the calls of nested models differently for outputs and for edges."""
    inner = keras.Input((6, 6, 4))
    twice = keras.Model(inner, conv(4, "inner", activation="tanh")(inner), name="twice")
    x = keras.Input((6, 6, 3))
    chain = [conv(4, "stem")(x)]
    for _ in range(times):
        chain.append(twice(chain[-1]))
    model = keras.Model(x, chain[1:])
    assert_view_computes(model)
    assert_view_computes(keras.Model(x, chain[-1]))
    view = view_model(model)
    assert len({ref.call for ref in view.outputs}) == times
    assert len({id(c.op) for c in view.calls if c.path == "twice/inner"}) == 1


def test_first_call_of_a_nested_model_may_be_the_only_output():
    x = keras.Input((6, 6, 3))
    inner = block()
    first, _ = inner(x)
    inner(first[..., :3])  # a call outside of the model
    assert_view_computes(keras.Model(x, first))


def test_second_call_of_a_nested_model_may_be_the_only_one_inside():
    x = keras.Input((6, 6, 3))
    inner = block()
    inner(keras.Input((6, 6, 3)))
    assert_view_computes(keras.Model(x, inner(x)[1]))


def test_layer_called_outside_the_model_too_is_seen_once():
    x = keras.Input((6, 6, 3))
    shared = conv(3, "shared")
    shared(shared(x))
    model = keras.Model(x, shared(x))
    assert [call.path for call in view_model(model).calls if call.inputs] == ["shared"]
    assert_view_computes(model)


def test_layer_shared_across_nesting_levels_has_one_path():
    shared = conv(3, "shared")
    inner = keras.Input((6, 6, 3))
    nest = keras.Model(inner, shared(inner), name="nest")
    x = keras.Input((6, 6, 3))
    model = keras.Model(x, nest(shared(x)))
    view = view_model(model)
    assert [(c.path, id(c.op)) for c in view.calls if c.inputs] == [("shared", id(shared))] * 2
    assert_view_computes(model)
    assert {pin.layer for pin in kfp.analyze(model).pinned} == {"shared"}
    assert kfp.budgets.CostModel(kfp.analyze(model)).params(np.zeros(0, int)) == model.count_params()


def test_input_that_is_output_and_repeated_outputs_stay_in_order():
    x = keras.Input((6, 6, 3), name="image")
    y = conv(4, "conv")(x)
    model = keras.Model(x, [y, x, y])
    view = view_model(model)
    assert view.outputs[0] == view.outputs[2] != view.outputs[1] == view.inputs[0]
    assert_view_computes(model)


def test_dict_inputs_and_outputs_of_nested_models():
    a, b = keras.Input((6, 6, 3), name="a"), keras.Input((6, 6, 4), name="b")
    inner = keras.Model({"b": b, "a": a}, {"y": conv(4, "ya")(a), "x": conv(5, "xb")(b)}, name="inner")
    p, q = keras.Input((6, 6, 3), name="p"), keras.Input((6, 6, 4), name="q")
    out = inner({"a": p, "b": q})
    model = keras.Model({"q": q, "p": p}, {"n": out["y"], "m": ops.relu(out["x"])})
    assert_view_computes(model)
    x = random_inputs(model)
    reads = {c.path: view_model(model).calls[c.inputs[0].call].path for c in view_model(model).calls if c.inputs}
    assert reads["inner/ya"] == "p"
    assert reads["inner/xb"] == "q"
    assert set(x) == {"p", "q"}


def test_dict_fed_to_a_nested_model_with_list_inputs():
    b, a = keras.Input((6, 6, 4), name="b"), keras.Input((6, 6, 3), name="a")
    inner = keras.Model([b, a], layers.Concatenate(name="cat")([a, b]), name="inner")
    p, q = keras.Input((6, 6, 3), name="p"), keras.Input((6, 6, 4), name="q")
    assert_view_computes(keras.Model([p, q], inner({"a": p, "b": q})))


def test_tensors_in_keyword_arguments_are_edges():
    x, y = keras.Input((5, 4), name="x"), keras.Input((7, 4), name="y")
    out = layers.MultiHeadAttention(2, 3, name="attention")(query=x, value=y, key=ops.tanh(y))
    model = keras.Model([x, y], out)
    (call,) = [c for c in view_model(model).calls if c.path == "attention"]
    assert len(call.inputs) == 3
    assert_view_computes(model)


def test_functional_subclass_is_viewed_like_a_plain_model():
    class Mine(keras.Model):
        pass

    x = keras.Input((6, 6, 3), name="image")
    model = Mine(x, conv(4, "conv")(x), name="mine")
    assert [c.path for c in view_model(model).calls] == ["image", "conv"]
    assert view_model(model).name == "mine"
    assert_view_computes(model)


def test_nested_functional_subclass_is_dissolved():
    class Mine(keras.Model):
        pass

    inner = keras.Input((6, 6, 3))
    x = keras.Input((6, 6, 3), name="image")
    model = keras.Model(x, ops.relu(Mine(inner, conv(4, "conv")(inner), name="mine")(x)))
    assert "mine/conv" in [c.path for c in view_model(model).calls]
    assert_view_computes(model)


@keras.saving.register_keras_serializable(package="test_graph_view")
class OwnForward(keras.Model):
    """A model with its own `call`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv(3, "conv")

    def call(self, x):
        return self.conv(x) + x


def test_nested_subclassed_model_stays_one_opaque_call():
    x = keras.Input((6, 6, 3), name="image")
    y = layers.GlobalAveragePooling2D()(OwnForward(name="own")(conv(3, "stem")(x)))
    model = keras.Model(x, layers.Dense(2)(y))
    assert [c.path for c in view_model(model).calls if c.path.startswith("own")] == ["own"]
    assert_view_computes(model)
    (pin,) = [p for p in trace_model(model).pinned if p.layer == "stem"]
    assert "feeds unsupported layer 'own' (OwnForward)" in pin.reason


def test_functional_subclass_with_its_own_call_is_refused():
    """A model built with inputs and outputs, whose `call` computes something else."""

    class Doubled(keras.Model):
        def call(self, x, training=None):
            return 2 * super().call(x, training=training)

    x = keras.Input((6, 6, 3), name="image")
    model = Doubled(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(conv(4, "conv")(x))))
    with pytest.raises(errors.UnsupportedModelError, match=r"overrides call\(\)"):
        view_model(model)
    # Inside another model it is one operation like any other.
    y = layers.Dense(2, name="last")(model(layers.ReLU(name="act")(conv(3, "stem")(x))))
    outer = keras.Model(x, y)
    assert [c.path for c in view_model(outer).calls] == [*("image", "stem", "act"), model.name, "last"]
    assert_view_computes(outer)
    (pin,) = [p for p in trace_model(outer).pinned if p.layer == "stem"]
    assert f"feeds unsupported layer '{model.name}' (Doubled)" in pin.reason


def test_unknown_sizes_are_taken_as_the_nominal_size():
    x = keras.Input((None, None, 3), name="image")
    model = keras.Model(x, layers.GlobalMaxPooling2D()(conv(4, "conv", strides=2)(x)))
    view = view_model(model)
    assert view.open_inputs
    assert view.calls[1].output_shapes == ((None, NOMINAL_SIZE // 2, NOMINAL_SIZE // 2, 4),)
    assert inputs_of_view(view)[0].shape == (2, NOMINAL_SIZE, NOMINAL_SIZE, 3)


def test_sizes_left_open_inside_the_model_are_no_obstacle():
    """`EinsumDense` says None for a side that its input names."""
    x = keras.Input((5, 6))
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 8), name="mix")(layers.Dense(8, name="first")(x))
    graph = kfp.analyze(keras.Model(x, layers.Dense(2, name="last")(layers.Dense(4, name="fc")(y))))
    assert [g.name for g in graph.groups] == ["first", "mix", "fc"]


# What is refused, in which words.


def test_subclassed_model_is_refused_with_a_way_out():
    model = OwnForward(name="mine")
    model(np.zeros((1, 6, 6, 3), "float32"))
    with pytest.raises(errors.UnsupportedModelError) as error:
        trace_model(model)
    assert str(error.value) == (
        "model 'mine' is a subclassed OwnForward without a graph of layers. Make one of it: kfp.open_model(model), or "
        "kfp.open_model(model, input_spec) if it has not been called."
    )


def test_unbuilt_sequential_is_refused_with_a_way_out():
    model = keras.Sequential([layers.Dense(3)], name="open")
    with pytest.raises(errors.UnsupportedModelError) as error:
        kfp.analyze(model)
    assert str(error.value) == (
        "Sequential model 'open' is not built, so its shapes are unknown. Start it with keras.Input(shape), or call "
        "model.build((None, ...)) first."
    )


def test_sequential_is_accepted_once_built():
    model = keras.Sequential([layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    model.build((None, 4))
    assert [g.name for g in kfp.analyze(model).groups] == ["a"]


@pytest.mark.parametrize("thing", [None, "model.keras", layers.Dense(2), np.zeros(3)], ids=lambda t: type(t).__name__)
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(errors.UnsupportedModelError) as error:
        kfp.analyze(thing)
    assert str(error.value) == f"expected a keras.Model. Received: {type(thing).__name__}."


def test_refusals_are_value_errors():
    with pytest.raises(ValueError, match=r"expected a keras\.Model"):
        kfp.prune_model(3)


def too_short():
    inputs = keras.Input((None, 1))
    return inputs, layers.Conv1D(4, 9, 5)(layers.Conv1D(4, 127, 4)(inputs))


def too_deep():
    x = inputs = keras.Input((None, None, 3))
    for _ in range(8):
        x = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same")(x))
    return inputs, x


def windows_of_five():
    inputs = keras.Input((None, 4))
    return inputs, layers.Reshape((-1, 5, 8))(layers.Dense(8)(inputs))


def thirds_put_together():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2DTranspose(4, 3, 3)(layers.Conv2D(4, 3, 3)(inputs))
    return inputs, layers.Concatenate()([inputs, x])


def few_tokens():
    inputs = keras.Input((None,), dtype="int32")
    return inputs, layers.Conv1D(4, 12)(layers.Embedding(9, 4)(inputs))


@pytest.mark.parametrize("build", [too_short, too_deep, windows_of_five, thirds_put_together, few_tokens])
def test_open_sides_are_such_as_all_layers_take(build):
    inputs, x = build()
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6, name="hidden")(x)))
    small, report = kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), return_report=True, progress=False)
    assert report.verification <= 1e-5
    assert small.get_layer("hidden").units == 3


def test_open_sides_that_nothing_fits_are_said():
    inputs = keras.Input((None, 4))
    x = layers.Concatenate(name="odd")([layers.ZeroPadding1D((0, 1))(inputs), inputs])
    with pytest.raises(errors.UnsupportedModelError, match=r"tried, up to 27720: 'odd' joins tensors of shapes"):
        kfp.analyze(keras.Model(inputs, x))
