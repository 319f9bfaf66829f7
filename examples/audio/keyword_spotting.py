"""Keyword spotting: a DS-CNN on spoken digits, pruned to half the MACs, and to a third.

python examples/audio/keyword_spotting.py [--data-dir DIR] [--epochs 30] [--tune-epochs 15] [--out DIR]

Log-mel features of one second, shifted in time at random while training; accuracy is over the 300 test clips.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from networks import ds_cnn
from protocol import Protocol, Task, parser
from spoken_digit import load_features

import keras_filterprune as kfp


def main() -> None:
    options = parser(__doc__, "keyword-spotting", epochs=30, tune_epochs=15).parse_args()
    train, (inputs, labels) = load_features(options.data_dir)

    def batch(numbers: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        shifts = generator.integers(-5, 6, len(numbers))
        clips = [np.roll(clip, shift, axis=1) for clip, shift in zip(train[0][numbers], shifts, strict=True)]
        return np.stack(clips), train[1][numbers]

    task = Task(
        name="keyword_spotting",
        network=ds_cnn,
        batch=batch,
        examples=len(train[0]),
        size=32,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        samples=train[0],
        inputs=inputs,
        score=lambda logits: float(100 * np.mean(logits.argmax(-1) == labels)),
        metric="accuracy",
        ways={
            "dense": None,
            "half the MACs": lambda model: kfp.prune_model(model, "auto", 0.5, data=train[0]),
            "a third": lambda model: kfp.prune_model(model, "auto", 1 / 3, data=train[0]),
        },
    )
    Protocol(task, options).run()


if __name__ == "__main__":
    main()
