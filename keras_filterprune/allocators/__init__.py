"""How many filters each group keeps under a budget."""

from keras_filterprune.allocators.base import Allocation as Allocation
from keras_filterprune.allocators.base import Allocator as Allocator
from keras_filterprune.allocators.cross_layer import CrossLayer as CrossLayer
from keras_filterprune.allocators.evolution import Evolution as Evolution
from keras_filterprune.allocators.search import Search as Search
from keras_filterprune.allocators.sensitivity import Sensitivity as Sensitivity
from keras_filterprune.allocators.simple import Global as Global
from keras_filterprune.allocators.simple import Uniform as Uniform
from keras_filterprune.allocators.tolerance import Tolerance as Tolerance
