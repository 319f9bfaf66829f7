"""From a model to a file for a device, in one call."""

from keras_filterprune.compression.api import compress
from keras_filterprune.compression.devices import Device, list_devices
from keras_filterprune.compression.result import Compressed

__all__ = [
    "Compressed",
    "Device",
    "compress",
    "list_devices",
]
