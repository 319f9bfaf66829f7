"""Recipes: a name stands for a criterion, an allocator and a compensator; importing this package registers ours."""

from keras_filterprune.methods import recipes as recipes
from keras_filterprune.methods.registry import Method as Method
from keras_filterprune.methods.registry import as_method as as_method
from keras_filterprune.methods.registry import list_methods as list_methods
from keras_filterprune.methods.registry import register_method as register_method
