"""The fixture of tests that count trials."""

import pytest
from trials import NEVER, Killed

from keras_filterprune.probe.trial import Trial


@pytest.fixture
def evaluations(monkeypatch):
    """A list that grows by one with every trial; `evaluations.at = n` kills the n-th."""

    class Evaluations(list):
        at = NEVER

    made, original = Evaluations(), Trial.__call__

    def counted(self, kept):
        made.append({name: len(units) for name, units in kept.units.items()})
        if len(made) >= made.at:
            raise Killed(f"after {len(made)} trials")
        return original(self, kept)

    monkeypatch.setattr(Trial, "__call__", counted)
    return made
