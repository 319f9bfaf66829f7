"""What an error is and says."""

import pytest

import keras_filterprune as kfp


def fails(error, builtin, sentence, call, *args, **kwargs):
    """`call` raises exactly `error`, which also is a `builtin` and a FilterPruneError, with `sentence` in its text."""
    with pytest.raises(error, match=sentence) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is error
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, kfp.FilterPruneError)
    return str(caught.value)
