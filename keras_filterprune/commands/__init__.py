"""What the command line can do, one module a command; none imports Keras before a command is run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from keras_filterprune.commands import bench, compress, demo, export, family, latency, layers, prune, scan, sensitivity
from keras_filterprune.commands.options import Answer


class Command(NamedTuple):
    """One command: what it is for, which options it has, and what it does with them."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Answer]


_MODULES = {
    "compress": compress,
    "scan": scan,
    "prune": prune,
    "family": family,
    "layers": layers,
    "sensitivity": sensitivity,
    "latency": latency,
    "export": export,
    "bench": bench,
    "demo": demo,
}
COMMANDS = {name: Command(module.HELP, module.add_options, module.run) for name, module in _MODULES.items()}
