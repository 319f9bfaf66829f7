"""Kept: what follows from the units that stay."""

import numpy as np
import pytest
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune.graph import Kept
from keras_filterprune.rebuild import rebuild

MODELS = ["residual_projection", "depthwise", "grouped_conv", "dense_concat", "flatten_dense", "group_norm"]


def draw(graph, seed: int) -> dict[str, np.ndarray]:
    """Some units of every other group; the others are left out, or given whole."""
    rng = np.random.default_rng(seed)
    units = {}
    for number, group in enumerate(graph.groups):
        if number % 2 == 0:
            units[group.name] = np.sort(rng.permutation(group.size)[: rng.integers(group.least, group.size + 1)])
        elif number % 4 == 1:
            units[group.name] = np.arange(group.size)
    return units


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_channels_and_ids_say_the_same(name, seed):
    graph = kfp.analyze(ZOO[name]())
    units = draw(graph, seed)
    kept = Kept(graph, units)
    stays = {g.name: set(np.asarray(units.get(g.name, range(g.size))).tolist()) for g in graph.groups}
    assert kept.counts.tolist() == [len(stays[g.name]) for g in graph.groups]
    owner = {int(unit): (g.name, n) for g in graph.groups for n, unit in enumerate(g.units)}
    for alive, unit in zip(kept.alive, graph.unit_of_id, strict=True):
        name_, number = owner.get(int(unit), (None, None))
        assert alive == (name_ is None or number in stays[name_])
    tensors = {call.path: t[1][0] for call, t in reversed(list(zip(graph.view.calls, graph.tensors, strict=True)))}
    assert kept.channels
    for layer, entry in kept.channels.items():
        ids = tensors[layer].ids
        assert entry == {"channels": len(ids), "kept": [n for n, i in enumerate(ids) if kept.alive[i]]}


def test_nothing_said_means_everything_stays():
    graph = kfp.analyze(ZOO["residual_projection"]())
    assert Kept(graph).whole
    assert Kept(graph).alive.all()
    assert (Kept(graph).counts == graph.sizes).all()
    name = graph.groups[0].name
    assert not Kept(graph, {name: [0]}).whole
    assert Kept(graph, {name: [0]})[name].tolist() == [0]


def test_a_choice_from_what_is_left_is_one_of_the_whole():
    model = ZOO["conv_bn_relu_chain"]()
    graph = kfp.analyze(model)
    first = graph.groups[0].name
    kept = Kept(graph, {first: [1, 3, 4, 6]})
    smaller = kfp.analyze(rebuild(model, kept).model)
    both = kept.then(Kept(smaller, {first: [0, 2]}))
    assert both.graph is graph
    assert both[first].tolist() == [1, 4]
    assert both.counts[1:].tolist() == graph.sizes[1:].tolist()


def test_what_is_known_of_a_graph_is_not_written():
    graph = kfp.analyze(ZOO["plain_chain"]())
    with pytest.raises(ValueError, match="read-only"):
        graph.sizes[0] = 1
    with pytest.raises(AttributeError):
        Kept(graph).units = {}
