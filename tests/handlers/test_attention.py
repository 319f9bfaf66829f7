"""Heads of attention: what is left equals the dense model with zeros where its output kernel reads the others."""

import inspect

import keras
import numpy as np
import pytest
from builders import predict, shrunk, total_macs
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from oracle import difference
from zoo import random_inputs, randomise

import keras_filterprune as kfp

TIME, WIDTH = 6, 8
SITUATIONS = {}


def situation(build):
    SITUATIONS[build.__name__] = build
    return build


every = pytest.mark.parametrize("name", SITUATIONS)


def built(name, seed=0):
    return randomise(SITUATIONS[name](), seed)


def stream(x, name="stream", width=WIDTH):
    return layers.Dense(width, name=name)(x)


def block(x, y, number=""):
    """What a transformer does behind attention: sum, normalization, and two dense layers beside a shortcut."""
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(12, activation="gelu", name=f"up{number}")(x)
    return layers.LayerNormalization()(layers.Add()([x, layers.Dense(x.shape[-1], name=f"down{number}")(y)]))


def ended(inputs, x, *more):
    x = layers.Flatten()(x)
    outputs = [layers.Dense(3, name="scores")(x), *more]
    return keras.Model(inputs, outputs if more else outputs[0])


def attended(shape=(TIME, 3), call=None, **arguments):
    """Self-attention over a sequence, with these arguments of the layer and of its call."""
    inputs = keras.Input(shape)
    x = stream(inputs)
    y = layers.MultiHeadAttention(4, 3, name="attention", **arguments)(x, x, **(call or {}))
    return ended(inputs, block(x, y))


def grouped(queries=6, keys=3, **arguments):
    inputs = keras.Input((TIME, 3))
    x = stream(inputs)
    return ended(inputs, block(x, layers.GroupQueryAttention(4, queries, keys, name="attention", **arguments)(x, x)))


@situation
def plain():
    return attended()


@situation
def causal():
    return attended(call={"use_causal_mask": True})


@situation
def no_bias():
    return attended(use_bias=False)


@situation
def other_values():
    return attended(value_dim=5)


@situation
def dropout():
    return attended(dropout=0.3, call={"use_causal_mask": True})


@situation
def all_axes():
    return attended((3, 4, 3))


@situation
def one_axis():
    return attended((3, 4, 3), attention_axes=-2)


@situation
def open_length():
    inputs = keras.Input((None, 3))
    x = stream(inputs)
    x = block(x, layers.MultiHeadAttention(4, 3, name="attention")(x, x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@situation
def wide_output():
    inputs = keras.Input((TIME, 3))
    x = stream(inputs)
    y = layers.MultiHeadAttention(4, 3, output_shape=10, name="attention")(x, x)
    return ended(inputs, block(stream(inputs, "stream2", 10), y))


@situation
def alone():
    """No shortcut: the output may become narrower than the query, by whose width it goes otherwise."""
    inputs = keras.Input((TIME, 3))
    x = stream(inputs)
    return keras.Model(inputs, layers.Dense(4, name="down")(layers.MultiHeadAttention(4, 3, name="up")(x, x)))


@situation
def square_output():
    inputs = keras.Input((TIME, 3))
    x = stream(inputs)
    y = layers.MultiHeadAttention(4, 3, output_shape=(2, 5), name="attention")(x, x)
    return ended(inputs, layers.Add()([layers.Reshape((TIME, 2, 5))(stream(inputs, "stream2", 10)), y]))


@situation
def across():
    """Queries, values and keys of three widths and two lengths, by name."""
    inputs = [keras.Input((TIME, 3)), keras.Input((4, 3))]
    query, value, key = stream(inputs[0]), stream(inputs[1], "stream_v", 5), stream(inputs[1], "stream_k", 7)
    y = layers.MultiHeadAttention(4, 3, name="attention")(key=key, query=query, value=value)
    return ended(inputs, block(query, y))


@situation
def across_two():
    inputs = [keras.Input((TIME, 3)), keras.Input((4, 3))]
    query, value = stream(inputs[0]), stream(inputs[1], "stream_v", 5)
    return ended(inputs, block(query, layers.MultiHeadAttention(4, 3, name="attention")(query, value)))


@situation
def masked_by_a_layer():
    inputs = keras.Input((TIME,), dtype="int32")
    x = layers.Embedding(10, WIDTH, mask_zero=True, name="stream")(inputs)
    x = block(x, layers.MultiHeadAttention(4, 3, name="attention")(x, x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@situation
def masked_by_an_input():
    inputs = [keras.Input((TIME, 3)), keras.Input((TIME, TIME), dtype="bool")]
    x = stream(inputs[0])
    y = layers.MultiHeadAttention(4, 3, name="attention")(x, x, attention_mask=inputs[1])
    return ended(inputs, block(x, y))


@situation
def masked_alike():
    inputs = [keras.Input((TIME, 3)), keras.Input((1, TIME, TIME), dtype="bool")]
    x = stream(inputs[0])
    y = layers.MultiHeadAttention(4, 3, name="attention")(x, x, attention_mask=inputs[1])
    return ended(inputs, block(x, y))


@situation
def two_calls():
    inputs, layer = keras.Input((TIME, 3)), layers.MultiHeadAttention(4, 3, name="attention")
    x = stream(inputs)
    x = layers.LayerNormalization()(layers.Add()([x, layer(x, x)]))
    return ended(inputs, block(x, layer(x, x, use_causal_mask=True)))


@situation
def groups():
    return grouped()


@situation
def groups_without_bias():
    return grouped(4, 2, use_bias=False, dropout=0.1)


@situation
def groups_across():
    inputs = [keras.Input((TIME, 3)), keras.Input((4, 3))]
    query, value = stream(inputs[0]), stream(inputs[1], "stream_v")
    return ended(inputs, block(query, layers.GroupQueryAttention(4, 4, 2, name="attention")(query, value)))


if "use_gate" in inspect.signature(layers.MultiHeadAttention).parameters:

    @situation
    def gated():
        return attended(use_gate=True, value_dim=2)

    @situation
    def gated_groups():
        return grouped(use_gate=True)


@situation
def time_series():
    """Two blocks, each normalized before attention and before two convolutions of size 1."""
    inputs = keras.Input((10, 1))
    x = stream(inputs, width=4)
    for number in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.MultiHeadAttention(4, 6, dropout=0.25, name=f"attention{number}")(y, y)
        x = layers.Add()([layers.Dropout(0.25)(y), x])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dropout(0.25)(layers.Conv1D(8, 1, activation="relu", name=f"up{number}")(y))
        x = layers.Add()([layers.Conv1D(4, 1, name=f"down{number}")(y), x])
    x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    x = layers.Dense(9, activation="relu", name="up")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="down")(layers.Dropout(0.4)(x)))


@situation
def vision():
    """Patches, positions, a block with attention before normalization."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((16, WIDTH))(layers.Conv2D(WIDTH, 2, 2, name="stream")(inputs))
    y = layers.LayerNormalization()(x)
    return ended(inputs, block(x, layers.MultiHeadAttention(4, 2, name="attention")(y, y)))


class Block(layers.Layer):
    """A transformer's block, as people write it."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(4, 3, name="attention")
        self.up, self.down = layers.Dense(12, activation="relu", name="up"), layers.Dense(width, name="down")
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.down(self.up(x)))


@situation
def composite():
    inputs = keras.Input((TIME, 3))
    return ended(inputs, Block(WIDTH, name="block")(stream(inputs)))


@situation
def by_equations():
    """Projections into heads and back by equations; what is between them sums over neither."""
    inputs = keras.Input((TIME, 3))
    x = stream(inputs)
    y = layers.EinsumDense("abc,cde->abde", (TIME, 4, 5), "tanh", "de", name="up1")(x)
    y = layers.EinsumDense("abde,dec->abc", (TIME, WIDTH), bias_axes="c", name="down1")(y)
    x = layers.Add()([x, y])
    y = layers.EinsumDense("...x,xy->...y", 12, "gelu", "y", name="up2")(layers.LayerNormalization()(x))
    return ended(inputs, layers.Add()([x, layers.EinsumDense("...x,xy->...y", WIDTH, name="down2")(y)]))


def without(model, plan):
    """The model with zeros where it reads what a plan removes, told by the names of its layers."""
    for entry in plan.groups:
        gone = np.delete(np.arange(entry["size"]), entry["kept"])
        if entry["name"].endswith("/heads"):
            # Groups of queries that share a head of keys lie side by side.
            reads = f"{entry['name'].split('/')[-2]}/attention_output/kernel"
        elif len(gone):
            reads = entry["name"].split("/")[-1].replace("up", "down") + "/kernel"
            assert "down" in reads
        else:
            continue
        # Layers of a composite are called by their paths, with "_" between.
        ends = f"_{reads}".replace("/", "_")
        (kernel,) = (v for v in model.weights if f"_{v.path}".replace("/", "_").endswith(ends))
        value, axis = np.array(keras.ops.convert_to_numpy(kernel.value)), 1 if kernel.shape[0] == 1 else 0
        repeats = value.shape[axis] // entry["size"]
        np.moveaxis(value, axis, 0)[(gone[:, None] * repeats + np.arange(repeats)).ravel()] = 0
        kernel.assign(value)
    return model


def check(model, build, method="l2", keep=0.5, data=None, **options):
    """Prune heads and hidden widths, and compare with the dense model; returns the pruned one."""
    options = {"exclude": "stream*", "progress": False, "data": data} | options
    plan = kfp.plan_pruning(model, method, kfp.FiltersBudget(keep=keep), **options)
    small, report = kfp.apply_plan(model, plan, compensate="none", progress=False, return_report=True)
    assert report.verification <= 1e-5
    assert small.count_params() == plan.cost["params"][1] < model.count_params()
    x = random_inputs(model, batch=3, seed=1)
    assert difference(predict(without(build(), plan), x), predict(small, x)) <= 1e-5
    return small, plan


@every
def test_pruned_is_the_dense_model_without_its_heads(name, tmp_path):
    small, plan = check(built(name), lambda: built(name))
    assert (
        any(len(e["kept"]) < e["size"] for e in plan.groups if e["name"].endswith("/heads")) or name == "by_equations"
    )
    small.save(tmp_path / "small.keras")
    x = random_inputs(small, batch=3)
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert difference(predict(loaded, x), predict(small, x)) == 0
    plan.save(tmp_path / "plan.json")
    assert kfp.PruningPlan.load(tmp_path / "plan.json").groups == plan.groups


@every
def test_streams_and_heads_go_together(name):
    """Everything that can go, the residual stream too; the graph's cost is that of the model that is left."""
    model = built(name)
    small, report = kfp.prune_model(model, "random", kfp.MacsBudget(keep=0.5), return_report=True, progress=False)
    assert report.verification <= 1e-5
    left = kfp.budgets.CostModel(kfp.analyze(small))
    assert report.plan.cost["macs"][1] == left.macs(left.sizes) <= 0.5 * report.plan.cost["macs"][0]
    assert report.plan.cost["params"][1] == small.count_params()


LABELLED = ["plain", "across", "groups", "composite", "by_equations"]


# Each method meets every second kind of heads, and each kind every second method of both sorts.
RANKED = [
    (method, name)
    for number, method in enumerate(["fpgm", "operator_norm", "similarity", "fp_omp", "taylor", "taylor_gate"])
    for turn, name in enumerate(LABELLED)
    if (number + turn) % 2 == 0
]


@pytest.mark.parametrize(("method", "name"), RANKED)
def test_methods_rank_heads(method, name):
    model = built(name)
    data = random_inputs(model, batch=16), np.arange(16) % 3
    check(model, lambda: built(name), method, data=data if method.startswith("taylor") else None)


@pytest.mark.parametrize("name", LABELLED)
def test_criteria_on_data_leave_heads_as_they_are(name):
    model = built(name)
    data = random_inputs(model, batch=16)
    options = {"data": data, "progress": False, "return_report": True}
    _, report = kfp.prune_model(model, "energy", kfp.FiltersBudget(keep=0.5), **options)
    sizes = {e["name"]: (e["size"], len(e["kept"])) for e in report.plan.groups}
    heads = [size == kept for name, (size, kept) in sizes.items() if name.endswith("/heads")]
    assert all(heads) and any(kept < size for size, kept in sizes.values())
    assert report.verification <= 1e-5
    left = "up1" if name == "by_equations" else "attention"
    assert f"{left}'" in report.compensation.partition("left as it is, without a `linear` in its handler: '")[2]


def test_scores_count_what_makes_values_and_what_reads_them():
    """Heads alike but for the output kernel, or for values, are told apart by it."""
    for part in ("attention_output", "value"):
        model = plain()
        for weight in model.get_layer("attention").weights:
            value = np.ones(weight.shape, "float32")
            if weight.path.endswith(f"{part}/kernel"):
                np.moveaxis(value, 0 if part == "attention_output" else 1, 0)[[0, 2]] *= 0.5
            weight.assign(value)
        (heads,) = (g for g in kfp.analyze(model).groups if g.heads)
        assert heads.name == "attention/heads"
        plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(keep=0.5), exclude="stream*", progress=False)
        assert {e["name"]: e["kept"] for e in plan.groups}["attention/heads"] == [1, 3]


def test_multiplications_of_attention_are_counted():
    """Queries, keys, values, scores, weighted sums, output: 4 heads of 3 numbers, values of 5, over 6 and 4 steps."""
    inputs = [keras.Input((6, 8)), keras.Input((4, 7))]
    y = layers.MultiHeadAttention(4, 3, value_dim=5, output_shape=9, name="attention")(*inputs)
    cost = kfp.budgets.CostModel(kfp.analyze(keras.Model(inputs, y)))
    expected = 6 * 8 * 12 + 4 * 7 * 12 + 4 * 7 * 20 + 4 * 6 * 4 * 3 + 4 * 6 * 4 * 5 + 6 * 20 * 9
    assert cost.macs(cost.sizes) == expected
    assert cost.params(cost.sizes) == keras.Model(inputs, y).count_params()
    x = keras.Input((5, 6, 8))
    y = layers.MultiHeadAttention(4, 3, attention_axes=2, use_bias=False)(x, x)
    cost = kfp.budgets.CostModel(kfp.analyze(keras.Model(x, y)))
    assert cost.macs(cost.sizes) == 4 * 30 * 8 * 12 + 2 * 5 * 4 * 6 * 6 * 3
    x = keras.Input((6, 8))
    cost = kfp.budgets.CostModel(kfp.analyze(keras.Model(x, layers.GroupQueryAttention(4, 6, 3)(x, x))))
    assert cost.macs(cost.sizes) == 6 * 8 * 4 * (6 + 3 + 3 + 6) + 2 * 6 * 6 * 6 * 4


def test_filters_are_kept_in_multiples_and_at_least_so_many():
    def kept(**options):
        plan = kfp.plan_pruning(built("plain"), "l2", kfp.FiltersBudget(keep=0.25), progress=False, **options)
        return {e["name"]: len(e["kept"]) for e in plan.groups}["attention/heads"]

    assert (kept(), kept(channel_multiple=2), kept(min_filters=3)) == (1, 2, 3)
    # More than there are: whole.
    assert kept(channel_multiple=8) == 4


PINNED = {}


def pinned(reason):
    def register(build):
        PINNED[build.__name__] = build, reason
        return build

    return register


@pinned("is model output 'attention'")
def scores_given_out():
    inputs = keras.Input((TIME, 3))
    x = stream(inputs)
    y, scores = layers.MultiHeadAttention(4, 3, name="attention")(x, x, return_attention_scores=True)
    return ended(inputs, block(x, y), scores)


@pinned("is masked on its own in layer 'attention' (MultiHeadAttention)")
def masked_one_by_one():
    inputs = [keras.Input((TIME, 3)), keras.Input((4, TIME, TIME), dtype="bool")]
    x = stream(inputs[0])
    y = layers.MultiHeadAttention(4, 3, name="attention")(x, x, attention_mask=inputs[1])
    return ended(inputs, block(x, y))


@pinned("feeds quantized or adapted projections of layer 'attention' (MultiHeadAttention)")
def adapted():
    model = built("plain")
    model.get_layer("attention").query_dense.enable_lora(2)
    return model


@pinned("feeds the quantized or adapted kernel of layer 'up2' (EinsumDense)")
def adapted_equation():
    model = attended()
    x = layers.EinsumDense("...x,xy->...y", 12, name="up2")(model.get_layer("stream").output)
    model = ended(model.inputs, x)
    model.get_layer("up2").enable_lora(2)
    return model


@pinned("feeds equation 'abc,ac->ab' of layer 'sum' (EinsumDense)")
def nothing_made():
    x = stream(inputs := keras.Input((TIME, 3), batch_size=2))
    return ended(inputs, layers.EinsumDense("abc,ac->ab", TIME, name="sum")(x))


@pytest.mark.parametrize("name", PINNED)
def test_what_cannot_go_is_pinned_with_the_reason(name):
    build, reason = PINNED[name]
    graph = kfp.analyze(build())
    assert not any(group.heads for group in graph.groups)
    assert reason in {pin.reason for pin in graph.pinned}


def test_scores_that_a_layer_reads_lose_the_heads():
    def build():
        inputs = keras.Input((TIME, 3))
        x = stream(inputs)
        y, scores = layers.MultiHeadAttention(4, 3, name="attention")(x, x, return_attention_scores=True)
        scores = layers.Conv2D(2, 1, name="reader")(layers.Permute((2, 3, 1))(scores))
        return randomise(ended(inputs, block(x, y), layers.Flatten()(scores)))

    small, report = kfp.prune_model(build(), "l2", kfp.FiltersBudget(keep=0.5), progress=False, return_report=True)
    assert report.verification <= 1e-5
    assert small.get_layer("reader").kernel.shape[2] == small.get_layer("attention").num_heads == 2


def test_soft_pruning_takes_heads():
    model = plain()
    model.compile("sgd", "sparse_categorical_crossentropy")
    data = np.random.default_rng(0).normal(size=(8, TIME, 3)), np.arange(8) % 3
    model.fit(*data, verbose=0, callbacks=[kfp.callbacks.SoftPruning(0.5)])
    assert (np.abs(model.get_layer("attention").output_dense.kernel).max(axis=(1, 2)) == 0).sum() == 2


MASKS = {
    "masks": (kfp.apply_filter_pruning, 0.8, lambda share: kfp.callbacks.PruningSchedule([1.0, share])),
    "gates": (kfp.apply_filter_gates, 0.35, lambda share: kfp.callbacks.BudgetGates(share, 2, strength=0.3)),
}


@pytest.mark.parametrize("way", MASKS)
def test_masks_beside_attention_leave_what_it_reads_whole(way):
    """Convolutions before and behind it are masked, and the budget of the logs is that of the pruned model."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="before")(inputs)
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 2, strides=2, name="tokens")(x))
    x = layers.Add()([x, layers.MultiHeadAttention(4, 2, name="attention")(x, x)])
    x = layers.Conv2D(12, 3, activation="relu", name="behind")(layers.Reshape((4, 4, 8))(x))
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    prepare, share, callback = MASKS[way]
    with pytest.warns(UserWarning, match="no mask for 'attention/heads', 'tokens', which attention reads"):
        prepared = prepare(model)
    prepared.compile(keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    how = {"batch_size": 4, "epochs": 4, "verbose": 0, "callbacks": [callback(share)]}
    logs = prepared.fit(images, np.arange(16) % 3, **how).history["macs_if_pruned"]
    small = shrunk(kfp.strip_wrappers(prepared))
    assert total_macs(small) <= logs[-1] <= share * total_macs(model)
    assert small.get_layer("tokens").filters == 8 and small.get_layer("attention").num_heads == 4
    assert small.get_layer("before").filters + small.get_layer("behind").filters < 24
    np.testing.assert_allclose(predict(small, images)[0], predict(prepared, images)[0], atol=1e-4)


class Stack:
    """Blocks of random attention over one stream, and over another."""

    def __init__(self, draw):
        self.draws = [
            {
                "kind": draw(st.sampled_from(["heads", "groups"])),
                "heads": draw(st.integers(1, 4)),
                # TensorFlow errs on heads of one number, as many as there are steps.
                "size": draw(st.integers(2, 4)),
                "bias": draw(st.booleans()),
                "crosses": draw(st.booleans()),
                "causal": draw(st.booleans()),
                "norm": draw(st.booleans()),
            }
            for _ in range(draw(st.integers(1, 3)))
        ]

    def __repr__(self):
        return repr(self.draws)

    def __call__(self):
        inputs = [keras.Input((TIME, 3)), keras.Input((TIME, 2))]
        x, other = stream(inputs[0]), stream(inputs[1], "stream_o")
        for number, d in enumerate(self.draws):
            name, heads = f"attention{number}", d["heads"]
            if d["kind"] == "heads":
                layer = layers.MultiHeadAttention(heads, d["size"], d["size"] + 1, use_bias=d["bias"], name=name)
            else:
                layer = layers.GroupQueryAttention(d["size"], 2 * heads, heads, use_bias=d["bias"], name=name)
            y = layers.LayerNormalization()(x) if d["norm"] else x
            y = layer(y, other if d["crosses"] else y, use_causal_mask=d["causal"])
            x = block(x, y, number)
        return randomise(ended(inputs, layers.Add()([x, other])))


@settings(max_examples=8)
@given(stack=st.composite(Stack)())
def test_random_stacks(stack):
    check(stack(), stack, "random", keep=0.6)
