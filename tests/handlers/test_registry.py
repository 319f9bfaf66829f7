"""What is registered, what it lacks, and that nobody guesses at what is not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from alike import FAMILIES, around, samples, subclasses
from builders import array
from keras import layers

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.compensators import by_name
from keras_filterprune.compensators.adapted_models import wrappable
from keras_filterprune.handlers import activation, registry
from keras_filterprune.latency.operators import list_operators
from keras_filterprune.latency.sized import SizedOperators
from keras_filterprune.layer_pruning.units import find_units
from keras_filterprune.tfmot.description import describe
from keras_filterprune.tracing import trace_model

pytestmark = pytest.mark.portable

# ------------------------------------------------------------------------------------------------------- unregistered


def double(self, inputs):
    return 2 * super(type(self), self).call(inputs)


STRANGE = subclasses("Strange", call=double)
ALIKE = set("ReLU Activation Dropout Rescaling Add Multiply MaxPooling2D ZeroPadding2D UpSampling2D".split())
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_unregistered_subclass_is_known_to_nobody(family):
    model = around(family, STRANGE)
    layer, graph = model.get_layer("strange"), kfp.analyze(model)
    assert registry.keras_class(layer) is registry.linear_of(layer) is registry.statistics_of(layer) is None
    assert not activation.is_relu(layer)
    assert not activation.is_activation(layer)
    assert "strange" not in wrappable(graph)
    assert not any("strange" in unit.layers for unit in find_units(graph)[0])
    if family in ALIKE:
        # What it does to one number, or to one channel, and another is found out by trying.
        assert "before" in graph.by_name
        return
    (reason,) = [pin.reason for pin in graph.pinned if pin.layer == "before"]
    taught = (
        f"feeds unsupported layer 'strange' (Strange{family}); register_handler(Strange{family}, like=...) teaches it"
    )
    # Its call() looks for itself among the classes of what it runs on.
    assert reason.startswith(f"{taught}; it is not opened: it stops in its call() at test_registry.py")
    assert SizedOperators.of(graph, graph_sizes(graph)).unknown == {"strange": f"Strange{family}"}
    with pytest.raises(
        errors.UnsupportedLayerError, match=f"which has no kernel .*Strange{family}, like=...\\) teaches"
    ):
        kfp.layers.BatchBridgeout(layer)
    with pytest.raises(errors.UnsupportedModelError, match=f"layer 'strange' is a .*Strange{family}, which tf_keras"):
        describe(model)


@pytest.mark.parametrize("kind", ["Add", "Multiply", "ReLU", "BatchNormalization", "Conv2D", "Relu"])
def test_a_name_is_not_enough(kind):
    layer = type(kind, (layers.Layer,), {"call": lambda self, x: 2 * x})(name="strange")
    assert registry.keras_name(layer) == ""
    assert not activation.is_activation(layer)
    inputs = keras.Input((8, 8, 3))
    # Opened, it would be a product.
    graph = trace_model(keras.Model(inputs, layers.Conv2D(4, 3)(layer(layers.Conv2D(4, 3)(inputs)))))
    assert SizedOperators.of(graph, graph_sizes(graph)).unknown == {"strange": kind}


@every_family
def test_the_layer_of_keras_is_known(family):
    """So that it is the missing registration that hides the subclass."""
    graph = kfp.analyze(around(family))
    assert "before" in {group.name for group in graph.groups}
    assert SizedOperators.of(graph, graph_sizes(graph)).unknown == {}


def graph_sizes(graph) -> np.ndarray:
    return np.array([group.size for group in graph.groups])


# Every family with weights meets every second compensator; the one that trains meets two of them.
UNTOUCHED = [
    (family, compensate)
    for number, family in enumerate(list(FAMILIES)[:6])
    for turn, compensate in enumerate(sorted(set(by_name._NAMES) - {"reconstruct"}))
    if (number + turn) % 2 == 0
] + [("Conv2D", "reconstruct"), ("BatchNormalization", "reconstruct")]


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("family", "compensate"), UNTOUCHED)
def test_no_compensator_touches_an_unregistered_subclass(family, compensate):
    model, (x, _) = around(family, STRANGE), samples("image")
    if compensate == "reconstruct":
        compensate = kfp.compensators.Reconstruct(steps=2)
    small = kfp.prune_model(model, "l2", 0.9, data=x, compensate=compensate, progress=False)
    assert small.count_params() < model.count_params()
    for old, new in zip(model.get_layer("strange").weights, small.get_layer("strange").weights, strict=True):
        np.testing.assert_array_equal(array(old.value), array(new.value))


def test_bridgeout_leaves_unregistered_subclasses_out():
    wrapped = kfp.apply_bridgeout(around("Conv2D", STRANGE))
    names = [layer.name for layer in wrapped.layers if isinstance(layer, kfp.layers.BatchBridgeout)]
    assert names == [f"{name}_bridgeout" for name in ("first", "before", "after", "behind")]


# ---------------------------------------------------------------------------------------------------------- incomplete


class Bare(keras.layers.Layer):
    """A layer that has next to nothing of what it is registered like."""

    weights_of: tuple[str, ...] = ()

    def build(self, shape):
        for name in self.weights_of:
            self.add_weight((1, 1, shape[-1], shape[-1]) if "kernel" in name else (shape[-1],), name=name)

    def call(self, x):
        return x


STATISTICS = ("moving_mean", "moving_variance")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("kind", "weights", "has", "missing"),
    [
        ("BatchNormalization", STATISTICS, {"epsilon": 1e-3}, "attribute 'axis'"),
        ("BatchNormalization", STATISTICS, {"axis": -1}, "attribute 'epsilon'"),
        ("BatchNormalization", STATISTICS[:1], {"axis": -1, "epsilon": 1e-3}, "weight 'moving_variance'"),
        (
            "Conv2D",
            ("kernel",),
            {"kernel_size": (1, 1), "strides": (1, 1), "padding": "same", "groups": 1},
            "attribute 'dilation_rate'",
        ),
        ("Dense", (), {"units": 5}, "weight 'kernel'"),
        ("Dense", ("kernel",), {}, "attribute 'units'"),
    ],
)
def test_what_a_registered_layer_lacks_is_said(kind, weights, has, missing):
    mine = type("Mine", (Bare,), {"weights_of": weights} | has)
    kfp.register_handler(mine, like=getattr(layers, kind))
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 1)(mine(name="odd")(layers.Conv2D(5, 3)(inputs))))
    sentence = (
        rf"layer 'odd' \(Mine\) is registered with handler \w+, like {kind}, which expects a layer with {missing}\. "
        r"Received: one without\. Give it to the layer, or register a handler of its own \(kfp\.handlers\.Handler\)\."
    )
    with pytest.raises(errors.UnsupportedLayerError, match=sentence):
        kfp.analyze(model)


@pytest.mark.usefixtures("registry")
def test_what_a_configuration_lacks_is_said():
    class Mine(layers.Conv2D):
        def __init__(self, **kwargs):
            super().__init__(**{"filters": 8, "kernel_size": 3} | kwargs)

        def get_config(self):
            return {name: value for name, value in super().get_config().items() if name != "groups"}

    kfp.register_handler(Mine, like=layers.Conv2D)
    stack = [layers.Conv2D(12, 3), Mine(name="odd"), layers.Conv2D(10, 3)]
    with pytest.raises(errors.UnsupportedLayerError, match=r"'odd' \(Mine\) is .* with 'groups' in its get_config\(\)"):
        kfp.prune_model(keras.Sequential([keras.Input((12, 12, 3)), *stack]), "l2", 0.5, progress=False)


@pytest.mark.usefixtures("registry")
def test_a_constructor_that_takes_no_width_is_named_without_its_configuration():
    class Mine(layers.Conv2D):
        def __init__(self, name=None):
            super().__init__(8, 3, name=name)

    kfp.register_handler(Mine, like=layers.Conv2D)
    stack = [layers.Conv2D(12, 3), Mine("odd"), layers.Conv2D(10, 3)]
    with pytest.raises(errors.SurgeryError, match=r"'odd' \(Mine\) refuses .*unexpected keyword argument") as caught:
        kfp.prune_model(keras.Sequential([keras.Input((12, 12, 3)), *stack]), "l2", 0.5, progress=False)
    assert "kernel_initializer" not in str(caught.value)


@pytest.mark.usefixtures("registry")
def test_what_prices_lack_of_a_registered_layer_is_said():
    mine = type("Pool", (Bare,), {})
    kfp.register_handler(mine, like=layers.MaxPooling2D)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 1)(mine(name="odd")(layers.Conv2D(5, 3)(inputs))))
    with pytest.raises(
        errors.UnsupportedLayerError, match=r"'odd' \(Pool\) .* like MaxPooling2D.* attribute 'pool_size'"
    ):
        list_operators(kfp.analyze(model))


@pytest.mark.usefixtures("registry")
def test_mistakes_of_a_handler_are_not_blamed_on_the_layer():
    class Mine(Bare):
        pass

    @kfp.register_handler(Mine)
    class Mistaken(kfp.handlers.Handler):
        def trace(self, call, inputs, t):
            return self.nothing

    inputs = keras.Input((4,))
    with pytest.raises(AttributeError, match="'Mistaken' object has no attribute 'nothing'"):
        kfp.analyze(keras.Model(inputs, Mine()(inputs)))


@pytest.mark.usefixtures("registry")
def test_the_last_registration_holds():
    class Mine(layers.Conv2D):
        pass

    class Other(Mine):
        pass

    kfp.register_handler(Mine, like=layers.Conv2D)
    kfp.register_handler(Other, like=Mine)
    assert registry.keras_class(Other(1, 1)) is layers.Conv2D
    kfp.register_handler(Mine)(type("Own", (kfp.handlers.Elementwise,), {}))
    assert registry.keras_class(Mine(1, 1)) is None
    assert type(registry.handler_for(Mine(1, 1))).__name__ == "Own"
    assert registry.keras_class(Other(1, 1)) is layers.Conv2D


@pytest.mark.usefixtures("registry")
def test_relu_is_what_has_the_attributes_of_one():
    class Mine(layers.ReLU):
        pass

    class Halve(Bare):
        pass

    kfp.register_handler(Mine, Halve, like=layers.ReLU)
    assert activation.is_relu(Mine())
    assert not activation.is_relu(Mine(6.0))
    assert activation.rectifier(Mine(6.0)) == "relu6"
    assert not activation.is_relu(Mine(negative_slope=0.1))
    assert activation.rectifier(Halve()) is None
