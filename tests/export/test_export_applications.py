"""Pruned networks of keras.applications become files in every mode, and compute what Keras computes."""

import keras
import numpy as np
import pytest

import keras_filterprune as kfp

IMAGES = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32")
# {network: (its settings, its last layer: blocks of every kind are before it, modes)}.
NETWORKS = {
    "MobileNetV2": ({"alpha": 0.35}, "out_relu", ["float32", "float16", "dynamic", "int8", "int16x8"]),
    "EfficientNetB0": ({}, "block5a_project_bn", ["float32", "dynamic", "int8"]),
    "ResNet50": ({}, "conv3_block1_out", ["float32", "float16", "int16x8"]),
}
# Root mean square relative to the output's; weights are random, statistics those of the images.
LARGEST = {"float32": 1e-5, "float16": 4e-3, "dynamic": 0.05, "int8": 0.15, "int16x8": 0.05}


def pruned(name):
    keras.utils.set_random_seed(0)
    settings, end, _ = NETWORKS[name]
    whole = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), include_top=False, **settings)
    pooled = keras.layers.GlobalAveragePooling2D()(whole.get_layer(end).output)
    model = keras.Model(whole.input, keras.layers.Dense(10)(pooled), name=name)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(6):
        model(IMAGES, training=True)
    return kfp.prune_model(model, "l1", 0.5, compensate="none", progress=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_modes_of_an_application(name, tmp_path):
    model = pruned(name)
    sizes = {}
    for mode in NETWORKS[name][2]:
        path = tmp_path / f"{mode}.tflite"
        result = kfp.export_tflite(model, path, quantize=mode, data=IMAGES, tolerance=LARGEST[mode])
        assert result.relative_difference > (0 if mode == "float32" else 1e-5)
        sizes[mode] = path.stat().st_size
    weights = 4 * model.count_params()
    assert 0.97 * weights < sizes["float32"] < 1.5 * weights
    assert sizes.get("float16", 0) < 0.7 * sizes["float32"]
    assert max(sizes[mode] for mode in ("dynamic", "int8", "int16x8") if mode in sizes) < 0.5 * sizes["float32"]
