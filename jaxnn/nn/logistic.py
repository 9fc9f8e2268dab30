"""The logistic function as a mixture of normal distribution functions, and duals that follow.

    σ(x) = E[Φ(x/2K)],   tanh x = E[erf(x/√2K)],   K of Kolmogorov's distribution

so that the duals of functions made of σ are means, over pairs of independent K, of the closed forms
of erf, GELU and ReLU. They are right at any variance; expansions converge only below about 10.
Source: Andrews & Mallows (1974), section 3; Stefanski (1991).
"""

import math
from collections.abc import Callable
from functools import cache

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.nn import duals
from jaxnn.nn.duals import DualActivation
from jaxnn.types import Array


def tanh(slope: float = 1.0) -> DualActivation:
    """The dual of φ = tanh, whose argument is multiplied by `slope`.

    >>> k, v = jnp.array(50.0), jnp.array(100.0)
    >>> value, derivative = tanh()(k, v, v)
    >>> print(f"{value:.4f} {derivative:.4f}")  # almost (2/π) arcsin(1/2) = 1/3
    0.3303 0.0073
    """

    def between(a: Array, b: Array, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        return duals.erf(k, v1, v2, slopes=(a, b))

    return _mixed(between, lambda k: slope / (math.sqrt(2.0) * k))


def sigmoid(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = σ, as σ(u) = (1 + tanh(u/2))/2."""
    value, derivative = tanh(0.5)(k, v1, v2)
    return 0.25 + 0.25 * value, 0.25 * derivative


def swish(beta: float) -> DualActivation:
    """The dual of φ(u) = u σ(βu), a mixture of uΦ(au), a = β/2K, for β ≠ 0."""

    def between(a: Array, b: Array, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        return duals.gelu(k, v1, v2, slopes=(a, b))

    return _mixed(between, lambda k: abs(beta) / (2.0 * k))


def softplus(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ(u) = ln(1 + eᵘ), a mixture of E[max(u + 2Kz, 0)] over z ~ N(0, 1)."""
    rectified = duals.piecewise_linear(0.0, 1.0)

    def between(a: Array, b: Array, k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        return rectified(k, v1 + a**2, v2 + b**2)

    return _mixed(between, lambda k: 2.0 * k)(k, v1, v2)


def _mixed(
    between: Callable[..., tuple[Array, Array]], scale: Callable[[np.ndarray], np.ndarray]
) -> DualActivation:
    """The mean of between(a, b, k, v₁, v₂) over independent a, b = scale(K)."""

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        values, shares = _kolmogorov(20 if jnp.finfo(k.dtype).bits > 32 else 10)
        scales = scale(values)
        pairs = np.stack([*np.meshgrid(scales, scales), np.outer(shares, shares)], axis=-1)

        def term(total: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], None]:
            a, b, share = at
            moments = between(a, b, k, v1, v2)
            return tuple(t + share * m for t, m in zip(total, moments, strict=True)), None

        zero = jnp.zeros_like(k + v1 + v2)
        return lax.scan(term, (zero, zero), jnp.asarray(pairs.reshape(-1, 3), k.dtype))[0]

    return dual


@cache
def _kolmogorov(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes K and weights for Kolmogorov's distribution, polynomials being in ln K.

    σ comes out with an error of 7e-9 for 10 nodes, 2e-13 for 20. The density is the derivative of
    P(K < x) = √(2π)/x Σ_j e^{-(2j-1)²π²/8x²} = 1 - 2 Σ_j (-1)^{j-1} e^{-2j²x²}.
    """
    log = np.linspace(math.log(0.12), math.log(6.0), 4001)
    x, j = np.exp(log), np.arange(1, 60)[:, None]
    rate = (2 * j - 1) ** 2 * math.pi**2 / 8.0
    low = math.sqrt(2.0 * math.pi) * (2.0 * rate / x**4 - 1.0 / x**2) * np.exp(-rate / x**2)
    high = 8.0 * x * (-1.0) ** (j + 1) * j**2 * np.exp(-2.0 * j**2 * x**2)
    density = np.where(x < 0.9, np.sum(low, axis=0), np.sum(high, axis=0))
    mass = density * x * (log[1] - log[0])
    # Golub & Welsch (1969): the recursion of the orthogonal polynomials, by Lanczos.
    basis, diagonal, off = [np.sqrt(mass / mass.sum())], [], []
    for _ in range(count):
        w = log * basis[-1]
        diagonal.append(basis[-1] @ w)
        for _ in range(2):
            w = w - np.array(basis).T @ (np.array(basis) @ w)
        off.append(np.linalg.norm(w))
        basis.append(w / off[-1])
    beside = np.diag(off[:-1], 1)
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + beside + beside.T)
    return np.exp(nodes), mass.sum() * vectors[0] ** 2
