"""Where the gradient of an objective is 0: minima, maxima and saddles alike."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import linalg, tree
from jaxnn.curvature import newton_steps
from jaxnn.errors import invalid, require_between
from jaxnn.linalg.operators import carried
from jaxnn.minibatches import require_at_least_one
from jaxnn.types import Array, ArrayLike, Params

Method = Literal["newton", "gradient_norm", "saddle_free"]

FLAT = 1e-2
"""The share of ‖∇L‖ that a step from a gradient-flat point would lower it by, to first order."""

SLOW, PATIENCE = 1e-3, 10
"""A search at a gradient-flat point ends after so many steps that lowered ‖∇L‖ by less a share."""

ACCEPTED, POOR, GOOD = 1e-4, 0.25, 0.75
"""Actual by predicted decrease: from which on a step is made, the radius shrinks, may grow."""


class Search(NamedTuple):
    """Where a search for a critical point ended.

    value, gradient_norm   L and ‖∇L‖ at `params`
    flatness               ‖Hg‖ℓ/‖g‖² for g = ∇L and ℓ the largest of 1, the ‖θ‖ of the first params
                           and both the first and the last radius: the relative decrease of ‖∇L‖ by
                           the best step so long, to first order. It grows without bound towards a
                           critical point, and is infinite where g = 0
    steps                  Hessians computed
    converged              whether ‖∇L‖ is at most the tolerance, at no gradient-flat point
    gradient_flat          whether flatness is at most 1 %: no critical point, but a place where
                           ‖∇L‖ is least among its neighbors or nearly so
    stuck                  whether it ended unconverged as no step would have changed the params:
                           the radius is at most ε‖θ‖, or L or ∇L is not finite at the start
    gradient_norms         ‖∇L‖ before each step and at the end, and again that from there on
    """

    params: Params
    value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    flatness: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    gradient_flat: Bool[Array, ""]
    stuck: Bool[Array, ""]
    gradient_norms: Float[Array, "max_steps+1"]


def find_critical_point(
    objective: Callable[..., Array],
    params: Params,
    *args: Any,
    method: Method = "newton",
    tolerance: ArrayLike | None = None,
    max_steps: int = 200,
    radius: ArrayLike | None = None,
    products: int = 200,
) -> Search:
    """A critical point of `objective(params, *args)`, ∇L = 0, found from `params`.

    method     "newton": s = -H⁺∇L, or the next one's step where that is longer than a radius Δ
               "gradient_norm": s = -(H² + λI)⁻¹H∇L, least squares; it converges fast also where
               critical points are not isolated
               "saddle_free": s = -(|H| + λI)⁻¹∇L, downhill, which leaves saddles for minima
    tolerance  of ‖∇L‖; by default ε^⅔ (2e-5 in float32, 4e-11 in float64)
    radius     Δ at first, in units of the params; by default max(1, ‖θ‖) for the params θ. Params
               much smaller than 1 are better rescaled: flatness is judged over no shorter a length
    products   a Hessian of no more columns is stored (`linalg.storage`) and decomposed; of a larger
               one only products are computed, for each linear system no more than so many beside
               those that check, or 2. A step of "newton" solves one system or, where Newton's step
               is too long, two; the others solve one

    A step is made where the merit falls by a share of what its model predicts: ½‖∇L‖² for the first
    two methods, L for the third (where L is too coarse to tell, ½‖∇L‖²); the radius follows how
    well the model predicts. A merit ½‖∇L‖² has minima of its own, where H∇L = 0 although ∇L is not:
    `gradient_flat` tells them, and there converged is False. For use inside jit, and inside vmap
    over many starts, which then all take as many steps as the longest search.

    Errors: a method that is none, a tolerance or radius ≤ 0, max_steps or products below 1; those
    of `linalg.hessian`.

    Source: Frye et al. (2021), sections 2 and 4, for the methods and gradient-flat points; Conn,
    Gould & Toint (2000), algorithm 6.1.1, for the radius.

    >>> L = lambda p: p["x"] ** 3 / 3 - p["x"] + p["y"] ** 2
    >>> found = find_critical_point(L, {"x": jnp.array(-2.0), "y": jnp.array(1.0)})
    >>> round(float(found.params["x"]), 5), bool(found.converged)
    (-1.0, True)
    """
    if method not in STEPS:
        raise invalid(
            "find_critical_point(method)",
            got=repr(method),
            expected=f"one of {', '.join(map(repr, STEPS))}",
            remedy="'saddle_free' seeks minima, the others any critical point.",
        )
    for name, number in (("max_steps", max_steps), ("products", products)):
        require_at_least_one(f"find_critical_point({name})", number, "It limits the work.")
    for name, value in (("tolerance", tolerance), ("radius", radius)):
        if value is not None:
            remedy = "It is the length of a gradient, or of a step."
            where = f"find_critical_point({name})"
            require_between(where, value, 0.0, float("inf"), low_open=True, remedy=remedy)
    linalg.hessian(objective, params, *args)  # which raises for what is no smooth objective
    tolerance = gradient_tolerance(params) if tolerance is None else tolerance
    function = carried(objective, params, *args, order=2)
    return _search(function, params, args, tolerance, radius, method, max_steps, products)


STEPS: dict[str, Callable[..., newton_steps.Step]] = {
    name: getattr(newton_steps, name) for name in get_args(Method)
}


def gradient_tolerance(params: Params) -> float:
    """ε^⅔ for the dtype of the params: the ‖∇L‖ up to which a point counts as critical.

    Gradients of size 1 before their terms cancel have rounding errors of ε; a ⅔ of the digits
    leaves room for larger ones.

    >>> f"{gradient_tolerance(jnp.ones(2)):.0e}"
    '2e-05'
    """
    return float(jnp.finfo(linalg.coordinates(params).dtype).eps) ** (2 / 3)


class _Place(NamedTuple):
    """Where the search stands, and what it knows of that place.

    relative_slope  ‖∇‖∇L‖‖/‖∇L‖ = ‖Hg‖/‖g‖²
    slow            how many steps there have been since one lowered ‖∇L‖ noticeably
    """

    x: Array
    value: Array
    g: Array
    size: Array
    relative_slope: Array
    radius: Array
    steps: Array
    slow: Array
    sizes: Array


@partial(jax.jit, static_argnames=("method", "max_steps", "products"))
def _search(
    objective: Callable[..., Array],
    params: Params,
    args: tuple,
    tolerance: ArrayLike,
    radius: ArrayLike | None,
    method: Method,
    max_steps: int,
    products: int,
) -> Search:
    flat = linalg.coordinates(params)
    x = flat.ravel(params)
    length = jnp.maximum(1, tree.norm(x))
    radius = length if radius is None else jnp.asarray(radius, flat.dtype)
    length, tolerance = jnp.maximum(length, radius), jnp.asarray(tolerance, flat.dtype)
    eps = jnp.finfo(flat.dtype).eps
    function = lambda x: objective(flat.unravel(x), *args).astype(flat.dtype)
    value_and_gradient = jax.value_and_grad(function)

    def hessian_at(x: Array, unit: Array) -> newton_steps.Hessian:
        operator = (1 / unit) * linalg.hessian(function, x, check=False)
        if linalg.storage(flat.size, products) == "matrix":
            matrix = operator.to_dense()
            return newton_steps.decomposed(0.5 * (matrix + matrix.T))
        return newton_steps.iterated(operator, products)

    def visited(x: Array) -> tuple[Array, Array, Array, Array]:
        """L, g, ‖g‖ and ‖Hg‖/‖g‖², by the product with g/‖g‖, which cannot overflow."""
        value, g = value_and_gradient(x)
        size = tree.norm(g)
        unit = jnp.where(size == 0, 1, size)
        slope = linalg.hessian(function, x, check=False) @ (g / unit)
        return value, g, size, jnp.where(size == 0, jnp.inf, tree.norm(slope) / unit)

    def step(at: _Place) -> _Place:
        # With ‖∇L‖ as the unit of L: squares, of H too, neither vanish nor overflow.
        s, predicted = STEPS[method](hessian_at(at.x, at.size), at.g / at.size, at.radius)
        x = at.x + s
        value, g, size, relative_slope = visited(x)
        share = (at.size - size) / at.size
        halves = 0.5 * share * (2 - share)
        if method == "saddle_free":
            coarse = predicted <= 100 * eps * jnp.abs(at.value) / at.size
            actual = jnp.where(coarse, halves, (at.value - value) / at.size)
            predicted = jnp.where(coarse, 0.5, predicted)
        else:
            actual = halves
        quality = jnp.where(jnp.isfinite(value + size) & (predicted > 0), actual / predicted, -1)
        made, moved = quality >= ACCEPTED, tree.norm(s)
        smaller, larger = 0.25 * jnp.minimum(moved, at.radius), jnp.maximum(at.radius, 2 * moved)
        radius = jnp.where(quality < POOR, smaller, jnp.where(quality > GOOD, larger, at.radius))
        new, old = (x, value, g, size, relative_slope), at[:5]
        x, value, g, size, relative_slope = (
            jnp.where(made, a, b) for a, b in zip(new, old, strict=True)
        )
        slow = jnp.where(size > (1 - SLOW) * at.size, at.slow + 1, 0)
        sizes = at.sizes.at[at.steps + 1].set(size)
        return _Place(x, value, g, size, relative_slope, radius, at.steps + 1, slow, sizes)

    def flatness(at: _Place) -> Array:
        return at.relative_slope * jnp.maximum(length, at.radius)

    def stuck(at: _Place) -> Array:
        # A step that x + s = x rounds away, or a start that is no number: nothing would change.
        return ~(at.radius > eps * tree.norm(at.x)) | ~jnp.isfinite(at.value + at.size)

    def unfinished(at: _Place) -> Array:
        flat_here = (at.slow >= PATIENCE) & (flatness(at) <= FLAT)
        return (at.size > tolerance) & (at.steps < max_steps) & ~stuck(at) & ~flat_here

    value, g, size, relative_slope = visited(x)
    sizes = jnp.full(max_steps + 1, size)
    none = jnp.zeros((), jnp.int32)
    start = _Place(x, value, g, size, relative_slope, radius, none, none, sizes)
    end = lax.while_loop(unfinished, step, start)
    gradient_flat = flatness(end) <= FLAT
    places = jnp.arange(max_steps + 1, dtype=jnp.int32)
    return Search(
        params=flat.unravel(end.x),
        value=end.value,
        gradient_norm=end.size,
        flatness=flatness(end),
        steps=end.steps,
        converged=(end.size <= tolerance) & ~gradient_flat,
        gradient_flat=gradient_flat,
        stuck=stuck(end) & ~(end.size <= tolerance),
        gradient_norms=jnp.where(places <= end.steps, end.sizes, end.size),
    )
