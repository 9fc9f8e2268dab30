"""Newton's method that leaves saddle points, as it takes the Hessian's absolute value."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jaxnn import linalg, tree
from jaxnn.errors import invalid, is_traced, require_between
from jaxnn.linalg.vectors import dot
from jaxnn.optimizers.equations import LearningRate, Optimizer
from jaxnn.optimizers.saddles import given, saturated
from jaxnn.types import Array, ArrayLike, Params, PyTree

DAMPINGS = (0.0, *(10.0**k for k in range(-4, 3)))
"""What `saddle_free_newton` chooses λ from, in units of ‖T‖."""


class SaddleFreeState(NamedTuple):
    """t: updates made; damping: the last λ, in units of ‖T‖ (of 1 where that is 0)."""

    t: Int[Array, ""]
    damping: Float[Array, ""]


def saddle_free_newton(
    learning_rate: LearningRate = 1.0,
    *,
    rank: int = 20,
    damping: ArrayLike | Sequence[float] = DAMPINGS,
) -> Optimizer:
    """Newton's method with |H|: downhill along every eigenvector, away from saddles and maxima.

        θ ← θ - η Q(|T| + λI)⁻¹Qᵀg,    T = QᵀHQ,

    where the columns of Q span the Krylov space g, Hg, H²g, ... of `rank` dimensions, and |T| has
    the absolute values of the eigenvalues of T. λ is `damping`·‖T‖; of several, a sequence or a
    1-D array, the one with the lowest L after the step is taken. With η = 1, λ = 0 and a rank of
    all dimensions a convex quadratic is at its minimum after one step. As g is in that space,
    nothing of it is left outside; where g has no part in a direction that falls, neither has the
    step. Eigenvalues of T that are rounding are left out where λ = 0.

    Where L is linear, T = 0, there is no unit for λ: it is `damping` itself, as in the source, and
    the step -ηg/λ. With a damping of 0 alone none is made there, as Newton's method has none.

    g is what `update` is given, H that of `value_fn`. Clipped to a norm, g has the Krylov space
    that it had, and the step is shortened by the same factor: to bound its length takes damping.
    Clipping by value, or noise, turns g, and the space with it.

    `update` needs the params and `value_fn`, as `training.fit` passes them; a step costs `rank`
    products with the Hessian, and memory for as many gradients.

    Errors: a negative learning rate or damping, a rank below 1, no damping, an array of dampings of
    more than one dimension, `update` without params or `value_fn`.

    Source: Dauphin et al. (2014), algorithm 1, with one step for each Krylov space.

    >>> L = lambda p: 2.0 * p[0] ** 2 - p[1] ** 2
    >>> params = jnp.array([1.0, 0.25])
    >>> optimizer = saddle_free_newton(rank=2, damping=0.0)
    >>> update = optimizer.update
    >>> update(jax.grad(L)(params), optimizer.init(params), params, value_fn=L)[0].round(4)
    Array([-1.  ,  0.25], dtype=float32)
    """
    remedy = "It is a magnitude."
    if not callable(learning_rate):
        require_between(
            "saddle_free_newton(learning_rate)", learning_rate, 0.0, math.inf, remedy=remedy
        )
    candidates = _listed(damping)
    for candidate in candidates:
        require_between("saddle_free_newton(damping)", candidate, 0.0, math.inf, remedy=remedy)
    for name, number in (("rank", rank), ("damping", len(candidates))):
        if number < 1:
            raise invalid(
                f"saddle_free_newton({name})",
                got=damping if name == "damping" else number,
                expected="at least one",
                remedy="The rank is a number of dimensions, λ a number or several.",
            )

    def init(params: Params) -> SaddleFreeState:
        tree.require_differentiable("saddle_free_newton.init: params", params)
        dtype = linalg.coordinates(params).dtype
        return SaddleFreeState(jnp.zeros((), jnp.int32), jnp.zeros((), dtype))

    def update(
        grads: PyTree,
        state: SaddleFreeState,
        params: Params = None,
        *,
        value_fn: Callable[[Params], Array] | None = None,
        **_: Any,
    ) -> tuple[PyTree, SaddleFreeState]:
        params = given("saddle_free_newton", "params", params)
        objective = given("saddle_free_newton", "value_fn", value_fn)
        flat = linalg.coordinates(params)
        dtype = flat.dtype
        function = lambda x: objective(flat.unravel(x)).astype(dtype)
        x, g = flat.ravel(params), flat.ravel(grads)
        operator = linalg.hessian(function, x, check=False)
        found = linalg.lanczos(operator, g, min(rank, flat.size))
        theta, vectors = jnp.linalg.eigh(found.T)
        eta = jnp.asarray(
            learning_rate(state.t) if callable(learning_rate) else learning_rate, dtype
        )
        largest = jnp.max(jnp.abs(theta))
        unit = jnp.where(largest > 0, largest, 1)
        rounding = theta.size * jnp.finfo(dtype).eps * largest

        def step(share: Array) -> Array:
            divisor = jnp.abs(theta) + share * unit
            left_out = divisor <= jnp.where(share > 0, 0, rounding)
            parts = jnp.where(left_out, 0, vectors[0] / jnp.where(left_out, 1, divisor))
            return -eta * tree.norm(g) * dot(dot(vectors, parts), found.basis)

        shares = jnp.stack([jnp.asarray(share, dtype) for share in candidates])
        steps = jax.vmap(step)(shares)
        best = jnp.zeros((), jnp.int32)
        if len(candidates) > 1:
            values = lax.map(lambda s: function(x + s), steps)
            best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
        updates = jax.tree.map(
            lambda s, like: s.astype(jnp.result_type(like)), flat.unravel(steps[best]), grads
        )
        return updates, SaddleFreeState(saturated(state.t), shares[best])

    return Optimizer(init, update)


def _listed(damping: Any) -> tuple[Any, ...]:
    """The numbers of one damping or several; raises where they are not numbers."""
    several = isinstance(damping, Sequence) or jnp.ndim(damping) == 1
    if several and isinstance(damping, jax.Array) and not is_traced(damping):
        damping = np.asarray(damping)  # its entries can be checked in jit too
    candidates = tuple(damping) if several else (damping,)
    for candidate in candidates:
        if isinstance(candidate, Sequence) or jnp.ndim(candidate) > 0:
            raise invalid(
                "saddle_free_newton(damping)",
                got=damping,
                expected="a number, or a sequence or a 1-D array of them",
                remedy="Each is a λ/‖T‖ to choose from: pass them in one axis.",
            )
    return candidates
