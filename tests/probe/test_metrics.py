"""Any metric on labels of any kind, and by every verb that measures: a value by hand, or a sentence."""

from __future__ import annotations

import pickle

import keras
import numpy as np
import pytest
from builders import predict
from keras import layers

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.metrics import score_of

# Networks that were never trained may do better without some filters.
pytestmark = pytest.mark.filterwarnings("ignore:metric .* rises for every group")

COUNT = 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT, 4, 4, 2)).astype("float32")
CLASSES, NUMBERS = RNG.integers(0, 3, COUNT), RNG.uniform(-1, 1, (COUNT, 3))
MASKS, SEVERAL = RNG.integers(0, 3, (COUNT, 4, 4)), RNG.integers(0, 2, (COUNT, 3))
ONE_HOT = np.eye(3)[CLASSES]


def network(*heads, loss):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((4, 4, 2))
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(inputs)
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv2")(h)
    outputs = [head(h) for head in heads]
    model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])
    if loss is not None:
        model.compile("sgd", loss)
    return model


def flat(name, units=3, activation=None):
    return lambda h: layers.Dense(units, activation, name=name)(layers.Flatten()(h))


def pixels(h):
    return layers.Conv2D(3, 1, activation="softmax", name="pixels")(h)


SPARSE = "sparse_categorical_crossentropy"
# kind of labels: (model, labels)
KINDS = {
    "classes": (lambda loss=SPARSE: network(flat("k", 3, "softmax"), loss=loss), CLASSES),
    "one-hot": (lambda loss="categorical_crossentropy": network(flat("k", 3, "softmax"), loss=loss), ONE_HOT),
    "yes or no": (lambda loss="binary_crossentropy": network(flat("k", 1, "sigmoid"), loss=loss), CLASSES % 2),
    "several": (lambda loss="binary_crossentropy": network(flat("k", 3, "sigmoid"), loss=loss), SEVERAL),
    "masks": (lambda loss=SPARSE: network(pixels, loss=loss), MASKS),
    "numbers": (lambda loss="mae": network(flat("k"), loss=loss), NUMBERS),
    "two outputs": (
        lambda loss=(SPARSE, "mse"): network(flat("k", 3, "softmax"), flat("n"), loss=loss and list(loss)),
        [CLASSES, NUMBERS],
    ),
}


def right(y, p):
    return (p.argmax(-1) == y).reshape(len(y), -1).mean(axis=1)


def entropy(y, p):
    return -np.log(np.take_along_axis(p, y[..., None], -1)[..., 0]).reshape(len(y), -1).mean(axis=1)


def yes(y, p):
    return ((p > 0.5) == y).reshape(len(y), -1).mean(axis=1)


def mean_iou(y, p):
    found = p.argmax(-1)
    return np.mean([((found == c) & (y == c)).sum() / ((found == c) | (y == c)).sum() for c in range(3)])


def squares(y, p):
    return np.square(y - p).reshape(len(y), -1).mean(axis=1)


def distance(y, p):
    return np.abs(y - p).reshape(len(y), -1).mean(axis=1)


def own(labels, outputs):
    """Of labels and outputs of any kind, a number per sample."""
    (first, *_), (found, *_) = ([v] if isinstance(v, np.ndarray) else v for v in (labels, outputs))
    assert found.ndim == 2
    return -np.abs(found).sum(axis=1) - np.asarray(first).reshape(len(found), -1).sum(axis=1)


def own_number(labels, outputs):
    """Of all samples together."""
    return float(np.median(own(labels, outputs)))


def binary_entropy(y, p):
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).reshape(len(y), -1).mean(axis=1)


IOU = keras.metrics.MeanIoU(3, sparse_y_pred=False)
NAMED = {"iou": IOU, "own": own, "own number": own_number, "huber": keras.losses.Huber(), "dict": {"k": "accuracy"}}
REFUSED = None
# metric: {kind: (what it is by hand, of labels and outputs in a list each)}; other kinds are refused
TABLE = {
    "auto": {
        "classes": lambda y, p: right(y[0], p[0]),
        "one-hot": lambda y, p: right(CLASSES, p[0]),
        "yes or no": lambda y, p: yes(y[0][:, None], p[0]),
        "several": lambda y, p: yes(y[0], p[0]),
        "masks": lambda y, p: right(y[0], p[0]),
        "numbers": lambda y, p: -distance(y[0], p[0]),
        "two outputs": lambda y, p: -entropy(y[0], p[0]) - squares(y[1], p[1]),
    },
    "loss": {
        "classes": lambda y, p: -entropy(y[0], p[0]),
        "one-hot": lambda y, p: -entropy(CLASSES, p[0]),
        "yes or no": lambda y, p: -binary_entropy(y[0][:, None], p[0]),
        "several": lambda y, p: -binary_entropy(y[0], p[0]),
        "masks": lambda y, p: -entropy(y[0], p[0]),
        "numbers": lambda y, p: -distance(y[0], p[0]),
        "two outputs": lambda y, p: -entropy(y[0], p[0]) - squares(y[1], p[1]),
    },
    "error": dict.fromkeys(KINDS, lambda y, p: np.zeros(COUNT)),
    "mse": {
        "one-hot": lambda y, p: -squares(y[0], p[0]),
        "yes or no": lambda y, p: -squares(y[0][:, None], p[0]),
        "several": lambda y, p: -squares(y[0], p[0]),
        "numbers": lambda y, p: -squares(y[0], p[0]),
    },
    "sparse_categorical_accuracy": {
        "classes": lambda y, p: right(y[0], p[0]),
        "masks": lambda y, p: right(y[0], p[0]),
    },
    "huber": {
        "one-hot": lambda y, p: -squares(y[0], p[0]) / 2,
        "yes or no": lambda y, p: -squares(y[0][:, None], p[0]) / 2,
        "several": lambda y, p: -squares(y[0], p[0]) / 2,
        "numbers": lambda y, p: -np.where(abs(y[0] - p[0]) < 1, (y[0] - p[0]) ** 2 / 2, abs(y[0] - p[0]) - 0.5),
    },
    "iou": {
        "classes": lambda y, p: mean_iou(y[0], p[0]),
        "yes or no": lambda y, p: np.mean(y[0] == 0) / 2,
        "masks": lambda y, p: mean_iou(y[0], p[0]),
    },
    "dict": {
        "classes": lambda y, p: right(y[0], p[0]),
        "one-hot": lambda y, p: right(CLASSES, p[0]),
        "yes or no": lambda y, p: yes(y[0][:, None], p[0]),
        "several": lambda y, p: yes(y[0], p[0]),
        "two outputs": lambda y, p: right(y[0], p[0]),
    },
    "own": dict.fromkeys(KINDS, lambda y, p: own(y, [z.reshape(COUNT, -1) for z in p])),
    "own number": dict.fromkeys(KINDS, lambda y, p: np.median(own(y, [z.reshape(COUNT, -1) for z in p]))),
}
VERBS = {
    "search": lambda metric: allocators.Search(beta=2, measure=metric),
    "sensitivity": lambda metric: allocators.Sensitivity((0.5,), measure=metric),
    "tolerance": lambda metric: allocators.Tolerance(measure=metric),
    "evolution": lambda metric: allocators.Evolution(10, 0, measure=metric),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", TABLE)
def test_every_metric_of_labels_of_every_kind(named, kind):
    """The value of the whole network is the one by hand; what does not fit is refused before the network runs."""
    make, labels = KINDS[kind]
    model, metric = make(), NAMED.get(named, named)
    by_hand = TABLE[named].get(kind)
    if by_hand is REFUSED:
        for call in (
            lambda: kfp.measure_sensitivity(model, (X, labels), metric, (0.5,), progress=False),
            lambda: kfp.plan_pruning(
                model, kfp.Method(criteria.L2(), VERBS["search"](metric)), 0.6, data=(X, labels), progress=False
            ),
        ):
            with pytest.raises(kfp.FilterPruneError, match=r"expects|refuses|metrics by output"):
                call()
        return
    table = kfp.measure_sensitivity(model, (X, labels), metric, (0.5,), progress=False)
    outputs = [z.astype(float) for z in predict(model, X)]
    expected = np.mean(by_hand(labels if isinstance(labels, list) else [labels], outputs))
    assert table.base == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for cut in table.cuts:
        assert cut.low <= cut.drop <= cut.high
        assert cut.drop == pytest.approx(table.base - cut.value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("named", "kind"), [("auto", "two outputs"), ("loss", "numbers"), ("iou", "masks"), ("own number", "several")]
)
def test_every_search_by_every_metric(named, kind, verb):
    make, labels = KINDS[kind]
    model = make()
    method = kfp.Method(criteria.L2(), VERBS[verb](NAMED.get(named, named)))
    plan = kfp.plan_pruning(model, method, 0.6, data=(X, labels), progress=False)
    before, after = plan.cost["macs"]
    assert after <= 0.6 * before


@pytest.mark.parametrize("method", ["fp_omp_search", "hu_ga", "search"])
@pytest.mark.parametrize("kind", ["masks", "numbers", "two outputs"])
def test_methods_by_name_measure_what_the_labels_are(kind, method):
    make, labels = KINDS[kind]
    model = make()
    plan = kfp.plan_pruning(model, method, 0.7, data=(X, labels), progress=False)
    before, after = plan.cost["macs"]
    assert after <= 0.7 * before


@pytest.mark.parametrize("kind", ["several", "masks", "two outputs"])
def test_the_callback_takes_them_too(kind):
    make, labels = KINDS[kind]
    model = make()
    scorer = kfp.callbacks.SensitivityScorer((X, labels), keep=(0.5,))
    logs = model.fit(X, labels, verbose=0, callbacks=[scorer]).history
    assert scorer.tables[0].metric == ("loss" if kind in ("numbers", "two outputs") else "accuracy")
    assert {"drop_conv1", "drop_conv2"} <= logs.keys()


@pytest.mark.parametrize(("kind", "name"), [("masks", "accuracy"), ("numbers", "mse"), ("two outputs", None)])
def test_models_that_are_not_compiled(kind, name):
    make, labels = KINDS[kind]
    model = make(None)
    if name is None:
        with pytest.raises(errors.CalibrationDataError, match="'accuracy' expects one class number per sample at out"):
            kfp.measure_sensitivity(model, (X, labels), progress=False)
    else:
        assert kfp.measure_sensitivity(model, (X, labels), keep=(0.5,), progress=False).metric == name
    with pytest.raises(errors.CalibrationDataError, match="'loss' is the one a model is compiled with"):
        kfp.measure_sensitivity(model, (X, labels), "loss", progress=False)


@pytest.mark.parametrize(
    ("metric", "error", "sentence"),
    [
        ("mean_io_u", errors.InvalidValueError, r"metric is the name of a metric with settings: pass an object"),
        ("mean", errors.UnknownNameError, "metric is one of auto, "),
        ("mean_square_error", errors.UnknownNameError, r"Did you mean 'mean_squared_error'\?"),
        (keras.metrics.Mean(), errors.UnknownNameError, "metric is one of auto, "),
        (3, errors.UnknownNameError, "metric is one of auto, "),
        ([], errors.UnknownNameError, "metric is one of auto, "),
        (["loss", "accuracy"], errors.UnknownNameError, "Received: metric='loss'"),
        ({"k": "accuracy", "other": "mse"}, errors.InvalidValueError, r"one for each of \['k'\]\. Received: \{'k'"),
        (["accuracy", "mse"], errors.InvalidValueError, r"metrics by output are one for each of \['k'\]"),
        (lambda y, p: np.nan, errors.CalibrationDataError, "'<lambda>' is nan for the whole network"),
        (lambda y, p: p, errors.InvalidValueError, r"shape \(12,\)\. Received: shape \(12, 3\)"),
    ],
)
def test_metrics_that_are_none(metric, error, sentence):
    make, labels = KINDS["classes"]
    with pytest.raises(error, match=sentence):
        kfp.measure_sensitivity(make(), (X, labels), metric, progress=False)


@pytest.mark.parametrize(
    ("kind", "metric", "labels", "sentence"),
    [
        ("classes", "accuracy", CLASSES + 1, "class numbers from 0 to 2 at output 'k'.*Received: 1 to 3"),
        ("classes", "auto", CLASSES + 1, "class numbers from 0 to 2. Received: 1 to 3"),
        ("masks", "accuracy", MASKS - 1, "Received: -1 to 1"),
        ("masks", IOU, MASKS + 1, "'mean_io_u' at output 'pixels' expects class numbers from 0 to 2"),
        ("numbers", "mse", NUMBERS[:, :1], r"'mse' at output 'k' expects labels of shape \(samples, 3\)"),
        ("numbers", "mse", np.full((COUNT, 3), np.nan), "finite labels at output 'k'"),
        ("several", "AUC", SEVERAL * 2, "'AUC' at output 'k' expects labels from 0 to 1"),
        ("two outputs", "auto", CLASSES, r"an array of labels for each of \['k', 'n'\]"),
        ("two outputs", "accuracy", [CLASSES, NUMBERS], "'accuracy' expects one class number per sample at output 'n'"),
    ],
)
def test_labels_that_do_not_fit_a_metric(kind, metric, labels, sentence):
    make, _ = KINDS[kind]
    with pytest.raises(errors.CalibrationDataError, match=sentence):
        kfp.measure_sensitivity(make(), (X, labels), metric, progress=False)


def test_intervals_of_what_is_no_mean_are_those_of_a_mean():
    """The jackknife of a mean of samples agrees with the samples themselves."""
    make, labels = KINDS["numbers"]
    view, outputs = view_model(make()), [NUMBERS + RNG.normal(size=NUMBERS.shape)]
    found = []
    for metric in (lambda y, p: -squares(y, p), lambda y, p: -float(squares(y, p).mean())):
        score, wanted = score_of(metric, view, labels, COUNT)
        values = score.values(wanted, outputs)
        assert values.mean() == pytest.approx(score.mean(wanted, outputs))
        found.append(values.std(ddof=1) / np.sqrt(len(values)))
    assert found[0] == pytest.approx(found[1], rel=0.3)


@pytest.mark.parametrize("named", ["auto", "loss", "mse", "huber"])
def test_scores_reach_other_processes(named):
    make, labels = KINDS["numbers"]
    score, wanted = score_of(NAMED.get(named, named), view_model(make()), labels, COUNT)
    outputs = [NUMBERS * 2]
    assert pickle.loads(pickle.dumps(score)).mean(wanted, outputs) == score.mean(wanted, outputs)
