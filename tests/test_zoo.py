"""The zoo itself is sound: every model predicts finite, non-constant values; files are written of what is pruned."""

import numpy as np
import pytest
from builders import predict
from hypothesis import given, settings
from random_graphs import RandomGraph, random_graphs
from zoo import ZOO, random_inputs


@pytest.mark.parametrize("name", ZOO)
def test_zoo_model_predicts(name):
    model = ZOO[name]()
    for y in predict(model, random_inputs(model)):
        assert np.isfinite(y).all()
        assert not np.allclose(y[0], y[1], rtol=1e-4), "the output does not depend on the input"


@settings(max_examples=5)
@given(graph=random_graphs)
def test_a_random_graph_is_fixed_by_its_choices(graph: RandomGraph):
    first, second = graph.model, graph.build()
    x = random_inputs(first)
    for a, b in zip(predict(first, x), predict(second, x), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
