"""Trials on the masked network, and the allocators that decide by them: Tolerance and Search."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from builders import assert_all_equal, images, keeping, kept_counts, predict, values
from keras import layers
from zoo import ZOO, random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria, errors
from keras_filterprune.graph import Kept
from keras_filterprune.probe import Weights
from keras_filterprune.probe.trial import Trial
from keras_filterprune.rebuild.adapters import add_adapters, wrappable

CHAIN = ("conv1", "conv2", "conv3")
NEVER = 1_000


def chain(classes: int = 3, activation: str | None = None, widths=(8, 8, 8), strides: int = 1) -> keras.Model:
    """Three convolutions and a head whose mean on `images()` is taken off, so that all classes occur."""
    y = inputs = keras.Input((8, 8, 3))
    for name, width in zip(CHAIN, widths, strict=True):
        y = layers.Conv2D(width, 3, padding="same", strides=strides, activation="relu", name=name)(y)
    y = layers.Dense(classes, name="head")(layers.GlobalAveragePooling2D()(y))
    y = y if activation is None else layers.Activation(activation)(y)
    model = randomise(keras.Model(inputs, y, name="chain"))
    head = keras.Model(inputs, model.get_layer("head").output)
    model.get_layer("head").bias.assign_sub(predict(head, images())[0].mean(axis=0))
    return model


def without_readers(model: keras.Model, **dead: list[int]) -> keras.Model:
    """Zero the weights that read these channels."""
    for name, channels in dead.items():
        reader = model.get_layer({"conv1": "conv2", "conv2": "conv3", "conv3": "head"}[name])
        kernel = keras.ops.convert_to_numpy(reader.kernel.value).copy()
        kernel[..., channels, :] = 0
        reader.kernel.assign(kernel)
    return model


def labelled(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples with the classes that the model itself finds."""
    return x, predict(model, x)[0].argmax(axis=1)


def trial_of(graph, data, measure: str):
    """A trial that is asked about {group: units}."""
    trial = Trial(graph, data, measure, False)
    return lambda units: trial(Kept(graph, units))


def kept_of(plan: kfp.PruningPlan) -> dict[str, np.ndarray]:
    return {group["name"]: np.array(group["kept"]) for group in plan.groups}


def cut(model: keras.Model, kept: dict[str, np.ndarray], compensate="none", x=None) -> keras.Model:
    return kfp.apply_plan(model, keeping(model, **kept), data=x, compensate=compensate, progress=False)


def relative_error(model: keras.Model, small: keras.Model, x) -> float:
    wanted = predict(model, x)[0]
    return np.square(predict(small, x)[0] - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum()


class Killed(BaseException):
    """What a killed process is to a test."""


@pytest.fixture
def evaluations(monkeypatch):
    """A list that grows by one with every trial; `evaluations.at = n` kills the n-th."""

    class Evaluations(list):
        at = NEVER

    made, original = Evaluations(), Trial.__call__

    def counted(self, kept):
        made.append({name: len(units) for name, units in kept.units.items()})
        if len(made) >= made.at:
            raise Killed(f"after {len(made)} trials")
        return original(self, kept)

    monkeypatch.setattr(Trial, "__call__", counted)
    return made


# ---------------------------------------------------------------------------------------------------------- trials


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "nested_functional",
        "siamese",
        "shared_conv",
        "depthwise",
        "group_norm",
        "conv1d_lstm",
        "time_distributed",
        "mlp_mixer",
        "lambda_layer",
        "hidden_softmax",
        "ops_slices",
    ],
)
def test_the_whole_network_has_no_error_and_is_not_written_to(name):
    model = ZOO[name]()
    before, graph = values(model), kfp.analyze(model)
    trial = trial_of(graph, random_inputs(model, 8), "error")
    assert trial({}) == pytest.approx(0, abs=1e-9)
    assert trial({group.name: np.arange(max(1, group.size // 2)) for group in graph.groups}) < -1e-4
    assert_all_equal(before, values(model))


def test_what_nobody_reads_is_not_missed():
    """The score is the dense one, and that of the model that is really rebuilt."""
    model = without_readers(chain(), conv1=[1, 5], conv2=[0])
    x, y = labelled(model, images())
    y = np.where(np.arange(len(y)) % 4 == 0, (y + 1) % 3, y)
    kept = {"conv1": np.array([0, 2, 3, 4, 6, 7]), "conv2": np.arange(1, 8)}
    accuracy, error = (trial_of(kfp.analyze(model), (x, y), measure) for measure in ("accuracy", "error"))
    assert accuracy({}) == accuracy(kept) == 0.75
    assert (predict(cut(model, kept), x)[0].argmax(axis=1) == y).mean() == 0.75
    # The ridge of least squares.
    assert error(kept) == pytest.approx(0, abs=1e-5)


def test_a_duplicate_is_made_up_for():
    model = chain()
    for variable in model.get_layer("conv1").weights:
        array = keras.ops.convert_to_numpy(variable.value).copy()
        array[..., 6] = array[..., 2]
        variable.assign(array)
    trial = trial_of(kfp.analyze(model), images(), "error")
    assert trial({"conv1": [0, 1, 2, 3, 4, 5, 7]}) > -1e-3
    assert trial({"conv1": [0, 1, 3, 4, 5, 7]}) < -1e-2


def test_the_error_of_layers_that_are_only_masked_is_that_of_the_rebuilt_model():
    """Transposed convolutions are not refitted."""
    model = ZOO["decoder"]()
    x, graph = random_inputs(model, 64), kfp.analyze(model)
    kept = {group.name: np.arange(group.size // 2) for group in graph.groups}
    score = trial_of(graph, x, "error")(kept)
    assert score == pytest.approx(-relative_error(model, cut(model, kept), x), rel=1e-5)


def test_the_error_after_least_squares_is_that_of_the_rebuilt_model():
    """Dense layers see every row, so that trial and compensator solve the same problem."""
    y = inputs = keras.Input((6,))
    for name in ("fc1", "fc2"):
        y = layers.Dense(8, activation="relu", name=name)(y)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(y)))
    x = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    kept = {"fc2": np.array([1, 3, 4])}
    score = trial_of(kfp.analyze(model), x, "error")(kept)
    small = cut(model, kept, compensators.LeastSquares(), x)
    assert score == pytest.approx(-relative_error(model, small, x), rel=1e-2)
    assert score < -1e-2


@pytest.mark.parametrize("kind", [layers.SimpleRNN, layers.LSTM, layers.GRU], ids=lambda k: k.__name__)
def test_a_constant_channel_is_made_up_for_in_recurrent_layers(kind):
    inputs = keras.Input((8, 3))
    y = layers.Conv1D(6, 3, padding="same", name="conv1")(inputs)
    model = randomise(keras.Model(inputs, kind(5, name="rnn")(y)))
    conv = model.get_layer("conv1")
    kernel, bias = (keras.ops.convert_to_numpy(w.value).copy() for w in (conv.kernel, conv.bias))
    kernel[..., 2], bias[2] = 0, 2
    conv.kernel.assign(kernel)
    conv.bias.assign(bias)
    trial = trial_of(kfp.analyze(model), random_inputs(model, 128), "error")
    assert trial({"conv1": [0, 1, 3, 4, 5]}) > -1e-3


def test_a_normalization_over_another_axis_takes_no_constant():
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs)
    y = layers.BatchNormalization(axis=1)(layers.Conv2D(5, 3, padding="same", use_bias=False, name="conv2")(y))
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 3, name="last")(y)))
    assert -10 < trial_of(kfp.analyze(model), images(), "error")({"conv1": [0, 2, 4]}) < 0


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_accuracy_of_a_single_output(activation, shape):
    """A logit is positive, or a probability more than one half."""
    model = chain(1, activation)
    x = images()
    y = (predict(model, x)[0][:, 0] > (0.5 if activation else 0)).astype(int)
    assert 0.2 < y.mean() < 0.8
    y[:16] = 1 - y[:16]
    trial = trial_of(kfp.analyze(model), (x, y.reshape(shape)), "accuracy")
    assert trial({}) == 0.75
    kept = {name: [0, 1, 2] for name in CHAIN}
    assert 0 <= trial(kept) <= 1


def test_one_hot_labels_are_class_numbers():
    model = chain()
    x, y = labelled(model, images())
    y[:8] = (y[:8] + 1) % 3
    kept, graph = {"conv1": [0, 1, 2], "conv3": [1, 4, 5, 7]}, kfp.analyze(model)
    forms = (y, y[:, None], np.eye(3)[y], np.eye(3, dtype=bool)[y], y.astype("float32"))
    found = [trial_of(graph, (x, form), "accuracy") for form in forms]
    assert {trial({}) for trial in found} == {0.875}
    assert len({trial(kept) for trial in found}) == 1
    budget, search = 0.5, kfp.Method(criteria.L2(), allocators.Search(beta=2))
    plans = [
        kfp.plan_pruning(model, search, budget, data=(x, form), progress=False).groups for form in (forms[0], forms[2])
    ]
    assert plans[0] == plans[1]


# ------------------------------------------------------------------------------------------------------- tolerance


def tolerated(model, data, budget=1.0, criterion=None, **settings) -> kfp.PruningPlan:
    method = kfp.Method(criterion or criteria.Energy(), allocators.Tolerance(**settings))
    return kfp.plan_pruning(model, method, budget, data=data, progress=False)


@pytest.mark.parametrize("drop", [0.0, 1e-5])
@pytest.mark.parametrize("floor", ["linear", "per_layer"])
def test_dead_channels_go_for_nothing_and_all_others_stay(floor, drop):
    model = without_readers(chain(), conv1=[1, 5], conv2=[0], conv3=[2, 3, 7])
    plan = tolerated(model, images(), drop=drop, floor=floor, measure="error")
    assert {name: units.tolist() for name, units in kept_of(plan).items()} == {
        "conv1": [0, 2, 3, 4, 6, 7],
        "conv2": [1, 2, 3, 4, 5, 6, 7],
        "conv3": [0, 1, 4, 5, 6],
    }


def test_no_drop_of_accuracy_keeps_the_accuracy():
    model = without_readers(chain(), conv1=[1, 5], conv3=[2])
    data = labelled(model, images())
    plan = tolerated(model, data, drop=0.0)
    assert trial_of(kfp.analyze(model), data, "accuracy")(kept_of(plan)) == 1.0
    assert not {1, 5} & set(plan.kept["conv1"])
    assert 2 not in plan.kept["conv3"]


@pytest.mark.parametrize("measure", ["accuracy", "error"])
@pytest.mark.parametrize("floor", ["linear", "per_layer"])
def test_a_tolerance_is_never_exceeded_and_a_larger_one_prunes_more(floor, measure):
    model = chain()
    data = labelled(model, images())
    trial = trial_of(kfp.analyze(model), data, measure)
    costs = []
    for drop in (0.01, 0.05, 0.2, 0.5):
        plan = tolerated(model, data, drop=drop, floor=floor, measure=measure)
        assert trial(kept_of(plan)) >= trial({}) - drop - 1e-6
        costs.append(plan.cost["macs"][1])
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6 * plan.cost["macs"][0]


def test_a_tolerance_per_layer_gives_every_group_its_share():
    """What the first group does not use is left over; the linear floor hands it on to the next."""
    model = without_readers(chain(), conv1=[0, 1, 2, 3])
    drop, x = 0.6, images()
    graph = kfp.analyze(model)
    trial = trial_of(graph, x, "error")
    for floor in ("linear", "per_layer"):
        kept, score = {}, trial({})
        for done, (name, units) in enumerate(
            kept_of(tolerated(model, x, drop=drop, floor=floor, measure="error")).items(), 1
        ):
            kept[name] = units
            least = -drop * done / 3 if floor == "linear" else score - drop / 3
            assert trial(kept) >= least - 1e-6
            if len(units) > 1:
                # One unit fewer would be one too many.
                fewer = criteria.Energy().observe(graph, {}, x, False).select(graph.by_name[name], len(units) - 1, {})
                assert trial(kept | {name: fewer}) < least
            score = trial(kept)


@pytest.mark.parametrize("measure", ["accuracy", "error"])
@pytest.mark.parametrize("kind", [kfp.MacsBudget, kfp.ParamsBudget])
@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_without_a_drop_the_budget_is_met_and_spent(keep, kind, measure):
    model = chain()
    plan = tolerated(model, labelled(model, images()), kind(keep=keep), measure=measure)
    cost = {kfp.MacsBudget: "macs", kfp.ParamsBudget: "params"}[kind]
    limit = keep * plan.cost[cost][0]
    assert plan.cost[cost][1] <= limit
    model_cost, counts = getattr(kfp.budgets.CostModel(kfp.analyze(model)), cost), list(kept_counts(plan).values())
    steps = [np.array(counts) + np.eye(3, dtype=int)[n] for n in range(3) if counts[n] < 8]
    assert plan.cost[cost][1] >= 0.99 * limit or all(model_cost(step) > limit for step in steps)


def test_a_budget_gives_back_what_the_drop_would_allow_to_take():
    model = chain()
    alone, together = (tolerated(model, images(), budget, drop=0.5, measure="error") for budget in (1.0, 0.8))
    assert alone.cost["macs"][1] < together.cost["macs"][1] <= 0.8 * together.cost["macs"][0]
    assert all(kept_counts(together)[name] >= count for name, count in kept_counts(alone).items())


def test_a_drop_that_the_budget_does_not_fit_is_named_with_numbers():
    model = chain()
    plan = tolerated(model, images(), drop=0.01, measure="error")
    full, reached = plan.cost["macs"]
    with pytest.raises(errors.InfeasibleBudgetError) as caught:
        tolerated(model, images(), 0.3, drop=0.01, measure="error")
    assert str(caught.value) == (
        f"Tolerance(drop=0.01, floor='linear', measure='error') leaves a cost of {reached:,}; the budget allows "
        f"{int(0.3 * full):,}. Allow a larger drop or a larger budget."
    )


@pytest.mark.parametrize("allocator", [allocators.Tolerance(), allocators.Search()], ids=repr)
def test_a_budget_of_filters_decides_what_these_allocators_decide(allocator):
    model = chain()
    sentence = r"decides how many filters every group keeps, and FiltersBudget\(keep=0\.5\) does too\."
    with pytest.raises(errors.InfeasibleBudgetError, match=sentence):
        kfp.prune_model(
            model, kfp.Method(criteria.L2(), allocator), kfp.FiltersBudget(0.5), data=labelled(model, images())
        )


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda: allocators.Tolerance(drop=-0.1),
            errors.InvalidValueError,
            r"drop is the loss allowed.*drop=-0\.1\.",
        ),
        (
            lambda: allocators.Tolerance(drop=float("nan")),
            errors.InvalidValueError,
            r"Received: drop=nan\.",
        ),
        (lambda: allocators.Tolerance(drop=True), errors.InvalidValueError, r"Received: drop=True\."),
        (
            lambda: allocators.Tolerance(floor="flat"),
            errors.UnknownNameError,
            r"floor is one of linear, per_layer\.",
        ),
        (
            lambda: allocators.Tolerance(measure="loss"),
            errors.UnknownNameError,
            r"measure is one of accuracy, error\.",
        ),
        (lambda: allocators.Search(measure="loss"), errors.UnknownNameError, r"Received: measure='loss'\."),
        (
            lambda: allocators.Search(beta=0),
            errors.InvalidValueError,
            r"a number of units, at least 1\. Received: beta=0\.",
        ),
        (lambda: allocators.Search(beta=2.0), errors.InvalidValueError, r"Received: beta=2\.0\."),
        (
            lambda: allocators.Search(alpha=-1),
            errors.InvalidValueError,
            r"at least 0\. Received: alpha=-1\.",
        ),
    ],
)
def test_settings_out_of_range(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


# ---------------------------------------------------------------------------------------------------------- search


def searched(model, data, budget=0.4, criterion=None, **settings) -> kfp.PruningPlan:
    method = kfp.Method(criterion or criteria.L2(), allocators.Search(**settings))
    return kfp.plan_pruning(model, method, budget, data=data, progress=False)


def rounds_of(path) -> list[tuple[int, int]]:
    return [(group, units) for group, units, _ in json.loads(path.read_text())["rounds"]]


@pytest.mark.parametrize("measure", ["accuracy", "error"])
@pytest.mark.parametrize("beta", [1, 5])
@pytest.mark.parametrize("budget", [0.25, kfp.ParamsBudget(0.5), 1.0], ids=str)
def test_a_search_meets_its_budget_and_spends_it(budget, beta, measure):
    model = chain()
    plan = searched(model, labelled(model, images()), budget, beta=beta, measure=measure)
    kind, share = ("params", 0.5) if isinstance(budget, kfp.ParamsBudget) else ("macs", budget)
    full, left = plan.cost[kind]
    assert left <= share * full
    cost, counts = getattr(kfp.budgets.CostModel(kfp.analyze(model)), kind), np.array(list(kept_counts(plan).values()))
    assert counts.min() >= 1
    steps = [counts + np.eye(3, dtype=int)[n] for n in range(3) if counts[n] < 8]
    assert left >= 0.99 * share * full or all(cost(step) > share * full for step in steps)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_first_rounds_are_those_of_exhaustive_trials(alpha, tmp_path):
    """Least loss (per cost saved), every group tried in every round. Later the search takes losses to grow."""
    model, x, rounds = chain(), images(), 3
    searched(model, x, beta=1, measure="error", alpha=alpha, checkpoint=tmp_path / "search.json")
    graph = kfp.analyze(model)
    trial, cost, weights = trial_of(graph, x, "error"), kfp.budgets.CostModel(graph), Weights(graph.view)
    keep, expected = cost.sizes.copy(), []
    for _ in range(rounds):
        tried = []
        for group in range(3):
            fewer = keep - np.eye(3, dtype=int)[group]
            loss = max(score(trial, graph, keep, weights) - score(trial, graph, fewer, weights), 1e-6)
            tried.append((loss / (cost.macs(keep) - cost.macs(fewer)) ** alpha, group))
        group = min(tried)[1]
        keep[group] -= 1
        expected.append((group, int(keep[group])))
    assert rounds_of(tmp_path / "search.json")[:rounds] == expected
    assert len({group for group, _ in expected}) > 1


def made_up(seed: int) -> allocators.Allocation:
    """Losses that rise and fall, as on few samples or after training; seven groups, one without a choice."""

    class Cost(kfp.budgets.Cost):
        def __call__(self, keep):
            return int(keep @ prices)

        def by_layer(self, keep):
            return {}

    sizes = np.array([9, 4, 12, 7, 10, 6, 8])
    prices = np.random.default_rng(seed).integers(1, 9, len(sizes))
    floors = np.where(np.arange(len(sizes)) == 1, sizes, 1)

    def evaluate(keep):
        return keep.sum() / 40 + np.random.default_rng([seed, *keep]).normal(0, 0.1)

    rungs = [list(range(1, size + 1)) for size in sizes]
    return allocators.Allocation(sizes, floors, rungs, Cost(), int(sizes @ prices * 0.5), evaluate=evaluate)


def by_hand(problem: allocators.Allocation, beta: int, alpha: float) -> list[tuple[int, int]]:
    """The paper's rounds: every group is tried in every one of them."""
    keep, taken = problem.sizes.copy(), []
    while not problem.feasible(keep):
        tried = []
        for group in np.flatnonzero(keep > problem.floors):
            fewer = keep.copy()
            fewer[group] = max(problem.floors[group], fewer[group] - beta)
            loss = max(problem.evaluate(keep) - problem.evaluate(fewer), 1e-6)
            tried.append((loss / (problem.cost(keep) - problem.cost(fewer)) ** alpha, group, fewer[group]))
        _, group, left = min(tried)
        keep[group] = left
        taken.append((int(group), int(left)))
    return taken


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("beta", "alpha"), [(1, 0.0), (1, 1.0), (3, 0.0), (3, 0.5)])
def test_an_exhaustive_search_is_the_papers_whatever_losses_do(seed, beta, alpha, tmp_path):
    problem, file = made_up(seed), tmp_path / "search.json"
    allocators.Search(beta, alpha=alpha, exhaustive=True, checkpoint=file).allocate(problem)
    assert rounds_of(file) == by_hand(problem, beta, alpha)


def score(trial: Trial, graph, keep: np.ndarray, weights) -> float:
    chosen = {g.name: criteria.L2().select(g, int(n), weights) for g, n in zip(graph.groups, keep, strict=True)}
    return trial(chosen)


def test_groups_are_tried_again_only_when_it_is_their_turn(evaluations, tmp_path):
    model = chain(widths=(12, 12, 12))
    searched(model, images(), 0.3, beta=1, measure="error", checkpoint=tmp_path / "search.json")
    rounds = len(rounds_of(tmp_path / "search.json"))
    assert rounds > 10
    # All three in the first round; later at least the group of the round before.
    assert 1 + 3 + rounds - 1 <= len(evaluations) < 1 + 0.8 * 3 * rounds


@pytest.mark.parametrize("settings", [{"beta": 4, "alpha": 0.0}, {"beta": 1, "alpha": 1.0}, {"beta": 8, "alpha": 0.0}])
def test_a_channel_multiple_does_not_keep_a_search_from_ending(settings, evaluations):
    """A group that cannot lose one more multiple is left alone."""
    evaluations.at = 200
    model = chain()
    method = kfp.Method(criteria.L2(), allocators.Search(measure="error", **settings))
    plan = kfp.plan_pruning(model, method, 0.35, data=images(), channel_multiple=4, progress=False)
    assert all(count in (4, 8) for count in kept_counts(plan).values())
    assert plan.cost["macs"][1] <= 0.35 * plan.cost["macs"][0]


def test_options_hold_in_a_search():
    model = chain()
    method = kfp.Method(criteria.L2(), allocators.Search(beta=3, measure="error"))
    plan = kfp.plan_pruning(model, method, 0.6, data=images(), exclude="conv2", min_filters=3, progress=False)
    assert kept_counts(plan)["conv2"] == 8
    assert min(kept_counts(plan).values()) >= 3


@pytest.mark.parametrize("at", [2, 5, 8, 11, 14])
def test_a_killed_search_goes_on_where_it_was(at, evaluations, tmp_path):
    """Exactly the plan of a search that was not killed, after one round more at most."""
    model, data, path = chain(), images(), tmp_path / "search.json"
    wanted = searched(model, data, beta=1, measure="error").groups
    whole = len(evaluations)
    assert whole > 14
    evaluations.clear()
    evaluations.at = at
    with pytest.raises(Killed):
        searched(model, data, beta=1, measure="error", checkpoint=path)
    # Before the first round is over there is nothing to go on from.
    assert path.exists() == (at > 4)
    evaluations.at = NEVER
    assert searched(model, data, beta=1, measure="error", checkpoint=path).groups == wanted
    # A round tries three groups at most; the first also the network as it is.
    assert whole <= len(evaluations) <= whole + 4
    assert [p.name for p in tmp_path.iterdir()] == ["search.json"]


def test_a_finished_search_is_not_run_again_and_goes_on_towards_a_smaller_budget(evaluations, tmp_path):
    model, data, path = chain(), images(), tmp_path / "search.json"
    settings = {"beta": 1, "measure": "error"}
    wanted = {budget: searched(model, data, budget, **settings).groups for budget in (0.3, 0.6, 0.8)}
    evaluations.clear()
    assert searched(model, data, 0.6, **settings, checkpoint=path).groups == wanted[0.6]
    made = len(evaluations)
    assert searched(model, data, 0.6, **settings, checkpoint=path).groups == wanted[0.6]
    assert len(evaluations) == made
    assert searched(model, data, 0.3, **settings, checkpoint=path).groups == wanted[0.3]
    assert len(evaluations) > made
    made = len(evaluations)
    for budget in (0.8, 0.6, 0.3):
        assert searched(model, data, budget, **settings, checkpoint=path).groups == wanted[budget]
    assert len(evaluations) == made


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    model, data, path = chain(), labelled(chain(), images()), tmp_path / "search.json"
    searched(model, data, 0.8, checkpoint=path)
    content = path.read_bytes()
    other = chain()
    other.get_layer("head").bias.assign_add(np.ones(3))
    x, y = data
    sentence = r"search\.json' belongs to another search: model, method, data, seed or fine-tuning differ\. Delete it"
    for arguments in (
        {"model": other},
        {"model": chain(widths=(8, 8, 9))},
        {"data": (x[:32], y[:32])},
        {"data": (x, (y + 1) % 3)},
        {"measure": "error"},
        {"beta": 4},
        {"alpha": 0.5},
        {"criterion": criteria.L1()},
    ):
        with pytest.raises(errors.FileError, match=sentence):
            searched(**{"model": model, "data": data, "budget": 0.8, "checkpoint": path} | arguments)
    method = kfp.Method(criteria.L2(), allocators.Search(checkpoint=path))
    for options in ({"seed": 1}, {"exclude": "conv1"}, {"min_filters": 2}, {"channel_multiple": 2}):
        with pytest.raises(errors.FileError, match=sentence):
            kfp.plan_pruning(model, method, 0.8, data=data, progress=False, **options)
    with pytest.raises(errors.FileError, match=sentence):
        kfp.prune_model(model, method, 0.8, data=data, finetune=lambda m: None, progress=False)
    assert path.read_bytes() == content


def test_a_checkpoint_of_another_kind_of_budget_is_not_mixed_up(tmp_path):
    """Losses per parameter and per multiply-accumulate do not compare: refused, or the plan of a search of its own."""
    model, data, path = chain(strides=2), images(), tmp_path / "search.json"
    settings = {"beta": 1, "measure": "error"}
    wanted = searched(model, data, kfp.ParamsBudget(0.5), **settings)
    others = searched(model, data, 0.5, **settings, checkpoint=path)
    assert kept_counts(others) != kept_counts(wanted)
    try:
        found = searched(model, data, kfp.ParamsBudget(0.5), **settings, checkpoint=path)
    except errors.FileError:
        return
    assert found.groups == wanted.groups


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "queue"}),
        lambda text: json.dumps(json.loads(text) | {"rounds": 3}),
        lambda text: json.dumps(json.loads(text) | {"score": "high"}),
        lambda text: json.dumps(json.loads(text) | {"more": [1]}),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(damage, tmp_path):
    model, path = chain(), tmp_path / "search.json"
    searched(model, images(), 0.8, measure="error", checkpoint=path)
    path.write_text(damage(path.read_text()))
    content = path.read_bytes()
    with pytest.raises(errors.FileError, match=r"search\.json' is no checkpoint of a search: .* Delete it"):
        searched(model, images(), 0.8, measure="error", checkpoint=path)
    assert path.read_bytes() == content


def test_a_search_prunes_what_its_criterion_finds():
    model = chain()
    data = labelled(model, images())
    method = kfp.Method(criteria.FPOMP(), allocators.Search(), compensators.LeastSquares())
    small, report = kfp.prune_model(model, method, 0.5, data=data, return_report=True, progress=False)
    weights = Weights(kfp.analyze(model).view)
    for group, kept in zip(kfp.analyze(model).groups, kept_of(report.plan).values(), strict=True):
        assert kept.tolist() == criteria.FPOMP().select(group, len(kept), weights).tolist()
    assert small.count_params() == report.plan.cost["params"][1]


# ------------------------------------------------------------------------------------------- search with training


class Hook:
    """Training in its place: shifts the head's bias a little, remembers the models; raises at call number `at`."""

    def __init__(self, at: int = NEVER):
        self.at, self.sizes, self.compiled = at, [], []

    def __call__(self, model: keras.Model) -> None:
        self.sizes.append(model.count_params())
        self.compiled.append(model.compiled)
        if len(self.sizes) >= self.at:
            raise Killed("while training")
        model.get_layer("head").bias.assign_add([0.01, -0.02, 0.01])


def trained(model, data, hook, path=None, keep=0.4, compensate="none", criterion=None):
    method = kfp.Method(criterion or criteria.L2(), allocators.Search(beta=2, checkpoint=path))
    return kfp.prune_model(
        model,
        method,
        keep,
        data=data,
        compensate=compensate,
        finetune=hook,
        verify=False,
        return_report=True,
        progress=False,
    )


def test_the_hook_sees_a_smaller_compiled_model_after_every_round(tmp_path):
    model, hook, path = chain(), Hook(), tmp_path / "search.json"
    model.compile("adam", "mse", metrics=["mae"])
    data, before = labelled(model, images()), values(model)
    small, report = trained(model, data, hook, path)
    assert hook.compiled == [True] * len(rounds_of(path))
    assert [model.count_params(), *hook.sizes] == sorted({model.count_params(), *hook.sizes}, reverse=True)
    assert hook.sizes[-1] == small.count_params() == report.plan.cost["params"][1]
    moved = keras.ops.convert_to_numpy(small.get_layer("head").bias.value - model.get_layer("head").bias.value)
    assert moved == pytest.approx(len(hook.sizes) * np.array([0.01, -0.02, 0.01]), abs=1e-5)
    assert_all_equal(before, values(model))


def test_real_training_in_the_hook():
    model = chain()
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = labelled(model, images(64))
    small, _ = trained(model, (x, y), lambda m: m.fit(x, y, batch_size=32, verbose=0) and None, compensate="auto")
    assert small.compiled
    assert all(np.isfinite(w).all() for w in values(small))


def test_units_are_the_originals_and_the_budget_is_a_share_of_the_original():
    """With a hook that does nothing the result is a slice of the original, and replays from the report."""
    model = chain()
    small, report = trained(model, labelled(model, images()), lambda m: None)
    full, left = report.plan.cost["macs"]
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    assert (full, left) == (kfp.budgets.CostModel(kfp.analyze(model)).macs(np.array([8, 8, 8])), cost.macs(cost.sizes))
    assert 0.15 * full < left <= 0.4 * full
    again = kfp.apply_plan(model, report.plan, compensate="none", progress=False)
    assert_all_equal(values(small), values(again))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_search_killed_while_training_goes_on_where_it_was(at, tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data, whole, killed, rest = labelled(model, images()), Hook(), Hook(at), Hook()
    more = {"compensate": "least_squares", "keep": 0.25}
    wanted, first = trained(model, data, whole, **more)
    assert len(whole.sizes) > 3
    with pytest.raises(Killed):
        trained(model, data, killed, path, **more)
    assert path.exists() == (at > 1)
    small, second = trained(model, data, rest, path, **more)
    assert len(killed.sizes) + len(rest.sizes) == len(whole.sizes) + 1
    assert first.plan.groups == second.plan.groups
    assert_all_equal(values(wanted), values(small))
    # The model of the last round, and no other.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["search.json", f"search.json.{len(whole.sizes)}.keras"]


def test_a_search_killed_between_training_and_the_next_round_repeats_nothing(evaluations, tmp_path):
    model, path, hook = chain(), tmp_path / "search.json", Hook()
    data = labelled(model, images())
    wanted, _ = trained(model, data, Hook(), tmp_path / "whole.json")
    rounds = len(rounds_of(tmp_path / "whole.json"))
    evaluations.clear()
    evaluations.at = 7
    with pytest.raises(Killed):
        trained(model, data, hook, path)
    evaluations.at = NEVER
    small, _ = trained(model, data, hook, path)
    assert rounds <= len(hook.sizes) <= rounds + 1
    assert_all_equal(values(wanted), values(small))


def test_a_checkpoint_without_its_model_is_a_clear_error(tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data = labelled(model, images())
    with pytest.raises(Killed):
        trained(model, data, Hook(3), path)
    (saved,) = tmp_path.glob("*.keras")
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(
        errors.FileError, match=rf"needs its model: cannot load .*{saved.name} .* Delete the checkpoint"
    ):
        trained(model, data, Hook(), path)
    saved.unlink()
    with pytest.raises(errors.FileError, match=rf"needs its model: no model at .*{saved.name}.* Delete the checkpoint"):
        trained(model, data, Hook(), path)


def test_a_checkpoint_deletes_its_own_models_alone(tmp_path):
    model, path = chain(), tmp_path / "run[1]"
    data = labelled(model, images())
    for name in ("run[1].best.keras", "run1.3.keras", "run[1].3.h5"):
        (tmp_path / name).write_text("mine")
    trained(model, data, Hook(), path)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left[0] == "run1.3.keras"
    assert {"run[1].best.keras", "run[1].3.h5", "run[1]"} < set(left)
    assert len(left) == 5


def test_training_goes_on_towards_a_smaller_budget(tmp_path):
    model, path, whole, first, second = chain(), tmp_path / "search.json", Hook(), Hook(), Hook()
    data = labelled(model, images())
    wanted, _ = trained(model, data, whole, keep=0.3)
    trained(model, data, first, path, keep=0.6)
    small, _ = trained(model, data, second, path, keep=0.3)
    assert len(first.sizes) + len(second.sizes) == len(whole.sizes)
    assert_all_equal(values(wanted), values(small))


# ------------------------------------------------------------------------------------------------------- adapters


def test_both_sides_of_a_convolution_are_groups_of_their_own():
    model = chain(widths=(8, 10, 6))
    data = labelled(model, images())
    small, report = kfp.prune_model(
        model, "search", 0.6, data=data, compensate="adapter", return_report=True, progress=False
    )
    sizes = {group["name"]: group["size"] for group in report.plan.groups}
    assert {"conv2": 10, "conv2_before": 8, "conv3": 6, "conv3_before": 10}.items() <= sizes.items()
    counts = kept_counts(report.plan)
    assert counts["conv1"] == 8
    assert (counts["conv2"] - 10, counts["conv3_before"] - 10) != (0, 0)
    # Outside, every tensor keeps its width.
    assert small.get_layer("conv1").filters == 8
    last = "conv2_after" if "conv2_after" in [layer.name for layer in small.layers] else "conv2"
    assert small.get_layer(last).filters == 10
    full, left = report.plan.cost["macs"]
    whole, cost = kfp.budgets.CostModel(kfp.analyze(model)), kfp.budgets.CostModel(kfp.analyze(small))
    assert (full, left) == (whole.macs(whole.sizes), cost.macs(cost.sizes))
    assert left <= 0.6 * full


def test_a_search_between_adapters_with_training_goes_on_where_it_was(tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data, whole, killed, rest = labelled(model, images()), Hook(), Hook(3), Hook()
    wanted, _ = trained(model, data, whole, compensate="adapter", keep=0.7, criterion=criteria.FPOMP())
    with pytest.raises(Killed):
        trained(model, data, killed, path, compensate="adapter", keep=0.7, criterion=criteria.FPOMP())
    small, report = trained(model, data, rest, path, compensate="adapter", keep=0.7, criterion=criteria.FPOMP())
    assert len(killed.sizes) + len(rest.sizes) == len(whole.sizes) + 1
    assert_all_equal(values(wanted), values(small))
    assert report.plan.cost["macs"][1] <= 0.7 * report.plan.cost["macs"][0]
    wide = add_adapters(model, graph := kfp.analyze(model), wrappable(graph))
    assert set(kept_of(report.plan)) == {group.name for group in kfp.analyze(wide).groups}
