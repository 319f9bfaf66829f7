"""Segmentation of road scenes: a U-Net on CamVid, pruned to half the MACs, or to a fifth of the parameters.

python examples/segmentation.py [--data-dir DIR] [--epochs 60] [--tune-epochs 20] [--out DIR]

DIR holds camvid/{train,val,test} with images and camvid/{train,val,test}_labels with a class for each pixel, 256 x 192
(Brostow et al. 2009, as split by Badrinarayanan et al. 2017). Mean IoU is over the 11 classes of the test images;
unlabelled pixels count neither there nor in training.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np
from protocol import Protocol, Task, parser

import keras_filterprune as kfp

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
UNLABELLED = len(CLASSES)
SHOWN = (20, 100, 180)


def main() -> None:
    options = parser(__doc__, "segmentation", epochs=60, tune_epochs=20).parse_args()
    train, test = (load_camvid(options.data_dir, split) for split in ("train", "test"))
    weights = weights_of(train[1])
    samples, inputs = (images.astype("float32") for images, _ in (train, test))

    def inner(model: keras.Model) -> keras.Model:
        """A fifth of the parameters, all from the two lowest resolutions."""
        budget = kfp.ParamsBudget(keep=0.2)
        return kfp.prune_model(model, "auto", budget, data=samples, include=kfp.studies.innermost(model, 2))

    def batch(numbers: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images, labels = varied(train[0][numbers], train[1][numbers], generator)
        return images, np.minimum(labels, UNLABELLED - 1), weights[labels]

    task = Task(
        name="segmentation",
        network=unet,
        batch=batch,
        examples=len(samples),
        size=8,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        samples=samples,
        inputs=inputs,
        score=lambda logits: mean_iou(test[1], logits.argmax(-1)),
        metric="mean IoU",
        ways={
            "dense": None,
            "half the MACs": lambda model: kfp.prune_model(model, "auto", 0.5, data=samples),
            "inner layers": inner,
        },
    )
    protocol = Protocol(task, options)
    networks = protocol.run()
    sensitivity(networks["dense"], load_camvid(options.data_dir, "val"), protocol.out)
    chosen = inputs[[*SHOWN]]
    shown = {name: networks[name].predict(chosen, verbose=0) for name in ("dense", "half the MACs")}
    shown["half the MACs, int8"] = kfp.export.predict_tflite(protocol.file("half the MACs", "int8"), chosen)
    draw(test[0][[*SHOWN]], test[1][[*SHOWN]], shown, protocol.out / "segmentation.png")


def load_camvid(data_dir: str | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 192, 256, 3) and classes (n, 192, 256) of a split, both uint8; class 11 is unlabelled.

    Args:
        data_dir: the folder that holds camvid; KFP_DATA_DIR by default.
        split: "train", "val" or "test".
    """
    folder = Path(data_dir or os.environ["KFP_DATA_DIR"], "camvid")
    images = [keras.utils.load_img(path) for path in sorted((folder / split).glob("*.jpg"))]
    labels = [
        keras.utils.load_img(path, color_mode="grayscale")
        for path in sorted((folder / f"{split}_labels").glob("*.png"))
    ]
    return np.stack(images), np.stack(labels)


def weights_of(labels: np.ndarray) -> np.ndarray:
    """Weight of every class, float32 of shape (12,): rare ones count more, by the root; unlabelled pixels nothing."""
    shares = np.bincount(labels.ravel(), minlength=UNLABELLED + 1)[:UNLABELLED] / labels.size
    return np.append(np.sqrt(np.median(shares) / shares.clip(1e-6)), 0).astype("float32")


def varied(images: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Float images and labels, mirrored and made lighter or darker at random."""
    mirrored = (generator.random(len(images)) < 0.5)[:, None, None]
    labels = np.where(mirrored, labels[:, :, ::-1], labels)
    images = np.where(mirrored[..., None], images[:, :, ::-1], images)
    return (images * generator.uniform(0.7, 1.3, (len(images), 1, 1, 1))).clip(0, 255).astype("float32"), labels


def unet() -> keras.Model:
    """A U-Net of depthwise separable convolutions (after Howard et al. 2017), 11 logits a pixel."""
    layers = keras.layers

    def normalized(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    def block(x, filters: int, strides: int = 1):
        x = normalized(layers.DepthwiseConv2D(3, strides, "same", use_bias=False)(x))
        return normalized(layers.Conv2D(filters, 1, use_bias=False)(x))

    def larger(x):
        return layers.UpSampling2D(2, interpolation="bilinear")(x)

    inputs = keras.Input((192, 256, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = block(normalized(layers.Conv2D(16, 3, 2, "same", use_bias=False)(x)), 16)
    skipped = []
    for filters in (32, 64, 128, 256):
        skipped.append(x)
        x = block(block(x, filters, 2), filters)
    x = block(x, 256)
    for filters, skip in zip((96, 64, 32, 16), reversed(skipped), strict=True):
        x = block(layers.Concatenate()([larger(x), skip]), filters)
    outputs = larger(layers.Conv2D(len(CLASSES), 1)(x))
    return keras.Model(inputs, outputs, name="unet")


def mean_iou(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union in percent, mean over the classes; unlabelled pixels do not count."""
    known = labels < UNLABELLED
    pairs = len(CLASSES) * labels[known].astype(int) + predicted[known]
    confusion = np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)
    both = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return float(100 * np.mean(both[union > 0] / union[union > 0]))


def sensitivity(model: keras.Model, val: tuple[np.ndarray, np.ndarray], out: Path) -> None:
    """Draw what mean IoU loses when half of a group's filters go, or three quarters."""

    def intersection_over_union(labels: np.ndarray, outputs: np.ndarray) -> float:
        return mean_iou(labels, outputs.reshape(*labels.shape, len(CLASSES)).argmax(-1))

    data = val[0].astype("float32"), val[1]
    settings = {"keep": (0.5, 0.25), "samples": 50, "checkpoint": out / "sensitivity.json"}
    kfp.measure_sensitivity(model, data, intersection_over_union, **settings).plot(out / "segmentation_sensitivity.png")


def draw(images: np.ndarray, labels: np.ndarray, logits: dict[str, np.ndarray], path: Path) -> None:
    """Images in rows; what is true, and what each network sees, in columns."""
    columns = {"image": images, "labels": labels} | {name: found.argmax(-1) for name, found in logits.items()}
    size = 2.2 * len(columns), 1.75 * len(images)
    figure, axes = plt.subplots(len(images), len(columns), figsize=size, layout="constrained", squeeze=False)
    colours = {"cmap": "tab20", "vmin": 0, "vmax": 19, "interpolation": "nearest"}
    for row, line in enumerate(axes):
        for axis, (name, pictures) in zip(line, columns.items(), strict=True):
            picture = pictures[row]
            if picture.ndim == 2:
                # Unlabelled pixels are blank everywhere.
                picture = np.ma.masked_where(labels[row] == UNLABELLED, picture)
            axis.imshow(picture, **colours)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=9)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    main()
