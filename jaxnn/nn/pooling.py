"""Pooling: one number for each window of the spatial axes, or for all of them, per channel.

Integers become floating-point numbers first, and sums and means of half precision are accumulated
in float32 (see `jaxnn.precision`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.errors import invalid, require_real
from jaxnn.nn import lengths, limit
from jaxnn.nn.layers import Layer, Sequences, require_in_shape
from jaxnn.nn.windows import Padding, Windows, places, require_spatial, windows, wrap_for
from jaxnn.precision import accumulated, inexact
from jaxnn.types import Array, Key, Params, Shape


def max_pool(
    window: Sequence[int], *, strides: Sequence[int] | None = None, padding: Padding = "VALID"
) -> Layer:
    """The largest entry of every window, y[n, i, c] = max_a x[n, strides·i + a, c].

    `window` has one size per spatial axis of x, (N, *spatial, C). `strides` are the window's own
    size unless given, so that windows do not overlap. "SAME" pads with -∞.

    Errors: sizes that are not integers ≥ 1, one per axis; an x of another rank; a window larger
    than a "VALID" input.

    Source: Riesenhuber & Poggio (1999).

    >>> layer = max_pool((2, 2))
    >>> layer.apply((), jnp.arange(8.0).reshape(1, 2, 4, 1)).ravel()
    Array([5., 7.], dtype=float32)
    """
    no_limit = limit.no_limit("max_pool", _NO_LIMIT)

    def reduce(x: Array, own: Windows) -> Array:
        require_real("max_pool.apply: x", x)
        return _reduce(inexact(x), own, lax.max)

    return _pool("max_pool", window, strides, padding, reduce, lambda own: no_limit)


def sum_pool(
    window: Sequence[int], *, strides: Sequence[int] | None = None, padding: Padding = "VALID"
) -> Layer:
    """The sum over every window, y[n, i, c] = Σ_a x[n, strides·i + a, c]; else as `max_pool`.

    >>> sum_pool((2, 2)).apply((), jnp.arange(8.0).reshape(1, 2, 4, 1)).ravel()
    Array([10., 18.], dtype=float32)
    """
    reduce = lambda x, own: accumulated(_reduce, x, own=own, operation=lax.add)
    kernel = partial(limit.pool, layer="sum_pool", mean=False, border=True)
    return _pool(
        "sum_pool", window, strides, padding, reduce, lambda own: partial(kernel, windows=own)
    )


def avg_pool(
    window: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_padding: bool = False,
) -> Layer:
    """The mean over every window; else as `max_pool`.

    With "SAME" padding the mean is that of the entries there are; with `count_padding` the zeros
    of the border count as well.

    Source: LeCun, Bottou, Bengio & Haffner (1998), section II.B.

    >>> avg_pool((2, 2)).apply((), jnp.arange(8.0).reshape(1, 2, 4, 1)).ravel()
    Array([2.5, 4.5], dtype=float32)
    """

    def mean(x: Array, *, own: Windows) -> Array:
        total = _reduce(x, own, lax.add)
        if own.padding != "SAME" or count_padding:
            return total / math.prod(own.size)
        counts = _reduce(jnp.ones((1, *x.shape[1:-1], 1), x.dtype), own, lax.add)
        return total / jnp.broadcast_to(counts, total.shape)

    def kernel(own: Windows) -> Callable[[limit.Kernel], limit.Kernel]:
        border = own.padding != "SAME" or count_padding
        return partial(limit.pool, windows=own, layer="avg_pool", mean=True, border=border)

    reduce = lambda x, own: accumulated(mean, x, own=own)
    return _pool("avg_pool", window, strides, padding, reduce, kernel)


def global_avg_pool() -> Layer:
    """The mean over all spatial axes, (N, *spatial, C) to (N, C); of `nn.Sequences`, over time.

    Source: Lin, Chen & Yan (2014), section 3.2.

    >>> global_avg_pool().apply((), jnp.arange(8.0).reshape(1, 2, 4, 1))
    Array([[3.5]], dtype=float32)
    """
    kernel = partial(_global_limit, layer="global_avg_pool", mean=True)
    return _global_pool("global_avg_pool", jnp.mean, kernel)


def global_max_pool() -> Layer:
    """The largest entry over all spatial axes, (N, *spatial, C) to (N, C).

    >>> global_max_pool().apply((), jnp.arange(8.0).reshape(1, 2, 4, 1))
    Array([[7.]], dtype=float32)
    """
    return _global_pool("global_max_pool", jnp.max, limit.no_limit("global_max_pool", _NO_LIMIT))


def global_sum_pool() -> Layer:
    """The sum over all spatial axes, (N, *spatial, C) to (N, C).

    >>> global_sum_pool().apply((), jnp.arange(8.0).reshape(1, 2, 4, 1))
    Array([[28.]], dtype=float32)
    """
    kernel = partial(_global_limit, layer="global_sum_pool", mean=False)
    return _global_pool("global_sum_pool", jnp.sum, kernel)


_NO_LIMIT = "Take the average instead of the maximum, or the kernel of the finite network."


def _pool(name, window, strides, padding, reduce, kernel) -> Layer:
    own = windows(name, window, strides=window if strides is None else strides, padding=padding)

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape(name, in_shape, min_rank=len(own.size) + 1)
        if len(in_shape) != len(own.size) + 1:
            raise invalid(
                f"{name}.init: in_shape",
                got=repr(in_shape),
                expected=f"{len(own.size)} spatial axes, as the window has, and the channels",
                remedy="Give the window a size for every spatial axis.",
            )
        return (), (*places(f"{name}.init", own, tuple(in_shape[:-1])), in_shape[-1])

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        require_spatial(name, x, len(own.size), None)
        places(f"{name}.apply", own, x.shape[1:-1])
        return reduce(x, own)

    return Layer(init, apply, kernel(own), name, mixes_positions=True)


def _reduce(x: Array, own: Windows, operation) -> Array:
    circular = own.padding == "CIRCULAR"
    # A NumPy scalar: only of a known number can JAX see that it is neutral, and differentiate.
    neutral = np.asarray(-np.inf if operation is lax.max else 0, x.dtype)
    return lax.reduce_window(
        wrap_for(own, x) if circular else x,
        neutral,
        operation,
        (1, *own.size, 1),
        (1, *own.strides, 1),
        "VALID" if circular else own.padding,
    )


def _global_limit(kernel: limit.Kernel, *, layer: str, mean: bool) -> limit.Kernel:
    pool = limit.global_pool if kernel.lengths1 is None else lengths.pool
    return pool(kernel, layer=layer, mean=mean)


def _global_pool(name, reduce, kernel) -> Layer:
    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape(name, in_shape, min_rank=2)
        return (), in_shape[-1:]

    def apply(
        params: Params, x: Array | Sequences, *, key: Key | None = None, stats: Params = None
    ) -> Array:
        values = x.values if isinstance(x, Sequences) else x
        if jnp.ndim(values) < 3 or (isinstance(x, Sequences) and values.ndim > 3):
            raise invalid(
                f"{name}.apply: x",
                got=f"shape {jnp.shape(values)}",
                expected="(N, *spatial, C), batch axis first, channels last",
                remedy="Add a channel axis by x[..., None].",
            )
        if reduce is jnp.max:
            require_real(f"{name}.apply: x", values)
        if not isinstance(x, Sequences):
            return accumulated(reduce, values, axis=tuple(range(1, values.ndim - 1)))
        within = jnp.broadcast_to(x.mask()[..., None], values.shape)
        # Sequences of no entries have the mean 0.
        count = jnp.maximum(x.lengths, 1) if reduce is jnp.mean else None
        return accumulated(partial(_reduce_times, reduce, within=within, count=count), values)

    return Layer(init, apply, kernel, name, reads_lengths=True, mixes_positions=True)


def _reduce_times(reduce, x: Array, *, within: Array, count: Array | None) -> Array:
    """The maximum, sum or mean of those times (axis 1) that are within a sequence."""
    if reduce is jnp.max:
        return jnp.max(x, axis=1, where=within, initial=-jnp.inf)
    total = jnp.sum(x, axis=1, where=within)
    if count is None:
        return total
    return total / jnp.broadcast_to(count[:, None].astype(total.dtype), total.shape)
