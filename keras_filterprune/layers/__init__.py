"""Layer handlers; importing this package registers those of Keras' own layers and operations."""

from keras_filterprune.layers import activation as activation
from keras_filterprune.layers import convolution as convolution
from keras_filterprune.layers import joining as joining
from keras_filterprune.layers import normalization as normalization
from keras_filterprune.layers import reshaping as reshaping
from keras_filterprune.layers import spatial as spatial
from keras_filterprune.layers import wrapping as wrapping
from keras_filterprune.layers.base import Handler as Handler
from keras_filterprune.layers.base import Resize as Resize
from keras_filterprune.layers.base import handler_for as handler_for
from keras_filterprune.layers.base import register_handler as register_handler
