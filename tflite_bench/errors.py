"""The one exception of this package."""


class BenchError(ValueError):
    """A file cannot be benchmarked or a setting makes no sense."""
