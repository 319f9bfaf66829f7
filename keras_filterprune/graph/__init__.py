"""Flat views of Keras models, and the channel graph read off them."""

from keras_filterprune.graph.kept import Kept as Kept
from keras_filterprune.graph.types import Bind as Bind
from keras_filterprune.graph.types import Call as Call
from keras_filterprune.graph.types import ChannelGraph as ChannelGraph
from keras_filterprune.graph.types import Group as Group
from keras_filterprune.graph.types import Member as Member
from keras_filterprune.graph.types import ModelView as ModelView
from keras_filterprune.graph.types import Pinned as Pinned
from keras_filterprune.graph.types import Tensor as Tensor
from keras_filterprune.graph.types import TensorRef as TensorRef
from keras_filterprune.graph.types import Term as Term
