"""Kernels in tiles: what does not fit in memory at once is computed block after block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.kernels.blocks import Block, Method
from jaxnn.kernels.contractions import mirrored
from jaxnn.kernels.examples import batched, num_examples
from jaxnn.kernels.mesh_axes import manual_axes, over
from jaxnn.types import Array, PyTree


def tile_size(n: int, fits: Callable[[int], bool]) -> int:
    """The largest n, n/2, n/4, ... (rounded up) that fits, at least 1.

    >>> tile_size(100, lambda t: t * t <= 1000)
    25
    """
    size = n
    while size > 1 and not fits(size):
        size = -(-size // 2)
    return size


def starts(n: int, tile: int) -> np.ndarray:
    """Where tiles of one size begin that cover 0..n; the last overlaps the one before it.

    >>> starts(10, 4)
    array([0, 4, 6])
    """
    return np.minimum(np.arange(0, n, tile), n - tile)


def tiled(method: Method, x1: PyTree, x2: PyTree | None, tile: int, *, keep: bool) -> Block:
    """The kernel between x1 and x2 (None: x1), in blocks of tile × tile examples.

    If `keep`, the whole batches are prepared beforehand, else the tiles of every pair again. A
    symmetric kernel is computed for tiles on and above the diagonal. One tile is no loop at all.
    """
    n1, n2 = num_examples("x1", x1), num_examples("x2", x1 if x2 is None else x2)
    if tile >= max(n1, n2):
        first = method.prepare(x1)
        second = first if x2 is None else method.prepare(x2)
        return method.meet(first, second, x2 is None)
    t1, t2 = min(tile, n1), min(tile, n2)
    rows, columns = starts(n1, t1), starts(n2, t2)
    pairs = np.array([(i, j) for i in rows for j in columns if x2 is not None or j >= i])
    if keep:
        kept1 = jax.lax.map(method.prepare, _cut(x1, rows, t1))
        kept2 = kept1 if x2 is None else jax.lax.map(method.prepare, _cut(x2, columns, t2))
        of1 = lambda i: _pick(kept1, jnp.searchsorted(jnp.asarray(rows, i.dtype), i))
        of2 = lambda j: _pick(kept2, jnp.searchsorted(jnp.asarray(columns, j.dtype), j))
    else:
        of1 = lambda i: method.prepare(_rows(x1, i, t1))
        other = x1 if x2 is None else x2
        of2 = lambda j: method.prepare(_rows(other, j, t2))

    def step(result: Block, pair: Array) -> tuple[Block, None]:
        i, j = pair
        block = method.meet(of1(i), of2(j), False)
        result = jax.tree.map(lambda r, b: _put(r, b, i, j), result, block)
        if x2 is None:
            result = jax.tree.map(lambda r, b: _put(r, mirrored(b), j, i), result, block)
        return result, None

    shapes = jax.eval_shape(lambda i: method.meet(of1(i), of2(i), False), jnp.int32(0))
    empty = jax.tree.map(
        lambda s: over(manual_axes(s), jnp.zeros((n1, n2, *s.shape[2:]), s.dtype)), shapes
    )
    return jax.lax.scan(step, empty, jnp.asarray(pairs, jnp.int32))[0]


def in_pairs(method: Method, x1: PyTree, x2: PyTree | None, batch_size: int) -> Block:
    """The kernel of row i of x1 with row i of x2 (None: x1), for `batch_size` rows at a time."""

    def one(pair: tuple[PyTree, PyTree | None]) -> Block:
        first = method.prepare(batched(pair[0]))
        second = first if pair[1] is None else method.prepare(batched(pair[1]))
        return jax.tree.map(lambda b: b[0, 0], method.meet(first, second, x2 is None))

    return jax.lax.map(one, (x1, x2), batch_size=max(1, min(batch_size, num_examples("x1", x1))))


def _rows(x: PyTree, start: Array, size: int) -> PyTree:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), x)


def _cut(x: PyTree, at: np.ndarray, size: int) -> PyTree:
    return jax.tree.map(lambda a: a[at[:, None] + np.arange(size)[None, :]], x)


def _pick(kept: PyTree, number: Array) -> PyTree:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), kept)


def _put(result: Array, block: Array, i: Array, j: Array) -> Array:
    origin = jnp.zeros((), i.dtype)
    return jax.lax.dynamic_update_slice(result, block, (i, j, *[origin] * (result.ndim - 2)))
