"""What a recipe is, and the names of recipes: a name stands for a criterion, an allocator and a compensator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from keras_filterprune.allocators import Allocator, Sensitivity, Uniform
from keras_filterprune.checks import check_integer, check_returned, unknown_name, wrong
from keras_filterprune.compensators import BNRecalibration, Compensator
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.parts import check_requires


@dataclass(frozen=True)
class Method:
    """A pruning recipe; every part can be exchanged.

    Args:
        criterion: which units of a group stay.
        allocator: how many units each group keeps (`Uniform()`).
        compensator: what makes up for the removed ones, if what it needs is there (`BNRecalibration()`).
        rounds: the budget is reached in so many cuts by equal factors (1), of the cost, or of every group's filters
            where the budget settles these. Scores are measured anew on the compensated network between them, and
            `prune_model(finetune=)` trains it there. Before the last cut every second sample serves, 64 at least.
        one_by_one: cut one group after the other (False), each chosen on the network as it is then, where
            `prune_model(finetune=)` trains it: True, the one first whose own cut costs least; "last_first", the last of
            the network first.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L2(aggregate="max"), kfp.allocators.Global(alpha=1.0)).allocator
        Global(alpha=1.0)
    """

    criterion: Criterion
    allocator: Allocator = field(default_factory=Uniform)
    compensator: Compensator = field(default_factory=BNRecalibration)
    rounds: int = 1
    one_by_one: bool | str = False

    def __post_init__(self):
        for part, kind in ((self.criterion, Criterion), (self.allocator, Allocator), (self.compensator, Compensator)):
            if not isinstance(part, kind):
                raise InvalidValueError(f"Method expects a {kind.__name__} object. Received: {part!r}.")
        for part in (self.criterion, self.compensator):
            check_requires(part)
        if not isinstance(self.one_by_one, bool | str) or (isinstance(self.one_by_one, str) and not self.last_first):
            raise wrong("one_by_one", self.one_by_one, "True, False or 'last_first'")
        measures = (
            self.allocator.measure is not None if self.last_first else not isinstance(self.allocator, Sensitivity)
        )
        if self.one_by_one and (self.rounds != 1 or measures):
            allocator = "an allocator that measures nothing" if self.last_first else "allocator=Sensitivity()"
            raise InvalidValueError(
                f"one_by_one={self.one_by_one!r} goes with rounds=1 and {allocator}. Received: rounds={self.rounds!r}, "
                f"allocator={self.allocator!r}."
            )
        check_integer("rounds", self.rounds, "a number of cuts")

    @property
    def last_first(self) -> bool:
        """Whether the groups are cut one by one from the end of the network to its beginning."""
        return self.one_by_one == "last_first"

    @property
    def name(self) -> str:
        """The recipe as text."""
        how = f" in {self.rounds} rounds" if self.rounds > 1 else ""
        if self.one_by_one:
            how = " one by one, the last first" if self.last_first else " one by one"
        return f"{self.criterion!r} + {self.allocator!r}{how}"

    @property
    def needs(self) -> str:
        """What it needs besides the model: "nothing", "inputs" or "labels". The compensator can do without."""
        if "labels" in self.criterion.requires or self.allocator.measure not in (None, "error"):
            return "labels"
        return "inputs" if self.criterion.requires or self.allocator.measure else "nothing"


# recipe(seed, data) -> Method: the seed of everything random, and whether there is calibration data.
Recipe = Callable[[int, bool], Method]
_METHODS: dict[str, Recipe] = {}
_BUILT_IN: dict[str, Recipe] = {}


def built_in_method(name: str) -> Callable[[Recipe], Recipe]:
    """`register_method` for the methods of this library, whose names are taken; see `as_method` for what else."""

    def decorator(recipe: Recipe) -> Recipe:
        _METHODS[name] = _BUILT_IN[name] = recipe
        return recipe

    return decorator


def register_method(name: str) -> Callable[[Recipe], Recipe]:
    """Give a recipe a name, by which `prune_model`, `list_methods` and the command line know it.

    Args:
        name: in lower case, and none of this library's; that of an algorithm stands for the published one.

    Returns:
        A decorator for `recipe(seed, data)`, which returns a `Method`: `seed` is that of everything random, `data`
        whether there is calibration data. The first line of its docstring stands in the table of methods.

    Raises:
        InvalidValueError: the name is no line of text in lower case, or taken; or the recipe makes no `Method`.

    Example:
        >>> import keras_filterprune as kfp
        >>> @kfp.register_method("l1_global")
        ... def l1_global(seed, data):
        ...     '''Sum of absolute weights of a filter, ranked globally.'''
        ...     return kfp.Method(kfp.criteria.L1(), kfp.allocators.Global())
        ...
        >>> kfp.list_methods()[-1]
        ('l1_global', 'nothing', 'Sum of absolute weights of a filter, ranked globally')
    """
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.lower():
        raise wrong("name", name, "a line of text in lower case")
    if name in _BUILT_IN:
        raise wrong("name", name, "one of your own: the methods of this library keep theirs")

    def decorator(recipe: Recipe) -> Recipe:
        if inspect.isclass(recipe) or not callable(recipe) or not _takes_two(recipe):
            raise wrong("recipe", recipe, "a function of the seed and of whether there is data, recipe(seed, data)")
        for data in (False, True):
            _made(name, recipe, 0, data)
        _METHODS[name] = recipe
        return recipe

    return decorator


def list_methods() -> list[tuple[str, str, str]]:
    """List the registered methods.

    Returns:
        (name, what it needs besides the model: "nothing", "inputs" or "labels", one line about it) of every method. The
        line ends with the source: "(Li et al. 2017)" is that paper's method, "(after Liu et al. 2021: one cut)" a
        variant of it and what differs, "(ours)" of this library.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.list_methods()[0]
        ('l1', 'nothing', 'Sum of absolute weights of a filter (Li et al. 2017)')
    """
    return [(name, _made(name, recipe, 0, False).needs, _summary(recipe)) for name, recipe in _METHODS.items()]


def _takes_two(recipe: Recipe) -> bool:
    try:
        inspect.signature(recipe).bind(0, False)
    except TypeError:
        return False
    return True


def _made(name: str, recipe: Recipe, seed: int, data: bool) -> Method:
    """What a recipe makes."""
    method = recipe(seed, data)
    check_returned(isinstance(method, Method), f"the recipe of '{name}'", "return a kfp.Method", method)
    return method


def _summary(recipe: Recipe) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(recipe) or "").partition("\n")[0].removesuffix(".")


def as_method(method: str | Method | Criterion, seed: int, data: bool = False) -> Method:
    """A `Method`: a name is its recipe, a criterion object the recipe of this library that has one of its class.

    Args:
        method: name, criterion or method.
        seed: of everything random.
        data: whether there is calibration data.
    """
    check_integer("seed", seed, least=0)
    if isinstance(method, Method):
        return method
    if isinstance(method, Criterion):
        made = (recipe(seed, data) for recipe in _BUILT_IN.values())
        default = next((m for m in made if type(m.criterion) is type(method)), None)
        return replace(default, criterion=method) if default else Method(method)
    if isinstance(method, str) and method in _METHODS:
        return _made(method, _METHODS[method], seed, data)
    raise unknown_name("method", method, f"a criterion object, a Method, or one of {', '.join(_METHODS)}", _METHODS)
