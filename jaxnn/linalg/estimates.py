"""What a random estimator returns: the mean over probes, and how far it may be off."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxnn.errors import invalid, require_between
from jaxnn.types import Array, PyTree

Sampler = Callable[..., Array]
"""sampler(key, shape, dtype): entries of mean 0 and variance 1; `jax.random.rademacher`."""


class Estimate(NamedTuple):
    """An unbiased estimate, and the root of an unbiased estimate of its variance.

    value           a number, or a tree like the operator's domain (of a diagonal)
    standard_error  of the same shape; NaN of a single probe
    probes          how many estimates were averaged
    products        with the operator
    """

    value: PyTree
    standard_error: PyTree
    probes: int
    products: int

    def interval(self, confidence: float = 0.95) -> tuple[PyTree, PyTree]:
        """(low, high) around the truth with that probability: value ± t·standard_error.

        t is Student's quantile for the spread of `probes` normal numbers: 1.96 at 95 % of many,
        2.26 of 10. Skew estimates, of few probes of an operator of low rank, are covered less.

        Errors: a confidence outside (0, 1).

        >>> mean_of(jnp.array([1.0, 3.0, 2.0, 2.0]), 4).interval()[0].round(2)
        Array(0.7, dtype=float32)
        """
        remedy = "0.95 is usual."
        require_between("interval(confidence)", confidence, 0.0, 1.0, low_open=True, remedy=remedy)
        t = _student_quantile(0.5 + 0.5 * confidence, self.probes - 1)
        both = (self.value, self.standard_error)
        low = jax.tree.map(lambda v, e: v - t * e, *both)
        return low, jax.tree.map(lambda v, e: v + t * e, *both)


def _student_quantile(p: float, degrees: int) -> float:
    """Student's quantile from the normal one (Abramowitz & Stegun 1964, 26.7.5)."""
    z, n = NormalDist().inv_cdf(p), max(degrees, 1)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def mean_of(samples: Float[Array, "probes *n"], products: int) -> Estimate:
    """The mean over the first axis of independent samples, with standard error s/√probes.

    >>> mean_of(jnp.array([1.0, 3.0]), 2)[:2]
    (Array(2., dtype=float32), Array(1., dtype=float32))
    """
    count, mean = len(samples), jnp.mean(samples, axis=0)
    if count == 1:
        return Estimate(mean, jnp.full_like(mean, jnp.nan), 1, products)
    error = jnp.std(samples, axis=0, ddof=1) / count**0.5
    return Estimate(mean, error, count, products)


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
