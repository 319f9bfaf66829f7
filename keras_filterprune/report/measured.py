"""Sections of what was measured beside the run: accuracy, latency, files, sensitivity."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_filterprune.checks import check_number, wrong
from keras_filterprune.report.document import (
    Bar,
    Curves,
    Number,
    Section,
    Table,
    count,
    number,
    percent,
    without_empty_columns,
)

_NAMED = 5


def accuracy_section(accuracy: Mapping[str, float] | None) -> Section | None:
    """Accuracy of every model, and its distance from the first one's."""
    if not accuracy:
        return None
    with _expected("accuracy", accuracy, '{"dense": 0.91, "pruned": 0.90, ...}, shares of 1'):
        for value in accuracy.values():
            check_number("accuracy", value, least=0, most=1)
        base, worst = next(iter(accuracy.values())), 1 - min(accuracy.values())
        rows = [
            (str(name), Bar(0, 1 - value, worst), percent(value, 2), number(100 * (value - base), "+.2f"))
            for name, value in accuracy.items()
        ]
    columns = ("model", "share that is wrong", "accuracy", f"points from {next(iter(accuracy))}")
    return Section("Accuracy", (), Table(columns, tuple(rows)))


def benchmark_section(benchmark: Any) -> Section | None:
    """Measured latency of every file."""
    if benchmark is None:
        return None
    with _expected("benchmark", benchmark, "what tflite_bench.benchmark returned, or its to_dict()"):
        content = plain(benchmark)
        machine, settings, models = content["machine"], content["settings"], content["models"]
        key = median_of(models)
        slowest = max(model[key] for model in models)
        rows = tuple(
            (
                Path(model["path"]).name,
                Bar(models[0][key], model[key], slowest),
                *(number(model[name], ".4f") for name in ("p50_ms", "p90_ms", "mean_ms", "min_ms")),
                number(model["load_ms"], ".2f"),
                number(model["ratio_to_first"], ".3f"),
                f"{model['ratio_low']:.2f} to {model['ratio_high']:.2f}",
            )
            for model in models
        )
        runs = f"{settings['threads']} thread(s), {settings['runs']} runs, {settings['rounds']} interleaved rounds"
        busy, version = machine.get("load_average_1min"), machine.get("litert")
        runs += "".join([f", LiteRT {version}" * bool(version), "" if busy is None else f", load average {busy:.1f}"])
        text = (
            f"Measured on {machine['cpu']}, {runs}. Times in ms.",
            *(f"{note[:1].upper()}{note[1:]}." for note in content.get("notes", ())),
        )
    figures = ("p50", "p90", "mean", "fastest", "load", "times the first", "range over rounds")
    columns = ("file", f"{key.removesuffix('_ms')}, of the first", *figures)
    return Section("Measured latency", text, without_empty_columns(Table(columns, rows)))


def plain_files(exports: Iterable[Any]) -> list[dict[str, Any]]:
    """What was returned for every file, as plain data."""
    with _expected("exports", exports, "a list of what export_tflite returned"):
        return [plain(result) for result in exports]


def exports_section(files: list[dict[str, Any]]) -> Section | None:
    """The files that were written, and how far they are from the Keras models."""
    with _expected("exports", files, "a list of what export_tflite returned"):
        largest = max((file["bytes"] for file in files), default=0)
        rows = tuple(
            (
                Path(file["path"]).name,
                Bar(files[0]["bytes"], file["bytes"], largest),
                file["quantize"],
                count(file["bytes"]),
                number(file["max_abs_difference"], ".2e"),
                None if file["top1_agreement"] is None else percent(file["top1_agreement"]),
                ", ".join(f"{kind} {n}" for kind, n in file["ops"].items()),
            )
            for file in files
        )
        text = tuple(
            f"{Path(file['path']).name}, {', '.join(warning['operators'])} of {_some(warning['layers'])}: "
            f"{warning['problem']}. {warning['remedy']}"
            for file in files
            for warning in file["warnings"]
        )
    if not rows:
        return None
    columns = (
        *("file", "bytes, of the first", "data type", "bytes", "largest difference from Keras"),
        *("same class", "operators"),
    )
    return Section("Files", text, without_empty_columns(Table(columns, rows)))


def sensitivity_sections(sensitivity: Any) -> list[Section]:
    """Curves of all groups, and their drops with intervals, the most sensitive first."""
    if sensitivity is None:
        return []
    with _expected("sensitivity", sensitivity, "the SensitivityTable that measure_sensitivity(...) returned"):
        metric, base, order = sensitivity.metric, sensitivity.base, sensitivity.order()[::-1]
        cuts: dict[str, list] = {group: [] for group in order}
        for cut in sensitivity.cuts:
            cuts[cut.group].append(cut)
        lines = {
            group: [(1.0, base, base, base)]
            + [(cut.kept / cut.units, cut.value, base - cut.high, base - cut.low) for cut in cuts[group]]
            for group in sensitivity.groups
        }
        worst = max((cut.drop for cut in sensitivity.cuts if math.isfinite(cut.drop)), default=0.0)
        rows = tuple(
            (group, count(cuts[group][0].units), *(_drop(cut, worst) for cut in cuts[group])) for group in order
        )
        columns = ("group", "units", *(f"{100 * keep:g} % kept" for keep in sensitivity.keep))
        skipped = tuple(f"Not cut: {group}, which {why}." for group, why in sensitivity.skipped.items())
    text = (
        f"Every group cut alone, without training. {metric} of the whole network: {base:.4g}. In the table, how much "
        "of it is lost, with 95 % intervals; the most sensitive groups first.",
    )
    figure = Curves("share of the group's filters kept", metric, lines, tuple(order[:_NAMED])) if lines else None
    return [Section("Sensitivity", text + skipped, Table(columns, rows), figure)]


def _drop(cut: Any, worst: float) -> Number:
    shade = min(max(cut.drop / worst, 0.0), 1.0) if worst > 0 and math.isfinite(cut.drop) else 0.0
    return Number(cut.drop, f"{cut.drop:.3g} ({cut.low:.3g} to {cut.high:.3g})", shade)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def median_of(models: list[dict[str, Any]]) -> str:
    """The key of the times to compare: the tool for phones has no median where it is old."""
    return "p50_ms" if all(model["p50_ms"] is not None for model in models) else "mean_ms"


def plain(value: Any) -> Any:
    """Plain data of a result, which may be plain already."""
    return value.to_dict() if hasattr(value, "to_dict") else value


@contextlib.contextmanager
def _expected(name: str, value: Any, wanted: str) -> Iterator[None]:
    """Turn what goes wrong with a value of another kind into a sentence."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise wrong(name, value, wanted) from error
