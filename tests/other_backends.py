"""Run a test's code on every installed backend of Keras: this process' own here, others in a process of each."""

import atexit
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import keras
import pytest

on_other_backends = pytest.mark.parametrize("backend", ["jax", "torch"])


def on_every_backend(test):
    """Mark a test that calls `run_on` with its `backend`; it belongs to the portable part of the suite."""
    return pytest.mark.portable(pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])(test))


# Runs one piece of code after the other, each in a namespace of its own, and answers with the error, if any.
CHILD = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    found = None
    try:
        exec(json.loads(line), {"__name__": "__main__"})
    except BaseException:
        found = traceback.format_exc()
    print(json.dumps(found), file=answers, flush=True)
"""


@functools.cache
def process_of(backend: str) -> subprocess.Popen:
    """The process of a backend: to import Keras and its backend takes longer than most of what is run there."""
    environment, folder = os.environ | {"KERAS_BACKEND": backend}, Path(__file__).parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, cwd=folder, text=True, **pipes)
    atexit.register(child.communicate)
    return child


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
    child, code = process_of(backend), f"import keras\nassert keras.backend.backend() == {backend!r}\n{code}"
    too_long = threading.Timer(300, child.kill)
    too_long.start()
    child.stdin.write(json.dumps(code) + "\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    too_long.cancel()
    assert answer, f"the process of {backend} has ended"
    assert json.loads(answer) is None, json.loads(answer)[-2000:]
