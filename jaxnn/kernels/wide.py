"""Kernels of infinitely wide networks, in tiles of pairs."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxnn.errors import invalid
from jaxnn.kernels.tiles import starts, tile_size
from jaxnn.nn import Kernel, Layer, limit
from jaxnn.types import Array

# Arrays of a tile's size that are alive at once: the moments before and after an activation, and
# what its dual needs in between.
ALIVE = 8


def infinite(
    net: Layer,
    x1: Float[Array, "N1 *features"],
    x2: Float[Array, "N2 *features"] | None = None,
    *,
    max_bytes: int = 2**22,
) -> Kernel:
    """The NNGP and NTK that `net` has at infinite width, between the inputs x1 and x2.

    K(x, x') = E[f(x)f(x')] and Θ(x, x') = E[Σ_θ ∂f(x)/∂θ · ∂f(x')/∂θ] at random weights, per
    output, as `Kernel.nngp` and `Kernel.ntk` of shape (N1, N2). Inputs are (N, d), images
    (N, *spatial, C) or sequences (N, T, d); an output that keeps positions has them first,
    (*S, N1, N2), or (*S, *S, N1, N2) of a network that mixes positions. In the standard
    parametrization Θ grows with the widths that `net` states; in the NTK parametrization it does
    not. With x2=None one triangle is computed, and the diagonal has no cancellation error: there
    the angle is exactly 0. Pairs are cut into tiles whose intermediates take about `max_bytes`.

    Errors: x2 of other features than x1, max_bytes < 1, a layer without a limit (by its name).

    Source: Jacot, Gabriel & Hongler (2018), theorem 1; Lee et al. (2018), equation 5.

    >>> from jaxnn import nn
    >>> net = nn.serial(nn.dense(512, parametrization="ntk"), nn.relu(),
    ...                 nn.dense(1, parametrization="ntk"))
    >>> infinite(net, jnp.eye(2)).ntk
    Array([[2.        , 0.31830987],
           [0.31830987, 2.        ]], dtype=float32)
    """
    remedy = "Both hold examples of one shape, batch axis first."
    if x1.ndim < 2:
        raise invalid(
            "infinite(x1)", got=f"shape {x1.shape}", expected="(N, *features)", remedy=remedy
        )
    if x2 is not None and x2.shape[1:] != x1.shape[1:]:
        expected = f"(N, {', '.join(map(str, x1.shape[1:]))})"
        raise invalid("infinite(x2)", got=f"shape {x2.shape}", expected=expected, remedy=remedy)
    if max_bytes < 1:
        raise invalid(
            "infinite(max_bytes)", got=max_bytes, expected="at least 1", remedy="It is a budget."
        )
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    size = math.prod(x1.shape[1:-1]) ** (2 if net.mixes_positions else 1)
    entry = ALIVE * size * x1.dtype.itemsize
    tile = tile_size(max(n1, n2), lambda t: entry * min(t, n1) * min(t, n2) <= max_bytes)
    between = lambda x1, x2: net.kernel(limit.inputs(x1, x2, crossed=net.mixes_positions))
    if tile >= max(n1, n2):
        return between(x1, x2)
    t1, t2 = min(tile, n1), min(tile, n2)
    rows, columns = starts(n1, t1), starts(n2, t2)
    cut = lambda x, at, size: lax.dynamic_slice_in_dim(x, at, size)
    empty = _empty(between, x1[:t1], (x1 if x2 is None else x2)[:t2], n1, n2)

    if x2 is not None:

        def step(total: Kernel, at: Array) -> tuple[Kernel, None]:
            return _put(total, between(cut(x1, at[0], t1), cut(x2, at[1], t2)), at), None

        pairs = np.array([(i, j) for i in rows for j in columns], np.int32)
        return lax.scan(step, empty, jnp.asarray(pairs))[0]

    def above(total: Kernel, at: Array) -> tuple[Kernel, None]:
        block = between(cut(x1, at[0], t1), cut(x1, at[1], t1))
        return _put(_put(total, block, at), _mirrored(block), at[::-1]), None

    def diagonal(total: Kernel, at: Array) -> tuple[Kernel, None]:
        return _put(total, between(cut(x1, at, t1), None), jnp.stack([at, at])), None

    # The diagonal last: tiles overlap where they are ragged, and only these know who is who.
    pairs = np.array(list(combinations(rows, 2)), np.int32)
    total = lax.scan(above, empty, jnp.asarray(pairs))[0]
    total = lax.scan(diagonal, total, jnp.asarray(rows, jnp.int32))[0]
    return replace(total, twins=True)


def _empty(between: Callable[..., Kernel], x1: Array, x2: Array, n1: int, n2: int) -> Kernel:
    """Zeros for the moments of n1 × n2 pairs, of the kernel that `between` gives for a tile."""
    blocks = []

    def moments(x1: Array, x2: Array) -> dict[str, Array]:
        blocks.append(between(x1, x2))
        return {name: getattr(blocks[0], name) for name in limit.MOMENTS}

    tile = jax.eval_shape(moments, x1, x2)
    pairs = {"covariance1": (n1, 1), "covariance2": (1, n2)}
    zeros = {
        name: jnp.zeros((*s.shape[:-2], *pairs.get(name, (n1, n2))), s.dtype)
        for name, s in tile.items()
    }
    return replace(blocks[0], **zeros, twins=False)


def _put(total: Kernel, block: Kernel, at: Array) -> Kernel:
    """`total` with the moments of a block of pairs that begin at (i, j)."""
    i, j = at
    zero = jnp.zeros_like(i)
    corners = {"covariance1": (i, zero), "covariance2": (zero, j)}

    def update(name: str) -> Array:
        moment = getattr(total, name)
        corner = corners.get(name, (i, j))
        start = (zero,) * (moment.ndim - 2) + corner
        return lax.dynamic_update_slice(moment, getattr(block, name), start)

    return replace(total, **{name: update(name) for name in limit.MOMENTS})


def _mirrored(block: Kernel) -> Kernel:
    """The block with x and x' exchanged, and their positions."""
    count = len(block.positions.shape)

    def swap(k: Array) -> Array:
        order = list(range(k.ndim))
        if block.positions.crossed:
            order[: 2 * count] = [*order[count : 2 * count], *order[:count]]
        order[-2:] = [order[-1], order[-2]]
        return jnp.transpose(k, order)

    return replace(
        block,
        nngp=swap(block.nngp),
        ntk=swap(block.ntk),
        covariance1=swap(block.covariance2),
        covariance2=swap(block.covariance1),
    )
