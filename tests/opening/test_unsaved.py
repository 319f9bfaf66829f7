"""Layers that do not say how they are configured: the model is pruned, and it is said that it cannot be saved."""

import keras
import numpy as np
import pytest
from builders import predict
from composites import Block, around
from keras import layers, ops

import keras_filterprune as kfp
from keras_filterprune.files import save_keras


def raising(error):
    def get_config(self):
        raise error

    return get_config


# {what get_config() does: itself}
CONFIGS = {
    "AttributeError": raising(AttributeError("out_dim")),
    "KeyError": raising(KeyError("out_dim")),
    "NotImplementedError": raising(NotImplementedError()),
    "RuntimeError": raising(RuntimeError("Expected\n\nan example")),
    "TypeError": raising(TypeError("out_dim")),
    "ValueError": raising(ValueError("out_dim")),
}


def sorting(get_config):
    """A layer that mixes channels, into which nobody can look."""

    class Sorting(layers.Layer):
        def call(self, x):
            if isinstance(x, keras.KerasTensor):
                raise TypeError("numbers alone")
            return ops.sort(x, axis=-1)

        def compute_output_shape(self, shape):
            return shape

    Sorting.get_config = get_config
    return Sorting(name="sorting")


class Owner(layers.Layer):
    """Speaks for the layer that it makes."""

    def __init__(self, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.block, self.inner = Block(6), inner

    def call(self, x):
        return self.inner(self.block(x))

    def get_config(self):
        return keras.layers.Layer.get_config(self)


def nested(get_config):
    inputs = keras.Input((6, 6, 8))
    return keras.Model(inputs, sorting(get_config)(layers.Conv2D(7, 3)(inputs)))


# {where the layer is: (a model around it, whether Keras saves that)}
PLACES = {
    "in the graph": (lambda get_config: around(Block(7), sorting(get_config)), False),
    "in a layer": (lambda get_config: around(Block(7), Owner(sorting(get_config))), True),
    "in a model": (lambda get_config: around(nested(get_config)), False),
    "in a sequence": (
        lambda get_config: around(keras.Sequential([layers.Conv2D(7, 3), sorting(get_config)])),
        False,
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_said_what_keeps_a_model_from_being_saved(config, place, tmp_path):
    make, saved = PLACES[place]
    model = make(CONFIGS[config])
    small, report = kfp.prune_model(model, "l2", kfp.FiltersBudget(keep=0.5), progress=False, return_report=True)
    assert small.count_params() < model.count_params()
    (note,) = [note for note in report.notes if "cannot save" in note]
    assert f"(Sorting) raises {config}" in note
    assert ("though it saves the original" if saved else "nor the original") in note
    with pytest.raises(kfp.errors.FileError, match=config):
        save_keras(small, tmp_path / "small.keras")
    assert not list(tmp_path.iterdir())
    small.save_weights(tmp_path / "small.weights.h5")
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    again = kfp.prune_model(model, "random", kfp.FiltersBudget(keep=0.5), progress=False)
    again.load_weights(tmp_path / "small.weights.h5")
    np.testing.assert_array_equal(predict(again, x), predict(small, x))


def test_nothing_is_said_where_the_model_can_be_saved(tmp_path):
    small, report = kfp.prune_model(around(Block(7)), "l2", 0.5, progress=False, return_report=True)
    assert not [note for note in report.notes if "cannot save" in note]
    save_keras(small, tmp_path / "small.keras")
