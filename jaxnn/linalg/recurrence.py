"""One step of the Lanczos recurrence A V_k = V_{k+1} T_k on pytrees, and of what reduces T_k.

Of the Lanczos vectors only the last two are kept.
"""

import jax.numpy as jnp

from jaxnn import tree
from jaxnn.errors import require_between
from jaxnn.linalg.systems import Product
from jaxnn.types import Array, ArrayLike, PyTree


def lanczos_step(
    product: Product,
    preconditioner: Product,
    z_old: PyTree,
    z: PyTree,
    v: PyTree,
    beta: Array,
) -> tuple[Array, Array, PyTree, PyTree]:
    """α_k, β_{k+1}, z_{k+1} and v_{k+1} = M⁻¹z_{k+1}, both zero where the space is exhausted."""
    p = tree.axpy(-beta, z_old, product(v))
    alpha = tree.dot(v, p)
    p = tree.axpy(-alpha, z, p)
    q = preconditioner(p)
    beta = length(p, q)
    return alpha, beta, tree.scale(ratio(1.0, beta), p), tree.scale(ratio(1.0, beta), q)


def reflection(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """c, s and h ≥ 0 with [[c, s], [s, -c]] (a, b) = (h, 0)."""
    h = jnp.hypot(a, b)
    return jnp.where(h > 0, ratio(a, h), 1.0), ratio(b, h), h


def reflected(c: Array, s: Array, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """(x, y) times that matrix."""
    return tree.axpy(s, y, tree.scale(c, x)), tree.axpy(-c, y, tree.scale(s, x))


def ratio(a: ArrayLike, b: Array) -> Array:
    """a/b, and 0 where b is: of an exhausted space nothing more is taken."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def length(p: PyTree, q: PyTree) -> Array:
    """√⟨p, q⟩, also where the squares of what is small would be rounded to 0."""
    largest = tree.largest_entry(p)
    product = tree.dot(tree.scale(ratio(1.0, largest), p), q)
    return jnp.sqrt(largest) * jnp.sqrt(jnp.maximum(product, 0.0))


def shifted(matvec: Product, shift: ArrayLike) -> Product:
    """v ↦ (A - shift·I)v."""
    return lambda v: tree.axpy(-jnp.asarray(shift), v, matvec(v))


def require_tolerance(function: str, tolerance: ArrayLike) -> None:
    """Raise unless it is in (0, 1); traced values pass."""
    remedy = "It is relative to ‖b‖."
    name = f"{function}(tolerance)"
    require_between(name, tolerance, 0.0, 1.0, low_open=True, remedy=remedy)
