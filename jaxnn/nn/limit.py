"""Networks of infinite width: the covariance recursion that every layer's `.kernel` is a step of.

At random weights and infinite width the features of a layer are independent draws of one centered
Gaussian process. A `Kernel` holds its covariance (NNGP) and the tangent kernel (NTK) for pairs of
inputs; a layer maps one `Kernel` to the next. Source: Neal (1996); Lee et al. (2018);
Jacot, Gabriel & Hongler (2018).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.types import Array

DualActivation: TypeAlias = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(k, v₁, v₂) ↦ (E[φ(u)φ(w)], E[φ'(u)φ'(w)]) for (u, w) ~ N(0, [[v₁, k], [k, v₂]])."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """Second moments of a layer's features over pairs of inputs, and the tangent kernel.

    Everything is elementwise over pairs: `nngp` and `ntk` are (N1, N2), `variance1` is (N1, 1) and
    `variance2` (1, N2), or all four share one shape.

    nngp       E[h(x) h(x')], per feature
    ntk        Σ_θ ∂f(x)/∂θ · ∂f(x')/∂θ, per output
    variance1  E[h(x)²];  variance2  E[h(x')²]
    width      number of features (static); scales the NTK in the standard parametrization
    depth      number of weight layers on the shortest path here (static)
    gaussian   whether the features are centered Gaussian (static): activations need it to be so
    """

    nngp: Float[Array, "*pairs"]
    ntk: Float[Array, "*pairs"]
    variance1: Float[Array, "..."]
    variance2: Float[Array, "..."]
    width: int = field(metadata={"static": True})
    depth: int = field(default=0, metadata={"static": True})
    gaussian: bool = field(default=False, metadata={"static": True})


def inputs(x1: Float[Array, "N1 d"], x2: Float[Array, "N2 d"]) -> Kernel:
    """The kernel of the data: k(x, x') = x·x'/d and no tangent part.

    Errors: data that are not floating point, since products of small integers overflow.

    >>> inputs(jnp.ones((2, 4)), 2.0 * jnp.ones((3, 4))).nngp.shape
    (2, 3)
    """
    tree.require_differentiable("x1", x1)
    tree.require_differentiable("x2", x2)
    d = x1.shape[-1]
    # Accelerators would round float32 to fewer bits by default, and angles amplify the error.
    nngp = jnp.matmul(x1, x2.T, precision=lax.Precision.HIGHEST) / d
    variance1, variance2 = jnp.mean(x1**2, axis=1)[:, None], jnp.mean(x2**2, axis=1)[None, :]
    return Kernel(nngp, jnp.zeros_like(nngp), variance1, variance2, width=d)


def paired_inputs(x: Float[Array, "N d"]) -> Kernel:
    """The kernel of every input with itself, shape (N,): the diagonal, without cancellation.

    Errors: data that are not floating point.

    >>> paired_inputs(2.0 * jnp.ones((3, 4))).nngp
    Array([4., 4., 4.], dtype=float32)
    """
    tree.require_differentiable("x", x)
    v = jnp.mean(x**2, axis=1)
    return Kernel(v, jnp.zeros_like(v), v, v, width=x.shape[-1])


def affine(
    kernel: Kernel, width: int, weight_std: float, bias_std: float, parametrization: str
) -> Kernel:
    """A dense layer: K' = σ_w²K + σ_b², and Θ' = σ_w²Θ + (what its own parameters add).

    Its own parameters add K' in the NTK parametrization (σ_w, σ_b multiply in apply) and nK + 1 in
    the standard one, n being the width below. Source: Lee et al. (2019), appendix E;
    Sohl-Dickstein et al. (2020), section 2.
    """
    w2, b2 = weight_std**2, bias_std**2
    nngp = w2 * kernel.nngp + b2
    own = nngp if parametrization == "ntk" else kernel.width * kernel.nngp + 1.0
    return Kernel(
        nngp=nngp,
        ntk=w2 * kernel.ntk + own,
        variance1=w2 * kernel.variance1 + b2,
        variance2=w2 * kernel.variance2 + b2,
        width=width,
        depth=kernel.depth + 1,
        gaussian=True,
    )


def activate(kernel: Kernel, dual: DualActivation, *, layer: str) -> Kernel:
    """An elementwise activation: K' = E[φφ], Θ' = Θ·E[φ'φ'].

    Source: Cho & Saul (2009); Daniely, Frostig & Singer (2016), definition 4.
    """
    if not kernel.gaussian:
        raise invalid(
            f"{layer}.kernel: the features entering {layer}",
            got="features that are not Gaussian (raw inputs, activations or a concatenation)",
            expected="Gaussian features",
            remedy=f"Put a dense layer directly before {layer}.",
        )
    nngp, derivative = dual(kernel.nngp, kernel.variance1, kernel.variance2)
    variance1, _ = dual(kernel.variance1, kernel.variance1, kernel.variance1)
    variance2, _ = dual(kernel.variance2, kernel.variance2, kernel.variance2)
    return replace(
        kernel,
        nngp=nngp,
        ntk=kernel.ntk * derivative,
        variance1=variance1,
        variance2=variance2,
        gaussian=False,
    )


def add(kernel: Kernel, branches: tuple[Kernel, ...], *, layer: str) -> Kernel:
    """The sum of branches that all start at `kernel`: covariances add.

    True only if cross-covariances vanish: on all paths through all branches but one, a weight
    layer comes last (x + x has covariance 4K, not 2K).
    """
    widths = [b.width for b in branches]
    if len(set(widths)) > 1:
        raise invalid(
            f"{layer}.kernel: the branches of {layer}",
            got=f"widths {widths}",
            expected="equal widths",
            remedy="Give the branches the same number of features.",
        )
    dependent = [b for b in branches if not (b.gaussian and b.depth > kernel.depth)]
    if len(dependent) > 1:
        raise invalid(
            f"{layer}.kernel: the branches of {layer}",
            got=f"{len(dependent)} branches that do not end in weights of their own",
            expected="at most one",
            remedy="End every branch but one with a dense layer.",
        )
    gaussian = all(b.gaussian for b in branches)
    return _weighted_sum(branches, [1.0] * len(branches), width=widths[0], gaussian=gaussian)


def concatenate(branches: tuple[Kernel, ...]) -> Kernel:
    """The features of all branches side by side: an average weighted by width."""
    width = sum(b.width for b in branches)
    shares = [b.width / width for b in branches]
    return _weighted_sum(branches, shares, width=width, gaussian=False)


def no_limit(layer: str, remedy: str) -> Callable[[Kernel], Kernel]:
    """The `.kernel` of a layer with no known infinite-width limit: it raises, naming the layer."""

    def kernel(kernel: Kernel) -> Kernel:
        raise invalid(
            f"{layer}.kernel",
            got="a layer without an infinite-width limit",
            expected="dense, flatten, identity, dropout, relu, leaky_relu, abs, erf, sin or cos, "
            "joined by serial, parallel or residual",
            remedy=remedy,
        )

    return kernel


def piecewise_linear(negative: float, positive: float, at_zero: float = 0.0) -> DualActivation:
    """The dual of φ(u) = b·max(u, 0) + a·min(u, 0): arc-cosine kernels of degree 0 and 1.

    E[φφ] = (b - a)²(s sin ϑ + (π - ϑ)k)/2π + abk and E[φ'φ'] = (b - a)²(π - ϑ)/2π + ab, with
    s = √(v₁v₂) and cos ϑ = k/s. a = `negative`, b = `positive`, and `at_zero` is φ'(0), all that
    counts where a variance is 0.
    Source: Cho & Saul (2009), equation 6.

    >>> piecewise_linear(0.0, 1.0)(jnp.array(1.0), jnp.array(1.0), jnp.array(1.0))
    (Array(0.5, dtype=float32, weak_type=True), Array(0.5, dtype=float32, weak_type=True))
    """
    difference, product = (positive - negative) ** 2, positive * negative
    mean_slope = (positive + negative) / 2.0

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        unit = _unit(v1, v2)
        k1, s = k / unit, _safe_sqrt((v1 / unit) * (v2 / unit))
        # s sin ϑ from (s - k)(s + k) and ϑ from atan2 stay accurate near ϑ = 0 and π, where
        # arccos does not.
        sine = _safe_sqrt((s - k1) * (s + k1))
        share = 1.0 - _angle(sine, k1) / jnp.pi
        nngp = unit * (difference * (sine / jnp.pi + share * k1) / 2.0) + product * k
        slope1, slope2 = (jnp.where(v > 0, mean_slope, at_zero) for v in (v1, v2))
        constant = (v1 == 0) | (v2 == 0)
        derivative = difference * share / 2.0 + product
        return nngp, jnp.where(constant, slope1 * slope2, derivative)

    return dual


def erf(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = erf: E[φφ] = (2/π) arcsin(2k/√((1 + 2v₁)(1 + 2v₂))).

    Source: Williams (1998), equation 11.
    """
    # (1 + 2v₁)(1 + 2v₂) - 4k², arranged so that large variances neither cancel nor overflow.
    unit = jnp.maximum(_unit(v1, v2), 1.0)
    one, k, v1, v2 = 1.0 / unit, k / unit, v1 / unit, v2 / unit
    s = _safe_sqrt(v1 * v2)
    gap = (s - k) * (s + k)
    # Rounding may make the gap negative; its derivative, which is not 0 there, has to survive.
    gap = gap - lax.stop_gradient(jnp.minimum(gap, 0.0))
    root = jnp.sqrt(one**2 + 2.0 * one * (v1 + v2) + 4.0 * gap)
    return 2.0 / jnp.pi * jnp.arctan2(2.0 * k, root), 4.0 / jnp.pi * one / root


def sin(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = sin: E[φφ] = e^{-(v₁+v₂)/2} sinh k, E[φ'φ'] = e^{-(v₁+v₂)/2} cosh k."""
    # e^{|k| - (v₁+v₂)/2} ≤ 1, where sinh alone would overflow. Not jnp.abs and jnp.sign, whose
    # derivatives at k = 0 would cancel that of sinh.
    sign = jnp.where(k < 0, -1.0, 1.0)
    size = sign * k
    scale = 0.5 * jnp.exp(size - 0.5 * (v1 + v2))
    sinh = -sign * jnp.expm1(-2.0 * size) * scale
    cosh = (1.0 + jnp.exp(-2.0 * size)) * scale
    return sinh, cosh


def cos(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = cos: E[φφ] = e^{-(v₁+v₂)/2} cosh k, E[φ'φ'] = e^{-(v₁+v₂)/2} sinh k."""
    sinh, cosh = sin(k, v1, v2)
    return cosh, sinh


def _weighted_sum(
    branches: tuple[Kernel, ...], weights: list[float], *, width: int, gaussian: bool
) -> Kernel:
    def total(moment: str) -> Array:
        terms = [w * getattr(b, moment) for w, b in zip(weights, branches, strict=True)]
        return reduce(jnp.add, terms)

    return Kernel(
        nngp=total("nngp"),
        ntk=total("ntk"),
        variance1=total("variance1"),
        variance2=total("variance2"),
        width=width,
        depth=min(b.depth for b in branches),
        gaussian=gaussian,
    )


def _unit(v1: Array, v2: Array) -> Array:
    """A power of two of the size of v₁ and v₂, in whose units their product stays a finite float.

    Division by it is exact, and it is constant to derivatives: no result depends on it.
    """
    largest = lax.stop_gradient(jnp.maximum(v1, v2))
    floats = jnp.finfo(largest.dtype)
    power = lax.reduce_precision(largest, exponent_bits=floats.nexp, mantissa_bits=0)
    return jnp.where(power > 0, power, 1.0)


def _angle(sine: Array, cosine: Array) -> Array:
    both_zero = (sine == 0) & (cosine == 0)  # a zero input: any angle, but a finite derivative
    return jnp.where(both_zero, math.pi / 2, jnp.arctan2(sine, jnp.where(both_zero, 1.0, cosine)))


def _safe_sqrt(x: Array) -> Array:
    """√max(x, 0), with derivative 0 instead of ∞ where x ≤ 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
