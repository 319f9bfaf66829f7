"""Why layers stay unpruned, and what else of their models still is."""

import keras
import numpy as np
import pytest
from builders import conv
from keras import layers, ops
from rebuilt import chain, image, prune, reason

import keras_filterprune as kfp

PACKAGE = "test_pinned"


@pytest.mark.usefixtures("registry")
def test_tied_variables_are_pinned():
    class Tied(layers.Layer):
        """Dense with the kernel of another layer."""

        def __init__(self, source, **kwargs):
            super().__init__(**kwargs)
            self.units, self.kernel = source.units, source.kernel

        def call(self, x):
            return ops.matmul(x, self.kernel)

        def get_config(self):
            return {"name": self.name}

    kfp.register_handler(Tied, like=layers.Dense)
    x = keras.Input((8,))
    a = layers.Dense(8, name="a")
    y = a(x)
    model = keras.Model(x, layers.Dense(2, name="out")(layers.Dense(6, name="c")(Tied(a, name="b")(y))))
    assert "is indexed by a weight that layers 'a' and 'b' share" in reason(model, "a")
    assert [g.name for g in kfp.analyze(model).groups] == ["c"]


def test_lora_enabled_dense_is_pinned():
    x = image()
    y = layers.Dense(8, name="fc")(layers.GlobalAveragePooling2D()(conv(8, "a")(x)))
    model = keras.Model(x, layers.Dense(3, name="out")(y))
    model.get_layer("fc").enable_lora(2)
    expected = "belongs to layer 'fc' (Dense), whose weight 'lora_kernel_a' no handler knows"
    assert expected in reason(model, "fc")
    assert expected in reason(model, "a")


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantized_dense_is_pinned(mode):
    x = image()
    y = layers.Dense(8, name="fc")(layers.GlobalAveragePooling2D()(conv(8, "a")(x)))
    model = keras.Model(x, layers.Dense(3, name="out")(y))
    model.get_layer("fc").quantize(mode)
    assert "belongs to layer 'fc' (Dense), whose weight" in reason(model, "fc")
    assert "no handler knows" in reason(model, "a")


def test_model_around_a_pinned_special_dense_can_still_be_pruned():
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(8, "a")(conv(6, "first")(x)))
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Dense(8, name="fc")(y)))
    model.get_layer("fc").enable_lora(2)
    small = prune(model)
    assert small.get_layer("first").filters == 3
    assert small.get_layer("a").filters == 8
    assert small.get_layer("fc").lora_enabled


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_model_around_a_quantized_dense_can_still_be_pruned(mode):
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(8, "a")(conv(6, "first")(x)))
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Dense(8, name="fc")(y)))
    model.get_layer("fc").quantize(mode)
    small = prune(model)
    assert small.get_layer("first").filters == 3
    assert small.get_layer("fc").quantization_mode == mode


def adapted(layer):
    """LoRA that changes what the layer computes."""
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))


OTHER_KERNELS = {
    "LoRA": adapted,
    "int8": lambda layer: layer.quantize("int8"),
    "int4": lambda layer: layer.quantize("int4"),
}


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "bn", "linear"])
@pytest.mark.parametrize("kind", OTHER_KERNELS)
def test_layers_whose_kernel_is_not_all_are_not_refitted(kind, compensate):
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(8, "a")(conv(6, "first")(x)))
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Dense(8, name="fc")(y)))
    OTHER_KERNELS[kind](model.get_layer("fc"))
    data = np.random.default_rng(0).normal(size=(32, *x.shape[1:])).astype("float32")
    small = kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), data=data, compensate=compensate, progress=False)
    assert small.get_layer("first").filters == 3
    for a, b in zip(model.get_layer("fc").weights, small.get_layer("fc").weights, strict=True):
        if a.name != "bias":
            np.testing.assert_array_equal(a, b)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Halve(layers.Layer):
    """A user's layer that the library does not know."""

    def call(self, x):
        return x / 2


@keras.saving.register_keras_serializable(package=PACKAGE)
class Noisy(layers.Layer):
    """Another, which cannot be opened."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


@keras.saving.register_keras_serializable(package=PACKAGE)
class MyConv(layers.Conv2D):
    """A user's subclass of a layer that it does know."""


def test_unknown_layer_is_pinned_and_the_reason_shows_the_way_out():
    model = chain(conv(8, "a"), Noisy(name="noisy"), conv(6, "b"))
    assert reason(model, "a") == (
        "feeds unsupported layer 'noisy' (Noisy); register_handler(Noisy, like=...) teaches it; it is not opened: it "
        "draws random numbers itself, which a layer of its own would do for it"
    )
    assert prune(model).get_layer("b").filters == 3


def test_keras_layer_without_a_handler_is_taught_by_one():
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(8, "a")(x))
    bands = layers.MelSpectrogram(fft_length=8, sequence_stride=4, num_mel_bins=2, name="bands")
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(bands(y))))
    taught = "; a kfp.handlers.Handler of your own, registered for its class, teaches it"
    assert reason(model, "a") == f"feeds unsupported layer 'bands' (MelSpectrogram){taught}"


@pytest.mark.usefixtures("registry")
def test_unknown_layer_is_pruned_once_registered():
    kfp.register_handler(Halve, like=layers.ReLU)
    small = prune(chain(conv(8, "a"), Halve(name="halve"), conv(6, "b")))
    assert small.get_layer("a").filters == 4


def test_subclass_of_a_known_layer_is_unknown():
    model = chain(conv(8, "a"), MyConv(7, 3, name="mine"), conv(6, "b"))
    assert "feeds unsupported layer 'mine' (MyConv); register_handler(MyConv, like=...)" in reason(model, "a")
    small = prune(model)
    assert small.get_layer("mine").filters == 7
    assert "mine" in kfp.analyze(model).uncounted


@pytest.mark.usefixtures("registry")
def test_subclass_of_a_known_layer_is_pruned_once_registered():
    kfp.register_handler(MyConv, like=layers.Conv2D)
    model = chain(conv(8, "a"), MyConv(7, 3, name="mine"), conv(6, "b"))
    small, report = prune(model, return_report=True)
    assert type(small.get_layer("mine")) is MyConv
    assert small.get_layer("mine").filters == 4
    assert report.verification <= 1e-4
    assert kfp.analyze(model).uncounted == ()


def test_layer_without_configuration_does_no_harm():
    class NoConfig(layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x):
            return x + 1

    model = chain(conv(8, "a"), conv(6, "b"), NoConfig(object(), name="bare"))
    assert prune(model).get_layer("a").filters == 4
