"""Removing whole blocks and layers: the result is the network that was never given them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import assert_all_equal, digits, predict
from keras import layers
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.criteria import Criterion
from keras_filterprune.layer_pruning.importance import FilterMean, embeddings, proxy_accuracy
from keras_filterprune.layer_pruning.removal import verify_removal, without_units
from keras_filterprune.layer_pruning.units import find_units


def randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(weight + 0.1 * np.abs(rng.normal(size=weight.shape)))
    return model


def conv_bn(x, filters: int, name: str, relu: bool = True, **kwargs):
    x = layers.Conv2D(filters, 3, padding="same", name=name, use_bias=False, **kwargs)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def resnet(blocks=("a", "b", "c"), final_relu: bool = True) -> keras.Model:
    """Two identity blocks, a strided one with a projection, an identity block; only the named ones are there."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 1))
    x = conv_bn(x, 6, "stem")
    for name in ("a", "b", "down", "c"):
        width, strides = (6, 1) if name in "ab" else (8, 2 if name == "down" else 1)
        if name != "down" and name not in blocks:
            continue
        y = conv_bn(conv_bn(x, 5, f"{name}1", strides=strides), width, f"{name}2", relu=False)
        short = layers.Conv2D(width, 1, strides=strides, name="projection")(x) if name == "down" else x
        x = layers.Add(name=f"{name}_add")([short, y])
        if final_relu:
            x = layers.ReLU(name=f"{name}_out")(x)
    x = layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x))
    return randomised(keras.Model(inputs, x, name="resnet"))


def vgg(names=("conv1", "conv2", "conv3")) -> keras.Sequential:
    keras.utils.set_random_seed(1)
    parts = [keras.Input((8, 8, 1))]
    for name in names:
        parts.append(layers.Conv2D(7, 3, padding="same", name=name, use_bias=False))
        parts.append(layers.BatchNormalization(name=f"{name}_bn"))
        parts.append(layers.Activation("relu", name=f"{name}_relu"))
    parts += [layers.MaxPooling2D(), layers.Flatten(), layers.Dense(12, activation="relu", name="fc1")]
    parts += [layers.Dense(12, activation="tanh", name="fc2"), layers.Dense(10, name="head")]
    return randomised(keras.Sequential(parts, name="vgg"))


def copied(source: keras.Model, target: keras.Model) -> keras.Model:
    """The target with the source's weights, layer by layer."""
    for layer in (layer for layer in target.layers if layer.weights):
        layer.set_weights(source.get_layer(layer.name).get_weights())
    return target


def assert_equal(one: keras.Model, two: keras.Model, x: np.ndarray, atol: float = 1e-5) -> None:
    for a, b in zip(predict(one, x), predict(two, x), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


class Named(Criterion):
    """Scores filters by the names of the layers that make them."""

    def __init__(self, **scores: float):
        self.named = scores

    def scores(self, group, weights):
        return np.full(group.size, max(self.named.get(layer, 9.0) for layer in group.producers))


# -------------------------------------------------------------------------------------------------------- surgery


@pytest.mark.parametrize(("gone", "left"), [("a", "bc"), ("b", "ac"), ("c", "ab"), ("ab", "c"), ("abc", "")])
@pytest.mark.parametrize("final_relu", [True, False])
def test_the_rest_is_the_network_built_without_the_block(gone, left, final_relu):
    model, (x, _) = resnet(final_relu=final_relu), digits(20)
    before = [w.copy() for w in model.get_weights()]
    criterion = Named(**{f"{name}1": 0.0 for name in gone})
    small, report = kfp.prune_layers(model, len(gone), method=criterion, return_report=True, progress=False)
    assert report.removed == [f"{name}_add" for name in gone]
    assert report.verification <= 1e-5
    expected = copied(model, resnet(tuple(left), final_relu))
    assert_equal(small, expected, x)
    assert small.count_params() == expected.count_params()
    assert len(small.layers) == len(expected.layers)
    assert_all_equal(before, model.get_weights())


@pytest.mark.parametrize("gone", ["conv2", "conv3", "fc2"])
def test_the_rest_is_the_chain_built_without_the_layer(gone):
    model, (x, _) = vgg(), digits(20)
    small, report = kfp.prune_layers(model, 1, method="l2", include=gone, return_report=True, progress=False)
    assert report.removed == [gone]
    assert isinstance(small, keras.Sequential)
    assert not {layer.name for layer in small.layers} & {gone, f"{gone}_bn", f"{gone}_relu"}
    if gone != "fc2":
        names = tuple(name for name in ("conv1", "conv2", "conv3") if name != gone)
        assert_equal(small, copied(model, vgg(names)), x)
    assert len(small.layers) == len(model.layers) - (1 if gone == "fc2" else 3)


def test_a_projection_takes_over_its_branch_if_that_is_wanted():
    model, (x, _) = resnet(), digits(20)
    reasons = find_units(kfp.analyze(model))[1]
    assert "projections=True" in reasons["down1"]
    small, report = kfp.prune_layers(
        model, 1, method="l2", projections=True, include="down*", return_report=True, progress=False
    )
    assert [(row.name, row.kind) for row in report.units] == [("down_add", "branch")]
    # The branch adds nothing where its last normalization is zero.
    silent = keras.models.clone_model(model)
    silent.set_weights(model.get_weights())
    for weight in (silent.get_layer("down2_bn").gamma, silent.get_layer("down2_bn").beta):
        weight.assign(np.zeros(weight.shape))
    assert_equal(small, silent, x)
    assert "projection" in {layer.name for layer in small.layers}


@pytest.mark.parametrize(
    "name", ["residual_identity", "preactivation_residual", "bottleneck", "convnext", "shufflenet_v1"]
)
def test_a_block_whose_last_layer_is_zero_leaves_the_outputs_as_they_are(name):
    """Whatever the block holds: what it adds to its shortcut is nothing."""
    model = ZOO[name]()
    graph = kfp.analyze(model)
    unit = next(unit for unit in find_units(graph)[0] if unit.kind == "block")
    add = next(call for call in graph.view.calls if call.path == unit.name)
    last = next(ref.call for ref in add.inputs if ref != unit.source)
    while not getattr(graph.view.calls[last].op, "weights", None):
        last = graph.view.calls[last].inputs[0].call
    for weight in graph.view.calls[last].op.trainable_weights:
        weight.assign(np.zeros(weight.shape))
    x = random_inputs(model)
    small = without_units(model, graph, [unit])
    np.testing.assert_array_equal(small(x, training=False), model(x, training=False))


def test_every_unit_of_the_zoo_can_go_alone_and_with_the_others():
    found = 0
    for build in ZOO.values():
        model = build()
        graph = kfp.analyze(model)
        units, reasons = find_units(graph, projections=True)
        named = {layer for unit in units for layer in unit.layers}
        assert {term.layer for term in graph.terms} <= named | set(reasons)
        assert not named & set(reasons)
        for gone in [[unit] for unit in units] + [units] * (len(units) > 1):
            small = without_units(model, graph, gone)
            verify_removal(graph, small, gone)
            assert small.count_params() < model.count_params()
            assert kfp.analyze(small)
            found += 1
    assert found > 30


def test_kept_says_all_or_none_of_every_layer():
    model = resnet()
    small, report = kfp.prune_layers(model, 1, return_report=True, progress=False)
    left = {layer.name for layer in small.layers}
    widths = {layer.name: layer.filters for layer in model.layers if hasattr(layer, "filters")}
    assert set(widths) <= set(report.kept) and not set(widths) <= left
    for name, width in widths.items():
        assert report.kept[name].tolist() == (list(range(width)) if name in left else [])
    assert "kept" not in report.to_dict()


def test_the_check_sees_another_wiring():
    model = resnet()
    graph = kfp.analyze(model)
    units = find_units(graph)[0]
    with pytest.raises(errors.SurgeryError, match="differs from the original"):
        verify_removal(graph, without_units(model, graph, units[:1]), units[1:2])


def test_names_flags_and_compilation_survive(tmp_path):
    model = resnet()
    model.get_layer("stem").trainable = False
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    small = kfp.prune_layers(model, 1, progress=False)
    assert small.compiled and float(small.optimizer.learning_rate) == pytest.approx(0.1)
    assert not small.get_layer("stem").trainable
    x, y = digits(64)
    small.fit(x, y, verbose=0)
    small.save(tmp_path / "small.keras")
    assert_equal(keras.models.load_model(tmp_path / "small.keras"), small, x)


@pytest.mark.parametrize("first", ["layers", "filters"])
def test_filters_and_layers_go_in_either_order(first):
    model, (x, _) = resnet(), digits(20)
    steps = [
        lambda m: kfp.prune_layers(m, 1, progress=False),
        lambda m: kfp.prune_model(m, "l2", kfp.FiltersBudget(0.5), progress=False),
    ]
    small = model
    for step in steps if first == "layers" else steps[::-1]:
        small = step(small)
    assert small.count_params() < 0.5 * model.count_params()
    assert np.isfinite(small.predict(x, verbose=0)).all()


def test_the_file_for_phones_has_fewer_operators(tmp_path):
    model = resnet()
    small = kfp.prune_layers(model, 2, progress=False)
    before, after = (kfp.export_tflite(m, tmp_path / f"{n}.tflite") for n, m in enumerate((model, small)))
    removed = {"CONV_2D": 4, "ADD": 2}
    assert {op: before.ops[op] - after.ops.get(op, 0) for op in before.ops} == dict.fromkeys(before.ops, 0) | removed
    assert after.bytes < before.bytes


# The layers of equal shape at the start of these two are no blocks.
APPLICATIONS = [
    ("ResNet50", 12, None),
    ("ResNet50V2", 9, None),
    ("MobileNetV2", 10, "expanded_conv_depthwise"),
    ("EfficientNetB0", 9, "block1a_dwconv"),
    ("ConvNeXtTiny", 18, None),
]
# The others' files are written elsewhere.
WRITTEN = ("MobileNetV2", "ConvNeXtTiny")


@pytest.mark.parametrize(("name", "blocks", "exclude"), APPLICATIONS)
def test_networks_of_keras_applications_lose_their_blocks(name, blocks, exclude, tmp_path):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3))
    small, report = kfp.prune_layers(model, blocks, exclude=exclude, return_report=True, progress=False)
    assert sum(row.kind == "block" for row in report.units) == blocks == len(report.removed)
    assert report.verification <= 1e-5
    if name in WRITTEN:
        small.save(tmp_path / "small.keras")
        again = keras.models.load_model(tmp_path / "small.keras")
        x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
        assert_equal(again, small, x)
        assert kfp.export_tflite(small, tmp_path / "small.tflite").top1_agreement == 1


# ------------------------------------------------------------------------------------------------------ importance


def test_importance_is_a_mean_over_filters():
    """Twice the filters, each of them there twice: the same importance."""

    def network(copies: int) -> keras.Model:
        inputs = keras.Input((4, 4, 4 * copies))
        y = layers.Conv2D(4 * copies, 1, name="inner", use_bias=False)(inputs)
        model = keras.Model(inputs, layers.Flatten()(layers.Add(name="add")([inputs, y])))
        kernel = np.random.default_rng(0).normal(size=(1, 1, 4, 4))
        model.get_layer("inner").kernel.assign(np.tile(kernel, (1, 1, copies, copies)) / copies)
        return model

    scores = []
    for copies in (1, 2):
        graph = kfp.analyze(network(copies))
        scores.append(FilterMean(kfp.criteria.L1()).scores(graph, find_units(graph)[0], None, False))
    np.testing.assert_allclose(*scores, rtol=1e-6)


def test_importance_is_the_criterions_own_score_of_all_the_layers_filters():
    model = resnet()
    graph = kfp.analyze(model)
    units = find_units(graph)[0]
    found = FilterMean(kfp.criteria.L1()).scores(graph, units, None, False)
    for unit, score in zip(units, found, strict=True):
        name = unit.name[0]
        kernels = [model.get_layer(f"{name}{number}").kernel.numpy() for number in (1, 2)]
        expected = np.concatenate([np.abs(k).sum(axis=(0, 1, 2)) for k in kernels]).mean()
        assert score == pytest.approx(expected, rel=1e-5)


def test_least_important_units_go_first_and_others_never():
    model = resnet()
    for name in ("down1", "down2", "stem"):
        model.get_layer(name).kernel.assign(np.zeros(model.get_layer(name).kernel.shape))
    small, report = kfp.prune_layers(model, 3, method="l1", return_report=True, progress=False)
    assert report.removed == ["a_add", "b_add", "c_add"]
    assert {"down1", "down2", "stem", "projection"} <= {layer.name for layer in small.layers}
    assert set(report.unremovable) == {"stem", "down1", "down2", "projection", "head"}


# Those that say nothing of blocks, and those with the criterion of another.
LEFT_OUT = ("excitation", "fp_omp", "lrf", "auto", "search", "hu_ga", "balanced", "clr")


@pytest.mark.parametrize("name", [name for name, *_ in kfp.list_methods() if not name.startswith(LEFT_OUT)])
def test_every_criterion_scores_blocks(name):
    _, report = kfp.prune_layers(
        resnet(), 1, method=name, data=digits(60), return_report=True, progress=False, verify=False
    )
    assert len(report.units) == 3
    assert np.isfinite([row.importance for row in report.units]).all()
    kept = [row.importance for row in report.units if not row.removed]
    (gone,) = (row.importance for row in report.units if row.removed)
    assert gone <= min(kept)


@pytest.mark.parametrize("final_relu", [True, False])
def test_a_gate_of_a_block_is_a_factor_on_what_it_adds(final_relu):
    """Central differences: scaling the last normalization of a block scales its output, and nothing else."""
    model, (x, y) = resnet(final_relu=final_relu), digits(60)
    graph = kfp.analyze(model)
    found = kfp.layer_pruning.BlockGate().scores(graph, find_units(graph)[0], (x, y), False)

    def loss():
        scores = np.asarray(model(x), np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y])

    for name, score in zip("abc", found, strict=True):
        bn, squares = model.get_layer(f"{name}2_bn"), []
        values = [(weight, weight.numpy()) for weight in (bn.gamma, bn.beta)]
        for channel in range(len(values[0][1])):
            losses = []
            for factor in (1.02, 0.98):
                for weight, value in values:
                    weight.assign(value * np.where(np.arange(len(value)) == channel, factor, 1))
                losses.append(loss())
            squares.append(((losses[0] - losses[1]) / 0.04) ** 2)
        for weight, value in values:
            weight.assign(value)
        assert score == pytest.approx(np.mean(squares), rel=3e-2)


def test_gates_of_blocks_stand_behind_plain_layers_too_and_need_labels():
    model, (x, y) = vgg(), digits()
    _, report = kfp.prune_layers(model, 1, method="block_gate", data=(x, y), return_report=True, progress=False)
    assert report.criterion == "BlockGate()" and {row.kind for row in report.units} == {"convolution"}
    with pytest.raises(errors.CalibrationDataError, match="needs labelled samples"):
        kfp.prune_layers(model, 1, method="block_gate", progress=False)


def test_an_ensemble_adds_places():
    model, data = resnet(), digits()
    graph = kfp.analyze(model)
    units = find_units(graph)[0]
    places = [
        np.argsort(np.argsort(FilterMean(criterion).scores(graph, units, data, False)))
        for criterion in (kfp.criteria.L1(), kfp.criteria.TaylorGate())
    ]
    found = kfp.layer_pruning.Ensemble(["l1", "taylor_gate"]).scores(graph, units, data, False)
    np.testing.assert_array_equal(found, sum(places))
    default = "Ensemble(L2(aggregate='mean'), Taylor(aggregate='mean', group=False), TaylorGate())"
    assert repr(kfp.layer_pruning.Ensemble()) == default


# ------------------------------------------------------------------------------------------------------ imprinting


def test_embeddings_are_adaptive_averages():
    values = np.random.default_rng(0).normal(size=(3, 7, 5, 64)).astype("float32")
    found = embeddings(values).reshape(3, 3, 3, 64)
    for i, rows in enumerate([slice(0, 3), slice(2, 5), slice(4, 7)]):
        for j, columns in enumerate([slice(0, 2), slice(1, 4), slice(3, 5)]):
            np.testing.assert_allclose(found[:, i, j], values[:, rows, columns].mean(axis=(1, 2)), rtol=1e-4, atol=1e-6)
    assert embeddings(np.zeros((2, 4, 4, 4096))).shape == (2, 4096)
    assert embeddings(np.zeros((2, 2, 2, 2))).shape == (2, 8)
    assert embeddings(np.zeros((2, 9))).shape == (2, 9)


def test_proxy_accuracy_counts_by_class_means():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    values = np.eye(4)[labels] + 0.05 * rng.normal(size=(200, 4))
    assert proxy_accuracy(values, labels) == 1
    assert proxy_accuracy(1000 * values, labels) == 1
    assert proxy_accuracy(rng.normal(size=(200, 4)), labels) == pytest.approx(0.25, abs=0.1)
    noisy = np.eye(4)[labels] + 0.5 * rng.normal(size=(200, 4))
    assert proxy_accuracy(noisy, labels) == proxy_accuracy(noisy * 1e-4, labels) < 1
    # Brute force, one half after the other.
    right = 0
    for own in (np.arange(200) % 2 == 0, np.arange(200) % 2 == 1):
        means = [noisy[own & (labels == c)].mean(axis=0) for c in range(4)]
        for value, label in zip(noisy[~own], labels[~own], strict=True):
            right += np.argmax([value @ m / np.linalg.norm(m) for m in means]) == label
    assert proxy_accuracy(noisy, labels) == pytest.approx(right / 200)


def test_a_block_that_does_nothing_adds_no_accuracy():
    model = resnet()
    bn = model.get_layer("b2_bn")
    bn.gamma.assign(np.zeros(6))
    bn.beta.assign(np.zeros(6))
    graph = kfp.analyze(model)
    units = find_units(graph)[0]
    found = kfp.layer_pruning.Imprinting().scores(graph, units, digits(), False)
    assert found[1] == 0
    # As many images are told apart before the unit as by the network that ends there.
    x, y = digits()
    ends = [model.get_layer(name).output for name in ("stem_relu", "a_out")]
    values = [embeddings(keras.Model(model.input, end).predict(x, verbose=0)) for end in ends]
    expected = proxy_accuracy(values[1], y) - proxy_accuracy(values[0], y)
    assert found[0] == pytest.approx(expected, abs=2 / len(y))


# ---------------------------------------------------------------------------------------------------------- budgets


def test_budgets_are_met_and_what_fits_again_stays():
    model = resnet()
    full = kfp.budgets.CostModel(kfp.analyze(model))
    macs = {
        name: full.macs.by_layer(full.sizes)[f"{name}1"] + full.macs.by_layer(full.sizes)[f"{name}2"] for name in "abc"
    }
    total = full.macs(full.sizes)
    # The small block c goes first, then a; without a alone the budget holds, and c comes back.
    assert macs["c"] < macs["a"] == macs["b"]
    keep = 1 - (macs["a"] - 0.5) / total
    criterion = Named(c1=0.0, a1=1.0, b1=2.0)
    small, report = kfp.prune_layers(model, budget=keep, method=criterion, return_report=True, progress=False)
    assert report.removed == ["a_add"]
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    assert report.cost["macs"] == (total, cost.macs(cost.sizes))
    assert cost.macs(cost.sizes) <= keep * total
    assert report.cost["params"] == (model.count_params(), small.count_params())
    same = kfp.prune_layers(model, budget=1.0, progress=False)
    assert same is not model and same.count_params() == model.count_params()
    small = kfp.prune_layers(model, budget=kfp.ParamsBudget(0.8), progress=False)
    assert small.count_params() <= 0.8 * model.count_params()


def test_include_and_exclude():
    def removed(**options):
        return kfp.prune_layers(resnet(), 1, method="l1", return_report=True, progress=False, **options)[1]

    assert removed(include="c*").removed == ["c_add"]
    report = removed(exclude=["a*", "b_add"])
    assert report.removed == ["c_add"]
    assert report.unremovable["a1"] == "is excluded by 'a*'"
    assert report.unremovable["b2"] == "is excluded by 'b_add'"


# --------------------------------------------------------------------------------------------------------- the report


def test_the_report_says_what_went_and_what_could_not():
    _, report = kfp.prune_layers(resnet(), 2, method="l1", return_report=True, progress=False)
    assert report.summary().startswith("2 of 3 units removed: ")
    assert report.table().row_count == 3
    assert report.unremovable["stem"] == "changes the shape: (8, 8, 1) to (8, 8, 6)"
    content = report.to_dict()
    assert [unit["removed"] for unit in content["units"]].count(True) == 2
    assert content["unremovable"] == report.unremovable


def test_reasons():
    inputs = keras.Input((6, 6, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    h = layers.Add(name="add1")([inputs, shared(inputs)])
    h = layers.Add(name="add2")([h, shared(h)])
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(h)
    h = layers.Multiply(name="times")([h, gate])
    last = layers.Conv2D(4, 3, padding="same", name="last")(h)
    reasons = find_units(kfp.analyze(keras.Model(inputs, last)))[1]
    assert reasons == {
        "shared": "ends in 'add2', but 'shared' is called elsewhere, too",
        "gate": "is one of several branches",
        "last": "gives an output of the model",
    }
    outer = layers.Add(name="outer")([inputs, layers.Conv2D(4, 1, name="after")(resnet_like(inputs))])
    units, reasons = find_units(kfp.analyze(keras.Model(inputs, layers.Flatten()(outer))))
    assert [unit.name for unit in units] == ["inner"]
    assert reasons["after"] == "is in 'outer', which holds 'inner'"
    whole = find_units(kfp.analyze(keras.Model(inputs, outer)))[1]
    assert whole["after"] == "ends in 'outer', an output of the model"


def test_a_branch_that_multiplies_nothing_is_no_unit():
    inputs = keras.Input((6, 6, 4))
    h = layers.Conv2D(5, 3, name="conv")(inputs)
    h = layers.Add(name="add")([h, layers.ReLU()(h)])
    graph = kfp.analyze(keras.Model(inputs, layers.Flatten()(h)))
    assert find_units(graph) == ([], {"conv": "changes the shape: (6, 6, 4) to (4, 4, 5)"})


def resnet_like(x):
    y = layers.Conv2D(4, 3, padding="same", name="first")(layers.Conv2D(4, 1, name="zeroth")(x))
    return layers.Add(name="inner")([x, y])


# ---------------------------------------------------------------------------------------------------------- bad input


def test_bad_arguments():
    model = resnet()
    for arguments in ({}, {"n_layers": 1, "budget": 0.5}):
        with pytest.raises(errors.InfeasibleBudgetError, match="expects n_layers= or budget="):
            kfp.prune_layers(model, **arguments)
    for n_layers in (0, -1, True, 1.5, "2"):
        with pytest.raises(errors.InvalidValueError, match="n_layers is a number of units, at least 1"):
            kfp.prune_layers(model, n_layers)
    with pytest.raises(errors.InfeasibleBudgetError, match=r"n_layers=4, and 3 units can be removed: 'a_add', 'b_add'"):
        kfp.prune_layers(model, 4)
    with pytest.raises(errors.InfeasibleBudgetError, match=r"without all 3 units .* are left \(\d+\.\d % of"):
        kfp.prune_layers(model, budget=0.05)
    with pytest.raises(errors.InfeasibleBudgetError, match="removes whole layers"):
        kfp.prune_layers(model, budget=kfp.FiltersBudget(0.5))
    with pytest.raises(errors.InvalidValueError, match="says nothing about the layer"):
        kfp.prune_layers(model, 1, method="fp_omp")
    with pytest.raises(errors.UnknownNameError, match="method is a name"):
        kfp.prune_layers(model, 1, method=3)
    with pytest.raises(errors.UnknownNameError, match="no layer matches 'conv9'"):
        kfp.prune_layers(model, 1, exclude="conv9")
    for criteria in ([], "l2"):
        with pytest.raises(errors.InvalidValueError, match="criteria is a list of criteria"):
            kfp.layer_pruning.Ensemble(criteria)
    for criterion in ("taylor", "ensemble", "imprinting", "cap"):
        with pytest.raises(errors.CalibrationDataError, match="pass data="):
            kfp.prune_layers(model, 1, method=criterion)
    with pytest.raises(errors.CalibrationDataError, match="imprinting needs labelled samples"):
        kfp.prune_layers(model, 1, method="imprinting", data=digits()[0])


def test_models_without_a_removable_layer():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(3)]
    )
    with pytest.raises(errors.InfeasibleBudgetError, match=r"no layer that can be removed.*'conv' changes the shape"):
        kfp.prune_layers(model, 1)
    broken = resnet()
    broken.get_layer("a1").kernel.assign(np.full(broken.get_layer("a1").kernel.shape, np.nan))
    with pytest.raises(errors.UnsupportedModelError, match="NaN or infinite"):
        kfp.prune_layers(broken, 1)


def test_filters_that_could_not_go_one_by_one_are_scored_all_the_same():
    inputs = h = keras.Input((8, 8, 4))
    for name in ("one", "two"):
        h = layers.Add(name=f"{name}_add")([h, layers.Conv2D(4, 3, padding="same", name=name)(h)])
    model = randomised(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(h))))
    model.get_layer("two").kernel.assign(0.5 * model.get_layer("one").kernel)
    data = np.random.default_rng(0).normal(size=(20, 8, 8, 4)).astype("float32"), np.arange(20) % 3
    assert not kfp.analyze(model).groups
    for criterion in ("l1", "taylor"):
        report = kfp.prune_layers(model, 1, method=criterion, data=data, return_report=True, progress=False)[1]
        assert criterion != "l1" or report.removed == ["two_add"]
        assert len(report.units) == 2
    with pytest.raises(
        errors.InfeasibleBudgetError, match=r"'one' is in 'one_add', of which TaylorGate\(\) says nothing"
    ):
        kfp.prune_layers(model, 1, method="taylor_gate", data=data, progress=False)


def test_units_a_criterion_says_nothing_of_stay():
    inputs = keras.Input((8, 8, 4))
    h = layers.Add(name="bare")([inputs, layers.Conv2D(4, 3, padding="same", name="one")(inputs)])
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(5, 3, padding="same", name="two")(h))
    h = layers.Add(name="normal")([h, layers.Conv2D(4, 3, padding="same", name="three")(y)])
    model = keras.Model(inputs, layers.Flatten()(h))
    _, report = kfp.prune_layers(model, 1, method="bn_scale", return_report=True, progress=False)
    assert report.removed == ["normal"]
    assert report.unremovable["one"].startswith("is in 'bare', of which BNScale")
