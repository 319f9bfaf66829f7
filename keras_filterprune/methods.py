"""Recipes: a name stands for a criterion, an allocator and a compensator."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from keras_filterprune.allocators import Allocator, Global, Uniform
from keras_filterprune.compensators import BNRecalibration, Compensator
from keras_filterprune.criteria import FPGM, L1, L2, BNScale, Criterion, Random
from keras_filterprune.errors import UnknownNameError


@dataclass(frozen=True)
class Method:
    """A pruning recipe; every part can be exchanged.

    Args:
        criterion: which units of a group stay.
        allocator: how many units each group keeps; `Uniform()` by default.
        compensator: what makes up for the removed ones; `BNRecalibration()` by default, used when there is data.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.L2(aggregate="max"), kfp.Global(alpha=1.0)).allocator
        Global(alpha=1.0)
    """

    criterion: Criterion
    allocator: Allocator = field(default_factory=Uniform)
    compensator: Compensator = field(default_factory=BNRecalibration)

    @property
    def name(self) -> str:
        """The recipe as text."""
        return f"{self.criterion!r} + {self.allocator!r}"


@dataclass(frozen=True)
class _Entry:
    make: Callable[[int], Method]
    needs: str
    summary: str


_METHODS: dict[str, _Entry] = {}


def register_method(name: str, make: Callable[[int], Method], needs: str, summary: str) -> None:
    """Give a recipe a name.

    Args:
        name: lower case, the paper's name.
        make: `make(seed)` returns the `Method`.
        needs: "nothing", "inputs" or "labels": what it needs besides the model.
        summary: one line for the table of methods.
    """
    _METHODS[name] = _Entry(make, needs, summary)


register_method("l1", lambda seed: Method(L1()), "nothing", "sum of absolute weights of a filter")
register_method("l2", lambda seed: Method(L2()), "nothing", "Euclidean norm of a filter")
register_method(
    "fpgm", lambda seed: Method(FPGM()), "nothing", "distance to the geometric median of the layer's filters"
)
register_method(
    "bn_scale", lambda seed: Method(BNScale(), Global(0.0)), "nothing", "batch normalization scale, ranked globally"
)
register_method("random", lambda seed: Method(Random(seed)), "nothing", "uniform random choice, the baseline")


def list_methods() -> list[tuple[str, str, str]]:
    """(name, what it needs, one-line summary) of every registered method."""
    return [(name, entry.needs, entry.summary) for name, entry in _METHODS.items()]


def as_method(method: str | Method | Criterion, seed: int) -> Method:
    """A `Method`: a name is its registered recipe, a criterion object the recipe with that criterion in it."""
    if isinstance(method, Method):
        return method
    if isinstance(method, Criterion):
        recipes = (entry.make(seed) for entry in _METHODS.values())
        default = next((r for r in recipes if type(r.criterion) is type(method)), None)
        return Method(method, default.allocator, default.compensator) if default else Method(method)
    if method in _METHODS:
        return _METHODS[method].make(seed)
    near = difflib.get_close_matches(str(method), _METHODS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownNameError(f"unknown method {method!r}. Known methods: {', '.join(_METHODS)}.{hint}")
