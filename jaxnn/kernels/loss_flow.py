"""Gradient flow of any loss in function space, with momentum: a linear model follows an ODE."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from jaxnn.errors import invalid, require_between
from jaxnn.kernels.matrices import as_columns, as_matrix, real_arrays, square
from jaxnn.kernels.ode import integrate
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array, ArrayLike, Shape


class FlowOfLoss(NamedTuple):
    """The outputs at a time of training, and what the flow needs to go on from there.

    y, t, step_size, steps, finished  as of `Solved`: y are the training outputs f_t
    test                              the test outputs f_t* (M, ...), or None
    velocity, test_velocity           their derivatives in t, or None without friction
    """

    y: Float[Array, "N ..."]
    t: Float[Array, ""]
    step_size: Float[Array, ""]
    steps: Int[Array, ""]
    finished: Bool[Array, ""]
    test: Float[Array, "M ..."] | None
    velocity: Float[Array, "N ..."] | None
    test_velocity: Float[Array, "M ..."] | None


def gradient_flow_of_loss(
    kernel: Shaped[Array, "N N ..."],
    loss: Callable[[Array, Array], Array],
    y: Shaped[Array, "..."],
    t: ArrayLike,
    *,
    outputs: Shaped[Array, "N ..."],
    cross: Shaped[Array, "M N ..."] | None = None,
    test_outputs: Shaped[Array, "M ..."] | None = None,
    friction: ArrayLike | None = None,
    velocity: Shaped[Array, "N ..."] | None = None,
    test_velocity: Shaped[Array, "M ..."] | None = None,
    rtol: ArrayLike = 1e-6,
    atol: ArrayLike = 1e-9,
    first_step: ArrayLike | None = None,
    max_steps: int = 100_000,
) -> FlowOfLoss:
    """The outputs f_t of a linear model that follows the gradient of any loss, df/dt = -Θ ∂L/∂f.

        df*/dt = -Θ_* ∂L/∂f (test),   d²f/dt² = -γ df/dt - Θ ∂L/∂f (with friction γ)

    `loss`(f, y) gives one number per example, as those of `jaxnn.losses`; L is their sum. The
    kernel Θ is (N, N), acting on every output alike, or (N, N, O, O). f₀ are the `outputs`.
    `cross` is Θ_*, the kernel of test with training inputs, for test outputs that start at
    `test_outputs` (default: 0).

    With `friction` the model moves as gradient descent with momentum does at small learning rates:
    k steps with rate η and momentum μ are the time k√η with the friction (1 - μ)/√η. Velocities
    are 0 at the start. A flow that is not finished goes on from its outputs and velocities, with
    first_step=step_size, for the time that is left.

    Errors: shapes that do not fit, a time that is negative or infinite, a negative friction, and
    those of `integrate`.

    Source: Jacot, Gabriel & Hongler (2018), section 4; Lee et al. (2019), equation 6; Qian (1999),
    equation 3, for the friction.

    >>> from jaxnn import losses
    >>> flow = gradient_flow_of_loss(jnp.eye(2), losses.softmax_cross_entropy, jnp.array([0, 1]),
    ...                              10.0, outputs=jnp.zeros((2, 2)), cross=jnp.array([[2.0, 1.0]]))
    >>> jnp.argmax(flow.y, axis=1), jnp.argmax(flow.test, axis=1)
    (Array([0, 1], dtype=int32), Array([0], dtype=int32))
    """
    infinity = float("inf")
    if jnp.shape(t) != ():
        got, remedy = f"shape {jnp.shape(t)}", "Use jax.vmap for several times."
        raise invalid(
            "gradient_flow_of_loss(t)", got=got, expected="a number, shape ()", remedy=remedy
        )
    remedy = "Training starts at t = 0, and need not have a limit."
    require_between("gradient_flow_of_loss(t)", t, 0.0, infinity, remedy=remedy)
    if friction is not None:
        remedy = "It slows the model down: (1 - momentum)/√learning_rate."
        require_between("gradient_flow_of_loss(friction)", friction, 0.0, infinity, remedy=remedy)
    names = ("kernel", "outputs", "cross", "test_outputs", "velocity", "test_velocity")
    given = (kernel, outputs, cross, test_outputs, velocity, test_velocity)
    values, dtype = real_arrays("gradient_flow_of_loss", **dict(zip(names, given, strict=True)))
    kernel, outputs, cross, *starts = values
    _require_fit(kernel, outputs, cross, starts, friction)
    _require_one_number_each(jax.eval_shape(loss, outputs, y).shape, outputs.shape)
    n, shape = len(outputs), outputs.shape[1:]
    m = 0 if cross is None else len(cross)
    theta = square("gradient_flow_of_loss", kernel)
    theta = theta if cross is None else jnp.concatenate([theta, as_matrix(cross)])
    zeros = lambda k: jnp.zeros((k, *shape), theta.dtype)

    def joined(train: Array | None, test: Array | None) -> Array:
        return jnp.concatenate(
            [zeros(n) if train is None else train, zeros(m) if test is None else test]
        )

    gradient = jax.grad(lambda f: jnp.sum(loss(f, y)))

    def force(f: Array) -> Array:
        slope = gradient(f[:n])
        columns = as_columns(slope) if kernel.ndim == 2 else slope.reshape(-1, 1)
        return -dot(theta, columns).reshape(f.shape)

    def field(_, state: Array) -> Array:
        if friction is None:
            return force(state)
        return jnp.stack([state[1], force(state[0]) - friction * state[1]])

    state = joined(outputs, starts[0])
    if friction is not None:
        state = jnp.stack([state, joined(starts[1], starts[2])])
    options = {"rtol": rtol, "atol": atol, "first_step": first_step, "max_steps": max_steps}
    solved = integrate(field, state, 0.0, t, **options)
    states = solved.y.astype(dtype)[None] if friction is None else solved.y.astype(dtype)
    train, test = ([part[:n] for part in states], [part[n:] if m else None for part in states])
    return FlowOfLoss(
        train[0],
        solved.t,
        solved.step_size,
        solved.steps,
        solved.finished,
        test=test[0],
        velocity=None if friction is None else train[1],
        test_velocity=None if friction is None else test[1],
    )


def _require_fit(
    kernel: Array,
    outputs: Array,
    cross: Array | None,
    starts: list[Array | None],
    friction: ArrayLike | None,
) -> None:
    n = len(square("gradient_flow_of_loss", kernel))
    size = n if kernel.ndim == 2 else kernel.shape[0]
    fits = outputs.shape[:1] == (size,) and (kernel.ndim == 2 or outputs.size == n)
    cross_fits = cross is None or (
        cross.ndim == kernel.ndim and cross.shape[1:] == kernel.shape[1:]
    )
    shapes = [None if a is None else a.shape for a in (cross, *starts)]
    m = 0 if cross is None else len(cross)
    expected = [(k, *outputs.shape[1:]) for k in (m, size, m)]
    starts_fit = all(s is None or s == e for s, e in zip(shapes[1:], expected, strict=True))
    if not (fits and cross_fits and starts_fit):
        raise invalid(
            "gradient_flow_of_loss(outputs, cross, test_outputs, velocity, test_velocity)",
            got=f"shapes {', '.join(map(str, (outputs.shape, *shapes)))}",
            expected=f"those that fit a kernel {kernel.shape}",
            remedy="outputs and velocity are (N, ...), cross (M, N, ...), the others (M, ...).",
        )
    if friction is None and (starts[1] is not None or starts[2] is not None):
        raise invalid(
            "gradient_flow_of_loss(friction)",
            got="None, with velocities",
            expected="a number ≥ 0",
            remedy="Without friction the slope of the loss sets the velocity.",
        )


def _require_one_number_each(values: Shape, outputs: Shape) -> None:
    if values not in ((), outputs[:1], outputs):
        raise invalid(
            "gradient_flow_of_loss(loss)",
            got=f"values of shape {values} for outputs {outputs}",
            expected=f"{outputs[:1]}, one number per example",
            remedy="Outputs and targets that broadcast against each other give too many terms.",
        )
