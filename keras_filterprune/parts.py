"""What everything that others may write a class of has in common: what its methods return is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def returns(check: Callable[..., Any]) -> Callable[[F], F]:
    """Decorator of a method that subclasses of `Checked` implement: `check(self, returned, *arguments)` raises where
    what theirs returned is not what was asked for."""

    def decorator(method: F) -> F:
        vars(method)["returned_check"] = check
        return method

    return decorator


class Checked:
    """A base whose subclasses, anybody's perhaps, are told at once where a method returns something wrong."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            check = getattr(getattr(super(cls, cls), name, None), "returned_check", None)
            if check is not None and callable(method):
                setattr(cls, name, _checked(method, check))


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
