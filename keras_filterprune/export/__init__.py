"""Keras models as `.tflite` files, checked against the model they came from."""

from keras_filterprune.export.metadata import Metadata as Metadata
from keras_filterprune.export.metadata import read_metadata as read_metadata
from keras_filterprune.export.runtime import predict_tflite as predict_tflite
from keras_filterprune.export.tflite import ExportResult as ExportResult
from keras_filterprune.export.tflite import export_tflite as export_tflite
