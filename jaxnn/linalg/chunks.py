"""How many random vectors go through a product at once: what fits, and what is faster."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Jaxpr

from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.programs import programs_in
from jaxnn.types import PyTree

CACHE_BYTES, DEVICE_BYTES = 2**22, 2**30
"""Budgets for what a chunk computes, on a CPU and elsewhere.

A CPU gains by batching what fits its cache and loses beyond: products of the network of
`experiments.benchmarks.curvature` (85,002 parameters, 1797 examples) take twice as long when 4 or
more are batched. An accelerator gains as long as there is memory.
"""


def chunk_size(count: int, bytes_each: int, max_bytes: int | None = None) -> int:
    """How many of `count` vectors to batch, if each needs so many bytes: at least one.

    `max_bytes` is None for the budget of the default backend.

    >>> chunk_size(100, 1000, max_bytes=12_345), chunk_size(100, 10**9, max_bytes=1000)
    (12, 1)
    """
    if max_bytes is None:
        max_bytes = CACHE_BYTES if jax.default_backend() == "cpu" else DEVICE_BYTES
    return max(1, min(count, max_bytes // max(bytes_each, 1)))


def product_bytes(operator: LinearOperator) -> int:
    """Bytes of all intermediate results of one product, more than are ever there at once.

    >>> import jax.numpy as jnp
    >>> from jaxnn import linalg
    >>> product_bytes(linalg.from_dense(jnp.ones((3, 2)))) < 100
    True
    """
    return _written(jax.make_jaxpr(operator.matvec)(operator.domain).jaxpr)


def _written(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        avals: list[Any] = [var.aval for var in eqn.outvars]
        total += sum(math.prod(a.shape) * a.dtype.itemsize for a in avals if hasattr(a, "dtype"))
        total += sum(map(_written, programs_in(eqn)))
    return total


def over_keys(function: Callable[[jax.Array], PyTree], keys: jax.Array, chunk: int) -> PyTree:
    """`function` of every key, stacked: `chunk` at once, chunk after chunk."""
    if chunk >= len(keys):
        return jax.vmap(function)(keys)
    return lax.map(function, keys, batch_size=chunk if chunk > 1 else None)
