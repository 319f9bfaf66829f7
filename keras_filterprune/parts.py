"""What the exchangeable parts of a method have in common."""

from __future__ import annotations


class Part:
    """A criterion, an allocator or a compensator, shown by its class and its public attributes.

    Reports name parts by this text, and searches go on from the checkpoint of an equal one.
    """

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(settings)})"
