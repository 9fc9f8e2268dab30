"""Learning rates as functions of the step: step ↦ η_t, the first step being t = 0.

A schedule accepts a Python int, a traced integer or an array of steps, and returns the rates in
JAX's default float dtype. Initial rates, factors and powers may be traced; numbers of steps are
static.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxnn.errors import invalid, require_between, require_real
from jaxnn.types import Array, ArrayLike, Schedule

Rates: TypeAlias = Callable[[ArrayLike], Array]
"""A schedule that accepts numbers as well as arrays of steps."""


def constant(rate: ArrayLike) -> Rates:
    """η_t = η₀.

    Errors: a negative or infinite rate.

    >>> constant(0.1)(7)
    Array(0.1, dtype=float32)
    """
    _require_rate("constant(rate)", rate)
    return lambda step: jnp.full(jnp.shape(step), rate, float)


def step_decay(rate: ArrayLike, *, factor: ArrayLike, steps: int) -> Rates:
    """The rate is multiplied by a factor after every so many steps, η_t = η₀ factor^⌊t/steps⌋.

    Errors: a negative rate, a factor outside (0, 1], steps < 1.

    >>> step_decay(1.0, factor=0.5, steps=10)(29)
    Array(0.25, dtype=float32)
    """
    _require_rate("step_decay(rate)", rate)
    _require_factor("step_decay(factor)", factor)
    _require_steps("step_decay(steps)", steps)

    def schedule(step: ArrayLike) -> Array:
        # Whole division before any rounding to floats: the rate must drop at the step itself.
        drops, eta, base = _floats(_counted(step) // steps, rate, factor)
        return eta * base**drops

    return schedule


def exponential_decay(rate: ArrayLike, *, factor: ArrayLike, steps: int = 1) -> Rates:
    """The rate is multiplied by a factor over every so many steps, η_t = η₀ factor^{t/steps}.

    Errors: a negative rate, a factor outside (0, 1], steps < 1.

    >>> exponential_decay(1.0, factor=0.25, steps=10)(5)
    Array(0.5, dtype=float32)
    """
    _require_rate("exponential_decay(rate)", rate)
    _require_factor("exponential_decay(factor)", factor)
    _require_steps("exponential_decay(steps)", steps)

    def schedule(step: ArrayLike) -> Array:
        t, eta, base = _floats(step, rate, factor)
        return eta * base ** (t / steps)

    return schedule


def inverse_time_decay(rate: ArrayLike, *, tau: ArrayLike) -> Rates:
    """The rate falls like 1/t from step τ on, η_t = η₀/(1 + t/τ).

    Σ η_t = ∞ and Σ η_t² < ∞, under which stochastic approximation converges: the steps reach any
    distance, and their noise dies out. No other decay of this module has both.

    Errors: a negative rate, τ ≤ 0.

    Source: Robbins & Monro (1951).

    >>> inverse_time_decay(1.0, tau=10.0)(10)
    Array(0.5, dtype=float32)
    """
    _require_rate("inverse_time_decay(rate)", rate)
    require_between(
        "inverse_time_decay(tau)",
        tau,
        0.0,
        math.inf,
        low_open=True,
        remedy="It is the number of steps after which the rate has halved.",
    )

    def schedule(step: ArrayLike) -> Array:
        t, eta, tau_ = _floats(step, rate, tau)
        return eta / (1.0 + t / tau_)

    return schedule


def polynomial_decay(
    rate: ArrayLike, *, steps: int, end: ArrayLike = 0.0, power: ArrayLike = 1.0
) -> Rates:
    """From η₀ to η_T = end along a power, η_t = end + (η₀ - end)(1 - t/T)^power, constant after T.

    Errors: a negative rate or end, steps T < 1, a power ≤ 0.

    >>> polynomial_decay(1.0, steps=10, power=2.0)(5)
    Array(0.25, dtype=float32)
    """
    _require_rate("polynomial_decay(rate)", rate)
    _require_rate("polynomial_decay(end)", end)
    _require_steps("polynomial_decay(steps)", steps)
    require_between(
        "polynomial_decay(power)",
        power,
        0.0,
        math.inf,
        low_open=True,
        remedy="1 is a straight line; larger powers drop faster at first.",
    )

    def schedule(step: ArrayLike) -> Array:
        t, eta, eta_end, exponent = _floats(step, rate, end, power)
        return eta_end + (eta - eta_end) * jnp.maximum(1.0 - t / steps, 0.0) ** exponent

    return schedule


def linear_decay(rate: ArrayLike, *, steps: int, end: ArrayLike = 0.0) -> Rates:
    """From η₀ to η_T = end in a straight line, η_t = end + (η₀ - end)(1 - t/T), constant after T.

    Errors: a negative rate or end, steps T < 1.

    >>> linear_decay(1.0, steps=10, end=0.5)(5)
    Array(0.75, dtype=float32)
    """
    _require_rate("linear_decay(rate)", rate)
    _require_rate("linear_decay(end)", end)
    _require_steps("linear_decay(steps)", steps)
    return polynomial_decay(rate, steps=steps, end=end)


def cosine_decay(rate: ArrayLike, *, steps: int, end: ArrayLike = 0.0) -> Rates:
    """From η₀ to η_T = end along a half cosine, constant after T.

    η_t = end + ½(η₀ - end)(1 + cos(πt/T)).

    Errors: a negative rate or end, steps T < 1.

    Source: Loshchilov & Hutter (2017a), equation 5, without restarts.

    >>> cosine_decay(1.0, steps=10, end=0.5)(jnp.array([0, 10, 20]))
    Array([1. , 0.5, 0.5], dtype=float32)
    """
    _require_rate("cosine_decay(rate)", rate)
    _require_rate("cosine_decay(end)", end)
    _require_steps("cosine_decay(steps)", steps)

    def schedule(step: ArrayLike) -> Array:
        t, eta, eta_end = _floats(step, rate, end)
        progress = jnp.minimum(t / steps, 1.0)
        return eta_end + 0.5 * (eta - eta_end) * (1.0 + jnp.cos(math.pi * progress))

    return schedule


def warmup(schedule: Schedule, steps: int, *, start: ArrayLike = 0.0) -> Rates:
    """A straight line from `start` to the first rate of a schedule, and then that schedule.

    η_t = start + (schedule(0) - start) t/steps for t < steps, and schedule(t - steps) from there.

    Errors: a schedule that cannot be called, steps < 1, a negative start.

    Source: Goyal et al. (2017), section 2.2.

    >>> rate = warmup(linear_decay(1.0, steps=10), 4)
    >>> rate(jnp.array([0, 2, 4, 9, 14]))
    Array([0. , 0.5, 1. , 0.5, 0. ], dtype=float32)
    """
    if not callable(schedule):
        raise invalid(
            "warmup(schedule)",
            got=schedule,
            expected="a schedule step ↦ rate",
            remedy="Wrap a fixed rate: warmup(constant(rate), steps).",
        )
    _require_steps("warmup(steps)", steps)
    _require_rate("warmup(start)", start)

    def joined(step: ArrayLike) -> Array:
        step = _counted(step)
        # `schedule` is evaluated on both sides of the join: it must not see a negative step.
        after, first = _floats(schedule(jnp.maximum(step - steps, 0)), schedule(step * 0))
        t, eta_start = _floats(step, start)
        return jnp.where(step < steps, eta_start + (first - eta_start) * (t / steps), after)

    return joined


def _counted(step: ArrayLike) -> Array:
    """The step as it is, but not in bytes, which hold neither `steps` nor negative numbers."""
    require_real("steps of a schedule", step)
    step = jnp.asarray(step)
    narrow = step.dtype == bool or jnp.issubdtype(step.dtype, jnp.integer)
    return step.astype(int) if narrow and step.dtype.itemsize < 4 else step


def _floats(*values: ArrayLike) -> tuple[Array, ...]:
    """The values in JAX's default float dtype, so that strict promotion lets them meet."""
    require_real("steps and rates of a schedule", *values)
    return tuple(jnp.asarray(value, float) for value in values)


def _require_rate(argument: str, rate: ArrayLike) -> None:
    require_between(argument, rate, 0.0, math.inf, remedy="A learning rate is finite and ≥ 0.")


def _require_factor(argument: str, factor: ArrayLike) -> None:
    require_between(
        argument,
        factor,
        0.0,
        1.0,
        low_open=True,
        high_open=False,
        remedy="It is what the rate is multiplied by: 0.1 for a tenth.",
    )


def _require_steps(argument: str, steps: Any) -> None:
    try:
        fits = operator.index(steps) >= 1
    except TypeError:
        fits = False
    if not fits:
        raise invalid(
            argument, got=steps, expected="an integer ≥ 1", remedy="Count optimizer steps."
        )
