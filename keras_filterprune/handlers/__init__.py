"""Layer handlers; importing this package registers those of Keras' own layers and operations."""

from keras_filterprune.graph import Call, Kept, Tensor, TensorRef
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.handlers import activation as activation
from keras_filterprune.handlers import attention as attention
from keras_filterprune.handlers import convolution as convolution
from keras_filterprune.handlers import einsum as einsum
from keras_filterprune.handlers import joining as joining
from keras_filterprune.handlers import normalization as normalization
from keras_filterprune.handlers import products as products
from keras_filterprune.handlers import recurrent as recurrent
from keras_filterprune.handlers import reshaping as reshaping
from keras_filterprune.handlers import spatial as spatial
from keras_filterprune.handlers import wrapping as wrapping
from keras_filterprune.handlers.activation import Elementwise
from keras_filterprune.handlers.base import Handler, Resize, read_last_axis
from keras_filterprune.handlers.linear import Linear, Window
from keras_filterprune.handlers.multiplying import LinearHandler
from keras_filterprune.handlers.registry import register_handler
from keras_filterprune.handlers.statistics import Statistics

__all__ = [
    "Call",
    "Elementwise",
    "Handler",
    "Kept",
    "Linear",
    "LinearHandler",
    "Resize",
    "Statistics",
    "Tensor",
    "TensorRef",
    "Tracer",
    "Window",
    "read_last_axis",
    "register_handler",
]
