"""`keras-filterprune layers`."""

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

HELP = "write a model with fewer layers"


def add_options(parser: argparse.ArgumentParser) -> None:
    """As `prune_layers` has them."""
    add_model(parser)
    add_output(parser, ".keras")
    add_budgets(parser, filters=False).add_argument("--n-layers", type=int, metavar="N", help="how many units go")
    parser.add_argument("--method", default="l2", help="a method's name, ensemble or imprinting (%(default)s)")
    parser.add_argument("--projections", action="store_true", help="also branches next to a projection shortcut")
    add_data(parser, "calibration inputs, with labels where the method needs them")
    add_choice(parser, "remove")


def run(options: argparse.Namespace) -> Answer:
    """Remove layers."""
    from keras_filterprune.files import save_keras
    from keras_filterprune.layer_pruning import prune_layers

    check_written(options)
    model = read_model(options)
    small, report = prune_layers(
        model,
        options.n_layers,
        read_budget(options, model),
        method=options.method,
        data=read_data(options, model).data,
        projections=options.projections,
        include=options.include,
        exclude=options.exclude,
        seed=options.seed,
        return_report=True,
    )
    save_keras(small, options.output, options.overwrite)
    if options.report:
        report.save(options.report)
    return report.to_dict(), [report.table(), report.summary()]
