"""`keras-filterprune prune`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.data import add_data, read_data
from keras_filterprune.commands.options import (
    Answer,
    add_budgets,
    add_choice,
    add_model,
    add_output,
    check_written,
    read_budget,
    read_model,
)

HELP = "write a model with fewer filters"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `prune_model` has them."""
    add_model(parser)
    add_output(parser, ".keras")
    parser.add_argument("--method", default="auto", help="a method's name (%(default)s)")
    parser.add_argument("--seconds", type=float, help="the most that recovery may train for (120)")
    add_budgets(parser)
    add_data(parser, "calibration inputs, with labels where the method needs them")
    parser.add_argument("--compensate", default="auto", help="what makes up for removed filters (%(default)s)")
    parser.add_argument("--min-filters", type=int, default=1, help="fewest units of a group (%(default)s)")
    parser.add_argument(
        "--channel-multiple",
        type=_number_or_name,
        default=1,
        metavar="N",
        help="kept counts are multiples of it, or fit a target such as arm64 (%(default)s)",
    )
    parser.add_argument("--plan", metavar="JSON", help="also write the pruning plan there")
    add_choice(parser, "prune")


def _number_or_name(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def run(options: argparse.Namespace) -> Answer:
    """Prune the model, half the multiply-accumulates if nothing else is said."""
    from keras_filterprune.files import save_keras
    from keras_filterprune.pruning import prune_model

    check_written(options, options.plan)
    model = read_model(options)
    budget = read_budget(options, model)
    small, report = prune_model(
        model,
        options.method,
        0.5 if budget is None else budget,
        data=read_data(options, model).data,
        include=options.include,
        exclude=options.exclude,
        min_filters=options.min_filters,
        channel_multiple=options.channel_multiple,
        compensate=options.compensate,
        seconds=options.seconds,
        seed=options.seed,
        return_report=True,
    )
    save_keras(small, options.output, options.overwrite)
    if options.plan:
        report.plan.save(options.plan)
    if options.report:
        report.save(options.report)
    return report.to_dict(), [report.table(), report.summary()]
