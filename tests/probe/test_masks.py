"""Padding counts nowhere: whatever stands at masked positions, and however sequences were brought to one length."""

import functools

import keras
import numpy as np
import pytest
from builders import array
from keras import layers, ops

import keras_filterprune as kfp
from keras_filterprune.errors import CalibrationDataError

SAMPLES, LONGEST, WORDS = 48, 9, 20


class Ends(layers.Layer):
    """Masks what is behind the end of a sequence, a row of 7s, and hands all of it on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        return x + 0.0

    def compute_mask(self, x, mask=None):
        return ops.any(ops.not_equal(x, 7), axis=-1)


kfp.register_handler(Ends)(kfp.handlers.Elementwise)


def sequences(seed=0):
    """Words, zeros behind the last one; the first sequence is as long as any, the others are shorter."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, WORDS, (SAMPLES, LONGEST))
    lengths = np.r_[LONGEST, rng.integers(2, LONGEST, SAMPLES - 1)]
    words[np.arange(LONGEST) >= lengths[:, None]] = 0
    return words, rng.integers(0, 3, SAMPLES), rng.integers(0, 3, (SAMPLES, LONGEST))


WORDS_, CLASSES, TAGS = sequences()
VECTORS = np.random.default_rng(1).normal(size=(WORDS, 8)).astype("float32")


def embedded(padding):
    """Of vectors: those of words, `padding` behind them, which the mask is told from."""
    return np.where(WORDS_[..., None] == 0, padding, VECTORS[WORDS_]).astype("float32")


# {what masks: (inputs, layers that mask, the samples); `at` is what stands at padded positions}
KINDS = {
    "embedding": (
        lambda: keras.Input((None,), dtype="int32"),
        lambda: layers.Embedding(WORDS, 8, mask_zero=True),
        WORDS_,
    ),
    "masking": (lambda: keras.Input((None, 8)), lambda: layers.Masking(mask_value=7.0), embedded(7.0)),
    "own": (lambda: keras.Input((None, 8)), Ends, embedded(7.0)),
}
BODIES = {
    "normalized": lambda x: layers.BatchNormalization()(x),
    "layer normalization": lambda x: layers.LayerNormalization()(x),
    "dropout": lambda x: layers.Dropout(0.5)(x),
}
HEADS = {
    "recurrent": lambda x: layers.Dense(3, name="head")(layers.LSTM(8, name="lstm")(x)),
    "pooled": lambda x: layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)),
    "tags": lambda x: layers.Dense(3, name="head")(x),
}


def build(kind="embedding", head="recurrent", body="normalized", padding=0.0):
    keras.utils.set_random_seed(0)
    make, mask, _ = KINDS[kind]
    inputs = make()
    x = mask()(inputs)
    for name in ("a", "b"):
        x = BODIES[body](layers.Dense(12, activation="relu", bias_initializer="normal", name=name)(x))
    model = keras.Model(inputs, HEADS[head](x))
    for weight in model.weights:
        if weight.name == "embeddings":
            weight.assign(np.concatenate([np.full((1, 8), padding), VECTORS[1:]]))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def labels_of(head):
    return TAGS if head == "tags" else CLASSES


@functools.cache
def kept(method, kind="embedding", head="recurrent"):
    """What a method keeps of a network that is given all samples at once."""
    return plan(build(kind, head), method, (KINDS[kind][2], labels_of(head)))


def plan(model, method, data):
    found = kfp.plan_pruning(model, method, kfp.FiltersBudget(0.5), data=data, progress=False)
    # Layers without a name of their own have another one in every model.
    return [kept.tolist() for kept in found.kept.values()]


ON_GRADIENTS = ["taylor", "taylor_gate", "group_fisher"]
ON_ACTIVATIONS = ["apoz", "mean_activation", "energy", "lasso"]
BY_OUTPUTS = [kfp.Method(kfp.criteria.CaP()), kfp.Method(kfp.criteria.OutputPursuit())]
METHODS = [*ON_GRADIENTS, *ON_ACTIVATIONS, *BY_OUTPUTS]


def every_two(first, second, third):
    """Rows of three such that every two values meet, where the third are no more than either of the others."""
    rows = [(a, b, list(third)[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)]
    for one, two, few in ((0, 2, first), (1, 2, second)):
        assert len({(row[one], row[two]) for row in rows}) == len(few) * len(third)
    return rows


# Behind the layers that are pruned the head makes the loss, which gradients are of.
@pytest.mark.parametrize(
    ("method", "head", "body"),
    every_two(ON_GRADIENTS, HEADS, ("normalized", "layer normalization"))
    + [(method, "recurrent", "normalized") for method in METHODS if method not in ON_GRADIENTS],
    ids=str,
)
def test_what_stands_at_masked_positions_decides_nothing(method, head, body):
    """Padding is a word like any other to the layers: a wild one would change every score that looks at it."""
    data = WORDS_, labels_of(head)
    calm, wild = (plan(build(head=head, body=body, padding=value), method, data) for value in (0.0, 50.0))
    assert calm == wild


@pytest.mark.parametrize(
    ("method", "kind", "head"), every_two([*ON_GRADIENTS, "apoz", "mean_activation"], KINDS, HEADS)
)
def test_more_padding_decides_nothing(method, kind, head):
    model, x, y = build(kind, head), KINDS[kind][2], labels_of(head)
    value = 0 if kind == "embedding" else 7
    more = np.pad(x, [(0, 0), (0, 20), *[(0, 0)] * (x.ndim - 2)], constant_values=value)
    tags = np.pad(y, [(0, 0), (0, 20)]) if head == "tags" else y
    assert plan(model, method, (x, y)) == plan(model, method, (more, tags))


@pytest.mark.parametrize(
    ("compensate", "head", "body"),
    every_two(["bn", "mean_shift", "least_squares"], HEADS, ("normalized", "layer normalization")),
)
def test_compensation_looks_at_no_padding(compensate, head, body):
    def small(padding):
        model = build(head=head, body=body, padding=padding)
        return kfp.prune_model(model, "l2", 0.5, data=WORDS_, compensate=compensate, progress=False).get_weights()[1:]

    for calm, wild in zip(small(0.0), small(50.0), strict=True):
        np.testing.assert_allclose(calm, wild, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_that_training_measures():
    model = build(body="normalized", padding=50.0)
    small = kfp.prune_model(model, "l2", kfp.FiltersBudget(1.0), data=WORDS_, compensate="bn", progress=False)
    layer = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    twin = next(layer for layer in small.layers if isinstance(layer, layers.BatchNormalization))
    layer.momentum = 0.0
    model(WORDS_, training=True)
    for ours, theirs in ((twin.moving_mean, layer.moving_mean), (twin.moving_variance, layer.moving_variance)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("metric", ["error", "loss"])
@pytest.mark.parametrize("head", HEADS)
def test_a_study_looks_at_no_padding(head, metric):
    def drops(padding):
        model = build(head=head, padding=padding)
        data = (WORDS_, labels_of(head))
        return [cut.drop for cut in kfp.measure_sensitivity(model, data, metric, (0.5,), progress=False).cuts]

    np.testing.assert_allclose(drops(0.0), drops(50.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("kind", "body", "head"), every_two(KINDS, BODIES, HEADS))
def test_pruned_networks_mask_as_before(kind, body, head):
    """The oracle is the model with zeros where its readers read what went; `verify` holds as well."""
    model = build(kind, head, body)
    small = kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), compensate="none", progress=False)
    x = KINDS[kind][2]
    more = np.pad(x, [(0, 0), (0, 5), *[(0, 0)] * (x.ndim - 2)], constant_values=0 if kind == "embedding" else 7)
    for before, after in zip(array(small(x)), array(small(more)), strict=True):
        np.testing.assert_allclose(before, after[: len(before)], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- sequences of all lengths


def batches(kind, head):
    """Batches as long as their longest sequence; one of them as long as any."""
    x, y = KINDS[kind][2], labels_of(head)
    for start in range(0, SAMPLES, 16):
        part = WORDS_[start : start + 16]
        longest = (part > 0).sum(axis=1).max()
        labels = y[start : start + 16]
        yield x[start : start + 16, :longest], labels[:, :longest] if head == "tags" else labels


FORMS = {
    "generator": lambda kind, head: batches(kind, head),
    "list": lambda kind, head: list(batches(kind, head)),
    "function": lambda kind, head: lambda: batches(kind, head),
}


# One place reads them: every form meets what looks at losses and at inputs, every method meets one form.
READ = [(method, form, kind) for method in ("taylor", "lasso") for form in FORMS for kind in ("embedding", "masking")]
READ += [
    (method, list(FORMS)[number % 3], ("embedding", "masking")[number % 2])
    for number, method in enumerate(METHODS)
    if method not in ("taylor", "lasso")
]


@pytest.mark.parametrize(("method", "form", "kind"), READ, ids=str)
def test_batches_of_all_lengths_are_read_as_one_that_is_padded(method, form, kind):
    head = {"embedding": "recurrent", "masking": "pooled"}[kind]
    assert plan(build(kind, head), method, FORMS[form](kind, head)) == kept(method, kind, head)


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_unequal_lengths_are_refused_where_nothing_says_what_padding_is(form):
    with pytest.raises(CalibrationDataError, match="of unequal lengths"):
        plan(build("own", "tags"), "taylor", FORMS[form]("own", "tags"))


def test_tags_are_padded_with_their_words():
    model = build(head="tags")
    assert plan(model, "taylor", batches("embedding", "tags")) == plan(model, "taylor", (WORDS_, TAGS))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize(
    ("method", "batched"), [(method, number % 2 == 0) for number, method in enumerate(METHODS)], ids=str
)
def test_ragged_tensors(method, batched):
    tf = pytest.importorskip("tensorflow")
    ragged = tf.RaggedTensor.from_tensor(WORDS_, padding=0)
    data = tf.data.Dataset.from_tensor_slices((ragged, CLASSES)).batch(16) if batched else (ragged, CLASSES)
    assert plan(build(), method, data) == kept(method)


def test_lengths_that_nothing_masks_are_named():
    model = keras.Sequential([keras.Input((None,), name="words"), layers.Embedding(WORDS, 8), layers.Dense(12)])
    model.add(layers.GlobalMaxPooling1D())
    model.add(layers.Dense(3))
    with pytest.raises(CalibrationDataError, match=r"for input 'words' is of unequal lengths, \(9,\), \(8,\).*pad it"):
        plan(model, "energy", list(batches("embedding", "recurrent")))
