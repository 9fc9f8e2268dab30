"""Mini-batches as slices of a permutation, drawn anew for every epoch from a key and a step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Int

from jaxnn.errors import invalid
from jaxnn.types import Array, Key


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
