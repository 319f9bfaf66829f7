"""Widths fit a target's tiles: what counts are worth having, in every allocator, in reports and on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from builders import assert_all_equal, chain
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from strategies import any_tiles
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.__main__ import main
from keras_filterprune.cost import Tiles, as_tiles, as_widths
from keras_filterprune.cost.tiles import TARGETS

AVX512 = "x86-avx512"
WIDTHS = (40, 64, 24, 100, 33)


def data(count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(size=(count, 6, 6, 3)).astype("float32"), np.arange(count) % 3


def counts(plan: kfp.PruningPlan) -> list[tuple[int, int]]:
    """(units kept, units there were) of every group."""
    return [(len(group["kept"]), group["size"]) for group in plan.groups]


def kept(plan: kfp.PruningPlan) -> list[list[int]]:
    return [group["kept"] for group in plan.groups]


# ------------------------------------------------------------------------------------------------- arithmetic


def ladder(tiles: Tiles) -> np.ndarray:
    """Worthwhile counts by definition, rising."""
    return np.array([n for n in range(1, 1000) if n % tiles.step == 0 or n == tiles.first])


@given(tiles=any_tiles(), n=st.integers(1, 200))
def test_counts_are_those_of_brute_force(tiles, n):
    rungs = ladder(tiles)
    assert tiles.ceil(n) == rungs[rungs >= n][0]
    assert tiles.rungs(n) == sorted({*rungs[rungs < n].tolist(), n})
    assert tiles.count(n) == 1 + (rungs < n).sum()
    below = rungs[rungs < n][::-1]
    for steps in range(1, len(below) + 1):
        assert tiles.before(n, steps) == below[steps - 1]
    assert tiles.before(n, len(below) + 1) <= 0
    assert tiles.ceil(0) == tiles.count(0) == 0


@given(tiles=any_tiles())
def test_arrays_and_integers_agree(tiles):
    many = np.arange(-3, 120)
    for method in (tiles.ceil, tiles.count, lambda n: tiles.before(n, 2)):
        found = method(many)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, [method(int(n)) for n in many])
        assert type(method(7)) is int


@given(tiles=any_tiles(), a=st.integers(0, 100), b=st.integers(0, 100))
def test_two_parts_fill_no_fewer_tiles_than_the_whole(tiles, a, b):
    assert tiles.count(a + b) <= tiles.count(a) + tiles.count(b)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"step": 0}, "step is an integer, at least 1. Received: step=0."),
        ({"step": True}, "step is an integer, at least 1. Received: step=True."),
        ({"step": 8, "first": 2.0}, "first is an integer in [1, 4], or None. Received: first=2.0."),
        ({"step": 8, "inputs": -1}, "inputs is an integer, at least 1. Received: inputs=-1."),
        ({"step": 8, "first": 5}, "first is an integer in [1, 4], or None. Received: first=5."),
    ],
)
def test_tiles_that_cannot_be(arguments, sentence):
    with pytest.raises(errors.InvalidValueError, match=re.escape(sentence)):
        Tiles(**arguments)


def test_the_page_lists_the_targets_and_their_steps():
    text = (Path(kfp.__file__).parents[1] / "docs/latency.md").read_text()
    section = re.search(r"^## Targets\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]+?) \|", section, re.MULTILINE)
    assert rows == [(name, str(tiles)) for name, tiles in TARGETS.items()]
    assert all(f'"{name}"' in kfp.prune_model.__doc__ for name in TARGETS)


# --------------------------------------------------------------------------------------------------- pruning

ALLOCATORS = {
    "uniform": allocators.Uniform(),
    "global": allocators.Global(),
    "sensitivity": allocators.Sensitivity((0.5,), measure="error"),
    "tolerance": allocators.Tolerance(measure="error"),
    "search": allocators.Search(beta=5, measure="error"),
    "evolution": allocators.Evolution(population=10, generations=1, measure="error"),
}


@pytest.mark.parametrize("budget", [kfp.MacsBudget(0.3), kfp.ParamsBudget(0.6)], ids=str)
@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
def test_every_width_fits_or_is_whole(allocator, budget):
    method = kfp.Method(criteria.L2(), allocator)
    options = {"data": data()[0], "channel_multiple": AVX512, "progress": False}
    plan = kfp.plan_pruning(chain(WIDTHS), method, budget, **options)
    cost = "params" if isinstance(budget, kfp.ParamsBudget) else "macs"
    assert plan.cost[cost][1] <= budget.keep * plan.cost[cost][0]
    assert all(n == size or n == 16 or n % 32 == 0 for n, size in counts(plan))
    assert sum(n < size for n, size in counts(plan)) >= 2


@pytest.mark.parametrize("floor", [1, 17, 40])
@pytest.mark.parametrize("budget", [kfp.MacsBudget(0.85), kfp.FiltersBudget(0.3)], ids=str)
def test_a_floor_is_never_undercut(floor, budget):
    plan = kfp.plan_pruning(chain(WIDTHS), "l2", budget, channel_multiple=AVX512, min_filters=floor)
    assert all(n == size or (n >= floor and (n == 16 or n % 32 == 0)) for n, size in counts(plan))
    assert any(n < size for n, size in counts(plan))


def test_filters_are_rounded_up_to_the_next_step():
    plan = kfp.plan_pruning(chain(WIDTHS), "l1", kfp.FiltersBudget(0.3), channel_multiple=AVX512)
    assert counts(plan) == [(16, 40), (32, 64), (16, 24), (32, 100), (16, 33)]


@pytest.mark.parametrize("size", [16, 17, 32, 33, 48, 64, 65, 100])
@pytest.mark.parametrize("floor", [1, 16, 17, 33])
def test_a_tolerance_of_anything_reaches_the_fewest_that_fit(size, floor):
    method = kfp.Method(criteria.L2(), allocators.Tolerance(drop=1e9, measure="error"))
    options = {"data": data(4)[0], "channel_multiple": AVX512, "min_filters": floor, "progress": False}
    plan = kfp.plan_pruning(chain((size,)), method, 1.0, **options)
    assert counts(plan) == [(min(TARGETS[AVX512].ceil(floor), size), size)]


def test_a_search_takes_the_half_tile_last(tmp_path):
    search = allocators.Search(beta=5, measure="error", checkpoint=tmp_path / "search.json")
    options = {"data": data()[0], "channel_multiple": AVX512, "progress": False}
    plan = kfp.plan_pruning(chain((100,)), kfp.Method(criteria.L2(), search), 0.2, **options)
    assert counts(plan) == [(16, 100)]
    rounds = search.resume(re.search(r'"key": "(\w+)"', search.checkpoint.path.read_text())[1])[0].rounds
    assert [units for _, units, _ in rounds] == [96, 64, 32, 16]


def test_a_checkpoint_of_other_tiles_is_refused(tmp_path):
    model, options = chain(WIDTHS), {"data": data()[0], "progress": False}
    search = kfp.Method(criteria.L2(), allocators.Search(measure="error", checkpoint=tmp_path / "search.json"))
    first = kfp.plan_pruning(model, search, 0.6, channel_multiple="arm64", **options)
    written = search.allocator.checkpoint.path.read_bytes()
    assert kept(kfp.plan_pruning(model, search, 0.6, channel_multiple=8, **options)) == kept(first)
    assert search.allocator.checkpoint.path.read_bytes() == written
    with pytest.raises(errors.FileError, match="belongs to another search"):
        kfp.plan_pruning(model, search, 0.6, channel_multiple=AVX512, **options)


@pytest.mark.parametrize("method", ["l2", "bn_scale", "pursuit", "energy"])
def test_arm64_is_multiples_of_8(method):
    model, x = chain(WIDTHS), data()[0] if method in ("pursuit", "energy") else None
    named, number = (
        kfp.prune_model(model, method, 0.6, data=x, channel_multiple=c, return_report=True, progress=False)
        for c in ("arm64", 8)
    )
    assert kept(named[1].plan) == kept(number[1].plan)
    assert_all_equal(named[0].get_weights(), number[0].get_weights())


@pytest.mark.parametrize("compensate", ["none", "adapter"])
def test_pruned_models_have_such_widths(compensate):
    options = {"channel_multiple": AVX512, "compensate": compensate, "return_report": True, "progress": False}
    small, report = kfp.prune_model(chain((64, 64, 64)), "l2", 0.4, **options)
    widths = [layer.filters for layer in small.layers if isinstance(layer, layers.Conv2D)]
    assert all(width == 16 or width % 32 == 0 for width in widths)
    assert min(widths) < 64
    assert report.plan.cost["macs"][1] <= 0.4 * report.plan.cost["macs"][0]


# ---------------------------------------------------------------------------------------------------- reports


def test_the_report_counts_the_layers_that_fit():
    """The depthwise layer also has the model's three input channels, which stay."""
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(64, 3, padding="same", name="wide")(x)
    x = layers.Conv2D(48, 3, padding="same", name="narrow")(layers.ReLU()(layers.BatchNormalization()(x)))
    both = layers.Concatenate()([layers.ReLU()(x), inputs])
    both = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(both)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(both)))
    options = {"return_report": True, "progress": False}
    small, report = kfp.prune_model(randomise(model), "l2", kfp.FiltersBudget(0.5), channel_multiple=AVX512, **options)
    widths = {name: small.get_layer(name).output.shape[-1] for name in ("wide", "narrow", "depthwise")}
    assert widths == {"wide": 32, "narrow": 32, "depthwise": 35}
    sentence = "x86-avx512: widths are multiples of 32, or 16 in 2 of 3 layers that became narrower."
    assert report.notes == [sentence]
    assert sentence in report.summary()


def test_the_report_claims_nothing_without_a_target_or_a_narrower_layer():
    model = chain((8, 8))
    for budget, multiple in ((0.5, 4), (1.0, "arm64")):
        _, report = kfp.prune_model(model, "l2", budget, channel_multiple=multiple, return_report=True, progress=False)
        assert report.notes == []


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "hint"),
    [("arm46", " Did you mean 'arm64'?"), ("arm64_int8", " Did you mean 'arm64-int8'?"), ("8", ""), ("", "")],
)
def test_unknown_targets_list_the_known_ones(name, hint):
    listed = ", ".join(TARGETS)
    sentence = f"unknown target {name!r}. Known targets: {listed}.{hint}"
    for call in (kfp.prune_model, kfp.plan_pruning):
        with pytest.raises(errors.UnknownNameError) as caught:
            call(chain((8, 8)), channel_multiple=name)
        assert str(caught.value) == sentence


@pytest.mark.parametrize("value", [0, -8, 8.0, True, None, Tiles(8), ["arm64"]], ids=str)
def test_other_values_are_refused(value):
    with pytest.raises(errors.InvalidValueError, match=r"channel_multiple is an integer, at least 1\. Received: "):
        as_tiles(value)


def test_numpy_integers_are_numbers():
    assert as_tiles(np.int64(8)) == TARGETS["arm64"]
    assert repr(as_tiles(np.int64(8))) == repr(TARGETS["arm64"])


@pytest.mark.parametrize(("words", "step"), [("arm64", 8), ("arm64-fp16", 16), ("8", 8), ("16", 16)])
def test_on_the_command_line(words, step, tmp_path, capsys):
    chain((64, 64)).save(tmp_path / "model.keras")
    arguments = ["prune", tmp_path / "model.keras", "-o", tmp_path / "small.keras", "--channel-multiple", words]
    assert main([*map(str, arguments), "--keep-filters", "0.3"]) == 0
    capsys.readouterr()
    small = keras.models.load_model(tmp_path / "small.keras")
    expected = -(-19 // step) * step
    assert [small.get_layer(name).filters for name in ("conv0", "conv1")] == [expected, expected]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("arm", "unknown target 'arm'."), ("8.0", "unknown target '8.0'."), ("0", "Received: channel_multiple=0.")],
)
def test_bad_words_on_the_command_line_are_one_line(word, sentence, tmp_path, capsys):
    chain((8, 8)).save(tmp_path / "model.keras")
    words = ["prune", tmp_path / "model.keras", "-o", tmp_path / "small.keras", "--channel-multiple", word]
    assert main([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in line
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_auto_leaves_narrow_groups_any_width():
    widths = as_widths("auto")
    assert widths.rungs(31) == list(range(1, 32))
    assert widths.rungs(32) == [8, 16, 24, 32]
    assert widths.rungs(36) == [8, 16, 24, 32, 36]
    assert str(widths) == "multiples of 8 in groups of 32 or more"
    assert as_widths("arm64") == as_tiles("arm64")
    with pytest.raises(errors.UnknownNameError):
        as_tiles("auto")


def test_auto_is_kept_to_and_reported():
    model = chain((22, 48, 40))
    small, report = kfp.prune_model(model, "l2", 0.6, channel_multiple="auto", return_report=True, progress=False)
    sizes = {group["name"]: group["size"] for group in report.plan.groups}
    kept = {group["name"]: len(group["kept"]) for group in report.plan.groups}
    assert all(kept[name] % 8 == 0 for name, size in sizes.items() if size >= 32)
    assert any(kept[name] % 8 for name, size in sizes.items() if size < 32)
    assert any(note.startswith("auto: widths are multiples of 8 in groups of 32 or more in ") for note in report.notes)
    assert small.count_params() < model.count_params()
