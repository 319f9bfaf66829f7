"""What opened models are good for: every verb, and training that goes as before."""

import keras
import numpy as np
import pytest
from composites import SITUATIONS, Block, Classifier, Trained, around, called
from keras import layers, ops
from raw_composites import KERNELS  # noqa: F401  (registers)
from text_composites import UNITS

import keras_filterprune as kfp
from keras_filterprune import errors

WIDE = kfp.FiltersBudget(keep=0.5)
X = np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 32)

VERBS = {
    "prune_model": lambda model: kfp.prune_model(model, "l2", WIDE, progress=False),
    "on data": lambda model: kfp.prune_model(model, "pursuit", 0.6, data=X, progress=False),
    "between adapters": lambda model: kfp.prune_model(model, "l2", 0.7, compensate="adapter", data=X, progress=False),
    "apply_bridgeout": lambda model: kfp.strip_wrappers(kfp.apply_bridgeout(model)),
    "apply_filter_pruning": lambda model: kfp.strip_wrappers(kfp.apply_filter_pruning(model)),
    "apply_filter_gates": lambda model: kfp.apply_filter_gates(model),
    "apply_penalty": lambda model: kfp.apply_penalty(model, kfp.regularizers.GroupLasso(1e-4)),
}


COMPOSITES = {"block": lambda: around(Trained(), Trained()), "sub": lambda: called(Classifier())}
# All verbs open by one function: both kinds take turns, and pruning meets both.
TAKEN = [(verb, list(COMPOSITES)[number % 2]) for number, verb in enumerate(VERBS)] + [("prune_model", "sub")]


@pytest.mark.parametrize(("verb", "kind"), TAKEN)
def test_verbs_take_composites_and_give_functional_models(verb, kind):
    model = COMPOSITES[kind]()
    result = VERBS[verb](model)
    assert type(result) is type(kfp.open_model(model))
    assert result(X).shape == (32, 3)
    if verb.startswith("apply"):
        np.testing.assert_allclose(result(X), model(X), rtol=1e-4, atol=1e-5)


def test_studies_take_composites():
    model = around(Trained())
    found = kfp.measure_sensitivity(model, (X, Y), keep=[0.5], progress=False)
    assert "trained_conv" in {name.partition("#")[0] for name in found.groups} or found.groups


def test_a_plan_is_replayed_on_the_model_it_was_made_for(tmp_path):
    model, other = called(Classifier()), called(Classifier())
    kfp.plan_pruning(model, "l2", WIDE, progress=False).save(tmp_path / "plan.json")
    plan = kfp.PruningPlan.load(tmp_path / "plan.json")
    small = kfp.apply_plan(model, plan, progress=False)
    again = kfp.prune_model(model, "l2", WIDE, progress=False)
    np.testing.assert_array_equal(small(X), again(X))
    with pytest.raises(errors.PlanMismatchError, match="with weights"):
        kfp.apply_plan(other, plan, progress=False)


def test_names_are_paths_and_the_same_for_models_made_later():
    first, second = (kfp.open_model(called(Classifier())) for _ in range(2))
    names = [layer.name for layer in first.layers]
    assert names == [layer.name for layer in second.layers]
    assert {"stem", "blocks_0_conv", "blocks_1_norm", "scores"} <= set(names)


class Stops(layers.Layer):
    """Looks at numbers, of which symbolic tensors have none."""

    def call(self, x):
        return x if float(ops.sum(x)) > 0 else -x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("step", [Block(7), Stops()], ids=["opened", "refused"])
def test_symbolic_tensors_take_what_they_took_before(step):
    before = dict(vars(keras.KerasTensor))
    kfp.analyze(around(step))
    assert dict(vars(keras.KerasTensor)) == before


def test_plain_models_are_left_alone():
    x = keras.Input((6, 6, 3))
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 3)(x))))
    assert kfp.open_model(model) is model
    assert kfp.analyze(model).model is model


# ----------------------------------------------------------------------------------------------------------- training


TRAINED = (
    "blocks_in_blocks residual squeeze_and_excite shared_block scale_on_the_left position_embedding class_token "
    "windows regularized_weight frozen_block subclassed_and_told training_handed_on stochastic_depth "
    "product_twice_with_one_weight tied_both_ways added_loss experts_by_equations experts_by_matrices "
    "experts_with_a_loss experts_with_a_loss_in_training loss_of_a_model positions_of_a_table "
    "positions_that_scores_are_looked_up_by halves_that_turn convolution depthwise_convolution dot_product "
    "table_of_words_that_scores_them functions_that_cut_and_shuffle numbers_of_numpy"
).split()


# Few steps are sooner done as they are written; every sixth is traced.
@pytest.mark.parametrize(("name", "eager"), [(name, number % 6 > 0) for number, name in enumerate(TRAINED)])
def test_two_steps_go_as_with_the_original(name, eager):
    model = SITUATIONS[name].build()
    opened = kfp.open_model(model)
    shape = opened.inputs[0].shape[1:]
    x = np.random.default_rng(0).normal(size=(32, *shape)).astype("float32")
    losses = []
    for each in (model, opened):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        each.compile(keras.optimizers.SGD(0.05), loss, run_eagerly=eager)
        losses.append(each.fit(x, Y, 16, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    found = [each(x, training=False) if eager else each.predict(x, verbose=0) for each in (model, opened)]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.portable
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", ["subclassed", "halves_that_turn", "experts_with_a_loss"])
def test_what_is_left_trains_on(name):
    small = kfp.prune_model(SITUATIONS[name].build(), "l2", WIDE, progress=False)
    before = [np.array(keras.ops.convert_to_numpy(v.value)) for v in small.trainable_variables]
    small.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(32, *small.inputs[0].shape[1:])).astype("float32")
    losses = small.fit(x, Y, 8, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = [keras.ops.convert_to_numpy(v.value) for v in small.trainable_variables]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_a_compiled_model_stays_compiled():
    model = called(Classifier())
    model.compile("adam", "mse", metrics=["mae"])
    small = kfp.prune_model(model, "l2", WIDE, progress=False)
    assert small.compiled
    small.fit(X, np.zeros((32, 3)), verbose=0)


# ----------------------------------------------------------------------------------------------------------- sentences


class Tuned(Classifier):
    """Has a training step and a method of its own."""

    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)

    def classify(self, x):
        return ops.argmax(self(x), axis=-1)


def test_what_a_plain_model_lacks_is_said():
    _, report = kfp.prune_model(called(Tuned()), "l2", WIDE, progress=False, return_report=True)
    notes = " ".join(report.notes)
    assert "Tuned's own train_step() is not part of it" in notes
    assert "Tuned also has classify" in notes
    assert "Tuned.call() has no argument `training`, so that fit() runs 'blocks_0_norm' as in inference" in notes


# What stays closed and lets channels through all the same holds nothing back.
@pytest.mark.parametrize("name", [name for name, found in SITUATIONS.items() if found.closed and name not in UNITS])
def test_reasons_stand_in_the_report(name):
    graph = kfp.analyze(SITUATIONS[name].build())
    text = " ".join(pin.reason for pin in graph.pinned)
    for word in SITUATIONS[name].closed.values():
        assert "it is not opened: it " in text
        assert word in text


class Foreign(keras.Model):
    """Calls what is not of Keras."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(ops.convert_to_tensor(np.asarray(x) + 1))


def test_models_that_cannot_be_opened_say_where_they_stop():
    model = Foreign()
    model(np.zeros((2, 3), "float32"))
    with pytest.raises(errors.UnsupportedModelError, match=r"test_after_opening\.py:\d+ \(return self\.dense") as error:
        kfp.analyze(model)
    assert "keras.ops" in str(error.value)


@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize(
    "spec",
    [(None, 6, 6, 3), (4, 6, 6, 3), keras.KerasTensor((None, 6, 6, 3)), X, keras.InputSpec(shape=(None, 6, 6, 3))],
    ids=["shape", "fixed batch", "symbolic", "batch", "spec"],
)
def test_shapes_or_a_batch_open_what_is_not_known(spec, called_before):
    model = Classifier()
    if called_before:
        model(X)
    opened = kfp.open_model(model, spec)
    np.testing.assert_allclose(opened(X[:4]), model(X[:4]), rtol=1e-5, atol=1e-6)
    assert len(opened.layers) > 3


def test_an_input_spec_that_a_model_does_not_take():
    with pytest.raises(errors.InvalidValueError, match="input_spec is a shape with the batch first"):
        kfp.open_model(called(Classifier()), "image")
    for model in (Classifier(), called(Classifier())):
        with pytest.raises(
            errors.UnsupportedModelError, match=r"stops in its call\(\) .*\.py:\d+ .*[^.]\. Write its"
        ) as error:
            kfp.open_model(model, (None, 6, 6))
        assert "Leaf" not in str(error.value)


def test_a_graph_that_cannot_be_opened_is_pruned_around_what_it_has():
    class Foreign(layers.Layer):
        def call(self, x):
            if isinstance(x, keras.KerasTensor):
                raise TypeError("numbers alone")
            return ops.cumsum(x, axis=-1)

    model = around(Foreign(name="foreign"))
    (pin,) = [pin for pin in kfp.analyze(model).pinned if pin.layer == "before"]
    assert "it is not opened: it stops in its call() at test_after_opening.py" in pin.reason
    assert kfp.analyze(model).model is model
    assert kfp.prune_model(model, "l2", WIDE, progress=False).get_layer("after").filters < 5


def test_a_nested_model_without_a_configuration_does_no_harm():
    class Inner(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.conv = layers.Conv2D(width, 3)
            self.unwritten = object()

        def call(self, x):
            return self.conv(x)

        def get_config(self):
            raise AttributeError("unwritten")

    model = around(Inner(7))
    conv = kfp.analyze(model).groups[1].producers[0]
    assert kfp.prune_model(model, "l2", WIDE, progress=False).get_layer(conv).filters < 7


def test_sides_of_an_input_spec_are_those_of_the_opened_model():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(Trained()(inputs))
    opened = kfp.open_model(keras.Model(inputs, layers.Dense(3)(x)), input_spec=(None, 6, 6, 3))
    assert opened.inputs[0].shape == (None, 6, 6, 3)
