"""Symmetric systems that may be singular and without a solution: MINRES-QLP.

The tridiagonal T_k of Lanczos is reduced from the left, as in MINRES, and from the right as well,
which shows where it is singular.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, PyTree

from jaxnn import tree
from jaxnn.errors import invalid, require_between
from jaxnn.linalg.programs import hoisted
from jaxnn.linalg.recurrence import (
    lanczos_step,
    ratio,
    reflected,
    reflection,
    require_tolerance,
    shifted,
)
from jaxnn.linalg.systems import Product, right_side, solution, widened
from jaxnn.precision import wide
from jaxnn.types import Array, ArrayLike


class LeastSquares(NamedTuple):
    """x, how far Ax is from b, how far x is from the best, and what was seen of A.

    residual                ‖b - Ax‖/‖b‖, computed from x
    least_squares_residual  ‖Ar‖/(‖A‖‖r‖) of r = b - Ax, 0 where r is; computed from x
    norm                    a lower estimate of ‖A‖
    condition               an estimate of ‖A‖‖A⁺‖ on the Krylov space of b, 1 or more
    steps                   products with A, beside those that estimate and check
    converged               whether x solves the system, or its least squares problem
    compatible              whether x solves the system; False with `converged`: no x does
    """

    x: PyTree
    residual: Float[Array, ""]
    least_squares_residual: Float[Array, ""]
    norm: Float[Array, ""]
    condition: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    compatible: Bool[Array, ""]


def minres_qlp(
    matvec: Product,
    b: PyTree,
    *,
    shift: ArrayLike = 0.0,
    tolerance: ArrayLike = 1e-5,
    max_condition: ArrayLike | None = None,
    max_steps: int = 1000,
) -> LeastSquares:
    """x = (A - shift·I)⁺b for a symmetric A, indefinite or singular, by MINRES-QLP.

    Write A for A - shift·I, with `matvec` for v ↦ Av. Of all x that minimize ‖b - Ax‖ this is the
    shortest, whether Ax = b has a solution or not. Converged, with r = b - Ax and the tolerance t,
    is what satisfies

        ‖r‖ ≤ t‖b‖  (compatible)    or    ‖Ar‖ ≤ max(t, 1/max_condition)‖A‖‖r‖  (least squares),

    up to the rounding of r itself, 10ε‖A‖‖x‖, and that up to √ε‖b‖. All norms are computed from x,
    but ‖A‖, which is estimated from below. Singular values below ‖A‖/max_condition count as zeros;
    it is 1/(50ε) unless given. max_steps bounds the products with A of all runs together.

    Where b is outside the range of A, the rounding errors of the paper's recursion keep x from more
    than half the digits. Two more runs on compatible systems, where it has all of them, follow then
    if the tolerance asks for it: A w = A r for the part w of r in the range, and A x = b - (r - w).

    x has the derivatives of A⁺b in forward mode, and in reverse mode those of first order, also
    with respect to the arrays that `matvec` closes over, as long as A keeps its rank.

    Errors: a tolerance that is not in (0, 1), a max_condition below 1 or a max_steps below 1; a
    result of `matvec` that is not like b; a derivative of one in reverse mode.

    Source: Choi, Paige & Saunders (2011), sections 3-5; Choi & Saunders (2014).

    >>> found = minres_qlp(lambda v: jnp.array([2.0, -4.0, 0.0]) * v, jnp.array([1.0, 1.0, 1.0]))
    >>> found.x.round(4), bool(found.converged), bool(found.compatible)
    (Array([ 0.5 , -0.25,  0.  ], dtype=float32), True, False)
    """
    require_tolerance("minres_qlp", tolerance)
    remedy = "It bounds ‖A‖‖A⁺‖ from above."
    require_between("minres_qlp(max_condition)", max_condition, 1.0, jnp.inf, remedy=remedy)
    remedy = "Each step is one product with A."
    require_between("minres_qlp(max_steps)", max_steps, 1.0, jnp.inf, remedy=remedy)
    narrow = right_side("minres_qlp(b)", b)
    b = jax.tree.map(wide, narrow)
    product = shifted(widened("minres_qlp(matvec): its result", matvec, narrow), shift)
    product, arrays = hoisted(product, b)
    dtype = tree.norm(b).dtype
    cutoff = 50 * jnp.finfo(dtype).eps if max_condition is None else 1 / jnp.asarray(max_condition)
    limits = jnp.asarray(tolerance, dtype), jnp.asarray(cutoff, dtype), jnp.asarray(max_steps)
    found = _differentiable(product, False, arrays, b, limits)
    return found._replace(x=tree.cast(found.x, narrow))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(
    product: Callable[..., PyTree],
    derivative: bool,
    arrays: list[ArrayLike],
    b: PyTree,
    limits: tuple[Array, Array, Array],
) -> LeastSquares:
    """`least_squares` with the derivative of A⁺b where the rank of A does not change.

        ẋ = A⁺(ḃ - Ȧx + A⁺Ȧr) + (I - A⁺A)ȦA⁺x,    r = b - Ax

    Source: Golub & Pereyra (1973), theorem 4.3, for a symmetric A.
    """
    multiply = partial(product, arrays)
    return solution(
        partial(product, _once(arrays)),
        b,
        lambda b, _: least_squares(multiply, b, *limits),
        tolerance=limits[0],
        accuracy=lambda found: jnp.minimum(found.residual, found.least_squares_residual),
        derivative=derivative,
    )


@_differentiable.defjvp
def _(product: Callable[..., PyTree], derivative: bool, primals: tuple, tangents: tuple) -> tuple:
    arrays, b, limits = primals
    found = _differentiable(product, derivative, arrays, b, limits)
    inverse = lambda u: _differentiable(product, True, arrays, u, limits).x
    multiply = partial(product, arrays)
    changed = lambda v: jax.jvp(lambda a: product(a, v), (arrays,), (tangents[0],))[1]
    r = tree.sub(b, multiply(found.x))
    outside = changed(inverse(found.x))
    inside = tree.add(tree.sub(tangents[1], changed(found.x)), inverse(changed(r)))
    # A⁺ once for both terms that begin with it.
    x = tree.add(outside, inverse(tree.sub(inside, multiply(outside))))
    still = lambda a: (
        jnp.zeros_like(a)
        if jnp.issubdtype(a.dtype, jnp.inexact)
        else np.zeros(a.shape, jax.dtypes.float0)
    )
    return found, jax.tree.map(still, found)._replace(x=x)


@jax.custom_jvp
def _once(arrays: list[ArrayLike]) -> list[ArrayLike]:
    """The arrays; raises where they are differentiated.

    The transposed derivative of `_differentiable` is JAX's solve, whose own derivative would lack
    the terms of the null space of A.
    """
    return arrays


@_once.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    raise invalid(
        "minres_qlp: its derivative",
        got="a derivative of one in reverse mode",
        expected="derivatives in forward mode, with at most the last in reverse mode",
        remedy="Take jax.jacrev(jax.jacfwd(f)) instead of jax.hessian; of a regular A use minres.",
    )


def least_squares(
    product: Product, b: PyTree, tolerance: Array, cutoff: Array, max_steps: Array
) -> LeastSquares:
    """`minres_qlp` without checks and derivatives, for systems within other algorithms."""
    size = tree.norm(b)
    eps = jnp.finfo(size.dtype).eps
    b = tree.scale(ratio(1.0, size), b)
    # Where b is an eigenvector of 0, T_k knows nothing but rounding errors: what is small must be
    # known from elsewhere. Signs, that no structure of A is likely to annihilate, are long enough.
    signs = tree.random_like(jax.random.key(0), b, jax.random.rademacher)
    norm = ratio(tree.norm(product(signs)), tree.norm(signs))

    def rounding(s: _Search) -> Array:
        return jnp.minimum(10 * eps * s.norm * tree.norm(s.x), eps**0.5)

    def solved(s: _Search) -> Array:
        return tree.norm(s.r) <= tolerance + rounding(s)

    def least(s: _Search) -> Array:
        rest = tree.norm(s.r)
        slack = jnp.minimum(ratio(rounding(s), rest), eps**0.5)
        return s.gradient <= (jnp.maximum(tolerance, cutoff) + slack) * s.norm * rest

    def run(s: _Search) -> _Search:
        first, projects = s.steps == 0, s.projects
        # The errors of both later runs are to leave ‖Ar‖ below the tolerance of least squares.
        right, rest = tree.norm(s.right), tree.norm(s.r)
        part = 0.25 * tolerance * jnp.where(projects, right, jnp.minimum(right, rest))
        noise = eps * s.norm * jnp.where(projects, rest, tree.norm(s.x))
        goal = jnp.where(first, tolerance, jnp.maximum(part, noise))
        # The first run has to notice that b is incompatible before rounding hides it.
        flat = jnp.where(first, eps ** (2 / 3), eps)
        found = _qlp(product, s.right, s.norm, goal, flat, cutoff, max_steps - s.steps)
        x = tree.where(projects, s.x, found.x)
        r = tree.sub(b, product(x))
        ar = product(r)
        gradient = tree.norm(ar)
        better = gradient < s.gradient  # not where it is NaN
        x, r = tree.where(better, (x, r), (s.x, s.r))
        new = _Search(
            x=x,
            r=r,
            gradient=jnp.where(better, gradient, s.gradient),
            right=tree.where(projects, tree.sub(b, tree.sub(s.r, found.x)), ar),
            projects=~projects,
            norm=found.norm,
            condition=jnp.where(projects, s.condition, found.condition),
            steps=s.steps + found.steps,
            active=projects | (gradient <= 0.5 * s.gradient),
        )
        return new._replace(active=new.active & (projects | ~(solved(new) | least(new))))

    zero, none = tree.scale(0.0, b), jnp.zeros_like(size)
    search = _Search(
        x=zero,
        r=b,
        gradient=jnp.where(size == 0, none, jnp.inf),
        right=b,
        projects=jnp.array(False),
        norm=norm,
        condition=none + 1,
        steps=jnp.zeros((), jnp.int32),
        active=size > 0,
    )
    s = lax.while_loop(lambda s: s.active & (s.steps < max_steps), run, search)
    compatible = solved(s)
    rest = tree.norm(s.r)
    return LeastSquares(
        tree.scale(size, s.x),
        rest,
        ratio(s.gradient, s.norm * rest),
        s.norm,
        s.condition,
        s.steps,
        compatible | least(s),
        compatible,
    )


class _Search(NamedTuple):
    """Where `minres_qlp` is between its runs; b has length 1."""

    x: PyTree
    r: PyTree  # b - Ax
    gradient: Array  # ‖Ar‖, infinite before the first run
    right: PyTree  # the right-hand side of the next run: b, Ar or b - (r - w)
    projects: Array  # whether that is Ar
    norm: Array
    condition: Array
    steps: Array
    active: Array


class _Run(NamedTuple):
    """What one run of MINRES-QLP found."""

    x: PyTree
    norm: Array
    condition: Array
    steps: Array


class _Qlp(NamedTuple):
    """Between steps k - 1 and k. The last two columns of V_k P_k change; `x` has those before.

    T_k = Q_kᵀ (R_k; 0) and R_k P_k = L_k, lower triangular with three diagonals: row i has eta_i,
    theta_i, gamma_i. L_k u = t, the tau of which are t; x_k = V_k P_k u, the mu of which are u.
    Superscripts of the paper count how often an entry was changed; here they follow the name.
    """

    x: PyTree  # x_{k-3}, without the last two columns
    v_old: PyTree
    v: PyTree
    w2: PyTree  # of columns k-2 and k-1
    w1: PyTree
    beta: Array
    c: Array
    s: Array
    delta1: Array
    epsilon: Array
    phi: Array  # ‖r_{k-1}‖
    gamma5: Array  # of row k-2
    gamma4: Array  # of row k-1
    theta_last: Array  # of rows k-2 and k-1
    theta: Array
    eta2: Array
    eta1: Array
    tau2: Array
    tau1: Array
    mu4: Array  # of columns k-4 and k-3, which are final
    mu3: Array
    mu2: Array  # of columns k-2 and k-1
    mu1: Array
    norm: Array
    final: Array  # the smallest gamma of the rows that are final
    every: Array  # the smallest gamma seen so far
    smallest: Array  # the smallest of all rows, but one that is dropped
    done: Array
    k: Array


def _qlp(
    product: Product,
    b: PyTree,
    norm: Array,
    goal: Array,
    flat: Array,
    cutoff: ArrayLike,
    max_steps: Array,
) -> _Run:
    """The shortest x with ‖b - Ax‖ ≤ goal; or that of least squares once ‖Ar‖ ≤ flat·‖A‖‖r‖."""
    zero = tree.scale(0.0, b)
    phi = tree.norm(b)
    none = jnp.zeros_like(phi)

    def step(a: _Qlp) -> _Qlp:
        alpha, beta, v_new, _ = lanczos_step(product, lambda r: r, a.v_old, a.v, a.v, a.beta)
        norm = jnp.maximum(a.norm, jnp.hypot(jnp.hypot(a.beta, alpha), beta))
        # From the left, as in MINRES.
        delta2, gamma1 = a.c * a.delta1 + a.s * alpha, a.s * a.delta1 - a.c * alpha
        epsilon, delta1 = a.s * beta, -a.c * beta
        c, s, gamma2 = reflection(gamma1, beta)
        # From the right: columns k-2 and k, then k-1 and k.
        c2, s2, gamma6 = reflection(a.gamma5, a.epsilon)
        theta_last, delta3 = c2 * a.theta + s2 * delta2, s2 * a.theta - c2 * delta2
        eta, gamma3 = s2 * gamma2, -c2 * gamma2
        c3, s3, gamma5 = reflection(a.gamma4, delta3)
        theta, gamma4 = s3 * gamma3, -c3 * gamma3
        w3, w = reflected(c2, s2, a.w2, a.v)
        w2, w1 = reflected(c3, s3, a.w1, w)
        # Forward substitution in the last three rows of L u = t.
        mu3 = ratio(a.tau2 - a.eta2 * a.mu4 - a.theta_last * a.mu3, gamma6)
        mu2 = ratio(a.tau1 - a.eta1 * a.mu3 - theta_last * mu3, gamma5)
        mu1 = ratio(c * a.phi - eta * mu3 - theta * mu2, gamma4)
        # The last column of L is gamma4 alone: w1 is the vector that A shrinks to that.
        singular = jnp.abs(gamma4) <= cutoff * norm
        solved = (s * a.phi <= goal) & ~singular
        least = jnp.hypot(gamma1, delta1) <= flat * norm  # ‖Ar_{k-1}‖/‖r_{k-1}‖
        dropped = singular | (least & ~solved)
        final = jnp.where(a.k >= 2, jnp.minimum(a.final, gamma6), a.final)
        smallest = jnp.where(a.k >= 1, jnp.minimum(final, gamma5), final)
        every = jnp.minimum(a.every, jnp.minimum(smallest, jnp.abs(gamma4)))
        smallest = jnp.where(dropped, smallest, every)
        return _Qlp(
            x=tree.axpy(mu3, w3, a.x),
            v_old=a.v,
            v=v_new,
            w2=w2,
            w1=w1,
            beta=beta,
            c=c,
            s=s,
            delta1=delta1,
            epsilon=epsilon,
            phi=s * a.phi,
            gamma5=gamma5,
            gamma4=gamma4,
            theta_last=theta_last,
            theta=theta,
            eta2=a.eta1,
            eta1=eta,
            tau2=a.tau1,
            tau1=c * a.phi,
            mu4=a.mu3,
            mu3=mu3,
            mu2=mu2,
            mu1=jnp.where(dropped, 0.0, mu1),
            norm=norm,
            final=final,
            every=every,
            smallest=smallest,
            done=solved | dropped | ~jnp.isfinite(beta),
            k=a.k + 1,
        )

    vectors = zero, zero, tree.scale(ratio(1.0, phi), b), zero, zero
    scalars = dict.fromkeys(_Qlp._fields[5:], none)
    scalars |= {"c": none - 1, "phi": phi, "norm": norm, "k": jnp.zeros((), jnp.int32)}
    scalars |= {
        "final": none + jnp.inf,
        "every": none + jnp.inf,
        "smallest": none + jnp.inf,
        "done": phi <= goal,
    }
    a = lax.while_loop(lambda a: ~a.done & (a.k < max_steps), step, _Qlp(*vectors, **scalars))
    x = tree.axpy(a.mu1, a.w1, tree.axpy(a.mu2, a.w2, a.x))
    return _Run(x, a.norm, jnp.maximum(1.0, a.norm / a.smallest), a.k)
