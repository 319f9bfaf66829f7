"""How tests are run: assertions of shared modules say what they compared, drawn examples are the same in every run."""

import importlib.util

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("builders", "contracts", "oracle")

# Building networks is slow and says nothing about a test; what fails here must fail again there.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# They write, read and time files; without the extra [tflite] there are none.
WITH_FILES = ["export", "latency", "tflite_bench", "tfmot", "test_measuring.py"]
collect_ignore = [] if importlib.util.find_spec("ai_edge_litert") else WITH_FILES


@pytest.fixture
def registry(monkeypatch):
    """Registrations made in a test end with it."""
    from keras_filterprune.handlers import registry as module

    monkeypatch.setattr(module, "_BY_TYPE", dict(module._BY_TYPE))
    monkeypatch.setattr(module, "_LIKE", dict(module._LIKE))
