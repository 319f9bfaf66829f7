"""Assertions in shared modules say what they compared, as those in tests do; fixtures that many tests use."""

import pytest

pytest.register_assert_rewrite("builders", "contracts", "oracle")


@pytest.fixture
def registry(monkeypatch):
    """Registrations made in a test end with it."""
    from keras_filterprune.handlers import base

    monkeypatch.setattr(base, "_BY_TYPE", dict(base._BY_TYPE))
    monkeypatch.setattr(base, "_LIKE", dict(base._LIKE))
