"""Sharpness, the largest eigenvalue of the Hessian, and what training makes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import tree
from jaxnn.errors import require_optimizer, takes_keywords
from jaxnn.linalg import eigsh, hessian
from jaxnn.minibatches import require_at_least_one
from jaxnn.types import Array, Key, Params, PyTree


class Sharpness(NamedTuple):
    """λ_max of a Hessian, and how far to trust it.

    value      λ_max
    vector     its unit eigenvector, a tree like the params
    residual   ‖Hv - λv‖: an eigenvalue is at most so far from `value`
    products   with the Hessian that it took
    converged  whether the residual is below tolerance, as `eigsh` decides
    """

    value: Float[Array, ""]
    vector: Params
    residual: Float[Array, ""]
    products: Int[Array, ""]
    converged: Bool[Array, ""]


class SharpnessTrajectory(NamedTuple):
    """Loss and sharpness at some of the steps of a run, and where the run ended.

    steps      updates made before each record, 0 first
    losses     of the objective there
    sharpness  λ_max there
    residuals  ‖Hv - λv‖
    products   with the Hessian that each record took
    converged  of each record
    params     after the last step
    state      of the optimizer, to go on from
    """

    steps: Int[Array, "records"]
    losses: Float[Array, "records"]
    sharpness: Float[Array, "records"]
    residuals: Float[Array, "records"]
    products: Int[Array, "records"]
    converged: Bool[Array, "records"]
    params: Params
    state: PyTree


def sharpness(
    objective: Callable[..., Array],
    params: Params,
    *args: Any,
    key: Key,
    start: Params | None = None,
    tolerance: float | None = None,
    batch_size: int | None = None,
) -> Sharpness:
    """λ_max(∇²L(θ)), the largest eigenvalue of the Hessian of `objective(params, *args)`.

    Signed: at a maximum it is negative. Gradient descent at rate η is stable along the eigenvector
    while λ_max < 2/η. `start` is a first vector, best the eigenvector at params nearby; without it
    a random one is taken. `tolerance` of the residual is that of `linalg.eigsh`, `batch_size` and
    `args` are those of `linalg.hessian`.

    Errors: those of `linalg.hessian` and `linalg.eigsh`.

    Source: Lanczos (1950); Cohen, Kaur, Li, Kolter & Talwalkar (2021), section 2.

    >>> ellipse = lambda w, scales: 0.5 * jnp.sum(scales * w**2)
    >>> found = sharpness(ellipse, jnp.ones(3), jnp.array([1.0, 5.0, 2.0]), key=jax.random.key(0))
    >>> found.value.round(4), bool(found.converged)
    (Array(5., dtype=float32), True)
    """
    operator = hessian(objective, params, *args, batch_size=batch_size)
    found = eigsh(operator, 1, key=key, which="largest", start=start, tolerance=tolerance)
    vector = jax.tree.map(lambda leaf: leaf[0], found.vectors)
    return Sharpness(found.values[0], vector, found.residuals[0], found.products, found.converged)


def sharpness_trajectory(
    objective: Callable[..., Array],
    params: Params,
    optimizer: Any,
    *args: Any,
    steps: int,
    every: int = 1,
    key: Key,
    state: PyTree | None = None,
    tolerance: float | None = None,
) -> SharpnessTrajectory:
    """Sharpness during training on the whole of `objective(params, *args)`, every so many steps.

    `optimizer` has optax's `init` and `update`; an `update` that takes further keywords also gets
    `value`, `grad` and `value_fn`, as in `training.fit`. Records are made before step 1, after each
    `every` steps and after the last. Each λ_max is found from the eigenvector before, which is
    near: a record costs few products with the Hessian. The run is one `lax.scan`, for use inside
    jit and vmap; a `state` makes it go on from another's end. Where it diverges, what follows is
    NaN and not `converged`; where the Hessian alone is not finite, that record is, and no other.

    Errors: numbers of steps below 1, an optimizer that is none, those of `linalg.hessian` at the
    first params.

    Source: Cohen, Kaur, Li, Kolter & Talwalkar (2021), section 3.

    >>> from jaxnn import optimizers
    >>> quartic = lambda w: w[0] ** 4 + 0.5 * w[1] ** 2
    >>> descent = optimizers.gradient_descent(0.1)
    >>> run = sharpness_trajectory(
    ...     quartic, jnp.ones(2), descent, steps=10, every=5, key=jax.random.key(0)
    ... )
    >>> [f"{value:.2f} after {step}" for value, step in zip(run.sharpness, run.steps)]
    ['12.00 after 0', '1.83 after 5', '1.10 after 10']
    """
    remedy = "There is a record before the first step and one after the last in any case."
    require_at_least_one("sharpness_trajectory(steps)", steps, remedy)
    require_at_least_one("sharpness_trajectory(every)", every, remedy)
    require_optimizer("sharpness_trajectory(optimizer)", optimizer)
    hessian(objective, params, *args)  # for its checks, that need values
    params = tree.strong(params)
    state = tree.strong(optimizer.init(params) if state is None else state)
    value_fn = lambda params: objective(params, *args)

    def update(_: Any, run: tuple) -> tuple:
        params, state = run
        value, grad = jax.value_and_grad(value_fn)(params)
        told = {"value": value, "grad": grad, "value_fn": value_fn}
        extra = told if takes_keywords(optimizer.update) else {}
        updates, state = optimizer.update(grad, state, params, **extra)
        return tree.add(params, updates), state

    def record(carry: tuple, at: tuple[Array, Key]) -> tuple[tuple, tuple]:
        params, state, vector = carry
        count, key = at
        own_key, fresh_key = jax.random.split(key)
        params, state = lax.fori_loop(0, count, update, (params, state))
        found = sharpness(objective, params, *args, key=own_key, start=vector, tolerance=tolerance)
        # Where the Hessian is not finite, at a kink, neither is the vector: the next starts anew.
        fresh, usable = tree.random_like(fresh_key, params), tree.all_finite(found.vector)
        vector = tree.where(usable, found.vector, fresh)
        loss = objective(params, *args)
        kept = (loss, found.value, found.residual, found.products, found.converged)
        return (params, state, vector), kept

    points = np.array([*range(0, steps, every), steps], np.int32)
    counts = np.diff(points, prepend=np.int32(0))
    start_key, key = jax.random.split(key)
    keys = jax.random.split(key, len(points))
    begin = (params, state, tree.random_like(start_key, params))
    (params, state, _), records = lax.scan(record, begin, (jnp.asarray(counts), keys))
    losses, values, residuals, products, converged = records
    return SharpnessTrajectory(
        *(jnp.asarray(points), losses, values, residuals, products, converged), params, state
    )
