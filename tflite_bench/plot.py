"""The picture of a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_bench.errors import BenchError
from tflite_bench.files import replacing

_BAR, _FASTEST = "#8fb8de", "#1b3a57"


def check_image_name(path: str | os.PathLike[str]) -> None:
    """Raise `BenchError` unless matplotlib is there and writes files of this kind."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise BenchError(f"a plot needs matplotlib ({error}): pip install matplotlib") from error
    if Path(path).suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        raise BenchError(f"{os.fspath(path)}: expected the name of an image, such as latency.png, .svg or .pdf")


def draw(models: Sequence[Any], title: str, path: str | os.PathLike[str]) -> None:
    """Draw the median of each file as a bar, with its spread and the fastest run.

    Args:
        models: `ModelTiming` of every file.
        title: what they were measured on.
        path: the image to write.

    Raises:
        BenchError: matplotlib does not write such files, or is not installed.
        OSError: the file cannot be written.
    """
    check_image_name(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 + 0.45 * len(models)), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(models))
    low, median, high, fastest = (
        np.array([getattr(model, name) for model in models], float) for name in ("p10_ms", "p50_ms", "p90_ms", "min_ms")
    )
    axes.barh(rows, median, color=_BAR, height=0.6, label="median")
    axes.hlines(rows, low, high, color="0.35", linewidth=2, label="10th to 90th percentile")
    axes.plot(fastest, rows, "|", color=_FASTEST, markersize=14, markeredgewidth=2, label="fastest run")
    for row, model, right in zip(rows, models, np.fmax(median, high), strict=True):
        if model.ratio_to_first is not None and np.isfinite(right):
            axes.annotate(f"{model.ratio_to_first:.2f}x", (right, row), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, [Path(model.path).name for model in models])
    # Room for the ratios.
    axes.set(xlabel="latency in ms", xlim=(0, 1.15 * np.nanmax([median, high, fastest])))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize="medium", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    with replacing(path) as draft:
        figure.savefig(draft, dpi=150)
