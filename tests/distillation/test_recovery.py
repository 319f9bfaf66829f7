"""Recovery without labels: the original teaches on calibration inputs."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest
from builders import images, relative_error, values
from keras import layers
from readers import weight

import keras_filterprune as kfp
from keras_filterprune.distillation import pace
from keras_filterprune.distillation.distill import imitator
from keras_filterprune.distillation.exam import Exam, held_out, others
from keras_filterprune.distillation.lessons import Lessons
from keras_filterprune.errors import CalibrationDataError, InvalidValueError, UnsupportedModelError
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.inputs import calibration_inputs

SHAPE = (8, 8, 3)
QUIET = {"progress": False}
few_steps = pytest.mark.usefixtures("untraced")


def network(*heads, shape=SHAPE, compiled=False):
    """A convolutional network with some heads (logits of five classes)."""
    keras.utils.set_random_seed(0)
    x = keras.Input(shape, name="image")
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(16, 3, name="conv1")(x))
    y = layers.Conv2D(16, 3, name="conv2", activation="relu")(layers.ReLU()(y))
    flat = layers.GlobalAveragePooling2D()(y)
    made = [head(flat, y) for head in heads or [CLASSES]]
    model = keras.Model(x, made[0] if len(made) == 1 else made)
    if compiled:
        model.compile("sgd", "mse", metrics=["mae"])
    return model


CLASSES = lambda flat, maps: layers.Dense(5, activation="softmax", name="classes")(flat)  # noqa: E731
HEADS = {
    "softmax": [CLASSES],
    "logits": [lambda flat, maps: layers.Dense(5)(flat)],
    "sigmoids": [lambda flat, maps: layers.Dense(4, activation="sigmoid")(flat)],
    "numbers": [lambda flat, maps: layers.Dense(1)(flat)],
    "masks": [lambda flat, maps: layers.Conv2D(3, 1, activation="softmax")(maps)],
    "two outputs": [CLASSES, lambda flat, maps: layers.Conv2D(1, 1)(maps)],
}


def pruned(model, x):
    return kfp.prune_model(model, "l2", 0.5, data=x, compensate="none", **QUIET)


@pytest.mark.parametrize("head", HEADS)
def test_outputs_of_every_kind_come_nearer_to_the_originals(head):
    model, x, fresh = network(*HEADS[head]), images(128), images(64, seed=1)
    small = pruned(model, x)
    recovered = kfp.recover(small, model, x, steps=100, **QUIET)
    assert relative_error(model, recovered, fresh) < 0.7 * relative_error(model, small, fresh)


@pytest.mark.parametrize(
    ("first", "scales"),
    [(CLASSES, (1.0, 1e-3, 1e3)), (lambda flat, maps: layers.Dense(4)(flat), (1e-3, 1e3))],
    ids=["classes", "numbers"],
)
def test_the_unit_of_an_output_makes_no_difference(first, scales):
    """A number in metres is learnt as well beside classes, or other numbers, as in millimetres or kilometres."""
    x, fresh, found = images(128), images(64, seed=1), []
    for scale in scales:
        number = lambda flat, maps, scale=scale: layers.Rescaling(scale)(layers.Dense(1, name="number")(flat))  # noqa: E731
        model = network(first, number)
        small = kfp.recover(pruned(model, x), model, x, steps=60, **QUIET)
        pairs = zip(model.predict(fresh, verbose=0), small.predict(fresh, verbose=0), strict=True)
        found.append([np.linalg.norm(given - wanted) / np.linalg.norm(wanted) for wanted, given in pairs])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0.2)


def test_neither_network_changes_and_the_result_is_compiled_as_the_small_one_was():
    model, x = network(compiled=True), images(64)
    small = pruned(model, x)
    before = values(model), values(small)
    recovered = kfp.recover(small, model, x, steps=20, **QUIET)
    for old, now in zip(before, (values(model), values(small)), strict=True):
        assert all((a == b).all() for a, b in zip(old, now, strict=True))
    assert recovered.loss == "mse" and isinstance(recovered.optimizer, keras.optimizers.SGD)
    assert model.trainable and all(layer.trainable for layer in model.layers)


@few_steps
def test_labels_are_never_looked_at():
    model, x = network(), images(64)
    small = pruned(model, x)
    results = [
        kfp.recover(small, model, data, steps=5, **QUIET) for data in (x, (x, np.zeros(64)), (x, np.full(64, np.nan)))
    ]
    for other in results[1:]:
        assert all((a == b).all() for a, b in zip(values(results[0]), values(other), strict=True))


@few_steps
def test_what_equals_the_original_stays_as_it_is():
    model, x = network(), images(128)
    same = kfp.recover(keras.models.clone_model(model), model, x, steps=5, **QUIET)
    whole = kfp.recover(kfp.prune_model(model, "l2", 1.0, **QUIET), model, x, steps=5, **QUIET)
    assert relative_error(model, whole, x) < 1e-5
    assert relative_error(model, same, x) > 0.1  # Other weights: there was something to learn.


def test_the_worse_of_start_and_end_does_not_stay(monkeypatch):
    monkeypatch.setattr(pace, "RATE", 10.0)
    model, x = network(), images(64)
    small = pruned(model, x)
    recovered = kfp.recover(small, model, x, steps=20, **QUIET)
    assert relative_error(small, recovered, x) < 1e-9


def test_what_is_nearer_by_no_more_than_chance_does_not_stay():
    """Of a line through the samples, on which the student is off by 1 at the start: distances are squares."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    model.set_weights([np.ones((1, 1)), np.zeros(1)])
    student = keras.models.clone_model(model)
    x = np.random.default_rng(0).normal(size=(800, 1)).astype("float32")
    inputs = calibration_inputs(x, view_model(model))
    held = np.asarray(held_out(len(x)))

    def kept(slope, offset):
        student.set_weights([np.ones((1, 1)), np.ones(1)])
        exam = Exam(imitator(student, model, [x[:2]]), inputs, 32)
        student.set_weights([np.full((1, 1), slope), np.full(1, offset)])
        exam.look()
        exam.restore()
        return float(student.get_weights()[1][0]) != 1

    nearer = lambda slope: 1 - np.square((slope - 1) * x[held]).mean()  # noqa: E731
    assert kept(1, 0.99)
    assert 0.01 < nearer(2.05) < 0.2
    assert kept(1.5, 0) and not kept(2.05, 0)


def test_least_squares_does_not_see_the_samples_that_judge_it():
    model, x = network(), images(100)
    view = view_model(model)
    fitted, judged = calibration_inputs(others(Samples.of(x)), view), calibration_inputs(x, view).take(held_out(100))
    assert len(fitted) + len(judged[0]) == 100 and len(judged[0]) == 13
    seen = {sample.tobytes() for sample in fitted.arrays()[0]}
    assert not seen & {sample.tobytes() for sample in judged[0]}
    assert len(calibration_inputs(others(Samples.of(x[:15])), view)) == 15


def test_statistics_are_those_of_what_was_learnt():
    """Batch normalization that follows slowly, and mixtures, which vary less than samples."""
    inputs, x = keras.Input(SHAPE), images(256)
    y = layers.BatchNormalization(momentum=0.9999, name="bn")(layers.Conv2D(8, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(y))))
    small = pruned(model, x)
    recovered = kfp.recover(small, model, x, steps=100, **QUIET)
    before = keras.Model(recovered.input, recovered.get_layer("bn").input)
    lessons = Lessons(recovered, calibration_inputs(x, view_model(recovered)), np.arange(256), 64, None, 1)
    found = before.predict(calibration_inputs(lessons.samples(), view_model(model)).arrays()[0], verbose=0)
    expected, pure = found.var((0, 1, 2)), before.predict(x, verbose=0).var((0, 1, 2))
    assert (expected < 0.85 * pure).all()
    np.testing.assert_allclose(weight(recovered, "bn", "moving_variance"), expected, rtol=0.12)


@few_steps
def test_a_time_limit_ends_it():
    """Of more than 70 steps that 56 samples are worth, those that a second suffices for."""
    model, x, seen = network(), images(64), []

    def slow(batch):
        time.sleep(0.05)
        seen.append(len(batch))
        return batch

    small = pruned(model, x)
    recovered = kfp.recover(small, model, x, seconds=1, augment=slow, **QUIET)
    # Keras may fetch some batches ahead.
    assert 0 < len(seen) < 40
    assert relative_error(model, recovered, x) <= relative_error(model, small, x)


def test_no_sample_is_seen_more_than_43_times():
    model, x, seen = network(), images(64), []

    def count(batch):
        seen.append(len(batch))
        return batch

    small = pruned(model, x)
    kfp.recover(small, model, x, augment=count, **QUIET)
    # 56 samples, 32 at a time; Keras may fetch some batches ahead.
    assert 43 * 56 <= sum(seen) <= 44 * 56 + 20 * 32


def test_frozen_layers_stay_frozen():
    model, x = network(), images(64)
    small = pruned(model, x)
    small.get_layer("conv1").trainable = False
    recovered = kfp.recover(small, model, x, steps=100, **QUIET)
    assert (weight(recovered, "conv1", "kernel") == weight(small, "conv1", "kernel")).all()
    assert (weight(recovered, "conv2", "kernel") != weight(small, "conv2", "kernel")).any()
    small.trainable = False
    with pytest.raises(UnsupportedModelError, match="has no trainable weights"):
        kfp.recover(small, model, x, **QUIET)


@few_steps
def test_augmentation_sees_batches_and_its_result_is_learnt_from():
    model, x, seen = network(), images(64), []

    def flipped(batch):
        seen.append(batch.shape)
        return batch[:, :, ::-1]

    small = pruned(model, x)
    kfp.recover(small, model, x, steps=5, augment=flipped, **QUIET)
    kfp.recover(small, model, x, steps=5, augment=layers.RandomFlip(), **QUIET)
    assert set(seen) == {(32, *SHAPE)}
    with pytest.raises(InvalidValueError, match=r"augment is to return inputs of shapes \[\(32, 8, 8, 3\)\]"):
        kfp.recover(small, model, x, steps=5, augment=lambda batch: batch[1:], **QUIET)


@few_steps
@pytest.mark.parametrize("structure", [dict, list, tuple])
def test_several_inputs_in_a_structure(structure):
    first, second = keras.Input(SHAPE, name="a"), keras.Input((4,), name="b")
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(first))
    given = {"b": second, "a": first} if structure is dict else structure([first, second])
    model = keras.Model(given, layers.Dense(3)(layers.Concatenate()([y, second])))
    data = {"a": images(64), "b": np.random.default_rng(0).normal(size=(64, 4))}
    small = kfp.prune_model(model, "l2", 0.5, **QUIET)
    swapped = lambda arrays: [x[::-1] for x in arrays]  # noqa: E731
    recovered = kfp.recover(small, model, data, steps=5, augment=swapped, **QUIET)
    assert [w.shape for w in values(recovered)] == [w.shape for w in values(small)]


@few_steps
def test_one_input_in_a_list():
    whole = network()
    model, x = keras.Model(whole.inputs, whole.layers[-2].output), images(64)
    small = kfp.prune_model(model, "l2", 0.5, data=x, compensate=kfp.compensators.Reconstruct(5), **QUIET)
    assert values(small)[0].shape == (3, 3, 3, 8)


def test_another_network_than_the_one_that_is_cut_may_teach():
    model, other, x, fresh = network(), network(), images(256), images(64, seed=1)
    other.get_layer("classes").kernel.assign(-other.get_layer("classes").kernel)
    settings = {"data": x, "compensate": kfp.compensators.Reconstruct(100, teacher=other), **QUIET}
    small = kfp.prune_model(model, "l2", 0.5, **settings)
    assert relative_error(other, small, fresh) < relative_error(model, small, fresh)
    with pytest.raises(UnsupportedModelError, match=r"teacher is a keras\.Model, or None"):
        kfp.compensators.Reconstruct(teacher="model.keras")


REFUSED = {
    "steps": ({"steps": 0}, "steps is a number of optimizer steps, at least 1"),
    "seconds": ({"seconds": -1}, "seconds is a time limit, above 0, or None"),
    "augment": ({"augment": "flip"}, "augment is a function of a batch of inputs"),
    "original": ({"original": "model.keras"}, "original is a keras.Model"),
    "model": ({"model": None}, "model is a keras.Model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(case):
    wrong, message = REFUSED[case]
    model = network()
    given = {"model": model, "original": model, "data": images(16)} | wrong
    with pytest.raises((InvalidValueError, UnsupportedModelError), match=message):
        kfp.recover(given.pop("model"), given.pop("original"), given.pop("data"), **given)


def test_too_few_samples_and_another_network_are_refused():
    model = network()
    with pytest.raises(CalibrationDataError, match="at least 16 samples"):
        kfp.recover(model, model, images(8), **QUIET)
    with pytest.raises(UnsupportedModelError, match="cannot teach"):
        kfp.recover(model, network(shape=(9, 9, 3)), images(16), **QUIET)


def test_as_a_compensator_it_begins_where_least_squares_ends():
    model, x, fresh = network(*HEADS["masks"]), images(512), images(64, seed=1)
    settings = {"data": x, "return_report": True, **QUIET}
    fitted, _ = kfp.prune_model(model, "l2", 0.4, compensate="least_squares", **settings)
    small, report = kfp.prune_model(model, "l2", 0.4, compensate="reconstruct", **settings)
    assert [layer.get_config() for layer in fitted.layers] == [layer.get_config() for layer in small.layers]
    assert "refitted by least squares on 448 samples, then 151 steps on 448 samples" in report.compensation
    assert relative_error(model, small, fresh) < relative_error(model, fitted, fresh)


def test_fewer_samples_than_it_takes_are_refitted_to_alone():
    model, x = network(), images(12)
    settings = {"data": x, "return_report": True, **QUIET}
    fitted, _ = kfp.prune_model(model, "pursuit", 0.5, **settings)
    small, report = kfp.prune_model(model, "auto", 0.5, **settings)
    assert report.compensation.endswith("; not taught by the original, which takes 16 samples")
    assert all((a == b).all() for a, b in zip(values(fitted), values(small), strict=True))


def with_text():
    words = layers.TextVectorization(vocabulary=["a", "b", "c"], output_sequence_length=6)
    inputs = keras.Input((), dtype="string")
    y = layers.Conv1D(8, 3, activation="relu")(layers.Embedding(5, 8)(words(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(y))), np.array(["a b", "c"] * 16, object)


def with_outputs(outputs):
    model = network(*HEADS["logits"])
    return keras.Model(model.input, outputs(model.output)), images(32)


def frozen():
    model = network()
    model.trainable = False
    return model, images(32)


UNTAUGHT = {
    "class numbers": (lambda: with_outputs(lambda z: keras.ops.argmax(z, -1)), "has no output but of integers"),
    "one-hot": (lambda: with_outputs(lambda z: keras.ops.one_hot(keras.ops.argmax(z, -1), 5)), "have no gradient"),
    "rounded": (lambda: with_outputs(keras.ops.round), "have no gradient"),
    "frozen": (frozen, "has no trainable weights"),
    "text": (with_text, "takes text"),
}


@pytest.mark.parametrize("case", UNTAUGHT)
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="text is TensorFlow's")
def test_what_cannot_be_taught_is_refitted_and_the_report_says_why(case):
    make, reason = UNTAUGHT[case]
    model, x = make()
    small, report = kfp.prune_model(model, budget=0.6, data=x, return_report=True, **QUIET)
    assert reason in report.compensation
    assert small.count_params() < model.count_params()
    with pytest.raises(UnsupportedModelError, match=reason):
        kfp.recover(small, model, x, **QUIET)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda z: {"scores": z, "class": keras.ops.argmax(z, -1)},
        lambda z: [z, keras.ops.round(z)],
        # Two outputs of one name.
        lambda z: list(keras.ops.top_k(z, 2)),
    ],
    ids=["class", "rounded", "the two best"],
)
def test_outputs_without_gradients_stand_in_nobodys_way(outputs):
    model, x = with_outputs(outputs)
    small = pruned(model, images(128))
    recovered = kfp.recover(small, model, images(128), steps=60, **QUIET)
    assert relative_error(model, recovered, x) < relative_error(model, small, x)


def test_outputs_that_are_not_finite_are_refused_before_anything_is_chosen():
    model, x = with_outputs(lambda z: keras.ops.log(keras.ops.relu(z)))
    with pytest.raises(CalibrationDataError, match="is no finite number on the calibration data"):
        kfp.prune_model(model, budget=0.6, data=x, **QUIET)
