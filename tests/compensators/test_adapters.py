"""1x1 convolutions around convolutions: adding, pruning between and merging them, against closed forms and papers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import assert_all_equal, images, predict, total_macs, values
from keras import layers, ops
from zoo import ZOO, random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria, errors
from keras_filterprune.compensators.adapted_models import add_adapters, merge_adapters, wrappable
from keras_filterprune.compensators.adapter_costs import AdaptedCost
from keras_filterprune.criteria.greedy import forward_order

MODELS = [
    "plain_chain",
    "mixed_precision",
    "frozen_layers",
    "residual_projection",
    "inception",
    "unet",
    "grouped_conv",
    "shared_conv",
    "sequential",
    "nested_functional",
    "nested_sequential",
    "functional_in_sequential",
    "nested_called_twice",
    "conv1d_residual",
    "wavenet",
    "conv3d",
    "option_a_shortcut",
]
# A first convolution, 1x1 convolutions, and such as are called twice or in groups, but no other.
UNWRAPPED = ["nested_called_twice", "sequential"]
SIDES = ("_before", "_after")


def assert_same_outputs(model: keras.Model, other: keras.Model, x, tolerance: float = 1e-4) -> None:
    for wanted, received in zip(predict(model, x), predict(other, x), strict=True):
        assert received == pytest.approx(wanted, abs=tolerance * max(1.0, np.abs(wanted).max()))


def squared_error(model: keras.Model, other: keras.Model, x) -> float:
    return sum(np.square(a - b).mean() for a, b in zip(predict(model, x), predict(other, x), strict=True))


def kernel(model: keras.Model, name: str) -> np.ndarray:
    return ops.convert_to_numpy(model.get_layer(name).kernel.value).astype(float)


def paths(model: keras.Model, inside: str = "") -> list[str]:
    """Names of all layers but inputs, those of nested models behind the models' names."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += [inside + layer.name, *paths(layer, f"{inside}{layer.name}/")]
        elif not isinstance(layer, layers.InputLayer):
            found.append(inside + layer.name)
    return found


def adapters(model: keras.Model) -> list[str]:
    return [path for path in paths(model) if path.endswith(SIDES)]


def block(width: int = 8, strides: int = 1, bias: bool = True, seed: int = 0) -> keras.Model:
    """conv1, then a residual block of conv2 and conv3, then conv4 with bias and activation inside."""
    inputs = keras.Input((8, 8, 3))
    y = layers.ReLU(name="relu1")(layers.Conv2D(width, 3, padding="same", name="conv1")(inputs))
    z = layers.Conv2D(width, 3, padding="same", use_bias=bias, name="conv2")(y)
    z = layers.ReLU(name="relu2")(layers.BatchNormalization(name="bn2")(z))
    z = layers.Conv2D(width, 3, padding="same", use_bias=bias, name="conv3")(z)
    y = layers.ReLU(name="relu3")(layers.Add(name="join")([y, layers.BatchNormalization(name="bn3")(z)]))
    y = layers.Conv2D(width, 3, strides=strides, padding="same", activation="relu", name="conv4")(y)
    return randomise(keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(y))), seed)


def pruned(model: keras.Model, budget, method="l2", **options) -> keras.Model:
    options = {"verify": False, "progress": False} | options
    return kfp.prune_model(model, method, budget, compensate="adapter", **options)


# -------------------------------------------------------------------------------------------------- adding, merging


@pytest.mark.parametrize("name", MODELS)
def test_adding_changes_no_output_and_merging_gives_the_model_back(name, tmp_path):
    model = ZOO[name]()
    x, before = random_inputs(model, 3), values(model)
    found = wrappable(kfp.analyze(model))
    wide = add_adapters(model, kfp.analyze(model), found)
    assert bool(found) != (name in UNWRAPPED)
    assert sorted(paths(wide)) == sorted([*paths(model), *(path + side for path in found for side in SIDES)])
    tolerance = 1e-2 if name == "mixed_precision" else 1e-5
    assert_same_outputs(model, wide, x, tolerance)
    wide.save(tmp_path / "wide.keras")
    assert_same_outputs(wide, keras.saving.load_model(tmp_path / "wide.keras", safe_mode=False), x, 1e-6)
    back = merge_adapters(wide)
    assert back.count_params() == model.count_params()
    assert sorted(paths(back)) == sorted(paths(model))
    assert_all_equal(before, values(back))
    assert_same_outputs(model, back, x, 1e-6)
    assert_all_equal(before, values(model))


def test_what_is_wrapped_has_a_window_and_one_caller_and_is_not_the_first():
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(6, 3, padding="same", name="shared")
    y = layers.Conv2D(6, 3, padding="same", name="first")(inputs)
    y = shared(shared(layers.Conv2D(6, 1, name="pointwise")(y)))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = layers.SeparableConv2D(6, 3, padding="same", name="separable")(y)
    y = layers.Conv2D(6, (1, 3), padding="same", name="row")(layers.Conv2D(6, 3, groups=2, name="grouped")(y))
    y = layers.Conv2DTranspose(6, 3, name="transposed")(layers.Conv2D(4, 3, dilation_rate=2, name="dilated")(y))
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="last")(y))
    assert wrappable(kfp.analyze(model)) == ["row", "dilated", "last"]


def test_bias_activation_and_regularizers_move_behind_and_everything_else_stays():
    inputs = keras.Input((9, 9, 3))
    y = layers.Conv2D(5, 3, name="conv1")(inputs)
    y = layers.Conv2D(
        7,
        3,
        strides=2,
        padding="same",
        activation="tanh",
        bias_regularizer="l2",
        kernel_regularizer="l1",
        activity_regularizer="l2",
        name="conv2",
    )(y)
    model = randomise(keras.Model(inputs, layers.Conv2D(2, 1, name="last")(y)))
    wide = add_adapters(model, kfp.analyze(model), ["conv2"])
    before, core, after = (wide.get_layer("conv2" + part) for part in ("_before", "", "_after"))
    assert (before.filters, core.filters, after.filters) == (5, 7, 7)
    assert [layer.kernel_size for layer in (before, core, after)] == [(1, 1), (3, 3), (1, 1)]
    assert [layer.strides for layer in (before, core, after)] == [(1, 1), (2, 2), (1, 1)]
    assert [layer.use_bias for layer in (before, core, after)] == [False, False, True]
    assert [layer.activation.__name__ for layer in (before, core, after)] == ["linear", "linear", "tanh"]
    assert [layer.activity_regularizer is None for layer in (before, core, after)] == [True, True, False]
    np.testing.assert_array_equal(after.bias.numpy(), model.get_layer("conv2").bias.numpy())
    back = merge_adapters(wide).get_layer("conv2").get_config()
    wanted = model.get_layer("conv2").get_config()
    assert {k: v for k, v in back.items() if "regularizer" not in k} == {
        k: v for k, v in wanted.items() if "regularizer" not in k
    }
    for key in ("kernel_regularizer", "bias_regularizer", "activity_regularizer"):
        assert type(back[key]) is type(wanted[key])


def test_adapters_are_frozen_where_their_convolution_is():
    model = ZOO["plain_chain"]()
    model.get_layer("conv2").trainable = False
    wide = add_adapters(model, kfp.analyze(model), ["conv2"])
    assert [wide.get_layer("conv2" + part).trainable for part in ("_before", "", "_after")] == [False] * 3
    assert wide.get_layer("conv3").trainable
    assert not merge_adapters(wide).get_layer("conv2").trainable


def test_a_compiled_model_stays_compiled():
    model = block()
    model.compile("sgd", "mse")
    small = pruned(model, kfp.FiltersBudget(0.5))
    assert small.compiled
    small.fit(images(8), np.zeros((8, 4)), verbose=0)


# --------------------------------------------------------------------------------------------- pruning between them


def low_rank(model: keras.Model, names: tuple[str, ...], side: str, rank: int = 4) -> keras.Model:
    """The same model, these kernels' filters or input slices being combinations of the first `rank` of them."""
    rng = np.random.default_rng(7)
    for name in names:
        k = kernel(model, name)
        mix = rng.normal(size=(rank, rank)) / np.sqrt(rank)
        if side in ("filters", "both"):
            k[..., rank:] = k[..., :rank] @ mix
        if side in ("slices", "both"):
            k[:, :, rank:] = np.einsum("abio,ij->abjo", k[:, :, :rank], mix)
        model.get_layer(name).kernel.assign(k)
    return model


CRITERIA = [criteria.FPOMP(), criteria.FPOMP("gain"), criteria.FPOMP("backward"), criteria.LRF()]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_half_of_the_filters_and_slices_say_everything_where_they_span_the_rest(criterion):
    model, fresh = low_rank(block(), ("conv2", "conv3", "conv4"), "both"), images(seed=1)
    small = pruned(model, kfp.FiltersBudget(0.5), criterion)
    assert [small.get_layer(name).filters for name in ("conv2_before", "conv2", "conv2_after")] == [4, 4, 8]
    assert_same_outputs(model, small, fresh)
    assert_same_outputs(model, small, fresh)
    assert squared_error(block(), pruned(block(), kfp.FiltersBudget(0.5), criterion), fresh) > 1e-3


def test_a_criterion_with_data_is_still_that_criterion():
    """Its own recipe, without labels, rounds or another allocator."""
    small = pruned(block(), kfp.FiltersBudget(0.5), criteria.FPOMP("gain"), data=images())
    assert [small.get_layer(name).filters for name in ("conv2_before", "conv2", "conv2_after")] == [4, 4, 8]


@pytest.mark.parametrize("side", ["filters", "slices"])
def test_one_side_alone(side):
    model = low_rank(block(bias=False), ("conv2", "conv4"), side)
    ending = {"filters": "", "slices": "_before"}[side]
    budget = kfp.FiltersBudget({"conv2" + ending: 0.5, "conv4" + ending: 0.5})
    small = pruned(model, budget, criteria.FPOMP("gain"))
    kept = {"filters": "_after", "slices": "_before"}[side]
    assert adapters(small) == ["conv2" + kept, "conv4" + kept]
    assert_same_outputs(model, small, images())


def combined(model: keras.Model, name: str) -> np.ndarray:
    """The kernel that a convolution and its adapters are together."""
    names = {layer.name for layer in model.layers}
    k = kernel(model, name)
    if name + "_before" in names:
        k = np.einsum("mi,abio->abmo", kernel(model, name + "_before")[0, 0], k)
    return k @ kernel(model, name + "_after")[0, 0] if name + "_after" in names else k


@pytest.mark.parametrize("side", ["filters", "slices", "both"])
def test_together_they_are_the_least_squares_fit_on_what_is_kept(side):
    model = block()
    budget = {"filters": {"conv2": 0.5}, "slices": {"conv2_before": 0.4}, "both": {"conv2": 0.5, "conv2_before": 0.4}}
    small, report = kfp.prune_model(
        model, "l1", kfp.FiltersBudget(budget[side]), compensate="adapter", return_report=True, progress=False
    )
    kept = {group["name"]: group["kept"] for group in report.plan.groups}
    k = wanted = kernel(model, "conv2")
    if side != "slices":
        columns = k.reshape(-1, 8)
        fit = np.linalg.lstsq(columns[:, kept["conv2"]], columns, rcond=None)[0]
        wanted, k = (columns[:, kept["conv2"]] @ fit).reshape(k.shape), k[..., kept["conv2"]]
    if side != "filters":
        slices = np.moveaxis(k, 2, -1).reshape(-1, 8)
        onto = np.linalg.lstsq(slices[:, kept["conv2_before"]], slices, rcond=None)[0]
        wanted = np.moveaxis((slices[:, kept["conv2_before"]] @ onto).reshape(3, 3, -1, 8), -1, 2)
        wanted = wanted @ fit if side == "both" else wanted
    assert combined(small, "conv2") == pytest.approx(wanted, abs=1e-5)
    np.testing.assert_allclose(combined(small, "conv3"), kernel(model, "conv3"), atol=1e-6)


def test_compensation_is_better_than_leaving_out():
    model, x = block(), images()
    small, report = kfp.prune_model(
        model, "fp_omp", kfp.FiltersBudget(0.6), compensate="adapter", return_report=True, progress=False
    )
    wide = add_adapters(model, kfp.analyze(model), ["conv2", "conv3", "conv4"])
    plain = kfp.apply_plan(wide, report.plan, compensate="none", progress=False)
    # 0.6 is seen.
    assert squared_error(model, small, x) < 0.8 * squared_error(model, plain, x)
    method = kfp.Method(criteria.FPOMP(), allocators.Uniform())
    refit = pruned(model, kfp.FiltersBudget(0.6), method, data=images(256, seed=2))
    # 0.2 is seen.
    assert squared_error(model, refit, x) < 0.5 * squared_error(model, small, x)


def test_scaling_a_filter_changes_neither_selection_nor_result():
    """FP-OMP's atoms have unit norm, and coefficients are scaled back."""
    model, x = block(bias=False), images()
    scaled = keras.models.clone_model(model)
    scaled.set_weights(model.get_weights())
    for m in (model, scaled):
        m.get_layer("bn2").epsilon = 0.0
    for name, layer, factor in (
        ("kernel", "conv2", 100.0),
        ("moving_mean", "bn2", 100.0),
        ("moving_variance", "bn2", 1e4),
    ):
        variable = getattr(scaled.get_layer(layer), name)
        array = ops.convert_to_numpy(variable.value).copy()
        array[..., 3] *= factor
        variable.assign(array)
    assert_same_outputs(model, scaled, x)
    found = [
        kfp.prune_model(
            m, "fp_omp", kfp.FiltersBudget({"conv2": 0.5}), compensate="adapter", return_report=True, progress=False
        )
        for m in (model, scaled)
    ]
    (one, first), (two, second) = found
    assert first.plan.kept["conv2"].tolist() == second.plan.kept["conv2"].tolist()
    assert_same_outputs(one, two, x)


def test_the_order_of_filters_does_not_matter():
    model, x = block(), images()
    order = np.random.default_rng(3).permutation(8)
    shuffled = keras.models.clone_model(model)
    shuffled.set_weights(model.get_weights())
    for layer in ("conv2", "bn2"):
        for variable in shuffled.get_layer(layer).weights:
            variable.assign(ops.convert_to_numpy(variable.value)[..., order])
    shuffled.get_layer("conv3").kernel.assign(kernel(model, "conv3")[:, :, order])
    assert_same_outputs(model, shuffled, x)
    for method in (criteria.FPOMP(), criteria.FPOMP("backward"), criteria.LRF()):
        one, two = (pruned(m, kfp.FiltersBudget(0.5), method) for m in (model, shuffled))
        assert_same_outputs(one, two, x)


@pytest.mark.parametrize("budget", [kfp.FiltersBudget(1.0), kfp.ParamsBudget(1.0), 1.0], ids=str)
def test_a_budget_of_everything_changes_nothing(budget):
    model, x = block(), images()
    small = pruned(model, budget)
    assert not adapters(small)
    assert_same_outputs(model, small, x, 1e-6)


@pytest.mark.parametrize("name", ["residual_projection", "preactivation_residual", "nested_functional", "unet"])
def test_no_tensor_outside_changes(name):
    model = ZOO[name]()
    small = pruned(model, kfp.FiltersBudget(0.5), verify=True)
    before, after = ({call.path: call for call in kfp.analyze(m).view.calls} for m in (model, small))
    wrapped = wrappable(kfp.analyze(model))

    def shapes(calls) -> dict[str, tuple]:
        return {
            path: call.output_shapes
            for path, call in calls.items()
            if isinstance(call.op, layers.Layer) and path not in wrapped and not path.endswith(SIDES)
        }

    assert shapes(after) == shapes(before)
    for path in wrapped:
        assert after.get(path + "_after", after[path]).output_shapes == before[path].output_shapes


@pytest.mark.parametrize("share", [0.95, 0.9])
def test_adapters_that_cost_more_than_they_save_are_merged(share):
    """Above 0.895 of the filters on both sides, three convolutions multiply more than one (window 3 x 3)."""
    model = block(20)
    small, report = kfp.prune_model(
        model, "fp_omp", kfp.FiltersBudget(share), compensate="adapter", return_report=True, progress=False
    )
    assert not adapters(small)
    assert small.count_params() == model.count_params()
    assert report.plan.cost == {"macs": [total_macs(model)] * 2, "params": [model.count_params()] * 2}
    # Something was removed all the same, and the least squares fit of it is there.
    assert np.linalg.matrix_rank(kernel(small, "conv2").reshape(-1, 20), tol=1e-4) == round(share * 20)


def test_adapters_that_save_stay():
    small = pruned(block(20), kfp.FiltersBudget(0.85))
    assert len(adapters(small)) == 6


@pytest.mark.parametrize(
    ("keep", "strides", "kind"),
    [
        (keep, strides, (kfp.MacsBudget, kfp.ParamsBudget)[(row + column) % 2])
        for row, keep in enumerate((0.5, 0.8, 0.97))
        for column, strides in enumerate((1, 2, 4))
    ],
)
def test_a_budget_is_a_share_of_the_original_and_never_exceeded(kind, strides, keep):
    inputs = keras.Input((16, 16, 3))
    y = layers.Conv2D(12, 3, padding="same", activation="relu", strides=2, name="conv1")(inputs)
    y = layers.Conv2D(12, 3, padding="same", activation="relu", strides=strides, name="conv2")(y)
    y = layers.Conv2D(16, 5, padding="same", activation="relu", name="conv3")(y)
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))))
    small, report = kfp.prune_model(
        model, "l1", kind(keep=keep), compensate="adapter", return_report=True, verify=False, progress=False
    )
    size = {kfp.MacsBudget: total_macs, kfp.ParamsBudget: keras.Model.count_params}[kind]
    assert size(small) <= keep * size(model)
    assert report.plan.cost == {
        "macs": [total_macs(model), total_macs(small)],
        "params": [model.count_params(), small.count_params()],
    }


def unequal() -> keras.Model:
    """Windows, strides, widths and biases that make adapters pay sooner and later, or never."""
    inputs = keras.Input((16, 16, 3))
    y = layers.Conv2D(10, 3, padding="same", activation="relu", name="conv1")(inputs)
    y = layers.Conv2D(16, 3, padding="same", strides=2, activation="relu", name="conv2")(y)
    y = layers.Conv2D(6, (1, 3), padding="same", use_bias=False, name="conv3")(y)
    y = layers.Conv2D(24, 5, padding="same", activation="relu", name="conv4")(y)
    y = layers.Conv2D(24, 3, padding="same", activation="relu", name="conv5")(y)
    return randomise(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))))


class Energy(kfp.budgets.Budget):
    """A sum of two costs, in which a bias has a price."""

    unit = "fJ"

    def __init__(self, keep):
        self.keep = keep

    def __repr__(self):
        return f"Energy({self.keep})"

    def cost(self, model):
        return 46 * model.macs + 6400 * model.params


def spends(budget) -> callable:
    def count(model: keras.Model) -> int:
        costs = kfp.budgets.CostModel(kfp.analyze(model))
        return budget.cost(costs)(costs.sizes)

    return count


ALLOCATORS = {
    "uniform": allocators.Uniform(),
    "global": allocators.Global(0.7),
    "search": allocators.Search(beta=3, measure="error"),
}
BUDGETS = {
    "macs": kfp.MacsBudget,
    "params": kfp.ParamsBudget,
    "bops": kfp.budgets.BopsBudget,
    "tiles": lambda keep: kfp.LatencyBudget(keep=keep, table="arm64"),
    "energy": Energy,
}


# Every two of allocator, budget and (keep, rounds) meet.
KEEP_AND_ROUNDS = [(0.5, 1), (0.9, 1), (0.6, 2)]
MET = [
    (allocator, budget, *KEEP_AND_ROUNDS[(row + column) % 3])
    for row, allocator in enumerate(ALLOCATORS)
    for column, budget in enumerate(BUDGETS)
]


@pytest.mark.parametrize(("allocator", "budget", "keep", "rounds"), MET)
def test_a_budget_is_met_by_what_is_left_when_adapters_are_merged(allocator, budget, keep, rounds):
    model, budget = unequal(), BUDGETS[budget](keep)
    method = kfp.Method(criteria.L2(), ALLOCATORS[allocator], compensators.Adapters(), rounds)
    data = images(32, (16, 16, 3))
    small, report = kfp.prune_model(model, method, budget, data=data, verify=False, return_report=True, progress=False)
    spent, full = (spends(budget)(m) for m in (small, model))
    assert spent <= keep * full
    if rounds > 1:
        return
    # Priced is what is left, to the unit; and nothing more fits.
    wide = kfp.analyze(add_adapters(model, kfp.analyze(model), wrappable(kfp.analyze(model))))
    price, counts = AdaptedCost(budget, wide), np.array([len(group["kept"]) for group in report.plan.groups])
    assert price(counts) == spent
    assert spent >= 0.99 * keep * full or all(price(more) > keep * full for more in wider(price, wide, counts, budget))


def wider(price, wide, counts, budget):
    """Counts with one side one step wider."""
    steps = budget.widths[0].step
    for number, group in enumerate(wide.groups):
        rungs = price.worthwhile(number, [n for n in range(1, group.size + 1) if n % steps == 0 or n == group.size])
        above = [n for n in rungs if n > counts[number]]
        if above and between(group.name):
            more = counts.copy()
            more[number] = above[0]
            yield more


class ByHand(allocators.Allocator):
    """So few inputs of conv5 that an adapter behind it saves nothing at 21 filters, which it does at all inputs."""

    def allocate(self, problem):
        kept = problem.sizes.copy()
        kept[-3:-1] = 4, 21
        return kept


def test_what_is_merged_has_lost_nothing():
    """Between a kernel and an adapter that does not pay, filters cost nothing."""
    small, report = kfp.prune_model(
        unequal(),
        kfp.Method(criteria.L2(), ByHand(), compensators.Adapters()),
        0.9,
        verify=False,
        return_report=True,
        progress=False,
    )
    kept = {group["name"]: len(group["kept"]) for group in report.plan.groups}
    assert (kept["conv5_before"], kept["conv5"]) == (4, 24)
    assert adapters(small) == ["conv5_before"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_raising_is_free_and_goes_as_far_as_that(budget):
    model, rng = unequal(), np.random.default_rng(0)
    wide = kfp.analyze(add_adapters(model, kfp.analyze(model), wrappable(kfp.analyze(model))))
    price, inner = AdaptedCost(BUDGETS[budget](0.5), wide), [n for n, g in enumerate(wide.groups) if between(g.name)]
    raised = 0
    for _ in range(30):
        keep = wide.sizes.copy()
        keep[inner] = rng.integers(1, wide.sizes[inner] + 1)
        more = price.raised(keep)
        assert price(more) == price(keep) and (more >= keep).all()
        assert (price.raised(more) == more).all()
        raised += (more > keep).sum()
        for number in (n for n in inner if keep[n] < wide.sizes[n] and more[n] == keep[n] and budget == "macs"):
            assert price(np.where(np.arange(len(more)) == number, wide.sizes, more)) > price(more)
    assert raised > 30


def between(name: str) -> bool:
    return name.removesuffix("_before") in ("conv2", "conv3", "conv4", "conv5")


def test_the_smallest_reachable_budget_is_named_as_a_share_of_the_original():
    model = block()
    with pytest.raises(errors.InfeasibleBudgetError, match=r"smallest reachable is ([\d,]+) \(([\d.]+) % of") as caught:
        pruned(model, 0.01)
    assert f"% of {total_macs(model):,})" in str(caught.value)


# ----------------------------------------------------------------------------------------- what the papers counted


def resnet(depth: int) -> keras.Model:
    """The papers' CIFAR network: widths 16, 32, 64, option A shortcuts (subsampling and zero channels)."""

    def conv_bn(x, width, strides, name):
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False, name=name)(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv_bn(inputs, 16, 1, "stem"))
    for stage, width in enumerate((16, 32, 64)):
        for number in range((depth - 2) // 6):
            strides = 2 if stage and not number else 1
            y = conv_bn(
                layers.ReLU()(conv_bn(x, width, strides, f"s{stage}b{number}a")), width, 1, f"s{stage}b{number}b"
            )
            if strides == 2:
                x = ops.pad(x[:, ::2, ::2, :], [(0, 0), (0, 0), (0, 0), (width // 4, width // 4)])
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


def papers_count(model: keras.Model) -> np.ndarray:
    """(parameters, multiply-accumulates) as thop counts them: 2 per output of a normalization, no moving statistics."""
    total = np.zeros(2, int)
    for layer in model.layers:
        sizes = [int(np.prod(w.shape)) for w in layer.trainable_weights]
        if isinstance(layer, layers.BatchNormalization):
            total += sum(sizes), 2 * int(np.prod(layer.output.shape[1:]))
        elif sizes:
            total += sum(sizes), sizes[0] * int(np.prod(layer.output.shape[1:-1]))
    return total


def test_half_of_the_filters_is_the_papers_reduction():
    """FP-OMP's tables: all convolutions but the first, both sides, 1x1 convolutions counted, of the original's cost.

    In per cent of parameters and multiply-accumulates, for CIFAR-10 and CIFAR-100.
    """
    depth, original, ten, hundred = 32, (464_154, 470_004), (-63.29, -62.55), (-62.50, -62.54)
    model = resnet(depth)
    small = pruned(model, kfp.FiltersBudget(0.5), "l1")
    assert len(adapters(small)) == 2 * (depth - 2)
    # 90 more classes cost both as much.
    for params, reduction, more in zip(original, (ten, hundred), (0, 90 * np.array([65, 64])), strict=True):
        before, after = (papers_count(m) + more for m in (model, small))
        assert before[0] == params
        assert 100 * (after / before - 1) == pytest.approx(reduction, abs=0.005)


# ------------------------------------------------------------------------------------------------- plans, options


@pytest.mark.parametrize("data", [False, True])
def test_a_plan_replays_bit_for_bit(data, tmp_path):
    model, more = block(), {"data": images(64)} if data else {}
    small, report = kfp.prune_model(
        model, "fp_omp", 0.6, compensate="adapter", return_report=True, progress=False, **more
    )
    report.plan.save(tmp_path / "plan.json")
    plan = kfp.PruningPlan.load(tmp_path / "plan.json")
    again, second = kfp.apply_plan(model, plan, compensate="adapter", return_report=True, progress=False, **more)
    assert paths(again) == paths(small)
    assert_all_equal(values(small), values(again))
    assert second.to_dict() == report.to_dict()


@pytest.mark.parametrize(
    ("options", "wrapped"),
    [
        ({"include": "conv3"}, {"conv3"}),
        ({"include": ["conv2", "conv4"]}, {"conv2", "conv4"}),
        ({"exclude": "conv3"}, {"conv2", "conv4"}),
        ({"include": "conv*", "exclude": ["conv4", "conv2"]}, {"conv3"}),
    ],
)
def test_options_choose_what_is_wrapped(options, wrapped):
    model = block()
    small, report = kfp.prune_model(
        model,
        "l2",
        kfp.FiltersBudget(0.5),
        compensate="adapter",
        return_report=True,
        progress=False,
        **options,
    )
    assert set(adapters(small)) == {name + side for name in wrapped for side in SIDES}
    for name in {"conv1", "conv2", "conv3", "conv4"} - wrapped:
        np.testing.assert_array_equal(kernel(small, name), kernel(model, name))
    again = kfp.apply_plan(model, report.plan, compensate="adapter", progress=False)
    assert paths(again) == paths(small)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_an_unknown_name_is_an_error_as_it_is_without_adapters(option):
    with pytest.raises(errors.UnknownNameError, match=r"no layer matches 'convv2'\. Did you mean 'conv2'\?"):
        pruned(block(), kfp.FiltersBudget(0.5), **{option: "convv2"})


def test_a_floor_and_a_multiple_hold_between_adapters():
    small = pruned(block(16), kfp.FiltersBudget(0.3), channel_multiple=4, min_filters=6)
    assert [small.get_layer(name).filters for name in ("conv2_before", "conv2", "conv2_after")] == [8, 8, 16]


@pytest.mark.parametrize("name", [*UNWRAPPED, "dense_mlp", "bottleneck"])
def test_a_model_with_nothing_to_wrap_is_a_clear_error(name):
    model = ZOO[name]()
    more = {"exclude": "block*_2"} if name == "bottleneck" else {}
    with pytest.raises(
        errors.InfeasibleBudgetError, match=rf"model '{model.name}' has no convolution that adapters fit"
    ):
        pruned(model, 0.5, **more)


def test_a_pruned_model_can_be_pruned_again():
    model, x = block(16), images()
    once = pruned(model, kfp.FiltersBudget(0.75))
    twice = pruned(once, kfp.FiltersBudget(0.5))
    assert twice.count_params() < once.count_params()
    assert predict(twice, x)[0].shape == (len(x), 4)


@pytest.mark.parametrize("around", ["conv2", "pool"])
def test_layers_that_are_named_like_adapters_are_no_adapters(around):
    inputs = keras.Input((12, 12, 3))
    y = layers.Conv2D(8, 3, padding="same", name="conv1")(inputs)
    y = layers.ReLU(name=f"{around}_before")(y)
    y = layers.MaxPooling2D(2, name="pool")(y)
    y = layers.ReLU(name=f"{around}_after")(y)
    y = layers.Conv2D(8, 3, padding="same", name="conv2")(y)
    model = randomise(keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(y))))
    if around == "conv2":
        # Adapters are known by their names: a convolution whose names are taken stays as it is.
        with pytest.raises(errors.InfeasibleBudgetError, match="no convolution that adapters fit around"):
            pruned(model, kfp.FiltersBudget(0.5))
        return
    small = pruned(model, kfp.FiltersBudget(0.5))
    assert small.get_layer("conv2").filters == 4
    assert_same_outputs(model, pruned(model, kfp.FiltersBudget(1.0)), images(shape=(12, 12, 3)), 1e-5)


# ---------------------------------------------------------------------------------------- one side after the other


def trained(model: keras.Model, seed: int) -> keras.Model:
    """Every kernel moved a little, as training does."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(ops.convert_to_numpy(layer.kernel.value) + rng.normal(0, 0.03, layer.kernel.shape))
    return model


SIDE_ORDERS = {
    "papers": [name + side for name in ("conv4", "conv3", "conv2") for side in ("", "_before")],
    "all inputs, then all outputs": [name + side for side in ("_before", "") for name in ("conv2", "conv3", "conv4")],
}


@pytest.mark.parametrize("order", SIDE_ORDERS)
def test_sides_are_cut_one_after_the_other_and_lose_nothing_where_the_rest_says_it_all(order):
    model, x, names = low_rank(block(), ("conv2", "conv3", "conv4"), "both"), images(), SIDE_ORDERS[order]
    small = model
    for side in names:
        small = pruned(small, kfp.FiltersBudget({side: 0.5}), criteria.FPOMP(), verify=True)
        assert_same_outputs(model, small, x)
    assert sorted(adapters(small)) == sorted(name + side for name in ("conv2", "conv3", "conv4") for side in SIDES)
    for name in ("conv2", "conv3", "conv4"):
        assert [small.get_layer(name + part).filters for part in ("_before", "", "_after")] == [4, 4, 8]
    one = pruned(model, kfp.FiltersBudget(0.5), criteria.FPOMP())
    assert small.count_params() == one.count_params() and total_macs(small) == total_macs(one)


@pytest.mark.parametrize("order", SIDE_ORDERS)
def test_every_side_is_chosen_on_what_training_made_of_the_kernel(order):
    small = block(12)
    for number, side in enumerate(side for side in SIDE_ORDERS[order] if "conv4" not in side):
        small = trained(small, number)
        name, slices = side.removesuffix("_before"), side.endswith("_before")
        now = kernel(small, name)
        rows = np.moveaxis(now, 2 if slices else 3, 0).reshape(now.shape[2 if slices else 3], -1)
        wanted = sorted(forward_order(rows @ rows.T, "omp")[: -(-len(rows) // 2)].tolist())
        budget = kfp.FiltersBudget({side: 0.5})
        next_one, report = kfp.prune_model(
            small, criteria.FPOMP(), budget, compensate="adapter", return_report=True, progress=False
        )
        (kept,) = [group["kept"] for group in report.plan.groups if group["name"] == side]
        assert kept == wanted
        again = kfp.apply_plan(small, report.plan, compensate="adapter", progress=False)
        assert_all_equal(values(next_one), values(again))
        small = next_one


@pytest.mark.parametrize(
    ("side", "budget"),
    [("conv3", 0.7), ("conv3_before", kfp.FiltersBudget(0.7))],
    ids=str,
)
def test_what_has_one_adapter_is_pruned_by_every_budget_and_replayed(side, budget, tmp_path):
    model, x = pruned(block(12), kfp.FiltersBudget({side: 0.5})), images()
    small, report = kfp.prune_model(
        model, "l2", budget, compensate="adapter", exclude="conv4", return_report=True, progress=False
    )
    assert small.count_params() < model.count_params()
    assert predict(small, x)[0].shape == (len(x), 4)
    again = kfp.apply_plan(model, report.plan, compensate="adapter", progress=False)
    assert_all_equal(values(small), values(again))
    # One that is not named stays as it is, its one adapter too.
    other = pruned(model, budget, exclude=["conv3"])
    assert [name for name in adapters(other) if name.startswith("conv3")] == adapters(model)


def test_a_convolution_that_ends_before_its_namesake_is_not_between_adapters():
    """A bias or an activation between two kernels: they are no product."""
    for more in ({"use_bias": True}, {"activation": "relu"}, {"strides": 2}):
        inputs = keras.Input((8, 8, 3))
        y = layers.Conv2D(6, 3, name="first")(inputs)
        y = layers.Conv2D(6, 1, name="conv_before", **({"use_bias": False} | more))(y)
        y = layers.Conv2D(6, 3, name="conv", padding="same")(y)
        model = randomise(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(y))))
        assert "conv" not in wrappable(kfp.analyze(model))
        assert_same_outputs(model, merge_adapters(model), images(), 1e-6)
