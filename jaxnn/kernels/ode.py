"""Ordinary differential equations in JAX: an explicit method that chooses its steps, resumable."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, Shaped

from jaxnn.errors import concrete, invalid, require_between
from jaxnn.kernels.matrices import real_arrays
from jaxnn.types import Array, ArrayLike

# Dormand & Prince (1980), table 2: stages, fifth order, and its difference from fourth.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
# A step spans at least so many spacings of floating-point numbers: below, its stages coincide.
SPACINGS = 10
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Solved(NamedTuple):
    """Where a solution is, and what it needs to go on from there.

    y          the solution at the time t
    t          the end that was asked for, or where the method stopped
    step_size  that the method would try next, > 0: `first_step` of a call that goes on
    steps      tried, the rejected ones included
    finished   whether t is the end
    """

    y: Float[Array, "..."]
    t: Float[Array, ""]
    step_size: Float[Array, ""]
    steps: Int[Array, ""]
    finished: Bool[Array, ""]


def integrate(
    field: Callable[[Array, Array], Array],
    y: Shaped[Array, "..."],
    start: ArrayLike,
    end: ArrayLike,
    *,
    rtol: ArrayLike = 1e-6,
    atol: ArrayLike = 1e-9,
    first_step: ArrayLike | None = None,
    max_steps: int = 100_000,
) -> Solved:
    """y(end) of dy/dt = field(t, y) from y(start), by Dormand & Prince's method of order 5.

    Steps are chosen so that the rms of error/(atol + rtol·|y|) is at most 1. Time runs backward
    where end < start. A solution that is not finished goes on from its y and t with
    first_step=step_size, to the same result. It is not finished after `max_steps` steps, or where
    the error asks for steps shorter than 10 spacings of the floating-point numbers at t: near a
    singularity, and where t is large. For fields that are not much stiffer than the time asked
    for. Derivatives in forward mode. Integers become floating-point numbers, and states of half
    precision are integrated in float32.

    Errors: tolerances or a first step that are not positive, times that are not finite or that
    lose their distance in the dtype of y, a field of another shape than y, complex states.

    Source: Dormand & Prince (1980); Hairer, Nørsett & Wanner (1993), section II.4.

    >>> solved = integrate(lambda t, y: -y, jnp.array([1.0]), 0.0, 1.0)
    >>> bool(solved.finished), bool(jnp.allclose(solved.y, jnp.exp(-1.0), rtol=1e-5))
    (True, True)
    """
    (y,), result = real_arrays("integrate", y=y)
    dtype = y.dtype
    _require_sizes(rtol, atol, first_step, max_steps)
    _require_times(start, end, dtype)
    t0, t1 = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
    direction, span = jnp.sign(t1 - t0), jnp.abs(t1 - t0)
    grain = lambda t: SPACINGS * jnp.finfo(dtype).eps * jnp.abs(t)
    slope_at = _checked(field, y)
    slope = slope_at(t0, y)
    count = max(y.size, 1)
    size = lambda a, y: jnp.sqrt(jnp.sum((a / (atol + rtol * jnp.abs(y))) ** 2) / count)
    if first_step is None:
        # As far as the slope changes y by a hundredth of its size.
        rate = size(slope, y)
        guess = 0.01 * size(y, y) / jnp.where(rate > 0, rate, 1.0)
        h = jnp.where(guess > 0, jnp.minimum(guess, span), 1e-3 * span)
        h = jnp.maximum(h, grain(t0))
    else:
        h = jnp.abs(jnp.asarray(first_step, dtype))

    def attempt(state):
        t, y, slope, h, steps = state
        left = jnp.abs(t1 - t)
        # What a longer remainder would leave is at least a step.
        last = h + grain(jnp.abs(t) + h) >= left
        # The step as it is between the rounded times.
        step = (t + direction * jnp.where(last, left, h)) - t
        reach = jnp.abs(step)
        slopes = [slope]
        new = y
        for weights, time in zip(STAGES, TIMES, strict=True):
            new = y + step * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            slopes.append(slope_at(t + time * step, new))
        error = step * sum(w * k for w, k in zip(ERROR, slopes, strict=True) if w)
        ratio = size(error, jnp.maximum(jnp.abs(y), jnp.abs(new)))
        accepted = ratio <= 1.0  # a NaN is rejected, and the step shortened
        factor = 0.9 * jnp.where(ratio > 0, ratio, 1e-10) ** -0.2
        factor = jnp.where(jnp.isfinite(factor), jnp.clip(factor, 0.2, 5.0), 0.2)
        # The last step is cut short by the end, which says nothing against longer ones.
        short = accepted & last & (reach < h)
        proposed = jnp.where(short, jnp.maximum(h, factor * reach), factor * reach)
        t = jnp.where(accepted, jnp.where(last, t1, t + step), t)
        proposed = jnp.where(accepted, jnp.maximum(proposed, grain(t)), proposed)
        y, slope = (jnp.where(accepted, a, b) for a, b in ((new, y), (slopes[-1], slope)))
        return t, y, slope, proposed, steps + 1

    def unfinished(state):
        t, _, _, h, steps = state
        left, least = jnp.abs(t1 - t), grain(t)
        resolved = (left >= least) & ((h >= least) | (h >= left))
        return (left > 0) & resolved & (steps < min(max_steps, jnp.iinfo(jnp.int32).max))

    begin = t0, y, slope, h, jnp.zeros((), jnp.int32)
    t, y, _, h, steps = lax.while_loop(unfinished, attempt, begin)
    return Solved(y.astype(result), t, h, steps, t == t1)


def _checked(field: Callable[[Array, Array], Array], y: Array) -> Callable[[Array, Array], Array]:
    """The field in the dtype of the state y; raises where it has another shape."""

    def slope(t: Array, at: Array) -> Array:
        value = jnp.asarray(field(t, at))
        if value.shape != y.shape or jnp.iscomplexobj(value):
            raise invalid(
                "integrate(field)",
                got=f"dy/dt of shape {value.shape}, dtype {value.dtype}",
                expected=f"that of y, {y.shape}, real",
                remedy="field(t, y) returns the derivative of every number of y.",
            )
        return value.astype(y.dtype)

    return slope


def _require_sizes(
    rtol: ArrayLike, atol: ArrayLike, first_step: ArrayLike | None, max_steps: int
) -> None:
    for name, value, remedy in (
        ("rtol", rtol, "It is the error allowed per step."),
        ("atol", atol, "It is the error allowed per step."),
        ("first_step", 1.0 if first_step is None else first_step, "It is the length of a step."),
    ):
        require_between(f"integrate({name})", value, *(0.0, np.inf), low_open=True, remedy=remedy)
    if concrete(max_steps) is None or max_steps < 0:
        raise invalid(
            "integrate(max_steps)",
            got=max_steps,
            expected="an integer ≥ 0",
            remedy="It bounds the number of steps.",
        )


def _require_times(start: ArrayLike, end: ArrayLike, dtype: jnp.dtype) -> None:
    """Raise unless times are finite numbers whose distance survives rounding to the dtype."""
    for name, value in (("start", start), ("end", end)):
        number = concrete(value)
        if jnp.shape(value) != () or (number is not None and not np.isfinite(number)):
            raise invalid(
                f"integrate({name})",
                got=number if jnp.shape(value) == () else f"shape {jnp.shape(value)}",
                expected="a finite number, shape ()",
                remedy="Use jax.vmap for several times, a large one for a limit.",
            )
    first, last = concrete(start), concrete(end)
    if first is None or last is None or first == last:
        return
    rounded = [float(np.asarray(t, dtype)) for t in (first, last)]
    distance = abs(rounded[1] - rounded[0])
    least = SPACINGS * float(jnp.finfo(dtype).eps) * abs(rounded[0])
    if distance < least or abs(distance - abs(last - first)) > 1e-3 * abs(last - first):
        raise invalid(
            "integrate(start, end)",
            got=f"{start} and {end}, which are {rounded[0]} and {rounded[1]} in {dtype}",
            expected="times whose distance that dtype resolves",
            remedy="Measure the time from the start, or use float64 (jax_enable_x64).",
        )
