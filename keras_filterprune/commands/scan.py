"""`keras-filterprune scan`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.options import Answer, add_model, read_model

HELP = "show what can be pruned, what cannot and why, and where the cost is"


def add_options(parser: argparse.ArgumentParser) -> None:
    """A model, no more."""
    add_model(parser)


def run(options: argparse.Namespace) -> Answer:
    """Analyse the model."""
    from keras_filterprune.analysis import analyze
    from keras_filterprune.report import graph_dict, graph_tables

    graph = analyze(read_model(options))
    return graph_dict(graph), [graph_tables(graph)]
