"""Linear systems by conjugate gradients: nothing of the matrix is needed but its products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, PyTree

from jaxnn import tree
from jaxnn.errors import require_between
from jaxnn.linalg.systems import Product, like, right_side, solution, widened
from jaxnn.precision import wide
from jaxnn.types import Array


class Iterate(NamedTuple):
    """x, how far it is, and whether that is near enough.

    residual   ‖b - Ax‖/‖b‖, or of b = 0 ‖Ax‖ relative to that of the start; `cg` has it as the
               recursion keeps it, `minres` computes it from x
    steps      products with A, beside those that check
    converged  whether the residual is at most the tolerance
    """

    x: PyTree
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def cg(
    matvec: Product,
    b: PyTree,
    *,
    preconditioner: Product = lambda r: r,
    start: PyTree | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
) -> Iterate:
    """The solution of Ax = b for a symmetric positive definite A, by conjugate gradients.

    The error falls at least as ((√κ - 1)/(√κ + 1))^k, κ the condition number of M⁻¹A. Where A or M
    turns out not to be positive definite, ⟨p, Ap⟩ ≤ 0 for a direction p or ⟨r, M⁻¹r⟩ ≤ 0, the
    iteration ends unconverged with the x before (`linalg.minres` goes on).

    x has the derivatives of A⁻¹b in forward and reverse mode, also with respect to the arrays that
    `matvec` closes over (`systems.solution`): each is one more system, to the same tolerance.

    Args:
        matvec: v ↦ Av on arrays or pytrees like b.
        b: an array or pytree of real numbers; integers are promoted, and half precision is computed
            with in float32 outside of `matvec`.
        preconditioner: r ↦ M⁻¹r for a symmetric positive definite M like A of which that is cheap.
        start: the first x; default: zeros.
        tolerance: of ‖b - Ax‖ relative to ‖b‖, or of b = 0 relative to its value at the start.
        max_steps: the largest number of products with A.

    Errors: a tolerance that is not in (0, 1), a result of `matvec` or a start that is not like b.

    Source: Hestenes & Stiefel (1952), section 3; Golub & Van Loan (2013), algorithm 11.5.1.

    >>> found = cg(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([1.0, 1.0]))
    >>> found.x.round(4), bool(found.converged)
    (Array([0.5 , 0.25], dtype=float32), True)
    >>> scale = lambda a: cg(lambda v: a * v, jnp.ones(2)).x.sum()  # 2/a
    >>> print(f"{jax.grad(scale)(2.0):.3f}")
    -0.500
    """
    remedy = "It is relative to ‖b‖."
    require_between("cg(tolerance)", tolerance, 0.0, 1.0, low_open=True, remedy=remedy)
    narrow = right_side("cg(b)", b)
    b = jax.tree.map(wide, narrow)
    product = widened("cg(matvec): its result", matvec, narrow)
    inverse = widened("cg(preconditioner): its result", preconditioner, narrow)
    run = lambda b, start: _conjugate_gradients(product, inverse, b, start, tolerance, max_steps)
    start = start if start is None else like("cg(start)", start, b)
    found = solution(product, b, run, start=start, tolerance=tolerance)
    return found._replace(x=tree.cast(found.x, narrow))


def _conjugate_gradients(
    product: Product,
    inverse: Product,
    b: PyTree,
    start: PyTree | None,
    tolerance: Any,
    max_steps: Any,
) -> Iterate:
    origin = tree.scale(0.0, b) if start is None else start
    r = b if start is None else tree.sub(b, product(origin))
    # The system of the first residual in units of its norm: ⟨r, z⟩ would over- or underflow.
    size, unit = tree.norm(b), tree.norm(r)
    size = jnp.where(size > 0, size, unit)
    unit = jnp.where(unit > 0, unit, 1)
    r = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), r)
    goal = jnp.asarray(tolerance, size.dtype) * (size / unit)
    z = inverse(r)

    def step(state):
        x, r, p, rz, k, _ = state
        ap = product(p)
        curvature = tree.dot(p, ap)
        definite = (curvature > 0) & (rz > 0)  # not where they are NaN
        length = jnp.where(definite, rz / jnp.where(definite, curvature, 1.0), 0.0)
        x, r = tree.axpy(length, p, x), tree.axpy(-length, ap, r)
        z = inverse(r)
        new = tree.dot(r, z)
        p = tree.axpy(new / jnp.where(definite, rz, 1.0), p, z)
        return x, r, p, new, k + 1, definite

    def unfinished(state):
        _, r, _, _, k, definite = state
        return definite & (tree.norm(r) > goal) & (k < max_steps)

    state = tree.scale(0.0, b), r, z, tree.dot(r, z), jnp.zeros((), jnp.int32), jnp.array(True)
    x, r, _, _, steps, _ = lax.while_loop(unfinished, step, state)
    residual = tree.norm(r) * (unit / jnp.where(size > 0, size, 1))
    return Iterate(tree.axpy(unit, x, origin), residual, steps, tree.norm(r) <= goal)
