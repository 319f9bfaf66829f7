"""Genetic selection: its error is the consumers' output error, and no known set of channels has a smaller one."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from builders import digits, observed
from keras import layers
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria
from keras_filterprune.criteria.genetic import elimination_scores, errors, evolve, repaired, swapped
from keras_filterprune.graph import Kept
from keras_filterprune.probe import Weights
from keras_filterprune.probe.trial import Trial


def psd(n: int, seed: int, rank: int | None = None) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(rank or 2 * n, n)) + 0.3
    return z.T @ z


def searched(q: np.ndarray, gone: int, seed: int = 0, **settings) -> np.ndarray:
    settings = {"population": 64, "generations": 100} | settings
    start = np.zeros((1, len(q)), bool)
    start[0, np.argsort(np.diag(q))[:gone]] = True
    return evolve(q, start, np.random.default_rng(seed), **settings)


def masks(n: int, gone: int) -> np.ndarray:
    chosen = np.array(list(itertools.combinations(range(n), gone)))
    sets = np.zeros((len(chosen), n), bool)
    np.put_along_axis(sets, chosen, True, axis=1)
    return sets


def dense(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    h = layers.Dense(9, activation="relu", name="hidden", bias_initializer="normal")(inputs)
    a, b = layers.Dense(4, activation="tanh", name="a")(h), layers.Dense(6, name="b")(h)
    return keras.Model(inputs, [a, b])


# ---------------------------------------------------------------------------------------------- the error


def test_the_error_is_that_of_the_consumers_outputs_before_bias_and_activation():
    model, x = dense(), np.random.default_rng(1).normal(size=(50, 5)).astype("float32")
    graph, _, criterion = observed(criteria.Genetic(), model, x)
    (group,) = graph.groups
    hidden = keras.ops.convert_to_numpy(model.get_layer("hidden")(x)).astype(float)
    for removed in ([0], [3, 4], [1, 2, 5, 8], list(range(9))):
        mask = np.isin(np.arange(9), removed)
        expected = 0.0
        for name in ("a", "b"):
            kernel = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
            lost = hidden[:, mask] @ kernel[mask]
            expected += (lost**2).sum() / ((hidden @ kernel) ** 2).sum()
        assert errors(criterion.found(group)[0], mask) == pytest.approx(expected, rel=1e-5)


def test_the_error_of_a_convolution_covers_all_its_taps():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 3, 2))
    h = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="second")(h))
    x = np.random.default_rng(1).normal(size=(40, 3, 3, 2)).astype("float32")
    graph, _, criterion = observed(criteria.Genetic(), model, x)
    seen = keras.ops.convert_to_numpy(model.get_layer("first")(x)).astype(float).reshape(40, 9, 6)
    kernel = keras.ops.convert_to_numpy(model.get_layer("second").kernel).reshape(9, 6, 4)
    for removed in ([0], [2, 5], [0, 1, 3]):
        lost = np.einsum("ntc,tco->no", seen[:, :, removed], kernel[:, removed])
        whole = np.einsum("ntc,tco->no", seen, kernel)
        mask = np.isin(np.arange(6), removed)
        assert errors(criterion.found(graph.groups[0])[0], mask) == pytest.approx(
            (lost**2).sum() / (whole**2).sum(), rel=1e-5
        )


# ---------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("n", [2, 5, 9, 14])
def test_the_optimum_is_found_where_all_sets_can_be_tried(n):
    for seed, rank in ((0, None), (1, None), (2, n // 2 + 1)):
        q = psd(n, seed, rank)
        for gone in range(1, n):
            best = errors(q, masks(n, gone)).min()
            found = swapped(q, searched(q, gone))
            assert found.sum() == gone
            assert errors(q, found) == pytest.approx(best, rel=1e-9, abs=1e-9 * q.max())


@pytest.mark.parametrize("n", [32, 96])
def test_the_search_is_never_worse_than_norms_greedy_and_a_thousand_random_sets(n):
    for seed in range(5):
        q = psd(n, seed, n // 2)
        for gone in (n // 4, n // 2, 3 * n // 4):
            random = repaired(np.zeros((1000, n)), gone, np.random.default_rng(seed))
            greedy, energy = (np.isin(np.arange(n), np.argsort(s)[:gone]) for s in (elimination_scores(q), np.diag(q)))
            seeds = np.array([greedy, energy])
            found = evolve(q, seeds, np.random.default_rng(seed), 64, 100)
            assert errors(q, found) <= errors(q, np.concatenate([seeds, random])).min() + 1e-9
            assert errors(q, swapped(q, found)) <= errors(q, found) + 1e-9


def test_generations_improve_on_chance():
    q = psd(64, 0, 32)
    start = repaired(np.zeros((1, 64)), 32, np.random.default_rng(0))
    scores = [errors(q, evolve(q, start, np.random.default_rng(0), 64, g)) for g in (0, 5, 50)]
    assert scores[0] > 1.2 * scores[1] > 1.2 * scores[2]


def test_elimination_takes_the_unit_that_adds_least():
    q = psd(8, 3)
    removed, order = np.zeros(8, bool), np.argsort(elimination_scores(q))
    for unit in order:
        trials = [errors(q, removed | (np.arange(8) == u)) if not removed[u] else np.inf for u in range(8)]
        assert unit == np.argmin(trials)
        removed[unit] = True


@pytest.mark.parametrize("gone", [0, 1, 7, 20])
def test_repair_leaves_the_members_it_can(gone):
    generator = np.random.default_rng(0)
    sets = generator.random((200, 20)) < 0.4
    fixed = repaired(sets, gone, generator)
    assert (fixed.sum(axis=1) == gone).all()
    fewer = sets.sum(axis=1) >= gone
    assert not (fixed & ~sets)[fewer].any()
    assert not (sets & ~fixed)[~fewer].any()
    # At random: every unit is hit now and then.
    assert gone in (0, 20) or ((fixed.mean(axis=0) > 0).all() and (fixed.mean(axis=0) < 1).all())


def test_no_swap_lowers_the_error_further():
    q = psd(16, 5, 8)
    found = swapped(q, repaired(np.zeros(16), 6, np.random.default_rng(0)))
    for i, o in itertools.product(np.flatnonzero(found), np.flatnonzero(~found)):
        other = found.copy()
        other[[i, o]] = False, True
        assert errors(q, other) >= errors(q, found) - 1e-9


# ---------------------------------------------------------------------------------------------- the criterion


def test_equal_seeds_choose_equally_and_names_do_not_matter():
    x = np.random.default_rng(1).normal(size=(50, 5)).astype("float32")
    model = dense()
    chosen = []
    for seed in (0, 0, 1):
        graph, weights, criterion = observed(criteria.Genetic(seed=seed), model, x)
        chosen.append([criterion.select(graph.groups[0], k, weights).tolist() for k in range(1, 10)])
    assert chosen[0] == chosen[1]
    inputs = keras.Input((5,))
    h = layers.Dense(9, activation="relu", name="z")(inputs)
    renamed = keras.Model(inputs, [layers.Dense(4, activation="tanh", name="x")(h), layers.Dense(6, name="y")(h)])
    renamed.set_weights(model.get_weights())
    graph, weights, criterion = observed(criteria.Genetic(seed=0), renamed, x)
    assert [criterion.select(graph.groups[0], k, weights).tolist() for k in range(1, 10)] == chosen[0]


def test_a_channel_without_effect_goes_first():
    model, x = dense(), np.random.default_rng(1).normal(size=(50, 5)).astype("float32")
    for name in ("a", "b"):
        kernel = keras.ops.convert_to_numpy(model.get_layer(name).kernel).copy()
        kernel[[2, 7]] = 0
        model.get_layer(name).kernel.assign(kernel)
    graph, weights, criterion = observed(criteria.Genetic(), model, x)
    for count in range(1, 9):
        kept = criterion.select(graph.groups[0], count, weights)
        assert count > 7 or not {2, 7} & set(kept)
    assert len({2, 7} & set(criterion.select(graph.groups[0], 8, weights))) == 1


def test_where_channels_do_not_share_outputs_the_search_is_a_ranking():
    inputs = keras.Input((5,))
    keras.utils.set_random_seed(0)
    h = layers.Dense(6, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(6, name="out", kernel_initializer="identity")(h))
    x = np.random.default_rng(1).normal(size=(50, 5)).astype("float32")
    graph, weights, criterion = observed(criteria.Genetic(), model, x)
    (q,) = criterion.found(graph.groups[0])
    np.testing.assert_allclose(q, np.diag(np.diag(q)), atol=1e-12)
    for count in range(1, 6):
        best = np.sort(np.argsort(-np.diag(q))[:count])
        np.testing.assert_array_equal(criterion.select(graph.groups[0], count, weights), best)


@pytest.mark.parametrize("name", ["residual_projection", "dense_concat", "unet", "flatten_dense"])
def test_the_selection_beats_norms_in_whole_models(name):
    model = ZOO[name]()
    x = random_inputs(model, batch=32, seed=1)
    graph, weights, criterion = observed(criteria.Genetic(), model, x)
    better = 0
    for group in graph.groups:
        if criterion.refuses(group) is None:
            (q,), count = criterion.found(group), -(-group.size // 2)
            sets = np.ones((2, group.size), bool)
            sets[0, criterion.select(group, count, weights)] = False
            sets[1, criteria.L2().select(group, count, weights)] = False
            ours, theirs = errors(q, sets)
            assert ours <= theirs + 1e-12
            better += ours < 0.99 * theirs
    assert better
    small = kfp.prune_model(model, "genetic", 0.5, data=x, progress=False)
    costs = [kfp.budgets.CostModel(kfp.analyze(m)) for m in (small, model)]
    assert costs[0].macs(costs[0].sizes) <= 0.5 * costs[1].macs(costs[1].sizes)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("settings", [{"population": 0}, {"population": 3}, {"generations": -1}, {"seed": 0.5}])
def test_settings_out_of_range(settings):
    with pytest.raises(kfp.errors.InvalidValueError, match=r"is an integer, at least \d\. Received"):
        criteria.Genetic(**settings)


@pytest.mark.parametrize("count", [0, 10])
def test_counts_that_the_group_does_not_have(count):
    graph, weights, criterion = observed(criteria.Genetic(), dense(), np.ones((4, 5), "float32"))
    with pytest.raises(kfp.errors.InvalidValueError, match=r"how many of the 9 units stay in \[1, 9\]"):
        criterion.select(graph.groups[0], count, weights)


def test_no_data():
    with pytest.raises(kfp.errors.CalibrationDataError, match="needs calibration inputs"):
        kfp.prune_model(dense(), "genetic", 0.5)
    graph = kfp.analyze(dense())
    with pytest.raises(kfp.errors.CalibrationDataError, match="needs calibration inputs"):
        criteria.Genetic().select(graph.groups[0], 3, Weights(graph.view))


# ---------------------------------------------------------------------------------------------- layer by layer


def convolutions() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(10, 3, activation="relu", name="conv1")(inputs)
    x = layers.Conv2D(12, 3, activation="relu", name="conv2")(x)
    x = layers.Conv2D(14, 3, activation="relu", name="conv3")(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)), name="three")
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = digits()
    model.fit(x, y, epochs=6, verbose=0)
    return model


def layerwise(checkpoint=None) -> kfp.Method:
    allocator = allocators.Sensitivity((0.5,), checkpoint=checkpoint)
    return kfp.Method(criteria.Genetic(), allocator, compensators.LeastSquares(), one_by_one=True)


def widths(model: keras.Model) -> list[int]:
    return [layer.filters for layer in model.layers if isinstance(layer, layers.Conv2D)]


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    return convolutions()


def test_groups_are_cut_one_by_one_the_least_sensitive_first(trained):
    (x, _), seen = digits(), []
    method = kfp.Method(
        criteria.Genetic(),
        allocators.Sensitivity((0.5,), "error"),
        compensators.LeastSquares(),
        one_by_one=True,
    )
    small, report = kfp.prune_model(
        trained, method, 0.4, data=x, finetune=lambda m: seen.append(widths(m)), return_report=True, progress=False
    )
    assert widths(small) == seen[-1]
    graph, weights, criterion = observed(criteria.Genetic(), trained, x)
    trial, before, scores = Trial(graph, x, "error", False), [10, 12, 14], []
    for now in seen:
        (changed,) = (i for i in range(3) if now[i] != before[i])
        group = graph.groups[changed]
        scores.append(trial(Kept(graph, {group.name: criterion.select(group, now[changed], weights)})))
        before = now
    assert len(scores) > 1 and scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    costs = [kfp.budgets.CostModel(kfp.analyze(m)) for m in (trained, small)]
    assert 0.9 * 0.4 <= costs[1].macs(costs[1].sizes) / costs[0].macs(costs[0].sizes) <= 0.4
    # The units are the original's.
    kernel = keras.ops.convert_to_numpy(trained.get_layer("conv1").kernel)[..., report.plan.kept["conv1"]]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(small.get_layer("conv1").kernel), kernel, atol=1e-6)


def test_a_group_is_chosen_on_the_network_as_it_is_then(trained):
    data, models = digits(), []

    def keep(model):
        models.append(keras.models.clone_model(model))
        models[-1].set_weights(model.get_weights())

    kfp.prune_model(trained, layerwise(), 0.4, data=data, finetune=keep, progress=False)
    second = next(i for i in range(3) if widths(models[1])[i] != widths(models[0])[i])
    name, count = f"conv{second + 1}", widths(models[1])[second]
    graph, weights, criterion = observed(criteria.Genetic(), models[0], data[0])
    kept = criterion.select(graph.by_name[name], count, weights)
    kernel = keras.ops.convert_to_numpy(models[1].get_layer(name).bias)
    expected = keras.ops.convert_to_numpy(models[0].get_layer(name).bias)[kept]
    np.testing.assert_allclose(kernel, expected, atol=1e-6)


@pytest.mark.parametrize("at", [1, 2])
def test_a_killed_run_goes_on_where_it_was(trained, tmp_path, at):
    data, path = digits(), tmp_path / "run.json"
    whole = kfp.prune_model(trained, layerwise(), 0.4, data=data, finetune=lambda m: None, progress=False)
    calls = []

    def dies(model):
        calls.append(widths(model))
        if len(calls) == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kfp.prune_model(trained, layerwise(path), 0.4, data=data, finetune=dies, progress=False)
    assert len(list(tmp_path.glob("*.keras"))) == 1
    done = list(calls[:at])
    calls.clear()
    again = kfp.prune_model(
        trained, layerwise(path), 0.4, data=data, finetune=lambda m: calls.append(widths(m)), progress=False
    )
    assert len(done) + len(calls) == 3
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(kfp.errors.FileError, match="belongs to another search"):
        kfp.prune_model(trained, layerwise(path), 0.6, data=data, finetune=lambda m: None, progress=False)


def test_a_budget_that_cuts_nothing_gives_a_copy(trained):
    for method in ("hu_ga", "search"):
        same, report = kfp.prune_model(
            trained, method, 1.0, data=digits(), finetune=lambda m: None, return_report=True, progress=False
        )
        assert same is not trained and not {id(w) for w in same.weights} & {id(w) for w in trained.weights}
        np.testing.assert_array_equal(same.predict(digits()[0], verbose=0), trained.predict(digits()[0], verbose=0))
        assert report.plan.cost["macs"][0] == report.plan.cost["macs"][1]


def test_hu_ga_keeps_more_than_norms(trained):
    data = digits()
    small, norms = (
        kfp.prune_model(trained, method, 0.4, data=data, compensate="none", progress=False)
        for method in ("hu_ga", "l2")
    )
    a, b = ((m.predict(data[0], verbose=0).argmax(-1) == data[1]).mean() for m in (small, norms))
    assert a > b


def test_what_does_not_go_one_by_one(trained):
    for allocator in (allocators.Uniform(), allocators.Search()):
        with pytest.raises(
            kfp.errors.InvalidValueError, match=r"one_by_one=True goes with rounds=1 and allocator=Sensitivity"
        ):
            kfp.Method(criteria.L2(), allocator, one_by_one=True)
    with pytest.raises(kfp.errors.CalibrationDataError, match="needs labelled samples"):
        kfp.prune_model(trained, "hu_ga", 0.5, data=digits()[0])
