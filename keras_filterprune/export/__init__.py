"""Keras models as `.tflite` files, checked against the model they came from."""

from keras_filterprune.export.metadata import Metadata, read_metadata
from keras_filterprune.export.runtime import predict_tflite
from keras_filterprune.export.tflite import ExportResult, export_tflite

__all__ = [
    "ExportResult",
    "Metadata",
    "export_tflite",
    "predict_tflite",
    "read_metadata",
]
