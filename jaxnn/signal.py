"""How signals pass through deep random networks of infinite width: order, chaos, and the edge.

A layer maps the variance q of a unit to σ_w²E[φ(√q z)²] + σ_b², and the correlation c of two
inputs likewise. Around c = 1 differences grow by χ₁ = σ_w²E[φ'(√q z)²] per layer: χ₁ < 1 is order,
where all inputs become one, χ₁ > 1 is chaos. Everything is computed in the default float. Source:
Poole et al. (2016); Schoenholz et al. (2017).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn.errors import require_between, require_real
from jaxnn.nn import Kernel, Layer
from jaxnn.types import Array, ArrayLike


class FixedPoint(NamedTuple):
    """The variance q* that deep layers have, and how the next layer acts there.

    variance   q* = σ_w²E[φ(√q* z)²] + σ_b²
    slope      χ₁ = σ_w²E[φ'(√q* z)²]: of small differences, squared, per layer
    steps      layers until q changed by less than the tolerance
    converged  whether it did: q may grow for ever
    """

    variance: Float[Array, ""]
    slope: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def correlation_map(
    activation: Layer,
    correlation: ArrayLike,
    variance: ArrayLike,
    *,
    weight_std: ArrayLike,
    bias_std: ArrayLike = 0.0,
) -> Float[Array, "..."]:
    """The correlation of two inputs of variance q after one more activation and dense layer.

    c' = (σ_w²E[φ(u)φ(w)] + σ_b²)/(σ_w²E[φ(u)²] + σ_b²) for (u, w) of variance q, correlation c.

    Errors: an activation without a limit.

    Source: Poole et al. (2016), equation 5.

    >>> from jaxnn import nn
    >>> c = correlation_map(nn.relu(), 0.0, 1.0, weight_std=2.0**0.5)
    >>> print(f"{c:.4f}")
    0.3183
    """
    require_real("correlation_map(correlation, variance)", correlation, variance)
    c, q = jnp.broadcast_arrays(jnp.asarray(correlation, float), jnp.asarray(variance, float))
    after = activation.kernel(_pair(c * q, q))
    w2, b2 = _squared(weight_std), _squared(bias_std)
    return ((w2 * after.nngp + b2) / (w2 * after.covariance1 + b2)).reshape(c.shape)


def fixed_point(
    activation: Layer,
    *,
    weight_std: ArrayLike,
    bias_std: ArrayLike = 0.0,
    start: ArrayLike = 1.0,
    tolerance: float = 1e-6,
    max_steps: int = 10_000,
) -> FixedPoint:
    """The variance to which q ← σ_w²E[φ(√q z)²] + σ_b² converges from `start`, and χ₁ there.

    `tolerance` is relative. Traced and mapped standard deviations are allowed.

    Errors: a tolerance that is not in (0, 1), an activation without a limit.

    Source: Schoenholz et al. (2017), equations 3 and 5.

    >>> from jaxnn import nn
    >>> point = fixed_point(nn.erf(), weight_std=1.5, bias_std=0.3)
    >>> bool(point.converged), bool(point.slope > 1)
    (True, True)
    """
    remedy = "It is the relative change of the variance per layer."
    require_between("fixed_point(tolerance)", tolerance, 0.0, 1.0, low_open=True, remedy=remedy)
    w2, b2 = _squared(weight_std), _squared(bias_std)
    require_real("fixed_point(start)", start)
    q0 = jnp.asarray(start, float)

    def after(q: Array) -> Array:
        return (w2 * activation.kernel(_pair(q, q)).covariance1 + b2).reshape(q.shape)

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        before, q, step = state
        return (jnp.abs(q - before) > tolerance * jnp.abs(q)) & (step < max_steps)

    state = q0, after(q0), jnp.asarray(1)
    before, q, steps = lax.while_loop(unsettled, lambda s: (s[1], after(s[1]), s[2] + 1), state)
    # The tangent kernel of the identity before, which is 1, becomes E[φ'²].
    slope = w2 * activation.kernel(_pair(q, q)).ntk.reshape(q.shape)
    settled = jnp.isfinite(q) & (jnp.abs(q - before) <= tolerance * jnp.abs(q))
    return FixedPoint(q, slope, steps, settled)


def correlation_depth(slope: ArrayLike) -> Float[Array, "..."]:
    """ξ = -1/ln χ: how many layers a difference needs to fall by e, from the slope χ < 1.

    It is ∞ at χ = 1, the edge of chaos, and negative in chaos, where differences grow.

    Source: Schoenholz et al. (2017), equation 9.

    >>> print(f"{correlation_depth(0.9):.3f}")
    9.491
    """
    require_real("correlation_depth(slope)", slope)
    return -1.0 / jnp.log(jnp.asarray(slope, float))


def critical_weight_std(
    activation: Layer,
    *,
    bias_std: ArrayLike = 0.0,
    low: ArrayLike = 0.5,
    high: ArrayLike = 3.0,
    halvings: int = 40,
) -> Float[Array, ""]:
    """The σ_w at which χ₁ = 1, by bisection: order below, chaos above.

    χ₁ is to be below 1 at `low` and above 1 at `high`; else it is one of these ends.

    Source: Schoenholz et al. (2017), section 3.

    >>> from jaxnn import nn
    >>> print(f"{critical_weight_std(nn.relu()):.4f}")
    1.4142
    """

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = ends
        middle = 0.5 * (below + above)
        point = fixed_point(activation, weight_std=middle, bias_std=bias_std)
        # Of a variance beyond all floats the slope is unknown.
        chaos = (point.slope > 1.0) | ~jnp.isfinite(point.variance)
        return jnp.where(chaos, below, middle), jnp.where(chaos, middle, above)

    ends = jnp.asarray(low, float), jnp.asarray(high, float)
    below, above = lax.fori_loop(0, halvings, halve, ends)
    return 0.5 * (below + above)


def _squared(std: ArrayLike) -> Array:
    """A variance in the default float, where the integer 300 of 16 bits has a square."""
    require_real("weight_std and bias_std", std)
    return jnp.square(jnp.asarray(std, float))


def _pair(covariance: Array, variance: Array) -> Kernel:
    """Two Gaussian features of one variance, as a kernel whose tangent part is 1."""
    k, v = covariance.reshape(1, -1), variance.reshape(1, -1)
    return Kernel(k, jnp.ones_like(k), v, v, width=1, depth=1, gaussian=True)
