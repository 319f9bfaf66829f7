"""What single operators cost on some device: the base of tables, and prices where nothing was measured."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_filterprune.checks import check_integer, check_option, check_returned, is_number, wrong
from keras_filterprune.cost.tiles import Tiles, as_tiles
from keras_filterprune.latency.operators import DEFAULTS, PRODUCTS, STEPPED
from keras_filterprune.latency.sized import SizedOperators
from keras_filterprune.parts import Checked, returns
from keras_filterprune.tracing import trace_model

# What an operator is, apart from its widths: a mapping, or the items of one.
Fields = Mapping[str, Any] | Iterable[tuple[str, Any]]


def _check_price(prices: Any, price: Any, fields: Fields, channels: int, filters: int) -> None:
    """A price is a number, not negative."""
    if not (is_number(price) and price >= 0):
        what = f"of {dict(fields).get('kind')} with {channels} and {filters} channels"
        check_returned(False, f"{prices!r}.price", f"return what one operator costs, at least 0, {what}", price)


class Prices(Checked, abc.ABC):
    """What the operators of a model cost on one device: `LatencyBudget(keep=0.6, table=prices)` keeps a part of it.

    A subclass implements `price`, and says what it counts. A cost never rises when channels go.

    Attributes:
        device: what they hold for, in words.
        units: three units, each a thousand of the one before: of budgets, of operators, and of whole models
            (("ns", "µs", "ms")).
        floor: what every call of a model costs besides its operators, in the second unit (0.0).
        tiles: output widths worth having, `Tiles` that reports show (all).
        data_type: of the operators, "float32" or "int8" ("float32").
        threads: of the interpreter (1).
        exact: reports show whole numbers of the first unit (False).
        measured: operators were measured on `device`, so that whole models can be measured there as well (False).
        key: text that says what prices depend on (the `repr`).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Traffic(kfp.budgets.Prices):
        ...     device, units = "any", ("B", "kB", "MB")
        ...     def price(self, fields, channels, filters):
        ...         height, width = fields["size"]
        ...         return height * width * channels / 1e3
        ...
        >>> model = keras.Sequential([keras.Input((10, 10, 4)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(8, 3)])
        >>> Traffic().predict(model)
        0.000912
    """

    device: str
    units: tuple[str, str, str] = ("ns", "µs", "ms")
    floor: float = 0.0
    tiles: Tiles = Tiles(1)
    data_type: str = "float32"
    threads: int = 1
    exact: bool = False
    measured: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'device', '')!r})"

    @property
    def key(self) -> str:
        """What prices depend on, as text."""
        return repr(self)

    @property
    def small_unit(self) -> str:
        """Unit of budgets."""
        return self.units[0]

    @property
    def unit(self) -> str:
        """Unit of whole models."""
        return self.units[2]

    @property
    def source(self) -> str:
        """Where predictions come from, as in "Predicted by ..."."""
        return f"{self!r}; nothing was measured"

    @abc.abstractmethod
    @returns(_check_price)
    def price(self, fields: Fields, channels: int, filters: int) -> float:
        """Cost of one operator, in the second unit.

        Args:
            fields: kind ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD" ..., as in the LiteRT file), size
                (height and width of its input, (1, 1) where it has none), kernel, strides, dilation, padding, groups.
            channels, filters: widths of its input and output.

        Raises:
            InfeasibleBudgetError: these prices say nothing about it.
        """

    def predict(self, model: keras.Model) -> float:
        """What a model costs, in the third unit.

        Raises:
            InfeasibleBudgetError: these prices say nothing about one of its operators.
        """
        graph = trace_model(model)
        whole = SizedOperators.of(graph, graph.sizes)
        return (sum(whole.by_layer(self.price).values()) + self.floor) / 1e3


def count_macs(fields: Fields, channels: int, filters: int) -> float:
    """Count the multiply-accumulates of one operator.

    Args:
        fields: what the operator is, see `Prices.price`.
        channels, filters: widths of its input and output.

    Returns:
        Multiply-accumulates of one call; 0 for operators that do not multiply by weights.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.budgets.count_macs({"kind": "CONV_2D", "size": (10, 10), "kernel": (3, 3)}, 4, 8)
        28800.0
    """
    given = DEFAULTS | dict(fields)
    if given["kind"] not in STEPPED:
        return 0.0
    macs = filters * (channels if given["kind"] in PRODUCTS else 1) * math.prod(given["kernel"]) / given["groups"]
    if given["kind"] == "TRANSPOSE_CONV":
        return macs * math.prod(given["size"])
    for n, k, step, apart in zip(*(given[x] for x in ("size", "kernel", "strides", "dilation")), strict=True):
        macs *= -(-(n - (k - 1) * apart * (given["padding"] == "valid")) // step)
    return macs


class PaddedMacs(Prices):
    """Multiply-accumulates of whole tiles, in the place of a table where nothing was measured.

    What kernels compute: output channels rounded up to their step, input channels to theirs. Operators that do not
    multiply count nothing.

    Args:
        target: a name as in `prune_model(channel_multiple=)`.

    Raises:
        UnknownNameError: there is no such target.
    """

    units = ("padded MACs", "thousand padded MACs", "million padded MACs")
    exact = True

    def __init__(self, target: str):
        self.device, self.tiles = target, as_tiles(target)

    @property
    def key(self) -> str:
        return self.device

    @property
    def source(self) -> str:
        return f"multiply-accumulates in whole steps of {self.device}; nothing was measured"

    def price(self, fields: Fields, channels: int, filters: int) -> float:
        inputs = -(-channels // self.tiles.inputs) * self.tiles.inputs
        return count_macs(fields, inputs, self.tiles.ceil(filters)) / 1e3


def as_prices(name: str, prices: Any) -> Prices:
    """Prices; a target's name ("arm64", ...) is its `PaddedMacs`.

    Raises:
        InvalidValueError: it is neither.
        UnknownNameError: there is no such target.
    """
    if isinstance(prices, str):
        return PaddedMacs(prices)
    if not isinstance(prices, Prices):
        raise wrong(
            name,
            prices,
            "a LatencyTable (measure_latency(model), LatencyTable.load(path)), other prices (kfp.budgets.Prices), or a "
            "target such as 'arm64'",
        )
    device, units = getattr(prices, "device", None), prices.units
    check_returned(bool(device) and isinstance(device, str), f"{prices!r}.device", "say what prices hold for", device)
    right = isinstance(units, tuple) and len(units) == 3 and all(isinstance(unit, str) for unit in units)
    check_returned(right, f"{prices!r}.units", "name three units, each a thousand of the one before", units)
    floor, tiles, key = prices.floor, prices.tiles, prices.key
    check_returned(is_number(floor) and floor >= 0, f"{prices!r}.floor", "be a number, at least 0", floor)
    check_returned(isinstance(tiles, Tiles), f"{prices!r}.tiles", "be Tiles", tiles)
    check_returned(isinstance(key, str), f"{prices!r}.key", "say what prices depend on, as text", key)
    check_option(f"{prices!r}.data_type", prices.data_type, ("float32", "int8"))
    check_integer(f"{prices!r}.threads", prices.threads)
    return prices
