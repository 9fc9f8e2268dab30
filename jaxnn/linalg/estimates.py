"""What a random estimator returns: the mean over probes, and how far it may be off."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

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
    products: int | Int[Array, ""]  # the latter of a result of jit

    def interval(self, confidence: float = 0.95) -> tuple[PyTree, PyTree]:
        """(low, high) around the truth with that probability: value ± t·standard_error.

        t is Student's quantile for the spread of `probes` normal numbers: 1.96 at 95 % of many,
        2.26 of 10, 12.7 of two. Skew estimates, of few probes of an operator of low rank, are
        covered less.

        Errors: a confidence outside (0, 1).

        >>> mean_of(jnp.array([1.0, 3.0, 2.0, 2.0]), 4).interval()[0].round(2)
        Array(0.7, dtype=float32)
        """
        remedy = "0.95 is usual."
        require_between("interval(confidence)", confidence, 0.0, 1.0, low_open=True, remedy=remedy)
        # A Python number, also where jit has made an array of it.
        t = student_quantile(confidence, max(int(self.probes) - 1, 1))
        both = (self.value, self.standard_error)
        low = jax.tree.map(lambda v, e: v - t * e, *both)
        return low, jax.tree.map(lambda v, e: v + t * e, *both)


def student_quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| ≤ t) = confidence, for T of Student's distribution with so many degrees.

    t = √degrees·tan θ, with θ by bisection, as P is a finite sum of powers of sin θ and cos θ.

    Source: Abramowitz & Stegun (1964), 26.7.3 and 26.7.4.

    >>> round(student_quantile(0.95, 1), 3), round(student_quantile(0.95, 99), 3)
    (12.706, 1.984)
    """
    odd = degrees % 2

    def probability(angle: float) -> float:
        sine, cosine = math.sin(angle), math.cos(angle)
        term = sine * cosine if odd else sine
        total = term if degrees > 1 else 0.0
        for power in range(2 + odd, degrees, 2):
            term *= cosine**2 * (power - 1) / power
            total += term
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(52):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if probability(middle) < confidence else (low, middle)
    return degrees**0.5 * math.tan(low)


def mean_of(samples: Float[Array, "probes *n"], products: int | Int[Array, ""]) -> Estimate:
    """The mean over the first axis of independent samples, with standard error s/√probes.

    >>> mean_of(jnp.array([1.0, 3.0]), 2)[:2]
    (Array(2., dtype=float32), Array(1., dtype=float32))
    """
    count, mean = len(samples), jnp.mean(samples, axis=0)
    if count == 1:
        return Estimate(mean, jnp.full_like(mean, jnp.nan), 1, products)
    spread = samples - mean[None]
    # Of samples of 1e30 the squares would be infinite.
    unit = lax.stop_gradient(jnp.max(jnp.abs(spread), axis=0))
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    error = unit * jnp.sqrt(jnp.sum((spread / unit[None]) ** 2, axis=0) / (count * (count - 1)))
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
