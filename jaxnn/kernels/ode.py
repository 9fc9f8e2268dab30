"""Ordinary differential equations in JAX: an explicit method that chooses its steps, resumable."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn.errors import require_between
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
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Solved(NamedTuple):
    """Where a solution is, and what it needs to go on from there.

    y          the solution at the time t
    t          the end that was asked for, or where `max_steps` were used up
    step_size  that the method would try next: `first_step` of a call that goes on
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
    y: Float[Array, "..."],
    start: ArrayLike,
    end: ArrayLike,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    first_step: ArrayLike | None = None,
    max_steps: int = 100_000,
) -> Solved:
    """y(end) of dy/dt = field(t, y) from y(start), by Dormand & Prince's method of order 5.

    Steps are chosen so that the rms of error/(atol + rtol·|y|) is at most 1. A solution that is not
    finished goes on from its y and t with first_step=step_size, to the same result. Forward in
    time; for fields that are not much stiffer than the time asked for. Derivatives in forward mode.

    Errors: tolerances that are not positive.

    Source: Dormand & Prince (1980); Hairer, Nørsett & Wanner (1993), section II.4.

    >>> solved = integrate(lambda t, y: -y, jnp.array([1.0]), 0.0, 1.0)
    >>> bool(solved.finished), bool(jnp.allclose(solved.y, jnp.exp(-1.0), rtol=1e-5))
    (True, True)
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        remedy = "It is the error allowed per step."
        require_between(
            f"integrate({name})", value, 0.0, float("inf"), low_open=True, remedy=remedy
        )
    dtype = y.dtype
    t0, t1 = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
    slope = field(t0, y)
    size = lambda a, y: jnp.sqrt(jnp.mean((a / (atol + rtol * jnp.abs(y))) ** 2))
    if first_step is None:
        # As far as the slope changes y by a hundredth of its size.
        rate = size(slope, y)
        guess = 0.01 * size(y, y) / jnp.where(rate > 0, rate, 1.0)
        h = jnp.where(guess > 0, jnp.minimum(guess, t1 - t0), 1e-3 * (t1 - t0))
    else:
        h = jnp.asarray(first_step, dtype)

    def attempt(state):
        t, y, slope, h, steps = state
        reach = jnp.minimum(h, t1 - t)
        slopes = [slope]
        new = y
        for weights, time in zip(STAGES, TIMES, strict=True):
            new = y + reach * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            slopes.append(field(t + time * reach, new))
        error = reach * sum(w * k for w, k in zip(ERROR, slopes, strict=True) if w)
        ratio = size(error, jnp.maximum(jnp.abs(y), jnp.abs(new)))
        accepted = ratio <= 1.0  # a NaN is rejected, and the step shortened
        factor = 0.9 * jnp.where(ratio > 0, ratio, 1e-10) ** -0.2
        factor = jnp.where(jnp.isfinite(factor), jnp.clip(factor, 0.2, 5.0), 0.2)
        # The last step is cut short by the end, which says nothing against longer ones.
        proposed = jnp.where(accepted & (reach < h), jnp.maximum(h, factor * reach), factor * reach)
        last = accepted & (h >= t1 - t)
        t = jnp.where(last, t1, jnp.where(accepted, t + reach, t))
        y, slope = (jnp.where(accepted, a, b) for a, b in ((new, y), (slopes[-1], slope)))
        return t, y, slope, proposed, steps + 1

    def unfinished(state):
        t, _, _, _, steps = state
        return (t < t1) & (steps < max_steps)

    begin = t0, y, slope, h, jnp.zeros((), jnp.int32)
    t, y, _, h, steps = lax.while_loop(unfinished, attempt, begin)
    return Solved(y, t, h, steps, t >= t1)


def gradient_flow_of_loss(
    kernel: Float[Array, "N N ..."],
    loss: Callable[[Array, Array], Array],
    y: Array,
    t: ArrayLike,
    *,
    outputs: Float[Array, "N O"],
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 100_000,
) -> Solved:
    """The outputs f_t of a linear model that follows the gradient of any loss, df/dt = -Θ ∂L/∂f.

    `loss`(f, y) gives one number per example, as those of `jaxnn.losses`; L is their sum. The
    kernel Θ is (N, N), acting on every output alike, or (N, N, O, O). f₀ are the `outputs`.

    Errors: as of `integrate`.

    Source: Jacot, Gabriel & Hongler (2018), section 4; Lee et al. (2019), equation 6.

    >>> from jaxnn import losses
    >>> solved = gradient_flow_of_loss(jnp.eye(2), losses.softmax_cross_entropy, jnp.array([0, 1]),
    ...                                10.0, outputs=jnp.zeros((2, 2)))
    >>> jnp.argmax(solved.y, axis=1)
    Array([0, 1], dtype=int32)
    """
    gradient = jax.grad(lambda f: jnp.sum(loss(f, y)))
    indices = "nm,mb->nb" if kernel.ndim == 2 else "nmab,mb->na"

    def field(_, f: Array) -> Array:
        return -jnp.einsum(indices, kernel, gradient(f))

    return integrate(field, outputs, 0.0, t, rtol=rtol, atol=atol, max_steps=max_steps)
