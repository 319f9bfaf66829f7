"""CaP's search and balanced pruning by name are the papers' loops, written out: bisect every layer, then the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import compiled, images, kept_counts
from trials import chain, labelled, trial_of

import keras_filterprune as kfp
from keras_filterprune.methods import as_method
from keras_filterprune.probe import Weights

HALVINGS = 5


class Loop:
    """One layer after the other, front to back, earlier cuts kept."""

    def __init__(self, model, name, data):
        recipe = as_method(name, 0, True)
        self.graph = kfp.analyze(model)
        self.weights = Weights(self.graph.view)
        self.criterion = recipe.criterion.observe(self.graph, self.weights, data, False)
        self.linear = recipe.allocator.floor == "linear"
        self.trial = trial_of(self.graph, data, recipe.allocator.measure)

    def score(self, counts):
        groups = [(group, counts[group.name]) for group in self.graph.groups]
        return self.trial({g.name: self.criterion.select(g, n, self.weights) for g, n in groups if n < g.size})

    def pruned(self, drop):
        counts = {group.name: group.size for group in self.graph.groups}
        whole = before = self.score(counts)
        for done, name in enumerate(list(counts), 1):
            layers = len(counts)
            least = whole - drop * done / layers if self.linear else before - drop / layers
            lower, upper, size = 0, counts[name] - 1, counts[name]
            while lower < upper:
                gone = math.ceil((lower + upper) / 2)
                kept = self.score(counts | {name: size - gone}) >= least - 1e-6
                lower, upper = (gone, upper) if kept else (lower, gone - 1)
            counts[name] = size - lower
            before = self.score(counts)
        return counts

    def macs(self, counts):
        costs = kfp.budgets.CostModel(self.graph)
        return costs.macs(np.array([counts[name] for name in costs.groups]))

    def within(self, limit):
        """Under the smallest loss that meets a limit: doubled until it does, then halved on a scale of factors."""
        low, high = 0.0, 0.01
        while self.macs(best := self.pruned(high)) > limit:
            low, high = high, 2 * high
        for _ in range(HALVINGS if low else 0):
            middle = math.sqrt(low * high)
            found = self.pruned(middle)
            if self.macs(found) <= limit:
                best, high = found, middle
            else:
                low = middle
        return best


@pytest.mark.parametrize("keep", [0.5, 0.8])
@pytest.mark.parametrize("name", ["cap_search", "balanced"])
def test_the_papers_loop_literally(name, keep):
    model = compiled(chain(widths=(8, 10, 6)))
    data = labelled(model, images())
    loop = Loop(model, name, data)
    limit = keep * loop.macs({group.name: group.size for group in loop.graph.groups})
    expected = loop.within(limit)
    # What the budget leaves over is given back, one filter a layer and round, to the first layers first.
    before: dict = {}
    while expected != before and (not before or loop.macs(expected) < 0.99 * limit):
        before = dict(expected)
        for group in loop.graph.groups:
            more = expected | {group.name: expected[group.name] + 1}
            if expected[group.name] < group.size and loop.macs(more) <= limit:
                expected = more
    assert kept_counts(kfp.plan_pruning(model, name, keep, data=data, progress=False)) == expected
