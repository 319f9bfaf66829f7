"""How many filters each group keeps under a budget."""

from keras_filterprune.allocators.base import Allocation, Allocator
from keras_filterprune.allocators.cross_layer import CrossLayer
from keras_filterprune.allocators.evolution import Evolution
from keras_filterprune.allocators.search import Search
from keras_filterprune.allocators.sensitivity import Sensitivity
from keras_filterprune.allocators.simple import Global, Uniform
from keras_filterprune.allocators.tolerance import Tolerance

__all__ = [
    "Allocation",
    "Allocator",
    "CrossLayer",
    "Evolution",
    "Global",
    "Search",
    "Sensitivity",
    "Tolerance",
    "Uniform",
]
