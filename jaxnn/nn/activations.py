"""The activation functions of the texts, elementwise and safe to differentiate anywhere.

Every function maps an array to one of the same shape and dtype; integers and booleans become
floating-point numbers first (see `jaxnn.precision`), and functions that need an order of numbers
refuse complex ones. Values and `jax.grad` are finite for every finite input, also where the
textbook formula overflows. As layers (`nn.relu()`, ...) they live in `jaxnn.nn.nonlinearities`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact, Shaped

from jaxnn.errors import require_real
from jaxnn.precision import accumulated, inexact
from jaxnn.types import Array, ArrayLike


def identity(x: Array) -> Array:
    """φ(x) = x, the linear output head.

    >>> identity(jnp.array(-2.0))
    Array(-2., dtype=float32, weak_type=True)
    """
    return x


def sigmoid(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """σ(x) = 1/(1 + e⁻ˣ), with σ' = σ(1 - σ) ≤ 1/4.

    >>> sigmoid(jnp.array([-1e4, 0.0, 1e4]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return jax.nn.sigmoid(inexact(x))


def tanh(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """tanh x = 2σ(2x) - 1, with tanh' = 1 - tanh² ≤ 1.

    >>> tanh(jnp.array([-1e4, 0.0]))
    Array([-1.,  0.], dtype=float32)
    """
    return jnp.tanh(inexact(x))


def relu(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """max(0, x), with derivative 0 at 0.

    >>> relu(jnp.array([-1.0, 2.0])), jax.grad(relu)(0.0)
    (Array([0., 2.], dtype=float32), Array(0., dtype=float32, weak_type=True))
    """
    return jax.nn.relu(_real("relu", x))


def leaky_relu(x: Shaped[Array, "..."], slope: ArrayLike = 0.01) -> Inexact[Array, "..."]:
    """x for x > 0, αx otherwise, with derivative α = `slope` at 0.

    With a learned slope this is PReLU (He et al., 2015).

    >>> leaky_relu(jnp.array([-2.0, 2.0]), 0.1)
    Array([-0.2,  2. ], dtype=float32)
    """
    x = _real("leaky_relu", x)
    return jnp.where(x > 0, x, jnp.asarray(slope, x.dtype) * x)


def abs(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """|x|, with derivative 0 at 0.

    >>> abs(jnp.array([-2.0, 3.0])), jax.grad(abs)(0.0)
    (Array([2., 3.], dtype=float32), Array(0., dtype=float32, weak_type=True))
    """
    x = inexact(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.abs(x)
    # Not jnp.abs, whose derivative at a real 0 is 1.
    return x * jnp.sign(x)


def elu(x: Shaped[Array, "..."], alpha: ArrayLike = 1.0) -> Inexact[Array, "..."]:
    """x for x > 0, α(eˣ - 1) otherwise.  Source: Clevert, Unterthiner & Hochreiter (2016).

    >>> elu(jnp.array([-1e4, 2.0]))
    Array([-1.,  2.], dtype=float32)
    """
    x = _real("elu", x)
    return jax.nn.elu(x, jnp.asarray(alpha, x.dtype))


def selu(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """λ·ELU_α(x), with λ, α such that N(0, 1) is a fixed point of mean and variance.

    Source: Klambauer et al. (2017), equation 14: λ ≈ 1.0507, α ≈ 1.6733.

    >>> selu(jnp.array([0.0, 1.0]))
    Array([0.      , 1.050701], dtype=float32)
    """
    return jax.nn.selu(_real("selu", x))


def softplus(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """ln(1 + eˣ), whose derivative is σ(x).

    >>> softplus(jnp.array([-1e4, 1e4]))
    Array([    0., 10000.], dtype=float32)
    """
    return jax.nn.softplus(_real("softplus", x))


def swish(x: Shaped[Array, "..."], beta: ArrayLike = 1.0) -> Inexact[Array, "..."]:
    """x·σ(βx).  Source: Ramachandran, Zoph & Le (2017).

    >>> swish(jnp.array([-1e4, 0.0, 1e4]))
    Array([   -0.,     0., 10000.], dtype=float32)
    """
    x = inexact(x)
    return x * jax.nn.sigmoid(jnp.asarray(beta, x.dtype) * x)


def gelu(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """x·Φ(x), where Φ is the standard normal distribution function.

    Source: Hendrycks & Gimpel (2016).

    >>> gelu(jnp.array([-1e4, 1e4]))
    Array([   -0., 10000.], dtype=float32)
    """
    return accumulated(jax.nn.gelu, _real("gelu", x), approximate=False)


def gelu_tanh(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """½x(1 + tanh(√(2/π)(x + 0.044715x³))), the common approximation of GELU.

    Source: Hendrycks & Gimpel (2016), section 2.

    >>> gelu_tanh(jnp.array([-1e4, 1e4]))
    Array([   -0., 10000.], dtype=float32)
    """
    # tanh(√(2/π)·z) is ±1 to machine precision beyond |x| = 12; the cube must not overflow, since
    # 0·∞ would make the derivative NaN.
    return accumulated(_gelu_tanh, _real("gelu_tanh", x))


def _gelu_tanh(x: Array) -> Array:
    z = jnp.clip(x, -12.0, 12.0)
    return 0.5 * x * (1.0 + jnp.tanh((2.0 / jnp.pi) ** 0.5 * (z + 0.044715 * z**3)))


def erf(
    x: Shaped[Array, "..."], scale: float = 1.0, slope: float = 1.0, shift: float = 0.0
) -> Inexact[Array, "..."]:
    """The error function 2/√π ∫₀ˣ exp(-t²) dt, scaled: `scale`·erf(`slope`·x) + `shift`.

    The sigmoid with a closed-form infinite-width kernel; scale = shift = ½, slope = √π/4
    have the value and the slope of the logistic function at 0.

    >>> erf(jnp.array([-1e4, 0.0]))
    Array([-1.,  0.], dtype=float32)
    """
    return accumulated(lambda x: scale * lax.erf(slope * x) + shift, _real("erf", x))


def sin(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """Sine of x in radians.

    >>> sin(jnp.array(0.0))
    Array(0., dtype=float32, weak_type=True)
    """
    return jnp.sin(inexact(x))


def cos(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """Cosine of x in radians.

    >>> cos(jnp.array(0.0))
    Array(1., dtype=float32, weak_type=True)
    """
    return jnp.cos(inexact(x))


def gaussian(x: Shaped[Array, "..."], precision: float = 1.0) -> Inexact[Array, "..."]:
    """exp(-βx²) for β = `precision`.

    >>> gaussian(jnp.array([0.0, 1e30]))
    Array([1., 0.], dtype=float32)
    """
    # Where the square would overflow, and 0·∞ be its derivative, the value is 0.
    x = _real("gaussian", x)
    return accumulated(lambda x: jnp.exp(-precision * jnp.clip(x, -1e4, 1e4) ** 2), x)


def exp(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """eˣ; it overflows where x > ln(largest float).

    >>> exp(jnp.array(0.0))
    Array(1., dtype=float32, weak_type=True)
    """
    return jnp.exp(inexact(x))


def sign(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """-1, 0 or 1. Its derivative is 0 everywhere.

    >>> sign(jnp.array([-0.5, 0.0, 0.5]))
    Array([-1.,  0.,  1.], dtype=float32)
    """
    return jnp.sign(_real("sign", x))


def polynomial(x: Shaped[Array, "..."], coefficients: Sequence[float]) -> Inexact[Array, "..."]:
    """Σ_p c_p xᵖ, by Horner's rule.

    >>> polynomial(jnp.array([-2.0, 3.0]), (1.0, 0.0, 2.0))
    Array([ 9., 19.], dtype=float32)
    """

    def horner(x: Array) -> Array:
        total = jnp.zeros_like(x)
        for c in reversed(coefficients):
            total = total * x + c
        return total

    return accumulated(horner, x)


def rectified_monomial(x: Shaped[Array, "..."], degree: int) -> Inexact[Array, "..."]:
    """max(x, 0)ᵖ for an integer p = `degree` ≥ 1.

    >>> rectified_monomial(jnp.array([-2.0, 3.0]), 2)
    Array([0., 9.], dtype=float32)
    """
    return accumulated(lambda x: jax.nn.relu(x) ** degree, _real("rectified_monomial", x))


def softmax(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """exp(xᵢ)/Σⱼ exp(xⱼ) along the last axis: a point of the probability simplex.

    >>> softmax(jnp.array([1e4, 1e4]))
    Array([0.5, 0.5], dtype=float32)
    """
    return accumulated(jax.nn.softmax, _real("softmax", x), axis=-1)


def threshold(x: Shaped[Array, "..."]) -> Inexact[Array, "..."]:
    """1 for x ≥ 0 and 0 otherwise: the all-or-none neuron. Its derivative is 0 everywhere.

    Source: McCulloch & Pitts (1943).

    >>> threshold(jnp.array([-0.5, 0.0, 0.5]))
    Array([0., 1., 1.], dtype=float32)
    """
    x = _real("threshold", x)
    return jnp.where(x >= 0, jnp.ones_like(x), jnp.zeros_like(x))


def _real(activation: str, x: ArrayLike) -> Array:
    require_real(f"{activation}: x", x)
    return inexact(x)
