"""Optimizers as their equations.

An optimizer is a pair of pure functions with the signatures of an optax `GradientTransformation`:
each can take the other's place. Updates are added to the parameters:

    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = tree.add(params, updates)

Every method below is an equation for one coordinate: from the gradient g, the rate η, the number t
of the step (the first is t = 1) and its memory, to the update and the new memory. `learning_rate`
is a number, a traced scalar, or a schedule, which is called with t - 1 (the first step is 0).

Any pytree of real floating-point leaves will do, empty leaves and empty containers included.
Updates have the dtypes of the gradients. The memory and the arithmetic of a half-precision leaf
are float32: in bfloat16 0.999·v rounds to v, and an average would never forget.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxnn import tree
from jaxnn.errors import concrete, invalid, require_between
from jaxnn.types import Array, ArrayLike, Params, PyTree, Schedule

LearningRate: TypeAlias = ArrayLike | Schedule


class Optimizer(NamedTuple):
    """A rule that turns gradients into updates, which are added to the parameters.

    init    params -> state; raises for leaves that are not real floating point
    update  (grads, state, params=None) -> (updates, state); raises for gradients of another
            structure, shape or kind than the params
    """

    init: Callable[[Params], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]


class GradientDescentState(NamedTuple):
    """t: steps made."""

    t: Int[Array, ""]


class MomentumState(NamedTuple):
    """t: steps made; v: velocity."""

    t: Int[Array, ""]
    v: Params


class AccumulatorState(NamedTuple):
    """t: steps made; G: sum, or moving average, of squared gradients."""

    t: Int[Array, ""]
    G: Params


class AdamState(NamedTuple):
    """t: steps made; m, v: moving averages of the gradient and of its square."""

    t: Int[Array, ""]
    m: Params
    v: Params


class AMSGradState(NamedTuple):
    """t: steps made; m, v: as in Adam; v_hat: the largest v so far."""

    t: Int[Array, ""]
    m: Params
    v: Params
    v_hat: Params


def gradient_descent(learning_rate: LearningRate) -> Optimizer:
    """Gradient descent, stochastic if the gradient is that of a mini-batch: θ ← θ - ηg.

    Errors: a negative learning rate.

    Source: Cauchy (1847); Robbins & Monro (1951).

    >>> optimizer = gradient_descent(0.5)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> optimizer.update(jnp.array([2.0]), state)[0]
    Array([-1.], dtype=float32)
    """

    def equation(g, eta, t):
        return (-eta * g,)

    return _coordinatewise("gradient_descent", GradientDescentState, equation, learning_rate)


def momentum(
    learning_rate: LearningRate, *, mu: ArrayLike = 0.9, rate_in_velocity: bool = True
) -> Optimizer:
    """Gradient descent with momentum, the heavy ball: v ← μv + ηg, θ ← θ - v.

    With `rate_in_velocity=False` v ← μv + g, θ ← θ - ηv, as in optax; the two differ only where η
    varies: there the velocity remembers old rates, here it does not.

    Errors: a negative learning rate, μ outside [0, 1).

    Source: Polyak (1964).

    >>> optimizer = momentum(0.5, mu=0.5)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> update, state = optimizer.update(jnp.array([2.0]), state)
    >>> update
    Array([-1.], dtype=float32)
    >>> optimizer.update(jnp.array([2.0]), state)[0]
    Array([-1.5], dtype=float32)
    """

    def equation(g, eta, t, v, *, mu):
        inside, outside = (eta, 1.0) if rate_in_velocity else (1.0, eta)
        v = mu * v + inside * g
        return -outside * v, v

    return _coordinatewise("momentum", MomentumState, equation, learning_rate, mu=mu)


def nesterov(
    learning_rate: LearningRate, *, mu: ArrayLike = 0.9, rate_in_velocity: bool = True
) -> Optimizer:
    """Nesterov's accelerated gradient: the gradient is taken where the velocity leads.

    v ← μv + η∇J(θ - μv), θ ← θ - v. The params of this optimizer are the look-ahead point
    φ = θ - μv, where gradients are then taken as for any other optimizer. In φ the same steps are

        v ← μv + ηg,   φ ← φ - (μv + ηg)   with g = ∇J(φ).

    As v = 0 at first, φ starts at θ; the text's point is θ = φ + μv at any time,
    `tree.axpy(mu, state.v, params)`. With `rate_in_velocity=False` v ← μv + g, φ ← φ - η(μv + g),
    as in optax, which differs where η varies.

    Errors: a negative learning rate, μ outside [0, 1).

    Source: Nesterov (1983); in φ, Bengio, Boulanger-Lewandowski & Pascanu (2013).

    >>> optimizer = nesterov(0.5, mu=0.5)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> update, state = optimizer.update(jnp.array([2.0]), state)
    >>> update
    Array([-1.5], dtype=float32)
    >>> optimizer.update(jnp.array([2.0]), state)[0]
    Array([-1.75], dtype=float32)
    """

    def equation(g, eta, t, v, *, mu):
        inside, outside = (eta, 1.0) if rate_in_velocity else (1.0, eta)
        v = mu * v + inside * g
        return -outside * (mu * v + inside * g), v

    return _coordinatewise("nesterov", MomentumState, equation, learning_rate, mu=mu)


def adagrad(
    learning_rate: LearningRate, *, eps: ArrayLike = 1e-7, initial_accumulator: ArrayLike = 0.0
) -> Optimizer:
    """AdaGrad: G ← G + g², θ ← θ - η/√(G + ε) g, with ε inside the root.

    G starts at `initial_accumulator`, which the text has 0 and optax 0.1.

    Errors: a negative learning rate, ε or initial accumulator.

    Source: Duchi, Hazan & Singer (2011), figure 1, diagonal; there ε is outside the root.

    >>> optimizer = adagrad(0.5, eps=0.0)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> update, state = optimizer.update(jnp.array([3.0]), state)
    >>> update
    Array([-0.5], dtype=float32)
    >>> optimizer.update(jnp.array([4.0]), state)[0]
    Array([-0.4], dtype=float32)
    """
    _require("adagrad", "initial_accumulator", initial_accumulator)

    def equation(g, eta, t, G, *, eps):
        G = G + g**2
        return -eta * _over(g, _sqrt(G + eps)), G

    return _coordinatewise(
        "adagrad", AccumulatorState, equation, learning_rate, start=initial_accumulator, eps=eps
    )


def rmsprop(
    learning_rate: LearningRate,
    *,
    gamma: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    eps_in_root: bool = True,
) -> Optimizer:
    """RMSprop: G ← γG + (1 - γ)g², θ ← θ - η/√(G + ε) g, with ε inside the root.

    With `eps_in_root=False` the divisor is √G + ε.

    Errors: a negative learning rate or ε, γ outside [0, 1).

    Source: Tieleman & Hinton (2012), lecture 6.5.

    >>> optimizer = rmsprop(0.5, gamma=0.75)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> optimizer.update(jnp.array([3.0]), state)[0]
    Array([-1.], dtype=float32)
    """

    def equation(g, eta, t, G, *, gamma, eps):
        G = gamma * G + (1.0 - gamma) * g**2
        return -eta * _over(g, _sqrt(G + eps) if eps_in_root else _sqrt(G) + eps), G

    return _coordinatewise(
        "rmsprop", AccumulatorState, equation, learning_rate, gamma=gamma, eps=eps
    )


def adam(
    learning_rate: LearningRate,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> Optimizer:
    """Adam: averages of the gradient and its square, corrected for starting at 0.

        m ← β₁m + (1 - β₁)g,     m̂ = m/(1 - β₁ᵗ),
        v ← β₂v + (1 - β₂)g²,    v̂ = v/(1 - β₂ᵗ),     θ ← θ - η m̂/(√v̂ + ε),

    with ε outside the root. It need not converge even on convex objectives, for which the source's
    proof of a regret bound fails: see `amsgrad`.

    Errors: a negative learning rate or ε, β₁ or β₂ outside [0, 1).

    Source: Kingma & Ba (2015), algorithm 1.

    >>> optimizer = adam(0.5, beta1=0.5, beta2=0.75)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> optimizer.update(jnp.array([3.0]), state)[0]
    Array([-0.5], dtype=float32)
    """
    return _adam("adam", learning_rate, beta1=beta1, beta2=beta2, eps=eps)


def adamw(
    learning_rate: LearningRate,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
) -> Optimizer:
    """Adam with weight decay outside the averages: θ ← θ - η(m̂/(√v̂ + ε) + λθ).

    m̂ and v̂ are those of `adam`; λ is `weight_decay`. An L2 term in the objective would instead
    be divided by √v̂ like any gradient, and decay less where gradients are large.

    Errors: a negative learning rate, ε or weight decay, β₁ or β₂ outside [0, 1), `update` without
    params.

    Source: Loshchilov & Hutter (2019), algorithm 2, with η in the place of both ηₜ and ηₜα.

    >>> optimizer = adamw(0.5, beta1=0.5, beta2=0.75, weight_decay=0.25)
    >>> theta = jnp.array([2.0])
    >>> optimizer.update(jnp.array([3.0]), optimizer.init(theta), theta)[0]
    Array([-0.75], dtype=float32)
    """
    base = _adam("adamw", learning_rate, beta1=beta1, beta2=beta2, eps=eps)
    _require("adamw", "weight_decay", weight_decay)

    def update(grads: PyTree, state: AdamState, params: Params = None) -> tuple[PyTree, AdamState]:
        if params is None:
            raise invalid(
                "adamw.update: params",
                got=None,
                expected="the parameters, which the weight decay needs",
                remedy="Call update(grads, state, params).",
            )
        updates, new_state = base.update(grads, state, params)
        decay = tree.scale(_rate(learning_rate, state.t), tree.scale(weight_decay, params))
        return tree.sub(updates, decay), new_state

    return Optimizer(base.init, update)


def amsgrad(
    learning_rate: LearningRate,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    bias_correction: bool = False,
) -> Optimizer:
    """AMSGrad: Adam whose divisor never shrinks, which repairs Adam's proof of convergence.

        m ← β₁m + (1 - β₁)g,   v ← β₂v + (1 - β₂)g²,   v̂ ← max(v̂, v),   θ ← θ - η m/(√v̂ + ε).

    The source has no ε (pass 0 for its equation) and no bias correction. With
    `bias_correction=True` the update has m/(1 - β₁ᵗ) for m and the maximum v/(1 - β₂ᵗ) for v, as
    in optax.

    Errors: a negative learning rate or ε, β₁ or β₂ outside [0, 1).

    Source: Reddi, Kale & Kumar (2018), algorithm 2, without the projection.

    >>> optimizer = amsgrad(0.5, beta1=0.0, beta2=0.75)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> update, state = optimizer.update(jnp.array([4.0]), state)
    >>> update
    Array([-1.], dtype=float32)
    >>> optimizer.update(jnp.array([1.0]), state)[0]
    Array([-0.25], dtype=float32)
    """

    def equation(g, eta, t, m, v, v_hat, *, beta1, beta2, eps):
        m = beta1 * m + (1.0 - beta1) * g
        v = beta2 * v + (1.0 - beta2) * g**2
        if bias_correction:
            v_hat = jnp.maximum(v_hat, v / (1.0 - beta2**t))
            return -eta * _over(m / (1.0 - beta1**t), _sqrt(v_hat) + eps), m, v, v_hat
        v_hat = jnp.maximum(v_hat, v)
        return -eta * _over(m, _sqrt(v_hat) + eps), m, v, v_hat

    return _coordinatewise(
        "amsgrad", AMSGradState, equation, learning_rate, beta1=beta1, beta2=beta2, eps=eps
    )


def _adam(name: str, learning_rate: LearningRate, **constants: ArrayLike) -> Optimizer:
    def equation(g, eta, t, m, v, *, beta1, beta2, eps):
        m = beta1 * m + (1.0 - beta1) * g
        v = beta2 * v + (1.0 - beta2) * g**2
        m_hat, v_hat = m / (1.0 - beta1**t), v / (1.0 - beta2**t)
        return -eta * _over(m_hat, _sqrt(v_hat) + eps), m, v

    return _coordinatewise(name, AdamState, equation, learning_rate, **constants)


def _coordinatewise(
    name: str,
    state_type: Any,
    equation: Callable[..., tuple[Array, ...]],
    learning_rate: LearningRate,
    *,
    start: ArrayLike = 0.0,
    **constants: ArrayLike,
) -> Optimizer:
    """The optimizer of `equation`: (g, η, t, *memory, **constants) ↦ (update, *memory).

    The state is t, and for each entry of the memory a tree like the params, filled with `start`.
    """
    _require(name, "learning_rate", learning_rate)
    for argument, value in constants.items():
        _require(name, argument, value)

    def init(params: Params) -> Any:
        tree.require_differentiable(f"{name}.init: params", params)
        memory = [
            jax.tree.map(lambda leaf: jnp.full(jnp.shape(leaf), start, _precision(leaf)), params)
            for _ in range(len(state_type._fields) - 1)
        ]
        return state_type(jnp.zeros((), jnp.int32), *memory)

    def update(grads: PyTree, state: Any, params: Params = None) -> tuple[PyTree, Any]:
        _, *memory = state
        for like in (*memory, *([] if params is None else [params])):
            _require_like(name, grads, like)
        eta = _rate(learning_rate, state.t)
        # The last step number repeats: one more would wrap around to a negative one.
        t = jnp.minimum(state.t, jnp.iinfo(jnp.int32).max - 1) + 1

        def coordinates(g: ArrayLike, *memory: Array) -> tuple[Array, ...]:
            dtype = _precision(g)
            variables = (jnp.asarray(x, dtype) for x in (g, eta, t, *memory))
            scalars = {key: _constant(value, dtype) for key, value in constants.items()}
            return equation(*variables, **scalars)

        results = jax.tree.map(coordinates, grads, *memory)
        updates, *memory = (
            jax.tree.map(
                lambda like, result, i=i: result[i].astype(jnp.result_type(like)), likes, results
            )
            for i, likes in enumerate((grads, *memory))
        )
        return updates, state_type(t, *memory)

    return Optimizer(init, update)


def _rate(learning_rate: LearningRate, step: Array) -> ArrayLike:
    return learning_rate(step) if callable(learning_rate) else learning_rate


def _precision(leaf: ArrayLike) -> jnp.dtype:
    """The dtype of a leaf's memory and arithmetic: its own, but at least float32."""
    dtype = jnp.result_type(leaf)
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def _constant(value: ArrayLike, dtype: jnp.dtype) -> ArrayLike:
    # A known number stays a Python float, in which 1 - 0.999 keeps all its digits.
    number = concrete(value)
    return jnp.asarray(value, dtype) if number is None else number


def _sqrt(x: Array) -> Array:
    """√x with derivative 0 instead of ∞ at 0, so that a run can be differentiated."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def _over(x: Array, y: Array) -> Array:
    """x/y, and 0 where y = 0: with ε = 0, a coordinate that never had a gradient stays put."""
    zero = y == 0
    return jnp.where(zero, 0.0, x / jnp.where(zero, 1.0, y))


_SHARES = ("mu", "gamma", "beta1", "beta2")


def _require(name: str, argument: str, value: Any) -> None:
    where = f"{name}({argument})"
    is_rate = argument == "learning_rate"
    if is_rate and callable(value):
        return
    try:
        scalar = jnp.ndim(value) == 0
    except TypeError:
        scalar = False
    if not scalar:
        raise invalid(
            where,
            got=f"shape {jnp.shape(value)}" if hasattr(value, "shape") else repr(value),
            expected="a scalar, or a schedule step ↦ rate" if is_rate else "a scalar",
            remedy="Use jax.vmap to run several values at once.",
        )
    high, remedy = (
        (1.0, "It is the share of the past that a step keeps.")
        if argument in _SHARES
        else (math.inf, "Signs are in the equation: this is a magnitude.")
    )
    require_between(where, value, 0.0, high, remedy=remedy)


def _require_like(name: str, grads: PyTree, like: PyTree) -> None:
    where = f"{name}.update: grads"
    remedy = "Take the gradient with respect to the params that init was given."
    tree.require_differentiable(where, grads)
    got, expected = jax.tree.structure(grads), jax.tree.structure(like)
    if got != expected:
        raise invalid(where, got=got, expected=f"the structure {expected}", remedy=remedy)
    leaves = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(like), strict=True)
    for (path, g), leaf in leaves:
        if jnp.shape(g) != jnp.shape(leaf):
            raise invalid(
                where + jax.tree_util.keystr(path),
                got=f"shape {jnp.shape(g)}",
                expected=f"shape {jnp.shape(leaf)}",
                remedy=remedy,
            )
