"""Ctrl-C leaves any work as KeyboardInterrupt, even if something on the way makes another error of it, or nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import keras
import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune.interrupts import interruptible


def raises_another():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("error_already_set") from None


def swallows():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def passes_on():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("interrupted", [raises_another, swallows, passes_on])
def test_it_stays_what_it_is(interrupted):
    with pytest.raises(KeyboardInterrupt), interruptible():
        interrupted()


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), interruptible():
        _ = 1 / 0


def test_a_handler_that_does_not_interrupt_is_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with pytest.raises(ZeroDivisionError), interruptible():
            signal.raise_signal(signal.SIGINT)
            _ = 1 / 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]


def test_threads_have_no_handlers():
    found = []

    def work():
        with interruptible():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


class Interrupted(keras.layers.Layer):
    """Is interrupted while it works, and makes an error of its own of that."""

    armed = False

    def call(self, inputs):
        if Interrupted.armed and not isinstance(inputs, keras.KerasTensor):
            raises_another()
        return inputs


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_an_export_that_is_interrupted(quantize, tmp_path, monkeypatch):
    x = keras.Input((4,))
    model = keras.Model(x, Interrupted()(x))
    monkeypatch.setattr(Interrupted, "armed", True)
    with pytest.raises(KeyboardInterrupt):
        kfp.export_tflite(model, tmp_path / "m.tflite", quantize=quantize, data=np.zeros((8, 4)))
    assert os.listdir(tmp_path) == []


DATA = np.zeros((8, 6, 6, 3), "float32")
SEARCH = kfp.Method(kfp.criteria.L2(), kfp.allocators.Search(measure="error"))
JOBS = {
    "verification": lambda m: kfp.prune_model(m, "l2", progress=False),
    "observing": lambda m: kfp.prune_model(m, "pursuit", data=DATA, verify=False, progress=False),
    "search": lambda m: kfp.prune_model(m, SEARCH, data=DATA, verify=False, progress=False),
    "planning": lambda m: kfp.plan_pruning(m, SEARCH, data=DATA, progress=False),
    "sensitivity": lambda m: kfp.measure_sensitivity(m, DATA, "error", progress=False),
    "layers": lambda m: kfp.prune_layers(m, 1, progress=False),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_work_that_is_interrupted(job, monkeypatch):
    x = keras.Input((6, 6, 3))
    y = keras.layers.Conv2D(4, 3, padding="same")(x)
    y = keras.layers.Add()([y, keras.layers.Conv2D(4, 3, padding="same")(keras.layers.ReLU()(y))])
    y = keras.layers.Conv2D(2, 1)(keras.layers.ReLU()(y))
    model = keras.Model(x, Interrupted()(y))
    monkeypatch.setattr(Interrupted, "armed", True)
    with pytest.raises(KeyboardInterrupt):
        job(model)
