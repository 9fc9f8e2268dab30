"""Networks of infinite width: the covariance recursion that every layer's `.kernel` is a step of.

At random weights and infinite width the features of a layer are independent draws of one centered
Gaussian process. A `Kernel` holds its covariance (NNGP) and the tangent kernel (NTK) for pairs of
inputs; a layer maps one `Kernel` to the next. Source: Neal (1996); Lee et al. (2018);
Jacot, Gabriel & Hongler (2018).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

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
    depth      number of weight layers passed (static)
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

    >>> inputs(jnp.ones((2, 4)), 2.0 * jnp.ones((3, 4))).nngp.shape
    (2, 3)
    """
    d = x1.shape[-1]
    nngp = jnp.einsum("id,jd->ij", x1, x2) / d
    variance1 = jnp.einsum("id,id->i", x1, x1)[:, None] / d
    variance2 = jnp.einsum("jd,jd->j", x2, x2)[None, :] / d
    return Kernel(nngp, jnp.zeros_like(nngp), variance1, variance2, width=d)


def paired_inputs(x: Float[Array, "N d"]) -> Kernel:
    """The kernel of every input with itself, shape (N,): the diagonal, without cancellation.

    >>> paired_inputs(2.0 * jnp.ones((3, 4))).nngp
    Array([4., 4., 4.], dtype=float32)
    """
    v = jnp.einsum("id,id->i", x, x) / x.shape[-1]
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

    True only if cross-covariances vanish: at most one branch may lack a weight layer at its end
    (x + x has covariance 4K, not 2K).
    """
    dependent = [b for b in branches if not (b.gaussian and b.depth > kernel.depth)]
    if len(dependent) > 1:
        raise invalid(
            f"{layer}.kernel: the branches of {layer}",
            got=f"{len(dependent)} branches that do not end in weights of their own",
            expected="at most one",
            remedy="End every branch but one with a dense layer.",
        )
    return Kernel(
        *(
            sum(getattr(b, name) for b in branches)
            for name in ("nngp", "ntk", "variance1", "variance2")
        ),
        width=branches[0].width,
        depth=max(b.depth for b in branches),
        gaussian=all(b.gaussian for b in branches),
    )


def concatenate(branches: tuple[Kernel, ...]) -> Kernel:
    """The features of all branches side by side: an average weighted by width."""
    width = sum(b.width for b in branches)
    return Kernel(
        *(
            sum(b.width / width * getattr(b, name) for b in branches)
            for name in ("nngp", "ntk", "variance1", "variance2")
        ),
        width=width,
        depth=max(b.depth for b in branches),
        gaussian=False,
    )


def no_limit(layer: str, remedy: str) -> Callable[[Kernel], Kernel]:
    """The `.kernel` of a layer that has no infinite-width limit here: it raises, naming the layer."""

    def kernel(kernel: Kernel) -> Kernel:
        raise invalid(
            f"{layer}.kernel",
            got="a layer without an infinite-width limit",
            expected="dense, flatten, identity, dropout, relu, leaky_relu, abs, erf, sin or cos, "
            "joined by serial, parallel or residual",
            remedy=remedy,
        )

    return kernel


def piecewise_linear(negative: float, positive: float) -> DualActivation:
    """The dual of φ(u) = positive·max(u, 0) + negative·min(u, 0): arc-cosine kernels of degree 0, 1.

    E[φφ] = (b - a)²(s sin ϑ + (π - ϑ)k)/2π + abk and E[φ'φ'] = (b - a)²(π - ϑ)/2π + ab, with
    s = √(v₁v₂) and cos ϑ = k/s. Source: Cho & Saul (2009), equation 6.

    >>> piecewise_linear(0.0, 1.0)(jnp.array(1.0), jnp.array(1.0), jnp.array(1.0))
    (Array(0.5, dtype=float32, weak_type=True), Array(0.5, dtype=float32, weak_type=True))
    """
    difference, product = (positive - negative) ** 2, positive * negative

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        s = _safe_sqrt(v1 * v2)
        # s sin ϑ from (s - k)(s + k) and ϑ from atan2 stay accurate near ϑ = 0 and π, where
        # arccos does not.
        sine = _safe_sqrt((s - k) * (s + k))
        share = 1.0 - _angle(sine, k) / jnp.pi
        nngp = difference * (sine / jnp.pi + share * k) / 2.0 + product * k
        return nngp, difference * share / 2.0 + product

    return dual


def erf(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = erf: E[φφ] = (2/π) arcsin(2k/√((1 + 2v₁)(1 + 2v₂))).

    Source: Williams (1998), equation 11.
    """
    # (1 + 2v₁)(1 + 2v₂) - 4k², arranged so that large variances do not cancel.
    s = _safe_sqrt(v1 * v2)
    root = jnp.sqrt(1.0 + 2.0 * (v1 + v2) + 4.0 * jnp.maximum((s - k) * (s + k), 0.0))
    return 2.0 / jnp.pi * jnp.arctan2(2.0 * k, root), 4.0 / jnp.pi / root


def sin(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = sin: E[φφ] = e^{-(v₁+v₂)/2} sinh k, E[φ'φ'] = e^{-(v₁+v₂)/2} cosh k."""
    # e^{|k| - (v₁+v₂)/2} ≤ 1, where sinh alone would overflow.
    size, scale = jnp.abs(k), 0.5 * jnp.exp(jnp.abs(k) - 0.5 * (v1 + v2))
    sinh = -jnp.sign(k) * jnp.expm1(-2.0 * size) * scale
    cosh = (1.0 + jnp.exp(-2.0 * size)) * scale
    return sinh, cosh


def cos(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
    """The dual of φ = cos: E[φφ] = e^{-(v₁+v₂)/2} cosh k, E[φ'φ'] = e^{-(v₁+v₂)/2} sinh k."""
    sinh, cosh = sin(k, v1, v2)
    return cosh, sinh


def _angle(sine: Array, cosine: Array) -> Array:
    both_zero = (sine == 0) & (cosine == 0)  # a zero input: any angle, but a finite derivative
    return jnp.where(both_zero, math.pi / 2, jnp.arctan2(sine, jnp.where(both_zero, 1.0, cosine)))


def _safe_sqrt(x: Array) -> Array:
    """√max(x, 0), with derivative 0 instead of ∞ where x ≤ 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
