"""`keras-filterprune sensitivity`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.table import Table

from keras_filterprune.commands.data import add_data, read_data
from keras_filterprune.commands.options import Answer, add_model, check_distinct, read_model
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.terminal import cell

HELP = "measure what each group of filters matters, by cutting it alone"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `measure_sensitivity` has them."""
    add_model(parser)
    add_data(parser, "samples, with labels for any other metric than error", required=True)
    parser.add_argument("--metric", default="auto", help="auto, error, or a metric or loss of Keras (%(default)s)")
    parser.add_argument("--method", default="l2", help="chooses the filters that stay (%(default)s)")
    parser.add_argument(
        "--keep",
        type=float,
        nargs="+",
        default=(0.75, 0.5, 0.25),
        metavar="F",
        help="fractions kept, falling (0.75 0.5 0.25)",
    )
    parser.add_argument("--samples", type=int, default=1024, help="at most so many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    parser.add_argument("--checkpoint", metavar="JSON", help="written after every cut, and gone on from")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves there (.png, .svg, .pdf)")
    parser.add_argument("--csv", metavar="FILE", help="write every cut there")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(options: argparse.Namespace) -> Answer:
    """Cut every group alone."""
    from keras_filterprune.files import check_destination
    from keras_filterprune.studies import measure_sensitivity

    check_distinct([options.model, options.data, options.checkpoint, options.plot, options.csv])
    for path in filter(None, (options.plot, options.csv)):
        check_destination(path, options.overwrite)
    if options.plot:
        _check_image(options.plot)
    model = read_model(options)
    found = measure_sensitivity(
        model,
        read_data(options, model).data,
        options.metric,
        options.keep,
        options.method,
        samples=options.samples,
        checkpoint=options.checkpoint,
        seed=options.seed,
    )
    if options.plot:
        found.plot(options.plot)
    if options.csv:
        found.to_csv(options.csv)
    content = {
        "metric": found.metric,
        "base": found.base,
        "order": found.order(),
        "cuts": [asdict(cut) for cut in found.cuts],
        "skipped": found.skipped,
    }
    return content, [_table(found), *(f"not cut: {group}, which {why}" for group, why in found.skipped.items())]


def _check_image(path: str) -> None:
    from tflite_bench import BenchError
    from tflite_bench.plot import check_image_name

    try:
        check_image_name(path)
    except BenchError as error:
        raise InvalidValueError(str(error)) from error


def _table(found: Any) -> Table:
    """What is lost, with intervals, the least sensitive groups first."""
    title = f"{found.metric} of the whole network: {found.base:.4g}; lost, with 95 % intervals"
    table = Table(title=cell(title, "table.title"))
    table.add_column("group")
    for keep in found.keep:
        table.add_column(f"{100 * keep:g} % kept", justify="right")
    for group in found.order():
        cuts = (cut for cut in found.cuts if cut.group == group)
        table.add_row(cell(group), *(f"{cut.drop:.3g} ({cut.low:.3g} to {cut.high:.3g})" for cut in cuts))
    return table
