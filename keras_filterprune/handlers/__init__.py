"""Layer handlers; importing this package registers those of Keras' own layers and operations."""

from keras_filterprune.graph import Call as Call
from keras_filterprune.graph import Kept as Kept
from keras_filterprune.graph import Tensor as Tensor
from keras_filterprune.graph import TensorRef as TensorRef
from keras_filterprune.graph.tracer import Tracer as Tracer
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
from keras_filterprune.handlers.activation import Elementwise as Elementwise
from keras_filterprune.handlers.base import Handler as Handler
from keras_filterprune.handlers.base import Resize as Resize
from keras_filterprune.handlers.base import read_last_axis as read_last_axis
from keras_filterprune.handlers.linear import Linear as Linear
from keras_filterprune.handlers.linear import Window as Window
from keras_filterprune.handlers.multiplying import LinearHandler as LinearHandler
from keras_filterprune.handlers.registry import register_handler as register_handler
from keras_filterprune.handlers.statistics import Statistics as Statistics
