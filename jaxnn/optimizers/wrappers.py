"""What is put around an optimizer: clipped, noisy or masked gradients.

A wrapper takes an optimizer, jaxnn's or optax's, and returns one. The outermost acts first:
clipped(noisy(adam(1e-3), ...), norm=1.0) clips the gradient and then adds the noise.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxnn import tree
from jaxnn.errors import invalid, require_between, takes_keywords
from jaxnn.optimizers.equations import Optimizer
from jaxnn.types import Array, ArrayLike, Key, Params, PyTree, Schedule


def clipped(
    optimizer: Any, *, norm: ArrayLike | None = None, value: ArrayLike | None = None
) -> Optimizer:
    """The optimizer on gradients of bounded length, or of bounded coordinates.

        norm:  g ← g·min(1, norm/‖g‖₂),  ‖g‖₂ over all leaves together
        value: g_i ← max(-value, min(g_i, value))

    A gradient that is not finite stays so: it is not made to look harmless; one of which ‖g‖₂, or
    norm/‖g‖₂, is beyond the range of its dtype becomes NaN. It is the gradient that is bounded, and
    not the step of an optimizer that multiplies it by an inverse curvature.

    Errors: not exactly one of norm and value, a bound ≤ 0.

    Source: Pascanu, Mikolov & Bengio (2013), algorithm 1.

    >>> from jaxnn.optimizers import gradient_descent
    >>> optimizer = clipped(gradient_descent(1.0), norm=1.0)
    >>> grads = jnp.array([3.0, 4.0])
    >>> optimizer.update(grads, optimizer.init(grads))[0]
    Array([-0.6, -0.8], dtype=float32)
    """
    if (norm is None) == (value is None):
        raise invalid(
            "clipped(norm, value)",
            got=f"norm={norm}, value={value}",
            expected="exactly one of them",
            remedy="norm=1.0 keeps the gradient's direction; wrap twice for both.",
        )
    name, limit = ("norm", norm) if value is None else ("value", value)
    require_between(
        f"clipped({name})", limit, 0.0, math.inf, low_open=True, remedy="It is a positive bound."
    )

    def clip(grads: PyTree) -> PyTree:
        if name == "value":
            bounds = lambda g: jnp.asarray(limit, jnp.result_type(g))
            return jax.tree.map(lambda g: jnp.clip(g, -bounds(g), bounds(g)), grads)
        return _scaled_to(jnp.asarray(limit), grads)

    def update(grads: PyTree, state: PyTree, params: Params = None, **extra: Any) -> Any:
        return optimizer.update(clip(grads), state, params, **extra)

    return _with(optimizer, optimizer.init, update)


class NoisyState(NamedTuple):
    """t: steps made; key: of the noise; optimizer: the wrapped optimizer's state."""

    t: Int[Array, ""]
    key: Key
    optimizer: PyTree


def noisy(optimizer: Any, key: Key, std: ArrayLike | Schedule) -> Optimizer:
    """The optimizer on gradients with Gaussian noise, g ← g + N(0, σ_t²) in every coordinate.

    `std` is σ, or a schedule step ↦ σ_t of which the first step is 0; annealed noise is
    `lambda t: sigma / (1.0 + t.astype(float)) ** 0.275` (Neelakantan et al. 2015, with γ = 0.55).
    The noise of step t depends on `key` and t alone.

    Errors: a negative std.

    Source: Neelakantan, Vilnis, Le et al. (2015), equation 1.

    >>> from jaxnn.optimizers import gradient_descent
    >>> optimizer = noisy(gradient_descent(1.0), jax.random.key(0), 0.1)
    >>> grads = jnp.zeros(4)
    >>> state = optimizer.init(grads)
    >>> bool(jnp.all(optimizer.update(grads, state)[0] != 0.0))
    True
    """
    if not callable(std):
        require_between("noisy(std)", std, 0.0, math.inf, remedy="It is a standard deviation.")

    def init(params: Params) -> NoisyState:
        return NoisyState(jnp.zeros((), jnp.int32), key, optimizer.init(params))

    def update(grads: PyTree, state: NoisyState, params: Params = None, **extra: Any) -> Any:
        sigma = std(state.t) if callable(std) else std
        noise = tree.random_like(jax.random.fold_in(state.key, state.t), grads)
        grads = tree.axpy(sigma, noise, grads)
        updates, inner = optimizer.update(grads, state.optimizer, params, **extra)
        return updates, NoisyState(state.t + 1, state.key, inner)

    return _with(optimizer, init, update)


def masked(optimizer: Any, mask: PyTree) -> Optimizer:
    """The optimizer on the coordinates in a mask: gradients and updates of the others are 0.

    `mask` is a tree of Boolean arrays like the parameters, or a prefix of that tree: a bare False
    freezes all that is below it. A parameter outside keeps its value, also under weight decay.
    An optimizer that is told more of the objective, `grad` and `value_fn`, is told of its
    restriction to the coordinates in the mask: a Newton step is one in them alone.

    Errors: a mask that does not fit the gradients.

    >>> from jaxnn.optimizers import gradient_descent
    >>> optimizer = masked(gradient_descent(1.0), jnp.array([True, False]))
    >>> grads = jnp.array([2.0, 2.0])
    >>> optimizer.update(grads, optimizer.init(grads))[0]
    Array([-2.,  0.], dtype=float32)
    """

    def inside(x: PyTree, outside: PyTree) -> PyTree:
        """`x` in the mask, `outside` elsewhere."""
        try:
            whole = jax.tree.broadcast(mask, x)
        except ValueError as error:
            raise invalid(
                "masked(mask)",
                got=jax.tree.structure(mask),
                expected=f"a prefix of {jax.tree.structure(x)}",
                remedy="Build it from the params by jax.tree.map.",
            ) from error

        def select(keep: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
            if jnp.shape(keep) not in ((), jnp.shape(a)):
                raise invalid(
                    "masked(mask)",
                    got=f"a leaf of shape {jnp.shape(keep)}",
                    expected=f"shape {jnp.shape(a)}, or ()",
                    remedy="Build it from the params by jax.tree.map.",
                )
            return jnp.where(keep, a, b)

        return jax.tree.map(select, whole, x, outside)

    def only(grads: PyTree) -> PyTree:
        return inside(grads, jax.tree.map(jnp.zeros_like, grads))

    def update(grads: PyTree, state: PyTree, params: Params = None, **extra: Any) -> Any:
        objective = extra.get("value_fn")
        if objective is not None and params is not None:
            extra["value_fn"] = lambda moved: objective(inside(moved, params))
        if extra.get("grad") is not None:
            extra["grad"] = only(extra["grad"])
        updates, state = optimizer.update(only(grads), state, params, **extra)
        return only(updates), state

    return _with(optimizer, optimizer.init, update)


def _with(optimizer: Any, init: Any, update: Any) -> Optimizer:
    """An optimizer whose update takes further keywords only where the wrapped one's does."""
    if takes_keywords(optimizer.update):
        return Optimizer(init, update)
    return Optimizer(init, lambda grads, state, params=None: update(grads, state, params))


def _scaled_to(limit: Array, grads: PyTree) -> PyTree:
    """The gradients, shortened to a length of at most `limit`."""
    wide = jax.tree.map(_at_least_float32, grads)
    length = tree.norm(wide)
    limit = limit.astype(length.dtype)
    too_long = length > limit
    factor = jnp.where(too_long, limit / jnp.where(too_long, length, 1.0), 1.0)
    factor = jnp.where(jnp.isfinite(length) & (factor > 0), factor, jnp.nan)
    return jax.tree.map(
        lambda g, w: (w * factor.astype(w.dtype)).astype(jnp.result_type(g)), grads, wide
    )


def _at_least_float32(g: ArrayLike) -> Array:
    dtype = jnp.result_type(g)
    return jnp.asarray(g, jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)
