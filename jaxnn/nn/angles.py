"""Angles between Gaussian features, accurate where they are almost parallel, at any scale.

An angle comes from s sin ϑ = √((s - k)(s + k)) and s cos ϑ = k, s = √(v₁v₂): arccos would lose half
of the digits near 0 and π.
"""

import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from numpy.polynomial import Polynomial

from jaxnn.types import Array


@jax.custom_jvp
def arctan2(y: Array, x: Array) -> Array:
    """The angle of (x, y), as `jnp.arctan2` but without its care for infinities; not of (0, 0).

    A polynomial instead of the library's branches: 4 to 9 times faster on a CPU, as accurate.

    >>> arctan2(jnp.array(1.0), jnp.array(-1.0))
    Array(2.3561945, dtype=float32, weak_type=True)
    """
    a, b = jnp.abs(x), jnp.abs(y)
    q = jnp.minimum(a, b) / jnp.maximum(a, b)
    above, below = (_polynomial(c, q * q) for c in _convergent(jnp.finfo(q.dtype).bits))
    # The division last: see `polar`.
    angle = q * above / below
    angle = jnp.where(b > a, math.pi / 2.0 - angle, angle)
    angle = jnp.where(x < 0, math.pi - angle, angle)
    return jnp.where(y < 0, -angle, angle)


@arctan2.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (y, x), (dy, dx) = primals, tangents
    largest = lax.stop_gradient(jnp.maximum(jnp.abs(y), jnp.abs(x)))
    a, b = x / largest, y / largest  # whose squares neither overflow nor vanish
    return arctan2(y, x), (a * dy - b * dx) / (a * a + b * b) / largest


@cache
def _convergent(bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """N and D of arctan(√t)/√t ≈ N(t)/D(t), t from 0 to 1, as precise as floats of so many bits.

    They are a convergent of 1/(1 + t/(3 + 4t/(5 + 9t/(7 + ...)))), whose error falls as
    (1 + √2)^-2n. Source: Gauss (1813).
    """
    t = Polynomial([0.0, 1.0])
    before, now = (Polynomial([0.0]), Polynomial([1.0])), (Polynomial([1.0]), Polynomial([1.0]))
    for n in range(1, 22 if bits > 32 else 10):
        # Divided by n, as the coefficients would otherwise grow like n!.
        step = [((2 * n + 1) * p + n * n * t * q) / n for p, q in zip(now, before, strict=True)]
        before, now = tuple(p / n for p in now), tuple(step)
    above, below = (tuple(p.coef.tolist()) for p in now)
    return above, below


def _polynomial(coefficients: tuple[float, ...], t: Array) -> Array:
    total = jnp.full_like(t, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * t + c
    return total


class Polar(NamedTuple):
    """A Gaussian pair in a unit of its own: k = unit·cosine, √(v₁v₂ - k²) = unit·sine, the angle.

    v₁v₂ = unit²·square.
    """

    unit: Array
    square: Array
    cosine: Array
    sine: Array
    angle: Array


def polar(k: Array, v1: Array, v2: Array) -> Polar:
    """The angle ϑ from 0 to π between features of variances v₁, v₂ and covariance k.

    >>> float(polar(jnp.array(0.5), jnp.array(0.25), jnp.array(1.0)).angle)
    0.0
    """
    (unit1, m1), (unit2, m2) = unit_of(v1), unit_of(v2)
    unit = unit1 * unit2
    # Divide (exact: `unit` is a power of two) rather than multiply: XLA recomputes cheap producers
    # inside each consumer, so that without an expensive operation here every layer would be
    # recomputed in the next.
    cosine = k / unit
    sine = safe_sqrt(gap(cosine, m1, m2))
    both_zero = (sine == 0) & (cosine == 0)  # a zero input: any angle, but a finite derivative
    angle = arctan2(sine, jnp.where(both_zero, 1.0, cosine))
    return Polar(unit, m1 * m2, cosine, sine, jnp.where(both_zero, math.pi / 2, angle))


def root_of(
    slopes: tuple[Array | float, Array | float], k: Array, v1: Array, v2: Array
) -> tuple[Array, Array, Array, Array]:
    """A unit, and in it k, √((1 + c₁v₁)(1 + c₂v₂) - c₁c₂k²), and v₁v₂ - k² in its square.

    (c₁, c₂) are the `slopes`.
    """
    c1, c2 = slopes
    (unit1, m1), (unit2, m2) = (unit_of(jnp.maximum(v, 1.0), v) for v in (v1, v2))
    unit = unit1 * unit2
    k1 = k / unit
    one1, one2 = (1.0 / unit**2 for unit in (unit1, unit2))
    spread = gap(k1, m1, m2)
    # Rounding may make the gap negative; its derivative, which is not 0 there, has to survive.
    spread = spread - lax.stop_gradient(jnp.minimum(spread, 0.0))
    square = (one1 + c1 * m1) * one2 + c2 * m2 * one1 + c1 * c2 * spread
    return unit, k1, jnp.sqrt(square), spread


def gap(k: Array, v1: Array, v2: Array) -> Array:
    """v₁v₂ - k² without cancellation where k is almost √(v₁v₂)."""
    s = safe_sqrt(v1 * v2)
    return (s - k) * (s + k)


def safe_sqrt(x: Array) -> Array:
    """√max(x, 0), with derivative 0 instead of ∞ where x ≤ 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def unit_of(size: Array, v: Array | None = None) -> tuple[Array, Array]:
    """A power of two u of about √size, and v/u² (v is `size` unless given), about 1 or 0.

    In such units products stay finite. Division by them is exact, and they are constant to
    derivatives: no result depends on them. Each input has its own, so that pairs only multiply.
    """
    v = size if v is None else v
    floats = jnp.finfo(size.dtype)
    root = jnp.sqrt(lax.stop_gradient(size))
    power = lax.reduce_precision(root, exponent_bits=floats.nexp, mantissa_bits=0)
    unit = jnp.where(power > 0, power, 1.0)
    return unit, v / unit / unit
