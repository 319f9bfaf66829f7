"""Gates that small networks compute from weights: literal loops, the chain rule, and budgets that are met."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, assert_same, begun, compiled, labelled_images, network, shrunk, total_macs
from other_backends import on_every_backend, run_on
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe import Weights
from keras_filterprune.training.base import wrappers_of
from keras_filterprune.training.gate import GATES

SCORERS = {
    "dense": kfp.callbacks.DenseScorer,
    "attention": kfp.callbacks.AttentionScorer,
    "pruner": kfp.callbacks.PrunerNetwork,
}
every_scorer = pytest.mark.parametrize("name", SCORERS)


def looked(scorer, model: keras.Model, target: float = 0.5) -> np.ndarray:
    graph = kfp.analyze(model)
    return scorer.look(graph, Weights(graph.view), target)


def drawn(scorer, seed: int = 0) -> None:
    """Give a scorer that has looked weights at random."""
    rng = np.random.default_rng(seed)
    scorer.weights = [{n: rng.normal(size=w.shape).astype("float32") for n, w in one.items()} for one in scorer.weights]


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {name: array(model.get_layer(name).kernel).astype(float) for name in ("conv1", "conv2", "conv3", "head")}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean())


def two_layers(weights: dict, x: list[float]) -> float:
    total = float(weights["bias"])
    for j in range(len(weights["offset"])):
        inside = weights["offset"][j] + sum(x[k] * weights["first"][k, j] for k in range(len(x)))
        total += weights["last"][j] * max(0.0, float(inside))
    return total


# `network()` has a group of the channels that conv1 and conv3 make, 8, and one of conv2's, 12.
def dense(weights: list[dict], model: keras.Model, target: float) -> list[float]:
    pooled = {n: unit(np.abs(k).mean(axis=(0, 1))) for n, k in kernels(model).items() if k.ndim == 4}
    found = [two_layers(weights[0], [*pooled["conv1"][:, i], *pooled["conv3"][:, i]]) for i in range(8)]
    return found + [two_layers(weights[1], pooled["conv2"][:, i]) for i in range(12)]


def attention(weights: list[dict], model: keras.Model, target: float) -> list[float]:
    found = []
    for w, names in zip(weights, (("conv1", "conv3"), ("conv2",)), strict=True):
        filters = [unit(kernels(model)[name].reshape(-1, kernels(model)[name].shape[-1]).T) for name in names]
        rows = np.hstack(filters)
        for j in range(len(rows)):
            total = 0.0
            for i in range(len(rows)):
                query = rows[i] @ w["query"]
                powers = [np.exp(query @ (row @ w["key"]) / 4) for row in rows]
                total += powers[j] / sum(powers)
            found.append(total - 1 + float(w["bias"]))
    return found


def pruner(weights: list[dict], model: keras.Model, target: float) -> list[float]:
    k, found = kernels(model), []
    made = {name: np.sqrt((k[name] ** 2).sum((0, 1, 2))) for name in ("conv1", "conv2", "conv3")}
    read = {name: np.sqrt((k[name] ** 2).sum((0, 1, 3))) for name in ("conv2", "conv3")}
    read["head"] = np.sqrt((k["head"] ** 2).sum(1))
    groups = (0, 8, ("conv1", "conv3"), ("conv2", "head")), (1, 12, ("conv2",), ("conv3",))
    for place, size, makers, readers in groups:
        columns = []
        for of, names in ((made, makers), (read, readers)):
            logs = [np.log(1e-3 + np.mean([of[n][i] / of[n].mean() for n in names])) for i in range(size)]
            columns.append([(log - np.mean(logs)) / np.std(logs) for log in logs])
        for makes, reads in zip(*columns, strict=True):
            found.append(two_layers(weights[0], [makes, reads, place, np.log2(size) / 10, target]))
    return found


@pytest.mark.parametrize("loop", [dense, attention, pruner], ids=lambda loop: loop.__name__)
def test_scores_are_those_of_a_plain_loop(loop):
    scorer, model = SCORERS[loop.__name__](), network()
    np.testing.assert_allclose(looked(scorer, model, 0.3), np.zeros(20), atol=1e-6)
    drawn(scorer)
    found = np.concatenate([scorer._scores(w, x) for w, x in zip(scorer.weights, scorer._read, strict=True)])
    np.testing.assert_allclose(found, loop(scorer.weights, model, 0.3), rtol=1e-3, atol=1e-4)


CHAIN_RULE = """
import numpy as np
import keras_filterprune as kfp
from keras_filterprune.criteria import Weights

keras.utils.set_random_seed(1)
inputs = keras.Input((6, 6, 3))
x = keras.layers.Conv2D(7, 3, name="first")(inputs)
model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.layers.Conv2D(5, 3)(x)))
graph, scorer, rng = kfp.analyze(model), kfp.callbacks.{kind}(), np.random.default_rng(0)
scorer.look(graph, Weights(graph.view), 0.5)
for weights in scorer.weights:
    # Larger ones would make attention one filter's, which has next to no slope.
    weights.update((n, rng.normal(0, 0.2, w.shape).astype("float32")) for n, w in weights.items())
before, steps = scorer.weights[:], 1e-4 * rng.normal(size=12)
moved, ends = scorer.follow(steps), np.cumsum([len(x) for x in scorer._read])[:-1]
parts = zip(before, scorer.weights, scorer._read, np.split(steps, ends), np.split(moved, ends))
for old, new, x, step, went in parts:
    np.testing.assert_allclose(scorer._scores(new, x) - scorer._scores(old, x), went, atol=1e-6)
    # Nearer to the step than by any other length.
    assert abs(went @ (step - went)) < 0.05 * (went @ step)
    # Weights changed along the derivative of what the step is multiplied by, here by differences.
    slopes, changes = [], []
    for name in old:
        for place in list(np.ndindex(old[name].shape))[:9]:
            values = []
            for size in (1e-2, -1e-2):
                other = old[name].copy()
                other[place] += size
                values.append(scorer._scores({{**old, name: other}}, x) @ step)
            slopes.append(values[0] - values[1])
            changes.append(float(new[name][place]) - float(old[name][place]))
    assert np.dot(slopes, changes) > 0.98 * np.linalg.norm(slopes) * np.linalg.norm(changes)
"""


@on_every_backend
@every_scorer
def test_steps_of_gates_go_back_through_the_network_by_the_chain_rule(backend, name):
    run_on(backend, CHAIN_RULE.format(kind=SCORERS[name].__name__))


@every_scorer
def test_filters_alike_have_gates_alike(name):
    """Free gates would part."""
    model = network()
    conv2, conv3 = model.get_layer("conv2"), model.get_layer("conv3")
    made, read = array(conv2.kernel).copy(), array(conv3.kernel).copy()
    made[..., 7], read[:, :, 7] = made[..., 2], read[:, :, 2]
    conv2.kernel.assign(made)
    conv3.kernel.assign(read)
    scorer = SCORERS[name]()
    looked(scorer, model)
    scores = sum(scorer.follow(np.random.default_rng(n).normal(size=20)) for n in range(5))[8:]
    assert scores[7] == pytest.approx(scores[2], abs=1e-5)
    assert np.ptp(scores) > 0.1
    # What no weights can do is left.
    parted = np.zeros(20)
    parted[8 + 2], parted[8 + 7] = 1, -1
    np.testing.assert_allclose(scorer.follow(parted)[8:], 0, atol=1e-3)


# Networks and kinds of gates take turns.
MET = [
    (name, kind, net)
    for n, name in enumerate(SCORERS)
    for kind, net in zip(
        GATES, np.roll(["residual_projection", "depthwise", "dense_concat", "grouped_conv"], n)[:3], strict=True
    )
]


@pytest.mark.parametrize(("name", "kind", "net"), MET)
def test_the_budget_is_met_and_the_gated_network_is_the_shrunk_one(name, kind, net):
    model = ZOO[net]()
    gated = kfp.apply_filter_gates(model, gates=kind)
    callback = begun(gated, kfp.callbacks.BudgetGates(0.5, strength=0.1, scorer=SCORERS[name]()))
    for step in range(80):
        callback.on_train_batch_end(step)
    small = shrunk(kfp.strip_wrappers(gated))
    assert_same(gated, small, random_inputs(model), 1e-5)
    one_filter = kfp.budgets.CostModel(kfp.analyze(model)).macs.gradient(kfp.analyze(model).sizes).max()
    assert 0.5 * total_macs(model) - one_filter <= total_macs(small) <= 0.5 * total_macs(model)


def gates_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {c.path: array(c.op.mask) for c in view_model(model).calls if isinstance(c.op, kfp.layers.FilterPruning)}


@every_scorer
def test_fit_goes_on_from_a_file(name, tmp_path):
    model, (x, y) = network(), labelled_images()
    gated = compiled(kfp.apply_filter_gates(model, gates="sigmoid"))
    with pytest.warns(UserWarning, match="Train for more epochs"):
        callback = kfp.callbacks.BudgetGates(0.5, epochs=3, strength=0.05, scorer=SCORERS[name]())
        gated.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=[callback])
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    assert_same(gated, loaded, x, 1e-6)
    again = kfp.callbacks.BudgetGates(0.5, epochs=1, strength=0.3, scorer=callback.scorer)
    # What the network has learned is in these gates.
    before = gates_of(loaded)
    begun(loaded, again)
    for path, gates in gates_of(loaded).items():
        np.testing.assert_array_equal(gates, before[path])
    loaded.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[again])
    assert total_macs(shrunk(kfp.strip_wrappers(loaded))) <= 0.5 * total_macs(model)


def test_one_pruner_learns_from_several_budgets_and_starts_gates_of_other_networks():
    pruner, model = kfp.callbacks.PrunerNetwork(), network()
    for keep in (0.8, 0.5):
        gated = kfp.apply_filter_gates(model)
        starts, weights = gates_of(gated), [dict(w) for w in pruner.weights]
        callback = begun(gated, kfp.callbacks.BudgetGates(keep, strength=0.1, scorer=pruner))
        if keep == 0.5:
            scores = pruner_scores(weights, model, 0.5)
            np.testing.assert_allclose(gates_of(gated)["head_masked"], starts["head_masked"] + scores[:8], atol=1e-3)
            np.testing.assert_allclose(gates_of(gated)["conv3_masked"], starts["conv3_masked"] + scores[8:], atol=1e-3)
            assert np.abs(scores).max() > 0.05
            assert np.abs(np.subtract(scores, pruner_scores(weights, model, 0.8))).max() > 0.01
        for step in range(50):
            callback.on_train_batch_end(step)
        assert total_macs(shrunk(kfp.strip_wrappers(gated))) <= keep * total_macs(model)
    other = kfp.apply_filter_gates(ZOO["depthwise"]())
    starts = gates_of(other)
    begun(other, kfp.callbacks.BudgetGates(0.5, scorer=pruner))
    assert max(np.abs(gates - starts[path]).max() for path, gates in gates_of(other).items()) > 0.05


pruner_scores = pruner


def test_gates_of_branches_are_free_and_budgets_are_met_with_them():
    model = network()
    gated = kfp.apply_filter_gates(model, branches=True)
    callback = begun(gated, kfp.callbacks.BudgetGates(0.5, strength=0.1, scorer=kfp.callbacks.DenseScorer()))
    for step in range(60):
        callback.on_train_batch_end(step)
    assert total_macs(shrunk(kfp.strip_wrappers(gated))) <= 0.5 * total_macs(model)
    assert wrappers_of(gated, kfp.layers.FilterPruning)


class Mine(kfp.callbacks.GateScorer):
    """A scorer of somebody else, whose methods return what they are told."""

    def __init__(self, shared=False, features=None, begin=None, score=None):
        self.shared, self._features, self._begin, self._score = shared, features, begin, score

    def features(self, graph, group, weights, target):
        return self._features(group) if self._features else np.ones((group.size, 1))

    def begin(self, width, generator):
        return self._begin or {"slope": np.zeros(width, "float32")}

    def score(self, weights, features):
        return self._score if self._score is not None else keras.ops.matmul(features, weights["slope"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": lambda group: np.ones(group.size)}, r"features is to return an array of \d+ rows"),
        ({"features": lambda group: np.full((group.size, 1), np.nan)}, r"features is to return an array of \d+ rows"),
        ({"begin": [np.zeros(1)]}, "begin is to return a dict of arrays"),
        ({"score": np.zeros((2, 1))}, r"score is to return one number per filter, .* Received: \(2, 1\)"),
        (
            {"shared": True, "features": lambda group: np.ones((group.size, group.size))},
            "as many features for every group",
        ),
    ],
)
def test_what_a_scorer_of_somebody_else_returns_is_checked(wrong, message):
    graph = kfp.analyze(network())
    with pytest.raises(errors.InvalidValueError, match=message):
        Mine(**wrong).look(graph, kfp.criteria.Weights(graph.view), 0.5)


def test_a_scorer_is_no_name():
    with pytest.raises(errors.InvalidValueError, match=r"or your own\. Received: scorer='dagger'"):
        kfp.callbacks.BudgetGates(0.5, scorer="dagger")
