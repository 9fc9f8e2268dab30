"""Steps towards a critical point: from a Hessian, a gradient and a radius to a step.

No step is longer than the radius, and each says how far its quadratic model has its merit fall:
½‖∇L‖² for `newton` and `gradient_norm`, which seek any critical point, L for `saddle_free`, which
seeks a minimum. A factor of L, in H and g alike, changes no step. Hessians are known by their
eigenvectors, or by their products alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxnn import linalg, tree
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array

FORCING = 1e-3
"""‖Hs + g‖/‖g‖ up to which systems are solved by iteration: so much does a step lower ‖∇L‖."""


class Hessian(NamedTuple):
    """What steps need of H.

    product   v ↦ Hv
    inverse   g ↦ H⁺g, the shortest vector v with the least ‖Hv - g‖
    damped    (g, λ) ↦ (H² + λI)⁻¹Hg for λ > 0
    absolute  (g, λ) ↦ v = (|H| + λI)⁻¹g for λ > 0, and ⟨v, |H|v⟩
    """

    product: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    damped: Callable[[Array, Array], Array]
    absolute: Callable[[Array, Array], tuple[Array, Array]]


class Step(NamedTuple):
    """s, and the decrease of the merit that its model predicts."""

    s: Float[Array, "n"]
    predicted: Float[Array, ""]


def decomposed(matrix: Float[Array, "n n"]) -> Hessian:
    """The Hessian by its eigenvectors, H = QΛQᵀ: exact, in n³ operations.

    Eigenvalues up to n·ε·‖H‖ are rounding, and count as 0 where H is inverted.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    values, inverses = _inverses(values)

    def function(factors: Array, v: Array) -> Array:
        return dot(vectors, factors * dot(v, vectors))

    def absolute(g: Array, damping: Array) -> tuple[Array, Array]:
        coefficients = dot(g, vectors) / (jnp.abs(values) + damping)
        return dot(vectors, coefficients), jnp.sum(jnp.abs(values) * coefficients**2)

    return Hessian(
        product=lambda v: function(values, v),
        inverse=lambda g: function(inverses, g),
        damped=lambda g, damping: function(values / (values**2 + damping), g),
        absolute=absolute,
    )


def iterated(operator: linalg.LinearOperator, products: int) -> Hessian:
    """The Hessian by its products, from Krylov methods: at most so many of them for each system.

    Beside those that estimate and check; `damped`, whose steps take two, needs 2. `absolute` keeps
    a basis of as many vectors.

    Source: Choi, Paige & Saunders (2011) for MINRES-QLP; Dauphin et al. (2014), section 6, for |H|
    in the Krylov space of g.
    """
    product, flat = linalg.prepared(operator), linalg.coordinates(operator.domain)

    def inverse(g: Array) -> Array:
        return linalg.minres_qlp(product, g, tolerance=FORCING, max_steps=products).x

    def damped(g: Array, damping: Array) -> Array:
        squared = lambda v: product(product(v)) + damping * v
        return linalg.cg(squared, product(g), tolerance=FORCING, max_steps=max(1, products // 2)).x

    def absolute(g: Array, damping: Array) -> tuple[Array, Array]:
        found = linalg.lanczos(operator, flat.unravel(g), min(products, flat.size))
        values, vectors = jnp.linalg.eigh(found.T)
        coefficients = tree.norm(g) * vectors[0] / (jnp.abs(values) + damping)
        basis = jax.vmap(flat.ravel)(found.basis)
        form = jnp.sum(jnp.abs(values) * coefficients**2)
        return dot(dot(vectors, coefficients), basis), form

    return Hessian(product, inverse, damped, absolute)


def newton(hessian: Hessian, g: Float[Array, "n"], radius: Float[Array, ""]) -> Step:
    """Newton's step s = -H⁺g, or where that is too long, the step of `gradient_norm`.

    Source: Roosta, Liu, Xu & Mahoney (2018), algorithm 1, for H⁺ and its merit ½‖∇L‖².
    """
    s = -hessian.inverse(g)
    return lax.cond(
        tree.norm(s) <= radius,
        lambda: Step(s, _residual_decrease(hessian, g, s)),
        lambda: gradient_norm(hessian, g, radius),
    )


def gradient_norm(hessian: Hessian, g: Float[Array, "n"], radius: Float[Array, ""]) -> Step:
    """The damped Gauss-Newton step for ½‖∇L‖²: s = -(H² + λI)⁻¹Hg with λ = ‖Hg‖/Δ, so ‖s‖ ≤ Δ.

    As λ falls with ‖∇L‖, convergence is quadratic also towards a critical point that is not alone
    but one of a smooth set of them, where H is singular.

    Source: Levenberg (1944); Fan & Yuan (2005), theorem 2.2, for the damping.
    """
    damping = tree.norm(hessian.product(g)) / radius
    s = -hessian.damped(g, jnp.maximum(damping, jnp.finfo(g.dtype).tiny))
    return Step(s, _residual_decrease(hessian, g, s))


def saddle_free(hessian: Hessian, g: Float[Array, "n"], radius: Float[Array, ""]) -> Step:
    """The step s = -(|H| + λI)⁻¹g with λ = ‖g‖/Δ, so ‖s‖ ≤ Δ: downhill along every eigenvector.

    |H| has the absolute values of the eigenvalues of H, so L + ⟨g, s⟩ + ½⟨s, |H|s⟩ bounds the
    quadratic model of L from above.

    Source: Dauphin et al. (2014), section 5.
    """
    damping = jnp.maximum(tree.norm(g) / radius, jnp.finfo(g.dtype).tiny)
    v, form = hessian.absolute(g, damping)
    return Step(-v, jnp.sum(g * v) - 0.5 * form)


def _residual_decrease(hessian: Hessian, g: Array, s: Array) -> Array:
    """½‖g‖² - ½‖g + Hs‖², without the cancellation."""
    hs = hessian.product(s)
    return -jnp.sum(g * hs) - 0.5 * jnp.sum(hs**2)


def _inverses(values: Array) -> tuple[Array, Array]:
    """Eigenvalues with those that are rounding set to 0, and the inverses of the others."""
    clear = jnp.abs(values) > len(values) * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    return jnp.where(clear, values, 0), jnp.where(clear, 1 / jnp.where(clear, values, 1), 0)
