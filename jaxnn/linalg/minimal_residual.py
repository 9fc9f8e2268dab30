"""Symmetric systems that may be indefinite: MINRES.

Lanczos on A and b, A V_k = V_{k+1} T_k, where the tridiagonal T_k is reduced by reflections from
the left, one new column at a step. Lanczos vectors are not kept: the memory is that of a few
vectors like b.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from jaxnn import tree
from jaxnn.linalg.krylov import Iterate
from jaxnn.linalg.recurrence import (
    lanczos_step,
    length,
    ratio,
    reflection,
    require_tolerance,
    shifted,
)
from jaxnn.linalg.systems import Product, like, right_side, solution, widened
from jaxnn.precision import wide
from jaxnn.types import Array, ArrayLike


def minres(
    matvec: Product,
    b: PyTree,
    *,
    preconditioner: Product = lambda r: r,
    shift: ArrayLike = 0.0,
    start: PyTree | None = None,
    tolerance: ArrayLike = 1e-5,
    max_steps: int | Array = 1000,
) -> Iterate:
    """The solution of (A - shift·I)x = b for a symmetric A, definite or not, by minimal residuals.

        x_k = argmin ‖b - (A - shift·I)x‖  over x in start + span{r, Ar, ..., A^{k-1} r}

    The residual returned is computed from x: where that of the recursion was too good, the
    recursion starts again from x as long as that at least halves the residual. A singular A that b
    is not in the range of ends unconverged: `minres_qlp` is for those.

    x has the derivatives of (A - shift·I)⁻¹b in forward and reverse mode, as that of `cg` has, also
    with respect to the shift. Where A - shift·I is singular they are NaN, but for changes of b that
    stay in its range.

    Args:
        matvec: v ↦ Av on arrays or pytrees like b.
        b: an array or pytree of real numbers; integers are promoted, and half precision is computed
            with in float32 outside of `matvec`.
        preconditioner: r ↦ M⁻¹r for a symmetric positive definite M; x_k then minimizes the norm of
            M⁻¹.
        shift: a number; default: 0.
        start: the first x; default: zeros.
        tolerance: of ‖b - (A - shift·I)x‖ relative to ‖b‖, or of b = 0 relative to its value at the
            start.
        max_steps: the largest number of products with A.

    Errors: a tolerance that is not in (0, 1), a result of `matvec` or a start that is not like b.

    Source: Paige & Saunders (1975), section 6.

    >>> found = minres(lambda v: jnp.array([2.0, -4.0]) * v, jnp.array([1.0, 1.0]))
    >>> found.x.round(4), bool(found.converged)
    (Array([ 0.5 , -0.25], dtype=float32), True)
    """
    require_tolerance("minres", tolerance)
    narrow = right_side("minres(b)", b)
    b = jax.tree.map(wide, narrow)
    product = shifted(widened("minres(matvec): its result", matvec, narrow), shift)
    inverse = widened("minres(preconditioner): its result", preconditioner, narrow)
    run = lambda b, start: minimized(product, b, start, tolerance, max_steps, inverse)
    start = start if start is None else like("minres(start)", start, b)
    found = solution(product, b, run, start=start, tolerance=tolerance)
    return found._replace(x=tree.cast(found.x, narrow))


def minimized(
    product: Product,
    b: PyTree,
    start: PyTree | None,
    tolerance: ArrayLike,
    max_steps: ArrayLike,
    inverse: Product = lambda r: r,
) -> Iterate:
    """`minres` without checks and derivatives, for systems within other algorithms."""
    size = tree.norm(b)
    x = tree.scale(0.0, b) if start is None else start
    r = b if start is None else tree.sub(b, product(x))
    size = jnp.where(size > 0, size, tree.norm(r))
    goal = jnp.asarray(tolerance, size.dtype) * size

    def unfinished(state):
        _, r, steps, progress = state
        return progress & (tree.norm(r) > goal) & (steps < max_steps)

    def run(state):
        x, r, steps, _ = state
        old = tree.norm(r)
        unit = tree.scale(ratio(1.0, old), r)
        change, more = _minimal_residual(
            product, inverse, unit, ratio(goal, old), max_steps - steps
        )
        x_new = tree.axpy(old, change, x)
        r_new = tree.sub(b, product(x_new))
        new = tree.norm(r_new)
        x, r = tree.where(new < old, (x_new, r_new), (x, r))
        return x, r, steps + more, new <= 0.5 * old

    state = x, r, jnp.zeros((), jnp.int32), jnp.array(True)
    x, r, steps, _ = lax.while_loop(unfinished, run, state)
    residual = tree.norm(r) / jnp.where(size > 0, size, 1)
    return Iterate(x, residual, steps, tree.norm(r) <= goal)


def _minimal_residual(
    product: Product, preconditioner: Product, b: PyTree, goal: Array, max_steps: Array
) -> tuple[PyTree, Array]:
    """x_k and k: MINRES from 0, until ‖b - Ax_k‖ ≤ goal or Ar_k is nothing but rounding."""
    zero = tree.scale(0.0, b)
    v = preconditioner(b)
    phi = length(b, v)
    z, v = (tree.scale(ratio(1.0, phi), u) for u in (b, v))
    none = jnp.zeros_like(phi)
    eps = jnp.finfo(phi.dtype).eps

    def unfinished(state):
        _, r, *_, stalled, k = state
        return ~stalled & (tree.norm(r) > goal) & (k < max_steps)

    def step(state):
        x, r, z_old, z, v, w_old, w, beta, c, s, delta1, epsilon, phi, norm, _, k = state
        alpha, beta_new, z_new, v_new = lanczos_step(product, preconditioner, z_old, z, v, beta)
        norm = jnp.maximum(norm, jnp.hypot(jnp.hypot(beta, alpha), beta_new))
        # The new column (beta, alpha, beta_new) of T, by the last reflection and by the next.
        delta2, gamma1 = c * delta1 + s * alpha, s * delta1 - c * alpha
        epsilon_new, delta1_new = s * beta_new, -c * beta_new
        stalled = jnp.hypot(gamma1, delta1_new) <= 10 * eps * norm  # ‖Ar_{k-1}‖/‖r_{k-1}‖
        c, s, gamma2 = reflection(gamma1, beta_new)
        w_new = tree.axpy(-delta2, w, tree.axpy(-epsilon, w_old, v))
        w_new = tree.scale(ratio(1.0, gamma2), w_new)
        x_new = tree.axpy(c * phi, w_new, x)
        r_new = tree.axpy(-c * s * phi, z_new, tree.scale(s**2, r))
        x, r = tree.where(stalled, (x, r), (x_new, r_new))
        return (
            *(x, r, z, z_new, v_new, w, w_new, beta_new),
            *(c, s, delta1_new, epsilon_new, s * phi, norm, stalled, k + 1),
        )

    vectors = zero, b, zero, z, v, zero, zero
    scalars = none, none - 1, none, none, none, phi, none, jnp.array(False)
    state = lax.while_loop(unfinished, step, (*vectors, *scalars, jnp.zeros((), jnp.int32)))
    return state[0], state[-1]
