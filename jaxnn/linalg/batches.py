"""Means over data sets too large for one product: batch after batch, exactly, in one order."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxnn import tree
from jaxnn.errors import invalid, require_examples
from jaxnn.linalg.convolutions import reordered
from jaxnn.types import Array, PyTree


def mean_over_batches(
    function: Callable[..., PyTree], data: tuple[PyTree, ...], batch_size: int | None
) -> PyTree:
    """(1/N) Σ_b n_b function(*batch_b): a mean over N examples from means over batches of n_b.

    `data` are trees of arrays with N examples along their first axes; batches are consecutive, and
    the last one, if it is smaller, counts for as much less. The order is always the same, and the
    sum is compensated: its rounding error does not grow with the number of batches. One batch at a
    time is in memory, also where the function is differentiated: it is then computed anew. With
    `batch_size` None the function is called once, with `data` of any kind.

    Errors: data of unequal lengths, a batch size below 1.

    Source: Ogita, Rump & Oishi (2005), algorithm 4.1, with the exact sum of two of Knuth (1998),
    section 4.2.2, theorem B.

    >>> mean_over_batches(jnp.mean, (jnp.arange(7.0),), 3)
    Array(3., dtype=float32)
    """
    if batch_size is None:
        return function(*data)
    n = require_batches("mean_over_batches", data, batch_size)
    if batch_size >= n:
        return function(*data)
    whole, rest = divmod(n, batch_size)
    cut = partial(examples_at, data)

    @jax.checkpoint
    def step(sums: tuple[PyTree, PyTree], i: Array) -> tuple[tuple[PyTree, PyTree], None]:
        return added(*sums, reordered(function)(*cut(i * batch_size, batch_size))), None

    like = jax.eval_shape(lambda: function(*cut(0, batch_size)))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
    sums = lax.scan(step, (zero, zero), jnp.arange(whole, dtype=jnp.int32))[0]
    total = tree.scale(batch_size / n, tree.add(*sums))
    if rest == 0:
        return total
    last = jax.checkpoint(lambda: function(*cut(whole * batch_size, rest)))()
    return tree.add(total, tree.scale(rest / n, last))


def examples_at(data: PyTree, start: int | Array, count: int) -> PyTree:
    """`count` consecutive examples, also where these are distributed over devices."""

    def cut(a: Array) -> Array:
        a = jnp.asarray(a)
        parts = jax.typeof(a).sharding.shard_shape(a.shape)[0]
        even = (count * parts) % len(a) == 0
        return lax.dynamic_slice_in_dim(a if even else gathered(a), start, count)

    return jax.tree.map(cut, data)


def gathered(a: Array) -> Array:
    """The array with all of its first axis on every device, where its type says that it is not.

    Only types with explicit axes do; elsewhere XLA moves what has to be moved.
    """
    sharding = jax.typeof(a).sharding
    if not sharding.spec or sharding.spec[0] is None:
        return a
    return jax.sharding.reshard(a, PartitionSpec(None, *sharding.spec[1:]))


def added(total: PyTree, lost: PyTree, term: PyTree) -> tuple[PyTree, PyTree]:
    """total + term, and with it what all additions so far have lost to rounding."""

    def one(s: Array, c: Array, x: Array) -> tuple[Array, Array]:
        new = s + x
        # Without a comparison of |s| and |x|: that would not be linear in (s, x), the linearized
        # sum would compare what it does not sum, and keep s of every batch in order to do so.
        part = new - s
        return new, c + ((s - (new - part)) + (x - part))

    pairs = jax.tree.map(one, total, lost, term)
    return jax.tree.transpose(jax.tree.structure(total), jax.tree.structure((0, 0)), pairs)


def require_batches(function: str, data: tuple[PyTree, ...], batch_size: int) -> int:
    """How many examples there are; raises where they are not to be had in such batches."""
    remedy = "Arrays that are no examples belong into the function, by functools.partial."
    n = require_examples(f"{function}(data)", data, remedy=remedy)
    if batch_size < 1:
        raise invalid(
            f"{function}(batch_size)",
            got=batch_size,
            expected="an integer ≥ 1, or None",
            remedy="None takes all of the data at once.",
        )
    return n
