"""A model made under a distribution strategy is rebuilt under it; widths that a mesh cannot divide are named."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two devices of the one CPU: said before the backend starts, so each in a process of its own.
MIRRORED = """
import warnings
import keras, numpy as np, tensorflow as tf, keras_filterprune as kfp
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
L = keras.layers

def build():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    # Names decide which positions are sampled.
    h = L.PReLU(name="prelu")(L.Conv2D(8, 3, padding="same", name="first")(inputs))
    # A block that can be removed.
    h = L.Add(name="add")([h, L.Conv2D(8, 3, padding="same", activation=L.PReLU(), name="inner")(h)])
    h = L.Conv2D(8, 3, activation="relu", name="last")(L.Conv2D(8, 3, activation="relu", name="third")(h))
    model = keras.Model(inputs, L.Dense(4, name="head")(L.GlobalAveragePooling2D(name="mean")(h)))
    # Activations with weights are built when they are called on numbers.
    model(np.zeros((1, 8, 8, 3), "float32"))
    for weight in model.weights:
        if weight.name == "alpha":
            weight.assign(np.linspace(0.1, 0.5, weight.shape[-1]) * np.ones(weight.shape))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.AdamW(1e-3, use_ema=True, clipnorm=1.0)
    # Alone, few steps are sooner done as they are written.
    model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=not tf.distribute.has_strategy())
    return model

def total(model):
    cost = kfp.budgets.CostModel(kfp.analyze(model))
    return cost.macs(cost.sizes)

x, y = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32"), np.arange(32) % 4
with strategy.scope():
    model = build()
alone = build()
pruned = {"progress": False}
gates, masks = kfp.callbacks.BudgetGates(0.8, 2, strength=0.2), kfp.callbacks.PruningSchedule([1.0, 0.8])
for copy, callbacks in (
    # A copy of a copy is one of the first original's strategy.
    (lambda m: kfp.prune_model(kfp.prune_model(m, "l2", 0.9, data=x, compensate="least_squares", **pruned), "l2", 0.9,
                               data=x, compensate="adapter", **pruned), []),
    (lambda m: kfp.strip_wrappers(kfp.apply_bridgeout(kfp.prune_layers(m, n_layers=1, **pruned))), []),
    (lambda m: kfp.apply_filter_pruning(kfp.apply_penalty(m, kfp.regularizers.GroupLasso())), [masks]),
    (kfp.apply_filter_gates, [gates]),
):
    twins = copy(model), copy(alone)
    assert twins[0].distribute_strategy is strategy
    histories = []
    for twin in twins:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0, "callbacks": callbacks}
            histories.append(twin.fit(x, y, **settings).history)
        if callbacks:
            plain = kfp.strip_wrappers(twin)
            small = kfp.prune_model(plain, "dead", kfp.budgets.RedundancyBudget(), compensate="none", **pruned)
            assert total(small) == histories[-1]["macs_if_pruned"][-1] <= 0.8 * total(model)
            assert small.distribute_strategy is twin.distribute_strategy
    # Where each of the two computes half of every batch, the model learns as it does alone.
    variables = [*twins[0].variables, *twins[0].optimizer.variables, *twins[0].metrics_variables]
    assert all(isinstance(v.value, tf.distribute.DistributedValues) for v in variables)
    for name, values in histories[0].items():
        assert np.allclose(values, histories[1][name], rtol=1e-3), (name, histories)
"""
MESH = """
import keras, numpy as np, keras_filterprune as kfp
D, L = keras.distribution, keras.layers
mesh = D.DeviceMesh((1, 2), ("batch", "model"), D.list_devices())
layout = D.LayoutMap(mesh)
layout[".*wide.*/kernel"], layout[".*wide.*/bias"] = (None, None, None, "model"), ("model",)
D.set_distribution(D.ModelParallel(layout_map=layout, batch_dim_name="batch"))
inputs = keras.Input((8, 8, 3))
h = L.Conv2D(22, 3, activation="relu", name="wide2")(L.Conv2D(22, 3, activation="relu", name="wide1")(inputs))
model = keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(L.Conv2D(7, 3, name="whole")(h))))
model.compile("adam", "mse")
try:
    kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), progress=False)
    raise SystemExit("a width that two devices cannot share was taken")
except kfp.errors.InvalidValueError as error:
    assert "divided among 2 devices along axis 3: expected a multiple of 2 channels to stay" in str(error)
    assert "Received: 11 of 22. Prune with channel_multiple=2." in str(error)
for small in (
    kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), channel_multiple=2, progress=False),
    # What no device shares may have any width.
    kfp.prune_model(model, "l2", kfp.FiltersBudget({"whole": 0.5}), progress=False),
):
    found = {v.path: v.value.sharding.spec for v in small.variables if "wide" in v.path}
    assert all("model" in spec for spec in found.values()), found
    small.fit(np.ones((4, 8, 8, 3), "float32"), np.ones((4, 4)), verbose=0)
"""


def run(backend: str, code: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    two = {"KERAS_BACKEND": backend, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    folder = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | two, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_copies_belong_to_the_strategy_of_the_original():
    run("tensorflow", MIRRORED)


def test_a_width_that_a_mesh_cannot_divide_is_named():
    run("jax", MESH)
