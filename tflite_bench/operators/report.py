"""What the timing of operators measured: values and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tflite_bench.errors import BenchError
from tflite_bench.files import read_json
from tflite_bench.operators.operator import Operator
from tflite_bench.report import JsonResult


@dataclass(frozen=True)
class OperatorTiming:
    """Times of one operator.

    Attributes:
        operator: what was timed.
        us: fastest run in microseconds, the figure least disturbed by other programs.
        p50_us: median run in microseconds.
    """

    operator: Operator
    us: float
    p50_us: float


@dataclass(frozen=True)
class OperatorReport(JsonResult):
    """The result of `time_operators`.

    Attributes:
        machine: processor, load average and versions.
        settings: threads, rounds and seconds.
        call_floor_us: time in microseconds of a call that does next to nothing. It is part of every `us`; inside a
            model of many operators it is spent once.
        operators: one entry per distinct operator.
    """

    machine: dict[str, Any]
    settings: dict[str, float]
    call_floor_us: float
    operators: tuple[OperatorTiming, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values.

        Returns:
            `{"format": 1, "machine": {...}, "settings": {...}, "call_floor_us": ..., "operators": [{...}]}`; each
            operator is its fields, `us` and `p50_us`.
        """
        return {
            "format": 1,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "call_floor_us": self.call_floor_us,
            "operators": [
                {**asdict(timing.operator), "us": timing.us, "p50_us": timing.p50_us} for timing in self.operators
            ],
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OperatorReport:
        """Read a report that `save` has written.

        Args:
            path: the file.

        Returns:
            The report, equal to the one that was saved.

        Raises:
            BenchError: the file is missing, damaged, changed since, or no report on operators.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError, MemoryError) as error:
            raise _unreadable(path, f"a JSON file could not be read ({error})") from error
        if not isinstance(content, dict) or content.get("format") != 1 or "operators" not in content:
            raise _unreadable(path, 'it has no "format": 1 or no "operators"')
        # Else a digest whose name is damaged would not be missed.
        if unknown := content.keys() - {"format", *cls.__dataclass_fields__}:
            raise _unreadable(path, f"such files have no {', '.join(sorted(unknown))}")
        try:
            return cls(
                machine=dict(content["machine"]),
                settings=dict(content["settings"]),
                call_floor_us=_microseconds(content["call_floor_us"]),
                operators=tuple(_timing(entry) for entry in content["operators"]),
            )
        except KeyError as error:
            raise _unreadable(path, f"{error} is missing") from error
        except (TypeError, ValueError) as error:
            raise _unreadable(path, str(error)) from error


def _timing(entry: Mapping[str, Any]) -> OperatorTiming:
    fields = dict(entry)
    us, p50_us = _microseconds(fields.pop("us")), _microseconds(fields.pop("p50_us"))
    return OperatorTiming(Operator(**fields), us, p50_us)


def _microseconds(value: object) -> float:
    # Also false for NaN, which Python's JSON reads.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise TypeError(f"{value!r} stands where a positive number of microseconds belongs")
    return float(value)


def _unreadable(path: str | os.PathLike[str], found: str) -> BenchError:
    return BenchError(
        f"{os.fspath(path)}: expected a file of OperatorReport.save, but {found}; time the operators again"
    )
