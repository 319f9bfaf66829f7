"""Checks of arguments: what passes comes back as it was, what does not gets one sentence."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from keras_filterprune import checks
from keras_filterprune.errors import InfeasibleBudgetError, InvalidValueError, UnknownNameError

NO_NUMBERS = [None, True, np.True_, "1", b"1", [1], np.ones(2), object, math.nan, math.inf, -math.inf, 10**400, 1j]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=checks.shown)
def test_what_is_no_number(value):
    for check in (checks.check_integer, checks.check_number):
        with pytest.raises(InvalidValueError, match=rf"^x is .*\. Received: x={re.escape(checks.shown(value))}\.$"):
            check("x", value)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({}, [0, -1e300], [], "x is a number."),
        ({"least": 0}, [0, 7.5], [-1e-9], "x is a number, at least 0."),
        ({"above": 0}, [1e-9], [0, -0.0], "x is a number, above 0."),
        ({"above": 0, "most": 1}, [1e-9, 1, Fraction(1, 3)], [0, 1.001], "x is a number, in (0, 1]."),
        ({"least": 0, "below": 1}, [0, 0.999], [1, -1e-9], "x is a number, in [0, 1)."),
        ({"least": 0, "most": 1}, [0, 1], [-1, 2], "x is a number, in [0, 1]."),
        ({"above": 0, "below": 1}, [0.5], [0, 1], "x is a number, in (0, 1)."),
    ],
)
def test_numbers_in_an_interval(bounds, inside, outside, words):
    for value in inside:
        assert checks.check_number("x", value, **bounds) is value
    for value in [*outside, math.nan]:
        with pytest.raises(InvalidValueError, match=re.escape(f"{words} Received: x={value!r}.")):
            checks.check_number("x", value, **bounds)


@pytest.mark.parametrize(
    ("value", "hint"),
    [(50, " For 50 %, give 0.5."), (np.float32(1), " For 1 %, give 0.01."), (-1, ""), (101, ""), ("5", "")],
)
def test_percentages_are_told_which_shares_they_are(value, hint):
    with pytest.raises(InfeasibleBudgetError) as caught:
        checks.check_share("x", value, "a share", InfeasibleBudgetError, least=0, below=1)
    assert str(caught.value) == f"x is a share, in [0, 1). Received: x={value!r}.{hint}"
    assert checks.check_share("x", 1, "a share", above=0, most=1) == 1


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({}, [1, 2**63 - 1], [0, -5], "x is an integer, at least 1."),
        ({}, [], [2**63], "x is an integer in [1, 9223372036854775807]."),
        ({"least": 0}, [0], [-1], "x is an integer, at least 0."),
        ({"least": 2, "most": 32}, [2, 32], [1, 33], "x is an integer in [2, 32]."),
        (
            {"what": "a number of steps", "optional": True},
            [None, 1],
            [0],
            "x is a number of steps, at least 1, or None.",
        ),
    ],
)
def test_integers_in_a_range(bounds, inside, outside, words):
    for value in inside:
        assert checks.check_integer("x", value, **bounds) is value
    for value in outside:
        with pytest.raises(InvalidValueError, match=re.escape(f"{words} Received: x={value!r}.")):
            checks.check_integer("x", value, **bounds)
    with pytest.raises(InvalidValueError, match=r"Received: x=1\.0\."):
        checks.check_integer("x", 1.0, **bounds)


def test_scalars_of_numpy_come_back_as_numbers_of_python():
    assert type(checks.check_integer("x", np.int64(3))) is int
    assert type(checks.check_number("x", np.float32(0.5))) is float
    assert checks.check_flag("x", np.False_) is False


def test_a_check_may_raise_another_error():
    with pytest.raises(InfeasibleBudgetError, match="x is a number"):
        checks.check_number("x", 2, most=1, error=InfeasibleBudgetError)
    with pytest.raises(InfeasibleBudgetError, match="x is an integer"):
        checks.check_integer("x", 0, error=InfeasibleBudgetError)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("ACCURACY", " Did you mean 'accuracy'?"),
        ("acuracy", " Did you mean 'accuracy'?"),
        ("loss", ""),
        (None, ""),
        (["error"], " Did you mean 'error'?"),
    ],
)
def test_options_by_name(value, hint):
    with pytest.raises(UnknownNameError) as caught:
        checks.check_option("measure", value, ("accuracy", "error"), ", or a function")
    assert str(caught.value) == (
        f"measure is one of accuracy, error, or a function. Received: measure={value!r}.{hint}"
    )
    assert checks.check_option("measure", "error", ("accuracy", "error")) == "error"


@pytest.mark.parametrize("value", [None, 1, 0, "yes", "", np.zeros(2)], ids=repr)
def test_flags(value):
    with pytest.raises(InvalidValueError, match=r"overwrite is True or False\. Received: overwrite="):
        checks.check_flag("overwrite", value)


def test_functions():
    assert checks.check_callable("rate", print) is print
    assert checks.check_callable("rate", None, optional=True) is None
    for optional, words in ((False, "a function of the epoch"), (True, "a function of the epoch, or None")):
        with pytest.raises(InvalidValueError, match=rf"rate is {words}\. Received: rate=3\."):
            checks.check_callable("rate", 3, "a function of the epoch", optional)


@pytest.mark.parametrize("value", [None, 5, True, "", "a\0b", "\ud800", b"a", ["a"]], ids=repr)
def test_what_is_no_path(value):
    with pytest.raises(InvalidValueError, match=r"path is the name of a file, a str or a path\. Received: path="):
        checks.check_path("path", value)


def test_paths(tmp_path):
    assert checks.check_path("path", str(tmp_path)) == checks.check_path("path", tmp_path) == tmp_path


def test_long_values_are_shown_in_one_line():
    for value in (np.random.default_rng(0).normal(size=(99, 99)), "x" * 9999, 10**400, list(range(9999))):
        assert len(checks.shown(value)) < 200
        assert "\n" not in checks.shown(value)
    assert checks.shown(10**5000) == "<int>"


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_without_its_backend_keras_is_told_of_another_one():
    script = "import sys; sys.modules['tensorflow'] = None; from keras_filterprune import checks; checks.import_keras()"
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "pip install tensorflow; or set KERAS_BACKEND=jax, which is installed."
    )
