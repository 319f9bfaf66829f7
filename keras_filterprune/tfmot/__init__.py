"""Carries Keras 3 models to tf_keras, where TensorFlow's model optimization toolkit works on them, and back."""

from keras_filterprune.tfmot.bridge import export_qat as export_qat
from keras_filterprune.tfmot.bridge import to_tf_keras as to_tf_keras
from keras_filterprune.tfmot.bridge import train_in_tf_keras as train_in_tf_keras
