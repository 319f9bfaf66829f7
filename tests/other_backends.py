"""Run a test's code on every installed backend of Keras: this process' own here, others in a fresh process."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import pytest

on_other_backends = pytest.mark.parametrize("backend", ["jax", "torch"])


def on_every_backend(test):
    """Mark a test that calls `run_on` with its `backend`; it belongs to the portable part of the suite."""
    return pytest.mark.portable(pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])(test))


def run_on(backend: str, code: str) -> None:
    """The code, which fails by an assertion, on a backend."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    if backend == keras.backend.backend():
        # Warnings are no errors, as in the other processes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, {"keras": keras})
        return
    environment, folder = os.environ | {"KERAS_BACKEND": backend}, Path(__file__).parents[1]
    code = f"import keras\nassert keras.backend.backend() == {backend!r}\n{code}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
