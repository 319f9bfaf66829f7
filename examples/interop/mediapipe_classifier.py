"""MediaPipe's ImageClassifier, which reads size, normalization and classes from the file, and takes pixels.

    python -m venv mediapipe && mediapipe/bin/pip install mediapipe
    mediapipe/bin/python examples/interop/mediapipe_classifier.py interop/

In an environment of its own: mediapipe pins versions that others need newer.
"""

from pathlib import Path

import mediapipe as mp
import numpy as np
from consumers import try_files
from mediapipe.tasks.python import BaseOptions
from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions


def predict(path: Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    options = ImageClassifierOptions(base_options=BaseOptions(model_asset_buffer=path.read_bytes()))
    rows = []
    with ImageClassifier.create_from_options(options) as classifier:
        for image in images:
            found = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(image)))
            scores = {category.category_name: category.score for category in found.classifications[0].categories}
            rows.append([scores[name] for name in classes])
    return np.array(rows)


if __name__ == "__main__":
    try_files("MediaPipe ImageClassifier", "mediapipe", predict)
