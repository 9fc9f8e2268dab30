"""Gradient descent that does not stay at a saddle point, because it is pushed at random."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxnn import linalg, tree
from jaxnn.errors import concrete, invalid, require_between
from jaxnn.optimizers.equations import LearningRate, Optimizer
from jaxnn.types import Array, ArrayLike, Key, Params, PyTree

LAST = 2**31 - 1
"""The largest int32, at which counters of steps stay."""


class Perturbation(NamedTuple):
    """The constants of `perturbed_gradient_descent`, in the order of its arguments.

    learning_rate       η
    radius              r, of the ball that perturbations come from
    gradient_threshold  g_thres, the ‖∇L‖ up to which one is made
    waiting_time        t_thres, the steps between two
    function_threshold  f_thres, what L has to fall by in that time
    """

    learning_rate: float
    radius: float
    gradient_threshold: float
    waiting_time: int
    function_threshold: float


class PerturbedState(NamedTuple):
    """Of `perturbed_gradient_descent`.

    t         updates made
    since     steps of descent since the last perturbation
    key       of the perturbations
    anchor    the params before the last perturbation; None without a function threshold
    value     L there, at least in float32: of narrower numbers neighbors are too far apart
    finished  whether descent from the last perturbation did not lower L by the threshold
    """

    t: Int[Array, ""]
    since: Int[Array, ""]
    key: Key
    anchor: Params | None
    value: Float[Array, ""]
    finished: Bool[Array, ""]


def perturbation(
    dimension: int,
    *,
    ell: float,
    rho: float,
    epsilon: float,
    delta: float,
    delta_f: float,
    c: float,
) -> Perturbation:
    """The constants for which perturbed gradient descent provably finds no saddle but a minimum.

        χ = 3 max(ln(dℓΔ/(cε²δ)), 4),    η = c/ℓ,    r = √c/χ² · ε/ℓ,    g_thres = √c/χ² · ε,
        f_thres = c/χ³ · √(ε³/ρ),    t_thres = χ/c² · ℓ/√(ρε), rounded up

    With a probability of at least 1 - δ it then stops where ‖∇L‖ ≤ ε and λ_min(H) ≥ -√(ρε), within
    O(ℓΔ/ε² · χ⁴) steps: for L with ℓ-Lipschitz gradient and ρ-Lipschitz Hessian, in d dimensions,
    at most Δ = `delta_f` above its infimum at the start, for ε ≤ ℓ²/ρ and c small enough (by a
    bound that the source does not give).

    Errors: a constant that is not positive, δ ≥ 1, c > 1, ε > ℓ²/ρ.

    Source: Jin, Ge, Netrapalli, Kakade & Jordan (2017), algorithm 2 and theorem 3.

    >>> found = perturbation(10, ell=1.0, rho=1.0, epsilon=0.01, delta=0.1, delta_f=1.0, c=0.5)
    >>> found.waiting_time, f"{found.radius:.2e}"
    (1742, '3.73e-06')
    """
    values = {"dimension": dimension, "ell": ell, "rho": rho, "delta_f": delta_f, "delta": delta}
    for name, value in (values | {"c": c, "epsilon": epsilon}).items():
        high = {"delta": 1.0, "c": 1.0, "epsilon": ell**2 / rho if rho else 0.0}.get(name, math.inf)
        require_between(
            *(f"perturbation({name})", value, 0.0, high),
            low_open=True,
            high_open=name in values,
            remedy="These are the assumptions of the theorem; ε is at most ℓ²/ρ.",
        )
    chi = 3 * max(math.log(dimension * ell * delta_f / (c * epsilon**2 * delta)), 4.0)
    share = math.sqrt(c) / chi**2
    return Perturbation(
        learning_rate=c / ell,
        radius=share * epsilon / ell,
        gradient_threshold=share * epsilon,
        waiting_time=math.ceil(chi / c**2 * ell / math.sqrt(rho * epsilon)),
        function_threshold=c / chi**3 * math.sqrt(epsilon**3 / rho),
    )


def perturbed_gradient_descent(
    learning_rate: LearningRate,
    radius: ArrayLike,
    gradient_threshold: ArrayLike,
    waiting_time: ArrayLike,
    function_threshold: ArrayLike | None = None,
    *,
    key: Key,
) -> Optimizer:
    """Gradient descent that leaves the saddles it comes near, by a small step at random.

        θ ← θ + ξ, ξ uniform in the ball of the radius, where ‖g‖ ≤ gradient_threshold and the last
                such step is more than `waiting_time` steps of descent ago,
        θ ← θ - ηg otherwise.

    With a `function_threshold` L has to fall by so much in the `waiting_time` steps of descent
    after a perturbation. If it does not, it was no saddle: the params return to where they were
    before, and stay; `finished` in the state says so. `update` then needs params and `value`.
    `perturbation` has constants with a guarantee. A perturbation depends on `key` and t alone.
    The waiting time is rounded up to whole steps, of which 2³¹ - 2 are the most that are counted.

    ‖g‖ is the length of what `update` is given: a wrapper that clips it to gradient_threshold or
    below makes every place one to perturb, noise longer than that leaves none. One that masks it
    keeps of ξ the part in the mask.

    In the source descent follows a perturbation in the same iteration; here it is the next update,
    whose gradient is taken where the perturbation led.

    Errors: a negative learning rate, radius, threshold or waiting time.

    Source: Jin, Ge, Netrapalli, Kakade & Jordan (2017), algorithm 2.

    >>> optimizer = perturbed_gradient_descent(0.1, 1e-3, 1e-4, 10, key=jax.random.key(0))
    >>> saddle = jnp.zeros(2)
    >>> update, state = optimizer.update(saddle, optimizer.init(saddle), saddle)
    >>> bool(0 < tree.norm(update) <= 1e-3)
    True
    """
    constants = {
        "learning_rate": learning_rate,
        "radius": radius,
        "gradient_threshold": gradient_threshold,
        "waiting_time": waiting_time,
        "function_threshold": function_threshold,
    }
    for name, value in constants.items():
        if value is not None and not (name == "learning_rate" and callable(value)):
            where = f"perturbed_gradient_descent({name})"
            require_between(where, value, 0.0, math.inf, remedy="It is a magnitude.")

    waits = _whole_steps(waiting_time)

    def init(params: Params) -> PerturbedState:
        tree.require_differentiable("perturbed_gradient_descent.init: params", params)
        return PerturbedState(
            t=jnp.zeros((), jnp.int32),
            since=saturated(jnp.asarray(waits, jnp.int32)),
            key=key,
            anchor=None if function_threshold is None else jax.tree.map(jnp.asarray, params),
            value=jnp.zeros((), linalg.coordinates(params).dtype),
            finished=jnp.array(False),
        )

    def update(
        grads: PyTree,
        state: PerturbedState,
        params: Params = None,
        *,
        value: ArrayLike | None = None,
        **_: Any,
    ) -> tuple[PyTree, PerturbedState]:
        size = tree.norm(grads)
        small = size <= jnp.asarray(gradient_threshold, size.dtype)
        perturbs = small & (state.since > waits)
        noise = _in_ball(jax.random.fold_in(state.key, state.t), grads, radius)
        eta = learning_rate(state.t) if callable(learning_rate) else learning_rate
        updates = tree.where(perturbs, noise, tree.scale(-1, tree.scale(eta, grads)))
        anchor, anchor_value, finished = state.anchor, state.value, state.finished
        if function_threshold is not None:
            params = given("perturbed_gradient_descent", "params", params)
            value = given("perturbed_gradient_descent", "value", value)
            value = jnp.asarray(value, anchor_value.dtype)
            threshold = jnp.asarray(function_threshold, value.dtype)
            fell = value - anchor_value <= -threshold
            finished |= (state.since == waits) & ~fell
            back = jax.tree.map(lambda a, p, g: (a - p).astype(g.dtype), anchor, params, grads)
            updates = tree.where(finished, back, updates)
            perturbs &= ~finished
            anchor = tree.where(perturbs, params, anchor)
            anchor_value = jnp.where(perturbs, value, anchor_value)
        since = jnp.where(perturbs, 0, saturated(state.since))
        t = saturated(state.t)
        return updates, PerturbedState(t, since, state.key, anchor, anchor_value, finished)

    return Optimizer(init, update)


def _whole_steps(waiting_time: Any) -> ArrayLike:
    """The waiting time rounded up, and below `LAST`, so that a count can be more."""
    number = concrete(waiting_time)
    if number is not None:
        return min(math.ceil(number), LAST - 1)
    return jnp.minimum(jnp.asarray(-(-waiting_time // 1), jnp.int32), LAST - 1)


def _in_ball(key: Key, like: PyTree, radius: ArrayLike) -> PyTree:
    """A tree drawn uniformly from the ball of that radius around 0."""
    direction_key, length_key = jax.random.split(key)
    normal = tree.random_like(direction_key, like)
    size = tree.norm(normal)
    uniform = jax.random.uniform(length_key, (), size.dtype)
    length = jnp.asarray(radius, size.dtype) * uniform ** (1 / max(tree.size(like), 1))
    return tree.scale(length / jnp.where(size > 0, size, 1), normal)


def saturated(t: Array) -> Array:
    """t + 1, but never more than the last number: the next would be negative."""
    return jnp.minimum(t, LAST - 1) + 1


def given(name: str, argument: str, value: Any) -> Any:
    """`value`; raises where it is None, as `update` was called without it."""
    if value is None:
        raise invalid(
            f"{name}.update: {argument}",
            got=None,
            expected="the params, and the keywords that training.fit passes",
            remedy="Call update(grads, state, params, value=..., value_fn=...), with the objective "
            "at the params and as a function of them.",
        )
    return value
