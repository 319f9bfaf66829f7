"""Instructions of files and of single operators on an emulated core."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from tflite_bench.arm.emulator import Emulator
from tflite_bench.arm.report import (
    InstructionCount,
    InstructionReport,
    OperatorInstructionReport,
    OperatorInstructions,
)
from tflite_bench.checks import check_paths
from tflite_bench.operators.model import operator_model
from tflite_bench.operators.operator import Operator
from tflite_bench.operators.timing import CALL_FLOOR, distinct_operators
from tflite_bench.progress import progress_bar

# Operators in one process: each is a file of its own on disk while it runs.
_CHUNK = 64


def count_instructions(
    paths: Sequence[str | os.PathLike[str]], *, cpu: str = "cortex-a76", progress: bool = False
) -> InstructionReport:
    """Count the instructions that an Arm core executes in one inference of `.tflite` files.

    The core is emulated by QEMU, with the kernels that LiteRT chooses for it. Counts hardly vary (below 0.1 %) and show
    which of two models is more work there; they are not times: caches, memory and the width of the core play no part.

    Args:
        paths: the files; ratios are relative to the first one.
        cpu: "cortex-a53", "cortex-a57", "cortex-a72" (no int8 dot product), "cortex-a76" (with it; the default) or
            "neoverse-n1" (with it).
        progress: show a progress bar on stderr (False).

    Returns:
        The counts, one entry per path in the given order.

    Raises:
        BenchError: a file is missing or damaged, the list is empty, there is no such core, or the emulator is not set
            up: `python -m tflite_bench arm setup`.

    Example:
        >>> report = count_instructions(["dense.tflite", "pruned.tflite"], cpu="cortex-a72")
        >>> report.models[1].ratio_to_first
        0.55
    """
    files = check_paths(paths)
    emulator = Emulator(cpu)
    with progress_bar(len(files), progress) as advance:
        counts = emulator.count(files, list(map(str, files)), advance)
    models = [
        InstructionCount(
            path=os.fspath(path),
            bytes=path.stat().st_size,
            instructions=count.instructions,
            runs=count.runs,
            ratio_to_first=count.instructions / counts[0].instructions,
        )
        for path, count in zip(files, counts, strict=True)
    ]
    return InstructionReport(emulator.machine, tuple(models))


def count_operators(
    operators: Iterable[Operator], *, cpu: str = "cortex-a76", progress: bool = False
) -> OperatorInstructionReport:
    """Count the instructions of single operators on an emulated Arm core; `time_operators` times them here.

    Args:
        operators: what to count. An operator that is listed twice is counted once.
        cpu: as in `count_instructions`.
        progress: show a progress bar on stderr (False).

    Returns:
        The counts, one entry per distinct operator in the order of the first appearance.

    Raises:
        BenchError: the list is empty or holds something else, LiteRT has no such operator, there is no such core, or
            the emulator is not set up: `python -m tflite_bench arm setup`.

    Example:
        >>> report = count_operators([Operator("CONV_2D", 64, (16, 16), filters=n, kernel=(3, 3)) for n in (7, 8)])
        >>> report.operators[0].kilo_instructions / report.operators[1].kilo_instructions
        2.5
    """
    wanted = distinct_operators(operators)
    emulator = Emulator(cpu)
    listed = list(dict.fromkeys([CALL_FLOOR, *wanted]))
    found: dict[Operator, float] = {}
    with progress_bar(len(listed), progress) as advance:
        for start in range(0, len(listed), _CHUNK):
            chunk = listed[start : start + _CHUNK]
            models = [operator_model(operator) for operator in chunk]
            counts = emulator.count(models, list(map(str, chunk)), advance)
            found |= {o: count.instructions / 1e3 for o, count in zip(chunk, counts, strict=True)}
    return OperatorInstructionReport(
        machine=emulator.machine,
        call_floor_kilo_instructions=found[CALL_FLOOR],
        operators=tuple(OperatorInstructions(operator, found[operator]) for operator in wanted),
    )
