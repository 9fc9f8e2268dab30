"""Means over data sets too large for one product: batch after batch, exactly, in one order."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxnn import tree
from jaxnn.errors import invalid, is_traced, require_examples
from jaxnn.linalg.convolutions import reordered
from jaxnn.types import Array, ArrayLike, PyTree


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

    def cut(a: ArrayLike) -> Array:
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


def require_mean(
    argument: str, function: Callable[..., PyTree], params: PyTree, batch: tuple[PyTree, ...]
) -> None:
    """Raise unless `function(params, *batch)` is the mean of its values on the halves of the batch.

    Only where values are there to be compared, to half of their digits.

    >>> total = lambda w, x: jnp.sum(w * x)
    >>> require_mean("hessian(objective)", total, jnp.ones(()), (jnp.arange(4.0),))
    Traceback (most recent call last):
    ValueError: hessian(objective): got 6.0 on a batch and on its halves a mean of 3.0, expected ...
    """
    count = len(jnp.asarray(jax.tree.leaves(batch)[0]))
    if count < 2 or is_traced((params, batch)):
        return
    half = count // 2
    value = jax.jit(lambda params, batch: function(params, *batch))
    whole = value(params, batch)
    first = value(params, examples_at(batch, 0, half))
    second = value(params, examples_at(batch, half, count - half))
    if is_traced((whole, first, second)):  # of a function that closes over traced arrays
        return
    mean = (half * first + (count - half) * second) / count
    size = jnp.maximum(jnp.abs(whole), jnp.maximum(jnp.abs(first), jnp.abs(second)))
    if jnp.abs(whole - mean) > jnp.finfo(whole.dtype).eps ** 0.5 * size:
        raise invalid(
            argument,
            got=f"{whole} on a batch and on its halves a mean of {mean}",
            expected="a mean over examples that do not depend on each other",
            remedy="Divide a sum by the length of the batch; take batch norm with fixed "
            "statistics, and pass what belongs to examples as data.",
        )


def require_separate(
    argument: str, f: Callable[..., PyTree], params: PyTree, x: PyTree, batch_size: int | None
) -> None:
    """Raise unless f gives the second half of a batch the same outputs with and without the first.

    Only where values are there to be compared, to half of their digits.

    >>> centered = lambda w, x: w * (x - jnp.mean(x))
    >>> require_separate("gauss_newton(f)", centered, jnp.ones(()), jnp.arange(4.0), 4)
    Traceback (most recent call last):
    ValueError: gauss_newton(f): got other outputs of the second half of a batch without ...
    """
    if batch_size is None or is_traced((params, x)):
        return
    count = min(batch_size, require_batches(argument, (x,), batch_size))
    half = count // 2
    if half == 0:
        return
    value = jax.jit(f)
    batch = examples_at(x, 0, count)
    whole, alone = value(params, batch), value(params, examples_at(batch, half, count - half))
    if is_traced((whole, alone)):
        return
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        size, error = jnp.max(jnp.abs(a), initial=0), jnp.finfo(a.dtype).eps ** 0.5
        if a[half:].shape != b.shape or jnp.any(jnp.abs(a[half:] - b) > error * size):
            raise invalid(
                argument,
                got="other outputs of the second half of a batch without the first half",
                expected="a function of every example by itself, or batch_size=None",
                remedy="Take batch norm with fixed statistics, and pass what belongs to examples "
                "as part of x.",
            )


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
