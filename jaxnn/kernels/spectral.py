"""Functions of a symmetric matrix applied to vectors, f(K) Y = U f(λ) Uᵀ Y, and their derivatives.

    Df(K)[E] = U (f[λ_i, λ_j] ∘ UᵀEU) Uᵀ,    f[a, b] = (f(a) - f(b))/(a - b),    f[a, a] = f'(a)

The derivative exists wherever f has one, at equal eigenvalues too, where that of the eigenvectors
does not. Each function therefore brings its divided differences, computed without cancellation.

Source: Daleckii & Krein (1965), theorem 1; Higham (2008), theorem 3.11.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxnn.kernels.modes import Modes, reopened
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array


class SpectralFunction(NamedTuple):
    """F functions of an eigenvalue with parameters p, and their divided differences.

    values       (modes, p) ↦ f(λ_i), (F, n)
    differences  (modes, p) ↦ f[λ_i, λ_j], (F, n, n)
    """

    values: Callable[[Modes, Any], Float[Array, "F n"]]
    differences: Callable[[Modes, Any], Float[Array, "F n n"]]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def applied(
    function: SpectralFunction,
    matrix: Float[Array, "n n"],
    modes: Modes,
    parameters: Any,
    y: Float[Array, "n c"],
) -> Float[Array, "F n c"]:
    """f(K) Y for each of the F functions, differentiable in K, the parameters and Y.

    `modes` are the eigenmodes of K, computed once and without a derivative of their own. Second
    derivatives in K exist where eigenvalues differ by more than √ε of the largest; else NaN.

    >>> from jaxnn.kernels.modes import eigenmodes
    >>> k = 2.0 * jnp.eye(2)
    >>> applied(PSEUDO_INVERSE, k, eigenmodes(k), (), jnp.ones((2, 1)))[0, :, 0]
    Array([0.5, 0.5], dtype=float32)
    """
    return _by_modes(function.values(modes, parameters), modes.eigenvectors, y)


@applied.defjvp
def _applied_jvp(function: SpectralFunction, primals: tuple, tangents: tuple) -> tuple:
    matrix, modes, parameters, y = primals
    change, _, parameter_change, y_change = tangents
    out = applied(function, matrix, modes, parameters, y)
    modes = reopened(matrix, modes)
    u = modes.eigenvectors
    turned = dot(u.T, dot(0.5 * (change + change.T), u))
    products = function.differences(modes, parameters) * turned[None]
    values, values_change = jax.jvp(
        lambda p: function.values(modes, p), (parameters,), (parameter_change,)
    )
    tangent = dot(u[None], dot(products, dot(u.T, y)[None]))
    tangent += _by_modes(values_change, u, y) + _by_modes(values, u, y_change)
    return out, tangent


def _by_modes(values: Array, u: Array, y: Array) -> Array:
    return dot(u[None], values[:, :, None] * dot(u.T, y)[None])


def limit_values(modes: Modes) -> Float[Array, "2 n"]:
    """1/λ within the rank and 0 beyond, the pseudo-inverse; 0 within and 1 beyond."""
    inverses = modes.inverses()
    return jnp.stack([inverses, jnp.where(inverses == 0, 1.0, 0.0 * inverses)])


def limit_differences(modes: Modes) -> Float[Array, "2 n n"]:
    """The divided differences of both, at a constant rank: eigenvalues beyond it are exactly 0."""
    inverses = modes.inverses()
    one, other = inverses[:, None], inverses[None, :]
    # Between an eigenvalue a within and 0 beyond: (1/a - 0)/(a - 0) and (0 - 1)/(a - 0).
    mixed = jnp.where((one > 0) != (other > 0), one + other, 0.0)
    return jnp.stack([mixed**2 - one * other, -mixed])


PSEUDO_INVERSE = SpectralFunction(
    lambda modes, _: limit_values(modes)[:1], lambda modes, _: limit_differences(modes)[:1]
)
"""K⁺, as 1 function without parameters."""


def _flow_values(modes: Modes, t: Array) -> Array:
    values = modes.eigenvalues
    finite = jnp.where(jnp.isposinf(t), 0.0, t)
    now = jnp.stack([_integral(values, finite), jnp.exp(-values * finite)])
    return jnp.where(jnp.isposinf(t), limit_values(modes), now)


def _flow_differences(modes: Modes, t: Array) -> Array:
    values = modes.eigenvalues
    finite = jnp.where(jnp.isposinf(t), 0.0, t)
    low = jnp.minimum(values[:, None], values[None, :])
    high = jnp.maximum(values[:, None], values[None, :])
    decay = -jnp.exp(-low * finite) * _integral(high - low, finite)
    # λα = 1 - e^{-λt} gives high·α[low, high] + α(low) = -decay, accurate unless high·t is small.
    large = high * finite > 1.0
    quotient = -(decay + _integral(low, finite)) / jnp.where(large, high, 1.0)
    a, b = (jnp.where(large, 0.0, z * finite) for z in (high, low))
    # Σ_k (-1)^k/(k + 1)! · (the sum of all monomials of degree k - 1 in a and b)
    monomials = power = jnp.ones_like(a)
    factor = -0.5
    series = factor * monomials
    for k in range(2, 20):
        power = power * b
        monomials = a * monomials + power
        factor = -factor / (k + 1)
        series = series + factor * monomials
    now = jnp.stack([jnp.where(large, quotient, series * finite**2), decay])
    return jnp.where(jnp.isposinf(t), limit_differences(modes), now)


def _integral(values: Array, t: Array) -> Array:
    """∫_0^t e^{-λs} ds = (1 - e^{-λt})/λ, which is t where λ is 0."""
    positive = values > 0
    safe = jnp.where(positive, values, 1.0)
    return jnp.where(positive, -jnp.expm1(-safe * t) / safe, t)


FLOW = SpectralFunction(_flow_values, _flow_differences)
"""α_t(λ) = (1 - e^{-λt})/λ and e^{-λt}, with the time t as parameter, which may be ∞."""


class Descent(NamedTuple):
    """Parameters of `DESCENT`.

    bits           of the number of steps, lowest first: 0.0 or 1.0
    infinite       whether it is infinite: 0.0 or 1.0, and NaN for what is no number of steps
    learning_rate  η
    momentum       μ
    """

    bits: Float[Array, "B"]
    infinite: Float[Array, ""]
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]


def _descent_values(modes: Modes, p: Descent) -> Array:
    values = modes.eigenvalues
    one, zero = jnp.ones_like(values), jnp.zeros_like(values)
    state = _step(values, p), jnp.stack([one, zero, zero])

    def bit(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple:
        (power, vector), (taken, more) = state, now
        moved = vector + jnp.einsum("abn,bn->an", power, vector[:2])
        square = 2.0 * power + jnp.einsum("abn,bcn->acn", power, power[:2])
        return (jnp.where(more, square, power), jnp.where(taken, moved, vector)), None

    residual, _, alpha = lax.scan(bit, state, _taken(p.bits))[0][1]
    return _ended(modes, p, jnp.stack([alpha, residual]), limit_values(modes))


def _descent_differences(modes: Modes, p: Descent) -> Array:
    values = modes.eigenvalues
    n, one, zero = len(values), jnp.ones_like(values), jnp.zeros_like(values)
    slope = jnp.zeros((3, 2, n, n), values.dtype)
    slope = slope.at[0, 0].set(-p.learning_rate).at[0, 1].set(-p.momentum)
    vector, differences = jnp.stack([one, zero, zero]), jnp.zeros((3, n, n), values.dtype)

    def bit(state: tuple[Array, ...], now: tuple[Array, Array]) -> tuple:
        (power, slope, vector, found), (taken, more) = state, now
        # Leibniz: (MN)[a, b] = M(a) N[a, b] + M[a, b] N(b).
        after = found + jnp.einsum("abi,bij->aij", power, found[:2])
        after = after + jnp.einsum("abij,bj->aij", slope, vector[:2])
        moved = vector + jnp.einsum("abn,bn->an", power, vector[:2])
        steeper = 2.0 * slope + jnp.einsum("abi,bcij->acij", power, slope[:2])
        steeper = steeper + jnp.einsum("abij,bcj->acij", slope, power[:2])
        square = 2.0 * power + jnp.einsum("abn,bcn->acn", power, power[:2])
        power, slope = jnp.where(more, square, power), jnp.where(more, steeper, slope)
        return (
            power,
            slope,
            jnp.where(taken, moved, vector),
            jnp.where(taken, after, found),
        ), None

    state = _step(values, p), slope, vector, differences
    found = lax.scan(bit, state, _taken(p.bits))[0][3]
    return _ended(modes, p, jnp.stack([found[2], found[0]]), limit_differences(modes))


def _step(values: Array, p: Descent) -> Array:
    """The change that a step makes to (1 - λα, the last step d, α), in terms of the first two.

    d ← μd + η(1 - λα), α ← α + d. The step is 1 + this: its powers keep the digits of a small ηλ.
    """
    rate, mu = p.learning_rate * jnp.ones_like(values), p.momentum * jnp.ones_like(values)
    rows = ((-rate * values, -mu * values), (rate, mu - 1.0), (rate, mu))
    return jnp.stack([jnp.stack(row) for row in rows])


def _taken(bits: Array) -> tuple[Array, Array]:
    """Which powers of 2 are part of the number of steps, and whether larger ones follow."""
    taken = bits > 0
    above = lax.cumsum(bits, reverse=True) - bits
    return taken, above > 0


def _ended(modes: Modes, p: Descent, reached: Array, limit: Array) -> Array:
    """`reached` after finitely many steps, else the limit, which is NaN where descent diverges."""
    fastest = p.learning_rate * jnp.max(modes.eigenvalues, initial=0.0)
    converges = (fastest < 2.0 * (1.0 + p.momentum)) & (p.momentum < 1.0) & (p.learning_rate > 0)
    return jnp.where(
        p.infinite > 0,
        jnp.where(converges, limit, jnp.nan),
        jnp.where(jnp.isnan(p.infinite), jnp.nan, reached),
    )


DESCENT = SpectralFunction(_descent_values, _descent_differences)
"""α_k(λ) and 1 - λα_k(λ) of gradient descent with momentum: α₀ = 0, α_{k+1} = α_k + d_{k+1}."""
