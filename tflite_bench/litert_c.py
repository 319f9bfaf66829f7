"""LiteRT's C interface, as far as a profile needs it: the Python interface has no profiler.

Only for processes that may crash: another version of LiteRT may lay out memory otherwise.
"""

from __future__ import annotations

import ctypes
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from tflite_bench.errors import BenchError
from tflite_bench.runner import random_inputs
from tflite_bench.runtimes import litert_module

_CPU = 1
_WRITE = 1
# LiteRT's numbers of element types.
_DTYPES = {
    1: "float32",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float16",
    11: "float64",
    16: "uint32",
}
_Handle = ctypes.c_void_p
_Index = ctypes.c_size_t


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint32, 7),
        ("has_strides", ctypes.c_uint32, 1),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


class _TensorType(ctypes.Structure):
    _fields_ = (("element", ctypes.c_int32), ("layout", _Layout))


class Library:
    """The functions of LiteRT's library."""

    def __init__(self):
        folder = Path(inspect.getfile(litert_module("interpreter"))).parent
        found = sorted(folder.glob("libLiteRt.*"))
        if not found:
            raise BenchError(f"no libLiteRt in {folder}")
        self._library = ctypes.CDLL(str(found[0]))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function, named without its prefix "LiteRt"; anything but success is a `BenchError`."""
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise BenchError(f"LiteRt{name} returned status {status}")

    def get(self, name: str, *arguments: Any, kind: type = _Handle) -> Any:
        """Call a function for what it writes to its last argument."""
        value = kind()
        self.call(name, *arguments, ctypes.byref(value))
        return value


class Model:
    """A compiled model with its buffers; it lives as long as the process.

    Args:
        library: LiteRT.
        path: a `.tflite` file.
        options: texts (TOML) for parts of LiteRT, by the part's name.
    """

    def __init__(self, library: Library, path: str, options: dict[bytes, bytes]):
        self.library = library
        self._environment = library.get("CreateEnvironment", 0, None)
        self._file = library.get("CreateModelFromFile", self._environment, path.encode())
        chosen = library.get("CreateOptions")
        library.call("SetOptionsHardwareAccelerators", chosen, _CPU)
        # LiteRT reads them later, and would call a function to free them.
        self._texts = [ctypes.create_string_buffer(text) for text in options.values()]
        self._keep = ctypes.CFUNCTYPE(None, _Handle)(lambda text: None)
        for name, text in zip(options, self._texts, strict=True):
            library.call("AddOpaqueOptions", chosen, library.get("CreateOpaqueOptions", name, text, self._keep))
        self.compiled = library.get("CreateCompiledModel", self._environment, self._file, chosen)
        self._signature = library.get("GetModelSignature", self._file, _Index(0))
        inputs, outputs = self._input_buffers(path), self._output_buffers()
        self._run = (self.compiled, _Index(0), _Index(len(inputs)), inputs, _Index(len(outputs)), outputs)

    def run(self) -> None:
        """Compute the outputs once."""
        self.library.call("RunCompiledModel", *self._run)

    def _input_buffers(self, path: str) -> ctypes.Array:
        get, call, buffers, described = self.library.get, self.library.call, [], []
        count = get("GetNumSignatureInputs", self._signature, kind=_Index).value
        for index in map(_Index, range(count)):
            tensor = get("GetSignatureInputTensorByIndex", self._signature, index)
            kind = get("GetRankedTensorType", tensor, kind=_TensorType)
            shape = kind.layout.dimensions[: kind.layout.rank]
            if any(length < 0 for length in shape):
                shape = [abs(length) for length in shape]
                fixed = (ctypes.c_int * len(shape))(*shape)
                call("CompiledModelResizeInputTensor", self.compiled, _Index(0), index, fixed, _Index(len(shape)))
                kind.layout.dimensions[: len(shape)] = shape
            described.append((f"input {index.value}", np.dtype(_DTYPES[kind.element]), tuple(shape)))
            buffers.append(self._buffer("Input", index, kind))
        for buffer, values in zip(buffers, random_inputs(Path(path), described), strict=True):
            memory = _Handle()
            call("LockTensorBuffer", buffer, ctypes.byref(memory), _WRITE)
            ctypes.memmove(memory, values.ctypes.data, values.nbytes)
            call("UnlockTensorBuffer", buffer)
        return (_Handle * count)(*(buffer.value for buffer in buffers))

    def _output_buffers(self) -> ctypes.Array:
        get, buffers = self.library.get, []
        count = get("GetNumSignatureOutputs", self._signature, kind=_Index).value
        layouts = (_Layout * count)()
        # The true argument makes LiteRT work out the shapes that follow from the inputs'.
        self.library.call(
            "GetCompiledModelOutputTensorLayouts", self.compiled, _Index(0), _Index(count), layouts, ctypes.c_bool(True)
        )
        for index, layout in zip(map(_Index, range(count)), layouts, strict=True):
            tensor = get("GetSignatureOutputTensorByIndex", self._signature, index)
            kind = get("GetRankedTensorType", tensor, kind=_TensorType)
            kind.layout = layout
            buffers.append(self._buffer("Output", index, kind))
        return (_Handle * count)(*(buffer.value for buffer in buffers))

    def _buffer(self, side: str, index: _Index, kind: _TensorType) -> _Handle:
        get = self.library.get
        needs = get(f"GetCompiledModel{side}BufferRequirements", self.compiled, _Index(0), index)
        return get("CreateManagedTensorBufferFromRequirements", self._environment, ctypes.byref(kind), needs)
