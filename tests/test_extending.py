"""Parts that others write: what they are given back is checked, and a wrong one is told what was expected of it."""

import keras
import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune.errors import InfeasibleBudgetError, InvalidValueError, UnsupportedLayerError

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
        (lambda p: p.sizes * 0, InfeasibleBudgetError, r"legal \(Allocation.legal\).*Received: \[0, 0\]"),
        (lambda p: p.sizes + 1, InfeasibleBudgetError, r"Received: \[9, 9\]"),
        (lambda p: np.array([3, 4]), InfeasibleBudgetError, r"Received: \[3, 4\]"),
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
        (lambda call, x, t: t.tie(x.ids, x.ids[:3]), "id vectors of one length. Received: 8, 3"),
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
        "unequal ties",
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
