"""Activations as layers, each with its infinite-width kernel: in closed form or by quadrature."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxnn.errors import invalid, require_between, require_real
from jaxnn.nn import activations, duals, limit, logistic, quadrature
from jaxnn.nn.layers import Layer, require_count, require_in_shape, stateless
from jaxnn.precision import accumulated, inexact
from jaxnn.types import Array, Key, Params, Shape


def elementwise(
    fn: Callable[[Array], Array], *, dual: duals.DualActivation | None = None, name: str = ""
) -> Layer:
    """The layer of a function that acts on every unit alone, y = φ(x).

    `dual` is (k, v₁, v₂) ↦ (E[φ(u)φ(w)], E[φ'(u)φ'(w)]) for centered Gaussian (u, w) of variances
    v₁, v₂ and covariance k. Without it `.kernel` integrates numerically, by `quadrature.kinked`:
    exact for functions that are smooth but for a kink at 0. For analytic functions
    `dual=nn.quadrature.smooth(fn)` is tens of times cheaper. `name` appears in errors.

    >>> elementwise(jnp.square).apply((), jnp.array([[-2.0, 3.0]]))
    Array([[4., 9.]], dtype=float32)
    """
    name = name or getattr(fn, "__name__", type(fn).__name__)
    dual = quadrature.kinked(fn) if dual is None else dual
    kernel = partial(limit.activate, dual=dual, layer=name)
    return stateless(name, lambda x: fn(inexact(x)), kernel)


def relu() -> Layer:
    """max(0, x); the limit is the arc-cosine kernel of degree 1 (Cho & Saul, 2009)."""
    return elementwise(activations.relu, dual=duals.piecewise_linear(0.0, 1.0))


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
        fn, dual=duals.piecewise_linear(slope, 1.0, at_zero=slope), name="leaky_relu"
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
    return elementwise(activations.abs, dual=duals.piecewise_linear(-1.0, 1.0))


def piecewise_linear(negative: float, positive: float) -> Layer:
    """positive·x for x > 0, negative·x otherwise: a·min(x, 0) + b·max(x, 0).

    >>> piecewise_linear(-1.0, 2.0).apply((), jnp.array([[-3.0, 3.0]]))
    Array([[3., 6.]], dtype=float32)
    """

    def fn(x: Array) -> Array:
        require_real("piecewise_linear: x", x)
        return jnp.where(x > 0, positive * x, negative * x)

    dual = duals.piecewise_linear(negative, positive, at_zero=negative)
    return elementwise(fn, dual=dual, name="piecewise_linear")


def erf(scale: float = 1.0, slope: float = 1.0, shift: float = 0.0) -> Layer:
    """scale·erf(slope·x) + shift; its limit is the arcsine kernel (Williams, 1998)."""
    fn = partial(activations.erf, scale=scale, slope=slope, shift=shift)
    return elementwise(fn, dual=duals.scaled_erf(scale, slope, shift), name="erf")


def sin() -> Layer:
    """Sine, in radians."""
    return elementwise(activations.sin, dual=duals.sin)


def cos() -> Layer:
    """Cosine, in radians."""
    return elementwise(activations.cos, dual=duals.cos)


def rbf(gamma: float = 1.0) -> Layer:
    """√2 sin(√(2γ)x + π/4), whose limit is the Gaussian kernel e^{-γ(v₁ + v₂ - 2k)}.

    Errors: gamma outside (0, ∞).

    Source: Rahimi & Recht (2007), section 3.
    """
    remedy = "It is the inverse of a squared length, halved."
    require_between("rbf(gamma)", gamma, 0.0, math.inf, low_open=True, remedy=remedy)
    frequency = math.sqrt(2.0 * gamma)
    wave = lambda x: math.sqrt(2.0) * jnp.sin(frequency * x + math.pi / 4.0)
    fn = partial(accumulated, wave)
    return elementwise(fn, dual=duals.rbf(gamma), name="rbf")


def gaussian(precision: float = 1.0) -> Layer:
    """exp(-precision·x²).

    Errors: a precision outside (0, ∞).
    """
    remedy = "It is the inverse of a squared length."
    require_between("gaussian(precision)", precision, 0.0, math.inf, low_open=True, remedy=remedy)
    fn = partial(activations.gaussian, precision=precision)
    return elementwise(fn, dual=duals.gaussian(precision), name="gaussian")


def exp() -> Layer:
    """eˣ."""
    return elementwise(activations.exp, dual=duals.exp)


def polynomial(coefficients: Sequence[float]) -> Layer:
    """Σ_p c_p xᵖ, coefficients from the constant up.

    Errors: no coefficient.

    >>> polynomial((0.0, 0.0, 1.0)).apply((), jnp.array([[-2.0, 3.0]]))
    Array([[4., 9.]], dtype=float32)
    """
    coefficients = tuple(float(c) for c in coefficients)
    if not coefficients:
        raise invalid(
            "polynomial(coefficients)",
            got="()",
            expected="at least one number",
            remedy="Pass c_0, c_1, ..., from the constant up.",
        )
    fn = partial(activations.polynomial, coefficients=coefficients)
    return elementwise(fn, dual=duals.polynomial(coefficients), name="polynomial")


def monomial(degree: int) -> Layer:
    """xᵖ for p = `degree` ≥ 1.

    Errors: a degree that is no integer ≥ 1.
    """
    require_count("monomial(degree)", degree, "It is the power of x.")
    return polynomial((0.0,) * degree + (1.0,))._replace(name="monomial")


def hermite(degree: int) -> Layer:
    """The Hermite polynomial He_p(x)/√p!, p = `degree`, which has E[φ(z)²] = 1 for z ~ N(0, 1).

    Errors: a degree that is no integer ≥ 1.

    >>> hermite(2).apply((), jnp.array([[1.0, 3.0]]))
    Array([[0.      , 5.656854]], dtype=float32)
    """
    require_count("hermite(degree)", degree, "It is that of the polynomial.")
    powers = np.polynomial.hermite_e.herme2poly([0.0] * degree + [1.0])
    return polynomial(tuple((powers / math.sqrt(math.factorial(degree))).tolist()))._replace(
        name="hermite"
    )


def rectified_monomial(degree: int) -> Layer:
    """max(0, x)ᵖ for p = `degree` ≥ 1; the limit is the arc-cosine kernel of degree p.

    Errors: a degree that is no integer ≥ 1.
    """
    require_count("rectified_monomial(degree)", degree, "Degree 0 is nn.threshold.")
    if degree == 1:
        return relu()
    fn = partial(activations.rectified_monomial, degree=degree)
    return elementwise(fn, dual=duals.rectified_monomial(degree), name="rectified_monomial")


def sigmoid() -> Layer:
    """σ(x) = 1/(1 + e⁻ˣ)."""
    return _analytic(activations.sigmoid, "sigmoid", logistic.sigmoid)


def tanh() -> Layer:
    """Hyperbolic tangent."""
    return _analytic(activations.tanh, "tanh", logistic.tanh())


def elu(alpha: float = 1.0) -> Layer:
    """x for x > 0, alpha·(eˣ - 1) otherwise."""
    return elementwise(partial(activations.elu, alpha=alpha), name="elu")


def selu() -> Layer:
    """The self-normalizing ELU."""
    return elementwise(activations.selu)


def swish(beta: float = 1.0) -> Layer:
    """x·σ(beta·x)."""
    beyond = logistic.swish(beta) if beta else None
    return _analytic(partial(activations.swish, beta=beta), "swish", beyond)


def gelu() -> Layer:
    """x·Φ(x), exact."""
    return elementwise(activations.gelu, dual=duals.gelu)


def gelu_tanh() -> Layer:
    """The tanh form of GELU."""
    return _analytic(activations.gelu_tanh, "gelu_tanh")


def softplus() -> Layer:
    """ln(1 + eˣ)."""
    return _analytic(activations.softplus, "softplus", logistic.softplus)


def sign() -> Layer:
    """-1, 0 or 1; no gradient passes."""
    return elementwise(activations.sign, dual=duals.sign)


def threshold() -> Layer:
    """1 for x ≥ 0, else 0; no gradient passes."""
    return elementwise(activations.threshold, dual=duals.threshold)


def softmax() -> Layer:
    """exp(xᵢ)/Σⱼ exp(xⱼ) along the last axis; couples units, so there is no kernel."""
    remedy = "Take the kernel of the logits: leave softmax to the loss."
    return stateless("softmax", activations.softmax, limit.no_limit("softmax", remedy))


def _analytic(
    fn: Callable[[Array], Array], name: str, beyond: duals.DualActivation | None = None
) -> Layer:
    return elementwise(fn, dual=quadrature.smooth(fn, beyond=beyond), name=name)
