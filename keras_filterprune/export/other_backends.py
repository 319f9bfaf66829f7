"""Conversion for models that run on JAX or PyTorch: TensorFlow does it in a process of its own."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras

from keras_filterprune import errors
from keras_filterprune.errors import ExportError, FilterPruneError
from keras_filterprune.export.convert import convert, quiet

_SERVE = "from keras_filterprune.export.other_backends import serve; serve()"


def convert_elsewhere(model: keras.Model, folder: Path, mode: str, dynamic_batch: bool = False) -> bytes:
    """Convert a model in a new process that runs Keras on TensorFlow.

    The model travels as a `.keras` file. The process has this one's import path and imports the modules of registered
    objects; it does not see what a script or notebook defines.

    Args:
        model: The model, on any backend; it is not modified.
        folder: Where to write the intermediate files.
        mode: As in `convert`.
        dynamic_batch: As in `convert`.

    Returns:
        The content of the `.tflite` file.

    Raises:
        ExportError: The model cannot be saved, TensorFlow cannot load or convert it, or its process ended without an
            answer.
        OSError: The intermediate files cannot be written.
    """
    folder.mkdir()
    _save(model, folder / "model.keras")
    options = {"mode": mode, "dynamic_batch": dynamic_batch}
    request = {"name": model.name, "options": options, "modules": _modules_of_custom_objects(model)}
    (folder / "request.json").write_text(json.dumps(request))
    # The converter needs no GPU, and this process may hold all memory of them.
    settings = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    search_path = {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, os.fspath(folder.absolute())],
        env=os.environ | settings | search_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    answer = folder / "answer.json"
    if not answer.exists():
        last = done.stderr.strip()[-1000:] or "it wrote no message"
        raise ExportError(
            f"the TensorFlow process that converts model {model.name!r} ended with exit code {done.returncode}: {last}"
        )
    failure = json.loads(answer.read_text())
    if failure:
        raise (OSError if failure["type"] == "OSError" else getattr(errors, failure["type"]))(failure["text"])
    return (folder / "model.tflite").read_bytes()


def serve() -> None:
    """Answer `convert_elsewhere` from the folder that the command line names: the other side of the same file."""
    folder = Path(sys.argv[1])
    failure = None
    try:
        _convert(folder)
    except FilterPruneError as error:
        failure = {"type": type(error).__name__, "text": str(error)}
    except OSError as error:
        failure = {"type": "OSError", "text": str(error)}
    # In one step: a file is there only if it holds the whole answer.
    (folder / "draft.json").write_text(json.dumps(failure))
    os.replace(folder / "draft.json", folder / "answer.json")


def _convert(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    with quiet():
        model = _load(folder / "model.keras", request["name"], request["modules"])
        content = convert(model, folder / "saved_model", **request["options"])
    (folder / "model.tflite").write_bytes(content)


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


def _load(path: Path, name: str, modules: list[str]) -> keras.Model:
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
