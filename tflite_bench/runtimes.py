"""LiteRT's two ways to run a file, behind one interface."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tflite_bench.errors import BenchError

Input = tuple[str, np.dtype, tuple[int, ...]]


def litert_module(name: str) -> ModuleType:
    """Import a module of ai-edge-litert, which is there only with the extra `tflite`.

    Args:
        name: the module's name inside `ai_edge_litert`.

    Returns:
        The module.

    Raises:
        BenchError: ai-edge-litert is not installed, or too old to have this module.
    """
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ImportError as error:
        raise BenchError(f"ai-edge-litert cannot be imported ({error}): pip install -U ai-edge-litert") from error


class InterpreterRuntime:
    """LiteRT's `Interpreter` with XNNPACK.

    Args:
        source: path of a `.tflite` file, or its content.
        threads: threads it computes with.

    Raises:
        ValueError: LiteRT cannot load the file.
        RuntimeError: the same, found later.
    """

    def __init__(self, source: str | bytes, threads: int):
        keyword = "model_content" if isinstance(source, bytes) else "model_path"
        self.interpreter = litert_module("interpreter").Interpreter(**{keyword: source}, num_threads=threads)
        for detail in self.interpreter.get_input_details():
            if (detail["shape_signature"] < 0).any():
                self.interpreter.resize_tensor_input(detail["index"], np.abs(detail["shape_signature"]))
        self.interpreter.allocate_tensors()
        self.run: Callable[[], None] = self.interpreter.invoke

    def inputs(self) -> list[Input]:
        """Name, dtype and shape of each input; open dimensions are 1."""
        details = self.interpreter.get_input_details()
        return [(detail["name"], np.dtype(detail["dtype"]), tuple(map(int, detail["shape"]))) for detail in details]

    def fill(self, index: int, values: np.ndarray) -> None:
        """Set the input number `index`."""
        self.interpreter.set_tensor(self.interpreter.get_input_details()[index]["index"], values)


class CompiledRuntime:
    """LiteRT's `CompiledModel` on the CPU, which is XNNPACK too.

    Args:
        source: path of a `.tflite` file, or its content.
        threads: threads it computes with.

    Raises:
        ValueError: LiteRT cannot load the file.
        RuntimeError: the same, found later.
    """

    def __init__(self, source: str | bytes, threads: int):
        options, compiled = litert_module("options"), litert_module("compiled_model").CompiledModel
        settings = options.Options(options.HardwareAccelerator.CPU, cpu_options=options.CpuOptions(num_threads=threads))
        load = compiled.from_buffer if isinstance(source, bytes) else compiled.from_file
        self._model = load(source, environment=litert_environment(), options=settings)
        self._inputs = self._model.create_input_buffers(0)
        self.run: Callable[[], None] = functools.partial(
            self._model.run_by_index, 0, self._inputs, self._model.create_output_buffers(0)
        )

    def inputs(self) -> list[Input]:
        """Name, dtype and shape of each input; open dimensions are 1."""
        details = self._model.get_input_tensor_details(self._model.get_signature_by_index(0)["key"])
        return [
            (name, np.dtype(details[name]["dtype"]), tuple(details[name]["shape"]))
            for name in self._model.get_signature_by_index(0)["inputs"]
        ]

    def fill(self, index: int, values: np.ndarray) -> None:
        """Set the input number `index`."""
        self._inputs[index].write(values)


Runtime = InterpreterRuntime | CompiledRuntime
RUNTIMES: dict[str, type[Runtime]] = {"interpreter": InterpreterRuntime, "compiled": CompiledRuntime}


def load_runtime(runtime: str, source: str | bytes, threads: int) -> Runtime:
    """Load a file and make it ready to run."""
    return RUNTIMES[runtime](source, threads)


@functools.cache
def litert_environment() -> Any:
    """What all compiled models of a process share."""
    return litert_module("environment").Environment.create()
