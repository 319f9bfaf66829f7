"""Recipes: a name stands for a criterion, an allocator and a compensator."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral

from keras_filterprune.allocators import Allocator, Global, Search, Sensitivity, Uniform
from keras_filterprune.compensators import BNRecalibration, Compensator, LeastSquares, Linear, Merge
from keras_filterprune.criteria import (
    FPGM,
    FPOMP,
    L1,
    L2,
    LRF,
    APoZ,
    BNScale,
    CaP,
    Criterion,
    Dead,
    Energy,
    Genetic,
    GeometricMean,
    MeanActivation,
    Nystrom,
    OperatorNorm,
    OutputPursuit,
    Random,
    Similarity,
    Taylor,
    TaylorGate,
)
from keras_filterprune.errors import UnknownNameError


@dataclass(frozen=True)
class Method:
    """A pruning recipe; every part can be exchanged.

    Args:
        criterion: which units of a group stay.
        allocator: how many units each group keeps; `Uniform()` by default.
        compensator: what makes up for the removed ones; `BNRecalibration()` by default; used when what it
            needs is there.
        rounds: the budget is reached in so many cuts by equal factors (1); scores are measured anew on the compensated
            network between them, and `prune_model(finetune=)` trains it there.
        one_by_one: cut one group after the other (False), the one first whose own cut costs least, each chosen on the
            network as it is then; `prune_model(finetune=)` trains it there.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L2(aggregate="max"), kfp.allocators.Global(alpha=1.0)).allocator
        Global(alpha=1.0)
    """

    criterion: Criterion
    allocator: Allocator = field(default_factory=Uniform)
    compensator: Compensator = field(default_factory=BNRecalibration)
    rounds: int = 1
    one_by_one: bool = False

    def __post_init__(self):
        if self.one_by_one and (self.rounds != 1 or not isinstance(self.allocator, Sensitivity)):
            raise UnknownNameError(
                f"one_by_one=True goes with rounds=1 and allocator=Sensitivity(). Received: rounds={self.rounds!r}, "
                f"allocator={self.allocator!r}."
            )
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, Integral) or self.rounds < 1:
            raise UnknownNameError(f"rounds is a positive number of cuts. Received: rounds={self.rounds!r}.")
        for part, kind in ((self.criterion, Criterion), (self.allocator, Allocator), (self.compensator, Compensator)):
            if not isinstance(part, kind):
                raise UnknownNameError(f"Method expects a {kind.__name__} object. Received: {part!r}.")

    @property
    def name(self) -> str:
        """The recipe as text."""
        how = " one by one" if self.one_by_one else f" in {self.rounds} rounds" if self.rounds > 1 else ""
        return f"{self.criterion!r} + {self.allocator!r}{how}"


@dataclass(frozen=True)
class _Entry:
    make: Callable[[int], Method]
    needs: str
    summary: str
    with_data: Callable[[int], Method] | None = None


_METHODS: dict[str, _Entry] = {}


def register_method(
    name: str,
    make: Callable[[int], Method],
    needs: str,
    summary: str,
    with_data: Callable[[int], Method] | None = None,
) -> None:
    """Give a recipe a name.

    Args:
        name: lower case, the paper's name.
        make: `make(seed)` returns the `Method`.
        needs: "nothing", "inputs" or "labels": what it needs besides the model.
        summary: one line for the table of methods.
        with_data: the recipe where there is calibration data, if it is another one (None).
    """
    _METHODS[name] = _Entry(make, needs, summary, with_data)


def _fixed(criterion: Callable[[], Criterion], allocator: Allocator, compensator: Compensator | None = None):
    """A recipe that does not depend on the seed."""
    return lambda seed: Method(criterion(), allocator, compensator or BNRecalibration())


# FP-OMP without data is the paper's, compensated from the weights. With data its default is the best that was measured
# without training on CIFAR-10 (settings chosen on training images, figures in examples/benchmarks/no_training.py); so
# is the order in which FP-OMP Search cuts: CaP's, 7 points over FPOMP's.
for _name, _needs, _summary, *_make in (
    ("l1", "nothing", "sum of absolute weights of a filter", _fixed(L1, Uniform())),
    ("l2", "nothing", "Euclidean norm of a filter", _fixed(L2, Uniform())),
    ("fpgm", "nothing", "distance to the geometric median of the layer's filters", _fixed(FPGM, Uniform())),
    ("bn_scale", "nothing", "batch normalization scale, ranked globally", _fixed(BNScale, Global(0.0))),
    (
        "fp_omp",
        "nothing",
        "orthogonal matching pursuit over the filters; with inputs, over what they do to the outputs",
        _fixed(FPOMP, Uniform(), Linear()),
        lambda seed: Method(OutputPursuit(), Global(0.7), LeastSquares(), rounds=2),
    ),
    (
        "lrf",
        "nothing",
        "linearly replaceable filters go first",
        _fixed(LRF, Uniform(), Linear()),
        _fixed(LRF, Uniform(), LeastSquares()),
    ),
    (
        "similarity",
        "nothing",
        "a filter whose spatial pattern nearly equals another's goes; all pairs",
        _fixed(Similarity, Uniform(), Merge()),
        _fixed(Similarity, Uniform(), LeastSquares()),
    ),
    (
        "nystrom",
        "nothing",
        "as similarity, from the similarities to a few filters",
        _fixed(Nystrom, Uniform(), Merge()),
        _fixed(Nystrom, Uniform(), LeastSquares()),
    ),
    (
        "operator_norm",
        "nothing",
        "share in the direction in which filters differ most",
        _fixed(OperatorNorm, Uniform()),
    ),
    (
        "geometric_mean",
        "nothing",
        "distance to the geometric mean of absolute weights, a baseline",
        _fixed(GeometricMean, Uniform()),
    ),
    ("taylor", "labels", "change of the loss with a filter's weights, to first order", _fixed(Taylor, Uniform())),
    (
        "taylor_gate",
        "labels",
        "change of the loss with a filter's channels, to first order",
        _fixed(TaylorGate, Global()),
    ),
    ("apoz", "inputs", "how often a filter is not zero", _fixed(APoZ, Uniform())),
    ("mean_activation", "inputs", "mean of a filter's activations", _fixed(MeanActivation, Uniform())),
    ("energy", "inputs", "share of the consumers' output variance", _fixed(Energy, Global(0.7), LeastSquares())),
    ("cap", "inputs", "error of the consumers' outputs after least squares", _fixed(CaP, Global(0.7), LeastSquares())),
    (
        "genetic",
        "inputs",
        "error of the consumers' outputs, searched by a genetic algorithm",
        lambda seed: Method(Genetic(seed=seed), Global(0.7), LeastSquares()),
    ),
    (
        "hu_ga",
        "labels",
        "genetic, layer by layer, the least sensitive first",
        lambda seed: Method(Genetic(seed=seed), Sensitivity(), LeastSquares(), one_by_one=True),
    ),
    ("fp_omp_search", "labels", "accuracy after trial cuts, round by round", _fixed(CaP, Search(), LeastSquares())),
    ("dead", "nothing", "units that nothing reads, after masks and penalties in training", _fixed(Dead, Uniform())),
    ("random", "nothing", "uniform random choice, the baseline", lambda seed: Method(Random(seed))),
):
    register_method(_name, _make[0], _needs, _summary, *_make[1:])


def list_methods() -> list[tuple[str, str, str]]:
    """(name, what it needs, one-line summary) of every registered method."""
    return [(name, entry.needs, entry.summary) for name, entry in _METHODS.items()]


def as_method(method: str | Method | Criterion, seed: int, data: bool = False) -> Method:
    """A `Method`: a name is its registered recipe, a criterion object the recipe with that criterion in it.

    Args:
        method: name, criterion or method.
        seed: of everything random.
        data: whether there is calibration data.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise UnknownNameError(f"seed is a non-negative integer. Received: seed={seed!r}.")
    if isinstance(method, Method):
        return method
    if isinstance(method, Criterion):
        recipes = (_recipe(entry, seed, data) for entry in _METHODS.values())
        default = next((r for r in recipes if type(r.criterion) is type(method)), None)
        return replace(default, criterion=method) if default else Method(method)
    if isinstance(method, str) and method in _METHODS:
        return _recipe(_METHODS[method], seed, data)
    near = difflib.get_close_matches(str(method), _METHODS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownNameError(f"unknown method {method!r}. Known methods: {', '.join(_METHODS)}.{hint}")


def _recipe(entry: _Entry, seed: int, data: bool) -> Method:
    return (entry.with_data if data and entry.with_data else entry.make)(seed)
