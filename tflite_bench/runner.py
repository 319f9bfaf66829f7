"""One loaded `.tflite` file that can be timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tflite_bench.checks import check_file, check_option
from tflite_bench.errors import BenchError
from tflite_bench.pinning import task_ids
from tflite_bench.quiet import quiet_litert
from tflite_bench.runtimes import RUNTIMES, Input, load_runtime


@dataclass(frozen=True)
class Block:
    """Consecutive runs of one model.

    Attributes:
        run_ms: wall time of each run in ms.
        wall_s: wall time of the whole block in seconds.
        cpu_s: CPU time that this process spent in it, over all threads, in seconds.
    """

    run_ms: np.ndarray
    wall_s: float
    cpu_s: float


class Runner:
    """A file loaded by LiteRT (XNNPACK on) with its inputs filled in, run once.

    Args:
        path: a `.tflite` file.
        threads: threads LiteRT computes with (1).
        seed: seed of the random inputs (0).
        runtime: "interpreter" (the default) or "compiled" (LiteRT's `CompiledModel` on the CPU).
        content: content of a `.tflite` file that is not on disk; `path` then is only its name in messages.

    Raises:
        BenchError: the file is missing, damaged, needs operators that LiteRT does not have or inputs that are no
            numbers, or fails on random inputs; there is no such runtime; or ai-edge-litert is not installed.

    Example:
        >>> float(Runner("model.tflite").time(10).run_ms.min())
        0.54
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        seed: int = 0,
        *,
        runtime: str = "interpreter",
        content: bytes | None = None,
    ):
        check_option("runtime", runtime, RUNTIMES)
        self.path = Path(path) if content is not None else check_file(path)
        self.bytes = self.path.stat().st_size if content is None else len(content)
        source = os.fspath(self.path) if content is None else content
        before = task_ids()
        with quiet_litert():
            with self._errors("load this file"):
                if runtime != "interpreter":
                    # It says what is wrong with a file; a CompiledModel of a damaged one ends the process.
                    random_inputs(self.path, load_runtime("interpreter", source, 1).inputs(), seed)
                self.runtime = load_runtime(runtime, source, threads)
            for index, values in enumerate(random_inputs(self.path, self.runtime.inputs(), seed)):
                self.runtime.fill(index, values)
            # Also what is prepared, or starts its threads, only now.
            self.warm_up(1)
        self.worker_ids = sorted(task_ids() - before)

    def warm_up(self, runs: int) -> None:
        """Run without timing.

        Args:
            runs: number of runs.

        Raises:
            BenchError: the model fails while it runs.
        """
        with self._errors("run this file on random inputs"):
            for _ in range(runs):
                self.runtime.run()

    def time(self, runs: int) -> Block:
        """Time consecutive runs.

        Args:
            runs: number of runs.

        Returns:
            The times.
        """
        run, clock = self.runtime.run, time.perf_counter_ns
        stamps = np.empty(runs + 1, np.int64)
        cpu = time.process_time()
        stamps[0] = clock()
        for index in range(1, runs + 1):
            run()
            stamps[index] = clock()
        cpu = time.process_time() - cpu
        return Block(np.diff(stamps) / 1e6, wall_s=float(stamps[-1] - stamps[0]) / 1e9, cpu_s=cpu)

    @contextmanager
    def _errors(self, task: str) -> Iterator[None]:
        try:
            yield
        except BenchError:
            raise
        except (ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise BenchError(f"{self.path}: LiteRT cannot {task} ({message})") from error


def random_inputs(path: Path, inputs: Sequence[Input], seed: int = 0) -> list[np.ndarray]:
    """Draw values for the inputs of a file.

    Args:
        path: the file, for messages.
        inputs: name, dtype and shape of each input.
        seed: seed of the values.

    Returns:
        Normal values for floats, the whole range for bytes, 0 or 1 for wider integers and booleans.

    Raises:
        BenchError: an input takes no numbers.
    """
    generator = np.random.default_rng(seed)
    return [_random_values(path, *described, generator) for described in inputs]


def _random_values(
    path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        # Wide integers are mostly indices; 0 and 1 are valid in any table of two rows.
        return generator.integers(0, 2, shape).astype(dtype)
    raise BenchError(f"{path}: input {name!r} has dtype {dtype}, expected a number type")
