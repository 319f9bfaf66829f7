"""One dialect in all modules: messages say what was received in the same words, docstrings look the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import keras_filterprune as kfp

ROOT = Path(kfp.__file__).parents[1]
MODULES = sorted(path for package in ("keras_filterprune", "tflite_bench") for path in (ROOT / package).rglob("*.py"))
# Data classes that people make themselves have arguments; all others are results, and have attributes.
MADE_BY_HAND = """
    BopsBudget FiltersBudget Kept LatencyBudget MacsBudget Metadata Method Operator ParamsBudget Task Tiles
""".split()
# Words that begin with a capital letter wherever they stand.
NAMES = "Android Debian False Google Keras Linux LiteRT None NumPy Operator Python Student TensorFlow True".split()
SECTIONS = ("Args", "Attributes", "Raises", "Yields")
# `name: text`, `first, second: text` and `*names: text`, as the sections hold them.
ENTRY = re.compile(r"\*{0,2}\w+(?:, \*{0,2}\w+)*: (.*)")


def docstrings(tree):
    """(node, docstring) of everything that has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, text


def entries(text):
    """(section, what follows the colon) of every entry of a docstring."""
    section = None
    for line in text.splitlines():
        if re.fullmatch(r"\w+:", line):
            section = line[:-1]
        elif section in SECTIONS and (found := ENTRY.fullmatch(line.removeprefix("    "))) and line.startswith("    "):
            yield section, found[1]


def wrong_docstrings(source):
    wrong = []
    for node, text in docstrings(ast.parse(source)):
        for _, entry in entries(text):
            word = re.match(r"\w*", entry)[0]
            # Other single letters are symbols.
            if re.fullmatch("[A-Z][a-z]+|A", word) and word not in NAMES:
                wrong.append(f"upper case after the colon: {entry}")
        if re.search(r"Defaults? |Default:|Defaults to", text):
            wrong.append("defaults stand in parentheses, (1)")
        if isinstance(node, ast.ClassDef) and "dataclass" in " ".join(map(ast.unparse, node.decorator_list)):
            found = {section for section, _ in entries(text)} & {"Args", "Attributes"}
            if "Args" in found and node.name not in MADE_BY_HAND:
                wrong.append(f"{node.name} has Attributes, no Args")
    return wrong


def texts(tree):
    """Text of every string that is no docstring, values of f-strings left out."""
    known = {id(node.body[0].value) for node, _ in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in known:
            yield node.value


def wrong_messages(source):
    """Strings with another way to say `Received: name=value`."""
    return [text for text in texts(ast.parse(source)) if re.search(r"\bgot\b|\breceived\b|Received(?!: )", text)]


def evaluated(source):
    """Whether there are annotations, and not the one line, the same in every module, that leaves them alone."""
    annotated = any(isinstance(node, ast.AnnAssign | ast.FunctionDef) for node in ast.walk(ast.parse(source)))
    return annotated and "from __future__ import annotations" not in source


@pytest.mark.parametrize("wrong", [wrong_docstrings, wrong_messages, evaluated])
def test_no_module_has_another_dialect(wrong):
    found = {path.relative_to(ROOT).as_posix(): wrong(path.read_text()) for path in MODULES}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "text",
    [
        "Args:\n    path: The file.",
        "Args:\n    first, second: Files.",
        "Raises:\n    ValueError: A number is odd.",
        "Attributes:\n    a: A thing.",
        "Args:\n    n: how many. Default: 3.",
    ],
)
def test_the_check_of_docstrings_can_fail(text):
    assert wrong_docstrings(f'def f():\n    """Do.\n\n    {text.replace(chr(10), chr(10) + "    ")}\n    """')


def test_the_checks_can_fail_and_pass():
    result = '@dataclass(frozen=True)\nclass A:\n    """A.\n\n    Args:\n        a: one.\n    """'
    assert wrong_docstrings(result)
    assert not wrong_docstrings(result.replace("Args", "Attributes"))
    good = "\n".join(f"    a: {text}" for text in ("None of them.", "LiteRT's.", "'A' or `B`.", "XNNPACK.", "T, 4."))
    assert not wrong_docstrings(f'"""M.\n\nArgs:\n{good}\n"""')
    assert evaluated("def f(): ...") and not evaluated("from __future__ import annotations\nx: int = 1")
    assert wrong_messages("raise ValueError(f'expected 1, got {x}')")
    assert wrong_messages("raise ValueError(f'expected 1, received {x}')")
    assert not wrong_messages("'''It got worse.'''\nraise ValueError(f'expected 1. Received: {x}.')\nforgotten = 1")
