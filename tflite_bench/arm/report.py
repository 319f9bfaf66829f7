"""What was counted on an emulated core: values, table and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tflite_bench.operators.operator import Operator
from tflite_bench.report import JsonResult


@dataclass(frozen=True)
class InstructionCount:
    """Instructions of one file.

    Attributes:
        path: the file as it was given.
        bytes: its size in bytes.
        instructions: instructions executed in one inference, once that number has settled.
        runs: runs until it had, at most 10: two in a row then differed by less than 0.1 %.
        ratio_to_first: this file's instructions over the first one's.
    """

    path: str
    bytes: int
    instructions: int
    runs: int
    ratio_to_first: float


@dataclass(frozen=True)
class InstructionReport(JsonResult):
    """The result of `count_instructions`.

    Attributes:
        machine: the emulated core, the emulator and versions.
        models: one entry per file, in the given order.
    """

    machine: dict[str, Any]
    models: tuple[InstructionCount, ...]

    def table(self) -> Table:
        """Lay the counts out for a terminal.

        Returns:
            A `rich` table, one row per file.
        """
        title = f"{self.machine['cpu']} ({self.machine['emulator']}), 1 thread: instructions per inference, not time"
        # Names may hold brackets, which rich takes for markup in a str.
        table = Table(title=Text(title, "table.title"), box=box.SIMPLE, padding=0, pad_edge=False)
        table.add_column("file", overflow="fold", min_width=13)
        for column in ("kB", "million instructions", "x first"):
            table.add_column(column, justify="right")
        for model in self.models:
            table.add_row(
                Text(Path(model.path).name),
                f"{model.bytes / 1e3:.1f}",
                f"{model.instructions / 1e6:.3f}",
                f"{model.ratio_to_first:.3f}",
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values.

        Returns:
            `{"format": 1, "unit": "instructions", "machine": {...}, "settings": {"threads": 1}, "models": [{...}]}`.
        """
        return {
            "format": 1,
            "unit": "instructions",
            "machine": dict(self.machine),
            "settings": {"threads": 1},
            "models": [asdict(model) for model in self.models],
        }


@dataclass(frozen=True)
class OperatorInstructions:
    """Instructions of one operator.

    Attributes:
        operator: what was run.
        kilo_instructions: thousands of instructions of one call.
    """

    operator: Operator
    kilo_instructions: float


@dataclass(frozen=True)
class OperatorInstructionReport(JsonResult):
    """The result of `count_operators`: what `OperatorReport` is, in instructions.

    Attributes:
        machine: the emulated core, the emulator and versions.
        call_floor_kilo_instructions: thousands of instructions of a call that does next to nothing. It is part of
            every operator's count; inside a model of many operators it is spent once.
        operators: one entry per distinct operator.
    """

    machine: dict[str, Any]
    call_floor_kilo_instructions: float
    operators: tuple[OperatorInstructions, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values.

        Returns:
            `{"format": 1, "unit": "kilo_instructions", "machine": {...}, "settings": {"threads": 1},
            "call_floor_kilo_instructions": ..., "operators": [{...}]}`; each operator is its fields and
            `kilo_instructions`.
        """
        return {
            "format": 1,
            "unit": "kilo_instructions",
            "machine": dict(self.machine),
            "settings": {"threads": 1},
            "call_floor_kilo_instructions": self.call_floor_kilo_instructions,
            "operators": [
                {**asdict(entry.operator), "kilo_instructions": entry.kilo_instructions} for entry in self.operators
            ],
        }
