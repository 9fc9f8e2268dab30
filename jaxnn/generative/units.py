"""Binary units, which are 0 or 1 in floating point: drawn from their log-odds, and enumerated."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid, require_real
from jaxnn.precision import inexact_dtype, wide
from jaxnn.types import Array, ArrayLike, Key

MOST = 20
"""The most units whose states are enumerated: 2²⁰ are a million."""


def bernoulli(key: Key, logits: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Independent units, each 1 with probability σ(logit), in the dtype of the logits.

    >>> bernoulli(jax.random.key(0), jnp.array([-100.0, 100.0]))
    Array([0., 1.], dtype=float32)
    """
    require_real("bernoulli(logits)", logits)
    # Drawn in at least float32: uniform numbers of half precision are multiples of 1/256.
    return jax.random.bernoulli(key, jax.nn.sigmoid(wide(logits))).astype(inexact_dtype(logits))


def states(
    units: int, dtype: jnp.dtype | None = None, *, first: ArrayLike = 0, count: int | None = None
) -> Float[Array, "count units"]:
    """All 2ⁿ states of n units, a row each, the first unit the lowest binary digit of the row.

    `first` and `count` are for a part of the rows.

    Errors: more units than `MOST`.

    >>> states(2)
    Array([[0., 0.],
           [1., 0.],
           [0., 1.],
           [1., 1.]], dtype=float32)
    """
    if units > MOST:
        raise invalid(
            "units to enumerate",
            got=units,
            expected=f"at most {MOST}",
            remedy="Estimate: partition.annealed_log_partition, dbm.bound.",
        )
    rows = jnp.arange(2**units if count is None else count, dtype=jnp.int32) + first
    digits = jnp.arange(units, dtype=jnp.int32)
    shape = (rows.size, units)
    shifted = jnp.broadcast_to(rows[:, None], shape) >> jnp.broadcast_to(digits, shape)
    return (shifted & 1).astype(jnp.zeros(()).dtype if dtype is None else dtype)
