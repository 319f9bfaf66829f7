"""Assertions in shared modules say what they compared, as those in tests do."""

import pytest

pytest.register_assert_rewrite("builders", "contracts", "oracle")
