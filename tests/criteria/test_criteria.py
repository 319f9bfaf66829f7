"""Every criterion keeps one contract, and the closed forms equal loops that anyone can check."""

import keras
import numpy as np
import pytest
from builders import assert_all_equal
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune.criteria import MemberCriterion, distance
from keras_filterprune.methods import as_method
from keras_filterprune.probe import Weights

AGGREGATES = ("mean", "sum", "max", "prod", "first")
# Those whose widths are measured, those that stand here under the name of their criterion, and one for gated networks.
ELSEWHERE = "auto balanced cap_search clr excitation fp_omp_layerwise fp_omp_search hu_ga lrf_layerwise search".split()
NAMES = [name for name, *_ in kfp.list_methods() if name not in ELSEWHERE]


def registered():
    return {name: as_method(name, 0).criterion for name in NAMES}


def all_criteria():
    """Every registered criterion as its method configures it and with one aggregate over layers, one with all."""
    criteria = registered() | {"cap_search": kfp.criteria.ForwardCaP()}
    for number, (name, criterion) in enumerate(registered().items()):
        if isinstance(criterion, kfp.criteria.OperatorNorm) or name == "taylor_group":
            continue
        if isinstance(criterion, MemberCriterion):
            found = AGGREGATES if name == "l2" else [AGGREGATES[number % len(AGGREGATES)]]
            criteria |= {f"{name}-{a}": type(criterion)(aggregate=a) for a in found}
    return criteria


CRITERIA = all_criteria()
MODELS = ["residual_projection", "depthwise", "dense_concat", "grouped_conv", "flatten_dense", "unet"]
every_criterion = pytest.mark.parametrize("key", CRITERIA)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def analysed():
    """{zoo name: (model, graph, weights)}, built once."""
    found = {}
    for name in MODELS:
        model = ZOO[name]()
        graph = kfp.analyze(model)
        live = Weights(graph.view)
        weights = {key: live[key].copy() for key in live}
        # A write into an array that was handed over raises.
        for array in weights.values():
            array.flags.writeable = False
        found[name] = model, graph, weights
    return found


def images(model, requires=()):
    """16 inputs, with class numbers for criteria that need them; those cannot say anything about other models."""
    x = random_inputs(model, batch=16, seed=1)
    if "labels" not in requires:
        return x
    if len(model.output_shape) != 2:
        pytest.skip("no classifier")
    return x, np.arange(16) % model.output_shape[1]


@pytest.fixture(scope="module")
def ready():
    """ready(key, name, model, graph, weights): the criterion, having seen calibration data if it needs any; cached."""
    known = {}

    def observe(key, name, model, graph, weights):
        if (key, name) not in known:
            criterion = CRITERIA[key]
            data = images(model, criterion.requires) if criterion.requires else None
            known[key, name] = criterion.observe(graph, weights, data, False) if criterion.requires else criterion
        return known[key, name]

    return observe


def ranked(graph, criterion):
    groups = [g for g in graph.groups if criterion.refuses(g) is None]
    assert groups
    return groups


@every_model
@every_criterion
def test_scores_are_finite_float64_one_per_unit_and_repeatable_and_nothing_is_mutated(analysed, ready, name, key):
    model, graph, weights = analysed[name]
    before = [w.copy() for w in model.get_weights()]
    criterion = ready(key, name, *analysed[name])
    for group in ranked(graph, criterion):
        scores = criterion.scores(group, weights)
        assert scores.dtype == np.float64
        assert scores.shape == (group.size,)
        assert np.isfinite(scores).all()
        np.testing.assert_array_equal(scores, criterion.scores(group, weights))
        criterion.select(group, 1, weights)
    assert_all_equal(before, model.get_weights())


@every_model
@every_criterion
def test_select_is_sorted_unique_nested_and_keeps_the_highest(analysed, ready, name, key):
    _, graph, weights = analysed[name]
    criterion = ready(key, name, *analysed[name])
    for group in ranked(graph, criterion):
        scores = criterion.scores(group, weights)
        smaller = set()
        for n_keep in range(1, group.size + 1):
            kept = criterion.select(group, n_keep, weights)
            assert kept.dtype.kind == "i"
            assert len(kept) == n_keep
            assert (np.diff(kept) > 0).all()
            assert kept[0] >= 0
            assert kept[-1] < group.size
            if isinstance(criterion, kfp.criteria.Genetic | kfp.criteria.Lasso):
                # Searched for every count anew.
                continue
            assert smaller < set(kept.tolist())
            smaller = set(kept.tolist())
            removed = np.delete(scores, kept)
            assert n_keep == group.size or scores[kept].min() >= removed.max()


@pytest.mark.parametrize("name", NAMES)
def test_planning_leaves_the_model_bit_identical(name):
    model = ZOO["residual_identity"]()
    before, config = model.get_weights(), model.get_config()
    kfp.plan_pruning(model, name, 0.6, data=images(model, as_method(name, 0).criterion.requires))
    assert model.get_config() == config
    assert_all_equal(before, model.get_weights())


def permute(model, graph, seed=3):
    """Renumber the units of every group in place, in every weight they live in; returns {group: permutation}."""
    rng = np.random.default_rng(seed)
    variables = {(c.path, v.name): v for c in graph.view.calls if c.inputs for v in getattr(c.op, "weights", ())}
    orders = {}
    for group in graph.groups:
        order = orders[group.name] = rng.permutation(group.size)
        for m in group.members:
            variable = variables[m.layer, m.weight]
            index = np.arange(variable.shape[m.axis])
            index[m.positions] = m.positions[order]
            variable.assign(np.take(variable.numpy(), index, m.axis))
    return orders


@pytest.fixture(scope="module")
def renumbered(analysed):
    """{zoo name: (graph, weights, {group: permutation})} of the same models with every group's units renumbered."""
    found = {}
    for name in MODELS:
        model = ZOO[name]()
        graph = kfp.analyze(model)
        orders = permute(model, graph)
        x = random_inputs(model)
        # Proof that this is the same network, in other numbers.
        assert any((a != b).any() for a, b in zip(analysed[name][0].get_weights(), model.get_weights(), strict=True))
        expected = analysed[name][0](x, training=False)
        np.testing.assert_allclose(model(x, training=False), expected, rtol=1e-4, atol=1e-5)
        found[name] = model, graph, Weights(graph.view), orders
    return found


@every_model
@pytest.mark.parametrize("key", [c for c in CRITERIA if c != "random"])
def test_renumbered_filters_are_the_same_filters(analysed, renumbered, ready, name, key):
    """Random is left out: its scores belong to positions, not to filters; so does what a search tries by chance."""
    (_, graph, weights), (model, other, moved, orders) = analysed[name], renumbered[name]
    criterion = ready(key, name, *analysed[name])
    again = ready(key, f"{name} renumbered", model, other, moved)
    # What is measured on activations carries their rounding, most in the last, ill-conditioned eliminations; of several
    # dead channels, whose scores are all zero, the numbers decide.
    rtol, atol = (1e-2, 1e-9) if criterion.requires else (1e-6, 0)
    for a, b in zip(ranked(graph, criterion), ranked(other, again), strict=True):
        order, scores = orders[a.name], criterion.scores(a, weights)
        np.testing.assert_allclose(again.scores(b, moved), scores[order], rtol=rtol, atol=atol)
        gaps = -np.diff(np.sort(scores)[::-1])
        for n_keep in range(1, a.size):
            if gaps[n_keep - 1] > atol and key not in ("genetic", "lasso"):
                kept = again.select(b, n_keep, moved)
                assert criterion.select(a, n_keep, weights).tolist() == sorted(order[kept].tolist())


# Besides chance: several dead filters, whose scores are all zero, among which the numbers decide.
TIED = "random genetic lasso taylor taylor_group taylor_gate group_fisher apoz mean_activation".split()


# Equal shares of all groups are the selections that are compared above.
BUDGETS = {f"{name}-macs": (name, 0.9) for name in MODELS} | {"unet-filters": ("unet", kfp.FiltersBudget(0.5))}


# What allocators make of scores is the same for all: each method meets every third.
PLANNED = [
    (method, *BUDGETS[key])
    for number, method in enumerate(n for n in [*NAMES, "clr"] if n not in TIED)
    for turn, key in enumerate(BUDGETS)
    if (number + turn) % 3 == 0
]


@pytest.mark.parametrize(("method", "name", "budget"), PLANNED, ids=str)
def test_renumbered_filters_make_the_same_plan(analysed, renumbered, name, method, budget):
    models, requires = (analysed[name][0], renumbered[name][0]), as_method(method, 0).criterion.requires
    first, second = (kfp.plan_pruning(m, method, budget, data=images(m, requires), progress=False) for m in models)
    assert first.cost == second.cost
    for a, b in zip(first.groups, second.groups, strict=True):
        assert a["kept"] == sorted(renumbered[name][3][a["name"]][b["kept"]].tolist())


def constant_chain(kernel):
    """Two convolutions with normalization; `kernel` (h, w, c, n) is the first one's."""
    x = keras.Input((6, 6, kernel.shape[2]))
    y = keras.layers.Conv2D(kernel.shape[3], kernel.shape[:2], name="conv")(x)
    y = keras.layers.BatchNormalization(name="bn")(y)
    y = keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y)
    model.get_layer("conv").kernel.assign(kernel)
    return model


@pytest.mark.parametrize(
    "criterion", [k for k, c in CRITERIA.items() if isinstance(c, MemberCriterion) and not c.requires]
)
def test_of_equal_scores_the_first_stay(criterion):
    # Two kinds of filters with integer weights, so that equal scores are equal in every bit.
    filters = np.array([[1, -1, 1, 0], [2, 0, -1, 1]])[[0, 1, 0, 1, 0, 1, 0]]
    model = constant_chain(filters.T.reshape(2, 2, 1, 7).astype("float32"))
    graph = kfp.analyze(model)
    kept = CRITERIA[criterion].select(graph.groups[0], 3, Weights(graph.view))
    scores = CRITERIA[criterion].scores(graph.groups[0], Weights(graph.view))
    expected = [1, 3, 5] if scores[1] > scores[0] else [0, 1, 2] if scores[1] == scores[0] else [0, 2, 4]
    assert kept.tolist() == expected
    assert len(set(scores[::2])) == len(set(scores[1::2])) == 1
    kept = CRITERIA[criterion].select(graph.groups[0], 5, Weights(graph.view))
    assert (
        kept.tolist()
        == {1: [0, 1, 2, 3, 5], 0: [0, 1, 2, 3, 4], -1: [0, 1, 2, 4, 6]}[int(np.sign(scores[1] - scores[0]))]
    )


# ------------------------------------------------------------------------------------------------ closed forms


def conv_model(kernel, bias):
    x = keras.Input((8, 8, kernel.shape[2]))
    y = keras.layers.Conv2D(kernel.shape[3], kernel.shape[:2], name="conv")(x)
    y = keras.layers.Dense(3, name="fc")(keras.layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y)
    model.get_layer("conv").set_weights([kernel, bias])
    return model


def hand_made_kernel():
    """Five 3x3x2 filters; number 2 is nothing but a large bias, number 4 is many small weights."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 5)).astype("float32")
    kernel[..., 2] = 1e-3
    kernel[..., 0] = 0
    kernel[1, 1, 0, 0] = 3.0
    kernel[..., 4] = 0.4
    return kernel, np.array([0, 0, 100, 0, 0], "float32")


def scores_of(model, criterion):
    graph = kfp.analyze(model)
    return criterion.scores(graph.groups[0], Weights(graph.view))


def brute_norm(kernel, power):
    norms = []
    for j in range(kernel.shape[3]):
        total = 0.0
        for h in range(kernel.shape[0]):
            for w in range(kernel.shape[1]):
                for c in range(kernel.shape[2]):
                    total += abs(float(kernel[h, w, c, j])) ** power
        norms.append(total ** (1 / power))
    return np.array(norms)


@pytest.mark.parametrize(
    ("criterion", "power"), [(kfp.criteria.L1("first"), 1), (kfp.criteria.L2("first"), 2)], ids=["l1", "l2"]
)
def test_norms_equal_a_loop_over_the_kernel(criterion, power):
    kernel, bias = hand_made_kernel()
    norms = brute_norm(kernel, power)
    scores = scores_of(conv_model(kernel, bias), criterion)
    np.testing.assert_allclose(scores, norms / norms.mean(), rtol=1e-12)
    assert scores.argmin() == 2, "the bias counted"


def test_l1_and_l2_order_sparse_and_dense_filters_differently():
    kernel, bias = hand_made_kernel()
    l1, l2 = (scores_of(conv_model(kernel, bias), c) for c in (kfp.criteria.L1(), kfp.criteria.L2()))
    # One weight of 3.0 against eighteen of 0.4: 3.0 < 7.2, but 3.0 > 1.7.
    assert l1[0] < l1[4]
    assert l2[0] > l2[4]


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (lambda: keras.layers.Conv2DTranspose(6, 3, name="conv"), 2),
        (lambda: keras.layers.Conv2D(6, (1, 3), name="conv"), 3),
        (lambda: keras.layers.SeparableConv2D(6, 3, name="conv"), 3),
    ],
    ids=["transpose", "conv", "separable"],
)
def test_filters_are_read_along_the_right_axis(layer, axis):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(layer()(x))))
    kernel = [w for w in model.get_layer("conv").weights if len(w.shape) == 4][-1].numpy().astype(float)
    norms = np.abs(np.moveaxis(kernel, axis, 0)).reshape(6, -1).sum(axis=1)
    np.testing.assert_allclose(scores_of(model, kfp.criteria.L1()), norms / norms.mean(), rtol=1e-12)


def brute_fpgm(filters):
    total = np.zeros(len(filters))
    for i, a in enumerate(filters):
        for b in filters:
            total[i] += np.sqrt(((a - b) ** 2).sum())
    return total


def test_fpgm_equals_a_double_loop():
    filters = np.random.default_rng(1).normal(size=(17, 45))
    filters[5] = filters[11]
    np.testing.assert_allclose(kfp.criteria.FPGM().score(filters), brute_fpgm(filters), rtol=1e-7)


def test_fpgm_removes_the_centroid_of_a_cluster_and_not_the_smallest_norm():
    rng = np.random.default_rng(2)
    spread = rng.normal(size=(6, 18))
    # The cluster sits far from zero; its middle is the most replaceable filter, the tiny filter is the loneliest.
    filters = np.concatenate([10 + spread, 10 - spread, np.full((1, 18), 10.0), np.full((1, 18), 0.01)])
    kernel = filters.T.reshape(3, 3, 2, 14).astype("float32")
    model = conv_model(kernel, np.zeros(14, "float32"))
    graph = kfp.analyze(model)
    removed = set(range(14)) - set(kfp.criteria.FPGM().select(graph.groups[0], 13, Weights(graph.view)).tolist())
    assert removed == {12}
    assert scores_of(model, kfp.criteria.FPGM()).argmax() == 13
    assert scores_of(model, kfp.criteria.L2()).argmin() == 13


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2500])
def test_fpgm_in_blocks_equals_one_block(n, monkeypatch):
    filters = np.random.default_rng(n).normal(size=(n, 9))
    blocks = kfp.criteria.FPGM().score(filters)
    monkeypatch.setattr(distance, "_BLOCK", n)
    np.testing.assert_allclose(blocks, kfp.criteria.FPGM().score(filters), rtol=1e-7)
    probe = [0, n // 2, n - 1]
    exact = [np.sqrt(((filters - filters[i]) ** 2).sum(axis=1)).sum() for i in probe]
    np.testing.assert_allclose(blocks[probe], exact, rtol=1e-7)


def test_bn_scale_reads_the_size_of_gamma_alone():
    kernel, _ = hand_made_kernel()
    model = constant_chain(kernel)
    gamma = np.array([0.5, -2.0, 0.1, 1.0, -0.4], "float32")
    model.get_layer("bn").gamma.assign(gamma)
    model.get_layer("bn").beta.assign([9, 0, 9, 0, 9])
    assert scores_of(model, kfp.criteria.BNScale()).tolist() == np.abs(gamma).astype(float).tolist()


def test_bn_scale_compares_layers_by_the_scale_itself():
    """Network Slimming ranks |gamma| as it is: a layer whose scales are all small loses its filters first."""
    x = y = keras.Input((8, 8, 3))
    rng = np.random.default_rng(0)
    for number, scale in enumerate((1.0, 0.01, 1.0), 1):
        y = keras.layers.Conv2D(9, 3, padding="same", name=f"conv{number}")(y)
        bn = keras.layers.BatchNormalization(name=f"bn{number}")
        y = bn(y)
        bn.gamma.assign(scale * rng.uniform(0.8, 1.2, 9))
    model = keras.Model(x, keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D()(y)))
    graph = kfp.analyze(model)
    weights = Weights(graph.view)
    small, large = (kfp.criteria.BNScale().scores(graph.by_name[name], weights) for name in ("conv2", "conv3"))
    assert small.max() < large.min() / 50
    assert not kfp.criteria.BNScale.normalised
    assert kfp.criteria.L1.normalised and kfp.criteria.L2.normalised and kfp.criteria.FPGM.normalised
    kept = {g["name"]: len(g["kept"]) for g in kfp.plan_pruning(model, "bn_scale", 0.8).groups}
    assert kept["conv2"] < 9
    assert kept["conv1"] == kept["conv3"] == 9


@pytest.mark.parametrize("budget", [0.8, kfp.FiltersBudget(0.5)], ids=["global", "filters"])
def test_bn_scale_keeps_groups_without_batch_normalization_whole_and_says_so(budget):
    plan = kfp.plan_pruning(ZOO["se_reshape"](), "bn_scale", budget)
    sizes = {g["name"]: (g["size"], len(g["kept"])) for g in plan.groups}
    assert sizes["se_reduce"] == (5, 5)
    assert sum(kept for _, kept in sizes.values()) < sum(size for size, _ in sizes.values())
    reasons = {p["layer"]: p["reason"] for p in plan.pinned}
    assert reasons["se_reduce"] == "has no batch normalization scale for bn_scale to read"
    assert not {"conv1", "conv2"} & set(reasons)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_aggregation_over_a_residual_group_by_hand(aggregate):
    model = ZOO["residual_identity"]()
    graph = kfp.analyze(model)
    group = graph.by_name["stem"]
    assert set(group.producers) == {"stem", "block1_b", "block2_b"}
    rows = []
    for layer in group.producers:
        norms = brute_norm(model.get_layer(layer).kernel.numpy(), 2)
        rows.append(norms / norms.mean())
    a, b, c = np.array(rows)
    expected = {
        "mean": (a + b + c) / 3,
        "sum": a + b + c,
        "max": np.array([max(t) for t in zip(a, b, c, strict=True)]),
        "prod": a * b * c,
        "first": a,
    }[aggregate]
    np.testing.assert_allclose(
        kfp.criteria.L2(aggregate=aggregate).scores(group, Weights(graph.view)), expected, rtol=1e-12
    )


def test_a_layer_of_zeros_scores_zero():
    kernel = np.zeros((3, 3, 2, 4), "float32")
    for criterion in CRITERIA.values():
        if isinstance(criterion, MemberCriterion) and not criterion.requires:
            model = constant_chain(kernel)
            model.get_layer("bn").gamma.assign(np.zeros(4))
            assert scores_of(model, criterion).tolist() == [0, 0, 0, 0]


def test_random_depends_on_seed_and_group_and_nothing_else():
    model = ZOO["residual_projection"]()
    graph = kfp.analyze(model)
    scores = {g.name: kfp.criteria.Random(1).scores(g, {}) for g in graph.groups}
    assert len({s.tobytes()[:8] for s in scores.values()}) == len(scores)
    group = graph.groups[0]
    assert (kfp.criteria.Random(1).scores(group, {}) == scores[group.name]).all()
    assert (kfp.criteria.Random(2).scores(group, {}) != scores[group.name]).any()
    plans = [kfp.plan_pruning(model, "random", 0.5, seed=s).groups for s in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
