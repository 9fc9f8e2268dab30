"""Limits over padded sequences: which times count, in kernels that know the lengths.

A kernel of padded sequences has entries for all pairs of times, axes (T, T, N1, N2), and the
`lengths1` and `lengths2` of its examples. Weights are (T, N1) and (T, N2): a number for each time
of each example.
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp

from jaxnn.errors import invalid
from jaxnn.nn import limit
from jaxnn.nn.limit import Kernel
from jaxnn.nn.positions import Positions
from jaxnn.types import Array


def of(kernel: Kernel) -> tuple[Array, Array]:
    """The lengths of x1 and of x2.

    Errors: a kernel without.
    """
    if kernel.lengths1 is None or kernel.lengths2 is None:
        raise invalid(
            "lengths of a kernel",
            got="None",
            expected="the lengths of padded sequences",
            remedy="Start from nn.limit.inputs(x1, x2, lengths1=..., lengths2=..., crossed=True).",
        )
    return kernel.lengths1, kernel.lengths2


def within(kernel: Kernel) -> tuple[Array, Array]:
    """Whether each time is within each sequence, (T, N1) and (T, N2)."""
    return _each_time(kernel, lambda time, length: time < length)


def first(kernel: Kernel) -> tuple[Array, Array]:
    """Whether each time is the first one, (T, N1) and (T, N2)."""
    return _each_time(kernel, lambda time, length: time == jnp.zeros_like(length))


def last(kernel: Kernel) -> tuple[Array, Array]:
    """Whether each time is the last one of each sequence, (T, N1) and (T, N2)."""
    return _each_time(kernel, lambda time, length: time == length - 1)


def weigh(kernel: Kernel, weights1: Array, weights2: Array) -> Kernel:
    """The kernel of features multiplied by a number for each time of each example."""
    limit.require_crossed("a layer over nn.Sequences", kernel)
    w1, w2 = (w.astype(kernel.nngp.dtype) for w in (weights1, weights2))
    pairs = w1[:, None, :, None] * w2[None, :, None, :]
    own1 = w1[:, None, :, None] * w1[None, :, :, None]
    own2 = w2[:, None, None, :] * w2[None, :, None, :]
    # What lies beyond a length may be anything, infinities included.
    times = lambda weight, k: jnp.where(weight == 0, 0.0, weight * k)
    return replace(
        kernel,
        nngp=times(pairs, kernel.nngp),
        ntk=times(pairs, kernel.ntk),
        covariance1=times(own1, kernel.covariance1),
        covariance2=times(own2, kernel.covariance2),
    )


def total(kernel: Kernel, weights1: Array, weights2: Array) -> Kernel:
    """The kernel of the sum of features over time, each time with its weight."""
    summed = lambda k: jnp.sum(k, axis=(0, 1))
    weighed = weigh(kernel, weights1, weights2)
    return weighed.map(summed, positions=Positions(), lengths1=None, lengths2=None)


def pool(kernel: Kernel, *, layer: str, mean: bool) -> Kernel:
    """The sum or mean over the times of each sequence; of an empty one 0."""
    limit.require_times(layer, kernel)
    weights = within(kernel)
    if mean:
        dtype = kernel.nngp.dtype
        share = lambda w, n: w.astype(dtype) / jnp.maximum(n, 1).astype(dtype)[None, :]
        (w1, w2), (n1, n2) = weights, of(kernel)
        weights = share(w1, n1), share(w2, n2)
    return total(kernel, *weights)


def _each_time(kernel: Kernel, holds: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    (times,) = kernel.positions.shape
    n1, n2 = of(kernel)
    at = lambda n: holds(jnp.arange(times, dtype=n.dtype)[:, None], n[None, :])
    return at(n1), at(n2)
