"""Paths of low loss between two networks: the curve that training bends around the barrier."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from jaxnn import tree
from jaxnn.curvature.landscape import require_alike
from jaxnn.errors import invalid, require_optimizer, takes_keywords
from jaxnn.linalg.derivatives import require_objective
from jaxnn.precision import inexact
from jaxnn.types import Array, ArrayLike, Key, Params, PyTree


def bezier(start: Params, bend: Params, end: Params, t: ArrayLike) -> Params:
    """The point φ(t) = (1 - t)² start + 2t(1 - t) bend + t² end of a quadratic Bézier curve.

    t = 0 is the start and t = 1 the end; the curve leaves and arrives in the directions of the
    bend, through which it does not go. With the bend halfway, φ(t) = (1 - t) start + t end.

    Errors: a leaf that is not real floating point, a bend or an end of another structure or other
    shapes than the start, a t that is not one number.

    Source: Garipov et al. (2018), section 3.2.

    >>> bezier(jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]), 0.5)
    Array([1., 1.], dtype=float32)
    """
    tree.require_differentiable("bezier(start)", start)
    _require_point("bezier(bend)", bend, start)
    _require_point("bezier(end)", end, start)
    t = inexact(t)
    if t.ndim != 0:
        raise invalid(
            "bezier(t)",
            got=f"shape {t.shape}",
            expected="one number",
            remedy="Several points of a curve: jax.vmap over t.",
        )
    return tree.axpy(
        t**2, end, tree.axpy(2.0 * t * (1.0 - t), bend, tree.scale((1.0 - t) ** 2, start))
    )


class Connection(NamedTuple):
    """A curve between two networks, and how much higher than its ends the loss is along it.

    bend              what was trained, like the params
    losses            L(φ(t)) at the random t of every step, before the step
    t                 the points of the grid in [0, 1], where the following were measured
    curve             L along the curve
    straight          L along the straight segment
    barrier           max over the grid of L - ((1 - t) L(start) + t L(end)) along the curve, ≥ 0
    straight_barrier  the same along the straight segment
    finite            whether no loss and no coordinate of the bend is NaN or infinite
    """

    bend: Params
    losses: Float[Array, "steps"]
    t: Float[Array, "grid"]
    curve: Float[Array, "grid"]
    straight: Float[Array, "grid"]
    barrier: Float[Array, ""]
    straight_barrier: Float[Array, ""]
    finite: Bool[Array, ""]


def connect(
    objective: Callable[..., Array],
    start: Params,
    end: Params,
    optimizer: Any,
    *args: Any,
    key: Key,
    steps: int,
    bend: Params | None = None,
    points: int = 65,
) -> Connection:
    """Train the bend of a Bézier curve from start to end for a low mean loss along it.

    minimize over θ  E_{t ~ U(0, 1)} L(φ_θ(t)),  φ_θ = `bezier(start, θ, end, ·)`,

    by stochastic gradients: every step draws one t, and hands ∇_θ L(φ_θ(t)), an unbiased estimate
    of the gradient, to the optimizer. L is `objective(params, *args)`; the ends stay as they are.
    `optimizer` has optax's `init` and `update`; an `update` that takes further keywords also gets
    `value`, `grad` and `value_fn` of the step's t.

    The bend begins halfway, which is the straight segment, unless given. Between networks that a
    symmetry maps onto each other this can be a saddle of the mean loss, where no gradient leads
    away: the two barriers are then equal, and a bend beside the middle helps.

    The barriers are those seen at `points` equidistant t, both ends among them.

    Errors: an objective that is no scalar, a start, end or bend that is not real floating point, an
    end or bend unlike the start, an optimizer that is none, steps < 0, fewer than 2 points.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov & Wilson (2018), section 3, equation 2; for the
    barrier Entezari, Sedghi, Saukh & Neyshabur (2022), section 2.

    >>> from jaxnn import optimizers
    >>> ring = lambda w: (jnp.sum(w**2) - 1.0) ** 2
    >>> left, right, key = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0]), jax.random.key(0)
    >>> found = connect(ring, left, right, optimizers.gradient_descent(0.1), key=key, steps=500,
    ...                 bend=jnp.array([0.0, 0.1]))
    >>> bool(found.barrier < 0.1), found.straight_barrier
    (True, Array(1., dtype=float32))
    """
    tree.require_differentiable("connect(start)", start)
    _require_point("connect(end)", end, start)
    bend = bezier(start, tree.scale(0.5, tree.add(start, end)), end, 0.5) if bend is None else bend
    _require_point("connect(bend)", bend, start)
    require_objective("connect(objective)", objective, start, *args, evaluate=False)
    require_optimizer("connect(optimizer)", optimizer)
    for name, value, least in (("steps", steps, 0), ("points", points, 2)):
        if value < least:
            raise invalid(
                f"connect({name})",
                got=value,
                expected=f"an integer ≥ {least}",
                remedy="Both ends are points of the grid, and no step leaves the bend alone.",
            )
    loss = lambda bend, t: objective(bezier(start, bend, end, t), *args)

    def step(state: tuple[Params, PyTree], key: Key) -> tuple[tuple[Params, PyTree], Array]:
        bend, memory = state
        value_fn = partial(loss, t=jax.random.uniform(key))
        value, gradient = jax.value_and_grad(value_fn)(bend)
        told = {"value": value, "grad": gradient, "value_fn": value_fn}
        extra = told if takes_keywords(optimizer.update) else {}
        updates, memory = optimizer.update(gradient, memory, bend, **extra)
        return (tree.add(bend, updates), memory), value

    bend = tree.strong(bend)
    keys = jax.random.split(key, steps)
    (bend, _), losses = lax.scan(step, (bend, tree.strong(optimizer.init(bend))), keys)

    t = jnp.linspace(0.0, 1.0, points)
    curve = lax.map(lambda t: loss(bend, t), t)
    segment = lambda t: tree.axpy(t, end, tree.scale(1.0 - t, start))
    straight = lax.map(lambda t: objective(segment(t), *args), t)
    finite = tree.all_finite((bend, losses, curve, straight))
    return Connection(
        *(bend, losses, t, curve, straight, _barrier(t, curve), _barrier(t, straight), finite)
    )


def _barrier(t: Array, losses: Array) -> Array:
    t = t.astype(losses.dtype)
    return jnp.max(losses - ((1.0 - t) * losses[0] + t * losses[-1]))


def _require_point(argument: str, value: Params, start: Params) -> None:
    require_alike(argument, value, start)
    tree.require_differentiable(argument, value)
