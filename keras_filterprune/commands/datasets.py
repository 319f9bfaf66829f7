"""Data sets of TensorFlow Datasets, by name."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np

from keras_filterprune.checks import check_packages, did_you_mean
from keras_filterprune.commands.images import MOST, Images
from keras_filterprune.commands.read import Read
from keras_filterprune.errors import CalibrationDataError, FilterPruneError


def read_dataset(name: str, images: Images) -> Read:
    """The first samples of the training split, at most 2 048: the order on disk is random where it is not said."""
    check_packages("a data set by name", "examples", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    from keras_filterprune.graph.keras_view import first_line

    try:
        builder = tfds.builder(name)
        key, target = _pair(builder.info)
        features = builder.info.features
        encoded = isinstance(features[key], tfds.features.Image)
        if encoded:
            images.check()
        builder.download_and_prepare()
        decoders = {key: tfds.decode.SkipDecoding()} if encoded else None
        rows = tfds.as_numpy(builder.as_dataset(split="train", decoders=decoders))
        samples = [(row[key], row[target]) for row in itertools.islice(rows, MOST)]
        x, labels = [x for x, _ in samples], np.stack([label for _, label in samples])
        if not encoded:
            return Read(np.stack(x), labels)
    except FilterPruneError:
        raise
    # A builder downloads and unpacks, and runs code of its own: it raises almost anything, over several lines.
    except Exception as error:
        meant = did_you_mean(name, tfds.list_builders())
        raise CalibrationDataError(f"cannot read the data set '{name}': {first_line(error)}{meant}") from error
    inputs = images.read([(io.BytesIO(content), f"number {n} of {name}") for n, content in enumerate(x)])
    return Read(inputs, labels, tuple(getattr(features[target], "names", None) or ()), images.normalization)


def _pair(info: Any) -> tuple[str, str]:
    """The names of input and label."""
    keys = info.supervised_keys
    if not isinstance(keys, tuple) or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise CalibrationDataError(
            f"the data set '{info.name}' does not say which of {sorted(info.features)} is the input and which the "
            f"label (supervised_keys). Received: {keys}. Give an .npz archive."
        )
    return keys
