"""Reports as files: what both kinds of run share."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_filterprune.checks import visible
from keras_filterprune.files import check_destination, replacing
from keras_filterprune.latency import Prices, as_prices
from keras_filterprune.report import html, markdown
from keras_filterprune.report.document import Section
from keras_filterprune.report.headline import headline_section
from keras_filterprune.report.measured import (
    accuracy_section,
    benchmark_section,
    exports_section,
    plain_files,
    sensitivity_sections,
)
from keras_filterprune.summarised import Summarised

_RENDERERS = {".html": html.render, ".md": markdown.render}


class SavedReport(Summarised):
    """A report that can be written as one HTML file, or as Markdown."""

    prices: Prices | None

    def save(
        self,
        path: str | os.PathLike,
        *,
        accuracy: Mapping[str, float] | None = None,
        sensitivity: Any = None,
        benchmark: Any = None,
        exports: Iterable[Any] = (),
        latency: Prices | str | None = None,
    ) -> None:
        """Write the report as one self-contained HTML file, or as Markdown; an existing file is replaced in one step.

        Args:
            path: a name that ends in .html or .md.
            accuracy: {model: accuracy in 0..1}, the original first (None).
            sensitivity: the `SensitivityTable` of the original model (None).
            benchmark: what `tflite_bench.benchmark` measured, the original first; or its `to_dict()` (None).
            exports: what `export_tflite` returned, one per file ().
            latency: `LatencyTable` for predicted milliseconds of every layer; or a target ("arm64", ...), for
                multiply-accumulates in whole steps; or other `Prices`. None: those behind the budget, if it had any.

        Raises:
            InvalidValueError: the name ends in something else, or an extra is of another kind.
            FileError: the file cannot be written.
            UnknownNameError: there is no such target.
            InfeasibleBudgetError: the table has no time for an operator of the model.

        Example:
            >>> import keras, keras_filterprune as kfp
            >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(4, 3)])
            >>> small, report = kfp.prune_model(model, return_report=True)
            >>> report.save("report.html", accuracy={"dense": 0.91, "pruned": 0.90}, latency="arm64")
        """
        render = _RENDERERS[check_report_path(path)]
        prices = self.prices if latency is None else as_prices("latency", latency)
        first, *rest = self._sections(prices)
        files = plain_files(exports)
        extras = [accuracy_section(accuracy), benchmark_section(benchmark), exports_section(files)]
        headline = headline_section(self._costs, accuracy, benchmark, files)
        sections = [headline, first, *filter(None, extras), *rest, *sensitivity_sections(sensitivity), *self._closing()]
        # Names may hold halves of characters, which no encoding has.
        content = visible(render(self._title, sections)).encode("utf-8", "backslashreplace")
        with replacing(path) as draft:
            draft.write_bytes(content)

    @property
    @abc.abstractmethod
    def _title(self) -> str:
        """The headline."""

    @property
    @abc.abstractmethod
    def _costs(self) -> Mapping[str, Sequence[float]]:
        """{"macs": (before, after), "params": (before, after)}."""

    @abc.abstractmethod
    def _sections(self, prices: Prices | None) -> list[Section]:
        """What the run did: cost before and after first."""

    @abc.abstractmethod
    def _closing(self) -> list[Section]:
        """Proof, notes, and how the run was made."""


def check_report_path(path: str | os.PathLike, overwrite: bool = True) -> str:
    """The suffix of a report's name, if a report can be written there.

    Raises:
        InvalidValueError: the name ends in something else.
        FileError: no file can be written there.
    """
    return check_destination(path, overwrite, list(_RENDERERS)).suffix.lower()
