"""Which versions are at work: read from the packages that are imported, installed or not."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of everything that decides a plan."""
    import keras
    import numpy
    import scipy

    packages = {package.__name__: package.__version__ for package in (keras, numpy, scipy)}
    return {"keras_filterprune": __version__, **packages, "python": platform.python_version()}
