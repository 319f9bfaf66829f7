"""Gates of whole branches: a closed branch adds nothing, counts for nothing, and leaves as layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, assert_same, begun, compiled, labelled_images, network, shrunk, total_macs
from keras import layers
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.training.branches import BranchCost, branches, gated_branches
from keras_filterprune.training.gate import GATES


def conv(x, filters: int, name: str, size: int = 3, **kwargs):
    return layers.Conv2D(filters, size, padding="same", name=name, **kwargs)(x)


def plain_blocks(add=lambda name: layers.Add(name=name)) -> keras.Model:
    """Four identity blocks "a" to "d" with a rectifier behind each, then one of a projection, "e"."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(conv(inputs, 8, "stem")))
    for name in "abcd":
        y = layers.ReLU()(layers.BatchNormalization(name=f"{name}1_bn")(conv(x, 12, f"{name}1")))
        x = layers.ReLU(name=f"{name}_out")(
            add(f"{name}_add")([x, layers.BatchNormalization()(conv(y, 8, f"{name}2"))])
        )
    y = conv(layers.ReLU()(conv(x, 12, "e1", strides=2)), 16, "e2")
    x = add("e_add")([conv(x, 16, "projection", 1, strides=2), y])
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="blocks")


def raw_sums() -> keras.Model:
    """Sums that are operations, not layers, before which nothing normalises."""
    return plain_blocks(lambda name: lambda pair: pair[0] + pair[1])


def nested() -> keras.Model:
    """Two blocks in a model of its own within another."""
    keras.utils.set_random_seed(4)
    inner = x = keras.Input((8, 8, 6))
    for name in "pq":
        x = layers.Add(name=f"{name}_add")([x, conv(layers.ReLU()(conv(x, 9, f"{name}1")), 6, f"{name}2")])
    body = keras.Model(inner, x, name="body")
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(body(conv(inputs, 6, "stem")))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


MODELS = {
    "plain": plain_blocks,
    "raw_sums": raw_sums,
    "nested": nested,
    **{
        name: ZOO[name] for name in ("residual_identity", "residual_projection", "preactivation_residual", "bottleneck")
    },
}


# How a branch leaves is the same for every kind of gate: networks take turns, one meets all kinds.
GATED = [(name, GATES[number % len(GATES)]) for number, name in enumerate(MODELS)]
GATED += [("residual_projection", kind) for kind in GATES if ("residual_projection", kind) not in GATED]


def gate_values(model: keras.Model) -> dict[str, float]:
    return {unit.name: float(array(gate.mask)[0]) for unit, gate in gated_branches(kfp.analyze(model))}


def close(model: keras.Model, *names: str) -> None:
    for unit, gate in gated_branches(kfp.analyze(model)):
        if unit.name in names:
            gate.mask.assign([-0.5])


def layer_names(model: keras.Model) -> set[str]:
    return {call.path for call in kfp.analyze(model).view.calls if call.inputs}


@pytest.mark.parametrize(("name", "kind"), GATED)
def test_gated_networks_are_the_same_and_closed_branches_leave_as_layers(name, kind):
    model = MODELS[name]()
    x = random_inputs(model)
    gated = kfp.apply_filter_gates(model, gates=kind, branches=True)
    assert_same(model, gated, x, 1e-6)
    assert_same(model, kfp.strip_wrappers(gated), x, 1e-6)
    units, by_layer = [*branches(kfp.analyze(model))], kfp.budgets.CostModel(kfp.analyze(model))
    spent, whole = by_layer.macs.by_layer(by_layer.sizes), by_layer.macs(by_layer.sizes)
    assert units and gate_values(gated).keys() == {unit.name for unit in units}
    opened = gated.get_weights()
    # What is between these is like the first.
    for unit in dict.fromkeys((units[0], units[-1])):
        gated.set_weights(opened)
        close(gated, unit.name)
        plain = kfp.strip_wrappers(gated)
        assert_same(gated, plain, x, 1e-5)
        assert not layer_names(plain) & (set(unit.layers) - {unit.name}) or unit.kind == "branch"
        assert total_macs(plain) == whole - sum(spent.get(layer, 0) for layer in unit.layers)
        assert max(abs(a - b).max() for a, b in zip(_outputs(model, x), _outputs(plain, x), strict=True)) > 1e-4


def _outputs(model, x):
    return [array(y) for y in keras.tree.flatten(model(x, training=False))]


@pytest.mark.parametrize("kind", [True, "gumbel", "sigmoid"])
def test_what_a_gate_lets_through(kind):
    gate, x = kfp.layers.BranchGate(kind), np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    gate(x)
    for value in (0.7, -0.2):
        gate.mask.assign([value])
        np.testing.assert_array_equal(gate(x, training=False), x * (value > 0))
        if kind == "sigmoid":
            gate.slope.assign(2.0)
            np.testing.assert_allclose(gate(x, training=True), x / (1 + np.exp(-8 * value)), rtol=1e-5)


@pytest.fixture(
    scope="module", params=[(), ("a_add",), ("b_add", "e_add"), ("a_add", "b_add", "c_add", "d_add", "e_add")], ids=str
)
def narrowed(request):
    """(Costs of a network, counts of its groups, names of closed branches, costs of what is left)."""
    model, rng = plain_blocks(), np.random.default_rng(0)
    costs = kfp.budgets.CostModel(kfp.analyze(model))
    counts = np.array([rng.integers(1, size + 1) for size in costs.sizes])
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(1.0), progress=False)
    for group, count in zip(plan.groups, counts.tolist(), strict=True):
        group["kept"] = list(range(count))
    narrow = kfp.apply_filter_gates(kfp.apply_plan(model, plan), branches=True)
    close(narrow, *request.param)
    return costs, counts, request.param, kfp.budgets.CostModel(kfp.analyze(kfp.strip_wrappers(narrow)))


@pytest.mark.parametrize(
    "budget", [kfp.MacsBudget(1), kfp.ParamsBudget(1), kfp.LatencyBudget(keep=1, table="arm64")], ids=str
)
def test_the_cost_is_that_of_the_network_without_closed_branches(narrowed, budget):
    costs, counts, closed, left = narrowed
    units = list(branches(costs.graph))
    cost = BranchCost(budget.cost(costs), len(costs.groups), units)
    keep = np.append(counts, [unit.name not in closed for unit in units]).astype(int)
    assert cost(keep) == budget.cost(left)(left.sizes)
    assert sum(cost.by_layer(keep).values()) == cost(keep)
    for number, unit in enumerate(units, len(counts)):
        other = keep.copy()
        other[number] = 1 - keep[number]
        assert cost.gradient(keep)[number] == pytest.approx(abs(cost(keep) - cost(other)), rel=1e-9), unit.name
    # Of groups, the slope of a line through two counts, where the cost is one; tiles are steps.
    for group in np.flatnonzero(counts > 1) if budget.unit != "padded MACs" else ():
        less = keep.copy()
        less[group] -= 1
        assert cost.gradient(keep)[group] == pytest.approx(cost(keep) - cost(less), rel=1e-9)


def test_gates_of_branches_start_at_the_mean_scores_of_their_filters():
    model = plain_blocks()
    for name, factor in zip("abcd", (0.2, 1.0, 2.0, 1.0), strict=True):
        for layer in (f"{name}1", f"{name}2"):
            model.get_layer(layer).kernel.assign(factor * model.get_layer(layer).kernel)
    norms = {}
    for name in "abcde":
        filters = [np.sqrt(np.square(array(model.get_layer(f"{name}{n}").kernel)).sum((0, 1, 2))) for n in (1, 2)]
        norms[f"{name}_add"] = np.concatenate(filters).mean()
    found = gate_values(kfp.apply_filter_gates(model, branches=True))
    mean = np.mean(list(norms.values()))
    assert found == pytest.approx({name: norm / mean for name, norm in norms.items()}, rel=1e-5)
    # The order of filters within layers says nothing of branches.
    assert set(gate_values(kfp.apply_filter_gates(model, "fpgm", branches=True)).values()) != {0.0}


@pytest.mark.parametrize(
    ("kind", "budget"),
    [(kind, kfp.MacsBudget(0.5)) for kind in GATES]
    + [("straight", kfp.MacsBudget(0.3)), ("gumbel", kfp.ParamsBudget(0.4))],
    ids=str,
)
def test_the_budget_is_met_to_one_filter_with_branches_that_leave(kind, budget):
    model = plain_blocks()
    x = random_inputs(model)
    gated = kfp.apply_filter_gates(model, gates=kind, branches=True)
    for unit, gate in gated_branches(kfp.analyze(gated)):
        # Branches that training finds useless.
        gate.mask.assign([{"a_add": 0.02, "c_add": 0.04}.get(unit.name, 1.0)])
    callback = begun(gated, kfp.callbacks.BudgetGates(budget, strength=0.2))
    for step in range(100):
        callback.on_train_batch_end(step)
    plain = kfp.strip_wrappers(gated)
    small = shrunk(plain)
    assert_same(gated, plain, x, 1e-5)
    assert_same(gated, small, x, 1e-5)
    assert not {"a1", "a2", "c1", "c2"} & layer_names(small)
    dense, left = (kfp.budgets.CostModel(kfp.analyze(m)) for m in (model, small))
    spent, limit = budget.cost(left)(left.sizes), budget.limit(budget.cost(dense)(dense.sizes))
    assert limit - budget.cost(dense).gradient(dense.sizes).max() <= spent <= limit
    logs: dict[str, float] = {}
    callback.on_epoch_end(0, logs)
    assert logs["macs_if_pruned"] == total_macs(small)
    convs = [layer for layer in small.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    assert logs["kept_filters"] == sum(layer.filters if hasattr(layer, "filters") else layer.units for layer in convs)


def test_a_branch_stays_where_it_would_take_too_much_and_goes_where_filters_do_not_suffice():
    model = plain_blocks()
    total, block = total_macs(model), 64 * 9 * 8 * 12 * 2
    for keep, floor, stays in ((1 - 0.5 * block / total, 1, True), (1 - 0.5 * block / total, 99, False)):
        gated = kfp.apply_filter_gates(model, branches=True)
        for unit, gate in gated_branches(kfp.analyze(gated)):
            gate.mask.assign([0.01 if unit.name == "a_add" else 9.0])
        callback = begun(gated, kfp.callbacks.BudgetGates(keep, strength=0.05, min_filters=floor))
        for step in range(60):
            callback.on_train_batch_end(step)
        assert (gate_values(gated)["a_add"] > 0) == stays
        assert total_macs(shrunk(kfp.strip_wrappers(gated))) <= keep * total


# Of the two that are something else in training, one.
@pytest.mark.parametrize("kind", ["straight", "sigmoid"])
def test_fit_closes_branches_and_goes_on_from_a_file(kind, tmp_path):
    model, (x, y) = plain_blocks(), labelled_images()
    # Tracing takes longer than the steps.
    gated = compiled(kfp.apply_filter_gates(model, gates=kind, branches=True), run_eagerly=kind != "straight")
    close(gated, "b_add")
    # Six steps and two of the hinge: others may not have closed.
    gated.fit(x, y, epochs=2, verbose=0, callbacks=[kfp.callbacks.BudgetGates(0.7, epochs=1, strength=0.3)])
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    assert_same(gated, loaded, x, 1e-6)
    assert gate_values(loaded) == gate_values(gated)
    loaded.run_eagerly = True
    loaded.fit(x, y, epochs=1, verbose=0, callbacks=[kfp.callbacks.BudgetGates(0.5, epochs=1, strength=0.3)])
    plain = kfp.strip_wrappers(loaded)
    assert plain.compiled and type(plain) is type(model)
    assert_same(loaded, plain, x, 1e-5)
    assert total_macs(shrunk(plain)) <= 0.5 * total_macs(model)


def test_other_prunings_see_through_gates_of_branches():
    model = plain_blocks()
    gated = kfp.apply_filter_gates(model, branches=True)
    assert kfp.analyze(gated).sizes.tolist() == kfp.analyze(model).sizes.tolist()
    small = kfp.prune_model(gated, "l2", 0.5, progress=False)
    assert 0.4 * total_macs(model) < total_macs(small) <= 0.5 * total_macs(model)
    shorter = kfp.prune_layers(gated, 1, progress=False)
    assert len(gated_branches(kfp.analyze(shorter))) == len(gated_branches(kfp.analyze(gated))) - 1


def test_mixed_precision_keeps_its_types():
    gated = kfp.apply_filter_gates(network("mixed_float16"), branches=True)
    (gate,) = (gate for _, gate in gated_branches(kfp.analyze(gated)))
    assert keras.backend.standardize_dtype(gate.output.dtype) == "float16"
    assert keras.backend.standardize_dtype(gate.mask.dtype) == "float32"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: kfp.apply_filter_gates(ZOO["conv_bn_relu_chain"](), branches=True),
            "UnsupportedModelError",
            "no branch",
        ),
        (lambda: kfp.apply_filter_gates(network(), branches="yes"), "InvalidValueError", "branches is True or False"),
        (lambda: kfp.layers.BranchGate("soft"), "UnknownNameError", "gates"),
    ],
    ids=["chain", "flag", "kind"],
)
def test_what_cannot_be_gated(make, error, match):
    with pytest.raises(getattr(errors, error), match=match):
        make()
