"""Why a layer stays closed."""


class CannotOpenError(Exception):
    """A layer or a model cannot be turned into a graph of plain layers, for this reason."""
