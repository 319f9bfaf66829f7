"""Training callbacks beside what Keras brings to `fit`: what the logs end with is what the final weights need."""

from __future__ import annotations

import contextlib
import csv
import functools
import warnings

import keras
import numpy as np
import pytest
from builders import array, compiled, labelled_images, network, shrunk, total_macs
from keras import callbacks, optimizers
from other_backends import on_every_backend, run_on

import keras_filterprune as kfp
from keras_filterprune.training.callback import TrainingCallback

X, Y = labelled_images()
FULL = total_macs(network())
HALF = 0.5 * FULL

# {callback: (prepares the network, makes the callback, what is left when training has ended)}.
WAYS = {
    "masks": (kfp.apply_filter_pruning, lambda: kfp.callbacks.PruningSchedule([1.0, 0.8, 0.5]), kfp.strip_wrappers),
    "gates": (kfp.apply_filter_gates, lambda: kfp.callbacks.BudgetGates(0.5, 3, strength=1.0), kfp.strip_wrappers),
    "soft": (lambda m: m, lambda: kfp.callbacks.SoftPruning([1.0, 0.8, 0.5]), lambda m: m),
    "soft, by steps": (lambda m: m, lambda: kfp.callbacks.SoftPruning(0.5, rho=0.9, every=1), lambda m: m),
    "masks of bridgeout": (
        lambda m: kfp.apply_filter_pruning(kfp.apply_bridgeout(m)),
        lambda: kfp.callbacks.PruningSchedule([1.0, 0.8, 0.5]),
        kfp.strip_wrappers,
    ),
}
# What is said of masks that are stripped too early.
UNMET = "are from before the budget was met"
FOUR = [way for way in WAYS if way != "masks of bridgeout"]
every_way = pytest.mark.parametrize("way", FOUR)
# Where it makes no difference when soft pruning writes.
every_kind = pytest.mark.parametrize("way", FOUR[:3])
# What orders callbacks is the same for all: of masks and of soft pruning, one comes before others, one behind them.
first_in_turns = pytest.mark.parametrize(("way", "first"), list(zip(FOUR, [True, False] * 2, strict=True)))


class Falling(callbacks.Callback):
    """Gives every epoch a worse loss than the one before, so that the first is the best."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = float(epoch)


def best_weights(**settings):
    return callbacks.EarlyStopping("val_loss", restore_best_weights=True, mode="min", patience=10, **settings)


# {features, those of one training together: (arguments of compile, callbacks before ours, callbacks behind ours)}.
AVERAGES = functools.partial(optimizers.SGD, 0.01, 0.9, use_ema=True)
TRACED = {"run_eagerly": False}
FEATURES = {
    "averages swapped in behind, several steps per call, rate": (
        {"optimizer": AVERAGES, "steps_per_execution": 3} | TRACED,
        [],
        [callbacks.SwapEMAWeights, lambda: callbacks.ReduceLROnPlateau("val_loss", patience=1)],
    ),
    "averages written over, compiled by XLA": (
        {"optimizer": lambda: AVERAGES(ema_overwrite_frequency=3), "jit_compile": True} | TRACED,
        [],
        [],
    ),
    "averages under a scaled loss, swapped in": (
        {"optimizer": lambda: optimizers.LossScaleOptimizer(AVERAGES())},
        [callbacks.SwapEMAWeights],
        [],
    ),
    "averages swapped by epochs, best weights of the last epochs": (
        {"optimizer": AVERAGES},
        [],
        [lambda: callbacks.SwapEMAWeights(True), lambda: best_weights(start_from_epoch=3)],
    ),
    "momentum, decay, clipping, accumulated gradients": (
        {"optimizer": lambda: optimizers.SGD(0.05, 0.9, weight_decay=0.01, clipnorm=1, gradient_accumulation_steps=2)}
        | TRACED,
        [],
        [],
    ),
    "several optimizers": (
        {
            "optimizer": lambda: optimizers.MultiOptimizer(
                optimizers.OptimizerMap(optimizers.SGD(0.01, use_ema=True), {".*head.*": optimizers.Adam(use_ema=True)})
            )
        },
        [],
        [],
    ),
    "best weights before": ({}, [best_weights], []),
    "best weights behind": ({}, [], [best_weights]),
}


def prepared(way, optimizer=lambda: None, **settings):
    return compiled(WAYS[way][0](network()), optimizer(), **{"run_eagerly": True} | settings)


def fitted(model, *found, epochs=5, **settings):
    """(last logs, the warnings) of a training."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"batch_size": 32, "epochs": epochs, "verbose": 0} | settings
        history = model.fit(X, Y, callbacks=[Falling(), *found], **settings).history
    names = {type(callback).__name__ for callback in found if isinstance(callback, TrainingCallback)}
    said = [str(w.message) for w in caught if any(name in str(w.message) for name in names)]
    return {name: values[-1] for name, values in history.items()}, said


# All features with masks; with gates, which are trained, and soft pruning, which writes to kernels, what differs there.
OTHERS = {
    "gates": ["averages swapped in", "averages under", "several optimizers", "best weights behind"],
    "soft": ["averages swapped", "momentum", "best weights before"],
    "soft, by steps": ["averages swapped in", "best weights behind"],
    "masks of bridgeout": ["best weights behind"],
}
BOTH = [("masks", feature) for feature in FEATURES]
BOTH += [(way, name) for way, found in OTHERS.items() for name in FEATURES if name.startswith(tuple(found))]


@pytest.mark.parametrize(("way", "feature"), BOTH)
def test_the_last_logs_are_those_of_the_final_weights_or_a_warning_says_what_was_undone(way, feature):
    settings, before, behind = FEATURES[feature]
    if "several optimizers" in feature and not hasattr(optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    model = prepared(way, **settings)
    # Averages are swapped in for the validation.
    validation = {"validation_data": (X, Y)} if "swapped" in feature else {}
    found = *(make() for make in before), WAYS[way][1](), *(make() for make in behind)
    # Where steps are traced, more of them take no longer.
    logs, said = fitted(model, *found, batch_size=32 if model.run_eagerly else 16, **validation)
    assert logs["macs_if_pruned"] <= HALF
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Several optimizers are not carried over, and a note says so.
        warnings.filterwarnings("ignore", "The result is not compiled")
        small = shrunk(WAYS[way][2](model))
    found = total_macs(small)
    assert [UNMET in str(w.message) for w in caught if w.category is UserWarning] == [True] * (found > HALF)
    np.testing.assert_allclose(array(small(X)), array(model(X)), atol=1e-4 * np.abs(array(model(X))).max())
    if feature in ("best weights before", "best weights behind") and not way.startswith("soft"):
        assert found > HALF
        assert len(said) == 1 and "EarlyStopping(start_from_epoch=2)" in said[0]
    else:
        assert found <= logs["macs_if_pruned"] and not said


@first_in_turns
def test_loggers_find_the_keys_wherever_they_stand(way, first, tmp_path):
    logger, seen = callbacks.CSVLogger(str(tmp_path / "log.csv")), []
    watch = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["macs_if_pruned"]))
    found = [WAYS[way][1](), logger, watch]
    model = prepared(way)
    history = model.fit(X, Y, epochs=4, verbose=0, callbacks=found if first else found[::-1]).history
    with open(tmp_path / "log.csv") as file:
        rows = [float(row["macs_if_pruned"]) for row in csv.DictReader(file)]
    assert rows == history["macs_if_pruned"] == seen
    assert total_macs(shrunk(WAYS[way][2](model))) <= rows[-1]


@pytest.mark.parametrize("make", [lambda: kfp.callbacks.SensitivityScorer((X, Y), keep=(0.5,), samples=16)])
def test_the_scores_of_layers_reach_earlier_loggers_too(make, tmp_path):
    logger = callbacks.CSVLogger(str(tmp_path / "log.csv"))
    compiled(network()).fit(X, Y, verbose=0, callbacks=[logger, make()])
    with open(tmp_path / "log.csv") as file:
        assert {"drop_conv2"} < set(next(csv.DictReader(file)))


@first_in_turns
def test_a_file_from_before_the_last_cut_is_said_to_be_one(way, first, tmp_path):
    path = tmp_path / "best.keras"
    best = callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True, mode="min")
    found = [WAYS[way][1](), best]
    model = prepared(way)
    _, said = fitted(model, *(found if first else found[::-1]))
    assert len(said) == 1
    if way.startswith("soft"):
        # A plain model at every epoch, which is pruned afterwards, by its method.
        assert "prune_model(loaded, method, 0.5, compensate='none')" in said[0]
        small = kfp.prune_model(keras.saving.load_model(path), "l2", 0.5, compensate="none", progress=False)
        assert total_macs(small) <= HALF
    else:
        assert "ModelCheckpoint(save_best_only=True)" in said[0]
        with pytest.warns(UserWarning, match=UNMET):
            plain = kfp.strip_wrappers(keras.saving.load_model(path))
        assert total_macs(shrunk(plain)) > HALF
        # As advised: in a second fit.
        best = callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True, mode="min")
        _, said = fitted(model, WAYS[way][1](), best, epochs=8, initial_epoch=5)
        assert not said
        assert total_macs(shrunk(kfp.strip_wrappers(keras.saving.load_model(path)))) <= HALF


# {how weights come back: (file, what is done with it, given the file and a model that is prepared like the other)}
def weights_of(path, model):
    model.load_weights(path)
    return model


LOADED = {
    "model": ("{epoch}.keras", lambda path, model: keras.saving.load_model(path)),
    "weights": ("{epoch}.weights.h5", weights_of),
    "weights of a model": ("{epoch}.keras", weights_of),
}


@pytest.fixture(scope="module", params=["masks", "gates"])
def filed(request, tmp_path_factory):
    """(Kind of masks, folder with the files of each epoch, whether what an epoch left is beyond the budget)."""
    way, folder, beyond = request.param, tmp_path_factory.mktemp("epochs"), {}

    class Look(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                beyond[epoch + 1] = total_macs(shrunk(kfp.strip_wrappers(self.model))) > HALF

    names = ["{epoch}.keras", "{epoch}.weights.h5"]
    saved = [callbacks.ModelCheckpoint(folder / name, save_weights_only="weights" in name) for name in names]
    logs, _ = fitted(prepared(way), *saved, Look(), WAYS[way][1]())
    assert logs["macs_if_pruned"] <= HALF
    return way, folder, beyond


@pytest.mark.parametrize("load", LOADED)
def test_files_know_whether_their_masks_met_the_budget(filed, load):
    (way, folder, beyond), (name, again) = filed, LOADED[load]
    model = prepared(way)
    model.optimizer.build(model.trainable_variables)
    assert (beyond[1], beyond[5]) == (True, False)
    # In the order of epochs and back: nothing is left of what was loaded before.
    for epoch in (1, 5, 1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kfp.strip_wrappers(again(folder / name.format(epoch=epoch), model))
        assert [UNMET in str(w.message) for w in caught if w.category is UserWarning] == [True] * beyond[epoch], epoch


def test_files_from_before_there_was_a_note_and_of_masks_set_by_hand_are_taken(tmp_path):
    model = prepared("masks")
    # Keras warns when it loads an optimizer that was not built.
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    # Warnings are errors here.
    for loaded in (keras.saving.load_model(tmp_path / "model.keras"), model):
        loaded.load_weights(tmp_path / "model.weights.h5")
        kfp.strip_wrappers(loaded)


def test_a_file_of_soft_pruning_with_nothing_dead_is_said_to_be_one(tmp_path):
    saved = callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fitted(prepared("soft"), saved, WAYS["soft"][1]())
    loaded = keras.saving.load_model(tmp_path / "5.keras")
    with pytest.warns(UserWarning, match="no filter is dead, and the model stays whole"):
        kfp.prune_model(loaded, "dead", kfp.budgets.RedundancyBudget(), compensate="none", progress=False)


@first_in_turns
def test_an_interrupted_training_goes_on_from_its_backup(way, first, tmp_path):
    class Interrupt(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise RuntimeError("interrupted")

    def found():
        both = [callbacks.BackupAndRestore(tmp_path / "backup"), WAYS[way][1]()]
        return both[::-1] if first else both

    whole, broken, again = (prepared(way) for _ in range(3))
    logs, _ = fitted(whole, WAYS[way][1](), shuffle=False)
    with pytest.raises(RuntimeError, match="interrupted"):
        fitted(broken, *found(), Interrupt(), shuffle=False)
    resumed, said = fitted(again, *found(), shuffle=False)
    assert not said and resumed["macs_if_pruned"] == logs["macs_if_pruned"]
    assert total_macs(shrunk(WAYS[way][2](again))) <= HALF
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("freq", ["epoch", 5])
def test_strengths_of_penalties_go_on_from_a_backup(freq, tmp_path):
    class Interrupt(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise RuntimeError("interrupted")

    def fit(*found):
        model = compiled(kfp.apply_penalty(network(), kfp.regularizers.GroupLasso(1e-4)))
        steered = [*found, kfp.callbacks.PenaltySchedule(0.1, step=1e-2)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logs = model.fit(X, Y, batch_size=4, epochs=5, verbose=0, shuffle=False, callbacks=steered).history
        return logs["strength"], [str(w.message) for w in caught if "no strengths" in str(w.message)]

    backup = functools.partial(callbacks.BackupAndRestore, tmp_path / "backup", save_freq=freq)
    whole, _ = fit()
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(backup(), Interrupt())
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "backup").iterdir():
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "other" / "strengths.json").unlink()
    resumed, said = fit(backup())
    assert resumed[-1] == pytest.approx(whole[-1]) and not said
    if freq != "epoch":
        return
    # What cannot be kept is said.
    _, said = fit(callbacks.BackupAndRestore(tmp_path / "other"))
    assert len(said) == 1 and "strengths.json' holds no strengths of" in said[0] and "go on from 0.0001" in said[0]


@every_way
def test_filters_do_not_come_back_in_a_second_fit(way):
    model, callback = prepared(way), WAYS[way][1]()
    first, _ = fitted(model, callback)
    for again, name in ((callback, "the same callback"), (WAYS[way][1](), "another callback")):
        second, said = fitted(model, again, epochs=4)
        assert not said, name
        assert second["macs_if_pruned"] <= first["macs_if_pruned"] <= HALF, name
        assert total_macs(shrunk(WAYS[way][2](model))) <= second["macs_if_pruned"], name


def test_masks_that_a_looser_schedule_finds_stay():
    model = prepared("masks")
    fitted(model, kfp.callbacks.PruningSchedule(0.4))
    before = [array(w) for w in model.weights if w.name == "mask"]
    logs, _ = fitted(model, kfp.callbacks.PruningSchedule(0.8), epochs=1)
    for a, b in zip(before, [array(w) for w in model.weights if w.name == "mask"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert logs["macs_if_pruned"] == total_macs(shrunk(kfp.strip_wrappers(model))) <= 0.4 * FULL


def test_masked_filters_are_the_first_that_a_tighter_schedule_counts():
    """However large their kernels have become: no living ones go in their place."""
    model = prepared("masks")
    fitted(model, kfp.callbacks.PruningSchedule(0.7), epochs=1)
    masked, kernel = array(model.get_layer("conv3_masked").mask) == 0, model.get_layer("conv2_masked").layer.kernel
    assert masked.any()
    kernel.assign(array(kernel) * np.where(masked, 100, 1))
    logs, _ = fitted(model, kfp.callbacks.PruningSchedule(0.6), epochs=1)
    assert 0.5 * FULL < logs["macs_if_pruned"] <= 0.6 * FULL


@every_kind
def test_a_training_that_ends_early_says_so(way):
    stop = callbacks.EarlyStopping("val_loss", patience=1, mode="min")
    model = prepared(way)
    logs, said = fitted(model, stop, WAYS[way][1]())
    # Masks say it once more where they are stripped.
    unmet = bool(said) and not way.startswith("soft")
    with pytest.warns(UserWarning, match=UNMET) if unmet else contextlib.nullcontext():
        plain = WAYS[way][2](model)
    found = total_macs(shrunk(plain))
    assert found <= logs["macs_if_pruned"]
    assert len(said) == (found > HALF and not way.startswith("soft"))


@pytest.mark.parametrize("frozen", ["before", "after"])
@every_kind
def test_frozen_layers(way, frozen):
    model = network()
    if frozen != "after":
        model.get_layer("conv2").trainable = model.get_layer("conv3").trainable = False
        model.get_layer("bn3").trainable = False
    prepared = compiled(WAYS[way][0](model), run_eagerly=True)
    if frozen == "after":
        for layer in prepared.layers:
            layer.trainable = not layer.name.startswith(("conv2", "conv3"))
        compiled(prepared, run_eagerly=True)
    before = {w.path: array(w) for w in prepared.weights}
    logs, said = fitted(prepared, WAYS[way][1]())
    assert total_macs(shrunk(WAYS[way][2](prepared))) <= logs["macs_if_pruned"] <= HALF
    assert len(said) == (way == "gates" and frozen == "after")
    for weight in prepared.weights:
        if weight.path.endswith(("conv2/kernel", "conv3/kernel")) and not way.startswith("soft"):
            np.testing.assert_array_equal(array(weight), before[weight.path])
    plain = WAYS[way][2](prepared)
    assert not plain.get_layer("conv3").trainable and plain.get_layer("conv1").trainable


def test_gates_of_frozen_layers_are_trained_by_the_loss():
    model = network()
    for layer in model.layers:
        layer.trainable = False
    gated = compiled(kfp.apply_filter_gates(model), optimizers.SGD(0.5), run_eagerly=True)
    gates = [w for w in gated.trainable_weights if w.name == "mask"]
    assert len(gates) == len(gated.trainable_weights) == 3
    before = [array(gate) for gate in gates]
    # A pull that is next to nothing.
    fitted(gated, kfp.callbacks.BudgetGates(0.5, strength=1e-12), epochs=1)
    assert all(np.abs(array(gate) - start).max() > 1e-4 for gate, start in zip(gates, before, strict=True))


@pytest.mark.parametrize("steps", [3, 100])
def test_steps_that_are_taken_at_once_count(steps):
    counted = []

    class Counting(kfp.callbacks.SoftPruning):
        def _scale(self, roles, factor):
            counted.append(roles)
            super()._scale(roles, factor)

    model = prepared("soft", steps_per_execution=steps, **TRACED)
    fitted(model, Counting(0.5, every=8), epochs=4, batch_size=4)
    # Of 32 steps, wherever calls end.
    assert counted.count(("filter", "channel")) == 4


def test_the_hinge_pulls_once_for_every_step():
    def gates(steps):
        model = compiled(kfp.apply_filter_gates(network()), optimizers.SGD(0.0), steps_per_execution=steps)
        fitted(model, kfp.callbacks.BudgetGates(0.2, 100, strength=0.003), epochs=1, batch_size=4)
        return np.concatenate([array(w) for w in model.weights if w.name == "mask"])

    start = np.concatenate([array(w) for w in kfp.apply_filter_gates(network()).weights if w.name == "mask"])
    one = gates(1)
    assert np.abs(one - start).max() > 0.01
    np.testing.assert_allclose(gates(3), one, atol=1e-6)


def test_averages_of_gates_are_the_gates():
    model = prepared("gates", AVERAGES)
    swapped = []

    class Look(callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            swapped.append(np.concatenate([array(w) for w in self.model.weights if w.name == "mask"]))

        def on_epoch_end(self, epoch, logs=None):
            own = np.concatenate([array(w) for w in self.model.weights if w.name == "mask"])
            np.testing.assert_allclose(swapped[-1], own, atol=1e-6)

    fitted(model, WAYS["gates"][1](), callbacks.SwapEMAWeights(), Look(), validation_data=(X, Y))
    assert swapped


def test_a_penalty_that_is_undone_is_measured_at_the_end():
    model = compiled(kfp.apply_penalty(network(), kfp.regularizers.BridgePenalty(1.0, 0.0), "scale"), run_eagerly=True)

    class Slim(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                for name in ("bn1", "bn3"):
                    self.model.get_layer(name).gamma.assign([1.0] + [0.0] * 7)

    schedule = kfp.callbacks.PenaltySchedule(0.5, "bn_scale", step=1e-9)
    _, said = fitted(model, Slim(), schedule, best_weights())
    assert len(said) == 1 and "written over" in said[0] and "start_from_epoch=2" in said[0]
    _, said = fitted(model, Slim(), kfp.callbacks.PenaltySchedule(0.5, "bn_scale", step=1e-9), epochs=4)
    assert not said


def test_callbacks_that_a_loop_of_ones_own_drives_have_the_last_word_themselves():
    model = prepared("masks")
    callback = kfp.callbacks.PruningSchedule(0.5)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0, {})
    for weight in model.weights:
        if weight.name == "mask":
            weight.assign(np.ones(weight.shape))
    with pytest.warns(UserWarning, match="written over"):
        callback.on_train_end()


def test_ours_come_first_and_speak_last():
    ours = [kfp.callbacks.SoftPruning(0.5), kfp.callbacks.SensitivityScorer((X, Y))]
    theirs = [callbacks.Callback(), callbacks.Callback()]
    model = compiled(network())
    found = callbacks.CallbackList([theirs[0], ours[0], theirs[1], ours[1]], add_history=True, model=model)
    assert found.callbacks[:4] == [*ours, *theirs]
    assert [type(c).__name__ for c in found.callbacks[4:]] == ["History", "_LastWord", "_LastWord"]
    # Once, however often the list is given a model.
    found.set_model(model)
    assert len(found.callbacks) == 7


@every_kind
def test_a_student_is_pruned_while_it_is_taught(way):
    student = prepared(way, AVERAGES)
    teacher = compiled(network())
    distiller = keras.distillation.Distiller(
        teacher, student, keras.distillation.LogitsDistillation(temperature=2.0), name="distiller"
    )
    distiller.compile(student.optimizer, student.loss, run_eagerly=True)
    distiller.fit(X, Y, epochs=4, verbose=0, callbacks=[WAYS[way][1]()])
    assert total_macs(shrunk(WAYS[way][2](student))) <= HALF


ELSEWHERE = """
import keras, numpy as np, keras_filterprune as kfp, warnings
keras.utils.set_random_seed(0)
def build():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, name="conv1")(inputs)))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, name="conv2")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
data, labels = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32"), np.arange(32) % 3
def macs(model):
    cost = kfp.budgets.CostModel(kfp.analyze(model))
    return cost.macs(cost.sizes)
for prepare, callback in (
    (kfp.apply_filter_gates, kfp.callbacks.BudgetGates(0.5, 2, strength=0.2)),
    (kfp.apply_filter_pruning, kfp.callbacks.PruningSchedule([1.0, 0.5])),
    (lambda model: model, kfp.callbacks.SoftPruning(0.5, every=4)),
):
    model = prepare(build())
    steps = 2 if keras.backend.backend() != "torch" else 1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(use_ema=True), loss, steps_per_execution=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(data, labels, batch_size=8, epochs=4, verbose=0, callbacks=[
            keras.callbacks.SwapEMAWeights(),
            callback,
        ], validation_data=(data, labels)).history
    assert not any(type(callback).__name__ in str(w.message) for w in caught)
    plain = kfp.strip_wrappers(model)
    small = kfp.prune_model(plain, "dead", kfp.budgets.RedundancyBudget(), compensate="none", progress=False)
    assert macs(small) <= history["macs_if_pruned"][-1] <= 0.5 * macs(build()), (macs(small), history)
"""


@on_every_backend
def test_every_backend_keeps_what_the_logs_say(backend):
    run_on(backend, ELSEWHERE)
