"""XTrace and XDiag: every probe estimates what the range of the others leaves, and what it leaves.

The estimates T_i of m probes are exchangeable but correlated. With e_i = T_i - E T_i, and T_i^{(j)}
what T_i is without the j-th probe, E[e_i e_j] = E[δ_ij δ_ji] for δ_ij = T_i - T_i^{(j)}, as all
other terms have mean zero given the rest. So s²/m + mean_{i≠j} δ_ij δ_ji estimates the variance of
the mean without bias, where the usual s²/m is too small, by half where eigenvalues decay slowly.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxnn import tree
from jaxnn.linalg.estimates import Estimate, Sampler, mean_of
from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.spaces import prepared
from jaxnn.linalg.tridiagonal import orthogonalized
from jaxnn.linalg.vectors import coordinates, dot
from jaxnn.types import Array, Key


class Exchange(NamedTuple):
    """m probes ω and A ω, and orthonormal rows Q that span the A ω, with their images.

    `left_out` has for every probe, as a unit vector s in coordinates of Q, what of the span of Q
    its own A ω has brought in: the others span Q without s.
    """

    probes: Float[Array, "m n"]
    images: Float[Array, "m n"]
    basis: Float[Array, "m n"]
    basis_images: Float[Array, "m n"]
    left_out: Float[Array, "m m"]


def exchange(
    operator: LinearOperator,
    second: LinearOperator,
    key: Key,
    count: int,
    sampler: Sampler,
    over_rows: Callable[[Callable, Array], Array],
) -> Exchange:
    """The products of `operator` with random vectors, and of `second` with a basis of these.

    Source: Epperly, Tropp & Webber (2024), section 2.2, for the downdated basis.
    """
    flat = coordinates(operator.domain)
    key, noise_key = jax.random.split(key)
    probes = sampler(key, (count, flat.size), flat.dtype)
    images = over_rows(prepared(operator), probes)
    q, r = orthonormal_range(images, noise_key)
    # Row i of R⁻¹ is orthogonal to all columns of R but the i-th.
    rows = inverse_triangle(r)
    left_out = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return Exchange(probes, images, q, over_rows(prepared(second), q), left_out)


def orthonormal_range(
    images: Float[Array, "m n"], key: Key
) -> tuple[Float[Array, "m n"], Float[Array, "m m"]]:
    """Orthonormal rows Q that span the images, and the upper triangle R with images ∝ RᵀQ.

    To the images, scaled to entries of size 1, noise of the size of their rounding is added, so
    that those of a lower rank than their number have a basis and an R that can be inverted.

    By Gram-Schmidt and not `jnp.linalg.qr`: on a CPU (jaxlib 0.10.1) each batch of LAPACK
    calls holds a thread until other threads have done its parts, so that under `vmap` two of them
    in one program can wait for each other forever.
    """
    eps = jnp.finfo(images.dtype).eps
    rows = _of_size_one(images) + eps * jax.random.normal(key, images.shape, images.dtype)

    def step(basis: Array, i: Array) -> tuple[Array, Array]:
        # Of a row of which noise alone is left, twice is not enough: an error of the basis would
        # grow tenfold with every such row.
        w, h = orthogonalized(rows[i], basis)
        w, more = orthogonalized(w, basis)
        length = tree.norm(w)
        return basis.at[i].set(w / length), (h + more).at[i].set(length)

    order = jnp.arange(len(rows), dtype=jnp.int32)
    q, columns = lax.scan(step, jnp.zeros_like(rows), order)
    return q, columns.T


def _of_size_one(x: Array) -> Array:
    """x divided by the root mean square of its entries, which may be too large or small to square.

    0 of zeros.
    """
    for size in (lambda x: jnp.max(jnp.abs(x)), lambda x: jnp.sqrt(jnp.mean(x**2))):
        x = x / jnp.where(size(x) == 0, 1, size(x))
    return x


def inverse_triangle(r: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """R⁻¹ of an upper triangle, by back substitution row after row: see `orthonormal_range`.

    >>> inverse_triangle(jnp.array([[1.0, 2.0], [0.0, 4.0]]))
    Array([[ 1.  , -0.5 ],
           [ 0.  ,  0.25]], dtype=float32)
    """
    unit = jnp.eye(len(r), dtype=r.dtype)

    def step(k: Array, x: Array) -> Array:
        i = len(r) - 1 - k
        return x.at[i].set((unit[i] - dot(r[i], x)) / r[i, i])

    return lax.fori_loop(0, len(r), step, jnp.zeros_like(r))


def exchanged_trace(x: Exchange) -> Estimate:
    """T_i = tr Q_iᵀ A Q_i + (n - m + 1) μᵀAμ/‖μ‖², with μ = (I - Q_i Q_iᵀ) ω_i, and their mean.

    The length of μ is divided out, as it says nothing: ω_i has no preferred direction.
    """
    (m, n), s = x.probes.shape, x.left_out
    inner = dot(x.probes, x.basis.T)
    along = dot(s, inner.T)  # [j, i] = ⟨s_j, Q ω_i⟩
    back = jnp.diag(along)[:, None] * s - inner
    mu, image = x.probes + dot(back, x.basis), x.images + dot(back, x.basis_images)
    size, form = jnp.sum(mu**2, axis=1), jnp.sum(mu * image, axis=1)
    h = dot(x.basis, x.basis_images.T)
    e = dot(dot(s, h), s.T)
    share = lambda dimension, form, size: dimension * form / jnp.where(size > 0, size, 1)
    total = jnp.trace(h) - jnp.diag(e) + share(n - m + 1, form, size)

    # Without the j-th probe Q_i also lacks u, the part of s_j that is orthogonal to s_i.
    c, length = _cosines(s)
    orthogonal = lambda a: (a.T - c * jnp.diag(a)[:, None]) / length
    both = dot(s, (dot(image, x.basis.T) + dot(mu, x.basis_images.T)).T)
    diagonal = jnp.diag(e)
    uhu = (diagonal[None, :] - c * (e + e.T) + c**2 * diagonal[:, None]) / length**2
    a = orthogonal(along)
    wider = form[:, None] + a * orthogonal(both) + a**2 * uhu
    without = jnp.trace(h) - diagonal[:, None] - uhu
    without = without + share(n - m + 2, wider, size[:, None] + a**2)
    delta = jnp.where(jnp.eye(m, dtype=bool), 0, total[:, None] - without)
    return _widened(mean_of(total, 2 * m), jnp.sum(delta * delta.T))


def exchanged_diagonal(x: Exchange) -> Estimate:
    """T_i = diag(Q_i Q_iᵀ A) + ω_i ⊙ (I - Q_i Q_iᵀ) A ω_i, and their mean.

    A ω_i is in the span of Q, so that (I - Q_i Q_iᵀ) A ω_i = Qs ⟨Qs, A ω_i⟩ without a product.
    `x.basis_images` are those of Aᵀ.
    """
    m, s = len(x.probes), x.left_out
    gone, gone_images = dot(s, x.basis), dot(s, x.basis_images)
    own = jnp.sum(gone * x.images, axis=1)
    inside = jnp.sum(x.basis * x.basis_images, axis=0)
    total = inside[None, :] - gone * gone_images + x.probes * gone * own[:, None]
    c, length = _cosines(s)

    def delta(i: Array, j: Array) -> Array:
        """δ_ij, with u orthogonal to s_i as in `exchanged_trace`."""
        u = (gone[j] - c[i, j] * gone[i]) / length[i, j]
        u_image = (gone_images[j] - c[i, j] * gone_images[i]) / length[i, j]
        return u * (u_image + x.probes[i] * (c[i, j] * own[i] / length[i, j]))

    def row(sums: Array, i: Array) -> tuple[Array, None]:
        def pair(j: Array, sums: Array) -> Array:
            return sums + 2 * delta(i, j) * delta(j, i)

        return lax.fori_loop(i + 1, m, pair, sums), None

    pairs = lax.scan(row, jnp.zeros_like(inside), jnp.arange(m, dtype=jnp.int32))[0]
    return _widened(mean_of(total, 2 * m), pairs)


def _cosines(s: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """⟨s_i, s_j⟩, and the length of what of s_j is orthogonal to s_i; 0 and 1 on the diagonal."""
    c = jnp.where(jnp.eye(len(s), dtype=bool), 0, dot(s, s.T))
    return c, jnp.sqrt(jnp.maximum(1 - c**2, jnp.finfo(s.dtype).eps))


def _widened(estimate: Estimate, pairs: Array) -> Estimate:
    """With the variance that Σ_{i≠j} δ_ij δ_ji says the correlations add."""
    added = jnp.maximum(pairs / (estimate.probes * (estimate.probes - 1)), 0)
    return estimate._replace(standard_error=jnp.sqrt(estimate.standard_error**2 + added))
