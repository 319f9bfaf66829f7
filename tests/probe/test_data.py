"""Calibration data in every form means the same, and recalibration measures what NumPy measures."""

import keras
import numpy as np
import pytest
from builders import assert_all_equal
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune.compensators import BNRecalibration
from keras_filterprune.export.calibration import calibration_samples
from keras_filterprune.export.signature import input_ports
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe import data as probe_data
from keras_filterprune.probe import normalization, subsets
from keras_filterprune.probe.inputs import calibration_inputs

SAMPLES = 24


def images(seed=0, shape=(12, 12, 3)):
    return np.random.default_rng(seed).normal(0.5, 2.0, size=(SAMPLES, *shape)).astype("float32")


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], self.y[part]


def dataset(*structure, size=8):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(structure if len(structure) > 1 else structure[0]).batch(size)


X, Y = images(), np.arange(SAMPLES)
# One batch each: batches are normalised by their own statistics on the way, so their size matters.
WHOLE = {
    "array": lambda: X,
    "tensor": lambda: keras.ops.convert_to_tensor(X),
    "float64": lambda: X.astype("float64"),
    "list": lambda: [X],
    "dict": lambda: {"image": X},
    "dict with more": lambda: {"image": X, "label": Y},
    "with labels": lambda: (X, Y),
    "dict with labels": lambda: ({"image": X}, Y),
    "list with labels": lambda: ([X], Y),
    "generator": lambda: (b for b in [X]),
    "generator of pairs": lambda: (b for b in [(X, Y)]),
    "dataset": lambda: dataset(X, size=SAMPLES),
    "dataset of pairs": lambda: dataset(X, Y, size=SAMPLES),
    "dataset of dicts": lambda: dataset({"image": X}, size=SAMPLES),
    "pydataset": lambda: Batches(X, Y, SAMPLES),
}
PARTS = {
    "generator": lambda: (X[i : i + 8] for i in (0, 8, 16)),
    "iterator of lists": lambda: iter([[X[:8]], [X[8:16]], [X[16:]]]),
    "dataset": lambda: dataset(X, Y),
    "pydataset": lambda: Batches(X, Y, 8),
    "mixed forms": lambda: iter([X[:8], (X[8:16], Y[8:16]), {"image": X[16:]}]),
}


def statistics(model):
    return {
        layer.name: (layer.moving_mean.numpy(), layer.moving_variance.numpy())
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }


def recalibrated(model, data):
    """The whole model, nothing removed, with its statistics measured anew; and what the report says about that."""
    small, report = kfp.prune_model(
        model, "l1", 1.0, data=data, compensate=BNRecalibration(), return_report=True, progress=False
    )
    return small, report.compensation


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert_all_equal(a[name], b[name])


@pytest.fixture(scope="module")
def pruned():
    """A function that prunes one model with given calibration data and returns the new statistics."""
    model = ZOO["conv_bn_relu_chain"]()

    def prune(data):
        return statistics(kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), data=data, verify=False, progress=False))

    return prune


@pytest.fixture(scope="module")
def whole(pruned):
    return pruned(X)


@pytest.mark.parametrize("form", WHOLE)
def test_one_batch_in_every_form(pruned, whole, form):
    assert_same(pruned(WHOLE[form]()), whole)


@pytest.mark.parametrize("form", PARTS)
def test_several_batches_in_every_form(pruned, whole, form):
    assert_same(pruned(PARTS[form]()), whole)


@pytest.mark.parametrize("name", ["siamese", "dict_input_output"])
def test_several_inputs_by_order_and_by_name(name):
    model = ZOO[name]()
    arrays = [images(i, tuple(t.shape[1:])) for i, t in enumerate(model.inputs)]
    named = {t.name: a for t, a in zip(model.inputs, arrays, strict=True)}
    forms = [arrays, named, dict(reversed(named.items())), (arrays, Y), (named, Y), dataset(named, Y, size=SAMPLES)]
    view = view_model(model)
    for form in forms:
        assert_all_equal(arrays, calibration_inputs(form, view).arrays())


def test_several_inputs_in_a_tuple_as_tf_data_gives_them():
    arrays = (images(1, (6, 8, 3)), images(2, (6, 8, 3)))
    inputs = calibration_inputs(dataset(arrays, Y, size=SAMPLES), view_model(ZOO["siamese"]()))
    assert_all_equal(arrays, inputs.arrays())


class Endless(Batches):
    """A PyDataset whose number of batches is not known."""

    def __len__(self):
        raise TypeError

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return super().__getitem__(index % 3)


def loader(*arrays):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.tensor, arrays)), batch_size=8)


def forever(*batches):
    while True:
        yield from batches


C, PARTS_OF_8 = Y % 3, [slice(0, 8), slice(8, 16), slice(16, 24)]
WEIGHTS = np.linspace(0.5, 2, SAMPLES, dtype="float32")
# Everything that `fit` takes, of the same samples in the same order; endless data goes round.
FORMS = {
    "arrays": lambda: (X, C),
    "with weights": lambda: (X, C, WEIGHTS),
    "dicts": lambda: ({"image": X}, {"head": C}),
    "lists": lambda: ([X], [C]),
    "labels in a list": lambda: (X, C.tolist()),
    "class numbers in columns, as floats": lambda: (X, C[:, None].astype("float32")),
    "generator": lambda: ((X[part], C[part]) for part in PARTS_OF_8),
    "endless generator": lambda: forever(*((X[part], C[part]) for part in PARTS_OF_8)),
    "generator of weighted dicts": lambda: (({"image": X[p]}, {"head": C[p]}, WEIGHTS[p]) for p in PARTS_OF_8),
    "list of batches": lambda: [(X[:8], C[:8]), (X[8:], C[8:])],
    "batches as lists": lambda: iter([[X[:8], C[:8]], [X[8:], C[8:]]]),
    "dataset, the last batch ragged": lambda: dataset(X, C, size=9),
    "dataset of dicts": lambda: dataset({"image": X}, {"head": C}),
    "endless dataset": lambda: dataset(X, C, WEIGHTS).repeat(),
    "PyDataset": lambda: Batches(X, C, 9),
    "PyDataset without length": lambda: Endless(X, C, 8),
    "PyTorch loader": lambda: loader(X, C),
    "PyTorch loader with weights": lambda: loader(X, C, WEIGHTS),
    "function": lambda: lambda: ((X[part], C[part]) for part in PARTS_OF_8),
}
NEVER_ENDS = {"endless generator", "endless dataset", "PyDataset without length"}


@pytest.fixture(scope="module")
def head():
    """A small classifier, compiled, whose class numbers are the labels of `FORMS`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3), name="image")
    y = keras.layers.Conv2D(4, 3, 3, name="conv1")(inputs)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn1")(y))
    y = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv2")(y)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(y)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture(scope="module")
def reference(head):
    """What a method keeps by arrays, once per method."""
    found = {}

    def kept(method, weighted):
        # Only what looks at the loss looks at weights.
        key = method, weighted and method.startswith("taylor")
        if key not in found:
            data = (X, C, WEIGHTS) if key[1] else (X, C)
            found[key] = kfp.plan_pruning(head, method, 0.6, data=data, progress=False).groups
        return found[key]

    return kept


# One place reads all forms: every form meets what looks at inputs or losses, everything meets two forms of these kinds:
# by name, read once, without an end, without a length, from a function.
KINDS = ["dicts", "generator of weighted dicts", "endless dataset", "PyDataset without length", "function"]


def met(everything, examples):
    found = [(form, name) for form in FORMS for name in examples]
    others = [name for name in everything if name not in examples]
    return found + [(KINDS[(number + n) % 5], name) for number, name in enumerate(others) for n in (0, 2)]


# "excitation" looks at gates, of which this network has none.
METHODS = [name for name, needs, _ in kfp.list_methods() if needs != "nothing" and name != "excitation"]


@pytest.mark.parametrize(("form", "method"), met(METHODS, ("energy", "taylor")))
def test_every_method_takes_every_form(form, method, head, reference):
    plan = kfp.plan_pruning(head, method, 0.6, data=FORMS[form](), progress=False)
    # Endless data gives more samples.
    assert form in NEVER_ENDS or plan.groups == reference(method, "weight" in form)


COMPENSATORS = ["bn", "least_squares", "mean_shift", "linear", "adapter"]


@pytest.mark.parametrize(("form", "compensate"), met(COMPENSATORS, ("bn", "least_squares")))
def test_every_compensator_takes_every_form(form, compensate, head):
    budget = kfp.FiltersBudget(0.5)
    small = kfp.prune_model(head, "l2", budget, data=FORMS[form](), compensate=compensate, verify=False, progress=False)
    assert np.isfinite(keras.ops.convert_to_numpy(small(X))).all()


@pytest.mark.parametrize("form", FORMS)
def test_exports_calibrate_with_every_form(form, head):
    (found,) = calibration_samples(input_ports(head), FORMS[form]()).values()
    assert len(found) in (SAMPLES, probe_data.SAMPLES)
    np.testing.assert_array_equal(found[:SAMPLES], X)


def test_sensitivity_takes_every_form(head):
    cuts = {
        form: kfp.measure_sensitivity(head, make(), keep=(0.5,), samples=SAMPLES, progress=False).cuts
        for form, make in FORMS.items()
    }
    assert [form for form in FORMS if cuts[form] != cuts["arrays"]] == []


def test_data_is_read_once_and_no_further_than_documented():
    seen = []

    def counted():
        for i in range(1000):
            seen.append(i)
            yield X, Y % 3

    kfp.prune_model(ZOO["conv_bn_relu_chain"](), "pursuit", 0.6, data=counted(), progress=False)
    assert seen == list(range(-(-probe_data.SAMPLES // SAMPLES)))


@pytest.mark.parametrize(("step", "least", "expected"), [(3, 10, 3), (3, 150, 2), (4, 400, 1)])
def test_thinned_samples_are_at_equal_distances_and_read_once(step, least, expected):
    x, y = np.arange(300.0).reshape(300, 1), np.arange(300)
    read = []

    def batches():
        for start in range(0, 300, 50):
            read.append(start)
            yield x[start : start + 50], y[start : start + 50]

    view = view_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)]))
    whole = probe_data.Samples(batches())
    parts = subsets.Thinned(whole, step, least).read(view)
    assert np.concatenate([part.inputs[0] for part in parts])[:, 0] == pytest.approx(np.arange(0, 300, expected))
    assert (np.concatenate([part.labels for part in parts]) == np.arange(0, 300, expected)).all()
    assert sum(len(part.inputs[0]) for part in whole.read(view)) == 300
    assert read == list(range(0, 300, 50))


def test_a_loader_of_several_inputs_hands_over_labels_last():
    arrays = [images(1, (6, 8, 3)), images(2, (6, 8, 3))]
    view = view_model(ZOO["siamese"]())
    for batch in ([*arrays, Y], [*arrays, Y, np.ones(SAMPLES)], (arrays, Y)):
        ((inputs, labels, weights),) = probe_data.Samples(iter([batch])).read(view)
        np.testing.assert_array_equal(labels, Y)
        assert weights is None or weights.shape == (SAMPLES,)
        for expected, received in zip(arrays, inputs, strict=True):
            np.testing.assert_array_equal(expected, received)


def test_data_sorted_by_class_is_warned_of_once():
    x, y = np.zeros((4096, 12, 12, 3), "float32"), np.arange(4096) // 2048
    model = ZOO["conv_bn_relu_chain"]()
    with pytest.warns(
        UserWarning, match=r"first 2,048 samples, .* sorted by class and hold 1 of \d+: .* Shuffle"
    ) as caught:
        kfp.prune_model(model, "l2", 0.6, data=(x, y), progress=False)
    assert sum("sorted by class" in str(warning.message) for warning in caught) == 1
    # Shuffled, or read whole: nothing to say.
    order = np.random.default_rng(0).permutation(4096)
    kfp.prune_model(model, "l2", 0.6, data=(x, y[order]), progress=False)
    kfp.prune_model(model, "l2", 0.6, data=(x[:64], y[:64]), progress=False)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((X, Y), r"class numbers from 0 to \d+, which the model has outputs for\. Received: 0 to 23\."),
        ((X, -(Y % 2)), r"Received: -1 to 0\."),
        ((X, Y / 2), "one class number per sample"),
        (X, "needs labelled samples"),
        ([(X, Y % 3), (X, None)], "needs labelled samples"),
    ],
)
def test_labels_that_do_not_fit(data, sentence):
    with pytest.raises(kfp.errors.CalibrationDataError, match=sentence):
        kfp.prune_model(ZOO["conv_bn_relu_chain"](), "taylor", 0.6, data=data, progress=False)


def test_single_samples_are_to_be_put_into_batches():
    import tensorflow as tf

    with pytest.raises(kfp.errors.CalibrationDataError, match=r"These are single samples: put them into batches"):
        kfp.prune_model(ZOO["conv_bn_relu_chain"](), "energy", 0.6, data=tf.data.Dataset.from_tensor_slices(X))


# --------------------------------------------------------------------------------------------- recalibration by hand


def small_model(trainable=True, dropout=0.0):
    keras.utils.set_random_seed(1)
    x = keras.Input((6, 6, 3), name="image")
    y = keras.layers.Conv2D(5, 3, padding="same", activation="relu", name="conv1")(x)
    y = keras.layers.BatchNormalization(trainable=trainable, epsilon=0.01, name="bn1")(y)
    y = keras.layers.Dropout(dropout, name="drop")(y)
    y = keras.layers.Conv2D(4, 1, use_bias=False, name="conv2")(y)
    y = keras.layers.BatchNormalization(scale=False, trainable=trainable, name="bn2")(y)
    y = keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D(name="gap")(y))
    model = keras.Model(x, y, name="small")
    rng = np.random.default_rng(3)
    for layer in ("bn1", "bn2"):
        for variable in model.get_layer(layer).weights:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def convolve_same(x, kernel):
    """Cross-correlation with zero padding, by loops over the kernel."""
    kh, kw = kernel.shape[:2]
    padded = np.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    y = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i in range(kh):
        for j in range(kw):
            y += padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
    return y


def by_hand(model, batches):
    """{layer: (mean, variance)} over all batches, each normalised by its own statistics, in float64 NumPy."""
    w = {v.path: v.numpy().astype(np.float64) for v in model.weights}
    seen = {"bn1": [], "bn2": []}
    for x in batches:
        y = np.maximum(convolve_same(x.astype(np.float64), w["conv1/kernel"]) + w["conv1/bias"], 0)
        seen["bn1"].append(y)
        y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 0.01) * w["bn1/gamma"] + w["bn1/beta"]
        seen["bn2"].append(y @ w["conv2/kernel"][0, 0])
    values = {name: np.concatenate(parts).reshape(-1, parts[0].shape[-1]) for name, parts in seen.items()}
    return {name: (v.mean(axis=0), v.var(axis=0)) for name, v in values.items()}


@pytest.mark.parametrize(("most", "cuts"), [(128, ()), (8, (8, 16)), (9, (8, 16)), (23, (12,))])
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
def test_recalibration_equals_statistics_by_hand(most, cuts, trainable, monkeypatch):
    """However the data comes, and in batches of the same size."""
    monkeypatch.setattr(normalization, "_BATCH", most)
    model = small_model(trainable)
    x = images(4, (6, 6, 3))
    expected = by_hand(model, np.split(x, cuts))
    others = {v.path: v.numpy() for v in model.weights if "moving" not in v.name}
    model, said = recalibrated(model, iter(np.split(x, [1, 20])))
    assert said == f"statistics of 2 batch normalization layers measured on {SAMPLES} samples"
    for name, values in statistics(model).items():
        for received, wanted in zip(values, expected[name], strict=True):
            np.testing.assert_allclose(received, wanted, rtol=1e-4, atol=1e-5)
    for path, value in others.items():
        np.testing.assert_array_equal(next(v for v in model.weights if v.path == path).numpy(), value)
    assert model.get_layer("bn1").trainable is trainable


def test_statistics_are_pooled_without_cancellation():
    model = small_model()
    model.get_layer("conv1").bias.assign(np.full(5, 100.0))
    x = images(5, (6, 6, 3))
    expected = by_hand(model, [x])
    model, _ = recalibrated(model, x)
    np.testing.assert_allclose(model.get_layer("bn1").moving_variance.numpy(), expected["bn1"][1], rtol=1e-3)


def test_dropout_stays_off():
    x = images(6, (6, 6, 3))
    results = []
    for dropout in (0.0, 0.9):
        model = small_model(dropout=dropout)
        model.set_weights(small_model().get_weights())
        results.append(statistics(recalibrated(model, x)[0]))
    assert_same(*results)


def test_recalibration_follows_the_pruned_network_and_not_the_original():
    model = small_model()
    x = images(7, (6, 6, 3))
    small, report = kfp.prune_model(model, "l1", kfp.FiltersBudget(0.5), data=x, return_report=True, progress=False)
    expected = by_hand(small, [x])
    for name, values in statistics(small).items():
        for received, wanted in zip(values, expected[name], strict=True):
            np.testing.assert_allclose(received, wanted, rtol=1e-4, atol=1e-5)
    assert report.compensation == f"statistics of 2 batch normalization layers measured on {SAMPLES} samples"
    full = by_hand(model, [x])["bn2"][0][report.plan.kept["bn2"]]
    assert not np.allclose(full, expected["bn2"][0], rtol=0.05)


def test_the_original_and_the_data_are_untouched():
    model = small_model()
    before, x = model.get_weights(), images(8, (6, 6, 3))
    copy = x.copy()
    x.flags.writeable = False
    kfp.prune_model(model, "l2", 0.5, data=x, progress=False)
    assert_all_equal(before, model.get_weights())
    np.testing.assert_array_equal(x, copy)


def test_data_is_used_only_when_asked_for():
    model = small_model()
    x = images(9, (6, 6, 3))
    plain = statistics(kfp.prune_model(model, "l2", 0.5, progress=False))
    assert_same(statistics(kfp.prune_model(model, "l2", 0.5, data=x, compensate="none", progress=False)), plain)
    asked = kfp.prune_model(model, "l2", 0.5, data=x, compensate=BNRecalibration(), progress=False)
    assert_same(statistics(asked), statistics(kfp.prune_model(model, "l2", 0.5, data=x, progress=False)))
    assert (statistics(asked)["bn1"][0] != plain["bn1"][0]).all()


def test_a_model_without_batch_normalization_has_nothing_to_recalibrate():
    model = ZOO["plain_chain"]()
    x = images(0, (12, 10, 3))
    _, report = kfp.prune_model(model, "l2", 0.5, data=x, return_report=True, progress=False)
    assert report.compensation == "the model has no batch normalization to recalibrate"


def test_a_normalization_called_twice_pools_both_calls():
    x = images(3, (8, 8, 3))
    model, _ = recalibrated(ZOO["shared_head"](), x)
    # Called once each, these two have exactly their batch's statistics now.
    taps = keras.Function(model.inputs, [model.get_layer(f"{name}_act").output for name in ("fine", "coarse")])
    fine, coarse = taps([keras.ops.convert_to_tensor(x)])
    tower = model.get_layer("tower")
    values = np.concatenate([np.asarray(tower(t)).reshape(-1, 7) for t in (fine, coarse)]).astype(np.float64)
    np.testing.assert_allclose(model.get_layer("tower_bn").moving_mean.numpy(), values.mean(0), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(model.get_layer("tower_bn").moving_variance.numpy(), values.var(0), rtol=2e-2)


def test_samples_without_some_are_the_others_in_order_and_no_copies():
    x, y = np.arange(300.0).reshape(300, 1), np.arange(300)
    view = view_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)]))
    parts = subsets.Without(probe_data.Samples((x, y)), lambda count: range(1, count, 7)).read(view)
    expected = np.delete(np.arange(300), np.arange(1, 300, 7))
    assert (np.concatenate([part.inputs[0] for part in parts])[:, 0] == expected).all()
    assert (np.concatenate([part.labels for part in parts]) == expected).all()
    assert all(np.shares_memory(part.inputs[0], x) for part in parts)
