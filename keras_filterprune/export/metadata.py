"""What a `.tflite` file says about itself: classes, normalisation, and the pruning plan behind it."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_path, shown, wrong
from keras_filterprune.cost import CostModel
from keras_filterprune.errors import FileError, InvalidValueError, PlanMismatchError
from keras_filterprune.export import metadata_schema as schema
from keras_filterprune.export.signature import InputPort, output_keys, output_structure
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.export.unsigned import pixel_range
from keras_filterprune.files import json_digest, unsealed
from keras_filterprune.rebuild.plan import PruningPlan
from keras_filterprune.version import __version__

_OWN = "keras_filterprune.json"


@dataclass(frozen=True, eq=False)
class Metadata:
    """What to write into a `.tflite` file, for `export_tflite(metadata=)`.

    Args:
        labels: names of the classes along the output's last axis; a dict `{output: names}` for several outputs.
        normalization: `(mean, std)` that turn raw values into the model's inputs, `(value - mean) / std`: numbers, or
            one per channel; a dict `{input: (mean, std)}` for several inputs. `(0, 255)` stands for pixels that are
            scaled to 0..1. It is recorded, not computed by the file.
        plan: the plan that the model was pruned with (`report.plan`).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> metadata = kfp.export.Metadata(labels=["cat", "dog"], normalization=(127.5, 127.5))
        >>> _ = kfp.export_tflite(model, "pets.tflite", metadata=metadata, overwrite=True)
        >>> kfp.export.read_metadata("pets.tflite")["labels"]
        ['cat', 'dog']
    """

    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    normalization: tuple[Any, Any] | Mapping[str, tuple[Any, Any]] | None = None
    plan: PruningPlan | None = None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `export_tflite(metadata=)` wrote into a file.

    Args:
        path: a `.tflite` file.

    Returns:
        "labels" and "normalization" as they were given, in lists, None if they were not; "plan": None, or its
        "sha256" (`PruningPlan.sha256`), "method", "budget" and the name of its "model"; the "version" of this
        library.

    Raises:
        FileError: there is no such file, or nothing in it that this library wrote.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> metadata = kfp.export.Metadata(labels=["cat", "dog"])
        >>> _ = kfp.export_tflite(model, "pets.tflite", metadata=metadata, overwrite=True)
        >>> kfp.export.read_metadata("pets.tflite")["labels"]
        ['cat', 'dog']
    """
    path = check_path("path", path)
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(_OWN))
            content["labels"] = _mapped(content["labels"], lambda file: archive.read(file).decode().split("\n")[:-1])
            return unsealed(content)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}.") from error
    # A damaged archive makes `zipfile` raise almost anything.
    except Exception as error:
        raise FileError(
            f"{path} holds no metadata of keras_filterprune ({error}); export_tflite(metadata=Metadata(...)) writes it."
        ) from error


def check_metadata(metadata: Metadata, model: keras.Model, ports: Sequence[InputPort]) -> None:
    """Compare metadata with the model that it is to describe.

    Args:
        metadata: what the user gave.
        model: the model.
        ports: its inputs.

    Raises:
        InvalidValueError: names or counts do not fit the model.
        PlanMismatchError: the plan was made for another model, or the model was not pruned with it.
    """
    if not isinstance(metadata, Metadata):
        raise wrong("metadata", metadata, "a kfp.export.Metadata, or None")
    structure = output_structure(model)
    outputs = dict(zip(output_keys(structure), keras.tree.flatten(structure), strict=True))
    for name, labels in _by_name(metadata.labels, list(outputs), "labels", "output").items():
        _check_labels(name, labels, outputs[name].shape[-1])
    shapes = {port.name: port.shape for port in ports}
    for name, given in _by_name(metadata.normalization, list(shapes), "normalization", "input").items():
        _check_normalization(name, given, shapes[name])
    if metadata.plan is not None:
        _check_plan(metadata.plan, model)


def pixel_ranges(metadata: Metadata, ports: Sequence[InputPort]) -> dict[str, tuple[float, float]]:
    """`{input key: what pixels of 0 and 255 are for the model}` of inputs with a normalization.

    Raises:
        InvalidValueError: it differs between channels, which one scale cannot say.
    """
    found, keys = {}, {port.name: port.key for port in ports}
    for name, pair in _by_name(metadata.normalization, list(keys), "normalization", "input").items():
        sides = [np.unique(np.ravel(values)) for values in pair]
        if any(side.size > 1 for side in sides):
            raise InvalidValueError(
                f"integer_io='uint8' takes a normalization of input {name!r} that is the same for all channels. "
                f"Received: {shown(pair)}. Put it into the model, as a keras.layers.Normalization, and give (0, 1)."
            )
        found[keys[name]] = pixel_range(*(float(side[0]) for side in sides))
    return found


def embed(file: TFLiteFile, metadata: Metadata, name: str, ports: Sequence[InputPort]) -> TFLiteFile:
    """Put metadata into a `.tflite` file, where TensorFlow Lite's tools look for it.

    The file refers to a FlatBuffer of the official schema; an archive at its end, which LiteRT does not read, holds the
    labels and what the schema has no place for.

    Args:
        file: the file.
        metadata: checked metadata.
        name: the model's name.
        ports: the model's inputs.

    Returns:
        The new file.
    """
    from ai_edge_litert import schema_py_generated as tflite

    model = copy.copy(file.model)
    inputs, outputs = _tensor_names(model)
    labels = _by_name(metadata.labels, outputs, "labels", "output")
    files = {key: "labels.txt" if len(outputs) == 1 else f"labels_{key}.txt" for key in labels}
    keys = {port.name: port.key for port in ports}
    ranges = _by_name(metadata.normalization, list(keys), "normalization", "input")
    ranges = {keys[name]: np.broadcast_arrays(*map(np.ravel, pair)) for name, pair in ranges.items()}
    tables = {key: [schema.associated_file(name, "names of the classes", labels=True)] for key, name in files.items()}
    official = schema.model_metadata(
        name,
        [schema.tensor(key, ranges.get(key), []) for key in inputs],
        [schema.tensor(key, None, tables.get(key, [])) for key in outputs],
        [schema.associated_file(_OWN, "what keras_filterprune recorded")],
    )
    model.buffers = [*model.buffers, tflite.BufferT(data=np.frombuffer(official, np.uint8))]
    model.metadata = [*(model.metadata or []), tflite.MetadataT(name=schema.ENTRY, buffer=len(model.buffers) - 1)]
    archive = {name: "".join(f"{label}\n" for label in labels[key]) for key, name in files.items()}
    own = _own(metadata, files)
    # Of what is read, so that the labels count, not the names of their files.
    digest = json_digest(own | {"labels": _mapped(metadata.labels, list)})
    return _with_archive(TFLiteFile.holding(model), archive | {_OWN: json.dumps(own | {"sha256": digest})})


def _own(metadata: Metadata, files: dict[str, str]) -> dict[str, Any]:
    """What `read_metadata` returns, with files in place of labels."""
    labels = files if isinstance(metadata.labels, Mapping) else next(iter(files.values()), None)
    plan = metadata.plan and {
        "sha256": metadata.plan.sha256,
        "model": metadata.plan.model["name"],
        "method": metadata.plan.method,
        "budget": metadata.plan.budget,
    }
    ranges = _mapped(metadata.normalization, lambda pair: [np.asarray(values).tolist() for values in pair])
    return {"labels": labels, "normalization": ranges, "plan": plan, "version": __version__}


def _tensor_names(model: Any) -> tuple[list[str], list[str]]:
    """Names in the signature, in the order of the graph."""
    (graph, *_), (signature, *_) = model.subgraphs, model.signatureDefs
    found = []
    for mapping, indices in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
        names = {entry.tensorIndex: entry.name.decode() for entry in mapping}
        found.append([names[index] for index in indices])
    return found[0], found[1]


def _with_archive(file: TFLiteFile, texts: dict[str, str]) -> TFLiteFile:
    target = io.BytesIO(file.content)
    with zipfile.ZipFile(target, "a") as archive:
        for name, text in texts.items():
            # A ZipInfo has a fixed date, so that equal models are equal files.
            archive.writestr(zipfile.ZipInfo(name), text)
    return TFLiteFile.parsed(target.getvalue(), file.model)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    return {k: function(v) for k, v in value.items()} if isinstance(value, Mapping) else function(value)


def _by_name(value: Any, names: Sequence[str], what: str, kind: str) -> dict[str, Any]:
    """{name: its part}; what is no dict belongs to the only name."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        if not set(value) <= set(names):
            raise wrong(what, sorted(map(str, value)), f"for the {kind}s {sorted(names)}")
        return dict(value)
    if len(names) != 1:
        raise InvalidValueError(
            f"the model has {len(names)} {kind}s: {what} is a dict by {kind}, of {sorted(names)}. Received: "
            f"{what}={shown(value)}."
        )
    return {names[0]: value}


def _check_labels(name: str, labels: Any, classes: int | None) -> None:
    expected = f"labels of output {name!r} are {classes} names, one per class"
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise InvalidValueError(f"{expected}, in a list. Received: {shown(labels)}.")
    wrong = [label for label in labels if not _is_line(label)]
    if wrong:
        raise InvalidValueError(f"{expected}, each a text of one line. Received: {wrong[0]!r}.")
    if len(labels) != classes:
        raise InvalidValueError(f"{expected}. Received: {len(labels)}.")


def _is_line(label: Any) -> bool:
    # Halves of characters can be written in no encoding.
    halves = isinstance(label, str) and any("\ud800" <= character <= "\udfff" for character in label)
    return isinstance(label, str) and bool(label) and not halves and not {"\n", "\r"} & set(label)


def _check_normalization(name: str, given: Any, shape: tuple[int, ...]) -> None:
    expected = (
        f"normalization of input {name!r} is (mean, std), each a number or one per channel "
        f"({shape[-1] if shape else 1}), std above 0"
    )
    try:
        pair = [np.ravel(np.asarray(values, np.float64)) for values in given]
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValueError(f"{expected}. Received: {shown(given)}.") from error
    sizes = [values.size for values in pair]
    if len(pair) != 2 or not set(sizes) <= {1, *shape[-1:]} or not np.isfinite(np.concatenate(pair)).all():
        raise InvalidValueError(f"{expected}. Received: {shown(given)}.")
    if (pair[1] <= 0).any():
        raise InvalidValueError(f"{expected}. Received: {shown(given)}.")


def _check_plan(plan: PruningPlan, model: keras.Model) -> None:
    if not isinstance(plan, PruningPlan):
        raise wrong("plan", plan, "a PruningPlan, such as report.plan")
    cost = CostModel(analyze(model))
    macs, params = int(cost.macs(cost.sizes)), int(cost.params(cost.sizes))
    # Compensation may add biases, and a new input size changes the MACs: one of the two is enough.
    if macs != plan.cost["macs"][1] and params != plan.cost["params"][1]:
        raise PlanMismatchError(
            f"the plan leaves {plan.cost['macs'][1]:,} MACs and {plan.cost['params'][1]:,} parameters of model "
            f"{plan.model['name']!r}, but model {model.name!r} has {macs:,} and {params:,}. Export the model that was "
            "pruned with it, or leave plan out."
        )
