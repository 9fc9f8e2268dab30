"""Symmetric systems that may be indefinite or singular: MINRES and MINRES-QLP.

Both run Lanczos on A and b, A V_k = V_{k+1} T_k, and reduce the tridiagonal T_k by reflections from
the left, one new column at a step; MINRES-QLP reduces it from the right as well, which shows where
T_k is singular. Lanczos vectors are not kept: the memory is that of a few vectors like b.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, PyTree

from jaxnn import tree
from jaxnn.errors import require_between
from jaxnn.linalg.krylov import Iterate
from jaxnn.types import Array, ArrayLike

_Product = Callable[[PyTree], PyTree]


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


def minres(
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    preconditioner: Callable[[PyTree], PyTree] = lambda r: r,
    shift: ArrayLike = 0.0,
    start: PyTree | None = None,
    tolerance: ArrayLike = 1e-5,
    max_steps: int | Array = 1000,
) -> Iterate:
    """The solution of (A - shift·I)x = b for a symmetric A, definite or not, by minimal residuals.

        x_k = argmin ‖b - (A - shift·I)x‖  over x in start + span{r, Ar, ..., A^{k-1} r}

    `matvec` is v ↦ Av on arrays or pytrees like b, `preconditioner` r ↦ M⁻¹r for a symmetric
    positive definite M; with one, the norm that x_k minimizes is that of M⁻¹. From `start`, zeros
    unless given, until ‖b - (A - shift·I)x‖ ≤ tolerance·‖b‖. The residual returned is computed from
    x: where that of the recursion was too good, the recursion starts again from x as long as that
    at least halves the residual. A singular A that b is not in the range of ends unconverged:
    `minres_qlp` is for those.

    Errors: a tolerance that is not in (0, 1).

    Source: Paige & Saunders (1975), section 6.

    >>> found = minres(lambda v: jnp.array([2.0, -4.0]) * v, jnp.array([1.0, 1.0]))
    >>> found.x.round(4), bool(found.converged)
    (Array([ 0.5 , -0.25], dtype=float32), True)
    """
    _require_tolerance("minres", tolerance)
    product = _shifted(matvec, shift)
    size = tree.norm(b)
    goal = jnp.asarray(tolerance, size.dtype) * size
    x = tree.scale(0.0, b) if start is None else start
    r = b if start is None else tree.sub(b, product(x))

    def unfinished(state):
        _, r, steps, progress = state
        return progress & (tree.norm(r) > goal) & (steps < max_steps)

    def run(state):
        x, r, steps, _ = state
        old = tree.norm(r)
        unit = tree.scale(_ratio(1.0, old), r)
        change, more = _minimal_residual(
            product, preconditioner, unit, _ratio(goal, old), max_steps - steps
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


def minres_qlp(
    matvec: Callable[[PyTree], PyTree],
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

    Errors: a tolerance that is not in (0, 1), a max_condition below 1 or a max_steps below 1.

    Source: Choi, Paige & Saunders (2011), sections 3-5; Choi & Saunders (2014).

    >>> found = minres_qlp(lambda v: jnp.array([2.0, -4.0, 0.0]) * v, jnp.array([1.0, 1.0, 1.0]))
    >>> found.x.round(4), bool(found.converged), bool(found.compatible)
    (Array([ 0.5 , -0.25,  0.  ], dtype=float32), True, False)
    """
    _require_tolerance("minres_qlp", tolerance)
    remedy = "It bounds ‖A‖‖A⁺‖ from above."
    require_between("minres_qlp(max_condition)", max_condition, 1.0, jnp.inf, remedy=remedy)
    remedy = "Each step is one product with A."
    require_between("minres_qlp(max_steps)", max_steps, 1.0, jnp.inf, remedy=remedy)
    product = _shifted(matvec, shift)
    size = tree.norm(b)
    eps = jnp.finfo(size.dtype).eps
    tolerance = jnp.asarray(tolerance, size.dtype)
    cutoff = 50 * eps if max_condition is None else 1 / jnp.asarray(max_condition, size.dtype)
    b = tree.scale(_ratio(1.0, size), b)
    # Where b is an eigenvector of 0, T_k knows nothing but rounding errors: what is small must be
    # known from elsewhere. Signs, that no structure of A is likely to annihilate, are long enough.
    signs = tree.random_like(jax.random.key(0), b, jax.random.rademacher)
    norm = _ratio(tree.norm(product(signs)), tree.norm(signs))

    def rounding(s: _Search) -> Array:
        return jnp.minimum(10 * eps * s.norm * tree.norm(s.x), eps**0.5)

    def solved(s: _Search) -> Array:
        return tree.norm(s.r) <= tolerance + rounding(s)

    def least(s: _Search) -> Array:
        rest = tree.norm(s.r)
        slack = jnp.minimum(_ratio(rounding(s), rest), eps**0.5)
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
        _ratio(s.gradient, s.norm * rest),
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


def _minimal_residual(
    product: _Product, preconditioner: _Product, b: PyTree, goal: Array, max_steps: Array
) -> tuple[PyTree, Array]:
    """x_k and k: MINRES from 0, until ‖b - Ax_k‖ ≤ goal or Ar_k is nothing but rounding."""
    zero = tree.scale(0.0, b)
    v = preconditioner(b)
    phi = _length(b, v)
    z, v = (tree.scale(_ratio(1.0, phi), u) for u in (b, v))
    none = jnp.zeros_like(phi)
    eps = jnp.finfo(phi.dtype).eps

    def unfinished(state):
        _, r, *_, stalled, k = state
        return ~stalled & (tree.norm(r) > goal) & (k < max_steps)

    def step(state):
        x, r, z_old, z, v, w_old, w, beta, c, s, delta1, epsilon, phi, norm, _, k = state
        alpha, beta_new, z_new, v_new = _lanczos(product, preconditioner, z_old, z, v, beta)
        norm = jnp.maximum(norm, jnp.hypot(jnp.hypot(beta, alpha), beta_new))
        # The new column (beta, alpha, beta_new) of T, by the last reflection and by the next.
        delta2, gamma1 = c * delta1 + s * alpha, s * delta1 - c * alpha
        epsilon_new, delta1_new = s * beta_new, -c * beta_new
        stalled = jnp.hypot(gamma1, delta1_new) <= 10 * eps * norm  # ‖Ar_{k-1}‖/‖r_{k-1}‖
        c, s, gamma2 = _reflection(gamma1, beta_new)
        w_new = tree.axpy(-delta2, w, tree.axpy(-epsilon, w_old, v))
        w_new = tree.scale(_ratio(1.0, gamma2), w_new)
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
    product: _Product,
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
        alpha, beta, v_new, _ = _lanczos(product, lambda r: r, a.v_old, a.v, a.v, a.beta)
        norm = jnp.maximum(a.norm, jnp.hypot(jnp.hypot(a.beta, alpha), beta))
        # From the left, as in MINRES.
        delta2, gamma1 = a.c * a.delta1 + a.s * alpha, a.s * a.delta1 - a.c * alpha
        epsilon, delta1 = a.s * beta, -a.c * beta
        c, s, gamma2 = _reflection(gamma1, beta)
        # From the right: columns k-2 and k, then k-1 and k.
        c2, s2, gamma6 = _reflection(a.gamma5, a.epsilon)
        theta_last, delta3 = c2 * a.theta + s2 * delta2, s2 * a.theta - c2 * delta2
        eta, gamma3 = s2 * gamma2, -c2 * gamma2
        c3, s3, gamma5 = _reflection(a.gamma4, delta3)
        theta, gamma4 = s3 * gamma3, -c3 * gamma3
        w3, w = _reflected(c2, s2, a.w2, a.v)
        w2, w1 = _reflected(c3, s3, a.w1, w)
        # Forward substitution in the last three rows of L u = t.
        mu3 = _ratio(a.tau2 - a.eta2 * a.mu4 - a.theta_last * a.mu3, gamma6)
        mu2 = _ratio(a.tau1 - a.eta1 * a.mu3 - theta_last * mu3, gamma5)
        mu1 = _ratio(c * a.phi - eta * mu3 - theta * mu2, gamma4)
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

    vectors = zero, zero, tree.scale(_ratio(1.0, phi), b), zero, zero
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


def _lanczos(
    product: _Product,
    preconditioner: _Product,
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
    beta = _length(p, q)
    return alpha, beta, tree.scale(_ratio(1.0, beta), p), tree.scale(_ratio(1.0, beta), q)


def _reflection(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """c, s and h ≥ 0 with [[c, s], [s, -c]] (a, b) = (h, 0)."""
    h = jnp.hypot(a, b)
    return jnp.where(h > 0, _ratio(a, h), 1.0), _ratio(b, h), h


def _reflected(c: Array, s: Array, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """(x, y) times that matrix."""
    return tree.axpy(s, y, tree.scale(c, x)), tree.axpy(-c, y, tree.scale(s, x))


def _ratio(a: ArrayLike, b: Array) -> Array:
    """a/b, and 0 where b is: of an exhausted space nothing more is taken."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def _length(p: PyTree, q: PyTree) -> Array:
    """√⟨p, q⟩, also where the squares of what is small would be rounded to 0."""
    largest = tree.largest_entry(p)
    product = tree.dot(tree.scale(_ratio(1.0, largest), p), q)
    return jnp.sqrt(largest) * jnp.sqrt(jnp.maximum(product, 0.0))


def _shifted(matvec: _Product, shift: ArrayLike) -> _Product:
    return lambda v: tree.axpy(-jnp.asarray(shift), v, matvec(v))


def _require_tolerance(function: str, tolerance: ArrayLike) -> None:
    remedy = "It is relative to ‖b‖."
    name = f"{function}(tolerance)"
    require_between(name, tolerance, 0.0, 1.0, low_open=True, remedy=remedy)
