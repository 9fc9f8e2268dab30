"""Regularizers: `R(params)` is one number, for an objective J(θ) = L(θ) + λ R(θ).

They see every coordinate of every leaf. To leave some out, biases say, pass the subtree of the
others.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxnn import tree
from jaxnn.errors import require_between
from jaxnn.types import Array, ArrayLike, Params


def l0(params: Params) -> Int[Array, ""]:
    """‖θ‖₀, the number of coordinates that are not 0: an integer, without a useful derivative.

    It is no norm, and not convex: (1, 0) and (0, 1) have one such coordinate each, the point
    halfway between them two.

    >>> l0({"W": jnp.array([[1.0, 0.0], [0.0, -2.0]]), "b": jnp.zeros(2)})
    Array(2, dtype=int32)
    """
    counts = [jnp.count_nonzero(jnp.asarray(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.sum(jnp.array(counts, int))


def l1(params: Params) -> Float[Array, ""]:
    """‖θ‖₁ = Σᵢ |θᵢ|, with derivative sign θᵢ, which is 0 at 0.

    >>> l1({"W": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)})
    Array(3.5, dtype=float32)
    """
    tree.require_differentiable("params", params)
    # |θ| = θ sign θ: the derivative of jnp.abs at 0 is 1.
    return tree.dot(params, jax.tree.map(jnp.sign, params))


def l2(params: Params) -> Float[Array, ""]:
    """½‖θ‖₂² = ½ Σᵢ θᵢ², with gradient θ; up to a constant, -ln of a Gaussian prior.

    >>> l2({"W": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)})
    Array(2.625, dtype=float32)
    """
    tree.require_differentiable("params", params)
    return 0.5 * tree.dot(params, params)


def elastic_net(params: Params, alpha: ArrayLike) -> Float[Array, ""]:
    """α‖θ‖₁ + ½(1 - α)‖θ‖₂²: `l1` at α = 1, `l2` at α = 0.

    Errors: α outside [0, 1].

    Source: Zou & Hastie (2005), in the form of Friedman, Hastie & Tibshirani (2010), section 2.

    >>> elastic_net({"W": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}, alpha=0.5)
    Array(3.0625, dtype=float32)
    """
    require_between(
        "elastic_net(alpha)",
        alpha,
        0.0,
        1.0,
        high_open=False,
        remedy="It is the share of the L1 norm; multiply the result by λ for the strength.",
    )
    absolute, square = l1(params), l2(params)
    alpha = jnp.asarray(alpha, absolute.dtype)
    return alpha * absolute + (1.0 - alpha) * square
