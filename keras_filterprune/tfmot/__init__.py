"""Carries Keras 3 models to tf_keras, where TensorFlow's model optimization toolkit works on them, and back."""

from keras_filterprune.tfmot.bridge import export_qat, to_tf_keras, train_in_tf_keras

__all__ = [
    "export_qat",
    "to_tf_keras",
    "train_in_tf_keras",
]
