"""`compress`: from a model to a file for a device, in one call that goes on where it stopped."""

from __future__ import annotations

import os
from typing import Any

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_flag, check_integer, check_option, check_path, check_share, wrong
from keras_filterprune.compression.devices import DEVICES
from keras_filterprune.compression.exam import Exam, Split, split
from keras_filterprune.compression.findings import conclude
from keras_filterprune.compression.result import FILES, Compressed
from keras_filterprune.compression.stages import Job, cut_and_file, reachable, reachable_shares, whole_file
from keras_filterprune.cost import Budget, as_budget
from keras_filterprune.errors import FileError, InvalidValueError
from keras_filterprune.export import Metadata
from keras_filterprune.export.metadata import check_metadata
from keras_filterprune.export.signature import input_ports
from keras_filterprune.export.tflite import check_integer_io
from keras_filterprune.folder import Folder
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.interrupts import interruptible
from keras_filterprune.probe.data import rank
from keras_filterprune.probe.trial import digest_of
from keras_filterprune.probe.weights import Weights
from keras_filterprune.rebuild.plan import fingerprint

_INDEX, _PARTS = "compress.json", "model, data, target, budget, metadata, integer_io or seed"


@interruptible()
def compress(
    model: keras.Model,
    data: Any,
    target: str = "arm64",
    *,
    budget: float | Budget | None = None,
    accuracy_drop: float | None = None,
    labels: Any = None,
    metadata: Metadata | None = None,
    integer_io: bool | str | None = None,
    out: str | os.PathLike[str] = "compressed",
    seed: int = 0,
    progress: bool = True,
) -> Compressed:
    """Make of a model a small, fast file for a device: prune, recover, quantize, check, measure, report.

    Filters go in the widths that the device's kernels compute whole, the original teaches what is left, and the file
    computes in int8 if that holds on samples that nothing else has looked at; else in floating-point numbers. Every
    stage is found again in the folder: a run that was killed or interrupted goes on there.

    Args:
        model: a built model with fixed input sizes. It is not modified.
        data: inputs like those met in use, some hundreds, in any form that `prune_model` takes, with labels or without.
            At most 8 192 are read; every fourth is held out to measure.
        target: a name of `kfp.compression.list_devices()`: "pixel-8", "cortex-m", "raspberry-pi-5"... ("arm64").
        budget: what may be left, as in `prune_model` (None: half of the multiply-accumulates); or
        accuracy_drop: how much accuracy may be lost, as a share of 1: of a family of sizes, the smallest that holds. It
            needs labels (None).
        labels: of the samples, an array with a row for each, or one for each output, where `data` has none (None).
        metadata: names of classes and normalization to write into the file, without a plan (None).
        integer_io: as in `export_tflite` (None: as programs for the target hand values over).
        out: the folder to write to, made where it is missing ("compressed").
        seed: seed of everything random (0).
        progress: progress bars on stderr (True).

    Returns:
        A `Compressed`: the files, the figures, and why they are as they are.

    Raises:
        UnknownNameError, InvalidValueError: there is no such target; another argument is wrong.
        CalibrationDataError: there are fewer than 32 samples, or labels are missing or do not fit.
        InfeasibleBudgetError: the budget cannot be met in widths of the target.
        FileError: the folder holds files that are not of this very work, or cannot be written.
        FilterPruneError: what `prune_model` and `export_tflite` raise.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
        >>> made = kfp.compress(model, x, "raspberry-pi-4", budget=0.6, out="for-the-pi", progress=False)
        >>> sorted(path.name for path in made.folder.iterdir())[3:]
        ['model_card.md', 'original.tflite', 'plan.json', 'report.html']
    """
    device = DEVICES[check_option("target", target, DEVICES)]
    integer_io = device.integer_io if integer_io is None else check_integer_io(integer_io)
    path, limit = check_path("out", out, of="folder"), _limit(budget, accuracy_drop)
    check_integer("seed", seed, least=0)
    check_flag("progress", progress)
    if path.exists() and not path.is_dir():
        raise FileError(f"out is the name of a folder, and {path} is a file. Give another name.")
    about = _about(metadata)
    graph = analyze(model)
    subject = graph.model
    check_metadata(about, subject, input_ports(subject))
    if limit is None:
        reachable_shares(subject, device)
    else:
        reachable(subject, limit, device)
    samples = split(data if labels is None else _labelled(data, labels), graph.view)
    exam = Exam(subject, samples, needed=limit is None)
    key = f"{_key(graph, samples)} {target} {limit!r} {accuracy_drop} {about.labels} {about.normalization}"
    folder = Folder("out", path, _INDEX, f"{key} {integer_io} {seed}", "compression", _PARTS)
    folder.check(FILES.values())
    data = samples.calibration if len(samples.calibration) > 1 else samples.calibration[0]
    job = Job(subject, device, limit, accuracy_drop, data, exam, about, integer_io, seed, progress, folder, path)
    whole_file(job)
    return conclude(job, cut_and_file(job), target)


def _limit(budget: Any, drop: Any) -> Budget | None:
    """The budget; None where accuracy decides."""
    if drop is not None:
        check_share("accuracy_drop", drop, "the share of accuracy that may be lost", least=0, below=1)
    if budget is not None and drop is not None:
        raise InvalidValueError(
            f"compress takes either budget= or accuracy_drop=. Received: budget={budget!r}, accuracy_drop={drop!r}."
        )
    return None if drop is not None else as_budget(0.5 if budget is None else budget)


def _about(metadata: Any) -> Metadata:
    if metadata is None:
        return Metadata()
    if not isinstance(metadata, Metadata) or metadata.plan is not None:
        raise wrong("metadata", metadata, "a Metadata without a plan, which compress makes, or None")
    return metadata


def _labelled(data: Any, labels: Any) -> tuple[Any, Any]:
    if isinstance(data, tuple):
        raise InvalidValueError("labels are for data of inputs alone. Received: labels=, and data that has labels.")
    found = keras.tree.flatten(labels)
    if not found or (any(rank(part) == 0 for part in found) and not rank(labels)):
        raise wrong("labels", labels, "an array with a row for each sample, one for each output, or None")
    return data, labels


def _key(graph: ChannelGraph, samples: Split) -> str:
    """What model and data are, by their digests."""
    return f"{fingerprint(graph, Weights(graph.view))} {digest_of(samples.inputs, samples.all_labels)}"
