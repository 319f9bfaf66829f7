"""Milliseconds on this computer: the table that latency budgets read, and the proof that a pruned model is faster."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import keras

import tflite_bench
from keras_filterprune.analysis import analyze
from keras_filterprune.cost import LatencyTable, operators_to_measure
from keras_filterprune.cost.latency import PaddedMacs
from keras_filterprune.errors import ExportError, InfeasibleBudgetError
from keras_filterprune.export import export_tflite
from keras_filterprune.export.calibration import random_samples
from keras_filterprune.export.signature import input_ports
from tflite_bench.report import machine_info

# Time for the runs of each model, and their number.
_SECONDS, _FEWEST, _MOST, _ROUNDS = 1.0, 20, 1000, 10
_CALIBRATION = 16
# Time for the runs of each operator.
_SECONDS_EACH = 0.02


def measure_latency(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    *,
    data_type: str = "float32",
    threads: int = 1,
    progress: bool = True,
) -> LatencyTable:
    """Time the operators of a model, and of all that can be pruned from it, on this computer.

    Args:
        model: a built functional or Sequential model of images, of fixed size. It is not modified.
        path: also write the table there, as JSON (None).
        data_type: "float32" or "int8" ("float32").
        threads: of the LiteRT interpreter (1).
        progress: progress bar on stderr (True).

    Returns:
        A `LatencyTable`, for `LatencyBudget(keep=0.6, table=table)`.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(4, 3)])
        >>> table = kfp.measure_latency(model, progress=False)
        >>> table.predict(model)
        0.02
    """
    wanted = operators_to_measure(analyze(model), data_type)
    if not wanted:
        raise InfeasibleBudgetError(f"model '{model.name}' has no operator whose time could be measured.")
    operators = [tflite_bench.Operator(**fields) for fields in wanted]
    timed = tflite_bench.time_operators(operators, threads=threads, seconds=_SECONDS_EACH, progress=progress)
    table = LatencyTable(timed.to_dict())
    if path is not None:
        table.save(path)
    return table


def require_faster(dense: keras.Model, pruned: keras.Model, table: LatencyTable | PaddedMacs) -> str:
    """Measure a pruned model against the dense one, interleaved, and say what was found.

    Args:
        dense: the original.
        pruned: what was made of it.
        table: of the device that the budget is for. Models are measured on this computer if it is that device.

    Returns:
        A sentence for the report.

    Raises:
        InfeasibleBudgetError: the pruned model is not faster.
    """
    here = machine_info()["cpu"]
    if table.device != here:
        return f"Latency is predicted for {table.device} and was not measured: this is {here}."
    try:
        first, second = _timed(dense, pruned, table)
    except ExportError as error:
        if keras.config.backend() == "tensorflow":
            raise
        # Layers that a notebook defines prune on every backend, but cannot follow into TensorFlow's process.
        return f"Latency was not measured: {error}"
    found = f"{first.p50_ms:.3f} ms dense, {second.p50_ms:.3f} ms pruned ({second.ratio_to_first:.2f}x)"
    predicted = table.predict(pruned) / table.predict(dense)
    if second.ratio_to_first >= 1:
        raise InfeasibleBudgetError(
            f"the pruned model is not faster: measured {found}, {predicted:.2f}x was predicted. The budget is too "
            "close to the whole model, or the table too old: measure_latency(model) makes a new one."
        )
    return f"Measured latency: {found}; {predicted:.2f}x was predicted."


def _timed(
    dense: keras.Model, pruned: keras.Model, table: LatencyTable
) -> tuple[tflite_bench.ModelTiming, tflite_bench.ModelTiming]:
    """Both models as files of the table's data type, timed against each other."""
    runs = int(min(max(_SECONDS * 1e3 / table.predict(dense), _FEWEST), _MOST))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("dense.tflite", "pruned.tflite")]
        for model, file in zip((dense, pruned), files, strict=True):
            quantize, ports = (None, None) if table.data_type == "float32" else ("int8", input_ports(model))
            samples = None if ports is None else random_samples(ports, _CALIBRATION)
            export_tflite(model, file, quantize=quantize, calibration=samples, verify=False)
        return tflite_bench.benchmark(files, threads=table.threads, runs=runs, rounds=_ROUNDS).models
