"""Regressions equal `numpy.linalg.lstsq`, at any scale and for columns that depend on each other."""

from __future__ import annotations

import numpy as np
import pytest

from keras_filterprune.probe import regression as regression_module
from keras_filterprune.probe.consumers import Joint
from keras_filterprune.probe.regression import (
    coefficients,
    fitting_ridge,
    halves,
    mixed_by_all,
    rectified_regression,
    refit,
    regression,
)


def test_refit_is_least_squares_with_an_intercept_at_the_targets_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    kernel, kept = rng.normal(size=(1, 7, 3)), np.array([1, 1, 0, 1, 0, 1, 1], bool)
    y = x @ kernel[0]
    found = np.linalg.lstsq(np.column_stack([x[:, kept], np.ones(500)]), y, rcond=None)[0][:-1]
    found *= y.std(axis=0) / (x[:, kept] @ found).std(axis=0)
    covariance = np.cov(x.T, bias=True)
    new, constant = refit(x.mean(axis=0), covariance, kernel, kept, mixed_by_all(covariance, kept, 0.0))
    assert new[0] == pytest.approx(found)
    assert constant == pytest.approx((y - x[:, kept] @ found).mean(axis=0))
    everything = np.ones(7, bool)
    whole, nothing = refit(x.mean(axis=0), covariance, kernel, everything, mixed_by_all(covariance, everything, 0.0))
    assert whole == pytest.approx(kernel)
    assert nothing == pytest.approx(0, abs=1e-9)


def test_refit_of_several_taps_sums_their_constants():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5)) + 1
    kernel, kept = rng.normal(size=(4, 5, 3)), np.array([1, 0, 1, 1, 0], bool)
    covariance = np.cov(x.T, bias=True)
    new, constant = refit(x.mean(axis=0), covariance, kernel, kept, mixed_by_all(covariance, kept, 0.0))
    share = np.linalg.lstsq(np.column_stack([x[:, kept], np.ones(500)]), x, rcond=None)[0][:-1]
    for received, tap in zip(new, kernel, strict=True):
        # Up to the factor that restores the variance, the same for all taps.
        ratio = received / (share @ tap)
        assert ratio == pytest.approx(np.tile(ratio[:1], (3, 1)))
    together = (x @ kernel).sum(axis=0) - (x[:, kept] @ new).sum(axis=0)
    assert constant == pytest.approx(together.mean(axis=0))


def test_regression_is_least_squares_and_ridge_is_relative():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(100, 6)), rng.normal(size=(100, 2))
    assert regression(x.T @ x, x.T @ y, 0.0) == pytest.approx(np.linalg.lstsq(x, y, rcond=None)[0])
    once, scaled = (regression(s * x.T @ x, s * x.T @ y, 0.1) for s in (1.0, 1e4))
    assert once == pytest.approx(scaled)
    stacked = np.vstack([x, np.sqrt(0.1 * (x**2).sum() / 6) * np.eye(6)])
    ridge = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((6, 2))]), rcond=None)[0]
    assert once == pytest.approx(ridge)


def test_a_ridge_pulls_to_what_was_known_before():
    """||x w - y||^2 + r ||w - prior||^2, with a constant and behind a ReLU that passes everything as well."""
    rng = np.random.default_rng(5)
    x, y, prior = rng.normal(size=(4, 9)), rng.normal(size=(4, 2)), rng.normal(size=(9, 2))
    found = regression(x.T @ x, x.T @ y, 0.1, prior)
    root = np.sqrt(0.1 * (x**2).sum() / 9)
    stacked = np.vstack([x, root * np.eye(9)]), np.vstack([y, root * prior])
    assert found == pytest.approx(np.linalg.lstsq(*stacked, rcond=None)[0])
    assert regression(x.T @ x, x.T @ y, 1e9, prior) == pytest.approx(prior, abs=1e-6)
    centred, level = x - x.mean(axis=0), y.mean(axis=0)
    threshold, rising = np.full(2, -1e6, "float32"), np.ones(2, bool)
    rows = [v.astype("float32") for v in (x, y)]
    weights, constant = rectified_regression(*rows, Joint.of(*rows), threshold, rising, 0.1, prior)
    assert weights == pytest.approx(regression(centred.T @ centred, centred.T @ (y - level), 0.1, prior), abs=1e-5)
    assert constant == pytest.approx(level - x.mean(axis=0) @ weights, abs=1e-5)


@pytest.mark.parametrize("rows", [79, 80])
def test_targets_follow_the_fit_behind_a_relu_where_rows_are_enough(rows):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(rows, 20)).astype("float32"), rng.normal(size=(rows, 5)).astype("float32")
    known = Joint.of(x, y)
    plain = regression(known.covariance, known.cross, 1e-3)
    fitted, constant = rectified_regression(x, y, known, np.zeros(5, "float32"), np.arange(5) != 2, 1e-3)
    assert (fitted == pytest.approx(plain)) == (rows < 80)
    assert (constant == pytest.approx(known.level - known.mean @ plain)) == (rows < 80)


def test_turns_of_fit_and_targets_end_with_the_one_that_shows_little_progress(monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(5000, 20)).astype("float32")
    y = (x @ rng.normal(size=(20, 5)) + 3 * rng.normal(size=(5000, 5))).astype("float32")
    known, nothing = Joint.of(x, y), np.zeros(5, "float32")

    def fitted(turns: int, progress: float) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr("keras_filterprune.probe.regression._TURNS", turns)
        monkeypatch.setattr("keras_filterprune.probe.regression._PROGRESS", progress)
        return rectified_regression(x, y, known, nothing, np.ones(5, bool), 1e-6)

    def error(turns: int) -> float:
        """What the fit misses of the targets that follow it as far as the ReLU lets them."""
        fit = x @ (found := fitted(turns, np.inf))[0] + found[1]
        return float(np.square(fit - np.where(y > 0, y, np.minimum(fit, 0))).sum())

    errors = [error(turns) for turns in range(6)]
    assert errors == sorted(errors, reverse=True)
    last = next(n for n in range(1, 6) if errors[n] > 0.95 * errors[n - 1])
    # The weights that are found on the way to seeing that are taken.
    np.testing.assert_array_equal(fitted(20, 0.95)[0], fitted(last + 1, np.inf)[0])
    assert 1 < last < 5


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1e-4), (1.0, 0.1), (30.0, 10.0)])
def test_the_ridge_is_what_holds_for_other_samples(noise, expected):
    """The best of a normal prior is noise^2 / (n 0.3^2), of n = 90 rows: 0, 0.12, and beyond the largest."""
    rng = np.random.default_rng(6)
    prior = rng.normal(size=(30, 200))
    x, samples = rng.normal(size=(120, 30)), np.repeat(np.arange(40), 3)
    y = x @ (prior + 0.3 * rng.normal(size=prior.shape)) + noise * rng.normal(size=(120, 200))
    found = fitting_ridge(*halves(x.astype("float32"), y.astype("float32"), samples), 1e-4, prior)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("off", [0.0, 0.3])
@pytest.mark.parametrize("power", [-4, -3, -2, -1, 0, 1])
def test_half_of_the_ridges_are_enough_to_find_the_best(power, off, monkeypatch):
    """Samples that are held out are brighter, by what the prior may get wrong; noise asks for about this ridge."""
    rng = np.random.default_rng(9)
    prior, tried = rng.normal(size=(30, 200)), []
    x = rng.normal(size=(120, 30)) + 5 * (np.arange(120) % 4 == 0)[:, None]
    y = x @ (prior - off + rng.normal(size=prior.shape)) + np.sqrt(90 * 10.0**power) * rng.normal(size=(120, 200))
    learnt, held_out = halves(x.astype("float32"), y.astype("float32"), np.arange(120))

    def error(ridge: float) -> float:
        weights = regression(learnt.covariance, learnt.cross, ridge, prior)
        return float(np.square(y[::4] - learnt.level - (x[::4] - learnt.mean) @ weights).sum())

    factor = regression_module._factor
    monkeypatch.setattr(regression_module, "_factor", lambda *asked: tried.append(asked[1]) or factor(*asked))
    found = fitting_ridge(learnt, held_out, 1e-4, prior)
    assert len(tried) == len(set(tried)) <= 4
    assert found == min((1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), key=error)


@pytest.mark.parametrize("least", [0.0, 5e-3, 10.0, 50.0])
def test_a_ridge_is_never_less_than_was_asked_for(least):
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(40, 20)).astype("float32"), rng.normal(size=(40, 30)).astype("float32")
    found = fitting_ridge(*halves(x, y, np.arange(40)), least, np.zeros((20, 30)))
    assert found == max(least, 10.0)


def test_a_ridge_that_leaves_no_solution_is_not_the_best():
    rng = np.random.default_rng(8)
    x = np.repeat(rng.normal(size=(40, 20)), 2, axis=1).astype("float32")
    y = x @ rng.normal(size=(40, 30)).astype("float32")
    assert fitting_ridge(*halves(x, y, np.arange(40)), 1e-11, np.zeros((40, 30))) == 1e-4


def test_rows_of_one_sample_are_held_out_together():
    """Of repeated rows, some learnt and some held out, any ridge would seem to hold."""
    rng = np.random.default_rng(7)
    prior = np.zeros((40, 50))
    x, y = rng.normal(size=(24, 40)), rng.normal(size=(24, 50))
    rows = [np.repeat(v, 10, axis=0).astype("float32") for v in (x, y)]
    found = halves(*rows, np.repeat(np.arange(24), 10))
    assert fitting_ridge(*found, 1e-4, prior) == pytest.approx(10.0)


def test_moments_of_halves_join_to_those_of_all_rows():
    rng = np.random.default_rng(9)
    x = (rng.normal(size=(50, 6)) + np.linspace(0, 3, 50)[:, None]).astype("float32")
    y = (x[:, :2] ** 2).astype("float32")
    learnt, held_out = halves(x, y, np.arange(50) // 2)
    found = learnt.joined(held_out)
    assert (learnt.rows, held_out.rows, found.rows) == (36, 14, 50)
    assert found.mean == pytest.approx(x.mean(axis=0), rel=1e-5)
    assert found.level == pytest.approx(y.mean(axis=0), rel=1e-5)
    both = np.cov(x.T, y.T, bias=True)
    assert found.covariance == pytest.approx(both[:6, :6], rel=1e-4)
    assert found.cross == pytest.approx(both[:6, 6:], rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_coefficients_are_least_squares_at_any_scale_and_in_any_order(scale):
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(30, 9))
    columns[:, 4] *= scale
    columns[:, 7] = 0
    kept = np.array([5, 0, 4, 8])
    found = coefficients(columns.T @ columns, kept)
    wanted = np.linalg.lstsq(columns[:, kept], columns, rcond=None)[0].T
    wanted[kept] = np.eye(4)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9 * max(scale, 1 / scale))
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(coefficients(columns.T @ columns, kept[order]), found[:, order], atol=1e-9)


def test_coefficients_of_kept_columns_that_depend_on_each_other():
    """Each stands for itself alone; what both can say of a third they share."""
    columns = np.random.default_rng(4).normal(size=(30, 5))
    columns[:, 3] = 2 * columns[:, 1]
    columns[:, 4] = columns[:, 0] - columns[:, 1]
    found = coefficients(columns.T @ columns, np.array([0, 1, 3]))
    assert found[[0, 1, 3]].tolist() == np.eye(3).tolist()
    assert columns[:, [0, 1, 3]] @ found[4] == pytest.approx(columns[:, 4], abs=1e-6)
