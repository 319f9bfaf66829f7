"""Docstrings as the reference reads them: it knows Examples, and every docstring here has one Example."""

import griffe


class Examples(griffe.Extension):
    """Gives the section of a docstring's example the name by which it is shown as code."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
