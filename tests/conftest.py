"""How tests are run: assertions of shared modules say what they compared, drawn examples are the same in every run."""

import concurrent.futures
import functools
import gc
import importlib.util
import multiprocessing
import os
import sys
import typing
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from zoo import ZOO

pytest.register_assert_rewrite("builders", "contracts", "oracle", "refusals")

# Building networks is slow and says nothing about a test; what fails here must fail again there.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# They write, read and time files; without the extra [tflite] there are none.
WITH_FILES = ["export", "latency", "tflite_bench", "tfmot", "test_measuring.py"]
collect_ignore = [] if importlib.util.find_spec("ai_edge_litert") else WITH_FILES

# The files that take longest, the longest first: begun last, one of them would keep a worker busy when all others rest.
LONGEST = [
    "test_docs.py",
    "handlers/test_like.py",
    "training/test_beside_keras.py",
    "rebuild/test_surgery_oracle.py",
    "rebuild/test_clones.py",
    "compression/test_compress.py",
    "opening/test_opening.py",
    "compensators/test_adapters.py",
    "distillation/test_recovery.py",
    "export/test_export_applications.py",
    "layer_pruning/test_layer_pruning.py",
    "training/test_branches.py",
    "test_notebook.py",
    "rebuild/test_strategies.py",
    "test_elsewhere.py",
    "test_cli.py",
    "handlers/test_attention.py",
    "opening/test_after_opening.py",
    "criteria/test_criteria.py",
    "distillation/test_distilled_training.py",
    "probe/test_masks.py",
    "training/test_filter_pruning.py",
    "latency/test_operators.py",
    "test_portable.py",
    "training/test_steering.py",
    "export/test_export_modes.py",
    "training/test_growing.py",
    "probe/test_data.py",
    "studies/test_sensitivity.py",
]


if sys.version_info < (3, 12):
    # TensorFlow asks of every value whether it is of a protocol, and Python would look up anew what that consists of.
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)


def pytest_configure(config):
    # pytest-xdist would begin with the files of most tests.
    config.option.loadscopereorder = False
    if config.getoption("numprocesses", None):
        # One thread for each worker: as many as cores in every one of them wait for each other.
        for name in ("OPENBLAS_NUM", "OMP_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
            os.environ.setdefault(f"{name}_THREADS", "1")
        # Compiling takes most of the time on JAX: every operation anew for each shape.
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    else:
        # Until all tests are found, next to nothing is garbage.
        gc.disable()


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


def pytest_collection_finish():
    # Thousands of tests and all of TensorFlow stay: no garbage to look for, as the converter does at every file.
    gc.collect()
    gc.freeze()
    # A network is thousands of objects: what is looked through sooner is in use.
    gc.set_threshold(50_000)
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_no_garbage():
    """What a file leaves behind, functions that TensorFlow keeps for good, is looked through once."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def quick_tensorflow():
    """What pays off where little is run for long, and here the other way round."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    off, begin, seed = tf.data.Options(), tf.data.Dataset.__iter__, tf.random.set_seed
    off.autotune.enabled = False
    seeds, make = [], keras.Model.make_train_function

    def make_built(model, *args, **kwargs):
        # Activations with weights are built at the first call on numbers.
        built = all(layer.built for layer in model._flatten_layers())
        if built and model.optimizer and not (model.optimizer.built or model.run_eagerly):
            model.optimizer.build(model.trainable_variables)
        return make(model, *args, **kwargs)

    def set_seed(number):
        if not seeds:
            seed(number)
            seeds.append(number)

    with pytest.MonkeyPatch.context() as patch:
        # A thread tunes each iterator over data; it sleeps ever longer, and whoever drops the iterator waits for it.
        patch.setattr(tf.data.Dataset, "__iter__", lambda dataset: begin(dataset.with_options(off)))
        # To set a seed, even the same, is to forget all operations that are ready to run: once a file is enough, since
        # Keras draws by seeds of its own.
        patch.setattr(tf.random, "set_seed", set_seed)
        # Variables that are made while a step is traced take two conditions each: half of the time to trace it.
        patch.setattr(keras.Model, "make_train_function", make_built)
        yield


@pytest.fixture(scope="session")
def two_processes():
    """An executor: each of its processes imports Keras and its backend, which takes longer than what is run there."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


@pytest.fixture(scope="module")
def short_recovery():
    """With data, "auto" ends in 20 steps instead of 600, of which no test of the module looks at the gain."""
    from keras_filterprune.compensators import Reconstruct
    from keras_filterprune.methods import recipes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "Reconstruct", functools.partial(Reconstruct, steps=20))
        yield


@pytest.fixture
def untraced():
    """What TensorFlow would trace runs as it is written: sooner done where a network takes a few steps."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Even though the `tf.config.experimental_run_functions_eagerly`")
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def registry(monkeypatch):
    """Registrations made in a test end with it."""
    from keras_filterprune.handlers import registry as module

    monkeypatch.setattr(module, "_BY_TYPE", dict(module._BY_TYPE))
    monkeypatch.setattr(module, "_LIKE", dict(module._LIKE))


class Bad:
    """Collects the model under test, so that one fixture can look at it afterwards."""

    def __init__(self, folder):
        self.folder = folder
        self.model = None
        self._before = None

    def use(self, model):
        self.model, self._before = model, [w.copy() for w in model.get_weights()]
        return model

    def unchanged(self):
        if self.model is not None:
            for old, new in zip(self._before, self.model.get_weights(), strict=True):
                np.testing.assert_array_equal(old, new)


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Whatever a test does with `bad.use(model)`: the weights stay bit-identical and no file appears."""
    monkeypatch.chdir(tmp_path)
    guard = Bad(tmp_path)
    yield guard
    guard.unchanged()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("given")] == []


@pytest.fixture
def chain(bad):
    return bad.use(ZOO["conv_bn_relu_chain"]())
