"""How kernels differ: alignment, effective rank, and the drift of a kernel during training."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid
from jaxnn.kernels.empirical import ntk
from jaxnn.types import Apply, Array, Params, PyTree


def alignment(kernel1: Float[Array, "N M"], kernel2: Float[Array, "..."]) -> Float[Array, ""]:
    """The cosine of two kernels, ⟨K₁, K₂⟩/(‖K₁‖‖K₂‖) in the Frobenius inner product; in [-1, 1].

    With K₂ = y yᵀ it measures how well a kernel fits a target. A zero kernel gives 0.

    Errors: kernels of different shapes.

    Source: Cristianini et al. (2001), definition 1.

    >>> alignment(jnp.eye(2), jnp.ones((2, 2)))
    Array(0.70710677, dtype=float32)
    """
    _require_same_shape("alignment", kernel1, kernel2)
    norms = jnp.linalg.norm(kernel1) * jnp.linalg.norm(kernel2)
    product = jnp.sum(kernel1 * kernel2)
    return jnp.where(norms > 0, product / jnp.where(norms > 0, norms, 1.0), 0.0)


def centered_alignment(
    kernel1: Float[Array, "N N"], kernel2: Float[Array, "..."]
) -> Float[Array, ""]:
    """The alignment of HK₁H and HK₂H, with H = 1 - 11ᵀ/N: that of features with their mean removed.

    Errors: kernels of different shapes, or not square.

    Source: Cortes, Mohri & Rostamizadeh (2012), definition 4.

    >>> print(f"{centered_alignment(jnp.eye(3), jnp.eye(3) + 5.0):.3f}")
    1.000
    """
    _require_same_shape("centered_alignment", kernel1, kernel2)
    return alignment(_centered(kernel1), _centered(kernel2))


def effective_rank(kernel: Float[Array, "N N"]) -> Float[Array, ""]:
    """exp of the entropy of the normalized eigenvalues, from 1 (rank one) to N (a multiple of 1).

    exp(-Σ pᵢ ln pᵢ) with pᵢ = λᵢ/Σλ; eigenvalues that rounding made negative count as 0.

    Errors: a kernel that is not square.

    Source: Roy & Vetterli (2007), definition 1.

    >>> effective_rank(jnp.diag(jnp.array([1.0, 1.0, 0.0])))
    Array(2., dtype=float32)
    """
    if kernel.shape[0] != kernel.shape[1]:
        raise invalid(
            "effective_rank(kernel)",
            got=f"shape {kernel.shape}",
            expected="(N, N)",
            remedy="Its eigenvalues are those of a kernel of a batch with itself.",
        )
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(kernel), 0.0)
    p = eigenvalues / jnp.sum(eigenvalues)
    return jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1.0))))


def ntk_trajectory(
    f: Apply,
    trajectory: Params,
    x1: Shaped[Array, "N1 *in"],
    x2: Shaped[Array, "N2 ..."] | None = None,
    **options: Any,
) -> PyTree:
    """The tangent kernel at every point of a trajectory: `ntk` with a leading axis of times.

    `trajectory` is the parameters with a leading axis of T on every leaf, as `lax.scan` or
    `jnp.stack` leave them; the kernels are computed one after the other. `options` are those of
    `ntk`. `relative_change` of the result is the drift that lazy training lacks.

    Errors: those of `ntk`; leaves with different numbers of times.

    >>> f = lambda w, x: jnp.sum(w**2 * x, axis=-1)
    >>> ntk_trajectory(f, jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.array([[1.0, 1.0]])).ravel()
    Array([ 4., 16.], dtype=float32)
    """
    times = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(trajectory)}
    if len(times) != 1 or () in times:
        raise invalid(
            "trajectory",
            got=f"leaves with leading axes {sorted(times)}",
            expected="the same number of times in front of every leaf",
            remedy="Stack the parameters: jax.tree.map(lambda *p: jnp.stack(p), *list_of_params).",
        )
    return jax.lax.map(lambda params: ntk(f, params, x1, x2, **options), trajectory)


def relative_change(kernels: Float[Array, "T ..."]) -> Float[Array, "T"]:
    """‖Θ_t - Θ_0‖/‖Θ_0‖ in the Frobenius norm, for kernels stacked over times.

    Source: Lee et al. (2019), figure 1.

    >>> relative_change(jnp.array([[[2.0]], [[3.0]]]))
    Array([0. , 0.5], dtype=float32)
    """
    flat = kernels.reshape(kernels.shape[0], -1)
    first = jnp.broadcast_to(flat[:1], flat.shape)
    return jnp.linalg.norm(flat - first, axis=1) / jnp.linalg.norm(flat[0])


def _centered(kernel: Array) -> Array:
    rows = kernel.mean(axis=0, keepdims=True)
    columns = kernel.mean(axis=1, keepdims=True)
    shape = kernel.shape
    return kernel - jnp.broadcast_to(rows, shape) - jnp.broadcast_to(columns, shape) + kernel.mean()


def _require_same_shape(name: str, first: Array, second: Array) -> None:
    if first.shape != second.shape:
        raise invalid(
            f"{name}(kernel1, kernel2)",
            got=f"shapes {first.shape} and {second.shape}",
            expected="equal shapes",
            remedy="Compare kernels of the same examples, with the same `outputs`.",
        )
