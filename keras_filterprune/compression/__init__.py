"""From a model to a file for a device, in one call."""

from keras_filterprune.compression.api import compress as compress
from keras_filterprune.compression.devices import Device as Device
from keras_filterprune.compression.devices import list_devices as list_devices
from keras_filterprune.compression.result import Compressed as Compressed
