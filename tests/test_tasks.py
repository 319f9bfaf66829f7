"""The examples of real tasks: their scores are what the papers define, and their protocol keeps what it has done."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_filterprune as kfp

EXAMPLES = Path(kfp.__file__).parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def examples():
    """The examples can be imported; what they put in front of the path is gone afterwards."""
    before = list(sys.path)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path[:] = before


# -------------------------------------------------------------------------------------------------- segmentation


def test_mean_iou_is_that_of_keras(examples):
    segmentation = examples("segmentation")
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 12, (3, 8, 8)), generator.integers(0, 11, (3, 8, 8))
    metric = keras.metrics.MeanIoU(11)
    known = labels < segmentation.UNLABELLED
    metric.update_state(labels[known], predicted[known])
    assert segmentation.mean_iou(labels, predicted) == pytest.approx(100 * float(metric.result()))


def test_unlabelled_pixels_weigh_nothing_and_rare_classes_more(examples):
    labels = np.zeros((2, 12, 12), int)
    labels[0, :11, 0], labels[1, 0] = np.arange(11), 11
    weights = examples("segmentation").weights_of(labels)
    assert weights.shape == (12,) and weights[11] == 0 and weights[1] > weights[0] > 0


def test_labels_are_mirrored_with_their_images(examples):
    labels = np.random.default_rng(0).integers(0, 12, (16, 4, 6))
    images = np.repeat(labels[..., None], 3, axis=-1).astype("uint8")
    varied, same = examples("segmentation").varied(images, labels, np.random.default_rng(1))
    lights = varied[..., 0].max(axis=(1, 2)) / same.max(axis=(1, 2))
    np.testing.assert_allclose(varied[..., 0], same * lights[:, None, None], rtol=1e-5)
    assert 0 < sum((own != given).any() for own, given in zip(same, labels, strict=True)) < 16


# ----------------------------------------------------------------------------------------------------- detection


def test_what_is_wanted_of_cells_is_found_again(examples):
    """Boxes that are wanted, taken for the network's answer, are all detected, each once."""
    detection = examples("detection")
    truth = np.array([[0, 0.1, 0.1, 0.3, 0.4], [2, 0.5, 0.5, 0.55, 0.56], [1, 0.6, 0.1, 0.99, 0.9]], "float32")
    boxes, scores = detection.assigned(truth, 3)
    (found,) = detection.detections({"boxes": boxes[None], "scores": scores[None]})
    np.testing.assert_allclose(found[np.argsort(found[:, 0])][:, :5], truth[np.argsort(truth[:, 0])])
    assert detection.mean_average_precision([truth], [found]) == 100


def test_an_untrained_detector_gives_boxes_around_its_cells(examples):
    detection = examples("detection")
    model = detection.detector(3)
    outputs = model.predict(np.zeros((1, 240, 320, 3)), verbose=0)
    middles = (outputs["boxes"][0, :, :2] + outputs["boxes"][0, :, 2:]) / 2
    assert np.abs(middles - detection.centres()).max() < 0.2
    assert outputs["scores"].max() < 0.1


FOUND = [
    ([], 0.0),
    ([[0, 0, 0, 1, 1, 0.9]], 100.0),
    # The second of two that are right of the same box is wrong, and stands behind.
    ([[0, 0, 0, 1, 1, 0.9], [0, 0, 0, 1, 0.9, 0.8]], 100.0),
    ([[0, 0, 0, 0.4, 1, 0.9], [0, 0, 0, 1, 1, 0.8]], 50.0),
    ([[1, 0, 0, 1, 1, 0.9]], 0.0),
]


@pytest.mark.parametrize(("found", "expected"), FOUND)
def test_average_precision_of_one_box(examples, found, expected):
    truth = [np.array([[0, 0, 0, 1, 1]], "float32"), np.zeros((0, 5), "float32")]
    nothing = np.zeros((0, 6), "float32")
    found = np.array(found, "float32").reshape(-1, 6)
    assert examples("detection").mean_average_precision(truth, [found, nothing]) == pytest.approx(expected)


def test_average_precision_is_the_area_under_the_best_precision_from_there_on(examples):
    boxes = np.array([[0, n, 0, n + 1, 1] for n in range(4)], "float32")
    right, wrong = (lambda n, score: [*boxes[n], score]), (lambda score: [0, 9, 9, 10, 10, score])
    found = np.array([right(0, 0.9), wrong(0.8), right(1, 0.7), wrong(0.6), wrong(0.5), right(2, 0.4)], "float32")
    # Precision 1/1, 2/3 and 3/6 at recalls 1/4, 2/4 and 3/4.
    expected = 100 * (1 + 2 / 3 + 3 / 6) / 4
    assert examples("detection").mean_average_precision([boxes], [found]) == pytest.approx(expected)


def test_what_overlaps_is_suppressed_within_its_class(examples):
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 1, 0.4]], "float32")
    scores = np.array([[0.9, 0.0], [0.8, 0.7], [0.7, 0.0]], "float32")
    (found,) = examples("detection").detections({"boxes": boxes[None], "scores": scores[None]})
    assert [(int(row[0]), round(float(row[5]), 1)) for row in found] == [(0, 0.9), (0, 0.7), (1, 0.7)]


def test_the_loss_of_boxes_is_the_generalized_overlap(examples):
    wanted = np.array([[[0, 0, 2, 2], [0, 0, 0, 0], [0, 0, 1, 1]]], "float32")
    boxes = np.array([[[1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 1, 1]]], "float32")
    # Overlap 2 of 6, and the hull is the union; a cell without an object does not count.
    loss = keras.ops.convert_to_numpy(examples("detection").overlap_loss(wanted, boxes))
    np.testing.assert_allclose(loss, [(1 - 2 / 6) / 2], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ protocol


def stripes(count):
    """Images of upright stripes, or lying ones, and which."""
    labels = np.arange(count) % 2
    image = np.where(np.arange(8) % 2, 1.0, -1.0)[None, :, None]
    noise = np.random.default_rng(0).normal(size=(count, 8, 8, 1))
    turned = np.where(labels[:, None, None, None], image[None], image.transpose(1, 0, 2)[None])
    return (turned + 0.5 * noise).astype("float32"), labels


def network():
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Conv2D(8, 3, activation="relu")]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(2)])


def test_a_task_is_done_once(examples, tmp_path):
    protocol = examples("protocol")
    (x, y), made = stripes(64), []

    def halved(model):
        made.append(model)
        return kfp.prune_model(model, "l2", 0.5, progress=False)

    task = protocol.Task(
        name="stripes",
        network=network,
        batch=lambda numbers, generator: (x[numbers], y[numbers]),
        examples=64,
        size=16,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        samples=x,
        inputs=x,
        score=lambda logits: float(100 * np.mean(logits.argmax(-1) == y)),
        metric="accuracy",
        ways={"dense": None, "half": halved},
    )
    options = argparse.Namespace(out=tmp_path, epochs=6, rate=1e-2, tune_epochs=2, tune_rate=1e-3)
    networks = protocol.Protocol(task, options).run()
    rows = {row["network"]: row for row in json.loads((tmp_path / "stripes.json").read_text())["rows"]}
    assert rows["half"]["macs"] <= 0.5 * rows["dense"]["macs"]
    assert rows["half"]["params"] == networks["half"].count_params() < rows["dense"]["params"]
    assert rows["dense"]["trained"] > 90 and abs(rows["half"]["int8"] - rows["half"]["trained"]) < 10
    table = (tmp_path / "stripes.md").read_text()
    assert "| accuracy before | trained | int8 |" in table and "\n| half | " in table
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.keras")}
    protocol.Protocol(task, options).run()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.keras")} == kept and len(made) == 1
