"""Dual activations in closed form: expectations of φ(u)φ(w) and φ'(u)φ'(w) over a Gaussian pair.

A `DualActivation` maps the covariance k and variances v₁, v₂ of centered Gaussian (u, w), arrays
that broadcast, to E[φ(u)φ(w)] and E[φ'(u)φ'(w)]. φ' is the derivative that JAX takes: 0 at jumps.
Source: Daniely, Frostig & Singer (2016), definition 4.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp

from jaxnn.nn.angles import Polar, arctan2, polar, root_of
from jaxnn.types import Array

DualActivation: TypeAlias = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(k, v₁, v₂) ↦ (E[φ(u)φ(w)], E[φ'(u)φ'(w)]) for (u, w) ~ N(0, [[v₁, k], [k, v₂]])."""


def piecewise_linear(negative: float, positive: float, at_zero: float = 0.0) -> DualActivation:
    """The dual of φ(u) = b·max(u, 0) + a·min(u, 0): arc-cosine kernels of degree 0 and 1.

    E[φφ] = (b - a)²(s sin ϑ + (π - ϑ)k)/2π + abk and E[φ'φ'] = (b - a)²(π - ϑ)/2π + ab, with
    s = √(v₁v₂) and cos ϑ = k/s. a = `negative`, b = `positive`, and `at_zero` is φ'(0), all that
    counts where a variance is 0.
    Source: Cho & Saul (2009), equation 6.

    >>> piecewise_linear(0.0, 1.0)(jnp.array(1.0), jnp.array(1.0), jnp.array(1.0))
    (Array(0.5, dtype=float32, weak_type=True), Array(0.5, dtype=float32, weak_type=True))
    """
    difference, product = (positive - negative) ** 2, positive * negative
    mean_slope = (positive + negative) / 2.0

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        pair = polar(k, v1, v2)
        share = 1.0 - pair.angle * (1.0 / math.pi)
        mean = pair.sine * (1.0 / math.pi) + share * pair.cosine
        nngp = pair.unit * (0.5 * difference * mean)
        # XLA would keep 0·k, and with it all that k is computed from.
        nngp = nngp + product * k if product else nngp
        slope1, slope2 = (jnp.where(v > 0, mean_slope, at_zero) for v in (v1, v2))
        constant = (v1 == 0) | (v2 == 0)
        derivative = 0.5 * difference * share + product
        return nngp, jnp.where(constant, slope1 * slope2, derivative)

    return dual


def rectified_monomial(degree: int) -> DualActivation:
    """The dual of φ(u) = max(u, 0)^p for p ≥ 2: the arc-cosine kernel of degree p.

    E[φφ] = p!/(2π) ∫₀^{π-ϑ} (k + s cos x)^p dx, and E[φ'φ'] is p² times that of degree p - 1.
    Source: Cho & Saul (2009), equation 3.
    """

    def expectation(p: int, pair: Polar) -> Array:
        # C_m = ∫₀^{π-ϑ} (s cos x)^m dx by parts, from C_0 and C_1.
        k, sine = pair.cosine, pair.sine
        powers = [math.pi - pair.angle, sine]
        for m in range(2, p + 1):
            powers.append(((-k) ** (m - 1) * sine + (m - 1) * pair.square * powers[m - 2]) / m)
        terms = [math.comb(p, m) * k ** (p - m) * powers[m] for m in range(p + 1)]
        return math.factorial(p) / (2.0 * math.pi) * sum(terms[1:], terms[0])

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        pair = polar(k, v1, v2)
        nngp = pair.unit**degree * expectation(degree, pair)
        below = expectation(degree - 1, pair)
        return nngp, degree**2 * pair.unit ** (degree - 1) * below

    return dual


def sign(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = sign: E[φφ] = 1 - 2ϑ/π, and 0 where a variance is; no gradient passes."""
    angle = polar(k, v1, v2).angle
    nngp = jnp.where((v1 > 0) & (v2 > 0), 1.0 - 2.0 / math.pi * angle, 0.0)
    return nngp, jnp.zeros_like(nngp)


def threshold(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ(u) = 1 for u ≥ 0, else 0: E[φφ] = (π - ϑ)/2π; no gradient passes.

    Source: Cho & Saul (2009), equation 6, degree 0.
    """
    angle = polar(k, v1, v2).angle
    mean1, mean2 = (jnp.where(v > 0, 0.5, 1.0) for v in (v1, v2))
    nngp = jnp.where((v1 > 0) & (v2 > 0), 0.5 - angle / (2.0 * math.pi), mean1 * mean2)
    return nngp, jnp.zeros_like(nngp)


def erf(
    k: Array, v1: Array, v2: Array, *, slopes: tuple[Array | float, Array | float] = (1.0, 1.0)
) -> tuple[Array, Array]:
    """The dual of φ = erf: E[φφ] = (2/π) arcsin(2k/√((1 + 2v₁)(1 + 2v₂))).

    With `slopes` (a, b) the two expectations of erf(au) and erf(bw), and of their derivatives.
    Source: Williams (1998), equation 11.
    """
    a, b = slopes
    unit, k1, root, _ = root_of((2.0 * a**2, 2.0 * b**2), k, v1, v2)
    return 2.0 / math.pi * arctan2(2.0 * a * b * k1, root), 4.0 / math.pi * a * b / (unit * root)


def scaled_erf(scale: float, slope: float, shift: float) -> DualActivation:
    """The dual of φ(u) = a·erf(b·u) + c."""

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        nngp, derivative = erf(slope**2 * k, slope**2 * v1, slope**2 * v2)
        return scale**2 * nngp + shift**2, (scale * slope) ** 2 * derivative

    return dual


def gelu(
    k: Array, v1: Array, v2: Array, *, slopes: tuple[Array | float, Array | float] = (1.0, 1.0)
) -> tuple[Array, Array]:
    """The dual of φ(u) = uΦ(u), Φ the normal distribution function.

    With F = E[Φ(u)Φ(w)] = 1/4 + arcsin(k/√((1 + v₁)(1 + v₂)))/2π, Δ = (1 + v₁)(1 + v₂) - k² and
    P = 1/(2π√Δ): E[φφ] = kF + P(v₁v₂ - k² + k²/(1 + v₁) + k²/(1 + v₂)) and
    E[φ'φ'] = F + P(k/(1 + v₁) + k/(1 + v₂) + k/Δ), by integration by parts.
    With `slopes` (a, b) the two expectations of uΦ(au) and wΦ(bw), and of their derivatives: with
    abk, a²v₁ and b²v₂ in place of k, v₁ and v₂, and E[φφ] divided by ab.
    Source: Tsuchida et al. (2021), proposition 4.
    """
    a, b = slopes
    c1, c2 = a**2, b**2
    unit, k1, root, spread = root_of((c1, c2), k, v1, v2)
    density = a * b / (2.0 * math.pi * root)
    both = 0.25 + arctan2(a * b * k1, root) / (2.0 * math.pi)
    shares = 1.0 / (1.0 + c1 * v1) + 1.0 / (1.0 + c2 * v2)
    nngp = k * both + density * (unit * spread + k1 * k * shares)
    return nngp, both + density * k1 * (shares + 1.0 / (unit * root) ** 2)


def sin(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = sin: E[φφ] = e^{-(v₁+v₂)/2} sinh k, E[φ'φ'] = e^{-(v₁+v₂)/2} cosh k."""
    # e^{|k| - (v₁+v₂)/2} ≤ 1, where sinh alone would overflow. Not jnp.abs and jnp.sign, whose
    # derivatives at k = 0 would cancel that of sinh.
    sign = jnp.where(k < 0, -1.0, 1.0)
    size = sign * k
    scale = 0.5 * jnp.exp(size - 0.5 * (v1 + v2))
    sinh = -sign * jnp.expm1(-2.0 * size) * scale
    cosh = (1.0 + jnp.exp(-2.0 * size)) * scale
    return sinh, cosh


def cos(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = cos: E[φφ] = e^{-(v₁+v₂)/2} cosh k, E[φ'φ'] = e^{-(v₁+v₂)/2} sinh k."""
    sinh, cosh = sin(k, v1, v2)
    return cosh, sinh


def gaussian(precision: float) -> DualActivation:
    """The dual of φ(u) = e^{-βu²}: E[φφ] = 1/√Δ, E[φ'φ'] = 4β²k/Δ^{3/2}.

    Δ = (1 + 2βv₁)(1 + 2βv₂) - 4β²k². Source: Williams (1998), section 3.2.
    """

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        unit, k1, root, _ = root_of((2.0 * precision, 2.0 * precision), k, v1, v2)
        return 1.0 / (unit * root), 4.0 * precision**2 * k1 / (unit * root) ** 2 / root

    return dual


def rbf(gamma: float) -> DualActivation:
    """The dual of φ(u) = √2 sin(√(2γ)u + π/4): E[φφ] = e^{-γ(v₁ + v₂ - 2k)}, E[φ'φ'] = 2γE[φφ].

    Source: Rahimi & Recht (2007), section 3.
    """

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        nngp = jnp.exp(-gamma * ((v1 - k) + (v2 - k)))
        return nngp, 2.0 * gamma * nngp

    return dual


def exp(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = exp, which is its own derivative: E[φφ] = e^{(v₁ + v₂)/2 + k}."""
    nngp = jnp.exp(0.5 * (v1 + v2) + k)
    return nngp, nngp


def polynomial(coefficients: Sequence[float]) -> DualActivation:
    """The dual of φ(u) = Σ_p c_p u^p, by the moments of a Gaussian pair.

    E[u^p w^q] = Σ_j p! q!/(j! ((p-j)/2)! ((q-j)/2)! 2^{(p+q)/2-j}) k^j v₁^{(p-j)/2} v₂^{(q-j)/2},
    over j with p - j and q - j even. Source: Isserlis (1918).
    """
    slopes = [p * c for p, c in enumerate(coefficients)][1:]

    def expectation(weights: Sequence[float], k: Array, v1: Array, v2: Array) -> Array:
        total = jnp.zeros_like(k)
        for p, a in enumerate(weights):
            for q, b in enumerate(weights):
                if not a * b or (p - q) % 2:
                    continue
                for j in range(min(p, q) % 2, min(p, q) + 1, 2):
                    m, n = (p - j) // 2, (q - j) // 2
                    ways = math.factorial(p) * math.factorial(q) / math.factorial(j)
                    ways /= math.factorial(m) * math.factorial(n) * 2 ** (m + n)
                    total = total + a * b * ways * k**j * (v1**m * v2**n)
        return total

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        k, v1, v2 = jnp.broadcast_arrays(k, v1, v2)
        return expectation(coefficients, k, v1, v2), expectation(slopes, k, v1, v2)

    return dual
