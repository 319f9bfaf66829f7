"""Write tables of TensorFlow Lite's metadata schema, which LiteRT ships no Python module for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# The name under which a model refers to its metadata, and the identifier of the metadata's own FlatBuffer.
ENTRY, IDENTIFIER = "TFLITE_METADATA", b"M001"
# Fields of the schema's tables in its order, as far as they are needed; the position of a field is its number.
# A union takes two, its type and its value.
_FIELDS = {
    "ModelMetadata": "name description version subgraph_metadata author license associated_files min_parser_version",
    "SubGraphMetadata": "name description input_tensor_metadata output_tensor_metadata associated_files",
    "TensorMetadata": "name description dimension_names content process_units stats associated_files",
    "AssociatedFile": "name description type",
    "ProcessUnit": "options_type options",
    "NormalizationOptions": "mean std",
}
_NORMALIZATION_OPTIONS, _TENSOR_AXIS_LABELS = 1, 2


def associated_file(name: str, description: str, labels: bool = False) -> dict[int, Any]:
    """Describe a file of the archive at the model's end.

    Args:
        name: its name there.
        description: what it holds.
        labels: it holds the names of a tensor's classes, one per line.
    """
    return _table("AssociatedFile", name=name, description=description, type=_TENSOR_AXIS_LABELS if labels else 0)


def tensor(name: str, normalization: tuple[Sequence[float], Sequence[float]] | None, files: list) -> dict[int, Any]:
    """Describe an input or output.

    Args:
        name: its name in the signature.
        normalization: means and standard deviations, equally many: one for all channels or one for each.
        files: tables from `associated_file`.
    """
    units = []
    if normalization is not None:
        mean, std = (np.array(values, np.float32) for values in normalization)
        options = _table("NormalizationOptions", mean=mean, std=std)
        units = [_table("ProcessUnit", options_type=_NORMALIZATION_OPTIONS, options=options)]
    return _table("TensorMetadata", name=name, process_units=units, associated_files=files)


def model_metadata(name: str, inputs: list, outputs: list, files: list) -> bytes:
    """Write the metadata of a model of one subgraph.

    Args:
        name: the model's name.
        inputs: tables from `tensor`, in the order of the subgraph's inputs.
        outputs: the same for its outputs.
        files: tables from `associated_file` that belong to no tensor.

    Returns:
        A FlatBuffer of its own.
    """
    import flatbuffers

    builder = flatbuffers.Builder()
    subgraph = _table("SubGraphMetadata", input_tensor_metadata=inputs, output_tensor_metadata=outputs)
    root = _table(
        "ModelMetadata",
        name=name,
        subgraph_metadata=[subgraph],
        associated_files=files,
        # The oldest parser that knows all of these fields.
        min_parser_version="1.0.0",
    )
    builder.Finish(_write(builder, root), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _table(kind: str, **fields: Any) -> dict[int, Any]:
    names = _FIELDS[kind].split()
    return {names.index(name): value for name, value in fields.items()}


def _write(builder: Any, value: str | np.ndarray | list | dict[int, Any]) -> int:
    """Write a value after everything that it points to, and return where it is."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    written = {number: field if isinstance(field, int) else _write(builder, field) for number, field in value.items()}
    builder.StartObject(max(value) + 1)
    for number, offset in written.items():
        if isinstance(value[number], int):
            builder.PrependUint8Slot(number, offset, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    return builder.EndObject()
