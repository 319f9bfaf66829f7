"""Checks of arguments, in one voice: `<name> is <what is expected>. Received: <name>=<value>.`

Every check returns the value, NumPy scalars as numbers of Python.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from keras_filterprune.errors import FilterPruneError, InvalidValueError, MissingPackageError, UnknownNameError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_INT64 = 2**63 - 1
_SHOWN = 200
# Characters that move a terminal's cursor, colour what follows or turn its direction; lines and tabs do no harm.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(value: Any) -> str:
    """The `repr` of any value on one line, its middle left out if it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Integers of more than 4 300 digits have no repr.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 4 :]}"


def entries(value: Any) -> list[Any]:
    """The entries of a list; of anything else, a text included, the value itself."""
    try:
        return [value] if isinstance(value, str | bytes) else list(value)
    except TypeError:
        return [value]


def wrong(name: str, value: Any, expected: str, error: type[FilterPruneError] = InvalidValueError) -> FilterPruneError:
    """The error to raise for an argument that is not what is expected."""
    return error(f"{name} is {expected}. Received: {name}={shown(value)}.")


def check_returned(
    right: bool, who: Any, expected: str, value: Any, error: type[FilterPruneError] = InvalidValueError
) -> None:
    """What somebody's part returned is right; else `<who> is to <what is expected>. Received: <value>.`"""
    if not right:
        raise error(f"{who} is to {expected}. Received: {shown(value)}.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and _finite(value)


def did_you_mean(name: Any, known: Iterable[str], otherwise: str = "") -> str:
    """` Did you mean 'l2'?` for a name that resembles a known one, else what is to be said instead."""
    by_lower = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else otherwise


def unknown_name(name: str, value: Any, expected: str, known: Iterable[str]) -> UnknownNameError:
    """The error to raise for an option that is none of the known names."""
    return UnknownNameError(f"{wrong(name, value, expected)}{did_you_mean(value, known)}")


def check_option(name: str, value: T, options: Iterable[str], also: str = "") -> T:
    """One of named options; `also` says in which case, or what else is taken."""
    options = list(options)
    if not isinstance(value, str) or value not in options:
        raise unknown_name(name, value, f"one of {', '.join(options)}{also}", options)
    return value


def check_integer(
    name: str,
    value: T,
    what: str = "an integer",
    least: int = 1,
    most: int | None = None,
    optional: bool = False,
    error: type[FilterPruneError] = InvalidValueError,
) -> T:
    """A whole number from `least` to `most`, booleans excluded; None only if it is optional."""
    if optional and value is None:
        return value
    number: Any = value
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    top = _INT64 if most is None else most
    if not whole or not least <= number <= top:
        bounded = most is not None or (whole and number > top)
        range_ = f" in [{least}, {top}]" if bounded else f", at least {least}"
        raise wrong(name, value, f"{what}{range_}{', or None' * optional}", error)
    return _plain(value)


def check_number(
    name: str,
    value: T,
    what: str = "a number",
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
    error: type[FilterPruneError] = InvalidValueError,
) -> T:
    """A finite real number in an interval: `least` and `most` belong to it, `above` and `below` do not."""
    if optional and value is None:
        return value
    number: Any = value
    if (
        not is_number(value)
        or (least is not None and number < least)
        or (above is not None and number <= above)
        or (most is not None and number > most)
        or (below is not None and number >= below)
    ):
        raise wrong(name, value, f"{what}{_interval(least, above, most, below)}{', or None' * optional}", error)
    return _plain(value)


def check_share(name: str, value: T, what: str, error: type[FilterPruneError] = InvalidValueError, **bounds: Any) -> T:
    """A number in an interval that ends at 1; who gave percent is told which share that is."""
    number: Any = value
    try:
        return check_number(name, value, what, error=error, **bounds)
    except error as refused:
        if not is_number(value) or not 1 <= number <= 100:
            raise
        raise error(f"{refused} For {float(number):g} %, give {float(number) / 100:g}.") from None


def check_flag(name: str, value: T) -> T:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise wrong(name, value, "True or False")
    return _plain(value)


def check_flags(**flags: Any) -> None:
    """True or False, each of them."""
    for name, value in flags.items():
        check_flag(name, value)


def check_callable(name: str, value: T, what: str = "a function", optional: bool = False) -> T:
    """Something that can be called."""
    if not callable(value) and not (optional and value is None):
        raise wrong(name, value, f"{what}{', or None' * optional}")
    return value


def check_names(name: str, value: Any) -> tuple[str, ...]:
    """Names or globs of layers: one text, or several."""
    names = tuple(entries(value))
    if not all(isinstance(entry, str) for entry in names):
        raise wrong(name, value, "the name of a layer, a glob, or a list of them")
    return names


def check_path(name: str, value: Any, of: str = "file") -> Path:
    """The name of a file, or of a folder, as text or path."""
    try:
        text = os.fspath(value)
        if isinstance(text, str) and text and b"\0" not in os.fsencode(text):
            return Path(text)
    except (TypeError, UnicodeEncodeError):
        pass
    raise wrong(name, value, f"the name of a {of}, a str or a path")


def visible(text: str) -> str:
    """Text as a terminal or a page is to show it: what would steer them, in names of layers say, as its code."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def missing_package(user: str, package: str, extra: str, reason: str = "is not installed") -> MissingPackageError:
    """The error to raise where a package of one of this library's extras is needed; it names all of the extra's."""
    return MissingPackageError(f"{user} needs {package}, which {reason}: pip install {_packages(extra) or package}")


def _packages(extra: str) -> str:
    """What pip is to install for an extra; nothing where the library itself is not installed."""
    try:
        wanted = metadata.requires("keras-filterprune") or []
    except metadata.PackageNotFoundError:
        return ""
    return " ".join(f'"{line.partition(";")[0].strip()}"' for line in wanted if f'extra == "{extra}"' in line)


def check_packages(user: str, extra: str, *modules: str) -> None:
    """Modules of an extra can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            reason = f"cannot be imported ({error})"
            raise missing_package(user, module.partition(".")[0], extra, reason) from error


def import_keras() -> Any:
    """Keras, which cannot be imported without one of its backends."""
    try:
        return importlib.import_module("keras")
    except ModuleNotFoundError as error:
        found = [name for name in ("jax", "torch") if importlib.util.find_spec(name) is not None]
        other = f"set KERAS_BACKEND={found[0]}, which is installed" if found else "jax or torch, and set KERAS_BACKEND"
        raise MissingPackageError(
            f"Keras cannot be imported ({error}). Install its backend: pip install tensorflow; or {other}."
        ) from error


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: keyword arguments go on working under their old names, `old="new"`, with a DeprecationWarning."""

    def decorator(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in new_names.keys() & kwargs.keys():
                warnings.warn(f"{old}= is {new_names[old]}= now.", DeprecationWarning, stacklevel=2)
                kwargs[new_names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorator


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _interval(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    low = least if above is None else above
    high = most if below is None else below
    if high is None:
        return "" if low is None else f", {'at least' if above is None else 'above'} {low}"
    return f", in {'[' if above is None else '('}{low}, {high}{']' if below is None else ')'}"
