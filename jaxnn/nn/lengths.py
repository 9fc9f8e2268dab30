"""Limits over padded sequences: which times count, in kernels that know the lengths.

A kernel of padded sequences has entries for all pairs of times, axes (T, T, N1, N2), and the
`lengths1` and `lengths2` of its examples. Weights are (T, N1) and (T, N2): a number for each time
of each example.
"""

from dataclasses import replace

import jax.numpy as jnp

from jaxnn.nn import limit
from jaxnn.nn.limit import Kernel
from jaxnn.nn.positions import Positions
from jaxnn.types import Array


def within(kernel: Kernel) -> tuple[Array, Array]:
    """Whether each time is within each sequence, (T, N1) and (T, N2), for known lengths."""
    (times,) = kernel.positions.shape
    before = jnp.arange(times)[:, None]
    lengths = kernel.lengths1, kernel.lengths2
    return tuple(before.astype(n.dtype) < n[None, :] for n in lengths)


def last(kernel: Kernel) -> tuple[Array, Array]:
    """Whether each time is the last one of each sequence, (T, N1) and (T, N2)."""
    (times,) = kernel.positions.shape
    after = jnp.arange(1, times + 1)[:, None]
    lengths = kernel.lengths1, kernel.lengths2
    return tuple(after.astype(n.dtype) == n[None, :] for n in lengths)


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
        counts = (jnp.maximum(n, 1) for n in (kernel.lengths1, kernel.lengths2))
        weights = tuple(
            w.astype(kernel.nngp.dtype) / n.astype(kernel.nngp.dtype)[None, :]
            for w, n in zip(weights, counts, strict=True)
        )
    return total(kernel, *weights)
