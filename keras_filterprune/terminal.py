"""Names in tables of a terminal."""

from __future__ import annotations

from rich.text import Text

from keras_filterprune.checks import visible


def cell(text: str, style: str = "") -> Text:
    """Text that is shown as it is: names may hold brackets, which rich takes for markup in a str."""
    return Text(visible(text), style)
