"""What a critical point is, as far as the eigenvalues of its Hessian can be told from 0."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import linalg, tree
from jaxnn.curvature.critical_points import gradient_tolerance
from jaxnn.errors import require_between
from jaxnn.linalg.operators import carried
from jaxnn.linalg.vectors import dot
from jaxnn.minibatches import require_at_least_one
from jaxnn.types import Array, ArrayLike, Key, Params

Kind = Literal["minimum", "maximum", "saddle", "degenerate", "not critical"]

CLEAR = 4
"""An eigenvalue is clear where it is more than so many times its error from 0.

At a root of multiplicity m Newton's step leads 1/m of the way, and an eigenvalue that is 0 at the
root changes by at least half: by more than a quarter, then, it is not clear.
"""


class Inertia(NamedTuple):
    """How many eigenvalues of a Hessian are clearly negative, clearly positive, and neither.

    negative, zero, positive  counts of `eigenvalues`, of which those that are not clear are "zero"
    eigenvalues               ascending: all of them, or those at the two ends
    errors                    each is at most so far from one at the critical point nearby
    tolerance                 no eigenvalue nearer to 0 is clear
    value, gradient_norm      L and ‖∇L‖
    critical                  whether ‖∇L‖ is at most its tolerance
    complete                  whether `eigenvalues` are all; if not, the counts are of those alone,
                              and how much those in between change is not known
    converged                 whether the ends are surely the ends: no Lanczos run was cut short
    """

    negative: Int[Array, "*points"]
    zero: Int[Array, "*points"]
    positive: Int[Array, "*points"]
    eigenvalues: Float[Array, "*points k"]
    errors: Float[Array, "*points k"]
    tolerance: Float[Array, "*points"]
    value: Float[Array, "*points"]
    gradient_norm: Float[Array, "*points"]
    critical: Bool[Array, "*points"]
    complete: Bool[Array, "*points"]
    converged: Bool[Array, "*points"]


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """What a point is, and what shows it.

    kind           "minimum", "maximum": every eigenvalue is clearly positive, clearly negative
                   "saddle": there are some of both
                   "degenerate": neither; without a sign of its own, 0 leaves all three possible
                   "not critical": ∇L is not 0
    index          eigenvalues that are clearly negative
    nullity        eigenvalues that are not clear
    complete       whether `eigenvalues` are all. If not, index and nullity count those alone, and
                   are lower bounds
    index_exact    whether all that are negative beyond the tolerance were seen: all are complete,
                   or the innermost of the lower end is no longer negative
    strict_saddle  whether L has a direction of clearly negative curvature; maxima are of these too
    eigenvalues, errors, tolerance, value, gradient_norm   as in `Inertia`
    """

    kind: Kind
    index: int
    nullity: int
    complete: bool
    index_exact: bool
    strict_saddle: bool
    eigenvalues: Float[np.ndarray, "k"]
    errors: Float[np.ndarray, "k"]
    tolerance: float
    value: float
    gradient_norm: float


class Escape(NamedTuple):
    """A unit vector d like the params with ⟨∇L, d⟩ ≤ 0, its curvature ⟨d, Hd⟩ = λ and ‖Hd - λd‖."""

    direction: Params
    eigenvalue: Float[Array, ""]
    residual: Float[Array, ""]


def classify(
    objective: Callable[..., Array],
    params: Params,
    *args: Any,
    tolerance: ArrayLike | None = None,
    max_gradient_norm: ArrayLike | None = None,
    ends: int = 10,
    products: int = 200,
    key: Key | None = None,
) -> CriticalPoint:
    """What kind of critical point of `objective(params, *args)` the params are, and its index.

    The signs of the eigenvalues of the Hessian decide, where each is clear; where some are not, a
    semidefinite Hessian leaves it open: x²+ y⁴, x² - y⁴ and x² + y³ share theirs at 0. All of this
    is `inertia`, whose arguments these are; it also works inside jit and vmap, and `kinds` has the
    words for its numbers.

    Errors: those of `inertia`.

    >>> classify(lambda p: p[0] ** 2 - p[1] ** 2, jnp.zeros(2)).kind
    'saddle'
    >>> classify(lambda p: p[0] ** 2 + p[1] ** 4, jnp.zeros(2)).kind
    'degenerate'
    """
    found = inertia(
        *(objective, params, *args),
        tolerance=tolerance,
        max_gradient_norm=max_gradient_norm,
        ends=ends,
        products=products,
        key=key,
    )
    inmost = found.eigenvalues[(len(found.eigenvalues) - 1) // 2]
    return CriticalPoint(
        kind=kinds(found).item(),
        index=int(found.negative),
        nullity=int(found.zero),
        complete=bool(found.complete),
        index_exact=bool(found.complete | (found.converged & (inmost >= -found.tolerance))),
        strict_saddle=bool(found.critical & (found.negative > 0)),
        eigenvalues=np.asarray(found.eigenvalues),
        errors=np.asarray(found.errors),
        tolerance=float(found.tolerance),
        value=float(found.value),
        gradient_norm=float(found.gradient_norm),
    )


def kinds(inertia: Inertia) -> np.ndarray:
    """The kind of each point, in the words of `CriticalPoint`: an array of str of their shape.

    >>> points = jnp.array([[0.0, 0.0], [0.0, 1.0]])
    >>> kinds(jax.vmap(lambda p: inertia(lambda p: p[0] ** 2 - p[1] ** 2, p))(points)).tolist()
    ['saddle', 'not critical']
    """
    negative, zero, positive, critical, converged = (
        np.asarray(a)
        for a in (
            *(inertia.negative, inertia.zero, inertia.positive),
            *(inertia.critical, inertia.converged),
        )
    )
    definite = (zero == 0) & converged
    return np.select(
        [
            ~critical,
            (negative > 0) & (positive > 0),
            definite & (negative == 0),
            definite & (positive == 0),
        ],
        ["not critical", "saddle", "minimum", "maximum"],
        "degenerate",
    )


def inertia(
    objective: Callable[..., Array],
    params: Params,
    *args: Any,
    tolerance: ArrayLike | None = None,
    max_gradient_norm: ArrayLike | None = None,
    ends: int = 10,
    products: int = 200,
    key: Key | None = None,
) -> Inertia:
    """The signs of the eigenvalues λ of the Hessian H at `params`, with what they are sure by.

    λ is clear where |λ| is above `tolerance`·‖H‖ and above 4 times its error

        ‖H(θ - H⁺∇L) v - λv‖ + ε√n‖H‖,    H v = λ v to rounding or to the accuracy of Lanczos,

    the residual at the point that Newton's step leads to: it has in it what the error of λ is, and
    how much λ changes on the way to the critical point itself.

    tolerance          by default √ε (3e-4 in float32, 1e-8 in float64): a gradient with a rounding
                       error of ε‖H‖ per unit length tells no simple root from a double one nearer
    max_gradient_norm  up to which ∇L counts as 0; by default ε^⅔, as in `find_critical_point`
    products           a Hessian of no more columns is decomposed; of a larger one `linalg.eigsh`
                       finds as many eigenvalues as `ends` at each of the two ends, and an H⁺∇L of
                       no more products is computed
    key                of Lanczos' random vectors; fixed unless given

    Errors: a tolerance that is not in (0, 1), a max_gradient_norm ≤ 0, ends or products below 1;
    those of `linalg.hessian`.

    Source: Parlett (1998), theorem 4.5.1, for the error; Sylvester (1852) for the name.
    """
    remedy = "It is relative to the largest |λ|."
    require_between("inertia(tolerance)", tolerance, 0.0, 1.0, low_open=True, remedy=remedy)
    require_between(
        *("inertia(max_gradient_norm)", max_gradient_norm, 0.0, float("inf")),
        low_open=True,
        remedy="It is the length of a gradient.",
    )
    for name, number in (("ends", ends), ("products", products)):
        require_at_least_one(f"inertia({name})", number, "More of them see more of the spectrum.")
    linalg.hessian(objective, params, *args)  # which raises for what is no smooth objective
    eps = float(jnp.finfo(linalg.coordinates(params).dtype).eps)
    tolerance = eps**0.5 if tolerance is None else tolerance
    limit = gradient_tolerance(params) if max_gradient_norm is None else max_gradient_norm
    function = carried(objective, params, *args, order=2)
    key = jax.random.key(0) if key is None else key
    return _inertia(function, params, args, tolerance, limit, key, ends, products)


@partial(jax.jit, static_argnames=("ends", "products"))
def _inertia(
    objective: Callable[..., Array],
    params: Params,
    args: tuple,
    tolerance: ArrayLike,
    limit: ArrayLike,
    key: Key,
    ends: int,
    products: int,
) -> Inertia:
    flat = linalg.coordinates(params)
    n, eps = flat.size, jnp.finfo(flat.dtype).eps
    function = lambda x: objective(flat.unravel(x), *args).astype(flat.dtype)
    hessian_at = lambda x: linalg.hessian(function, x, check=False)
    x = flat.ravel(params)
    value, g = jax.value_and_grad(function)(x)
    relative = jnp.asarray(tolerance, flat.dtype)
    if linalg.storage(n, products) == "matrix":
        matrix = hessian_at(x).to_dense()
        values, columns = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        vectors, converged = columns.T, jnp.array(True)
        norm = jnp.max(jnp.abs(values))
        inverted = jnp.abs(values) > relative * norm
        parts = jnp.where(inverted, dot(vectors, g) / jnp.where(inverted, values, 1), 0)
        images = dot(vectors, hessian_at(x - dot(parts, vectors)).to_dense())
    else:
        pairs = linalg.eigsh(hessian_at(x), min(2 * ends, n), which="both", key=key)
        values, vectors, converged = pairs.values[::-1], pairs.vectors[::-1], pairs.converged
        norm = jnp.max(jnp.abs(values))
        product = linalg.prepared(hessian_at(x))
        newton = linalg.minres_qlp(product, g, max_condition=1 / relative, max_steps=products).x
        images = lax.map(linalg.prepared(hessian_at(x - newton)), vectors)
    errors = jax.vmap(tree.norm)(images - values[:, None] * vectors) + eps * n**0.5 * norm
    clear = jnp.abs(values) > jnp.maximum(relative * norm, CLEAR * errors)
    count = lambda which: jnp.sum(which, dtype=jnp.int32)
    size = tree.norm(g)
    return Inertia(
        negative=count(clear & (values < 0)),
        zero=count(~clear),
        positive=count(clear & (values > 0)),
        eigenvalues=values,
        errors=errors,
        tolerance=relative * norm,
        value=value,
        gradient_norm=size,
        critical=size <= limit,
        complete=converged & (len(values) == n),
        converged=converged,
    )


def escape_direction(
    objective: Callable[..., Array], params: Params, *args: Any, key: Key | None = None
) -> Escape:
    """The unit vector along which `objective(params, *args)` curves down most, pointing downhill.

    d is the eigenvector of the smallest eigenvalue λ of the Hessian; ⟨∇L, d⟩ ≤ 0. Where λ < 0 and
    ∇L = 0, L(θ + t d) = L(θ) + ½λt² + O(t³) falls both ways: a strict saddle is left along d.

    Errors: those of `linalg.hessian`.

    >>> found = escape_direction(lambda p: p[0] ** 2 - p[1] ** 2 + p[1], jnp.zeros(2))
    >>> found.direction + 0.0, found.eigenvalue
    (Array([ 0., -1.], dtype=float32), Array(-2., dtype=float32))
    """
    operator = linalg.hessian(objective, params, *args)
    key = jax.random.key(0) if key is None else key
    pairs = linalg.eigsh(operator, 1, which="smallest", key=key)
    d = jax.tree.map(lambda leaf: leaf[0], pairs.vectors)
    uphill = tree.dot(jax.grad(objective)(params, *args), d) > 0
    d = tree.scale(jnp.where(uphill, -1, 1), d)
    return Escape(d, pairs.values[0], pairs.residuals[0])
