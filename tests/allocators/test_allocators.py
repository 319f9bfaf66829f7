"""Allocators stay inside the budget, spend it, and agree with brute force; budgets and options mean what they say."""

import itertools
import math

import keras
import numpy as np
import pytest
from builders import assert_all_equal, kept_counts
from contracts import assert_contract, spent
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.allocators import Allocation, cross_layer, simple
from keras_filterprune.cost import Tiles
from keras_filterprune.graph import Kept
from keras_filterprune.probe import Weights
from keras_filterprune.rebuild import rebuild

ALLOCATORS = {
    "uniform": allocators.Uniform(),
    "global0": allocators.Global(0.0),
    "global": allocators.Global(),
    "global1": allocators.Global(1.0),
    "cross_layer": allocators.CrossLayer(),
}
# Every two of budget, its kind, multiple and floor meet.
OFFERS = [
    (budget, kind, (1, 8)[(number + turn) % 2], (1, 3)[(number // 2 + turn) % 2])
    for number, budget in enumerate((0.15, 0.3, 0.5, 0.77, 0.95))
    for turn, kind in enumerate((kfp.MacsBudget, kfp.ParamsBudget))
]
every_allocator = pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
every_multiple = pytest.mark.parametrize("multiple", [1, 8])


@pytest.fixture(scope="module")
def problem_of():
    """problem_of(name, multiple, budget, kind, floor) -> Allocation over an L2-scored zoo model, analysed once."""
    known = {}

    def make(name, multiple=1, budget=0.5, kind=kfp.MacsBudget, floor=1):
        if name not in known:
            model = ZOO[name]()
            graph = kfp.analyze(model)
            live = Weights(graph.view)
            known[name] = graph, kfp.budgets.CostModel(graph), {key: live[key] for key in live}
        graph, cost, weights = known[name]
        budget = kind(keep=budget)
        macs = cost.macs.by_layer(cost.sizes)

        def filters(number):
            members = [m for m in graph.groups[number].members if m.role == "filter"]
            return [(criteria.read_filters(m, weights), macs[m.layer]) for m in members]

        return Allocation(
            sizes=cost.sizes,
            floors=np.minimum(cost.sizes, floor),
            rungs=[Tiles(multiple).rungs(size) for size in cost.sizes.tolist()],
            cost=budget.cost(cost),
            limit=budget.limit(budget.cost(cost)(cost.sizes)),
            scores=lambda number: criteria.L2().scores(graph.groups[number], weights),
            filters=filters,
        )

    return make


@pytest.mark.parametrize("name", ZOO)
@every_allocator
def test_contract_over_the_zoo(problem_of, name, allocator):
    for budget, kind, multiple, floor in OFFERS:
        problem = problem_of(name, multiple, budget, kind, floor)
        if problem.feasible(problem.legal(problem.floors)):
            keep = allocator.allocate(problem)
            assert_contract(problem, keep)
            np.testing.assert_array_equal(keep, allocator.allocate(problem))


@pytest.mark.parametrize(
    "name", ["dense_concat", "residual_projection", "unet", "nested_functional", "ops_split_concat"]
)
@every_multiple
@every_allocator
def test_a_larger_budget_buys_more(problem_of, name, multiple, allocator, monkeypatch):
    """Before what is left over is spent, no group shrinks; spending it takes nothing from any group."""
    found = []
    for budget in np.linspace(0.25, 1.0, 31):
        problem = problem_of(name, multiple, float(budget))
        if problem.feasible(problem.legal(problem.floors)):
            with monkeypatch.context() as patch:
                for module in (simple, cross_layer):
                    patch.setattr(module, "top_up", lambda problem, keep, order: keep)
                plain = allocator.allocate(problem)
            whole = allocator.allocate(problem)
            assert (whole >= plain).all()
            assert spent(problem, whole)
            found.append((plain, whole))
    assert len(found) > 5 or multiple > 1
    for (smaller, _), (larger, _) in itertools.pairwise(found):
        assert (larger >= smaller).all()
    np.testing.assert_array_equal(found[-1][1], problem.sizes)


class Reordered:
    """A cost that takes its groups in another order."""

    def __init__(self, cost, order):
        self.cost, self.order = cost, order

    def __call__(self, keep):
        return self.cost(self._back(keep))

    def gradient(self, keep):
        return self.cost.gradient(self._back(keep))[self.order]

    def _back(self, keep):
        original = np.empty_like(keep)
        original[self.order] = keep
        return original


# Models whose groups all have different sizes: between equals, the order of the model decides.
@pytest.mark.parametrize("name", ["residual_projection", "plain_chain", "conv_bn_relu_chain", "unet"])
@every_multiple
@every_allocator
def test_the_order_of_groups_does_not_matter(problem_of, name, multiple, allocator):
    for budget in (0.4, 0.6, 0.8):
        p = problem_of(name, multiple, budget)
        if not p.feasible(p.legal(p.floors)):
            continue
        assert len(set(p.sizes.tolist())) == len(p.sizes)
        keep = allocator.allocate(p)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(p.sizes))
            moved = Allocation(
                p.sizes[order],
                p.floors[order],
                [p.rungs[group] for group in order],
                Reordered(p.cost, order),
                p.limit,
                lambda number, order=order, p=p: p.scores(order[number]),
                lambda number, order=order, p=p: p.filters(order[number]),
            )
            np.testing.assert_array_equal(allocator.allocate(moved), keep[order])


def test_rungs_are_climbed_one_by_one_and_descended_by_units():
    sizes, rungs = np.array([70, 10]), [[16, 32, 64, 70], range(1, 11)]
    problem = Allocation(sizes, np.array([20, 1]), rungs, kfp.MacsBudget(1.0), 1, scores=lambda group: np.zeros(0))
    assert [problem.wider(0, count) for count in (1, 16, 63, 64, 70)] == [16, 32, 64, 70, 70]
    assert [problem.narrower(0, count, 5) for count in (70, 64, 50, 32, 16)] == [64, 32, 32, 16, 16]
    assert [problem.narrower(0, 70, units) for units in (1, 20, 22, 23, 100)] == [64, 64, 32, 32, 16]
    assert [problem.narrower(1, count, 3) for count in (10, 4, 3, 1)] == [7, 1, 1, 1]
    assert problem.legal(np.array([1, 99])).tolist() == [32, 10]
    assert problem.legal(np.array([65, 0])).tolist() == [70, 1]


@pytest.mark.parametrize("keep", [np.array(4), np.ones(1, int), np.ones(3, int), np.ones((2, 1), int), [1]], ids=str)
def test_counts_of_another_number_of_groups(keep):
    problem = Allocation(np.array([8, 8]), np.array([1, 1]), [range(1, 9)] * 2, cost=np.sum, limit=8)
    for ask in (problem.legal, problem.feasible):
        with pytest.raises(errors.InvalidValueError, match=r"keep is an array of 2 counts.* Received: keep="):
            ask(keep)


# ------------------------------------------------------------------------------------------------ brute force


def fits(problem, keep):
    return (keep <= problem.sizes).all() and problem.cost(keep) <= problem.limit


def spend_rest(problem, keep, order):
    """Pass after pass in this order, each group taking one unit a pass if the budget still pays for it.

    A pass that leaves at most 1 % of the limit is the last one, and so is one in which nobody takes anything.
    """
    while True:
        taken = 0
        for number in order:
            more = keep + np.eye(len(keep), dtype=int)[number]
            if fits(problem, more):
                keep, taken = more, taken + 1
        if not taken or problem.cost(keep) >= 0.99 * problem.limit:
            return keep


@pytest.mark.parametrize("name", ["residual_projection", "dense_concat", "plain_chain"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_global_equals_one_ranking_by_brute_force(problem_of, name, alpha):
    for budget in (0.3, 0.5, 0.7):
        problem = problem_of(name, 1, budget)
        n_groups = len(problem.sizes)
        ranking = []
        for number in range(n_groups):
            one_less = problem.sizes.copy()
            one_less[number] -= 1
            price = problem.cost.gradient(problem.sizes)[number]
            assert price >= problem.cost(problem.sizes) - problem.cost(one_less)
            scores = problem.scores(number)
            ranking += [(s / price**alpha, number) for s in sorted(scores)[:-1]]
        ranking.sort()
        plain = problem.sizes.copy()
        removed = []
        for _, number in ranking:
            if problem.cost(plain) <= problem.limit:
                break
            plain[number] -= 1
            removed.append(number)
        # What is left over after the ranking goes to the groups that lost a unit last.
        expected = spend_rest(problem, plain, dict.fromkeys(reversed(removed)))
        np.testing.assert_array_equal(allocators.Global(alpha).allocate(problem), expected)


@pytest.mark.parametrize("name", ["residual_projection", "dense_concat", "plain_chain"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 10.0])
def test_cross_layer_equals_one_quantile_of_all_weights_by_brute_force(name, alpha):
    """As published: u = |w| / r^alpha, r = MACs of the layer / the first one's; keep = floor(C (1 - share below))."""
    model = ZOO[name]()
    graph = kfp.analyze(model)
    cost = kfp.budgets.CostModel(graph)
    macs = {layer: spent for layer, (spent, _) in cost.per_layer(cost.sizes).items()}
    first, pools = macs[graph.groups[0].producers[0]], []
    for group in graph.groups:
        kernels = [(layer, model.get_layer(layer).kernel.numpy().ravel().tolist()) for layer in group.producers]
        pools.append([abs(w) / (macs[layer] / first) ** alpha for layer, kernel in kernels for w in kernel])
    quantiles = [-1.0, *sorted(u for pool in pools for u in pool)]

    def share(pool, tau):
        return sum(u < tau for u in pool) / len(pool)

    for budget in (0.3, 0.6):
        limit, low, high = int(budget * cost.macs(cost.sizes)), 0, len(quantiles) - 1
        # The lowest quantile within the budget, by bisection: the cost never rises with it.
        while low < high:
            middle = (low + high) // 2
            shares = np.array([share(pool, quantiles[middle]) for pool in pools])
            keep = np.maximum(1, np.floor(cost.sizes * (1 - shares) + 1e-9)).astype(int)
            low, high = (low, middle) if cost.macs(keep) <= limit else (middle + 1, high)
        shares = np.array([share(pool, quantiles[low]) for pool in pools])
        keep = np.maximum(1, np.floor(cost.sizes * (1 - shares) + 1e-9)).astype(int)
        plan = kfp.plan_pruning(model, kfp.Method(criteria.L2(), allocators.CrossLayer(alpha)), budget)
        found = np.array(list(kept_counts(plan).values()))
        # What is left over goes on top: nothing below, and no more than the budget.
        assert (found >= keep).all() and cost.macs(found) <= limit
        tight = Allocation(
            cost.sizes, np.ones_like(cost.sizes), [range(1, n + 1) for n in cost.sizes.tolist()], cost.macs, limit
        )
        expected = spend_rest(tight, keep, np.argsort(keep - cost.sizes * (1 - shares), kind="stable"))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_global_with_alpha_zero_is_the_plain_magnitude_ranking(budget):
    """By name of filter: the globally largest ones that the budget pays for, and then the next of single layers."""
    model = ZOO["conv_bn_relu_chain"]()
    plan = kfp.plan_pruning(model, kfp.Method(criteria.L1("first"), allocators.Global(0.0)), budget)
    cost = kfp.budgets.CostModel(kfp.analyze(model))
    names = [g["name"] for g in plan.groups]
    scores, floors = [], set()
    for layer in names:
        norms = np.abs(model.get_layer(layer).kernel.numpy()).sum(axis=(0, 1, 2))
        scores += [(s, layer, j) for j, s in enumerate(norms / norms.mean())]
        floors.add((layer, int(norms.argmax())))
    ranking = [(layer, j) for _, layer, j in sorted(scores, reverse=True) if (layer, j) not in floors]
    limit = budget * cost.macs(cost.sizes)

    def macs(units):
        return cost.macs(np.array([sum(layer == name for layer, _ in units) for name in names]))

    best = max(n for n in range(len(ranking) + 1) if macs(floors | set(ranking[:n])) <= limit)
    kept = {(g["name"], j) for g in plan.groups for j in g["kept"]}
    assert 0 < best < len(ranking)
    assert floors | set(ranking[:best]) <= kept
    assert macs(kept) <= limit
    for name in names:
        own = [unit for unit in ranking if unit[0] == name]
        n = sum(layer == name for layer, _ in kept) - 1
        assert set(own[:n]) <= kept, "a layer keeps its largest filters"
        assert n == len(own) or macs(kept | {own[n]}) > limit or macs(kept) >= 0.99 * limit


@pytest.mark.parametrize("name", ["residual_projection", "plain_chain", "unet"])
@pytest.mark.parametrize("budget", [0.35, 0.5, 0.7])
def test_uniform_is_the_largest_common_fraction_by_brute_force(problem_of, name, budget):
    problem = problem_of(name, 1, budget)
    sizes = problem.sizes

    def at(fraction):
        return np.array([max(1, math.floor(fraction * n + 0.5)) for n in sizes])

    # Every fraction at which some group takes a step; just below the first that costs too much is the answer.
    too_much = next(
        f for f in sorted({(k - 0.5) / n for n in sizes for k in range(2, n + 1)}) if not fits(problem, at(f))
    )
    fraction = too_much - 1e-7
    expected = at(fraction)
    # What is left over goes to the groups that rounding cheated most.
    order = sorted(range(len(sizes)), key=lambda i: at(fraction)[i] - fraction * sizes[i])
    expected = spend_rest(problem, at(fraction), order)
    np.testing.assert_array_equal(allocators.Uniform().allocate(problem), expected)


def tiny_model():
    """Three groups of 2, 3 and 2 units, with a residual, BN, a depthwise and a flattening classifier."""
    x = keras.Input((5, 4, 2))
    y = keras.layers.Conv2D(2, 3, padding="same", name="a")(x)
    z = keras.layers.Conv2D(3, (1, 2), strides=2, padding="same", use_bias=False, name="b")(y)
    z = keras.layers.BatchNormalization(name="bn")(z)
    z = keras.layers.DepthwiseConv2D(2, padding="same", depth_multiplier=2, name="dw")(z)
    u = keras.layers.Conv2D(2, 1, strides=2, name="c")(y)
    u = keras.layers.Add(name="add")([u, keras.layers.Conv2D(2, 1, name="d")(z)])
    u = keras.layers.Dense(2, name="fc")(keras.layers.Flatten(name="flat")(u))
    return keras.Model(x, u, name="tiny")


def recount(model):
    """(macs, params) of a live model from its own layers' weights and shapes, straight from the definitions."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D):
            # Every kernel value is used once per output position.
            macs += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            macs += math.prod(layer.kernel.shape)
    return macs, model.count_params()


def test_cost_polynomial_equals_a_recount_of_every_possible_model():
    model = tiny_model()
    graph = kfp.analyze(model)
    cost = kfp.budgets.CostModel(graph)
    assert sorted(cost.sizes.tolist()) == [2, 2, 3]
    seen = set()
    for keep in itertools.product(*(range(1, n + 1) for n in cost.sizes)):
        keep = np.array(keep)
        kept = {g.name: np.arange(int(n)) for g, n in zip(graph.groups, keep, strict=True)}
        small = rebuild(model, Kept(graph, kept)).model
        assert (cost.macs(keep), cost.params(keep)) == recount(small)
        per_layer = cost.per_layer(keep)
        assert sum(m for m, _ in per_layer.values()) == cost.macs(keep)
        assert {name: p for name, (_, p) in per_layer.items()} == {
            layer.name: layer.count_params() for layer in small.layers if layer.weights
        }
        seen.add(cost.macs(keep))
    assert len(seen) == 12


@pytest.mark.parametrize("name", ["dense_concat", "residual_projection", "grouped_conv", "shared_conv"])
def test_gradient_equals_finite_differences(problem_of, name):
    for kind in (kfp.MacsBudget, kfp.ParamsBudget):
        cost, sizes = problem_of(name, kind=kind).cost, problem_of(name).sizes
        for number in range(len(sizes)):
            step = np.eye(len(sizes), dtype=int)[number]
            # Costs are quadratic: the central difference is exact.
            expected = (cost(sizes + step) - cost(sizes - step)) / 2
            assert cost.gradient(sizes)[number] == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------- through the front door


@pytest.mark.parametrize("name", ["residual_projection", "depthwise", "siamese", "mixed_precision"])
@pytest.mark.parametrize(
    "budget",
    [1.0, 1, kfp.ParamsBudget(keep=1.0), kfp.ParamsBudget(count=10**9), kfp.FiltersBudget(1.0)],
    ids=["macs", "int", "params", "count", "filters"],
)
def test_a_whole_budget_keeps_everything_bit_for_bit(name, budget):
    model = ZOO[name]()
    small, report = kfp.prune_model(model, "l2", budget, return_report=True, progress=False)
    assert all(len(g["kept"]) == g["size"] for g in report.plan.groups)
    assert all(len(entry["kept"]) == entry["channels"] for entry in report.plan.layers.values())
    x = random_inputs(model)
    assert_all_equal(keras.tree.flatten(model(x)), keras.tree.flatten(small(x)))
    assert_all_equal(model.get_weights(), small.get_weights())


def chain(widths=(5, 7, 16)):
    x = y = keras.Input((8, 8, 3))
    for number, width in enumerate(widths):
        y = keras.layers.Conv2D(width, 3, padding="same", name=f"conv{number}")(y)
    y = keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D(name="gap")(y))
    return keras.Model(x, y, name="chain")


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0.5, (3, 4, 8)),
        (0.3, (2, 2, 5)),
        (0.1, (1, 1, 2)),
        (0.09, (1, 1, 1)),
        (1e-6, (1, 1, 1)),
        (0.9, (5, 6, 14)),
        (1.0, (5, 7, 16)),
    ],
)
def test_filters_budget_rounds_half_up_and_never_to_nothing(keep, expected):
    plan = kfp.plan_pruning(chain(), "l1", kfp.FiltersBudget(keep=keep))
    assert tuple(kept_counts(plan).values()) == expected


def test_filters_budget_per_layer_and_by_glob():
    budget = kfp.FiltersBudget(keep={"conv[01]": 0.6, "conv1": 0.2})
    plan = kfp.plan_pruning(chain(), "l1", budget)
    # 0.6 * 5 = 3; the smaller of 0.6 and 0.2 is what conv1 keeps; conv2 is not named and stays whole.
    assert kept_counts(plan) == {"conv0": 3, "conv1": 1, "conv2": 16}
    tied = kfp.plan_pruning(ZOO["residual_projection"](), "l1", kfp.FiltersBudget(keep={"a2": 0.5}))
    assert kept_counts(tied)["proj"] == 7, "a layer's fraction is its group's"


@pytest.mark.parametrize("multiple", [1, 4, 8, 16])
@pytest.mark.parametrize("keep", [0.02, 0.25, 0.5, 0.51])
def test_filters_budget_rounds_up_to_the_multiple(multiple, keep):
    plan = kfp.plan_pruning(chain((24, 16, 5)), "l1", kfp.FiltersBudget(keep=keep), channel_multiple=multiple)
    for group in plan.groups:
        wanted = max(1, math.floor(keep * group["size"] + 0.5))
        expected = min(group["size"], math.ceil(wanted / multiple) * multiple)
        assert len(group["kept"]) == expected


@pytest.mark.parametrize("budget", [0.35, 0.6, kfp.FiltersBudget(0.1)], ids=["0.35", "0.6", "filters"])
def test_min_filters_holds_and_small_groups_stay_whole(budget):
    plan = kfp.plan_pruning(chain((5, 12, 16)), "l2", budget, min_filters=6)
    assert kept_counts(plan)["conv0"] == 5
    assert all(n >= 6 for name, n in kept_counts(plan).items() if name != "conv0")


def test_include_and_exclude_choose_groups_and_say_so():
    model = chain()

    def plan(**options):
        found = kfp.plan_pruning(model, "l1", kfp.FiltersBudget(0.5), **options)
        return kept_counts(found), {p["layer"]: p["reason"] for p in found.pinned}

    assert plan(include="conv1")[0] == {"conv0": 5, "conv1": 4, "conv2": 16}
    assert plan(include=["conv0", "conv2"])[0] == {"conv0": 3, "conv1": 7, "conv2": 8}
    assert plan(include="conv*", exclude="conv1")[0] == {"conv0": 3, "conv1": 7, "conv2": 8}
    kept, reasons = plan(exclude=("conv[12]",))
    assert kept == {"conv0": 3, "conv1": 7, "conv2": 16}
    assert reasons["conv1"] == "is excluded by 'conv[12]'"
    assert plan(include="conv1")[1]["conv0"] == "is not included"
    # A group of several layers is one: excluding any of its layers keeps all of it.
    tied = kfp.plan_pruning(ZOO["residual_projection"](), "l1", kfp.FiltersBudget(0.5), exclude="b2")
    assert kept_counts(tied)["proj"] == 14


def test_excluded_layers_are_whole_under_a_cost_budget_too():
    whole = sum(ZOO["conv_bn_relu_chain"]().get_layer(layer).filters for layer in ("conv2", "conv3"))
    for method, keep in (("l2", 0.6), ("bn_scale", 0.85)):
        plan = kfp.plan_pruning(ZOO["conv_bn_relu_chain"](), method, keep, exclude="conv1")
        assert kept_counts(plan)["conv1"] == 9
        assert kept_counts(plan)["conv2"] + kept_counts(plan)["conv3"] < whole
        assert plan.cost["macs"][1] <= keep * plan.cost["macs"][0]


def test_a_count_of_parameters_is_a_limit():
    plan = kfp.plan_pruning(ZOO["plain_chain"](), "l2", kfp.ParamsBudget(count=600))
    assert 500 < plan.cost["params"][1] <= 600


@pytest.mark.parametrize("name", ["convnext", "group_norm", "dense_mlp"])
def test_groups_with_statistics_over_channels_keep_two_units(name):
    """Normalising a single channel leaves a constant."""
    model = ZOO[name]()
    graph = kfp.analyze(model)
    least = {g.name: min(g.size, 2 if g.approximate else 1) for g in graph.groups}
    assert 2 in least.values()
    assert kept_counts(kfp.plan_pruning(model, "l2", kfp.FiltersBudget(1e-6))) == least
    cost = kfp.budgets.CostModel(graph)
    reachable = cost.macs(np.array([least[g.name] for g in graph.groups])) / cost.macs(cost.sizes)
    plan = kfp.plan_pruning(model, "l2", reachable * (1 + 1e-9))
    assert kept_counts(plan) == least
    with pytest.raises(errors.InfeasibleBudgetError, match="smallest reachable"):
        kfp.plan_pruning(model, "l2", reachable * (1 - 1e-3))
    more = kept_counts(kfp.plan_pruning(model, "l2", kfp.FiltersBudget(1e-6), min_filters=3))
    assert more == {g.name: min(g.size, 3) for g in graph.groups}
