"""Parts that others write: what they are given back is checked, and a wrong one is told what was expected of it."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune.errors import (
    InfeasibleBudgetError,
    InvalidValueError,
    SurgeryError,
    UnknownNameError,
    UnsupportedLayerError,
)
from keras_filterprune.methods import registry

L = keras.layers


def network(*layers):
    first, second = L.Conv2D(8, 3, name="a"), L.Conv2D(8, 3, name="b")
    return keras.Sequential([keras.Input((12, 12, 3)), first, *layers, second, L.Flatten(), L.Dense(2)])


def widths(method, **settings):
    small = kfp.prune_model(network(), method, 0.5, progress=False, **settings)
    return [small.get_layer(name).filters for name in ("a", "b")]


class Criterion(kfp.criteria.Criterion):
    """Scores and selects as it is told."""

    def __init__(self, scores=lambda n: np.arange(n), select=None):
        self._scores, self._select = scores, select

    def scores(self, group, weights):
        return self._scores(group.size)

    def select(self, group, n_keep, weights):
        return self._select(n_keep) if self._select else super().select(group, n_keep, weights)


class Member(kfp.criteria.MemberCriterion):
    def __init__(self, score, aggregate="mean"):
        super().__init__(aggregate)
        self._score = score

    def score(self, filters):
        return self._score(len(filters))


class Allocator(kfp.allocators.Allocator):
    def __init__(self, allocate):
        self._allocate = allocate

    def allocate(self, problem):
        return self._allocate(problem)


NO_SCORES = {
    "longer": lambda n: np.zeros(n + 1),
    "shorter": lambda n: np.zeros(n - 1),
    "of two axes": lambda n: np.zeros((n, 2)),
    "not a number": lambda n: np.full(n, np.nan),
    "one not a number": lambda n: np.where(np.arange(n) == 3, np.nan, 1.0),
    "a list": lambda n: [1.0] * n,
    "nothing": lambda n: None,
    "one number": lambda n: 1.0,
    "complex": lambda n: np.zeros(n, complex),
    "text": lambda n: np.array(["a"] * n),
}


@pytest.mark.parametrize("make", [Criterion, Member], ids=["criterion", "member"])
@pytest.mark.parametrize("allocator", [kfp.allocators.Uniform(), kfp.allocators.Global()], ids=repr)
@pytest.mark.parametrize("scores", NO_SCORES.values(), ids=NO_SCORES)
def test_scores_that_are_none_are_refused(make, allocator, scores):
    expected = r"(Criterion|Member)\(.*\) is to score group 'a' with an array of 8 numbers, one per unit\. Received: "
    with pytest.raises(InvalidValueError, match=expected):
        widths(kfp.Method(make(scores), allocator))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_scores_may_be_numbers_of_any_kind(dtype):
    model = network()
    kept = kfp.plan_pruning(model, Criterion(lambda n: np.arange(n).astype(dtype)), 0.5, progress=False).kept
    assert kept["a"].tolist() == list(range(3, 8))


@pytest.mark.parametrize(
    "select",
    [
        lambda n: np.arange(n + 1),
        lambda n: np.arange(n)[::-1],
        lambda n: np.zeros(n, int),
        lambda n: np.arange(n) - 1,
        lambda n: np.arange(8 - n, 8) + 1,
        lambda n: np.arange(n) * 1.0,
        lambda n: list(range(n)),
    ],
    ids=["too many", "falling", "twice", "negative", "beyond", "real numbers", "a list"],
)
def test_selections_that_are_none_are_refused(select):
    with pytest.raises(
        InvalidValueError, match=r"is to select 5 units of group 'a' by their indices below 8, rising\."
    ):
        widths(Criterion(select=select))


@pytest.mark.parametrize(
    ("allocate", "error", "received"),
    [
        (lambda p: None, InvalidValueError, "2 integers, the units that every group keeps. Received: None"),
        (lambda p: [4, 4], InvalidValueError, r"2 integers.*Received: \[4, 4\]"),
        (lambda p: p.sizes[:1], InvalidValueError, r"2 integers.*Received: array\(\[8\]\)"),
        (lambda p: p.sizes * 0.5, InvalidValueError, r"2 integers.*Received: array\(\[4\., 4\.\]\)"),
        (
            lambda p: p.sizes,
            InfeasibleBudgetError,
            r"cost 29,744 at most, and these cost 59,488\. Received: \[8, 8\]\.",
        ),
        (lambda p: p.sizes * 0, InfeasibleBudgetError, r"of group 0 'a' from 1 to 8\. Received: \[0, 0\]"),
        (lambda p: p.sizes + 1, InfeasibleBudgetError, r"Received: \[9, 9\]"),
        (lambda p: np.array([3, 4]), InfeasibleBudgetError, r"group 0 'a' one of its rungs\. Received: \[3, 4\]"),
    ],
    ids=["nothing", "a list", "shorter", "real numbers", "beyond the budget", "below the least", "too many", "odd"],
)
def test_counts_that_are_none_are_refused(allocate, error, received):
    with pytest.raises(error, match=rf"Allocator\(\) is to .*{received}"):
        widths(kfp.Method(kfp.criteria.L2(), Allocator(allocate)), channel_multiple=2)


def test_counts_that_are_legal_are_kept():
    method = kfp.Method(kfp.criteria.L2(), Allocator(lambda p: np.array([6, 2], np.int32)))
    assert widths(method, channel_multiple=2) == [6, 2]


def traced(trace):
    """Analyse a network whose layer of our own is handled like this."""

    class Own(L.Layer):
        def build(self, shape):
            self.gamma = self.add_weight((shape[-1],), "ones", name="gamma")

        def call(self, x):
            return x * self.gamma

    @kfp.register_handler(Own)
    class Handler(kfp.handlers.Handler):
        def trace(self, call, inputs, t):
            return trace(call, inputs[0], t)

    return kfp.analyze(network(Own(name="own")))


def through(call, ids):
    return [kfp.handlers.Tensor(call.output_shapes[0], 3, ids)]


def bound(weight="gamma", axis=0, role="channel"):
    def trace(call, x, t):
        t.bind(call.path, weight, axis, x.ids, role)
        return through(call, x.ids)

    return trace


def test_a_right_handler_is_followed():
    assert [group.size for group in traced(bound()).groups] == [8, 8]


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (
            lambda call, x, t: None,
            r"layer 'own' \(Own\) is to return a Tensor for each of its 1 outputs.*Received: None",
        ),
        (lambda call, x, t: [], r"a Tensor for each of its 1 outputs.*Received: \[\]"),
        (lambda call, x, t: x, r"a Tensor for each of its 1 outputs.*Received: Tensor\("),
        (lambda call, x, t: [x.ids], r"a Tensor for each of its 1 outputs.*Received: \[array\("),
        (lambda call, x, t: through(call, x.ids[:4]), "with an id for every channel"),
        (lambda call, x, t: through(call, None), "with an id for every channel"),
        (bound(weight="beta"), r"weights \{'gamma': \(8,\)\}.*Received: axis 0 of 'beta' as 'channel'"),
        (bound(axis=1), "counted from 0.*Received: axis 1 of 'gamma'"),
        (bound(axis=-1), "counted from 0.*Received: axis -1 of 'gamma'"),
        (bound(role="filters"), "one of filter, input, channel.*Received: axis 0 of 'gamma' as 'filters'"),
        (lambda call, x, t: [kfp.handlers.Tensor((None, 8), 1, x.ids)], r"of shapes \(\(None, 10, 10, 8\),\)"),
        (lambda call, x, t: [kfp.handlers.Tensor(call.output_shapes[0], -1, x.ids)], r"of shapes .*axis=-1"),
        (
            lambda call, x, t: t.bind(call.path, "gamma", 0, x.ids[:6]) or through(call, x.ids),
            r"binds axis 0 of its weight 'gamma', of shape \(8,\), to 6 channels as 'channel'; expected 8",
        ),
        (lambda call, x, t: t.tie(x.ids, x.ids[:3]), "id vectors of one length. Received: 8, 3"),
        (lambda call, x, t: through(call, x.ids * 1.0), "with an id for every channel"),
        (lambda call, x, t: through(call, x.ids + 1000), "with an id for every channel"),
        (lambda call, x, t: through(call, x.ids - 1000), "with an id for every channel"),
        (lambda call, x, t: t.pin(x.ids, None), r"reason is why channels stay.*Received: reason=None"),
        (lambda call, x, t: t.pin(x, "feeds"), r"named by an array of their ids\. Received: Tensor"),
        (lambda call, x, t: t.tie(x.ids + 1000, x.ids), "named by an array of their ids"),
        (lambda call, x, t: t.bind(call.path, "gamma", 0, x), "named by an array of their ids"),
        (lambda call, x, t: t.approximate(None, "x"), r"named by an array of their ids\. Received: None"),
        (lambda call, x, t: t.spend(call.path, "x", x.ids), "coefficient is a number of multiply-accumulates"),
        (lambda call, x, t: t.spend(call.path, -9, x.ids), "coefficient is .* at least 0. Received: coefficient=-9"),
        (lambda call, x, t: t.spend(call.path, 0.5, x.ids), "coefficient=0.5"),
        (lambda call, x, t: t.fresh("x"), "size is a number of channels, at least 0. Received: size='x'"),
    ],
    ids=[
        "returns nothing",
        "returns no tensor",
        "returns a bare tensor",
        "returns ids",
        "too few ids",
        "no ids",
        "no such weight",
        "no such axis",
        "negative axis",
        "no such role",
        "another shape",
        "negative axis of channels",
        "an axis of another length",
        "unequal ties",
        "ids that are fractions",
        "ids of nobody",
        "ids below 0",
        "no reason",
        "a tensor that stays",
        "ties of nobody",
        "a tensor that is bound",
        "nothing approximate",
        "a word of costs",
        "negative costs",
        "a fraction of costs",
        "a word of channels",
    ],
)
def test_wrong_reports_of_a_handler_are_refused(trace, message):
    with pytest.raises(UnsupportedLayerError, match=message):
        traced(trace)


def test_parts_are_shown_by_class_and_public_attributes():
    class Mine(kfp.compensators.Compensator):
        def __init__(self):
            self.rate, self.names, self._found = 0.5, ("a", "b"), np.zeros(3)

        def apply(self, rebuilt, data, progress=True):
            return "nothing"

    assert repr(Mine()) == "Mine(rate=0.5, names=('a', 'b'))"
    assert repr(Criterion()) == "Criterion()"


# ------------------------------------------------------------------------------------- which methods there are

# {base: what is said of a class that has no method}
LACKING = {
    kfp.criteria.Criterion: r"scores\(self, group, weights\)\. Score of every unit.* It returns: float64",
    kfp.criteria.MemberCriterion: r"score\(self, filters\)\. .* It returns: Numbers of shape",
    kfp.criteria.ActivationCriterion: r"measure\(self, y\)\. .* It returns: A float32 tensor",
    kfp.allocators.Allocator: r"allocate\(self, problem\)\. .* It returns: int64 of shape \(n_groups,\)",
    kfp.compensators.Compensator: r"apply\(self, rebuilt, data, progress\)\. .* It returns: What was done",
    kfp.budgets.Budget: r"cost\(self, model\)\. What a model costs",
    kfp.budgets.Prices: r"price\(self, fields, channels, filters\)\. Cost of one operator",
    kfp.budgets.Cost: r"__call__\(self, keep\)\. Cost at",
    kfp.callbacks.GateScorer: r"begin\(self, width, generator\)\. .* It returns: A dict of float32",
    kfp.handlers.Handler: r"trace\(self, call, inputs, t\)\. .* It returns: One `Tensor` per output",
    kfp.handlers.LinearHandler: r"linear\(self, op\)\. .* It returns: A `Linear`",
}


@pytest.mark.parametrize("base", LACKING, ids=lambda base: base.__name__)
def test_a_class_without_its_method_is_told_which_one_and_what_it_returns(base):
    error = UnsupportedLayerError if issubclass(base, kfp.handlers.Handler) else InvalidValueError
    with pytest.raises(error, match=f"Mine, a subclass of {base.__name__}, lacks {LACKING[base]}.*extending.md"):
        type("Mine", (base,), {})()


def test_a_handler_without_a_method_is_refused_where_it_is_registered():
    with pytest.raises(UnsupportedLayerError, match=r"a subclass of Handler, lacks trace\("):
        kfp.register_handler(type("Own", (L.Layer,), {}))(type("Mine", (kfp.handlers.Handler,), {}))


def test_a_budget_that_settles_counts_and_gives_none_is_told_so():
    for mine in (type("Mine", (kfp.budgets.CountBudget,), {})(), budget(settles_counts=True)):
        with pytest.raises(
            InvalidValueError, match=r"Mine\(\) settles counts, and says in no counts\(groups, redundant\)"
        ):
            prune(budget=mine)


@pytest.mark.parametrize(
    ("base", "name", "method", "taken"),
    [
        (kfp.criteria.Criterion, "scores", lambda self, group: 1, "self, group, weights"),
        (kfp.criteria.Criterion, "observe", lambda self, graph: 1, "self, graph, weights, data, progress"),
        (kfp.criteria.Criterion, "select", lambda self, group, weights: 1, "self, group, n_keep, weights"),
        (kfp.criteria.MemberCriterion, "score", lambda filters: 1, "self, filters"),
        (kfp.criteria.ActivationCriterion, "measure", lambda self: 1, "self, y"),
        (kfp.allocators.Allocator, "allocate", lambda self, problem, budget: 1, "self, problem"),
        (kfp.compensators.Compensator, "apply", lambda self, rebuilt: "", "self, rebuilt, data, progress"),
        (kfp.budgets.Budget, "cost", lambda self: 1, "self, model"),
        (kfp.budgets.Budget, "limit", lambda self: 1, "self, full"),
        (kfp.budgets.Prices, "price", lambda self, fields: 1, "self, fields, channels, filters"),
        (kfp.budgets.Cost, "by_layer", lambda self: 1, "self, keep"),
        (kfp.handlers.Handler, "trace", lambda self, call: 1, "self, call, inputs, t"),
        (kfp.handlers.Handler, "resize", lambda self, config: 1, "self, config, r"),
        (kfp.handlers.LinearHandler, "linear", lambda self: 1, "self, op"),
    ],
)
def test_methods_that_do_not_take_what_they_are_given_are_refused_when_they_are_written(base, name, method, taken):
    error = UnsupportedLayerError if issubclass(base, kfp.handlers.Handler) else InvalidValueError
    with pytest.raises(error, match=rf"Mine\.{name} is to take \({taken}\)\. Received: {name}\("):
        type("Mine", (base,), {name: method})


def test_methods_may_take_more_or_all():
    type("Mine", (kfp.criteria.Criterion,), {"scores": lambda self, *given: 1})
    type("Mine", (kfp.allocators.Allocator,), {"allocate": lambda self, problem, extra=None, **more: 1})


# ------------------------------------------------------------------------------------- what methods return


def made(base, **content):
    """A part of a class of our own."""
    return type("Mine", (base,), content)()


def prune(method="l2", budget=0.5, model=None, **settings):
    return kfp.prune_model(model or network(), method, budget, progress=False, **settings)


def compensated(apply):
    return prune(compensate=made(kfp.compensators.Compensator, apply=apply))


def priced(price, **content):
    prices = made(kfp.budgets.Prices, **{"price": price, "device": "d"} | content)
    return prune(budget=kfp.LatencyBudget(keep=0.5, table=prices))


def measured(measure):
    return prune(made(kfp.criteria.ActivationCriterion, measure=measure), model=active(), data=X)


def active():
    return keras.Sequential([keras.Input((12, 12, 3)), L.Conv2D(8, 3, activation="relu", name="a"), L.Conv2D(4, 3)])


def budget(**content):
    return made(kfp.budgets.Budget, **{"keep": 0.5, "unit": "x", "cost": lambda self, model: model.macs} | content)


def scored(**content):
    return prune(made(kfp.criteria.MemberCriterion, score=lambda self, filters: np.ones(len(filters)), **content))


class Filters(kfp.budgets.Cost):
    def __call__(self, keep):
        return int(keep.sum())

    def by_layer(self, keep):
        return {}


class Priceless(kfp.budgets.Cost):
    def __init__(self, whole, layers=None):
        self._whole, self._layers = whole, layers

    def __call__(self, keep):
        return self._whole

    def by_layer(self, keep):
        return {} if self._layers is None else self._layers


def fill_with_nan(self, rebuilt, data, progress=True):
    layer = rebuilt.model.get_layer("b")
    layer.kernel.assign(layer.kernel * np.nan)
    return "done"


X = np.random.default_rng(0).normal(size=(16, 12, 12, 3))
RANKS = {"scores": lambda self, group, weights: np.ones(group.size)}
WRONG = {
    "observe: nothing": (
        lambda: prune(made(kfp.criteria.Criterion, observe=lambda self, *_: None, **RANKS)),
        r"Mine\(\)\.observe is to return a copy that knows\. Received: None\.",
    ),
    "refuses: a flag": (
        lambda: prune(made(kfp.criteria.Criterion, refuses=lambda self, group: True, **RANKS)),
        r"Mine\(\)\.refuses is to return why.*Received: True\.",
    ),
    "redundant: text": (
        lambda: prune(
            made(kfp.criteria.Criterion, redundant=lambda self, group, weights: "3", **RANKS),
            kfp.budgets.RedundancyBudget(),
        ),
        r"Mine\(\)\.redundant is to return a number from 0 to 8, or None\. Received: '3'\.",
    ),
    "score: negative": (
        lambda: prune(Member(lambda n: -np.ones(n))),
        r"Member\(aggregate='mean'\) is to score group 'a' with numbers of which none is negative.*Received: array",
    ),
    "measure: NaN": (
        lambda: measured(lambda self, y: keras.ops.log(y - 1)),
        r"Mine\(\)\.measure is to return numbers; some.*activations of 'a' are NaN\. Received: array",
    ),
    "measure: one number per channel": (
        lambda: measured(lambda self, y: keras.ops.mean(y, (0, 1, 2))),
        r"a tensor of the shape of its input, \(16, 10, 10, 8\)\. Received: .*8",
    ),
    "apply: nothing": (
        lambda: compensated(lambda self, *_: None),
        r"Mine\(\)\.apply is to return what it did, in a sentence\. Received: None\.",
    ),
    "twin: a name": (
        lambda: compensated(lambda self, rebuilt, *_, **__: str(rebuilt.twin("a"))),
        r"call is one of rebuilt\.graph\.view\.calls\. Received: call='a'\.",
    ),
    "apply: NaN": (lambda: compensated(fill_with_nan), r"leave finite weights; some of '.*b/kernel' are none\."),
    "cost: a number": (lambda: prune(budget=budget(cost=lambda *_: 3)), r"Mine\(\)\.cost is to return a Cost.*: 3\."),
    "cost: nothing": (lambda: prune(budget=budget(cost=lambda *_: None)), r"to return a Cost.*Received: None\."),
    "cost: real": (
        lambda: prune(budget=budget(cost=lambda *_: Priceless(0.5))),
        r"Priceless is to cost a whole number: take a smaller unit\. Received: 0\.5\.",
    ),
    "cost: NaN": (lambda: prune(budget=budget(cost=lambda *_: Priceless(np.nan))), r"a whole number.*Received: nan\."),
    "cost: real by layer": (
        lambda: prune(budget=budget(cost=lambda *_: Priceless(1, {"a": 0.5}))),
        r"Priceless\.by_layer is to return \{layer: whole number\}\. Received: \{'a': 0\.5\}\.",
    ),
    "limit: nothing": (
        lambda: prune(budget=budget(limit=lambda *_: None)),
        r"Mine\(\)\.limit is to return the most that may be spent, a number\. Received: None\.",
    ),
    "keep: percent": (
        lambda: prune(budget=budget(keep=50)),
        r"keep is the fraction.*in \(0, 1\]\. Received: keep=50\.",
    ),
    "keep: none": (lambda: prune(budget=budget(keep=None)), r"keep is the fraction.*Received: keep=None\."),
    "unit: none": (lambda: prune(budget=budget(unit=None)), r"Mine\(\)\.unit is to say what is counted.*: None\."),
    "counts: a list": (
        lambda: prune(budget=made(kfp.budgets.CountBudget, counts=lambda *_: [4, 4])),
        r"Mine\(\)\.counts is to return an array of 2 integers.*Received: \[4, 4\]\.",
    ),
    "price: nothing": (lambda: priced(lambda *_: None), r"Mine\('d'\)\.price is to return.*CONV_2D.*Received: None\."),
    "price: NaN": (lambda: priced(lambda *_: float("nan")), r"price is to return.*Received: nan\."),
    "price: negative": (lambda: priced(lambda *_: -1), r"price is to return what.*at least 0, of .*Received: -1\."),
    "floor: NaN": (lambda: priced(lambda *_: 1, floor=float("nan")), r"\.floor is to be a number.*Received: nan\."),
    "floor: text": (lambda: priced(lambda *_: 1, floor="x"), r"\.floor is to be a number, at least 0\. Received: 'x'"),
    "tiles: a number": (lambda: priced(lambda *_: 1, tiles=8), r"\.tiles is to be Tiles\. Received: 8\."),
    "key: a number": (lambda: priced(lambda *_: 1, key=3), r"\.key is to say what prices depend on.*Received: 3\."),
    "threads: text": (lambda: priced(lambda *_: 1, threads="x"), r"\.threads is an integer, at least 1\."),
    "data type: none": (lambda: priced(lambda *_: 1, data_type="float99"), r"\.data_type is one of float32, int8"),
    "widths: a number": (lambda: prune(budget=budget(widths=8)), r"\.widths is to name Tiles.*Received: 8\."),
    "widths: none": (lambda: prune(budget=budget(widths=())), r"\.widths is to name Tiles, a tuple of one or more"),
    "key of a budget: none": (lambda: prune(budget=budget(key=None)), r"\.key is to say what the cost depends on"),
    "prices: a name": (lambda: prune(budget=budget(prices="arm64")), r"\.prices is to be Prices.*Received: 'arm64'"),
    "counts: too many": (
        lambda: prune(budget=made(kfp.budgets.CountBudget, counts=lambda self, groups, _: np.full(len(groups), 99))),
        r"\.counts is to keep no more units than groups have.*Received: array\(\[99, 99\]\)",
    ),
    "gradient: nothing": (
        lambda: prune(
            kfp.Method(kfp.criteria.L2(), kfp.allocators.Global()),
            budget(cost=lambda *_: made(Filters, gradient=lambda self, keep: None)),
        ),
        r"Mine\.gradient is to return an array of 2 numbers\. Received: None\.",
    ),
    "worthwhile: nothing": (
        lambda: prune(budget=budget(cost=lambda *_: made(Filters, worthwhile=lambda self, group, counts: None))),
        r"Mine\.worthwhile is to return some of \[1, 2, 3, 4, 5, 6, 7, 8\].*Received: None\.",
    ),
    "requires: text": (
        lambda: prune(made(kfp.criteria.Criterion, requires="labels", **RANKS)),
        r"Mine\(\)\.requires is a",
    ),
    "requires: unknown": (
        lambda: prune(made(kfp.criteria.Criterion, requires=frozenset({"labls"}), **RANKS), data=X),
        r"some of activations, gradients, labels\. Received: frozenset\(\{'labls'\}\)",
    ),
    "requires of a compensator: none": (
        lambda: prune(compensate=made(kfp.compensators.Compensator, requires=None, apply=lambda *_: "")),
        r"Mine\(\)\.requires is a frozenset.*Received: None",
    ),
    "members: nothing": (lambda: scored(members=lambda self, group: None), r"\.members is to return some of group 'a'"),
    "members: none": (
        lambda: scored(members=lambda self, group: []),
        r"\.members is to return some of.*Received: \[\]",
    ),
    "members: names": (lambda: scored(members=lambda self, group: ["a"]), r"group 'a'\.members\. Received: \['a'\]"),
    "filters: nothing": (lambda: scored(filters=lambda self, *_: None), r"\.filters is to return an array of 8 rows"),
    "executor: text": (
        lambda: prune(
            kfp.Method(
                kfp.criteria.L2(),
                made(
                    kfp.allocators.Allocator,
                    measure="error",
                    executor="x",
                    allocate=lambda self, p: list(p.evaluate_all([p.sizes])) and p.floors,
                ),
            ),
            data=X,
        ),
        r"executor is a concurrent\.futures executor",
    ),
    "device: none": (
        lambda: priced(lambda *_: 1, device=""),
        r"\.device is to say what prices hold for\. Received: ''",
    ),
    "units: one": (lambda: priced(lambda *_: 1, units="mJ"), r"\.units is to name three units.*Received: 'mJ'\."),
    "recipe: nothing": (
        lambda: kfp.register_method("none")(lambda seed, data: None),
        r"the recipe of 'none' is to return a kfp\.Method\. Received: None\.",
    ),
    "recipe: a criterion": (
        lambda: kfp.register_method("none")(lambda seed, data: kfp.criteria.L2()),
        r"a kfp\.Method\. Received: L2\(aggregate='mean'\)\.",
    ),
    "recipe: with data alone": (
        lambda: kfp.register_method("none")(lambda seed, data: None if data else kfp.Method(kfp.criteria.L2())),
        r"a kfp\.Method\. Received: None\.",
    ),
    "recipe: no function": (lambda: kfp.register_method("none")(3), r"recipe is a function.*Received: recipe=3\."),
    "recipe: no arguments": (lambda: kfp.register_method("none")(lambda: 1), r"recipe\(seed, data\)\. Received: "),
    "recipe: a class": (
        lambda: kfp.register_method("none")(kfp.Method),
        r"recipe\(seed, data\)\. Received: recipe=<cl",
    ),
    "name: ours": (lambda: kfp.register_method("l2"), r"name is one of your own.*Received: name='l2'\."),
    "name: capitals": (lambda: kfp.register_method("Mine Own"), r"in lower case\. Received: name='Mine Own'\."),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_parts_return_and_say_of_themselves_is_checked(fault):
    run, message = WRONG[fault]
    methods = kfp.list_methods()
    with pytest.raises((InvalidValueError, InfeasibleBudgetError, UnknownNameError), match=message):
        run()
    assert kfp.list_methods() == methods


def test_checks_reach_subclasses_of_subclasses_and_are_made_of_what_they_override():
    class Child(Member):
        def scores(self, group, weights):
            return super().scores(group, weights)[:-1]

    with pytest.raises(InvalidValueError, match=r"Child\(aggregate='mean'\) is to score group 'a' with an array of 8"):
        prune(Child(np.ones))


def test_settings_are_attributes_set_in_any_way():
    class Power(kfp.criteria.MemberCriterion):
        def __init__(self, power):
            self.power = power

        def score(self, filters):
            return (np.abs(filters) ** self.power).sum(axis=1)

    @dataclass(frozen=True)
    class Same(Power):
        power: int = 1

    model = network()
    plans = [kfp.plan_pruning(model, part, 0.5, progress=False) for part in (Power(1), Same(), kfp.criteria.L1())]
    assert plans[0].kept["a"].tolist() == plans[1].kept["a"].tolist() == plans[2].kept["a"].tolist()
    assert plans[0].method == "Power(power=1) + Uniform()"


@pytest.fixture
def registered(monkeypatch):
    """Methods that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_a_criterion_means_the_same_after_its_method_is_registered(registered):
    def plan(criterion):
        return kfp.plan_pruning(network(), criterion, 0.5, progress=False).method

    before = plan(Member(np.arange))
    kfp.register_method("mine")(lambda seed, data: kfp.Method(Member(np.arange), kfp.allocators.Global()))
    assert plan(Member(np.arange)) == before == "Member(aggregate='mean') + Uniform()"
    assert registry.as_method(kfp.criteria.BNScale(), 0).allocator.alpha == 0  # ours bring their own
    assert kfp.plan_pruning(network(), "mine", 0.5, progress=False).method == "mine"


def test_allocators_know_names_in_the_order_of_the_model():
    names = []
    widths(kfp.Method(kfp.criteria.L2(), Allocator(lambda p: names.extend(p.names) or p.legal(p.sizes // 2))))
    assert names == ["a", "b"]


def test_reports_say_what_an_own_budget_counts(tmp_path):
    @dataclass(frozen=True)
    class Joules(kfp.budgets.Budget):
        keep: float
        unit = "fJ"

        def cost(self, model):
            return 2 * model.macs + 3 * model.params

    _, report = prune(budget=Joules(0.5), return_report=True)
    before, after = report.spent.before, report.spent.after
    (macs, macs_after), (params, params_after) = report.plan.cost["macs"], report.plan.cost["params"]
    assert (before, after) == (2 * macs + 3 * params, 2 * macs_after + 3 * params_after)
    assert f"budget: {before:,} -> {after:,} fJ ({100 * after / before:.1f} %)" in report.summary().splitlines()
    assert report.to_dict()["spent"] == {"unit": "fJ", "before": before, "after": after}
    report.save(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert f"| fJ | {before:,} | {after:,} |" in text
    assert "Joules(keep=0.5)" in text
    assert prune(return_report=True)[1].spent is None


# ------------------------------------------------------------------------------------------- layers that multiply


class Rows(L.Layer):
    """A dense layer whose kernel is stored the other way round, with a relu."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.rows = self.add_weight((self.units, shape[-1]), "glorot_uniform", name="rows")
        self.offset = self.add_weight((self.units,), "zeros", name="offset")

    def call(self, x):
        return keras.ops.relu(keras.ops.matmul(x, keras.ops.transpose(self.rows)) + self.offset)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def product(x, rows):
    return keras.ops.matmul(x, keras.ops.transpose(rows))


RIGHT = {"kernel": "rows", "bias": "offset", "activation": keras.ops.relu, "channels": 1, "filters": 0}


def handled(product=product, layer=Rows, **changes):
    """A class of layers whose handler says this of them."""

    class Own(layer):
        pass

    @kfp.register_handler(Own)
    class OwnHandler(kfp.handlers.LinearHandler):
        def linear(self, op):
            return kfp.handlers.Linear(op, product, **RIGHT | changes)

    return Own


def test_a_layer_that_multiplies_is_known_by_its_linear_alone():
    model = network(handled()(8, name="own"))
    budget = kfp.FiltersBudget({"a": 0.5, "own": 0.75})
    small, report = prune("l2", budget, model, data=X, compensate="least_squares", return_report=True)
    assert tuple(small.get_layer("own").rows.shape) == (6, 4)
    assert report.compensation == "3 layers refitted by least squares on 16 samples"
    twin = network(L.Dense(8, activation="relu", name="own"))
    assert kfp.analyze(model).terms[1].coefficient == kfp.analyze(twin).terms[1].coefficient


@pytest.mark.parametrize("kind", ["SeparableConv1D", "SeparableConv2D"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_separable_layer_of_ones_own_is_pruned_like_that_of_keras(kind, padding):
    theirs = getattr(L, kind)
    convolve = keras.ops.separable_conv

    class Own(theirs):
        def build(self, shape):
            super().build(shape)
            self.spatial, self.mix = self.depthwise_kernel, self.pointwise_kernel

    @kfp.register_handler(Own)
    class OwnHandler(kfp.handlers.LinearHandler):
        width = "filters"

        def linear(self, op):
            window = kfp.handlers.Window(op.kernel_size, op.strides, op.padding, op.dilation_rate)
            names = {"kernel": "pointwise_kernel", "depthwise": "depthwise_kernel"}
            return kfp.handlers.Linear(op, lambda x, *k: window.over(convolve, x, *k), **names, window=window)

    rank = int(kind[-2])
    shape = (16,) * rank + (3,)
    x = np.random.default_rng(0).normal(size=(32, *shape))

    def pruned(layer):
        keras.utils.set_random_seed(0)
        conv = getattr(L, f"Conv{rank}D")
        own = layer(8, 3, padding=padding, depth_multiplier=2, name="own")
        model = keras.Sequential([keras.Input(shape), conv(8, 3, name="a"), own, conv(4, 3, name="b")])
        return prune("cap", 0.5, model, data=x)

    ours, keras_own = pruned(Own), pruned(theirs)
    for one, two in zip(ours.weights, keras_own.weights, strict=True):
        np.testing.assert_array_equal(one, two)


NOT_SO = {
    "no activation": {"activation": None},
    "another activation": {"activation": keras.ops.tanh},
    "no bias, which is zero": {"bias": "bias"},
    "activation inside": {"product": lambda x, rows: keras.ops.relu(product(x, rows))},
    "twice": {"product": lambda x, rows: 2 * product(x, rows)},
    "no transpose": {"product": keras.ops.matmul},
    "axes": {"channels": 0, "filters": 1},
    "no such depthwise window": {"window": kfp.handlers.Window((3, 3), (1, 1), "same", (1, 1))},
}


@pytest.mark.parametrize("units", [8, 6])
@pytest.mark.parametrize("fault", NOT_SO)
def test_what_a_handler_says_of_the_product_is_proven(fault, units):
    model = network(handled(**NOT_SO[fault])(units, name="own"))
    expected = (
        r"layer 'own' (\(Own\), registered with handler OwnHandler, does not compute .*, as `linear` says: |binds axis)"
    )
    with pytest.raises(UnsupportedLayerError, match=expected):
        prune(model=model)
    with pytest.raises(UnsupportedLayerError, match=expected):
        kfp.plan_pruning(model, "l2", 0.5, progress=False)


@pytest.mark.parametrize("factor", [1, 2])
def test_what_is_registered_like_a_layer_is_proven_to_be_like_it(factor):
    class Own(L.Dense):
        def call(self, x):
            return factor * super().call(x)

    kfp.register_handler(Own, like=L.Dense)
    model = network(Own(8, name="own"))
    if factor == 1:
        assert prune(model=model).get_layer("own").units < 8
    else:
        with pytest.raises(
            UnsupportedLayerError,
            match=r"'own' \(Own\), registered with .*, like Dense, does not .*, as Dense does: .*in place of like=",
        ):
            prune(model=model)


class Maxout(Rows):
    """The largest of a unit's two sums, which is no sum."""

    def build(self, shape):
        self.rows = self.add_weight((self.units, 2, shape[-1]), "glorot_uniform", name="rows")

    def call(self, x):
        return keras.ops.max(keras.ops.einsum("...c,upc->...up", x, self.rows), axis=-1)


@kfp.register_handler(Maxout)
class MaxoutHandler(kfp.handlers.Handler):
    def trace(self, call, inputs, t):
        read, made = kfp.handlers.read_last_axis(call, inputs[0], t), t.fresh(call.op.units, (call.path, "filters"))
        t.bind(call.path, "rows", 2, read, "input")
        t.bind(call.path, "rows", 0, made, "filter")
        return [kfp.handlers.Tensor(call.output_shapes[0], 3, made)]

    def resize(self, config, r):
        return config | {"units": r.width(r.outputs[0])}


@pytest.mark.parametrize(("between", "rewritten"), [((), []), ((L.ReLU(),), []), ((L.BatchNormalization(),), ["b"])])
def test_nothing_is_assumed_of_what_an_own_layer_makes(between, rewritten):
    body = [L.Conv2D(8, 3, name="b"), L.Conv2D(8, 3, name="c"), L.Flatten(), L.Dense(2)]
    model = keras.Sequential([keras.Input((12, 12, 3)), L.Conv2D(4, 3), Maxout(8, name="own"), *between, *body])
    budget = kfp.FiltersBudget({"own": 0.5})
    plain, (small, report) = (
        prune("l2", budget, model, compensate=how, return_report=how == "linear") for how in ("none", "linear")
    )
    same = {name: np.array_equal(small.get_layer(name).kernel, plain.get_layer(name).kernel) for name in "bc"}
    assert [name for name in same if not same[name]] == rewritten
    assert "left as it is, without a `linear` in its handler: 'own'" in report.compensation


@pytest.mark.parametrize("how", ["least_squares", "mean_shift"])
def test_compensation_says_which_layers_it_leaves(how):
    model = network(Maxout(8, name="own"))
    *_, report = prune("l2", kfp.FiltersBudget({"a": 0.5}), model, data=X, compensate=how, return_report=True)
    assert report.compensation.endswith("; left as it is, without a `linear` in its handler: 'own'")
    *_, report = prune("l2", kfp.FiltersBudget({"own": 0.5}), model, data=X, compensate=how, return_report=True)
    assert "left" not in report.compensation  # what reads it makes up for it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"resize": lambda self, config, r: config.update(units=1)},
            r"OwnHandler\.resize, for layer 'own' \(Own\), is to",
        ),
        ({"resize": lambda self, config, r: config}, "does its `resize` set the new width"),
        ({"rewrite": lambda self, args, kwargs, r: None}, r"rewrite.* is to return \(args, kwargs\).*Received: None"),
        ({"linear": lambda self, op: op}, r"linear.* is to return a Linear, or None\. Received: <Own"),
        ({"linear": lambda self, op: None}, r"linear, for layer 'own' \(Own\), is to return a Linear\. Received: None"),
        ({"statistics": lambda self, op: 3}, r"statistics.* is to return Statistics, or None\. Received: 3"),
        ({"width": "filters"}, "expects a layer with attribute 'filters'"),
    ],
    ids=[
        "resize: nothing",
        "resize: same",
        "rewrite: nothing",
        "linear: the layer",
        "linear: nothing",
        "statistics: 3",
        "width",
    ],
)
def test_what_handlers_return_is_checked(change, message):
    class Own(Rows):
        pass

    linear = {"linear": lambda self, op: kfp.handlers.Linear(op, product, **RIGHT)}
    kfp.register_handler(Own)(type("OwnHandler", (kfp.handlers.LinearHandler,), linear | change))
    with pytest.raises((UnsupportedLayerError, SurgeryError), match=message):
        prune(model=network(Own(8, name="own")))


def test_a_layer_of_keras_is_not_blamed_for_what_comes_before_it():
    class Own(L.Layer):
        def build(self, shape):
            self.factor = self.add_weight((shape[-1],), "ones", name="factor")

        def call(self, x):
            return x * self.factor

    class Forgetful(kfp.handlers.Handler):
        def trace(self, call, inputs, t):
            t.bind(call.path, "factor", 0, kfp.handlers.read_last_axis(call, inputs[0], t))
            return [kfp.handlers.Tensor(call.output_shapes[0])]

    kfp.register_handler(Own)(Forgetful)
    expected = r"The handler of a layer before it is wrong; does its `trace` pass on the channels it gets\?"
    with pytest.raises(SurgeryError, match=expected):
        prune(model=network(Own(name="own")))


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (
            lambda: kfp.register_handler(MaxoutHandler),
            r"@register_handler\(MyLayer\) above a handler\. Received: <class",
        ),
        (lambda: kfp.register_handler(Rows)(lambda call: 1), r"a subclass of kfp\.handlers\.Handler\. Received: <func"),
        (
            lambda: kfp.register_handler(Rows)(kfp.handlers.Elementwise()),
            "a subclass of kfp.handlers.Handler. Received: <",
        ),
        (lambda: kfp.register_handler(like=L.Dense), r"like=Dense\) expects classes of your own\. Received: none\."),
        (lambda: kfp.register_handler(L.Dense, like=L.Dense), r"like=Dense\) expects classes .* Received: Dense\."),
    ],
    ids=["bare", "a function", "an object", "of no class", "like itself"],
)
def test_what_is_registered_as_a_handler_is_one(register, message):
    with pytest.raises(UnsupportedLayerError, match=message):
        register()


def test_a_layer_keeps_its_name_without_a_get_config():
    class Own(L.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units

        build, call = Rows.build, Rows.call

    small = prune(model=network(handled(layer=Own)(8, name="own")))
    assert small.get_layer("own").units < 8
