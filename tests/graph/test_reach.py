"""How much of a model can shrink, and why the rest does not, in numbers, as text and as a picture."""

import sys

import keras
import pytest
from keras import layers, ops

import keras_filterprune as kfp


class Noisy(layers.Layer):
    """Draws numbers by itself, and has a dense layer that nobody sees."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.seeds = layers.Dense(8), keras.random.SeedGenerator(0)

    def call(self, x):
        return self.inner(x) + keras.random.normal(ops.shape(x), seed=self.seeds)


def dense(*steps):
    x = inputs = keras.Input((4,), name="numbers")
    for step in steps:
        x = step(x)
    return keras.Model(inputs, layers.Dense(2, use_bias=False, name="scores")(x), name="model")


def half_closed():
    """4 * 10 + 10 * 8 MACs in front of what is closed, 8 * 8 in it, 8 * 2 behind it."""
    return kfp.analyze(dense(layers.Dense(10, name="a"), layers.Dense(8, name="b"), Noisy(name="noisy")))


def test_reach_is_the_share_that_falls():
    graph = half_closed()
    assert {name: (m.macs, m.reached, m.estimated) for name, m in graph.layer_macs.items()} == {
        "a": (40, 40, False),
        "b": (80, 80, False),
        "scores": (16, 0, False),
        "noisy": (64, 0, True),
    }
    assert graph.reach == 120 / 200


def test_whole_models_are_reached_whole():
    graph = kfp.analyze(dense(layers.Dense(10, name="a"), layers.Dense(5)))
    assert graph.reach == 1
    assert "all of its" in graph.summary()


def test_obstacles_are_sorted_by_what_they_keep_whole():
    graph = half_closed()
    assert [(o.layers, o.channels, o.macs) for o in graph.obstacles] == [
        (("noisy",), 8, 64),
        (("scores",), 2, 16),
        (("b",), 8, 0),
    ]
    assert str(graph.obstacles[0]).startswith("'noisy' (32.0 % of the MACs) is opaque: no handler looks into Noisy")
    assert "register_handler(Noisy, like=...) teaches it; it is not opened: it draws" in graph.obstacles[0].reason


def test_summary_says_groups_what_stays_why_and_what_would_help():
    lines = half_closed().summary().splitlines()
    assert lines[0] == "model: 60.0 % of its about 200 MACs can fall, in 1 group of 10 units"
    assert lines[2].split() == ["group", "units", "of", "the", "MACs"]
    assert lines[3].split() == ["a", "10", "20.0", "%"]
    assert lines[6].split()[:5] == ["noisy", "8", "32.0", "%", "is"]
    assert lines[-1] == "MACs of noisy are estimated from weights and the size of the output."


def test_long_lists_are_cut():
    text = kfp.analyze(dense(*(layers.Dense(3, name=f"d{n}") for n in range(30)))).summary()
    assert "d19" in text
    assert "d20" not in text
    assert "... and 10 more" in text


def test_open_sides_are_named():
    inputs = keras.Input((None, None, 3), name="photo")
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.Conv2D(4, 3)(inputs)))
    assert "are counted as in 'photo' (None, 64, 64, 3)." in kfp.analyze(model).summary()


def test_heads_and_units_count_once():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(4, 2, name="heads")(*[layers.LSTM(7, return_sequences=True, name="rnn")(inputs)] * 2)
    graph = kfp.analyze(keras.Model(inputs, layers.Dense(2, name="scores")(x)))
    assert {group.name: group.size for group in graph.groups} == {"rnn": 7, "heads/heads": 4, "heads": 7}
    assert graph.filters == 7 + 4 + 7
    assert [(pin.layer, pin.channels) for pin in graph.pinned] == [("scores", 2)]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_has_a_row_for_each_layer(tmp_path, kind):
    pytest.importorskip("matplotlib")
    path = half_closed().plot(tmp_path / f"groups.{kind}")
    assert path.stat().st_size > 5000
    if kind == "svg":
        text = path.read_text()
        # matplotlib writes every text as a comment beside its outlines.
        for name in ("model: 60.0 %", "numbers", "noisy", "scores", "group a", "stays: is opaque"):
            assert f"<!-- {name}" in text, name


def test_matplotlib_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(kfp.errors.MissingPackageError, match=r"ChannelGraph\.plot"):
        half_closed().plot(tmp_path / "groups.png")
    assert not list(tmp_path.iterdir())


def test_layers_in_a_wrapper_are_named():
    frame = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="inner"), Noisy(name="noisy")])
    inputs = keras.Input((3, 4))
    h = layers.TimeDistributed(frame, name="frames")(inputs)
    text = kfp.analyze(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))).summary()
    assert "is opaque: no handler looks into TimeDistributed around 'inner', 'noisy'" in text
