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
    sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "audio")]
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


def by_thresholds(truth, found):
    """Mean average precision, the slow way: precision and recall anew for the detections above every threshold."""
    averages = []
    for kind in sorted({int(row[0]) for boxes in truth for row in boxes}):
        points = []
        for least in sorted({float(row[5]) for boxes in found for row in boxes if row[0] == kind}, reverse=True):
            hits = shown = 0
            for real, guesses in zip(truth, found, strict=True):
                open_boxes = [tuple(row[1:]) for row in real if row[0] == kind]
                boxes = list(open_boxes)
                for guess in sorted((row for row in guesses if row[0] == kind), key=lambda row: -row[5]):
                    if guess[5] < least:
                        continue
                    shown += 1
                    nearest = max(boxes, key=lambda box: shared(box, guess[1:5]), default=None)
                    if nearest in open_boxes and shared(nearest, guess[1:5]) >= 0.5:
                        open_boxes.remove(nearest)
                        hits += 1
            points.append((hits / sum((boxes[:, 0] == kind).sum() for boxes in truth), hits / shown))
        recalls = [0.0, *(recall for recall, _ in points)]
        best = [max(p for r, p in points if r >= recall) for recall in recalls[1:]]
        averages.append(sum((new - old) * p for old, new, p in zip(recalls, recalls[1:], best, strict=False)))
    return 100 * np.mean(averages)


def shared(one, other):
    width, height = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    first, second = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (first + second - width * height)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_random_boxes(examples, seed):
    generator = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(6):
        count = generator.integers(0, 6)
        corners = generator.uniform(0, 0.7, (count, 2))
        sizes = generator.uniform(0.1, 0.3, (count, 2))
        boxes = np.hstack([generator.integers(0, 3, (count, 1)), corners, corners + sizes])
        near = np.repeat(boxes, 2, axis=0)
        near[:, 1:] += generator.normal(0, 0.02, (len(near), 4))
        near[:, 0] = np.where(generator.random(len(near)) < 0.2, generator.integers(0, 3, len(near)), near[:, 0])
        truth.append(boxes)
        found.append(np.hstack([near, generator.random((len(near), 1))]))
    given = examples("detection").mean_average_precision(truth, found)
    assert 20 < given < 100 and given == pytest.approx(by_thresholds(truth, found))


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


# ---------------------------------------------------------------------------------------------- keyword spotting


def test_features_of_a_clip_do_not_depend_on_the_loudest_of_all(examples):
    log_mel = examples("spoken_digit")._log_mel
    quiet, loud = (np.random.default_rng(0).normal(size=4000) * level for level in (300, 9000))
    np.testing.assert_allclose(log_mel([quiet, loud])[0], log_mel([quiet])[0], atol=1e-3)


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


def striped(protocol, made=None, stop_at=None):
    """A task; the networks that it prunes are noted in `made`. Batch `stop_at` is the end of a run."""
    x, y = stripes(64)
    batches = []

    def halved(model):
        made.append(model)
        return kfp.prune_model(model, "l2", 0.5, progress=False)

    def batch(numbers, generator):
        batches.append(numbers)
        if len(batches) == stop_at:
            raise RuntimeError("the power went")
        noise = generator.normal(size=x[numbers].shape).astype("float32")
        return x[numbers] + 0.2 * noise, y[numbers]

    return protocol.Task(
        name="stripes",
        network=network,
        batch=batch,
        examples=64,
        size=16,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        samples=x,
        inputs=x,
        score=lambda logits: float(100 * np.mean(logits.argmax(-1) == y)),
        metric="accuracy",
        ways={"dense": None} if made is None else {"dense": None, "half": halved},
    )


def settings(out):
    return argparse.Namespace(out=out, epochs=6, rate=1e-2, tune_epochs=2, tune_rate=1e-3)


@pytest.fixture(scope="module")
def whole(examples, tmp_path_factory):
    """The weights that a run in one piece ends with."""
    protocol, options = examples("protocol"), settings(tmp_path_factory.mktemp("whole"))
    return protocol.Protocol(striped(protocol), options).run()["dense"].get_weights()


# Keras looks at two batches before the first epoch, and an epoch has four.
@pytest.mark.parametrize("batch", [3, 21], ids=["first epoch", "fifth"])
def test_a_run_that_was_interrupted_ends_where_it_would_have_ended(examples, whole, tmp_path, batch):
    """Weights to begin with, order, variations and rate are those of a run in one piece."""
    protocol, parts = examples("protocol"), settings(tmp_path)
    with pytest.raises(Exception, match="the power went"):
        protocol.Protocol(striped(protocol, stop_at=batch), parts).run()
    assert not list(parts.out.glob("*.keras"))
    end = protocol.Protocol(striped(protocol), parts).run()["dense"]
    for expected, found in zip(whole, end.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_task_is_done_once(examples, tmp_path):
    protocol, made = examples("protocol"), []
    task, options = striped(protocol, made), settings(tmp_path)
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


# ----------------------------------------------------------------------------------------------------------- zoo


def test_the_zoo_makes_every_size_once(examples, tmp_path, monkeypatch):
    zoo, (x, y) = examples("pruned_zoo"), stripes(64)
    model = network()
    model.save(tmp_path / "dense.keras")
    task = zoo.Task((x, y), x, lambda logits: float(100 * np.mean(logits.argmax(-1) == y)), "accuracy")
    monkeypatch.setattr(zoo, "TASKS", {"stripes": lambda data_dir: task})
    monkeypatch.setattr(zoo, "BUDGETS", (1.0, 0.6))
    words = [f"stripes={tmp_path / 'dense.keras'}", "--out", str(tmp_path / "zoo"), "--target", "cortex-m"]
    monkeypatch.setattr(sys, "argv", ["pruned_zoo.py", *words, "--untimed"])
    zoo.main()
    assert (tmp_path / "zoo" / "pruned_zoo.md").read_text().count(" |  |\n") == 2
    monkeypatch.setattr(sys, "argv", ["pruned_zoo.py", *words])
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tflite")}
    zoo.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tflite")} == kept
    whole, small = json.loads((tmp_path / "zoo" / "pruned_zoo.json").read_text())["rows"]
    assert whole["keep"] == 1 and small["macs"] <= 0.6 * whole["macs"]
    outputs = keras.models.load_model(tmp_path / "zoo" / f"{model.name}-0.6" / "model.keras").predict(x, verbose=0)
    assert small["float32_score"] == task.score(outputs)
    table = (tmp_path / "zoo" / "pruned_zoo.md").read_text()
    assert f"| {model.name}, accuracy | 1.00 |" in table and f"{small['float32_ms']:.2g} / {small['ms']:.2g} |" in table
    zoo.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tflite")} == kept
    assert (tmp_path / "zoo" / "pruned_zoo.md").read_text() == table
