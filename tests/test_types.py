"""What a type checker makes of the public functions."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import keras_filterprune as kfp

ROOT = Path(__file__).parents[1]
VERBS = {"prune_model": kfp.prune_model, "apply_plan": kfp.apply_plan, "prune_layers": kfp.prune_layers}
SCRIPT = """
import keras_filterprune as kfp

def run(model, plan: kfp.PruningPlan, settings: dict) -> None:
    reveal_type(kfp.prune_model(model))
    reveal_type(kfp.prune_model(model, return_report=False))
    reveal_type(kfp.prune_model(model, "l2", 0.5, return_report=True))
    reveal_type(kfp.apply_plan(model, plan))
    reveal_type(kfp.apply_plan(model, plan, return_report=True))
    reveal_type(kfp.prune_layers(model, 1))
    reveal_type(kfp.prune_layers(model, budget=0.5, return_report=True))
"""
# Keras ships no types: its models are Any to a checker.
REPORT = "tuple[Any, keras_filterprune.report.{}]"
PRUNED, WITHOUT_LAYERS = REPORT.format("prune_report.PruneReport"), REPORT.format("layer_report.LayerReport")


def test_a_report_is_returned_where_it_is_asked_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(script)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    revealed = [line.split('"')[1] for line in found.stdout.splitlines() if "Revealed type" in line]
    assert revealed == ["Any", "Any", PRUNED, "Any", PRUNED, "Any", WITHOUT_LAYERS], found.stdout
    assert found.returncode == 0, found.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not remember overloads")
@pytest.mark.parametrize("verb", VERBS)
def test_overloads_take_what_the_function_takes(verb):
    function = inspect.unwrap(VERBS[verb])
    known = dict(inspect.signature(function).parameters)
    overloads = typing.get_overloads(function)
    assert len(overloads) == 2
    del known["return_report"]
    for overload in overloads:
        found = dict(inspect.signature(overload).parameters)
        del found["return_report"]
        assert found == known
