"""Stochastic Lanczos quadrature: the spectrum of a symmetric map as a measure, and traces of it."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Shaped

from jaxnn import tree
from jaxnn.errors import invalid, require_between
from jaxnn.linalg.chunks import chunk_size, over_keys, product_bytes
from jaxnn.linalg.estimates import Estimate, Sampler, mean_of, require_probes
from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.spaces import prepared, require_endomorphism
from jaxnn.linalg.tridiagonal import (
    negligible,
    require_steps,
    require_symmetric,
    tridiagonal,
    tridiagonalized,
)
from jaxnn.linalg.vectors import coordinates
from jaxnn.types import Array, ArrayLike, Key, PyTree


class SpectralDensity(NamedTuple):
    """A quadrature rule for the eigenvalue distribution (1/n) Σ_i δ(λ - λ_i), from every probe z.

    nodes     θ, (probes, steps), ascending: the outermost are eigenvalues almost to rounding. Where
              the Krylov space of a probe was complete before, the last is repeated with weight 0
    weights   ω ≥ 0 of the nodes, each row adds up to 1: Σ_j ω_j p(θ_j) = zᵀp(A)z/‖z‖² for every
              polynomial p of degree below 2·steps
    moments   zᵀAz/‖z‖² and zᵀA²z/‖z‖² by products, (probes, 2): those of the rule agree with them
    size      n, the dimension
    products  with the operator
    symmetric whether it is, by declaration or a probe
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    moments: Float[Array, "probes 2"]
    size: int
    products: int
    symmetric: Bool[Array, ""]

    def samples(self, function: Callable[[Array], Array]) -> Float[Array, "probes"]:
        """n Σ_j ω_j f(θ_j) of every probe, estimates of tr f(A).

        Nodes of weight 0 are left out: f may be infinite there.
        """
        there = self.weights != 0  # also of NaN, which has to be seen
        values = function(jnp.where(there, self.nodes, 1.0))
        return self.size * jnp.sum(jnp.where(there, self.weights * values, 0.0), axis=1)

    def trace(self, function: Callable[[Array], Array] = lambda x: x) -> Estimate:
        """tr f(A) = E[n Σ_j ω_j f(θ_j)], with its standard error over the probes."""
        return mean_of(self.samples(function), self.products)

    def self_check(self) -> Float[Array, ""]:
        """The largest error of the rule's first two moments, relative to ‖A‖ and its square.

        ‖A‖ is the largest ‖A z‖/‖z‖ of the probes: of one in the null space all is rounding.
        A few ε. More says that A is not symmetric: of any A the rule's second moment is ‖Az‖²/‖z‖²,
        and zᵀA²z is on average less, by ‖A - Aᵀ‖_F²/2. (Of a single step only the first is known.)
        """
        moment = lambda power: jnp.sum(self.weights * self.nodes**power, axis=1)
        found = jnp.stack([moment(1), moment(2)], axis=1)
        largest = jnp.max(jnp.sqrt(found[:, 1]))
        scale = jnp.where(largest > 0, jnp.stack([largest, largest**2]), 1.0)
        error = jnp.abs(found - self.moments) / scale[None]
        return jnp.max(error[:, : 2 * self.nodes.shape[1] - 1])


def spectral_density(
    operator: LinearOperator,
    key: Key,
    *,
    steps: int = 80,
    probes: int = 10,
    sampler: Sampler = jax.random.rademacher,
    max_bytes: int | None = None,
) -> SpectralDensity:
    """The eigenvalue density of a symmetric operator by stochastic Lanczos quadrature.

        (1/n) tr f(A) ≈ (1/probes) Σ_z Σ_j ω_j f(θ_j),   ω_j = (e₁ᵀ u_j)²,   T u_j = θ_j u_j

    T is that of `steps` Lanczos steps from the probe z, with full orthogonalization: no eigenvalue
    has spurious copies. The memory is steps·n numbers for every probe of a chunk; `max_bytes`
    bounds that (`chunk_size`), the result does not depend on it.

    Errors: those of `lanczos`, fewer than one probe.

    Source: Golub & Meurant (2010), chapter 6; Ubaru, Chen & Saad (2017), algorithm 1.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.diag(jnp.array([1.0, 2.0, 4.0])), structure="symmetric")
    >>> found = linalg.spectral_density(A, jax.random.key(0), steps=3, probes=2)
    >>> found.nodes[0].round(3), found.weights[0].round(3)  # a probe of signs sees all alike
    (Array([1., 2., 4.], dtype=float32), Array([0.333, 0.333, 0.333], dtype=float32))
    >>> found.trace(jnp.log).value.round(3)
    Array(2.079, dtype=float32)
    """
    flat = require_endomorphism("spectral_density", operator)
    require_steps("spectral_density(steps)", steps, flat.size)
    require_probes("spectral_density(probes)", probes)
    symmetric = require_symmetric("spectral_density", operator)
    each = product_bytes(operator) + (steps + 1) * flat.size * flat.dtype.itemsize
    chunk = chunk_size(probes, each, max_bytes)
    # Three programs: a compiler needs the memory of the largest, not of all.
    nodes, weights = _rules(*_tridiagonals(operator, key, steps, probes, sampler, chunk))
    moments = _moments(operator, key, probes, sampler, chunk)
    return SpectralDensity(nodes, weights, moments, flat.size, probes * (steps + 2), symmetric)


@jax.jit(static_argnums=(2, 3, 4, 5))
def _tridiagonals(
    operator: LinearOperator, key: Key, steps: int, probes: int, sampler: Sampler, chunk: int
) -> tuple[Array, Array, Array]:
    product = prepared(operator)

    def one(z: Array) -> tuple[Array, Array, Array]:
        _, alpha, beta, rank = tridiagonalized(product, z, steps)
        return alpha, beta[:-1], rank

    return _over_probes(one, operator, key, probes, sampler, chunk)


@jax.jit(static_argnums=(2, 3, 4))
def _moments(
    operator: LinearOperator, key: Key, probes: int, sampler: Sampler, chunk: int
) -> Float[Array, "probes 2"]:
    product = prepared(operator)

    def one(z: Array) -> Array:
        size = tree.norm(z)
        first = z / jnp.where(size > 0, size, 1)

        def again(v: Array, _: None) -> tuple[Array, Array]:
            image = product(v)
            return image, tree.dot(first, image)

        return lax.scan(again, first, length=2)[1]

    return _over_probes(one, operator, key, probes, sampler, chunk)


def _over_probes(
    function: Callable[[Float[Array, "n"]], PyTree],
    operator: LinearOperator,
    key: Key,
    probes: int,
    sampler: Sampler,
    chunk: int,
) -> PyTree:
    flat = coordinates(operator.domain)
    draw = lambda key: sampler(key, (flat.size,), flat.dtype)
    return over_keys(lambda key: function(draw(key)), jax.random.split(key, probes), chunk)


@jax.jit
def _rules(alpha: Array, beta: Array, rank: Array) -> tuple[Array, Array]:
    # One after another: batches of LAPACK calls can hang (`exchangeable.orthonormal_range`).
    return lax.map(lambda t: rule(*t), (alpha, beta, rank))


def rule(
    alpha: Float[Array, "steps"], beta: Float[Array, "steps-1"], rank: Int[Array, ""]
) -> tuple[Float[Array, "steps"], Float[Array, "steps"]]:
    """Nodes, ascending, and weights of T's leading block of that rank; more of the last, of 0.

    >>> theta, omega = rule(jnp.ones(3), jnp.array([1.0, 0.0]), jnp.array(2, jnp.int32))
    >>> theta.round(3), omega.round(3)
    (Array([0., 2., 2.], dtype=float32), Array([0.5, 0.5, 0. ], dtype=float32))
    """
    filled = jnp.arange(len(alpha), dtype=jnp.int32) < rank
    bound = jnp.max(jnp.abs(alpha)) + 2 * jnp.max(jnp.abs(beta), initial=0)
    # Behind all that is there, so that no eigenvector mixes the block with the rest.
    far = jnp.where(bound == 0, 1, 2 * bound)
    t = tridiagonal(jnp.where(filled, alpha, far), beta)
    nodes, u = jnp.linalg.eigh(t, symmetrize_input=False)
    last = nodes[jnp.maximum(rank, 1) - 1]
    return jnp.where(filled, nodes, last), jnp.where(filled, u[0] ** 2, 0)


def density(
    spectrum: SpectralDensity,
    grid: Shaped[ArrayLike, "points"],
    *,
    width: float | Float[Array, ""],
    scale: Literal["linear", "log"] = "linear",
) -> Float[Array, "points"]:
    """The eigenvalue density on a grid: every node is smeared to a normal density of that width.

    "linear" is per unit of λ, with `width` in that unit. "log" is per unit of ln|λ|, with `width`
    in that unit: where the grid is positive of the positive eigenvalues, where it is negative of
    the negative ones, so that both tails of a Hessian can be seen.

    Errors: a width that is not positive.

    Source: Lin, Saad & Yang (2016), section 2.3, for the regularization.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.eye(3), structure="symmetric")
    >>> found = linalg.spectral_density(A, jax.random.key(0), steps=2, probes=2)
    >>> linalg.density(found, jnp.array([0.0, 1.0]), width=0.1).round(2)
    Array([0.  , 3.99], dtype=float32)
    """
    remedy = "It is a standard deviation."
    require_between("density(width)", width, 0.0, math.inf, low_open=True, remedy=remedy)
    if scale not in ("linear", "log"):
        raise invalid(
            "density(scale)",
            got=repr(scale),
            expected="'linear' or 'log'",
            remedy="'log' is the density of ln|λ|.",
        )
    nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel()
    grid, width = jnp.asarray(grid, nodes.dtype), jnp.asarray(width, nodes.dtype)
    x, y = grid[:, None], nodes[None, :]
    same_side = jnp.ones(x.shape, bool) & jnp.ones(y.shape, bool)
    if scale == "log":
        same_side = (jnp.sign(x) == jnp.sign(y)) & (y != 0)
        x, y = jnp.log(jnp.abs(x)), jnp.log(jnp.where(y == 0, 1.0, jnp.abs(y)))
    bells = jnp.exp(-0.5 * ((x - y) / width) ** 2) / (width * math.sqrt(2.0 * math.pi))
    smeared = jnp.sum(jnp.where(same_side, bells, 0.0) * weights[None, :], axis=1)
    return smeared / len(spectrum.nodes)


class LogDeterminant(NamedTuple):
    """ln det A, its standard error over probes, and whether no node contradicted that A > 0.

    Where one did, `positive` is False and the numbers are NaN.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    positive: Bool[Array, ""]
    products: int


def logdet(
    operator: LinearOperator,
    key: Key,
    *,
    steps: int = 40,
    probes: int = 30,
    max_bytes: int | None = None,
) -> LogDeterminant:
    """ln det A = tr ln A of a symmetric positive definite operator, by Lanczos quadrature.

    The standard error is that of the probes; the quadrature's own error falls as
    ((√κ - 1)/(√κ + 1))^(2·steps), κ the condition number. A node that is negative or 0 to rounding,
    below 10 ε of the largest, contradicts that A is positive: so do a singular A, and one with
    κ > 1/(10 ε), 8·10⁵ in float32, the logarithm of whose smallest eigenvalues is rounding.

    Errors: those of `spectral_density`.

    Source: Ubaru, Chen & Saad (2017), theorem 4.1.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.diag(jnp.array([1.0, 2.0, 4.0])), structure="symmetric")
    >>> found = linalg.logdet(A, jax.random.key(0), steps=3)
    >>> found.value.round(4), bool(found.positive)
    (Array(2.0794, dtype=float32), True)
    """
    require_steps("logdet(steps)", steps, require_endomorphism("logdet", operator).size)
    found = spectral_density(operator, key, steps=steps, probes=probes, max_bytes=max_bytes)
    log = found.trace(jnp.log)
    least = negligible(jnp.max(jnp.abs(found.nodes)))
    positive = jnp.all((found.nodes > least) | (found.weights == 0)) & found.symmetric
    value, error = (jnp.where(positive, x, jnp.nan) for x in log[:2])
    return LogDeterminant(value, error, positive, found.products)
