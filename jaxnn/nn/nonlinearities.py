"""Activations as layers, each with its infinite-width kernel where there is a closed form."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from jaxnn.errors import require_between
from jaxnn.nn import activations, limit
from jaxnn.nn.layers import Layer, require_in_shape, stateless
from jaxnn.types import Array, Key, Params, Shape


def elementwise(
    fn: Callable[[Array], Array], *, dual: limit.DualActivation | None = None, name: str = ""
) -> Layer:
    """The layer of a function that acts on every unit alone, y = φ(x).

    `dual` is (k, v₁, v₂) ↦ (E[φ(u)φ(w)], E[φ'(u)φ'(w)]) for centered Gaussian (u, w) of variances
    v₁, v₂ and covariance k; without it `.kernel` raises. `name` appears in errors.

    >>> elementwise(jnp.square).apply((), jnp.array([[-2.0, 3.0]]))
    Array([[4., 9.]], dtype=float32)
    """
    name = name or getattr(fn, "__name__", type(fn).__name__)
    if dual is None:
        remedy = "Pass elementwise(fn, dual=...), or use an activation whose limit is known."
        return stateless(name, fn, limit.no_limit(name, remedy))
    return stateless(name, fn, partial(limit.activate, dual=dual, layer=name))


def relu() -> Layer:
    """max(0, x); the limit is the arc-cosine kernel of degree 1 (Cho & Saul, 2009)."""
    return elementwise(activations.relu, dual=limit.piecewise_linear(0.0, 1.0))


def leaky_relu(slope: float = 0.01) -> Layer:
    """x for x > 0, slope·x otherwise.

    Errors: a slope that is no number in (-∞, ∞).
    """
    require_between(
        "leaky_relu(slope)",
        slope,
        -float("inf"),
        float("inf"),
        low_open=True,
        remedy="It is the derivative for x < 0.",
    )
    fn = partial(activations.leaky_relu, slope=slope)
    return elementwise(
        fn, dual=limit.piecewise_linear(slope, 1.0, at_zero=slope), name="leaky_relu"
    )


def prelu(slope: float = 0.25) -> Layer:
    """Leaky ReLU whose slope is learned: one number per layer, params {"slope": α}.

    Source: He et al. (2015), equation 1, in its channel-shared form.

    >>> prelu().apply({"slope": jnp.array(0.5)}, jnp.array([[-2.0, 2.0]]))
    Array([[-1.,  2.]], dtype=float32)
    """

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape("prelu", in_shape, min_rank=0)
        return {"slope": jnp.asarray(slope, float)}, in_shape

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        return activations.leaky_relu(x, params["slope"])

    remedy = "The shared slope has a gradient that grows with the width: fix it by leaky_relu."
    return Layer(init, apply, limit.no_limit("prelu", remedy), "prelu")


def abs() -> Layer:
    """|x|."""
    return elementwise(activations.abs, dual=limit.piecewise_linear(-1.0, 1.0))


def erf() -> Layer:
    """The error function; its limit is the arcsine kernel (Williams, 1998)."""
    return elementwise(activations.erf, dual=limit.erf)


def sin() -> Layer:
    """Sine, in radians."""
    return elementwise(activations.sin, dual=limit.sin)


def cos() -> Layer:
    """Cosine, in radians."""
    return elementwise(activations.cos, dual=limit.cos)


def sigmoid() -> Layer:
    """σ(x) = 1/(1 + e⁻ˣ)."""
    return elementwise(activations.sigmoid)


def tanh() -> Layer:
    """Hyperbolic tangent."""
    return elementwise(activations.tanh)


def elu(alpha: float = 1.0) -> Layer:
    """x for x > 0, alpha·(eˣ - 1) otherwise."""
    return elementwise(partial(activations.elu, alpha=alpha), name="elu")


def selu() -> Layer:
    """The self-normalizing ELU."""
    return elementwise(activations.selu)


def swish(beta: float = 1.0) -> Layer:
    """x·σ(beta·x)."""
    return elementwise(partial(activations.swish, beta=beta), name="swish")


def gelu() -> Layer:
    """x·Φ(x), exact."""
    return elementwise(activations.gelu)


def gelu_tanh() -> Layer:
    """The tanh form of GELU."""
    return elementwise(activations.gelu_tanh)


def softplus() -> Layer:
    """ln(1 + eˣ)."""
    return elementwise(activations.softplus)


def threshold() -> Layer:
    """1 for x ≥ 0, else 0; no gradient passes."""
    return elementwise(activations.threshold)


def softmax() -> Layer:
    """exp(xᵢ)/Σⱼ exp(xⱼ) along the last axis; couples units, so there is no kernel."""
    remedy = "Take the kernel of the logits: leave softmax to the loss."
    return stateless("softmax", activations.softmax, limit.no_limit("softmax", remedy))
