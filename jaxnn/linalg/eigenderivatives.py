"""Derivatives of eigenpairs: by one linear system for each vector, not through the iteration.

Differentiating A v_i = λ_i v_i and ‖v_i‖ = 1 gives, with the other pairs λ_j, v_j of a symmetric A,

    λ̇_i = ⟨v_i, Ȧ v_i⟩,    v̇_i = Σ_{j≠i} v_j ⟨v_j, Ȧ v_i⟩/(λ_i - λ_j).

The pairs that are known contribute their terms; on the orthogonal complement of their vectors the
sum is the solution of (λ_i - A) v̇_i = Ȧ v_i.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxnn.linalg.krylov import Iterate
from jaxnn.linalg.minimal_residual import minimized
from jaxnn.linalg.systems import solution
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array, ArrayLike

Pairs = tuple[Float[Array, "k"], Float[Array, "k n"]]

MAX_STEPS = 10_000
"""Products for one system; the derivative of a vector whose system is not solved then is NaN."""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def differentiable(
    product: Callable[..., Array],
    arrays: list[ArrayLike],
    values: Float[Array, "k"],
    vectors: Float[Array, "k n"],
    error: Float[Array, ""],
) -> Pairs:
    """The eigenpairs themselves, with their derivatives with respect to the arrays of A.

    `product`(arrays, v) is A v. Between eigenvalues that are as near as the `error` no vector is
    told from another: their terms in each other's derivative are left out. They cancel in what
    depends on the space of these vectors alone, and in sums over such a cluster, which are what has
    derivatives. A vector whose eigenvalue is also that of a vector not among these has none: NaN.

    Source: Magnus (1985), theorem 1; Nelson (1976) for the system.
    """
    del product, arrays, error
    return values, vectors


@differentiable.defjvp
def _(product: Callable[..., Array], primals: tuple, tangents: tuple) -> tuple[Pairs, Pairs]:
    arrays, *pairs, error = primals
    values, vectors = differentiable(product, arrays, *pairs, error)
    change = lambda v: jax.jvp(lambda a: product(a, v), (arrays,), (tangents[0],))[1]
    images = lax.map(change, vectors)
    inner = dot(images, vectors.T)
    inner = 0.5 * (inner + inner.T)
    gaps = values[:, None] - values[None, :]
    apart = jnp.abs(gaps) > error
    inside = dot(jnp.where(apart, inner / jnp.where(apart, gaps, 1), 0), vectors)
    outside = lax.map(
        lambda pair: _outside(partial(product, arrays), vectors, *pair), (values, images)
    )
    return (values, vectors), (jnp.diagonal(inner), inside + outside)


def _outside(
    product: Callable[[Array], Array], vectors: Array, value: Array, image: Array
) -> Float[Array, "n"]:
    """The part of v̇_i orthogonal to the vectors."""
    eps = jnp.finfo(image.dtype).eps
    tolerance = max(float(0.1 * eps ** (2 / 3)), float(10 * eps))
    others = lambda v: v - dot(dot(vectors, v), vectors)
    # Not 0 in the space of the vectors, where the right side is 0 but for rounding.
    scale = lax.stop_gradient(jnp.max(jnp.abs(value)))
    scale = jnp.where(scale > 0, scale, 1)

    def shifted(v: Array) -> Array:
        w = others(v)
        return others(value * w - product(w)) + scale * (v - w)

    def solve(b: Array, start: Array | None) -> Iterate:
        return minimized(shifted, b, start, tolerance, MAX_STEPS)

    return solution(shifted, others(image), solve, tolerance=tolerance, derivative=True).x
