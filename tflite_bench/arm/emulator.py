"""An emulated Arm core that runs `.tflite` models and counts instructions."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tflite_bench.arm.prepare import prepared_folder, qemu_version
from tflite_bench.checks import check_option
from tflite_bench.errors import BenchError
from tflite_bench.machine import machine_info
from tflite_bench.runtimes import litert_module

_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV82 = f"{_ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
# Part number and features of each core: XNNPACK chooses its kernels by them.
_CORES = {
    "cortex-a53": (0xD03, _ARMV8),
    "cortex-a57": (0xD07, _ARMV8),
    "cortex-a72": (0xD08, _ARMV8),
    "cortex-a76": (0xD0B, _ARMV82),
    "neoverse-n1": (0xD0C, _ARMV82),
}
CORES = tuple(_CORES)
"""Cores that can be emulated; the last two have the int8 dot product."""
_DEVICE = "emulated "


class Count(NamedTuple):
    """Instructions of one inference, the last of so many runs; the first ones prepare what later ones find."""

    instructions: int
    runs: int


def core_of(device: str) -> str | None:
    """The core that a report's `machine["cpu"]` names, None if that is no emulated one.

    Args:
        device: as in "emulated cortex-a76".
    """
    core = device.removeprefix(_DEVICE)
    return core if core != device and core in _CORES else None


class Emulator:
    """One core. Models run in a process of their own, one after the other, on one thread.

    Args:
        cpu: one of `CORES`.

    Raises:
        BenchError: there is no such core here, or `setup` has not been run.

    Example:
        >>> Emulator("cortex-a76").count([Path("model.tflite")], ["model"])
        [Count(instructions=..., runs=...)]
    """

    def __init__(self, cpu: str):
        check_option("cpu", cpu, _CORES)
        self.cpu = cpu
        self._files = prepared_folder()

    @property
    def machine(self) -> dict[str, Any]:
        """What a report says of the machine: the emulated core, and what emulates it."""
        host = machine_info()
        return {
            "cpu": f"{_DEVICE}{self.cpu}",
            "emulator": f"qemu {qemu_version()}",
            "measured": "instructions, not time",
            **{key: host[key] for key in ("system", "python", "litert")},
        }

    def count(
        self, models: Sequence[Path | bytes], names: Sequence[str], advance: Callable[[str], None] = lambda _: None
    ) -> list[Count]:
        """Count the instructions of one inference of each model, on random inputs.

        Args:
            models: files, or contents of files.
            names: what models are called in messages.
            advance: called with a model's name after each of them.

        Returns:
            One count per model.

        Raises:
            BenchError: LiteRT cannot run one of them; the message names it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._store(models, Path(folder))
            return self._counts(Path(folder), names, advance)

    def run(self, path: str | os.PathLike[str], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run a model once its counts have settled, on given inputs.

        Args:
            path: a `.tflite` file.
            inputs: one array per input, in the order, shape and type of LiteRT's `get_input_details()`.

        Returns:
            One array per output, in the order of `get_output_details()`.

        Raises:
            BenchError: LiteRT cannot run the file, or an input does not fit.
        """
        interpreter = litert_module("interpreter").Interpreter(os.fspath(path))
        details = interpreter.get_input_details()
        expected = [_described(detail["dtype"], detail["shape"]) for detail in details]
        given = [_described(values.dtype, values.shape) for values in inputs]
        if given != expected:
            raise BenchError(f"{path}: inputs are {', '.join(expected)}. Received: {', '.join(given) or 'none'}.")
        with tempfile.TemporaryDirectory() as folder:
            self._store([Path(path)], Path(folder))
            for detail, values in zip(details, inputs, strict=True):
                Path(folder, f"0.{detail['index']}.in").write_bytes(values.tobytes())
            self._counts(Path(folder), [str(path)], lambda _: None)
            return [
                np.frombuffer(Path(folder, f"0.{detail['index']}.out").read_bytes(), detail["dtype"]).reshape(
                    detail["shape"]
                )
                for detail in interpreter.get_output_details()
            ]

    def _store(self, models: Sequence[Path | bytes], folder: Path) -> None:
        for number, model in enumerate(models):
            target = folder / f"{number}.tflite"
            if isinstance(model, bytes):
                target.write_bytes(model)
            else:
                target.symlink_to(model.resolve())

    def _counts(self, folder: Path, names: Sequence[str], advance: Callable[[str], None]) -> list[Count]:
        counts = folder / "counts"
        counts.write_bytes(bytes(8))
        self._make_root(folder / "root")
        command: list[str | Path] = ["qemu-aarch64", "-cpu", self.cpu, "-L", folder / "root"]
        # A comma within a path is doubled for QEMU.
        plugin, shared = (str(path).replace(",", ",,") for path in (self._files / "counter.so", counts))
        command += ["-plugin", f"{plugin},counts={shared}"]
        command += [self._files / "driver", counts, folder, str(len(names))]
        found: list[Count] = []
        with (folder / "log").open("w+", encoding="utf-8", errors="replace") as log, _started(command, log) as process:
            for line in process.stdout or ():
                found.append(Count(*map(int, line.split())))
                advance(names[len(found) - 1])
            if process.wait() or len(found) < len(names):
                log.seek(0)
                raise self._failed(names, len(found), process.returncode, log.read())
        return found

    def _make_root(self, root: Path) -> None:
        """What the emulated program sees in place of this computer's files: libraries and the description of its core.

        LiteRT reads /proc/cpuinfo, and crashes where that is of another kind of processor.
        """
        part, features = _CORES[self.cpu]
        lines = {
            "processor": 0,
            "Features": features,
            "CPU implementer": "0x41",
            "CPU architecture": 8,
            "CPU variant": "0x0",
            "CPU part": f"{part:#x}",
            "CPU revision": 0,
        }
        files = {
            "proc/cpuinfo": "".join(f"{key}\t: {value}\n" for key, value in lines.items()),
            "sys/devices/system/cpu/possible": "0\n",
            "sys/devices/system/cpu/present": "0\n",
        }
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, encoding="utf-8")
        (root / "lib").symlink_to(self._files / "lib")

    def _failed(self, names: Sequence[str], number: int, code: int, log: str) -> BenchError:
        words = [line for line in log.splitlines() if line and not line.startswith(("INFO:", "WARNING:"))][-3:]
        if code < 0:
            words.append(f"stopped by {signal.Signals(-code).name}")
        name = names[min(number, len(names) - 1)]
        return BenchError(f"{name}: LiteRT cannot run this file on {_DEVICE}{self.cpu} ({'; '.join(words)})")


def _described(dtype: Any, shape: Sequence[int]) -> str:
    return f"{np.dtype(dtype)} {tuple(map(int, shape))}"


@contextmanager
def _started(command: Sequence[str | Path], log: Any) -> Iterator[subprocess.Popen]:
    """A process that ends with the block, also when that is interrupted."""
    with subprocess.Popen([os.fspath(c) for c in command], stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
