"""Where layers are looked at: how many places there are, and that none is drawn twice."""

from __future__ import annotations

import numpy as np
import pytest
from builders import chain, images
from keras import layers

import keras_filterprune as kfp
from keras_filterprune.criteria import Samples
from keras_filterprune.handlers.registry import linear_of
from keras_filterprune.probe import consumers

SHAPES = {
    "map": (lambda: layers.Conv2D(4, 3), (8, 6, 3), (6, 4)),
    "sequence": (lambda: layers.Dense(4), (24, 3), (24,)),
    "vector": (lambda: layers.Dense(4), (5,), ()),
}


def drawn(kind: str, count: int, share: float = 1.0) -> list[list[tuple[int, ...]]]:
    """The places in every sample."""
    make, shape, inner = SHAPES[kind]
    layer, x = make(), np.zeros((count, *shape), "float32")
    layer.build(x.shape)
    places = consumers.draw_places("layer", linear_of(layer), x, count, share)
    assert (places.positions < np.array(inner, int)[:, None]).all()
    found = [[] for _ in range(count)]
    for sample, place in zip(places.samples, places.positions.T, strict=True):
        found[sample].append(tuple(place.tolist()))
    return found


@pytest.mark.parametrize("kind", SHAPES)
def test_a_small_map_is_seen_as_a_whole(kind):
    everywhere = sorted(np.ndindex(SHAPES[kind][2]))
    assert all(sorted(places) == everywhere for places in drawn(kind, 10))


@pytest.mark.parametrize(("share", "expected"), [(1.0, 8), (0.5, 4)])
def test_of_a_large_map_every_sample_shows_other_places(share, expected, monkeypatch):
    monkeypatch.setattr(consumers, "ROWS", 800)
    found = drawn("map", 100, share)
    assert all(len(set(places)) == len(places) == expected for places in found)
    assert len({tuple(sorted(places)) for places in found}) > 10
    assert {place for places in found for place in places} == set(np.ndindex(6, 4))


class Few(Samples):
    share = 1e-3


def test_a_criterion_looks_at_the_share_of_rows_that_samples_are_worth():
    graph = kfp.analyze(chain((12, 10, 8)))
    found = [kfp.criteria.Energy().observe(graph, {}, kind(images(16, (6, 6, 3))), False) for kind in (Samples, Few)]
    scores = [[each.scores(group, {}) for group in graph.groups] for each in found]
    assert (scores[0][0] != scores[1][0]).any()


def test_least_squares_looks_at_the_share_of_rows_that_samples_are_worth():
    model, x = chain((12, 10, 8)), images(16, (6, 6, 3))
    plan = kfp.plan_pruning(model, "l2", 0.5)
    kernels = [
        kfp.apply_plan(model, plan, data=data, compensate=kfp.compensators.LeastSquares(), progress=False)
        .get_layer("conv2")
        .get_weights()[0]
        for data in (Samples(x), Few(x))
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
