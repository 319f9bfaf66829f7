"""The official `benchmark_model`, copied to a phone and run there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tflite_bench.android.adb import Phone
from tflite_bench.android.output import PhoneBlock, one_line, read_result_file, read_text
from tflite_bench.errors import BenchError

_ELF_MACHINES = {3: "x86", 40: "32-bit Arm", 62: "x86-64", 183: "arm64"}
# benchmark_model itself stops after 150 s of warm-up and 150 s of runs.
_RUN_S = 600


def check_program(binary: Path) -> None:
    """Make sure that a file is a program for a 64-bit Arm phone.

    Args:
        binary: the file.

    Raises:
        BenchError: it is missing, not a program, or built for another processor.
    """
    expected = "expected benchmark_model for Android arm64 (binary=, --binary)"
    if not binary.is_file():
        raise BenchError(f"{binary}: no such file, {expected}")
    with binary.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or not header.startswith(b"\x7fELF"):
        raise BenchError(f"{binary}: not a program for Android, {expected}")
    machine = int.from_bytes(header[18:20], "little")
    built = _ELF_MACHINES.get(machine, f"processor type {machine}")
    if built != "arm64":
        raise BenchError(f"{binary} is built for {built}, {expected}")


class PhoneTool:
    """`benchmark_model` and the models, in the phone's folder.

    Args:
        phone: the phone; its folder is made here.
        binary: the program on this computer.
        paths: the models on this computer.
        threads: threads of the interpreter.
        warmup: smallest number of untimed runs in each process.
        taskset: hexadecimal mask of the cores, or None.

    Attributes:
        name: which of the two programs of that name it is.
        ignored: flags that the program does not know.

    Raises:
        BenchError: the phone is full or gone, or the program does not run on it.
    """

    def __init__(
        self, phone: Phone, binary: Path, paths: Sequence[Path], threads: int, warmup: int, taskset: str | None
    ):
        self._phone, self._paths = phone, paths
        phone.make_folder()
        program = phone.push(binary, "benchmark_model")
        phone.shell(f"chmod 755 {program}")
        self._models = [phone.push(path, f"{index}.tflite") for index, path in enumerate(paths)]
        done = phone.shell(f"{program} --help")
        usage = done.stdout + done.stderr
        if "--graph=" not in usage:
            raise BenchError(
                f"{binary} does not run on the phone (exit code {done.returncode}: {one_line(usage)}); "
                "expected benchmark_model for Android arm64"
            )
        self.name = f"{'LiteRT' if '--use_npu=' in usage else 'TensorFlow Lite'} benchmark_model"
        self.ignored: set[str] = set()
        self._writes_file = "--result_file_path=" in usage
        self._calls = 0
        pinned = f"taskset {taskset} " if taskset else ""
        self._command = f"{pinned}{program} --num_threads={threads} --warmup_runs={warmup} --min_secs=0"
        if "--use_xnnpack=" in usage:
            self._command += " --use_xnnpack=true"

    def time(self, index: int, runs: int) -> PhoneBlock:
        """Time one model in a process of its own.

        Args:
            index: its place in the list of models.
            runs: number of timed runs.

        Returns:
            The times.

        Raises:
            BenchError: the program fails with this model, reports something unknown, or the phone is gone.
        """
        path = self._paths[index]
        self._calls += 1
        # A new name for each process: one that fails silently must not pass on the figures of the one before.
        result = f"{self._phone.folder}/{self._calls}.pb"
        command = f"{self._command} --num_runs={runs} --graph={self._models[index]}"
        done = self._phone.shell(f"{command} --result_file_path={result}" if self._writes_file else command, _RUN_S)
        text = done.stdout + done.stderr
        if done.returncode != 0:
            raise BenchError(
                f"{path}: benchmark_model failed on the phone (exit code {done.returncode}): "
                f"{one_line(done.stderr or done.stdout)}"
            )
        self.ignored.update(re.findall(r"Unconsumed cmdline flags: (.*)", text))
        try:
            return self._read_file(result, text) if self._writes_file else read_text(done.stdout)
        except BenchError as error:
            self._phone.check_connection(text)
            raise BenchError(f"{path}: {error}") from error

    def _read_file(self, result: str, text: str) -> PhoneBlock:
        with tempfile.TemporaryDirectory(prefix="tflite_bench_") as folder:
            target = Path(folder, "result.pb")
            if not self._phone.pull(result, target):
                raise BenchError(f"benchmark_model wrote no result file: {one_line(text)}")
            return read_result_file(target.read_bytes())
