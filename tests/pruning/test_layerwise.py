"""FP-OMP and LRF as published: output and input side of one layer after the other, the last first, training between."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import Method, allocators, compensators, criteria, errors


def network(widths=(6, 9, 7), use_bias=True):
    y = inputs = keras.Input((6, 6, 3))
    for number, width in enumerate(widths):
        y = keras.layers.Conv2D(width, 3, padding="same", use_bias=use_bias, name=f"c{number}")(y)
        y = keras.layers.ReLU()(y)
    y = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(y))
    return randomise(keras.Model(inputs, y))


def step(kernel):
    """What "training" does to a kernel: something that depends on its shape and on its values."""
    wave = 1 + 0.1 * np.cos(np.arange(kernel.size)).reshape(kernel.shape)
    return kernel * wave


def train(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(step(array(layer.kernel)))


def pursued(filters, count):
    """Filters (n, d) kept by orthogonal matching pursuit, one support for all, least squares anew at every step."""
    units = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    kept, residual = [], units
    for _ in range(count):
        scores = [-1 if n in kept else np.abs(residual @ unit).sum() for n, unit in enumerate(units)]
        kept.append(int(np.argmax(scores)))
        solution = np.linalg.lstsq(units[kept].T, units.T, rcond=None)[0]
        residual = (units.T - units[kept].T @ solution).T
    return sorted(kept)


def replaceable(filters, count, downstream):
    """Filters (n, d) that stay when the one of least ||e|| ||g|| goes, again and again, the others taking over."""
    left, downstream = list(range(len(filters))), downstream.copy()
    while len(left) > count:
        found = []
        for j in left:
            others = [i for i in left if i != j]
            solution = np.linalg.lstsq(filters[others].T, filters[j], rcond=None)[0]
            error = np.linalg.norm(filters[j] - filters[others].T @ solution)
            found.append((error * np.linalg.norm(downstream[j]), j, others, solution))
        _, gone, others, solution = min(found, key=lambda entry: entry[0])
        downstream[others] += np.outer(solution, downstream[gone])
        left = others
    return left


def cut(filters, count, downstream, select):
    """(kept, what reads the others handed on): one side of one layer."""
    kept = select(filters, count, downstream) if select is replaceable else select(filters, count)
    solution = np.linalg.lstsq(filters[kept].T, filters.T, rcond=None)[0]
    return kept, solution @ downstream


def by_hand(model, keep, select):
    """{layer: product of its three kernels} after the papers' loop, literally."""
    kernels = {name: array(model.get_layer(name).kernel).astype(float) for name in ("c0", "c1", "c2")}
    before, after = ({n: np.eye(kernels[n].shape[axis]) for n in ("c1", "c2")} for axis in (2, 3))

    def trained():
        for name in kernels:
            kernels[name] = step(kernels[name])
        for name in before:
            before[name] = step(before[name][None, None])[0, 0]
            after[name] = step(after[name][None, None])[0, 0]

    for name in ("c2", "c1"):
        kernel = kernels[name]
        count = int(np.floor(keep * kernel.shape[3] + 0.5))
        kept, after[name] = cut(kernel.reshape(-1, kernel.shape[3]).T, count, after[name], select)
        kernels[name] = kernel[..., kept]
        trained()
        kernel = kernels[name]
        count = int(np.floor(keep * kernel.shape[2] + 0.5))
        slices = np.moveaxis(kernel, 2, 0).reshape(kernel.shape[2], -1)
        kept, turned = cut(slices, count, before[name].T, select)
        before[name], kernels[name] = turned.T, kernel[:, :, kept]
        trained()
    return {name: np.einsum("ac,hwcd,do->hwao", before[name], kernels[name], after[name]) for name in before}


def composed(model, name):
    """The product of a convolution's kernel and of those of its adapters, as far as they are there."""
    found = {layer.name: array(layer.kernel).astype(float) for layer in model.layers if hasattr(layer, "kernel")}
    kernel = found[name]
    if f"{name}_before" in found:
        kernel = np.einsum("ac,hwcd->hwad", found[f"{name}_before"][0, 0], kernel)
    if f"{name}_after" in found:
        kernel = np.einsum("hwad,do->hwao", kernel, found[f"{name}_after"][0, 0])
    return kernel


@pytest.mark.parametrize("keep", [0.5, 0.75])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("method", "select"), [("fp_omp_layerwise", pursued), ("lrf_layerwise", replaceable)])
def test_the_papers_loop_literally(method, select, use_bias, keep):
    model, calls = network(use_bias=use_bias), []

    def finetune(small):
        calls.append([layer.filters for layer in small.layers if isinstance(layer, keras.layers.Conv2D)])
        train(small)

    small = kfp.prune_model(model, method, kfp.FiltersBudget(keep), finetune=finetune, progress=False)
    assert len(calls) == 4
    for name, kernel in by_hand(model, keep, select).items():
        np.testing.assert_allclose(composed(small, name), kernel, atol=2e-4 * np.abs(kernel).max())


def test_a_budget_of_macs_is_met_and_a_plan_replays():
    model = network((8, 16, 16))
    small, report = kfp.prune_model(model, "fp_omp_layerwise", 0.6, return_report=True, progress=False)
    full, left = report.plan.cost["macs"]
    assert left <= 0.6 * full
    again = kfp.apply_plan(model, report.plan, progress=False)
    for one, other in zip(small.weights, again.weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"one_by_one": "first_last"},
            r"one_by_one is True, False or 'last_first'\. Received: one_by_one='f",
        ),
        ({"one_by_one": "last_first", "rounds": 2}, r"'last_first' goes with rounds=1 and an allocator that measures"),
        ({"one_by_one": "last_first", "allocator": allocators.Search()}, r"an allocator that measures nothing"),
        ({"one_by_one": True, "allocator": allocators.Uniform()}, r"goes with rounds=1 and allocator=Sensitivity"),
    ],
    ids=str,
)
def test_what_does_not_go_one_by_one(settings, sentence):
    with pytest.raises(errors.InvalidValueError, match=sentence):
        Method(criteria.FPOMP(), **{"compensator": compensators.Adapters()} | settings)
