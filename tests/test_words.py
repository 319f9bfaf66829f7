"""Networks that take or give words and class numbers are pruned and proven like others."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune.probe import random_inputs

L = keras.layers
pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has tensors of words")


def body(x):
    return L.Dense(16, activation="relu")(L.Dense(16, activation="relu")(x))


def looked_up(lookup, dtype="string", embedded=8):
    x = keras.Input((1,), dtype=dtype)
    return keras.Model(x, L.Dense(3)(body(L.Flatten()(L.Embedding(embedded, 8)(lookup(x))))))


def text():
    split = L.TextVectorization(max_tokens=20, output_sequence_length=12)
    split.adapt(np.array(["a b c d", "e f g"]))
    x = keras.Input((1,), dtype="string")
    y = L.Conv1D(16, 3, activation="relu")(L.Conv1D(16, 3, activation="relu")(L.Embedding(20, 16)(split(x))))
    return keras.Model(x, L.Dense(2)(L.GlobalMaxPooling1D()(y)))


def image_and_word():
    image, word = keras.Input((8, 8, 3)), keras.Input((1,), dtype="string")
    e = L.Flatten()(L.Embedding(4, 8)(L.StringLookup(vocabulary=["a", "b", "c"])(word)))
    h = L.GlobalAveragePooling2D()(L.Conv2D(16, 3, activation="relu")(L.Conv2D(16, 3, activation="relu")(image)))
    return keras.Model([image, word], L.Dense(3)(L.Concatenate()([h, e])))


def numbers_out():
    x = keras.Input((6,))
    return keras.Model(x, keras.ops.argmax(L.Dense(3)(body(x)), axis=-1))


def words_out():
    x = keras.Input((6,))
    number = keras.ops.argmax(L.Dense(3)(body(x)), axis=-1)
    return keras.Model(x, L.StringLookup(vocabulary=["a", "b", "c"], invert=True, num_oov_indices=0)(number))


def scores_and_words_out():
    x = keras.Input((6,))
    scores = L.Dense(3)(body(x))
    name = L.StringLookup(vocabulary=["a", "b", "c"], invert=True, num_oov_indices=0)
    return keras.Model(x, [scores, name(keras.ops.argmax(scores, axis=-1))])


WORDS = np.random.default_rng(0).choice(np.array(["a", "b", "c"], object), (32, 1))
NUMBERS = np.random.default_rng(0).choice([10, 20, 30], (32, 1))
VALUES = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
IMAGES = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
MODELS = {
    "words": (lambda: looked_up(L.StringLookup(vocabulary=["a", "b", "c"])), WORDS),
    "words, no others": (lambda: looked_up(L.StringLookup(vocabulary=["a", "b", "c"], num_oov_indices=0)), WORDS),
    "hashed words": (lambda: looked_up(L.Hashing(8)), WORDS),
    "numbers, no others": (
        lambda: looked_up(L.IntegerLookup(vocabulary=[10, 20, 30], num_oov_indices=0), "int32"),
        NUMBERS,
    ),
    "text": (text, WORDS),
    "image and word": (image_and_word, [IMAGES, WORDS]),
    "class numbers out": (numbers_out, VALUES),
    "words out": (words_out, VALUES),
    "scores and words out": (scores_and_words_out, VALUES),
}


@pytest.mark.parametrize("method", ["l2", "pursuit", "energy", "cap"])
@pytest.mark.parametrize("name", MODELS)
def test_words_and_numbers(name, method):
    build, data = MODELS[name]
    model = build()
    data = None if method == "l2" else data
    small, report = kfp.prune_model(model, method, 0.6, data=data, return_report=True, progress=False)
    assert small.count_params() < model.count_params()
    assert report.verification is not None and report.verification < 1e-4


def test_drawn_words_are_of_the_vocabulary():
    model = MODELS["words, no others"][0]()
    (words,) = random_inputs(kfp.analyze(model).view, batch=64)
    assert set(keras.ops.convert_to_numpy(words).ravel()) == {b"a", b"b", b"c"}
