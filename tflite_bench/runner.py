"""One loaded `.tflite` file that can be timed."""

import importlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


class BenchError(ValueError):
    """A file cannot be benchmarked or a setting makes no sense."""


def litert_module(name: str) -> ModuleType:
    """Import a module of ai-edge-litert, which is there only with the extra `tflite`.

    Args:
        name: The module's name inside `ai_edge_litert`.

    Returns:
        The module.

    Raises:
        BenchError: ai-edge-litert is not installed.
    """
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ImportError as error:
        raise BenchError(f"ai-edge-litert cannot be imported ({error}): pip install ai-edge-litert") from error


@dataclass(frozen=True)
class Block:
    """Consecutive runs of one model.

    Args:
        run_ms: Wall time of each run in ms.
        wall_s: Wall time of the whole block in seconds.
        cpu_s: CPU time that this process spent in it, over all threads, in seconds.
    """

    run_ms: np.ndarray
    wall_s: float
    cpu_s: float


class Runner:
    """A LiteRT interpreter (XNNPACK on) with its inputs filled in.

    Args:
        path: A `.tflite` file.
        threads: Threads of the interpreter.
        seed: Seed of the random inputs.
        content: Content of a `.tflite` file that is not on disk; `path` then is only its name in messages.

    Raises:
        BenchError: The file is missing, damaged or needs operators that LiteRT does not have; or
            ai-edge-litert is not installed.

    Example:
        >>> float(Runner("model.tflite").time(10).run_ms.min())
        0.54
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1, seed: int = 0, *, content: bytes | None = None):
        interpreter_class = litert_module("interpreter").Interpreter
        self.path = Path(path)
        if content is not None:
            source, self.bytes = {"model_content": content}, len(content)
        elif self.path.is_file():
            source, self.bytes = {"model_path": os.fspath(self.path)}, self.path.stat().st_size
        else:
            raise BenchError(f"{self.path}: no such file, expected a .tflite file")
        generator = np.random.default_rng(seed)
        start = time.perf_counter()
        try:
            self._interpreter = interpreter_class(**source, num_threads=threads)
            self._fix_dynamic_shapes()
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise BenchError(f"{self.path}: LiteRT cannot load this file ({message})") from error
        self.load_ms = (time.perf_counter() - start) * 1e3
        for detail in self._interpreter.get_input_details():
            values = _random_values(self.path, detail, generator)
            self._interpreter.set_tensor(detail["index"], values)

    def warm_up(self, runs: int) -> None:
        """Run without timing.

        Args:
            runs: Number of runs.

        Raises:
            BenchError: The model fails while it runs.
        """
        try:
            for _ in range(runs):
                self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise BenchError(f"{self.path}: LiteRT cannot run this file on random inputs ({message})") from error

    def time(self, runs: int) -> Block:
        """Time consecutive runs.

        Args:
            runs: Number of runs.

        Returns:
            The times.
        """
        invoke, clock = self._interpreter.invoke, time.perf_counter_ns
        stamps = np.empty(runs + 1, np.int64)
        cpu = time.process_time()
        stamps[0] = clock()
        for index in range(1, runs + 1):
            invoke()
            stamps[index] = clock()
        cpu = time.process_time() - cpu
        return Block(np.diff(stamps) / 1e6, wall_s=float(stamps[-1] - stamps[0]) / 1e9, cpu_s=cpu)

    def _fix_dynamic_shapes(self) -> None:
        for detail in self._interpreter.get_input_details():
            if (detail["shape_signature"] < 0).any():
                fixed = np.where(detail["shape_signature"] < 0, 1, detail["shape_signature"])
                self._interpreter.resize_tensor_input(detail["index"], fixed)


def _random_values(path: Path, detail: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    dtype, shape = np.dtype(detail["dtype"]), detail["shape"]
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        # Wide integers are mostly indices; 0 and 1 are valid in any table of two rows.
        return generator.integers(0, 2, shape).astype(dtype)
    raise BenchError(f"{path}: input {detail['name']!r} has dtype {dtype}, expected a number type")
