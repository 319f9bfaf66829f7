"""Conversion for models that run on JAX or PyTorch: TensorFlow does it in a process of its own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_filterprune.elsewhere import run_elsewhere
from keras_filterprune.errors import ExportError
from keras_filterprune.export.convert import convert
from keras_filterprune.quiet import quiet


def convert_elsewhere(
    model: keras.Model, keys: Sequence[str], folder: Path, mode: str, dynamic_batch: bool = False
) -> bytes:
    """Convert a model in a fresh process that runs Keras on TensorFlow.

    The model travels as a `.keras` file. The process imports the modules of registered objects; it does not see what a
    script or notebook defines.

    Args:
        model: the model, on any backend; it is not modified.
        keys: as in `convert`. Keras names unnamed inputs anew when it loads a model.
        folder: where to write the intermediate files.
        mode: as in `convert`.
        dynamic_batch: as in `convert` (False).

    Returns:
        The content of the `.tflite` file.

    Raises:
        ExportError: the model cannot be saved, TensorFlow cannot load or convert it, or its process ended without an
            answer.
        OSError: the intermediate files cannot be written.
    """
    folder.mkdir()
    _save(model, folder / "model.keras")
    return run_elsewhere(
        f"{__name__}:convert_saved",
        folder,
        model.name,
        _modules_of_custom_objects(model),
        keys,
        mode,
        dynamic_batch,
        task=f"converts model {model.name!r} with TensorFlow",
        # The converter needs no GPU, and this process may hold all memory of them.
        settings={"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )


def convert_saved(
    folder: Path, name: str, modules: Sequence[str], keys: Sequence[str], mode: str, dynamic_batch: bool
) -> bytes:
    """Convert the model that `convert_elsewhere` has saved; `modules` define what is registered of it."""
    with quiet():
        model = _load(folder / "model.keras", name, modules)
        return convert(model, keys, mode, dynamic_batch)


def _save(model: keras.Model, path: Path) -> None:
    try:
        model.save(path)
    except OSError:
        raise
    # Saving runs the get_config of the user's layers.
    except Exception as error:
        # The first paragraph is Keras' reason, on several lines; an example follows.
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:500]
        raise ExportError(
            f"model {model.name!r} cannot be saved as .keras, which is how it gets to TensorFlow: "
            f"{type(error).__name__}: {reason}"
        ) from error


def _modules_of_custom_objects(model: keras.Model) -> list[str]:
    config = model.to_json()
    registered = keras.saving.get_custom_objects().items()
    return sorted({value.__module__ for name, value in registered if f'"{name}"' in config} - {"__main__"})


def _load(path: Path, name: str, modules: Sequence[str]) -> keras.Model:
    try:
        for module in modules:
            importlib.import_module(module)
        # The file comes from the process that asks, so code in Lambda layers is the user's own.
        return keras.models.load_model(path, compile=False, safe_mode=False)
    except OSError:
        raise
    # Loading runs any code that the user's modules and layers hold.
    except Exception as error:
        # Keras puts whole configurations around the sentence that says what is missing.
        reason = str(error).rpartition("Exception encountered: ")[2].partition(" Full object config:")[0].strip()[:500]
        raise ExportError(
            f"cannot load model {name!r} on TensorFlow: {type(error).__name__}: {reason} The export of models on other "
            "backends runs in a process of its own, which does not see what a script or notebook defines: put your "
            "layers and functions into a module that can be imported, each with "
            "@keras.saving.register_keras_serializable() and written with keras.ops."
        ) from error
