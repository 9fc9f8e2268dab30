"""How kernels differ: alignment, effective rank, and the drift of a kernel during training."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid
from jaxnn.kernels.empirical import ntk
from jaxnn.kernels.matrices import real_arrays, share, square
from jaxnn.kernels.modes import decomposed, reopened
from jaxnn.types import Apply, Array, Params, PyTree


def alignment(kernel1: Shaped[Array, "N M"], kernel2: Shaped[Array, "..."]) -> Float[Array, ""]:
    """The cosine of two kernels, ⟨K₁, K₂⟩/(‖K₁‖‖K₂‖) in the Frobenius inner product; in [-1, 1].

    With K₂ = y yᵀ it measures how well a kernel fits a target. A zero kernel gives 0. Kernels of
    any scale, of integers and of half precision are welcome.

    Errors: kernels of different shapes, complex kernels.

    Source: Cristianini et al. (2001), definition 1.

    >>> alignment(jnp.eye(2), jnp.ones((2, 2)))
    Array(0.70710677, dtype=float32)
    """
    first, second, dtype = _alike("alignment", kernel1, kernel2)
    return _cosine(first, second).astype(dtype)


def centered_alignment(
    kernel1: Shaped[Array, "N N"], kernel2: Shaped[Array, "..."]
) -> Float[Array, ""]:
    """The alignment of HK₁H and HK₂H, with H = 1 - 11ᵀ/N: that of features with their mean removed.

    Also known as centered kernel alignment, CKA. A kernel that is constant up to rounding gives 0.

    Errors: kernels of different shapes, or not square, complex kernels.

    Source: Cortes, Mohri & Rostamizadeh (2012), definition 4; Kornblith et al. (2019), section 3.

    >>> print(f"{centered_alignment(jnp.eye(3), jnp.eye(3) + 5.0):.3f}")
    1.000
    """
    first, second, dtype = _alike("centered_alignment", kernel1, kernel2)
    _require_square("centered_alignment(kernel1, kernel2)", first)
    return _cosine(_centered(first), _centered(second)).astype(dtype)


def effective_rank(kernel: Shaped[Array, "N N"]) -> Float[Array, ""]:
    """exp of the entropy of the normalized eigenvalues, from 1 (rank one) to N (a multiple of 1).

    exp(-Σ pᵢ ln pᵢ) with pᵢ = λᵢ/Σλ; eigenvalues that rounding made negative count as 0. A zero
    kernel gives 0. Derivatives are those at a constant rank.

    Errors: a kernel that is not square, a complex kernel.

    Source: Roy & Vetterli (2007), definition 1.

    >>> effective_rank(jnp.diag(jnp.array([1.0, 1.0, 0.0])))
    Array(2., dtype=float32)
    """
    (kernel,), dtype = real_arrays("effective_rank", kernel=kernel)
    _require_square("effective_rank(kernel)", kernel)
    matrix = _in_units(square("effective_rank", kernel))
    eigenvalues = reopened(matrix, decomposed(matrix)).eigenvalues
    total = jnp.sum(eigenvalues)
    p = eigenvalues / jnp.where(total == 0, 1.0, total)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p == 0, 1.0, p)))
    return jnp.where(total == 0, 0.0, jnp.exp(entropy)).astype(dtype)


def ntk_trajectory(
    f: Apply,
    trajectory: Params,
    x1: PyTree,
    x2: PyTree | None = None,
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


def relative_change(kernels: Shaped[Array, "T ..."]) -> Float[Array, "T"]:
    """‖Θ_t - Θ_0‖/‖Θ_0‖ in the Frobenius norm, for kernels stacked over times.

    For Θ_0 = 0 it is 0 where Θ_t is 0 too, and else infinite.

    Errors: complex kernels, no axis of times.

    Source: Lee et al. (2019), figure 1.

    >>> relative_change(jnp.array([[[2.0]], [[3.0]]]))
    Array([0. , 0.5], dtype=float32)
    """
    (kernels,), dtype = real_arrays("relative_change", kernels=kernels)
    if kernels.ndim == 0:
        raise invalid(
            "relative_change(kernels)",
            got="a number",
            expected="shape (T, ...)",
            remedy="Stack kernels over times, as ntk_trajectory does.",
        )
    # Θ_t/Θ_0 in units of Θ_0, since a difference of large kernels may overflow.
    first = kernels[0]
    unit = lax.stop_gradient(jnp.max(jnp.abs(first), initial=0.0))
    unit = jnp.where(unit > 0, unit, 1.0)
    change = lambda kernel: share(kernel / unit - first / unit, first / unit)
    return jax.vmap(change)(kernels).astype(dtype)


def _cosine(first: Array, second: Array) -> Array:
    first, second = _in_units(first), _in_units(second)
    squares = jnp.sum(first**2) * jnp.sum(second**2)
    some = squares != 0
    norms = jnp.sqrt(jnp.where(some, squares, 1.0))
    cosine = jnp.where(some, jnp.sum(first * second) / norms, 0.0)
    # Rounding beyond ±1 would make an angle NaN; the clip does not change the derivative.
    return cosine - lax.stop_gradient(cosine - jnp.clip(cosine, -1.0, 1.0))


def _in_units(kernel: Array) -> Array:
    """The kernel in units of its largest entry, so that no product over- or underflows."""
    unit = lax.stop_gradient(jnp.max(jnp.abs(kernel), initial=0.0))
    return kernel / jnp.where(unit == 0, 1.0, unit)


def _centered(kernel: Array) -> Array:
    """HKH, of a kernel in units of its largest entry; 0 where that is rounding errors alone."""
    kernel = _in_units(kernel)
    shape = kernel.shape
    rows = kernel - jnp.broadcast_to(kernel.mean(axis=0, keepdims=True), shape)
    centered = rows - jnp.broadcast_to(rows.mean(axis=1, keepdims=True), shape)
    rounding = 4.0 * jnp.finfo(kernel.dtype).eps
    return jnp.where(jnp.max(jnp.abs(centered), initial=0.0) <= rounding, 0.0, centered)


def _alike(name: str, first: Array, second: Array) -> tuple[Array, Array, Any]:
    (first, second), dtype = real_arrays(name, kernel1=first, kernel2=second)
    if first.shape != second.shape:
        raise invalid(
            f"{name}(kernel1, kernel2)",
            got=f"shapes {first.shape} and {second.shape}",
            expected="equal shapes",
            remedy="Compare kernels of the same examples, with the same `outputs`.",
        )
    return first, second, dtype


def _require_square(argument: str, kernel: Array) -> None:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise invalid(
            argument,
            got=f"shape {kernel.shape}",
            expected="(N, N)",
            remedy="It is the kernel of a batch with itself.",
        )
