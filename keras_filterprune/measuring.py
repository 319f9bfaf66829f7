"""Milliseconds here, or instructions on an emulated core: tables for latency budgets, and proof that they hold."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_flag, check_integer, check_option, renamed_arguments
from keras_filterprune.errors import (
    ExportError,
    InfeasibleBudgetError,
    InvalidValueError,
    MeasurementError,
    MissingPackageError,
    UnsupportedModelError,
)
from keras_filterprune.export import export_tflite
from keras_filterprune.export.calibration import random_samples
from keras_filterprune.export.signature import input_ports
from keras_filterprune.files import check_destination
from keras_filterprune.latency import LatencyTable, Prices, operators_to_measure

# Time for the runs of each model, and their number.
_SECONDS, _FEWEST, _MOST, _ROUNDS = 1.0, 20, 1000, 10
_CALIBRATION = 16
# Time for the runs of each operator.
_SECONDS_EACH = 0.02


@renamed_arguments(data_type="quantize")
def measure_latency(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    *,
    quantize: str | None = None,
    threads: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> LatencyTable:
    """Time the operators of a model, and of all that can be pruned from it, on this computer.

    With `device`, the instructions that they take on that Arm core are counted instead, in an emulator.

    Args:
        model: a built functional or Sequential model of images, of fixed size. It is not modified.
        path: also write the table there, as JSON (None).
        quantize: None, "float32" or "int8", as in `export_tflite` (None).
        threads: of the LiteRT interpreter (1).
        device: a core of `tflite_bench.arm.CORES`, as in "cortex-a76" (None: this computer). It has one thread, and
            `python -m tflite_bench arm setup` prepares it.
        progress: progress bar on stderr (True).

    Returns:
        A `LatencyTable`, for `LatencyBudget(keep=0.6, table=table)`.

    Raises:
        UnsupportedModelError: nothing of the model can be measured.
        InvalidValueError: an emulated core is given several threads.
        UnknownNameError: there is no such core, or `quantize` is not known.
        MeasurementError: LiteRT is not installed, the emulator is not set up, or either failed.
        FileError: the table cannot be written.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(4, 3)])
        >>> table = kfp.measure_latency(model, progress=False)
        >>> table.predict(model)
        0.02
    """
    import tflite_bench
    from tflite_bench.arm import CORES, count_operators

    check_integer("threads", threads, "a number of threads", most=os.cpu_count())
    check_flag("progress", progress)
    if quantize is not None:
        check_option("quantize", quantize, ("float32", "int8"), ", or None")
    if device is not None:
        check_option("device", device, CORES, ", or None: this computer")
        if threads != 1:
            raise InvalidValueError(f"an emulated core has one thread. Received: device={device!r}, threads={threads}.")
    if path is not None:
        path = check_destination(path, overwrite=True)
    wanted = operators_to_measure(analyze(model), quantize or "float32")
    if not wanted:
        raise UnsupportedModelError(f"model '{model.name}' has no operator whose time could be measured.")
    with bench_errors():
        operators = [tflite_bench.Operator(**fields) for fields in wanted]
        if device is None:
            timed = tflite_bench.time_operators(operators, threads=threads, seconds=_SECONDS_EACH, progress=progress)
            content = timed.to_dict()
        else:
            content = count_operators(operators, cpu=device, progress=progress).to_dict()
    table = LatencyTable(content)
    if path is not None:
        table.save(path)
    return table


@contextlib.contextmanager
def bench_errors() -> Iterator[None]:
    """What the benchmark raises is a `MeasurementError` outside of it."""
    from tflite_bench import BenchError

    try:
        yield
    except BenchError as error:
        raise MeasurementError(f"{error}.") from error


def require_faster(dense: keras.Model, pruned: keras.Model, prices: Prices) -> str:
    """Measure a pruned model against the dense one, and say what was found.

    Args:
        dense: the original.
        pruned: what was made of it.
        prices: of the device that the budget is for. Where they were measured, models are timed, interleaved, if it is
            this computer, and their instructions are counted if it is an emulated core.

    Returns:
        A sentence for the report.

    Raises:
        InfeasibleBudgetError: the pruned model is not faster.
        MeasurementError: a file could not be measured.
    """
    from tflite_bench import BenchError
    from tflite_bench.arm import Emulator, core_of
    from tflite_bench.machine import machine_info

    core, here = core_of(prices.device), machine_info()["cpu"]
    if not prices.measured or (core is None and prices.device != here):
        return f"Predicted for {prices.device}, and not measured: this is {here}."
    if core is not None:
        try:
            Emulator(core)
        except BenchError as error:
            return f"Instructions are predicted for {prices.device} and were not counted: {error}."
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("dense.tflite", "pruned.tflite")]
        try:
            for model, file in zip((dense, pruned), files, strict=True):
                quantize, ports = (None, None) if prices.data_type == "float32" else ("int8", input_ports(model))
                samples = None if ports is None else random_samples(ports, _CALIBRATION)
                export_tflite(model, file, quantize=quantize, data=samples, verify=False)
        except MissingPackageError as error:
            return f"Latency was not measured: {error}."
        except ExportError as error:
            if keras.config.backend() == "tensorflow":
                raise
            # Layers that a notebook defines prune on every backend, but cannot follow into TensorFlow's process.
            return f"Latency was not measured: {error}"
        whole = prices.predict(dense)
        with bench_errors():
            ratio, found = _timed(files, prices.threads, whole) if core is None else _counted(files, core)
    predicted = prices.predict(pruned) / whole
    if ratio >= 1:
        raise InfeasibleBudgetError(
            f"the pruned model is not faster: measured {found}, {predicted:.2f}x was predicted. The budget is too "
            "close to the whole model, or the table too old: measure_latency(model) makes a new one."
        )
    return f"Measured {'latency' if core is None else 'instructions'}: {found}; {predicted:.2f}x was predicted."


def _timed(files: list[Path], threads: int, expected_ms: float) -> tuple[float, str]:
    """Time of the second file over that of the first, which is expected to take so long, and both in words."""
    import tflite_bench

    runs = int(min(max(_SECONDS * 1e3 / expected_ms, _FEWEST), _MOST))
    first, second = tflite_bench.benchmark(files, threads=threads, runs=runs, rounds=_ROUNDS, cold=False).models
    # What was timed has one.
    ratio = second.ratio_to_first or 0.0
    return ratio, f"{first.p50_ms:.3f} ms dense, {second.p50_ms:.3f} ms pruned ({ratio:.2f}x)"


def _counted(files: list[Path], core: str) -> tuple[float, str]:
    """As `_timed`, in instructions of an emulated core."""
    from tflite_bench.arm import count_instructions

    first, second = count_instructions(files, cpu=core).models
    ratio = second.ratio_to_first
    millions = [model.instructions / 1e6 for model in (first, second)]
    return ratio, f"{millions[0]:.2f} million instructions dense, {millions[1]:.2f} million pruned ({ratio:.2f}x)"
