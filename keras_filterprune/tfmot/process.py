"""Jobs for the process that imports tf_keras."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keras_filterprune.checks import missing_package
from keras_filterprune.elsewhere import run_elsewhere
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.tfmot.description import Description

Train = Callable[..., Any] | str


@dataclass(frozen=True)
class FunctionRef:
    """Where another process finds a function: in a module that it can import, or in a script."""

    source: str
    name: str
    script: bool


@dataclass(frozen=True)
class Job:
    """What is to be done with the twin of a model.

    Attributes:
        action: "save", "train" or "export".
        name: of the model.
        model: the model.
        function, arguments: what trains the twin: `function(twin, *arguments)` returns the trained model.
        inputs: per input of a `.tflite` file: its key, the shape of a sample and the dtype.
        outputs: keys of the outputs of a `.tflite` file.
        samples: inputs to compare on, by key.
    """

    action: str
    name: str
    model: Description
    function: FunctionRef | None = None
    arguments: tuple = ()
    inputs: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    outputs: tuple[str, ...] = ()
    samples: dict[str, Any] = field(default_factory=dict)


def check_installed(user: str, **extras: str) -> None:
    """Raise `MissingPackageError` unless tf_keras is there, and `module="extra"`; nothing is imported."""
    for module, extra in ({"tensorflow": "tensorflow", "tf_keras": "tfmot"} | extras).items():
        if importlib.util.find_spec(module) is None:
            raise missing_package(user, module, extra)


def find_function(train: Train) -> FunctionRef:
    """Where the other process finds `train`.

    Raises:
        InvalidValueError: it cannot find it there.
    """
    advice = "Give a function at the top level of a module or script, or 'module:function'."
    if isinstance(train, str):
        module, colon, name = train.partition(":")
        if not (module and colon and name):
            raise InvalidValueError(f"train is a function or 'module:function'. Received: train={train!r}.")
        return FunctionRef(module, name, script=False)
    home, name = getattr(train, "__module__", None), getattr(train, "__qualname__", "")
    if home is None or not name.isidentifier():
        raise InvalidValueError(f"another process cannot import train={train!r}. {advice}")
    if home != "__main__":
        return FunctionRef(home, name, script=False)
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise InvalidValueError(f"another process cannot import '{name}' from a notebook or a prompt. {advice}")
    return FunctionRef(os.path.abspath(file), name, script=True)


def carry_out(job: Job) -> dict[str, Any]:
    """Do a job in a process of its own, which prints to this one's streams.

    Returns:
        What the action gives.

    Raises:
        ExportError: the process ended without a result, or the function raised.
        UnsupportedModelError: the model has no equal in tf_keras.
        InvalidValueError: the arguments cannot be pickled.
    """
    try:
        packed = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidValueError(f"arguments go to another process and have to be picklable: {error}") from error
    return run_elsewhere(
        "keras_filterprune.tfmot.child:do",
        packed,
        task=f"works on model '{job.name}' in tf_keras",
        modules=[job.function.source] if job.function and not job.function.script else [],
        settings={
            "KERAS_BACKEND": "tensorflow",
            # What tfmot sets too, but too late for whatever touched tf.keras before.
            "TF_USE_LEGACY_KERAS": "1",
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        },
        shown=True,
    )
