"""What a random estimator returns: the mean over probes, and how far it may be off."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxnn.errors import invalid
from jaxnn.types import Array, PyTree

Sampler = Callable[..., Array]
"""sampler(key, shape, dtype): entries of mean 0 and variance 1; `jax.random.rademacher`."""


class Estimate(NamedTuple):
    """An unbiased estimate and its standard error, the root of the estimated variance.

    The truth is within 1.96 standard errors in 95 of 100 estimates, within 4 almost always.

    value           a number, or a tree like the operator's domain (of a diagonal)
    standard_error  of the same shape
    products        with the operator
    """

    value: PyTree
    standard_error: PyTree
    products: Int[Array, ""]


def mean_of(samples: Float[Array, "probes"], products: int) -> Estimate:
    """The mean of independent samples, with standard error s/√probes; that of one is NaN.

    >>> mean_of(jnp.array([1.0, 3.0]), 2)[:2]
    (Array(2., dtype=float32), Array(1., dtype=float32))
    """
    count = len(samples)
    error = jnp.std(samples, ddof=1) if count > 1 else jnp.full((), jnp.nan, samples.dtype)
    return Estimate(jnp.mean(samples), error / count**0.5, jnp.array(products, jnp.int32))


def require_probes(argument: str, probes: int, least: int = 1) -> None:
    """Raise for fewer probes than an estimate needs.

    >>> require_probes("trace(probes)", 10)
    """
    if probes < least:
        raise invalid(
            argument,
            got=probes,
            expected=f"an integer ≥ {least}",
            remedy="The standard error falls as its inverse square root.",
        )
