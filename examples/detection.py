"""Detection of blood cells: a single-stage detector without anchors on BCCD, pruned to half the MACs and by time.

python examples/detection.py [--data-dir DIR] [--epochs 100] [--tune-epochs 40] [--out DIR]

DIR holds bccd/images/NAME.jpg and bccd/boxes.json, 320 x 240 (github.com/Shenggan/BCCD_Dataset). The network gives
a box and scores for every cell of a grid, decoded (after Tian et al. 2019); what overlaps is suppressed outside of it.
Backbone, neck and heads are pruned. Reported is the mean average precision at an overlap of 0.5 over the test images.
"""

from __future__ import annotations

import json
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

HEIGHT, WIDTH, STRIDE = 240, 320, 8
ROWS, COLUMNS = HEIGHT // STRIDE, WIDTH // STRIDE
SHOWN = (3, 40)


def main() -> None:
    options = parser(__doc__, "detection", epochs=100, tune_epochs=40).parse_args()
    names, train = load_bccd(options.data_dir, "train")
    _, test = load_bccd(options.data_dir, "test")
    samples, inputs = (images.astype("float32") for images, _ in (train, test))

    def batch(numbers: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        examples = [varied(train[0][number], train[1][number], generator) for number in numbers]
        boxes, scores = zip(*(assigned(boxes, len(names)) for _, boxes in examples), strict=True)
        return np.stack([image for image, _ in examples]), {"boxes": np.stack(boxes), "scores": np.stack(scores)}

    def by_time(model: keras.Model) -> keras.Model:
        table = kfp.measure_latency(model, quantize="int8")
        return kfp.prune_model(model, "auto", kfp.LatencyBudget(keep=0.65, table=table), data=samples)

    task = Task(
        name="detection",
        network=lambda: detector(len(names)),
        batch=batch,
        examples=len(samples),
        size=8,
        loss={"boxes": overlap_loss, "scores": focal_loss},
        samples=samples,
        inputs=inputs,
        score=lambda outputs: mean_average_precision(test[1], detections(outputs)),
        metric="mAP@0.5",
        ways={
            "dense": None,
            "half the MACs": lambda model: kfp.prune_model(model, "auto", 0.5, data=samples),
            "65 % of the milliseconds": by_time,
        },
    )
    protocol = Protocol(task, options)
    networks = protocol.run()
    chosen = inputs[[*SHOWN]]
    found = {name: detections(network.predict(chosen, verbose=0)) for name, network in networks.items()}
    found["half the MACs, int8"] = detections(kfp.export.predict_tflite(protocol.file("half the MACs", "int8"), chosen))
    truth = [np.hstack([test[1][number], np.ones((len(test[1][number]), 1))]) for number in SHOWN]
    draw(test[0][[*SHOWN]], {"labels": truth} | found, names, protocol.out / "detection.png")


def load_bccd(data_dir: str | None, split: str) -> tuple[list[str], tuple[np.ndarray, list[np.ndarray]]]:
    """Names of the classes, and the images (n, 240, 320, 3), uint8, and boxes of a split.

    Boxes of an image are (boxes, 5): class, left, top, right, bottom, as fractions of the image.

    Args:
        data_dir: the folder that holds bccd; KFP_DATA_DIR by default.
        split: "train", "val" or "test".
    """
    folder = Path(data_dir or os.environ["KFP_DATA_DIR"], "bccd")
    content = json.loads((folder / "boxes.json").read_text())
    boxes = content["boxes"][split]
    images = np.stack([keras.utils.load_img(folder / "images" / name) for name in boxes])
    return content["classes"], (images, [np.array(rows, "float32").reshape(-1, 5) for rows in boxes.values()])


def varied(image: np.ndarray, boxes: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A float image and its boxes, mirrored both ways and made lighter or darker at random."""
    image, boxes = image * generator.uniform(0.7, 1.3), boxes.copy()
    if generator.random() < 0.5:
        image, boxes[:, [1, 3]] = image[:, ::-1], 1 - boxes[:, [3, 1]]
    if generator.random() < 0.5:
        image, boxes[:, [2, 4]] = image[::-1], 1 - boxes[:, [4, 2]]
    return image.clip(0, 255).astype("float32"), boxes


def centres() -> np.ndarray:
    """Middles of the cells, (cells, 2): across and down, as fractions of the image."""
    down, across = np.mgrid[:ROWS, :COLUMNS] + 0.5
    return np.stack([across / COLUMNS, down / ROWS], axis=-1).reshape(-1, 2).astype("float32")


def assigned(boxes: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (cells, 4) and scores (cells, classes) that are wanted; a cell without an object has zeros.

    Cells around the middle of an object find it, the smallest where there are several.
    """
    wanted, scores = np.zeros((ROWS * COLUMNS, 4), "float32"), np.zeros((ROWS * COLUMNS, classes), "float32")
    size = boxes[:, 3:] - boxes[:, 1:3]
    for box in boxes[np.argsort(-size.prod(axis=1))]:
        middle, half = (box[1:3] + box[3:]) / 2, (box[3:] - box[1:3]) / 2
        reach = np.minimum(half, 1.5 * np.array([1 / COLUMNS, 1 / ROWS])).clip(0.5 / np.array([COLUMNS, ROWS]))
        inside = (np.abs(centres() - middle) <= reach).all(axis=1)
        wanted[inside], scores[inside] = box[1:], np.eye(classes)[int(box[0])]
    return wanted, scores


@keras.saving.register_keras_serializable("keras_filterprune_examples")
def overlap_loss(wanted, boxes):
    """1 minus the generalized overlap (Rezatofighi et al. 2019) of cells with an object, mean for each image."""
    ops = keras.ops
    there = ops.cast(wanted[..., 2] > wanted[..., 0], boxes.dtype)
    lower, upper = ops.maximum(wanted[..., :2], boxes[..., :2]), ops.minimum(wanted[..., 2:], boxes[..., 2:])
    both = ops.prod(ops.relu(upper - lower), axis=-1)
    union = sum(ops.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (wanted, boxes)) - both
    outer = ops.maximum(wanted[..., 2:], boxes[..., 2:]) - ops.minimum(wanted[..., :2], boxes[..., :2])
    hull = ops.prod(outer, axis=-1)
    loss = 1 - both / ops.maximum(union, 1e-6) + (hull - union) / ops.maximum(hull, 1e-6)
    return ops.sum(there * loss, axis=-1) / ops.maximum(ops.sum(there, axis=-1), 1)


@keras.saving.register_keras_serializable("keras_filterprune_examples")
def focal_loss(wanted, scores):
    """Cross-entropy that hard cells rule (Lin et al. 2017), per cell with an object, for each image."""
    losses = keras.losses.binary_focal_crossentropy(wanted, scores, apply_class_balancing=True, alpha=0.25)
    return scores.shape[-1] * keras.ops.sum(losses, -1) / keras.ops.maximum(keras.ops.sum(wanted, (1, 2)), 1)


def detector(classes: int) -> keras.Model:
    """Separable convolutions down to a sixteenth, a neck to an eighth, and two towers; 70 M MACs."""
    layers = keras.layers

    def normalized(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    def block(x, filters: int, strides: int = 1):
        x = normalized(layers.DepthwiseConv2D(3, strides, "same", use_bias=False)(x))
        return normalized(layers.Conv2D(filters, 1, use_bias=False)(x))

    inputs = keras.Input((HEIGHT, WIDTH, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = normalized(layers.Conv2D(16, 3, 2, "same", use_bias=False)(x))
    x = block(block(x, 32, 2), 32)
    fine = block(block(x, 64, 2), 64)
    coarse = block(block(block(fine, 128, 2), 128), 128)
    neck = layers.Add()(
        [layers.UpSampling2D(interpolation="bilinear")(layers.Conv2D(64, 1)(coarse)), layers.Conv2D(64, 1)(fine)]
    )
    neck = block(neck, 64)
    sides = layers.Conv2D(4, 1, name="sides")(block(block(neck, 64), 64))
    rare = keras.initializers.Constant(-np.log(99))
    scores = layers.Conv2D(classes, 1, bias_initializer=rare, name="logits")(block(block(neck, 64), 64))
    # Left, top, right and bottom of a box, as seen from the middle of its cell.
    cell = np.array([STRIDE / WIDTH, STRIDE / HEIGHT], "float32")
    boxes = keras.ops.exp(layers.Reshape((-1, 4))(sides)) * np.append(-cell, cell) + np.tile(centres(), 2)
    scores = layers.Activation("sigmoid")(layers.Reshape((-1, classes))(scores))
    return keras.Model(inputs, {"boxes": boxes, "scores": scores}, name="detector")


def detections(outputs: dict[str, np.ndarray], least: float = 0.05) -> list[np.ndarray]:
    """What is left of each image's boxes when the best of those that overlap stays: (boxes, 6), with a score behind."""
    found = []
    for boxes, scores in zip(outputs["boxes"], outputs["scores"], strict=True):
        rows = []
        for kind in range(scores.shape[-1]):
            order = np.argsort(-scores[:, kind])[: int((scores[:, kind] > least).sum())]
            while len(order):
                best, order = order[0], order[1:]
                rows.append([kind, *boxes[best], scores[best, kind]])
                order = order[overlaps(boxes[order], boxes[best]) < 0.5]
        found.append(np.array(rows, "float32").reshape(-1, 6))
    return found


def overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with another one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    both = sides.clip(0).prod(axis=1)
    return both / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - both)


def mean_average_precision(truth: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Area under precision by recall in percent, mean over classes (Everingham et al. 2015, all points).

    Args:
        truth: boxes of each image, (boxes, 5).
        found: boxes of each image, (boxes, 6).
    """
    kinds = np.unique(np.concatenate(truth)[:, 0])
    return float(100 * np.mean([_average_precision(*_of_kind(kind, truth, found)) for kind in kinds]))


def _of_kind(kind: int, *images: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [[boxes[boxes[:, 0] == kind, 1:] for boxes in group] for group in images]


def _average_precision(truth: list[np.ndarray], found: list[np.ndarray]) -> float:
    ranked = sorted(((box, number) for number, boxes in enumerate(found) for box in boxes), key=lambda f: -f[0][4])
    free = [np.ones(len(boxes), bool) for boxes in truth]
    right = np.zeros(len(ranked))
    for rank, (box, number) in enumerate(ranked):
        if len(truth[number]):
            overlap = overlaps(truth[number], box[:4])
            best = overlap.argmax()
            right[rank] = overlap[best] >= 0.5 and free[number][best]
            free[number][best] &= not right[rank]
    precision = right.cumsum() / np.arange(1, len(ranked) + 1)
    return float((np.maximum.accumulate(precision[::-1])[::-1] * right).sum() / sum(map(len, truth)))


def draw(images: np.ndarray, found: dict[str, list[np.ndarray]], names: list[str], path: Path) -> None:
    """Images in rows; boxes that are true, and those of each network with a score above 0.4, in columns."""
    size = 3 * len(found), 2.35 * len(images)
    figure, axes = plt.subplots(len(images), len(found), figsize=size, layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], found, strict=True):
        axis.set_title(name, fontsize=9)
    for line, image, *boxes in zip(axes, images, *found.values(), strict=True):
        for axis, rows in zip(line, boxes, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            for kind, *corners, score in rows:
                if score > 0.4:
                    left, top, right, bottom = np.array(corners) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
                    edge = {"edgecolor": f"C{int(kind) + 1}", "fill": False, "linewidth": 1}
                    axis.add_patch(plt.Rectangle((left, top), right - left, bottom - top, **edge))
    handles = [plt.Line2D([], [], color=f"C{number + 1}", label=name) for number, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=60)


if __name__ == "__main__":
    main()
