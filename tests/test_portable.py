"""What every installation can do, on any backend and with the lowest versions; exports where TensorFlow is."""

import importlib.util
import subprocess
import sys

import keras
import numpy as np
import pytest
from builders import array, assert_same, compiled, labelled_images, network, total_macs

import keras_filterprune as kfp
from keras_filterprune.errors import MissingPackageError

pytestmark = pytest.mark.portable

with_tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="tensorflow is missing")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    trained, (x, y) = compiled(network()), labelled_images()
    trained.fit(x, y, epochs=5, verbose=0)
    return trained


# There are no gates in this network.
@pytest.mark.parametrize("method", [name for name, *_ in kfp.list_methods() if name != "excitation"])
def test_every_method_prunes_and_its_plan_replays_from_a_file(model, method, tmp_path):
    x, y = labelled_images()
    settings = {"data": (x, y), "compensate": "none", "progress": False}
    small, report = kfp.prune_model(model, method, 0.6, return_report=True, **settings)
    assert total_macs(small) <= 0.6 * total_macs(model)
    report.plan.save(tmp_path / "plan.json")
    plan = kfp.PruningPlan.load(tmp_path / "plan.json")
    assert plan.layers == report.plan.layers
    assert_same(small, kfp.apply_plan(model, plan, verify=False, **settings), x, 1e-6)


# Those that know the weights alone promise nothing about these data.
@pytest.mark.parametrize(
    ("name", "worst"), [("least_squares", 1), ("mean_shift", 1), ("adapter", 2), ("linear", 2), ("merge", 2)]
)
def test_every_compensator_changes_the_network_for_the_better(model, name, worst):
    (x, _), settings = labelled_images(), {"budget": 0.7, "progress": False}
    expected = model.predict(x, verbose=0)

    def error(compensate: str) -> float:
        small = kfp.prune_model(model, "l2", data=x, compensate=compensate, **settings)
        return float(np.square(small.predict(x, verbose=0) - expected).mean())

    assert error("none") != error(name) < worst * error("none")


def test_recalibrated_statistics_are_those_of_the_data(model):
    x, _ = labelled_images()
    small = kfp.prune_model(model, "l2", 0.7, data=x, compensate="bn", progress=False)
    convolved = keras.Model(small.input, small.get_layer("conv1").output).predict(x, verbose=0)
    np.testing.assert_allclose(array(small.get_layer("bn1").moving_mean), convolved.mean((0, 1, 2)), atol=1e-5)


def test_the_pruned_model_trains_on_and_loads_from_a_file(model, tmp_path):
    x, y = labelled_images()
    small = kfp.prune_model(model, "l2", 0.5, progress=False)
    before = small.evaluate(x, y, verbose=0)
    small.fit(x, y, epochs=5, verbose=0)
    assert small.evaluate(x, y, verbose=0) < before
    small.save(tmp_path / "small.keras")
    assert_same(small, keras.models.load_model(tmp_path / "small.keras"), x, 1e-6)


def test_sensitivity_is_that_of_the_pruned_network(model):
    x, _ = labelled_images()
    table = kfp.measure_sensitivity(model, x, "error", keep=(0.25,), progress=False)
    expected = model.predict(x, verbose=0)
    variance = np.square(expected - expected.mean(0)).sum()
    for cut in table.cuts:
        budget = kfp.FiltersBudget(keep={cut.group: 0.25})
        found = kfp.prune_model(model, "l2", budget, compensate="none", progress=False).predict(x, verbose=0)
        assert -cut.value == pytest.approx(np.square(found - expected).sum() / variance, rel=1e-3)


def test_whole_blocks_go(model):
    small = kfp.prune_layers(model, n_layers=1, progress=False)
    assert small.count_params() < model.count_params()
    assert np.isfinite(small.predict(labelled_images()[0], verbose=0)).all()


def test_the_command_line_scans(model, tmp_path):
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-m", "keras_filterprune", "scan", str(tmp_path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "conv2" in done.stdout


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow is the backend")
def test_tensorflow_is_not_imported_beside_another_backend():
    code = "import sys, keras_filterprune as kfp\n[getattr(kfp, name) for name in dir(kfp)]\n"
    code += "assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="tensorflow is installed")
def test_an_export_without_tensorflow_says_what_to_install(model, tmp_path):
    with pytest.raises(MissingPackageError, match=r"needs tensorflow, .* pip install .*tensorflow"):
        kfp.export_tflite(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@with_tensorflow
@pytest.mark.parametrize("mode", [None, "float16", "dynamic", "int8", "int16x8"])
def test_every_kind_of_file_computes_what_the_model_does(model, mode, tmp_path):
    x, _ = labelled_images()
    small = kfp.prune_model(model, "l2", 0.5, progress=False)
    metadata = kfp.export.Metadata(labels=["a", "b", "c"])
    result = kfp.export_tflite(small, tmp_path / "small.tflite", quantize=mode, data=x, metadata=metadata)
    assert result.max_abs_difference < 0.05 * np.ptp(small.predict(x, verbose=0))
    assert kfp.export.read_metadata(tmp_path / "small.tflite")["labels"] == metadata.labels
