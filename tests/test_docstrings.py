"""Every public name says what it is: a line, its arguments, what comes back, an example that runs, its paper's year."""

import inspect
import re
import types

import pytest
from public_surface import exported, namespaces

import keras_filterprune as kfp

ORDER = ["Args", "Attributes", "Returns", "Raises", "Example"]
# What entries may start with although it is in upper case: values, and symbols of one letter.
VALUES = ("None", "True", "False")


def public():
    """{dotted name: class or function}: of the top level and of every namespace, each under its shortest name."""
    found = {name: getattr(kfp, name) for name in kfp.__all__ if name not in namespaces()}
    for name, module in namespaces().items():
        found |= {f"{name}.{inner}": getattr(module, inner) for inner in exported(module)}
    once = {id(found[name]): name for name in sorted(found, key=lambda name: -name.count("."))}
    return {name: found[name] for name in sorted(once.values())}


PUBLIC = public()
every_name = pytest.mark.parametrize("name", PUBLIC)


def parsed(doc):
    """{section: {entry: its text}} of a docstring."""
    _, *rest = re.split(rf"^({'|'.join(ORDER)}):\n", doc, flags=re.MULTILINE)
    found = {}
    for section, body in zip(rest[::2], rest[1::2], strict=True):
        entries = re.findall(r"^    (\*{0,2}\w[\w.]*(?:, \*{0,2}\w+)*): (.*(?:\n(?:     .*)?)*)", body, re.MULTILINE)
        found[section] = {key: text for names, text in entries for key in names.replace("*", "").split(", ")}
    return found


def faults(value):
    """What a class or function leaves unsaid, in words."""
    # A class may inherit its docstring, which then speaks of another one.
    own = value.__doc__ if not inspect.isclass(value) or "__doc__" in vars(value) else None
    if not own:
        return ["no docstring"]
    doc = inspect.cleandoc(own)
    summary, *rest = doc.splitlines()
    sections = parsed(doc)
    documented = sections.get("Args", {}) | sections.get("Attributes", {})
    wanted = parameters(value)
    found = [f"'{name}' is not documented" for name in wanted if name not in documented]
    found += [f"'{name}' is no argument" for name in sections.get("Args", {}) if name not in wanted]
    if not summary.endswith(".") or (rest and rest[0]):
        found.append("no summary: one line that ends with a full stop, and an empty one")
    if ">>> " not in doc.partition("\nExample:\n")[2]:
        found.append("no example")
    order = re.findall(rf"^({'|'.join(ORDER)}):$", doc, re.MULTILINE)
    if [section for section in ORDER if section in sections] != order:
        found.append(f"sections are not in the order {', '.join(ORDER)}")
    if inspect.isfunction(value) and returns(value) and "Returns" not in sections:
        found.append("no Returns")
    for entry, text in (pair for name in ("Args", "Attributes", "Raises") for pair in sections.get(name, {}).items()):
        if re.match(r"[A-Z][a-z]+\b", text) and not text.startswith(VALUES):
            found.append(f"'{entry}' starts in upper case")
    if re.search(r"\bpaper|et al\b", doc) and not re.search(r"\b(19|20)\d\d\b", doc):
        found.append("a paper without its year")
    unsaid = [name for name in methods(value) if name not in documented and not inspect.getdoc(getattr(value, name))]
    return found + [f"{name}() has no docstring" for name in unsaid]


def parameters(value):
    """Names in a signature; exceptions take what every exception takes."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "args")]


def returns(value):
    return value.__annotations__.get("return") not in (None, "None")


def methods(value):
    """Public methods and properties that a class brings; those of Keras are Keras' to describe."""
    kinds = types.FunctionType | property | classmethod | staticmethod
    own = vars(value) if inspect.isclass(value) else {}
    foreign = {name for base in getattr(value, "__mro__", ()) if not ours(base) for name in vars(base)}
    return [n for n, method in own.items() if n[0] != "_" and isinstance(method, kinds) and n not in foreign]


def ours(kind):
    return kind.__module__.startswith(("keras_filterprune", __name__))


def test_the_public_names_are_found():
    assert {"prune_model", "criteria.Criterion", "handlers.Handler", "layers.FilterPruning", "tfmot.export_qat"} <= set(
        PUBLIC
    )
    assert "handlers.register_handler" not in PUBLIC  # kfp.register_handler


@every_name
def test_public_names_are_documented(name):
    assert faults(PUBLIC[name]) == []


def good(rate: float, *names: str) -> int:
    """Return a number (Li et al. 2017).

    Args:
        rate: in (0, 1].
        *names: any names.

    Returns:
        A number.

    Raises:
        ValueError: rate is out of range.

    Example:
        >>> 1
        1
    """


CHANGES = {
    "'rate' is not documented": ("        rate: in (0, 1].\n", ""),
    "'names' is not documented": ("*names", "*others"),
    "'speed' is no argument": ("        rate: in (0, 1].\n", "        rate, speed: in (0, 1].\n"),
    "no summary": (" (Li et al. 2017).\n", "\n"),
    "no example": (">>> 1", "1"),
    "no Returns": ("Returns:", "Gives:"),
    "'ValueError' starts in upper case": ("rate is out", "Rate is out"),
    "a paper without its year": (" 2017", ""),
    "sections are not in the order": ("    Raises:", "    Args:\n        rate: x.\n\n    Raises:"),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_the_check_can_fail(fault):
    changed = types.FunctionType(good.__code__, {}, "changed")
    changed.__annotations__ = good.__annotations__
    changed.__doc__ = good.__doc__.replace(*CHANGES[fault])
    assert changed.__doc__ != good.__doc__
    assert any(text.startswith(fault) for text in faults(changed))


def test_the_check_can_pass_and_looks_into_classes():
    class Child(kfp.criteria.L1):
        def undocumented(self):
            pass

    assert faults(good) == []
    assert faults(Child) == ["no docstring"]
    Child.__doc__ = "Base of nothing.\n\nArgs:\n    aggregate: see `L1`.\n\nExample:\n    >>> 1\n    1\n"
    assert faults(Child) == ["undocumented() has no docstring"]
