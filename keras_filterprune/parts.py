"""What everything that others may write a class of has in common: its methods, and what they return, are checked."""

from __future__ import annotations

import abc
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from keras_filterprune.errors import FilterPruneError, InvalidValueError

F = TypeVar("F", bound=Callable[..., Any])


def returns(check: Callable[..., Any]) -> Callable[[F], F]:
    """Decorator of a method that subclasses of `Checked` implement: `check(self, returned, *arguments)` raises where
    what theirs returned is not what was asked for."""

    def decorator(method: F) -> F:
        vars(method)["returned_check"] = check
        return method

    return decorator


class _Complete(abc.ABCMeta):
    """Of classes whose objects have all methods; Python itself names a missing one, and not what it is to do."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        for name in sorted(getattr(cls, "__abstractmethods__", ())):
            base = next(parent for parent in cls.__mro__ if name in vars(parent))
            method = vars(base)[name]
            taken = ", ".join(inspect.signature(method).parameters)
            raise getattr(cls, "_fault", InvalidValueError)(
                f"{cls.__name__}, a subclass of {base.__name__}, lacks {name}({taken}).{_purpose(getattr(base, name))} "
                "The smallest one that runs stands in docs/extending.md."
            )
        return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        # That of the method above says nothing about a class.
        made = cls.__init__  # type: ignore[misc]
        taken = [] if made is object.__init__ else [*inspect.signature(made).parameters.values()][1:]
        return inspect.Signature(taken)


class Checked(metaclass=_Complete):
    """A base whose subclasses, anybody's perhaps, are told of methods that are missing, or return something wrong."""

    # The error that says so. help() shows public attributes, with the whole text of what they are.
    _fault: ClassVar[type[FilterPruneError]] = InvalidValueError

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            asked = getattr(super(cls, cls), name, None)
            check = getattr(asked, "returned_check", None)
            demanded = check is not None or getattr(asked, "__isabstractmethod__", False)
            if inspect.isfunction(method) and asked is not None and demanded:
                _check_called(cls, method, asked)
            if check is not None and callable(method):
                setattr(cls, name, _checked(method, check))


def check_requires(part: Any) -> None:
    """What a part says it needs is among what there is."""
    needs, known = part.requires, {"activations", "gradients", "labels"}
    if not isinstance(needs, frozenset | set) or not needs <= known:
        raise InvalidValueError(
            f"{part!r}.requires is a frozenset of some of {', '.join(sorted(known))}. Received: {needs!r}."
        )


def _purpose(method: Any) -> str:
    """What a method does and returns, of its docstring."""
    text = inspect.getdoc(method) or ""
    returns = re.search(r"^Returns:\n((?: +.+\n?)+)", text, re.MULTILINE)
    said = " ".join(text.partition("\n\n")[0].split())
    return f" {said}" + (f" It returns: {' '.join(returns[1].split())}" if returns else "")


def _check_called(cls: type[Checked], method: Callable[..., Any], asked: Callable[..., Any]) -> None:
    """A method takes what it will be called with."""
    taken = [p for p in inspect.signature(asked).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    try:
        inspect.signature(method).bind(*taken)
    except TypeError as error:
        raise cls._fault(
            f"{cls.__name__}.{asked.__name__} is to take ({', '.join(p.name for p in taken)}). Received: "
            f"{asked.__name__}{inspect.signature(method)}, {error}."
        ) from error


def _checked(method: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        returned = method(self, *args, **kwargs)
        check(self, returned, *args, **kwargs)
        return returned

    vars(wrapper)["returned_check"] = check
    return wrapper


class Part(Checked):
    """A criterion, an allocator, a compensator or a budget, shown by its class and its public attributes.

    Reports name parts by this text, and searches go on from the checkpoint of an equal one.
    """

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(settings)})"
