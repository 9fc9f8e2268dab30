"""What a network is made of: shapes, parameters, flops, and what of its input a unit sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.nn.layers import Layer
from jaxnn.nn.normalization import calibrate
from jaxnn.nn.parametrization import default_float
from jaxnn.types import Array, Key, Params, PyTree, Shape


class Row(NamedTuple):
    """One layer: its name at its depth in the nest, output shape, parameters, flops per example."""

    name: str
    depth: int
    out_shape: Shape
    parameters: int
    flops: float


class Summary(NamedTuple):
    """The rows of a network, in order; the first is the whole. `print` shows them as a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """The table: layer, shape, parameters, flops."""
        cells = [("layer", "shape", "parameters", "flops")]
        for row in self.rows:
            name = "  " * row.depth + row.name
            cells.append((name, str(row.out_shape), f"{row.parameters:,}", f"{row.flops:,.0f}"))
        left, middle, *right = (max(map(len, column)) for column in zip(*cells, strict=True))
        return "\n".join(
            f"{name:<{left}}  {shape:<{middle}}  {count:>{right[0]}}  {flops:>{right[1]}}"
            for name, shape, count, flops in cells
        )


def output_shape(net: Layer, in_shape: Shape) -> Shape:
    """The shape of one example's output, computed without drawing any parameters.

    >>> from jaxnn import nn
    >>> output_shape(nn.conv(6, (5, 5), padding="VALID"), (28, 28, 1))
    (24, 24, 6)
    """
    return _abstract(net, in_shape)[1]


def parameter_count(net: Layer, in_shape: Shape) -> int:
    """The number of parameters, computed without drawing any; of drawn ones, `tree.size`.

    >>> from jaxnn import nn
    >>> parameter_count(nn.lenet(), (28, 28, 1))
    61706
    """
    return tree.size(_abstract(net, in_shape)[0])


def summary(net: Layer, in_shape: Shape, *, dtype: jnp.dtype | None = None) -> Summary:
    """A table of the network and of all layers in its nest: name, shape, parameters, flops.

    Flops are XLA's own count for one example, before optimization, where a product and a sum are
    two and transcendental functions none; a loop over time counts as often as it runs. `dtype` is
    that of the input, an integer one for tokens.

    >>> from jaxnn import nn
    >>> print(summary(nn.serial(nn.dense(4), nn.relu(), nn.dense(2)), (3,)))
    layer    shape  parameters  flops
    serial   (2,)           26     50
      dense  (4,)           16     28
      relu   (4,)            0      4
      dense  (2,)           10     18
    """
    dtype = default_float() if dtype is None else dtype
    rows, _ = _rows(net, jax.ShapeDtypeStruct((1, *in_shape), dtype), 0)
    return Summary(tuple(rows))


def receptive_field(
    net: Layer, in_shape: Shape, *, position: Shape | None = None
) -> tuple[range, ...]:
    """Which part of the input the output at one position sees: a range along each spatial axis.

    It is the smallest box that holds every input on which the output depends, found by putting NaN
    into one slice of the input after another and seeing where it comes out. `position` is the
    middle of the output unless given. Without borders in the way, the sizes are
    1 + Σ_l (window_l - 1)·dilation_l·Π_{m<l} stride_m. Batch norms use calibrated statistics.
    Masked attention multiplies by 0, through which NaN passes: it counts as seeing all.

    Errors: a network whose output has no position of this kind, one that stops NaN (a threshold).

    Source: Araujo, Norris & Sim (2019), equation 2.

    >>> from jaxnn import nn
    >>> layer = nn.conv(1, (3, 3))
    >>> receptive_field(nn.serial(layer, nn.max_pool((2, 2)), layer), (16, 16, 1))
    (range(5, 13), range(5, 13))
    """
    out_shape = output_shape(net, in_shape)
    axes = len(in_shape) - 1
    middle = tuple(n // 2 for n in out_shape[:-1])
    position = middle if position is None else position
    inside = all(0 <= i < n for i, n in zip(position, out_shape, strict=False))
    if len(position) != len(out_shape) - 1 or not inside:
        raise invalid(
            "receptive_field(position)",
            got=position,
            expected=f"a position in {out_shape[:-1]}, the output without its features",
            remedy="Leave it out for the middle.",
        )

    @jax.jit
    def drawn(key: Key) -> tuple[Params, PyTree]:
        params, _ = net.init(key, in_shape)
        return params, calibrate(net, params, jax.random.normal(key, (2, *in_shape)))

    params, stats = drawn(jax.random.key(0))

    @jax.jit
    def seen(x: Array) -> Array:
        y = net.apply(params, x, stats=stats)
        return jnp.any(jnp.isnan(y[(slice(None), *position)]), axis=-1)

    if not np.asarray(seen(jnp.full((1, *in_shape), jnp.nan)))[0]:
        raise invalid(
            "receptive_field(net)",
            got="an output without NaN for an input of NaN",
            expected="a network through which NaN passes",
            remedy="Replace thresholds by another activation: it does not change what is seen.",
        )
    ranges = []
    for axis in range(axes):
        n = in_shape[axis]
        slices = jnp.where(jnp.eye(n, dtype=bool), jnp.nan, 0.0)
        shape = [n, *(n if i == axis else 1 for i in range(axes)), 1]
        found = np.flatnonzero(seen(jnp.broadcast_to(slices.reshape(shape), (n, *in_shape))))
        ranges.append(range(int(found[0]), int(found[-1]) + 1))
    return tuple(ranges)


def _abstract(net: Layer, in_shape: Shape) -> tuple[Params, Shape]:
    shapes = {}

    def init(key):
        params, shapes["out"] = net.init(key, in_shape)
        return params

    return jax.eval_shape(init, jax.random.key(0)), shapes["out"]


def _rows(
    layer: Layer, x: jax.ShapeDtypeStruct, depth: int
) -> tuple[list[Row], jax.ShapeDtypeStruct]:
    """The rows of a layer and of its parts, and the shape and dtype of its output."""
    params, out_shape = _abstract(layer, x.shape[1:])
    y = jax.eval_shape(layer.apply, params, x)
    flops = _flops(jax.make_jaxpr(layer.apply)(params, x))
    own = Row(layer.name, depth, out_shape, tree.size(params), flops)
    rows, below = [own], x
    for part in layer.parts:
        inner, after = _rows(part, below, depth + 1)
        rows += inner
        below = after if layer.name == "serial" else x
    return rows, y


def _flops(closed: ClosedJaxpr) -> float:
    """XLA's count, in which the body of a scan counts once, and the other turns of the scans."""
    function = jaxpr_as_fun(closed)
    cost = jax.jit(function).lower(*closed.in_avals).cost_analysis() or {}
    return cost.get("flops", 0.0) + _later_turns(closed)


def _later_turns(closed: ClosedJaxpr) -> float:
    total = 0.0
    for equation in closed.jaxpr.eqns:
        inner = [p for p in equation.params.values() if isinstance(p, ClosedJaxpr)]
        if equation.primitive.name == "scan":
            (body,) = inner
            turns = equation.params["length"]
            total += (turns - 1) * _flops(body) + _later_turns(body)
        else:
            total += sum(map(_later_turns, inner))
    return total
