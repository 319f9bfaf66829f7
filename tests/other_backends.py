"""Run a test's code on JAX and PyTorch, each in a process of its own, where they are installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

on_other_backends = pytest.mark.parametrize("backend", ["jax", "torch"])


def run_on(backend: str, code: str) -> None:
    """The code, which fails by an assertion, on a backend."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment, folder = os.environ | {"KERAS_BACKEND": backend}, Path(__file__).parents[1]
    code = f"import keras\nassert keras.backend.backend() == {backend!r}\n{code}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
