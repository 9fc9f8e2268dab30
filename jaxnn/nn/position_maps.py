"""Linear maps of positions that keep the channels: sums over a graph's edges, resized images."""

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn.errors import invalid
from jaxnn.nn import limit
from jaxnn.nn.layers import Layer, require_in_shape, stateless
from jaxnn.nn.limit import Kernel
from jaxnn.nn.windows import require_spatial
from jaxnn.precision import inexact
from jaxnn.types import Array, ArrayLike, Shape


def aggregate(adjacency: ArrayLike) -> Layer:
    """The sum of each node's neighbors, y[n, i, c] = Σ_j A[i, j] x[n, j, c], for a given graph.

    `adjacency` is A, (nodes after, nodes before), of any real numbers: 0 and 1, or normalized, as
    D^{-1/2}(A + I)D^{-1/2}. It is the same for all examples. x is (N, nodes, C). With `nn.dense`
    before it this is a graph convolution.

    Errors: an adjacency that is no matrix, an x of another number of nodes.

    Source: Kipf & Welling (2017), equation 2; Du et al. (2019) for the limit.

    >>> aggregate(jnp.array([[1, 1], [0, 2]])).apply((), jnp.array([[[3.0], [4.0]]]))
    Array([[[7.],
            [8.]]], dtype=float32)
    """
    matrix = inexact(adjacency)
    if matrix.ndim != 2:
        raise invalid(
            "aggregate(adjacency)",
            got=f"shape {matrix.shape}",
            expected="a matrix (nodes after, nodes before)",
            remedy="For an adjacency per example use it inside a function of your own.",
        )
    after, before = matrix.shape

    def out_shape(in_shape: Shape) -> Shape:
        _require_nodes("aggregate.init: in_shape", in_shape, before)
        return after, in_shape[1]

    def summed(x: Array) -> Array:
        _require_nodes("aggregate.apply: x", x.shape[1:], before)
        x = inexact(x, matrix)
        product = jnp.einsum(
            "ij,njc->nic", matrix.astype(x.dtype), x, precision=lax.Precision.HIGHEST
        )
        return product.astype(x.dtype)

    kernel = partial(limit.mix, matrices=(matrix,), layer="aggregate")
    layer = stateless("aggregate", summed, kernel, out_shape=out_shape)
    return layer._replace(mixes_positions=True)


def resize(
    shape: Sequence[int], *, method: Literal["nearest", "linear", "cubic"] = "linear"
) -> Layer:
    """Images, or other data on grids, at another resolution, (N, *spatial, C) to (N, *shape, C).

    Each output is a weighted mean of inputs nearby, as of `jax.image.resize`, which smooths before
    it reduces unless the method is "nearest".

    Errors: sizes that are not integers ≥ 1, an unknown method, an x of other spatial axes.

    >>> resize((4,), method="nearest").apply((), jnp.array([[[1.0], [2.0]]])).ravel()
    Array([1., 1., 2., 2.], dtype=float32)
    """
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not sizes or not all(isinstance(n, Integral) and n >= 1 for n in sizes):
        raise invalid(
            "resize(shape)",
            got=repr(shape),
            expected="a tuple of integers ≥ 1",
            remedy="Give one for each spatial axis: (32, 32) for images.",
        )
    if method not in ("nearest", "linear", "cubic"):
        raise invalid(
            "resize(method)",
            got=repr(method),
            expected="'nearest', 'linear' or 'cubic'",
            remedy="'nearest' repeats or drops entries, the others interpolate.",
        )

    def out_shape(in_shape: Shape) -> Shape:
        require_in_shape("resize", in_shape, min_rank=len(sizes) + 1)
        if len(in_shape) != len(sizes) + 1:
            raise invalid(
                "resize.init: in_shape",
                got=repr(in_shape),
                expected=f"{len(sizes)} spatial axes, as the new shape has, and the channels",
                remedy="Give a size for every spatial axis.",
            )
        return (*sizes, in_shape[-1])

    def resized(x: Array) -> Array:
        require_spatial("resize", x, len(sizes), None)
        x = inexact(x)
        return jax.image.resize(x, (x.shape[0], *sizes, x.shape[-1]), method)

    def kernel(kernel: Kernel) -> Kernel:
        limit.require_axes("resize", kernel, len(sizes))
        dtype = kernel.nngp.dtype
        matrices = tuple(
            jax.image.resize(jnp.eye(n, dtype=dtype), (m, n), method)
            for m, n in zip(sizes, kernel.positions.shape, strict=True)
        )
        return limit.mix(kernel, matrices, layer="resize")

    layer = stateless("resize", resized, kernel, out_shape=out_shape)
    return layer._replace(mixes_positions=True)


def _require_nodes(argument: str, shape: Shape, nodes: int) -> None:
    if len(shape) != 2 or shape[0] != nodes:
        raise invalid(
            argument,
            got=f"{shape} without the batch axis",
            expected=f"({nodes}, C): the columns of the adjacency, and the channels",
            remedy="Pass the features of all nodes, (N, nodes, C).",
        )
