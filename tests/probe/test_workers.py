"""Work elsewhere: what it needs goes to every worker once, few tasks are under way, and results come in order."""

import concurrent.futures
import pickle
import threading

import numpy as np
import pytest
from builders import chain, images

import keras_filterprune as kfp
from keras_filterprune.graph.kept import Kept
from keras_filterprune.probe import workers
from keras_filterprune.probe.trial import Trial


class Counting:
    """An executor that writes down what it is handed, and how many tasks are under way."""

    def __init__(self, pool):
        self.pool, self.sizes, self.most, self.lock, self.now = pool, [], 0, threading.Lock(), 0

    def submit(self, function, *arguments):
        self.sizes.append(len(pickle.dumps(arguments)))
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        future = self.pool.submit(function, *arguments)
        future.add_done_callback(self._back)
        return future

    def _back(self, future):
        with self.lock:
            self.now -= 1


@pytest.fixture(scope="module")
def measured():
    """A network, what is measured of it, forty choices, and what they come to in this process."""
    model = chain()
    graph = kfp.analyze(model)
    trial = Trial(graph, images(64, (6, 6, 3)), "error", False)
    generator = np.random.default_rng(0)
    choices = []
    for _ in range(40):
        kept = {g.name: np.sort(generator.choice(g.size, g.size // 2, replace=False)) for g in graph.groups}
        choices.append(Kept(graph, kept))
    return model, trial, choices, [trial(kept) for kept in choices]


def test_processes_get_the_network_once_each(measured, two_processes):
    model, trial, choices, wanted = measured
    count, executor = 2, Counting(two_processes)
    found = list(workers.spread(model, trial, choices, executor))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    large = [size for size in executor.sizes if size > 20_000]
    # A task that carries the network may meet a worker that has got it meanwhile.
    assert 1 <= len(large) <= count + 1
    assert executor.most <= 2 * count + 2 + count


def test_threads_share_what_was_sent(measured):
    model, trial, choices, wanted = measured
    workers._made.clear()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        executor = Counting(pool)
        found = list(workers.spread(model, trial, choices, executor))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    # One that waited for the lock may have been told before that it is missing.
    assert sum(size > 20_000 for size in executor.sizes) <= 2


def test_choices_are_made_as_they_are_needed(measured):
    model, trial, choices, wanted = measured
    made = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = workers.spread(model, trial, (made.append(kept) or kept for kept in choices), pool)
        assert next(found) == pytest.approx(wanted[0], rel=1e-4)
        assert len(made) <= 6
        found.close()


def test_a_failure_elsewhere_is_raised_here(measured):
    model, trial, choices, _ = measured
    bad = Kept(choices[0].graph, {"no such group": np.arange(2)})
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(KeyError):
        list(workers.spread(model, trial, [bad], pool))
