"""Mini-batches as slices of a permutation, drawn anew for every epoch from a key and a step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxnn.errors import invalid
from jaxnn.types import Array, Key, PyTree


def shuffled(key: Key, epoch: Any, examples: int) -> Int[Array, "examples"]:
    """The order of the examples in an epoch.

    >>> sorted(shuffled(jax.random.key(0), 3, 4).tolist())
    [0, 1, 2, 3]
    """
    indices = jnp.arange(examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(key, epoch), indices)


def rows_at(order: Int[Array, "N"], step: Any, batch_size: int) -> Int[Array, "batch_size"]:
    """The numbers of the examples that a step sees; the remainder of an epoch is seen by none.

    >>> rows_at(jnp.array([4, 2, 0, 3, 1]), 3, 2)
    Array([0, 3], dtype=int32)
    """
    start = step % (order.size // batch_size) * batch_size
    return lax.dynamic_slice_in_dim(order, start, batch_size)


def examples_at(data: PyTree, rows: Int[Array, "batch_size"]) -> PyTree:
    """The examples of the given numbers, from data with examples along the first axes.

    On a mesh with explicit axes a batch is sharded as the data are, where its size permits, and
    otherwise along the other axes alone.

    >>> examples_at((jnp.arange(5.0), None), jnp.array([3, 0]))
    (Array([3., 0.], dtype=float32), None)
    """

    def taken(a: Array) -> Array:
        return a.at[rows].get(
            mode="promise_in_bounds",
            unique_indices=True,
            out_sharding=_batch_sharding(a, rows.size),
        )

    return jax.tree.map(taken, data)


def _batch_sharding(a: Array, size: int) -> NamedSharding | None:
    """The sharding of `size` rows of an array whose type has one; None for all others."""
    sharding = jax.typeof(a).sharding
    if not any(sharding.spec):
        return None
    names = sharding.spec[0]
    parts = math.prod(sharding.mesh.shape[n] for n in _as_tuple(names))
    first = names if size % parts == 0 else None
    return NamedSharding(sharding.mesh, PartitionSpec(first, *sharding.spec[1:]))


def _as_tuple(names: Any) -> tuple:
    return names if isinstance(names, tuple) else () if names is None else (names,)


def order_at(order: Int[Array, "N"], key: Key, step: Any, batch_size: int) -> Int[Array, "N"]:
    """The order for a step, from that of the step before: another where an epoch begins.

    >>> order = shuffled(jax.random.key(0), 0, 4)
    >>> bool((order_at(order, jax.random.key(0), jnp.array(1), 2) == order).all())
    True
    """
    epoch = order.size // batch_size
    return lax.cond(
        step % epoch == 0, lambda: shuffled(key, step // epoch, order.size), lambda: order
    )


def require_at_least_one(argument: str, value: int, remedy: str) -> None:
    """Raise for a number below 1.

    >>> require_at_least_one("fit(steps)", 1, "It is the number of updates.")
    """
    if value < 1:
        raise invalid(argument, got=value, expected="an integer ≥ 1", remedy=remedy)


def require_batch_size(argument: str, batch_size: int | None, examples: int) -> None:
    """Raise for a batch of none or of more than all examples.

    >>> require_batch_size("fit(batch_size)", 4, 10)
    """
    if batch_size is not None and not 1 <= batch_size <= examples:
        raise invalid(
            argument,
            got=batch_size,
            expected=f"an integer from 1 to the number of examples, {examples}",
            remedy="None takes all of the data in every step.",
        )
