"""Sensitivity curves: masking equals rebuilding, runs resume and can be spread over processes, widths follow."""

from __future__ import annotations

import csv
import io
import json

import keras
import numpy as np
import pytest
from builders import digits
from keras import layers
from zoo import ZOO, random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria, errors
from keras_filterprune.allocators import Allocation
from keras_filterprune.allocators.sensitivity import equal_loss, worst_so_far
from keras_filterprune.studies.sensitivity import Measured


def network(prefix: str = "") -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(12, 3, name=f"{prefix}conv1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    y = layers.ReLU()(layers.Conv2D(10, 3, padding="same", name=f"{prefix}conv2")(x))
    x = layers.Add()([x, layers.Conv2D(12, 3, padding="same", name=f"{prefix}conv3")(y)])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, activation="relu", name=f"{prefix}conv4")(x))
    return keras.Model(inputs, layers.Dense(10, name=f"{prefix}head")(x), name="network")


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    model, (x, y) = network(), digits(400)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=12, verbose=0)
    return model


def minus_entropy(labels, outputs):
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))


def entropy(labels, outputs):
    return -minus_entropy(labels, outputs)


def rows(table: kfp.studies.SensitivityTable) -> list[tuple]:
    return [(c.group, c.units, c.kept, c.value, c.drop, c.low, c.high) for c in table.cuts]


# ---------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize(
    "name", ["residual_projection", "depthwise", "dense_concat", "se_reshape", "nested_functional"]
)
def test_masking_measures_what_rebuilding_would(name):
    model = ZOO[name]()
    x = random_inputs(model, batch=16, seed=1)
    table = kfp.measure_sensitivity(model, x, "error", (0.5,), progress=False)
    whole = np.concatenate([np.asarray(y).reshape(16, -1) for y in keras.tree.flatten(model(x))], axis=1)
    spread = np.square(whole - whole.mean(axis=0)).sum() / 16
    for cut in table.cuts:
        budget = kfp.FiltersBudget({cut.group: cut.kept / cut.units})
        small = kfp.prune_model(model, "l2", budget, compensate="none", progress=False)
        found = np.concatenate([np.asarray(y).reshape(16, -1) for y in keras.tree.flatten(small(x))], axis=1)
        assert cut.drop == pytest.approx(np.square(found - whole).sum() / 16 / spread, rel=1e-3, abs=1e-7)


def test_accuracy_is_that_of_the_smaller_network(trained):
    x, y = digits(400)
    table = kfp.measure_sensitivity(trained, (x, y), keep=(0.75, 0.25), progress=False)
    assert table.base == pytest.approx((trained.predict(x, verbose=0).argmax(-1) == y).mean())
    assert [(c.group, c.kept) for c in table.cuts] == [
        ("conv1", 9),
        ("conv1", 3),
        ("conv2", 8),
        ("conv2", 3),
        ("conv4", 12),
        ("conv4", 4),
    ]
    for cut in table.cuts:
        budget = kfp.FiltersBudget({cut.group: cut.kept / cut.units})
        small = kfp.prune_model(trained, "l2", budget, compensate="none", progress=False)
        score = (small.predict(x, verbose=0).argmax(-1) == y).mean()
        assert cut.value == pytest.approx(score, abs=0.003)
        assert cut.drop == pytest.approx(table.base - cut.value)
        assert cut.low <= cut.drop <= cut.high
    assert max(cut.drop for cut in table.cuts) > 0.1


def test_intervals_cover_what_other_samples_say(trained):
    x, y = digits(1600)
    tables = [
        kfp.measure_sensitivity(trained, (x[p], y[p]), keep=(0.5,), progress=False)
        for p in np.split(np.arange(1600), 8)
    ]
    drops = np.array([table.drops[:, 0] for table in tables])
    width = np.mean([[cut.high - cut.low for cut in table.cuts] for table in tables], axis=0)
    # 95 % intervals are 3.9 standard deviations wide.
    assert (width / (3.92 * drops.std(axis=0)) > 0.4).all() and (width / (3.92 * drops.std(axis=0)) < 2.5).all()


def test_any_function_of_labels_and_outputs(trained):
    x, y = digits(100)
    table = kfp.measure_sensitivity(trained, (x, y), minus_entropy, (0.5,), progress=False)
    outputs = trained.predict(x, verbose=0).astype(float)
    assert table.metric == "minus_entropy"
    assert table.base == pytest.approx(minus_entropy(y, outputs).mean(), rel=1e-4)


def squared(labels, outputs):
    return -np.square(labels.reshape(len(labels), -1) - outputs).mean(axis=1)


def squared_of_two(labels, outputs):
    return squared(labels["mask"], outputs[0]) + squared(labels["number"], outputs[1])


@pytest.mark.parametrize("kind", ["masks", "numbers", "both"])
def test_labels_of_any_kind(kind):
    """Each as the data gives them, next to the outputs as `predict` has them, flat."""
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 3))
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(inputs)
    outputs = {"masks": layers.Conv2D(1, 1)(y), "numbers": layers.Dense(1)(layers.GlobalAveragePooling2D()(y))}
    whole = randomise(keras.Model(inputs, list(outputs.values())))
    mask, number = whole.predict(x, verbose=0)
    labels, metric = {
        "masks": (mask + 0.1, squared),
        "numbers": (number[:, 0] + 0.1, squared),
        "both": ({"mask": mask + 0.1, "number": number[:, 0] + 0.1}, squared_of_two),
    }[kind]
    model = keras.Model(inputs, outputs.get(kind, list(outputs.values())))
    table = kfp.measure_sensitivity(model, (x, labels), metric, (0.5,), progress=False)
    found = model.predict(x, verbose=0)
    found = [a.reshape(40, -1) for a in found] if kind == "both" else found.reshape(40, -1)
    assert table.base == pytest.approx(metric(labels, found).mean(), rel=1e-4)
    assert len(table.cuts) == 1


def test_names_and_methods(trained):
    x, y = digits(200)
    renamed = network("z_")
    renamed.set_weights(trained.get_weights())
    tables = [kfp.measure_sensitivity(m, (x, y), minus_entropy, progress=False) for m in (trained, renamed)]
    assert [f"z_{group}" for group in tables[0].order()] == tables[1].order()
    greedy = kfp.measure_sensitivity(trained, (x, y), minus_entropy, method="cap", progress=False)
    assert greedy.drops.mean() < tables[0].drops.mean()


# ---------------------------------------------------------------------------------------------- resuming, processes


def test_a_killed_run_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    data, path = digits(100), tmp_path / "cache.json"
    whole = kfp.measure_sensitivity(trained, data, progress=False)
    calls = []
    real = Measured.__call__

    def dies(self, kept):
        calls.append(kept)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, kept)

    monkeypatch.setattr(Measured, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        kfp.measure_sensitivity(trained, data, checkpoint=path, progress=False)
    # The whole network and three cuts.
    assert len(json.loads(path.read_text())["cuts"]) == 3
    calls.clear()
    monkeypatch.setattr(Measured, "__call__", lambda self, kept: calls.append(kept) or real(self, kept))
    again = kfp.measure_sensitivity(trained, data, checkpoint=path, progress=False)
    assert rows(again) == rows(whole)
    assert len(calls) == 1 + len(whole.cuts) - 3
    calls.clear()
    more = kfp.measure_sensitivity(trained, data, keep=(0.75, 0.5, 0.25, 0.1), checkpoint=path, progress=False)
    assert len(calls) == 1 + len(whole.groups)
    assert [c for c in rows(more) if c[2] != 1 and (c[0], c[2]) != ("conv4", 2)] == rows(whole)


def test_two_processes_give_the_same_table_as_one(trained, two_processes):
    data = digits(100)
    alone = kfp.measure_sensitivity(trained, data, minus_entropy, (0.5,), progress=False)
    shared = kfp.measure_sensitivity(trained, data, minus_entropy, (0.5,), executor=two_processes, progress=False)
    assert [r[:3] for r in rows(shared)] == [r[:3] for r in rows(alone)]
    np.testing.assert_allclose([r[3:] for r in rows(shared)], [r[3:] for r in rows(alone)], atol=1e-6)


def test_layer_normalization_keeps_two_filters():
    inputs = keras.Input((8, 8, 1))
    h = layers.LayerNormalization()(layers.Conv2D(8, 3, name="conv")(inputs))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(h)))
    table = kfp.measure_sensitivity(model, digits(50), keep=(0.1,), progress=False)
    assert [cut.kept for cut in table.cuts] == [2]
    cost = table.costs
    two, one = (kfp.ParamsBudget(count=cost.params(np.array([n]))) for n in (2, 1))
    assert table.keep_for(two) == kfp.FiltersBudget({table.groups[0]: 0.25})
    with pytest.raises(errors.InfeasibleBudgetError, match=f"{cost.params(np.array([2])):,} are left"):
        table.keep_for(one)


def test_a_cache_of_something_else(trained, tmp_path):
    data, path = digits(50), tmp_path / "cache.json"
    kfp.measure_sensitivity(trained, data, keep=(0.5,), checkpoint=path, progress=False)
    for model, samples, options in (
        (network(), data, {}),
        (trained, digits(60), {}),
        (trained, data, {"metric": minus_entropy}),
        (trained, data, {"method": "l1"}),
        (trained, data, {"seed": 1}),
    ):
        with pytest.raises(errors.FileError, match="another sensitivity analysis: model, data, metric"):
            kfp.measure_sensitivity(model, samples, keep=(0.5,), checkpoint=path, progress=False, **options)
    path.write_text("{}")
    with pytest.raises(errors.FileError, match="is no checkpoint of a sensitivity analysis"):
        kfp.measure_sensitivity(trained, data, keep=(0.5,), checkpoint=path, progress=False)


# ---------------------------------------------------------------------------------------------- the table, widths


def test_the_table_is_written_and_drawn(trained, tmp_path):
    table = kfp.measure_sensitivity(trained, digits(50), keep=(0.5, 0.25), progress=False)
    text = table.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == text
    found = list(csv.DictReader(io.StringIO(text)))
    assert [(r["group"], int(r["kept"]), float(r["drop"])) for r in found] == [
        (c.group, c.kept, c.drop) for c in table.cuts
    ]
    assert table.plot(tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert table.order() == sorted(table.groups, key=lambda g: np.maximum(0, table.drops)[table.groups.index(g)].mean())


@pytest.mark.parametrize("budget", [0.7, 0.3, kfp.ParamsBudget(0.5)], ids=str)
def test_widths_meet_the_budget_and_spare_the_sensitive(trained, budget):
    data = digits(200)
    table = kfp.measure_sensitivity(trained, data, minus_entropy, (0.75, 0.5, 0.25), progress=False)
    small = kfp.prune_model(trained, "l2", table.keep_for(budget), compensate="none", progress=False)
    costs = [kfp.budgets.CostModel(kfp.analyze(m)) for m in (trained, small)]
    budget = kfp.MacsBudget(budget) if isinstance(budget, float) else budget
    full, spent = (budget.cost(c)(c.sizes) for c in costs)
    limit = budget.limit(full)
    assert 0.9 * limit <= spent <= limit


def problem(limit: int, floors=(1, 1)) -> Allocation:
    """A chain of convolutions of 20 filters, one for each floor, with maps of 4x4."""
    inputs = x = keras.Input((4, 4, 1))
    for _ in floors:
        x = layers.Conv2D(20, 1, use_bias=False)(x)
    graph = kfp.analyze(keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(1, 1, use_bias=False)(x))))
    costs = kfp.budgets.CostModel(graph)
    rungs = [range(1, size + 1) for size in costs.sizes.tolist()]
    return Allocation(costs.sizes, np.array(floors), rungs, costs.macs, limit, scores=lambda g: np.zeros(0))


def test_losses_are_equal_at_the_widths():
    # Linear curves: keep k of the first costs 1 - k, of the second four times that.
    keep = (0.75, 0.5, 0.25)
    drops = np.array([[0.25, 0.5, 0.75], [1.0, 2.0, 3.0]])
    kept = equal_loss(problem(16 * (12 + 12 * 18 + 18)), keep, drops)
    assert kept.tolist() == [12, 18]
    # A curve that recovers is taken at its worst.
    other = equal_loss(problem(16 * (12 + 12 * 18 + 18)), keep, np.array([[0.25, 0.5, 0.75], [1.0, 2.0, -5.0]]))
    assert other[1] >= 17
    # Below the last fraction, down to the floors.
    assert equal_loss(problem(16 * 3, (1, 1)), keep, drops).tolist() == [1, 1]


def test_what_is_left_of_the_budget_goes_to_the_group_that_loses_most():
    """At (13, 18, 17) one filter more of the first group or of the third would fit; the third loses twice as much."""
    drops = np.array([[0.25, 0.5, 0.75], [1.0, 2.0, 3.0], [0.5, 1.0, 1.5]])
    kept = equal_loss(problem(16 * 591, (1, 1, 1)), (0.75, 0.5, 0.25), drops)
    assert kept.tolist() == [13, 18, 18]


def test_losses_never_fall_as_fewer_filters_are_kept():
    found = worst_so_far(np.array([[0.1, 0.3, 0.2], [-0.1, 0.0, 0.1]]))
    np.testing.assert_array_equal(found, [[0.1, 0.3, 0.3], [0.0, 0.0, 0.1]])


def test_the_allocator_refits_before_it_measures(trained):
    x, y = digits(300)
    method = kfp.Method(criteria.L2(), allocators.Sensitivity((0.75, 0.5, 0.25)), compensators.LeastSquares())
    small = kfp.prune_model(trained, method, 0.5, data=(x, y), progress=False)
    costs = [kfp.budgets.CostModel(kfp.analyze(m)) for m in (trained, small)]
    assert 0.9 < costs[1].macs(costs[1].sizes) / (0.5 * costs[0].macs(costs[0].sizes)) <= 1
    uniform = kfp.prune_model(
        trained,
        kfp.Method(criteria.L2(), allocators.Uniform(), compensators.LeastSquares()),
        0.5,
        data=x,
        progress=False,
    )
    ours, theirs = (minus_entropy(y, m.predict(x, verbose=0).astype(float)).mean() for m in (small, uniform))
    assert ours > theirs - 0.05


# ---------------------------------------------------------------------------------------------- the callback


def test_the_callback_follows_training(tmp_path):
    model, (x, y) = kfp.apply_filter_pruning(network()), digits(200)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    scorer = kfp.callbacks.SensitivityScorer((x, y), every=2, folder=tmp_path / "runs", keep=(0.5,))
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[scorer]).history
    assert sorted(scorer.tables) == [0, 2]
    assert {f.name for f in (tmp_path / "runs").iterdir()} == {"sensitivity_0.csv", "sensitivity_2.csv"}
    for group in ("conv1", "conv2", "conv4"):
        drops = [scorer.tables[e].drops[scorer.tables[e].groups.index(group), 0] for e in (0, 0, 2, 2)]
        assert history[f"drop_{group}"] == pytest.approx(drops)
    # The weights of epoch 2 are those that were measured.
    assert scorer.tables[0].base != scorer.tables[2].base


# ---------------------------------------------------------------------------------------------- bad input


def test_data_that_is_missing_or_unlabelled(trained):
    with pytest.raises(errors.CalibrationDataError, match="'auto' needs labelled samples"):
        kfp.measure_sensitivity(trained, digits(50)[0])
    with pytest.raises(errors.CalibrationDataError, match="pass data="):
        kfp.measure_sensitivity(trained, None)
    with pytest.raises(errors.CalibrationDataError, match="one class number per sample and position"):
        kfp.measure_sensitivity(ZOO["unet"](), (random_inputs(ZOO["unet"](), batch=4), np.zeros(4)))


def test_metrics_that_are_none(trained):
    x, y = digits(50)
    with pytest.raises(
        errors.UnknownNameError,
        match="metric is one of auto, accuracy, error, loss, a metric or",
    ):
        kfp.measure_sensitivity(trained, (x, y), "f1")
    with pytest.raises(errors.InvalidValueError, match=r"or one number per sample, shape \(50,\)"):
        kfp.measure_sensitivity(trained, (x, y), lambda labels, outputs: outputs.mean(axis=0))
    with pytest.warns(UserWarning, match="'entropy' rises for every group that is cut"):
        kfp.measure_sensitivity(trained, (x, y), entropy, keep=(0.25,), progress=False)


@pytest.mark.parametrize("keep", [(), (0.5, 0.75), (1.0, 0.5), (0.5, 0.0), (0.5, 0.5)])
def test_fractions_that_do_not_fall(trained, keep):
    with pytest.raises(errors.InvalidValueError, match="keep is a list of fractions"):
        kfp.measure_sensitivity(trained, digits(50), keep=keep)
    with pytest.raises(errors.InvalidValueError, match="keep is a list of fractions"):
        allocators.Sensitivity(keep)


def test_models_and_budgets_out_of_reach(trained):
    with pytest.raises(errors.InfeasibleBudgetError, match="has no filter that can be removed"):
        kfp.measure_sensitivity(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), (np.zeros((8, 4)), np.zeros(8)))
    table = kfp.measure_sensitivity(trained, digits(50), keep=(0.5,), progress=False)
    with pytest.raises(errors.InfeasibleBudgetError, match="with the fewest filters in all groups"):
        table.keep_for(1e-6)
    with pytest.raises(errors.InfeasibleBudgetError, match="keep_for says how many filters to keep"):
        table.keep_for(kfp.FiltersBudget(0.5))
    with pytest.raises(errors.InvalidValueError, match="every is a number of epochs, at least 1"):
        kfp.callbacks.SensitivityScorer(digits(50), every=0)
